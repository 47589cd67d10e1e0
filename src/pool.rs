//! Buffers between two uses: all tensor memory comes and goes through here.
use crate::error::Result;
use crate::ops::{Buffer, Ops, Shape};
use std::collections::BTreeMap;

/// Buffers that wait to be used, found by their exact shape.
pub struct Pool<O: Ops> {
    buffers: Vec<(Shape, O::Buffer)>,
    /// All that a run will ever need was laid in.
    planned: bool,
}

impl<O: Ops> Default for Pool<O> {
    fn default() -> Self {
        Self { buffers: Vec::new(), planned: false }
    }
}

impl<O: Ops> Pool<O> {
    /// A buffer that will be given back.
    pub fn take(&mut self, ops: &mut O, shape: Shape) -> Result<O::Buffer> {
        match self.buffers.iter().position(|(other, _)| *other == shape) {
            Some(index) => Ok(self.buffers.swap_remove(index).1),
            None => ops.alloc(shape),
        }
    }

    /// A buffer that stays away. Unless it was planned, those that wait will be needed themselves.
    pub fn take_for_good(&mut self, ops: &mut O, shape: Shape) -> Result<O::Buffer> {
        if self.planned { self.take(ops, shape) } else { ops.alloc(shape) }
    }

    /// Has `n` buffers of this shape waiting.
    pub fn stock(&mut self, ops: &mut O, shape: Shape, n: usize) -> Result<()> {
        let waiting = self.buffers.iter().filter(|(other, _)| *other == shape).count();
        for _ in waiting..n {
            let buffer = ops.alloc(shape)?;
            self.give(buffer);
        }
        Ok(())
    }

    /// A new run may need something else.
    pub fn forget_plan(&mut self) {
        self.planned = false;
    }

    pub fn is_planned(&self) -> bool {
        self.planned
    }

    /// Gives back what is of a shape that is not used.
    pub fn keep_only(&mut self, ops: &mut O, is_used: impl Fn(&Shape) -> bool) {
        if self.buffers.iter().any(|(shape, _)| !is_used(shape)) {
            ops.before_drop();
            self.buffers.retain(|(shape, _)| is_used(shape));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    pub fn give(&mut self, buffer: O::Buffer) {
        self.buffers.push((buffer.view().shape(), buffer));
    }

    /// Gives the memory back; true if there was any.
    pub fn free(&mut self) -> bool {
        self.planned = false;
        !std::mem::take(&mut self.buffers).is_empty()
    }

    /// Holds exactly these buffers afterwards.
    pub fn reserve(&mut self, ops: &mut O, planned: &[(Shape, usize)]) -> Result<()> {
        self.planned = true;
        let mut missing = BTreeMap::new();
        planned.iter().for_each(|(shape, n)| *missing.entry(*shape).or_insert(0) += n);
        self.buffers.retain(|(shape, _)| match missing.get_mut(shape) {
            Some(n) if *n > 0 => {
                *n -= 1;
                true
            }
            _ => false,
        });
        for (shape, n) in missing {
            for _ in 0..n {
                let buffer = ops.alloc(shape)?;
                self.buffers.push((shape, buffer));
            }
        }
        Ok(())
    }
}
