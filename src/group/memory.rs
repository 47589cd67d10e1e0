//! What a group keeps: how much it will be, taking it at once, and giving it back.
use super::{Group, Setting};
use crate::error::{Error, Result};
use crate::gauge::Gauge;
use crate::history::{History, kept_dtype};
use crate::ops::{Ops, Shape};
use crate::preset::Policy;

impl<O: Ops> Group<O> {
    /// Shapes of every tensor kept, given each branch's tensors: the histories, and the pool.
    fn plan(policy: &Policy, setting: &Setting, shapes: &[Vec<Shape>]) -> (Vec<Shape>, Vec<Shape>) {
        let keep = &policy.keep;
        let kept = |shapes: &Vec<Shape>| {
            let filled = shapes.iter().enumerate().filter(|(index, _)| keep.fills(*index));
            let kept = filled.map(|(_, s)| s.with_dtype(kept_dtype(keep, s.dtype)));
            kept.collect::<Vec<_>>().repeat(policy.estimator.capacity())
        };
        let slots = shapes.iter().flat_map(kept).collect();

        let probe = policy.probe().is_some();
        let measure = if probe { setting.measure } else { 0 };
        let measured = shapes.iter().map(|s| Gauge::<O>::measured(measure, s).collect());
        let measured: Vec<Vec<_>> = measured.collect();
        let staged =
            shapes.iter().map(|s| History::<O>::staging(keep, s.iter().copied().enumerate()));
        let staged: Vec<Vec<_>> = staged.collect();
        let copied = if setting.keeps_input && policy.front() == 1 { &[][..] } else { &measured };

        let mut distinct: Vec<_> = measured.iter().chain(&staged).flatten().copied().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let pool = distinct.into_iter().flat_map(|shape| {
            // A reference for each branch, or for the one that decides; and for the branches that
            // one pass may stack what is in flight: first inputs, then staged values.
            let together = if setting.share { 1 } else { setting.max_stacked };
            let references = if setting.share { 1 } else { setting.n_branches };
            let in_flight = most(&shape, copied, together);
            let waiting = most(&shape, &staged, setting.max_stacked);
            let n = most(&shape, &measured, references) + in_flight.max(waiting);
            std::iter::repeat_n(shape, n)
        });
        (slots, pool.collect())
    }

    /// Bytes asked of the allocator, given each branch's tensors.
    pub fn bytes_needed(policy: &Policy, setting: &Setting, shapes: &[Vec<Shape>]) -> Result<u64> {
        let (slots, pool) = Self::plan(policy, setting, shapes);
        let mut bytes = slots.iter().chain(&pool).map(|shape| shape.bytes() as u64);
        let sum = bytes.try_fold(0u64, |sum, bytes| sum.checked_add(bytes));
        let sum = sum.filter(|sum| *sum <= isize::MAX as u64);
        sum.ok_or_else(|| Error::Arg("shapes need more bytes than an address can count".to_owned()))
    }

    /// Takes all memory that will ever be needed for these tensors.
    pub fn reserve(
        &mut self,
        ops: &mut O,
        setting: &Setting,
        shapes: &[Vec<(u32, Shape)>],
    ) -> Result<()> {
        let plain: Vec<Vec<_>> =
            shapes.iter().map(|s| s.iter().map(|(_, shape)| *shape).collect()).collect();
        let (_, pool) = Self::plan(&self.policy, setting, &plain);
        self.pool.reserve(ops, &pool)?;
        for (branch, shapes) in self.branches.iter_mut().zip(shapes) {
            let shapes = shapes.iter().enumerate().map(|(index, (id, s))| (index, *id, *s));
            branch.history.reserve(ops, shapes)?;
        }
        self.planned = true;
        Ok(())
    }

    /// Gives all memory back. What the rules have counted stands: all ranks count alike.
    pub fn free(&mut self) {
        self.cancel();
        (0..self.branches.len()).for_each(|branch| self.forget(branch));
        for branch in &mut self.branches {
            branch.history.free();
        }
        self.pool.free();
        self.planned = false;
    }

    /// Gives back what is of no use in this run; true if there was any.
    pub(super) fn reclaim(&mut self) -> bool {
        let mut any = self.pool.free();
        for branch in self.branches.iter_mut().filter(|branch| branch.history.is_empty()) {
            any |= branch.history.free();
        }
        any
    }

    /// Gives back buffers that wait for tensors of an earlier run.
    pub(super) fn tidy_pool(&mut self) {
        if !self.planned {
            let mut used = self.gauge.as_ref().map_or(Vec::new(), Gauge::shapes);
            used.extend(self.branches.iter().flat_map(|branch| branch.history.shapes()));
            self.pool.keep_only(&used);
        }
    }

    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        self.cancel();
        self.leader = None;
        for branch in &mut self.branches {
            branch.rules = self.policy.rules.clone();
            branch.history.clear();
            (branch.evaluated, branch.last) = (None, None);
        }
        if let Some(gauge) = &mut self.gauge {
            gauge.clear(&mut self.pool);
        }
    }

    /// Forgets what one branch holds.
    pub fn forget(&mut self, branch: usize) {
        self.branches[branch].history.clear();
        self.branches[branch].last = None;
        if let Some(gauge) = &mut self.gauge {
            gauge.forget(branch, &mut self.pool);
        }
    }

    /// One branch's tensors have other shapes from here on: nothing of the old ones is of use.
    pub(super) fn reshape(&mut self, branch: usize) {
        self.forget(branch);
        self.branches[branch].history.free();
        self.pool.free();
    }
}

/// Most buffers of this shape that any `together` branches have among them.
fn most(shape: &Shape, branches: &[Vec<Shape>], together: usize) -> usize {
    let count = |shapes: &Vec<Shape>| shapes.iter().filter(|other| *other == shape).count();
    let mut counts: Vec<_> = branches.iter().map(count).collect();
    counts.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
    counts.into_iter().take(together).sum()
}
