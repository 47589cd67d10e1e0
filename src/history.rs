//! The kept values of one site and branch: a ring of slots, each with one buffer per tensor.
//!
//! A residual is staged: the value that goes in is copied into the slot being filled, and replaced
//! by the difference once the value that comes out is known. Where the history's dtype cannot hold
//! the input exactly, the copy waits in a staging buffer instead.
use crate::error::{Result, bail};
use crate::estimator::{Estimator, MAX_HISTORY, Weights};
use crate::ops::{Buffer, Dtype, Ops, Shape, View};
use crate::scope::{Base, Keep};

/// Most tensors a site has.
pub const MAX_TENSORS: usize = 4;

/// One branch's rows of the tensors of a site, with the engine's numbers for them.
#[derive(Clone, Copy)]
pub struct Rows {
    views: [Option<View>; MAX_TENSORS],
    ids: [u32; MAX_TENSORS],
    n: usize,
}

impl Rows {
    pub const NONE: Self = Self { views: [None; MAX_TENSORS], ids: [0; MAX_TENSORS], n: 0 };

    /// More than [`MAX_TENSORS`] must have been refused before.
    pub fn push(&mut self, view: View, id: u32) {
        (self.views[self.n], self.ids[self.n]) = (Some(view), id);
        self.n += 1;
    }

    pub fn count(&self) -> usize {
        self.n
    }

    pub fn iter(&self) -> impl Iterator<Item = (View, u32)> {
        self.views.into_iter().flatten().zip(self.ids)
    }

    pub fn get(&self, index: usize) -> Option<View> {
        self.views.get(index).copied().flatten()
    }

    /// The tensor known elsewhere as number `index` with `id`: by its id, else by its position.
    pub fn find(&self, index: usize, id: u32) -> Option<View> {
        match id {
            0 => self.get(index).filter(|_| self.ids[index] == 0),
            _ => self.iter().find(|(_, other)| *other == id).map(|(view, _)| view),
        }
    }
}

/// A tensor of the site as it is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Track {
    /// Position and id at the start of the site.
    index: usize,
    id: u32,
    /// As the engine has it.
    shape: Shape,
    /// It was there at the end of the site, too.
    present: bool,
}

impl Track {
    /// By its id, else by its position.
    fn is(&self, index: usize, id: u32) -> bool {
        self.id == id && (id != 0 || self.index == index)
    }

    fn keeps(&self, other: &Self) -> bool {
        self.is(other.index, other.id) && self.shape == other.shape
    }
}

pub struct History<O: Ops> {
    keep: Keep,
    capacity: usize,
    tracks: Vec<Track>,
    /// Newest first; slots past `steps.len()` hold nothing, the front slot of an open history
    /// belongs to no step yet.
    slots: Vec<Vec<O::Buffer>>,
    steps: Vec<f64>,
    /// Block at which the kept values begin.
    entry: u32,
    open: bool,
}

/// The dtype a tensor is kept in.
pub fn kept_dtype(keep: &Keep, dtype: Dtype) -> Dtype {
    keep.dtype.unwrap_or(dtype)
}

/// The history's slots cannot hold a tensor of this dtype while it waits for its output.
pub fn needs_staging(keep: &Keep, dtype: Dtype) -> bool {
    keep.base == Base::Residual && !kept_dtype(keep, dtype).holds(dtype)
}

impl<O: Ops> History<O> {
    pub fn new(keep: Keep, capacity: usize) -> Self {
        assert!((1..=MAX_HISTORY).contains(&capacity));
        let steps = Vec::with_capacity(capacity + 1);
        Self { keep, capacity, tracks: Vec::new(), slots: Vec::new(), steps, entry: 0, open: false }
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Shapes of the tensors whose values are kept.
    pub fn shapes(&self) -> impl Iterator<Item = Shape> {
        let tracks = if self.is_empty() && !self.open { &[][..] } else { &self.tracks };
        tracks.iter().map(|track| track.shape)
    }

    /// Step of the newest kept value.
    pub fn newest(&self) -> Option<f64> {
        self.steps.first().copied()
    }

    /// Forgets the values and keeps the memory.
    pub fn clear(&mut self) {
        self.steps.clear();
        self.open = false;
    }

    /// Gives the memory back; true if there was any.
    pub fn free(&mut self) -> bool {
        self.clear();
        self.tracks.clear();
        !std::mem::take(&mut self.slots).is_empty()
    }

    /// Takes the whole ring at once for tensors of these shapes, unless it is there already.
    pub fn reserve(
        &mut self,
        ops: &mut O,
        shapes: impl Iterator<Item = (usize, u32, Shape)>,
    ) -> Result<()> {
        let keep = self.keep;
        let tracks = shapes.filter(|(index, ..)| keep.fills(*index));
        let tracks: Vec<_> =
            tracks.map(|(index, id, shape)| Track { index, id, shape, present: true }).collect();
        let same = self.tracks.len() == tracks.len()
            && tracks.iter().all(|track| self.tracks.iter().any(|own| own.keeps(track)));
        if same && self.slots.len() == self.capacity {
            return Ok(());
        }
        // What was kept for the old shapes is useless, and its memory may be needed.
        self.free();
        let mut slot = || -> Result<Vec<_>> {
            let kept = |track: &Track| track.shape.with_dtype(kept_dtype(&keep, track.shape.dtype));
            tracks.iter().map(|track| ops.alloc(kept(track))).collect()
        };
        let slots = (0..self.capacity).map(|_| slot()).collect::<Result<_>>()?;
        (self.slots, self.tracks) = (slots, tracks);
        Ok(())
    }

    /// Do these tensors, at this block, continue what is kept?
    pub fn check(&self, entry: u32, rows: &Rows) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        if entry != self.entry {
            let kept = self.entry;
            bail!(State, "the part to skip begins at block {entry}, what is kept began at {kept}");
        }
        for (index, (view, id)) in rows.iter().enumerate().filter(|(k, _)| self.keep.fills(*k)) {
            if !self.tracks.iter().any(|track| track.is(index, id)) {
                bail!(Shape, "tensor {index} (id {id}), {}, was not there before", view.shape());
            }
        }
        for track in &self.tracks {
            let shape = rows.find(track.index, track.id).map(|view| view.shape());
            match shape {
                Some(shape) if shape == track.shape => {}
                Some(shape) => {
                    bail!(Shape, "tensor {} is {shape}, it was {}", track.index, track.shape)
                }
                None => bail!(
                    Shape,
                    "tensor {} (id {}) is missing, it was {}",
                    track.index,
                    track.id,
                    track.shape
                ),
            }
        }
        Ok(())
    }

    /// The value of step `now`, from the kept ones, into `out`. With a residual, `input` is what it
    /// is added to. [`check`](Self::check) has passed for what is read and written.
    pub fn estimate(
        &self,
        ops: &mut O,
        estimator: &dyn Estimator,
        now: f64,
        input: &Rows,
        out: &Rows,
    ) {
        let weights = estimator.weights(&self.steps, now);
        for (k, track) in self.tracks.iter().enumerate().filter(|(_, track)| track.present) {
            let Some(out) = out.find(track.index, track.id) else { continue };
            let x = match self.keep.base {
                Base::Residual => input.find(track.index, track.id),
                Base::Output => None,
            };
            let mut terms = [(0.0, out); MAX_HISTORY];
            let mut n = 0;
            for (c, slot) in self.terms(&weights) {
                terms[n] = (c, slot[k].view());
                n += 1;
            }
            ops.combine(out, x, &terms[..n]);
        }
    }

    fn terms(&self, weights: &Weights) -> impl Iterator<Item = (f64, &Vec<O::Buffer>)> {
        let kept = weights.as_slice()[..self.steps.len()].iter().copied().zip(&self.slots);
        kept.filter(|(c, _)| *c != 0.0)
    }

    /// Gives up the oldest value and, on a residual, stages the tensors that go in.
    pub fn open(
        &mut self,
        ops: &mut O,
        entry: u32,
        input: &Rows,
        staging: &[O::Buffer],
    ) -> Result<()> {
        if entry != self.entry {
            self.clear();
            self.entry = entry;
        }
        if self.keep.base == Base::Residual {
            let shapes = input.iter().enumerate().map(|(i, (view, id))| (i, id, view.shape()));
            self.reserve(ops, shapes)?;
            self.give_up_oldest();
            let mut staging = staging.iter();
            for (track, slot) in self.tracks.iter().zip(&self.slots[0]) {
                let Some(x) = input.find(track.index, track.id) else { continue };
                match needs_staging(&self.keep, track.shape.dtype).then(|| staging.next()) {
                    Some(buffer) => ops.copy(buffer.expect("one for each").view(), x),
                    None => ops.copy(slot.view(), x),
                }
            }
        }
        self.open = true;
        Ok(())
    }

    /// Shapes of what [`open`](Self::open) needs staging buffers for.
    pub fn staging(keep: &Keep, shapes: impl Iterator<Item = (usize, Shape)>) -> Vec<Shape> {
        let staged = shapes.filter(|(index, _)| keep.fills(*index)).map(|(_, shape)| shape);
        staged.filter(|shape| needs_staging(keep, shape.dtype)).collect()
    }

    /// Takes the computed value into the history.
    pub fn close(
        &mut self,
        ops: &mut O,
        step: f64,
        out: &Rows,
        staging: &[O::Buffer],
    ) -> Result<()> {
        if self.keep.base == Base::Output {
            let shapes = out.iter().enumerate().map(|(i, (view, id))| (i, id, view.shape()));
            self.reserve(ops, shapes)?;
            self.give_up_oldest();
        }
        let found = |track: &Track| out.find(track.index, track.id);
        for (track, shape) in self.tracks.iter().filter_map(|t| Some((t, found(t)?.shape()))) {
            if shape != track.shape {
                let expected = track.shape;
                bail!(
                    Shape,
                    "tensor {} came out as {shape}, it went in as {expected}",
                    track.index
                );
            }
        }
        if self.tracks.iter().any(|track| found(track).is_some() != track.present) {
            self.steps.clear();
            self.tracks.iter_mut().for_each(|track| track.present = found(track).is_some());
        }
        let mut staging = staging.iter();
        for (track, slot) in self.tracks.iter().zip(&self.slots[0]) {
            let staged = needs_staging(&self.keep, track.shape.dtype).then(|| staging.next());
            let Some(y) = found(track) else { continue };
            match self.keep.base {
                Base::Output => ops.copy(slot.view(), y),
                Base::Residual => {
                    let base = staged.flatten().map_or(slot.view(), Buffer::view);
                    ops.subtract(slot.view(), y, base);
                }
            }
        }
        self.steps.insert(0, step);
        self.open = false;
        Ok(())
    }

    fn give_up_oldest(&mut self) {
        self.steps.truncate(self.capacity - 1);
        self.slots.rotate_right(1);
    }

    pub fn is_open(&self) -> bool {
        self.open
    }
}
