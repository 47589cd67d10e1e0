//! The kept values of one site and branch: a ring of slots, each with one buffer per tensor; or, in
//! compat modes, the ladder of their differences.
//!
//! A residual is staged: the value that goes in is copied into the slot being filled, and replaced
//! by the difference once the value that comes out is known. Where the history's dtype cannot hold
//! the input exactly, the copy waits in a staging buffer instead.
use crate::error::{Result, bail};
use crate::estimator::{Anchor, Estimator, Form, Kept, MAX_HISTORY, Wanted, Weights};
use crate::ops::{Buffer, Dtype, MAX_RUNGS, MAX_TERMS, Ops, Rounding, Shape, Sum, View};
use crate::pool::Pool;
use crate::rows::{Part, Rows};
use crate::scope::{Base, Keep};
use arrayvec::ArrayVec;

const _: () = assert!(MAX_HISTORY <= MAX_TERMS);

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
}

pub struct History<O: Ops> {
    keep: Keep,
    capacity: usize,
    form: Form,
    tracks: Vec<Track>,
    /// Newest first, or the rungs of the ladder; slots past `anchors.len()` hold nothing, the front
    /// slot of an open ring belongs to no anchor yet.
    slots: Vec<Vec<O::Buffer>>,
    anchors: Vec<Anchor>,
    /// Of an open residual: inputs that the slots cannot hold.
    staged: Vec<O::Buffer>,
    /// Of a recursive estimator: its last predictions, newest first, and the step of the newest.
    predicted: Vec<Weights>,
    predicted_at: f64,
    /// Block or layer at which the kept values begin.
    entry: u32,
    open: bool,
    /// A value could not be kept, and there is none since.
    pub is_lost: bool,
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
    pub fn new(keep: Keep, estimator: &dyn Estimator) -> Self {
        let capacity = estimator.capacity();
        assert!((1..=MAX_HISTORY).contains(&capacity));
        assert!(estimator.form() == Form::Values || capacity <= MAX_RUNGS);
        Self {
            keep,
            capacity,
            form: estimator.form(),
            tracks: Vec::new(),
            slots: Vec::new(),
            // With room for one more than is kept, so that nothing has to be taken later.
            anchors: Vec::with_capacity(capacity + 1),
            staged: Vec::new(),
            predicted: Vec::with_capacity(if estimator.is_recursive() { 3 } else { 0 }),
            predicted_at: 0.0,
            entry: 0,
            open: false,
            is_lost: false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Shapes of the tensors whose values are kept.
    pub fn shapes(&self) -> impl Iterator<Item = Shape> {
        let tracks = if self.is_empty() && !self.open { &[][..] } else { &self.tracks };
        tracks.iter().map(|track| track.shape)
    }

    /// Step of the newest computed value.
    pub fn newest(&self) -> Option<f64> {
        self.anchors.iter().find(|anchor| !anchor.carried).map(|anchor| anchor.step)
    }

    /// What a skip leaves behind here can only be forgotten, not undone.
    pub fn is_changed_by_skips(estimator: &dyn Estimator) -> bool {
        estimator.form() == Form::Chain || estimator.is_recursive()
    }

    /// Forgets the values and keeps the memory.
    pub fn clear(&mut self) {
        self.anchors.clear();
        self.predicted.clear();
        self.open = false;
    }

    /// Gives the memory back; true if there was any.
    pub fn free(&mut self) -> bool {
        self.clear();
        self.tracks.clear();
        !std::mem::take(&mut self.slots).is_empty()
    }

    /// Forgets the values and lays the memory into the pool.
    pub fn release(&mut self, pool: &mut Pool<O>) {
        let slots = std::mem::take(&mut self.slots);
        slots.into_iter().flatten().for_each(|buffer| pool.give(buffer));
        self.free();
    }

    /// Takes the whole ring at once for these tensors, unless it is there already.
    fn reserve(&mut self, ops: &mut O, pool: &mut Pool<O>, rows: Rows) -> Result<()> {
        let keep = self.keep;
        let wanted = || rows.iter().enumerate().filter(|(index, _)| keep.fills(*index));
        let n = wanted().count();
        if n == 0 {
            bail!(Arg, "fill is {:#b}: none of the tensors given would be restored", keep.fill);
        }
        let is_kept = |(index, part): (usize, &Part)| {
            let mut own = self.tracks.iter();
            own.any(|own| own.is(index, part.id) && own.shape == part.view.shape())
        };
        if self.slots.len() == self.capacity && self.tracks.len() == n && wanted().all(is_kept) {
            return Ok(());
        }
        // What was kept for the old shapes is useless, and its memory may be needed.
        self.free();
        let track = |(index, part): (usize, &Part)| Track {
            index,
            id: part.id,
            shape: part.view.shape(),
            present: true,
        };
        let tracks: Vec<_> = wanted().map(track).collect();
        let mut slot = || -> Result<Vec<_>> {
            let kept = |track: &Track| track.shape.with_dtype(kept_dtype(&keep, track.shape.dtype));
            tracks.iter().map(|track| pool.take_for_good(ops, kept(track))).collect()
        };
        let slots = (0..self.capacity).map(|_| slot()).collect::<Result<_>>()?;
        (self.slots, self.tracks) = (slots, tracks);
        Ok(())
    }

    /// Do these tensors, at this block or layer, continue what is kept?
    pub fn check(&self, entry: u32, rows: Rows) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        if entry != self.entry {
            let kept = self.entry;
            bail!(State, "the part to skip begins at block {entry}, what is kept began at {kept}");
        }
        for (index, Part { view, id }) in
            rows.iter().enumerate().filter(|(k, _)| self.keep.fills(*k))
        {
            let id = *id;
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

    /// What is wanted, from the kept values, into `out`. With a residual, `input` is what it is
    /// added to. [`check`](Self::check) has passed for what is read and written.
    pub fn estimate(
        &mut self,
        ops: &mut O,
        estimator: &dyn Estimator,
        wanted: Wanted,
        input: Rows,
        out: Rows,
    ) {
        let kept = Kept { anchors: &self.anchors, predicted: &self.predicted };
        let weights = estimator.weights(&kept, wanted);
        let rounding = match self.form {
            Form::Values => Rounding::Once,
            Form::Ladder | Form::Chain => Rounding::EachTerm,
        };
        let restored = || {
            let present = self.tracks.iter().enumerate().filter(|(_, track)| track.present);
            present.filter_map(|(k, track)| Some((k, track, out.find(track.index, track.id)?)))
        };
        ops.combine_all(rounding, |form| {
            for (k, track, out) in restored() {
                let x = match self.keep.base {
                    Base::Residual => input.find(track.index, track.id).copied(),
                    Base::Output => None,
                };
                self.weight(k, *out, x, &weights, form);
            }
            // A tensor that is not to be restored passes through.
            for (index, Part { view: out, id }) in
                out.iter().enumerate().filter(|(k, _)| !self.keep.fills(*k))
            {
                let input = input.find(index, *id).filter(|input| !input.is_same(out));
                input.into_iter().for_each(|input| form(Sum::copy(*out, *input)));
            }
        });
        if self.is_fed() {
            for (k, _, out) in restored() {
                ops.ladder(*out, &self.rungs(k)[..self.capacity], self.anchors.len(), 1.0);
            }
        }
        if estimator.is_recursive() {
            self.predicted.insert(0, weights);
            self.predicted.truncate(2);
            self.predicted_at = wanted.step;
        }
    }

    /// `out := x + sum_j c_j Y_j` for tensor number `k` of the site.
    fn weight(
        &self,
        k: usize,
        out: View,
        x: Option<View>,
        weights: &Weights,
        form: &mut dyn FnMut(Sum),
    ) {
        let mut terms = ArrayVec::<_, MAX_HISTORY>::new();
        let kept = weights.as_slice()[..self.anchors.len()].iter().zip(&self.slots);
        for (c, slot) in kept.filter(|(c, _)| **c != 0.0) {
            terms.push((*c, slot[k].view()));
        }
        // diffusers adds to the newer of a pair, and not to 0.
        match terms.split_first().filter(|_| self.is_fed()) {
            Some(((_, newest), older)) => form(Sum::new(out, Some(*newest), older)),
            None => form(Sum::new(out, x, &terms)),
        }
    }

    fn is_fed(&self) -> bool {
        self.form == Form::Chain
    }

    /// Tensor number `k` of every slot; as many as the history has.
    fn rungs(&self, k: usize) -> [View; MAX_RUNGS] {
        std::array::from_fn(|rung| self.slots[rung.min(self.slots.len() - 1)][k].view())
    }

    /// Gives up the oldest value and, on a residual, stages the tensors that go in: what the slots
    /// cannot hold in buffers of the pool, until [`unstage`](Self::unstage).
    pub fn open(&mut self, ops: &mut O, pool: &mut Pool<O>, entry: u32, input: Rows) -> Result<()> {
        if entry != self.entry {
            self.clear();
            self.entry = entry;
        }
        if self.keep.base == Base::Residual {
            self.reserve(ops, pool, input)?;
            self.stage(ops, pool)?;
            self.give_up_oldest(ops);
            ops.combine_all(Rounding::Once, |form| {
                for (track, _, place) in self.places() {
                    let x = input.find(track.index, track.id);
                    x.into_iter().for_each(|x| form(Sum::copy(place, *x)));
                }
            });
        }
        self.open = true;
        Ok(())
    }

    /// Each tensor's view in the slot being filled, and where its input waits for its output: there, or
    /// in the next of the staging buffers.
    fn places(&self) -> impl Iterator<Item = (&Track, View, View)> {
        let mut staging = self.staged.iter();
        self.tracks.iter().zip(&self.slots[0]).map(move |(track, slot)| {
            let staged = needs_staging(&self.keep, track.shape.dtype).then(|| staging.next());
            (track, slot.view(), staged.flatten().map_or(slot.view(), Buffer::view))
        })
    }

    /// Takes a buffer for each track that needs one, in their order.
    fn stage(&mut self, ops: &mut O, pool: &mut Pool<O>) -> Result<()> {
        self.unstage(pool);
        for track in self.tracks.iter().filter(|t| needs_staging(&self.keep, t.shape.dtype)) {
            self.staged.push(pool.take(ops, track.shape)?);
        }
        Ok(())
    }

    /// Gives back what an input was staged in.
    pub fn unstage(&mut self, pool: &mut Pool<O>) {
        self.staged.drain(..).for_each(|buffer| pool.give(buffer));
    }

    /// Shapes of what [`open`](Self::open) needs staging buffers for.
    pub fn staging(keep: &Keep, shapes: impl Iterator<Item = (usize, Shape)>) -> Vec<Shape> {
        let staged = shapes.filter(|(index, _)| keep.fills(*index)).map(|(_, shape)| shape);
        staged.filter(|shape| needs_staging(keep, shape.dtype)).collect()
    }

    /// Takes the computed value into the history.
    pub fn close(&mut self, ops: &mut O, pool: &mut Pool<O>, step: f64, out: Rows) -> Result<()> {
        if self.keep.base == Base::Output {
            self.reserve(ops, pool, out)?;
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
            self.anchors.clear();
            self.tracks.iter_mut().for_each(|track| track.present = found(track).is_some());
        }
        match (self.form, self.keep.base) {
            (Form::Ladder, _) => self.climb(ops, step, out),
            (Form::Chain, _) => {
                self.climb(ops, step, out);
                if self.anchors.is_empty() {
                    // diffusers' pair begins as the first value twice.
                    self.anchors.push(Anchor::computed(step));
                    self.climb(ops, step, out);
                }
            }
            (Form::Values, Base::Output) => {
                self.give_up_oldest(ops);
                ops.combine_all(Rounding::Once, |form| {
                    for (track, slot) in self.tracks.iter().zip(&self.slots[0]) {
                        found(track).into_iter().for_each(|y| form(Sum::copy(slot.view(), *y)));
                    }
                });
            }
            (Form::Values, Base::Residual) => {
                ops.combine_all(Rounding::Once, |form| {
                    for (track, slot, base) in self.places() {
                        let Some(y) = found(track) else { continue };
                        form(Sum::new(slot, Some(*y), &[(-1.0, base)]));
                    }
                });
            }
        }
        self.anchors.insert(0, Anchor::computed(step));
        self.anchors.truncate(self.capacity);
        self.is_lost = false;
        self.open = false;
        Ok(())
    }

    /// A computed value goes onto the ladder.
    fn climb(&self, ops: &mut O, step: f64, out: Rows) {
        let held = self.anchors.len().min(self.capacity);
        let gap = match self.anchors.first() {
            Some(newest) if self.form == Form::Ladder => step - newest.step,
            _ => 1.0,
        };
        for (k, track) in self.tracks.iter().enumerate() {
            let Some(y) = out.find(track.index, track.id) else { continue };
            ops.ladder(*y, &self.rungs(k)[..self.capacity], held, gap);
        }
    }

    /// Makes room at the front of the ring. The last prediction of a recursive estimator is carried
    /// along as a value.
    fn give_up_oldest(&mut self, ops: &mut O) {
        if let Some(weights) = self.predicted.first().copied() {
            let oldest = self.capacity - 1;
            ops.combine_all(Rounding::Once, |form| {
                for k in 0..self.tracks.len() {
                    self.weight(k, self.slots[oldest][k].view(), None, &weights, form);
                }
            });
            self.slots.rotate_right(1);
            self.anchors.truncate(oldest);
            self.anchors.insert(0, Anchor { step: self.predicted_at, carried: true });
            self.predicted.clear();
        }
        self.anchors.truncate(self.capacity - 1);
        self.slots.rotate_right(1);
    }

    pub fn is_open(&self) -> bool {
        self.open
    }
}
