//! The only code that touches tensors: a few operations, written once per backend. **This page is
//! the specification of the numbers**; every backend, and every golden value, follows it.
//!
//! * Elements are converted to f32, computed in f32, and rounded once, at the store, to nearest
//!   even in the dtype of the tensor that is written. NaN and infinities travel unchanged.
//! * A product is rounded before it is added: no fused multiply-add.
//! * [`combine`](Ops::combine) adds its terms in the order given, newest value first, after `x`.
//!   With [`Rounding::EachTerm`] it starts from 0 where there is no `x`, converts each term to the
//!   dtype of `out`, and rounds to it after every product and every sum, as eager tensor operations
//!   do.
//! * [`ladder`](Ops::ladder) rounds like [`combine`](Ops::combine) with every term: to the dtype of
//!   the value after the subtraction and after the division, to that of a rung where it is kept.
//! * [`low_pass`](Ops::low_pass) may add in any order, in f64 or so that it is within 5e-6 of the
//!   largest element.
//! * [`measure`](Ops::measure) compares values *as they will be stored*: `u = rd(x - base)` is
//!   rounded to the dtype of the earlier copy before it is compared, so that an unchanged input
//!   measures exactly 0.
//! * Sums: the elements of a tensor, in row-major order, are cut into blocks of [`BLOCK`]. Within a
//!   block element `i` is added in f32 to lane `i % LANES`, in rising order; the lanes of a block
//!   are then added by halves in f64 (lane `k` takes lane `k + LANES/2`, and so on down to one); the
//!   blocks are added in rising order in f64, and so are the tensors. The bits therefore depend on
//!   neither the number of threads nor the instruction set.
//! * CUDA has a fixed order of its own, the same on every GPU; its sums agree within 1e-6 relative,
//!   its elements bit for bit, but for the payload of a NaN that was computed with.
//!
//! A view is in the host's memory or where tensors live, which on the CPU is the same. Operations
//! are queued in order; on the CPU they are done on return.
pub mod any;
pub mod cuda;
pub mod host;
pub mod memory;
mod tensor;

pub use tensor::{Dtype, MAX_DIMS, Shape, Tensor, View};

use crate::error::Result;
use crate::rule::Change;
use std::ffi::c_void;
use std::time::Duration;

/// Elements whose sum is taken in f32 lanes.
pub const BLOCK: usize = 4096;
/// Interleaved f32 sums within a block: 32 lanes of three sums fit the registers of every vector
/// unit, so this order costs nothing.
pub const LANES: usize = 32;
/// Most terms of a sum.
pub const MAX_TERMS: usize = 16;
/// Most rungs of a ladder.
pub const MAX_RUNGS: usize = 5;

/// One tensor to be measured against an earlier copy of it. All views have the same extents.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    pub x: View,
    /// `u = x - base`, else `u = x`.
    pub base: Option<View>,
    pub earlier: View,
    /// Receives `u`; may be `base` itself.
    pub keep: Option<View>,
}

/// `out := x + sum_j c_j Y_j`, one of several to be formed; a copy has no terms.
#[derive(Clone, Copy, Debug)]
pub struct Sum<'a> {
    pub out: View,
    pub x: Option<View>,
    pub terms: &'a [(f64, View)],
}

impl<'a> Sum<'a> {
    pub fn new(out: View, x: Option<View>, terms: &'a [(f64, View)]) -> Self {
        Self { out, x, terms }
    }

    pub fn copy(out: View, x: View) -> Self {
        Self::new(out, Some(x), &[])
    }

    pub fn views(&self) -> impl Iterator<Item = &View> + Clone {
        [&self.out].into_iter().chain(&self.x).chain(self.terms.iter().map(|(_, y)| y))
    }
}

/// When a sum of terms is rounded to the dtype of what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// At the store.
    Once,
    /// After every operation: compat modes.
    EachTerm,
}

/// A tensor of the library's own; freed on drop.
pub trait Buffer {
    fn view(&self) -> View;
}

/// A measurement: queued, or what it came to.
pub enum Measured<P> {
    Queued(P),
    Known(Change),
}

impl<P> Measured<P> {
    /// Waits for it, if it is still queued.
    pub fn read<O: Ops<Pending = P>>(&mut self, ops: &mut O) -> Change {
        let known = |known: Change| (known, Self::Known(known));
        let (change, new) = match std::mem::replace(self, Self::Known(Change::zero(Dtype::F32))) {
            Self::Queued(pending) => known(ops.read(pending)),
            Self::Known(change) => known(change),
        };
        *self = new;
        change
    }
}

/// What ranks add up: difference, value, reference, count, whether any is not finite, and whether
/// there is a vote against the skip.
pub type Votes = [f64; 6];

/// Adds `n` doubles over the ranks that must agree, in place, in the order of a stream; the backend
/// decides where they are.
pub type Reduce<'a> = &'a mut dyn FnMut(*mut f64, usize, *mut c_void) -> Result<()>;

/// What this rank has to say.
pub fn votes(own: Option<Change>, veto: bool) -> Votes {
    let vote = f64::from(u8::from(veto));
    let Some(Change { difference, value, reference, count, .. }) = own else {
        return [0.0, 0.0, 0.0, 0.0, 0.0, vote];
    };
    let finite = [difference, value, reference].iter().all(|sum| sum.is_finite());
    [difference, value, reference, count, f64::from(u8::from(!finite)), vote]
}

/// What the ranks came to.
pub struct Agreed {
    /// The sums of all of them; `None` if none had measured anything.
    pub change: Option<Change>,
    pub vetoed: bool,
}

impl Agreed {
    /// `dtype` is that of this rank's tensors, if it had any. All ranks see the same sums, also one
    /// that had nothing to add, so their rules stay alike; sums of a rank that are not finite make
    /// everybody's so.
    pub fn new(votes: Votes, dtype: Option<Dtype>) -> Self {
        let [difference, value, reference, count, not_finite, vetoes] = votes;
        let spoilt = if not_finite > 0.0 { f64::NAN } else { 0.0 };
        let difference = difference + spoilt;
        let dtype = dtype.unwrap_or(Dtype::F32);
        let change = Change { difference, value, reference, count, dtype };
        Self { change: (count > 0.0).then_some(change), vetoed: vetoes > 0.0 }
    }
}

/// Views given to one operation have equal extents and are in the same memory. They do not overlap,
/// except that a view may be given twice where an operation says so.
///
/// An operation that fails says so at the end of the call, in [`finish_call`](Self::finish_call);
/// until the next pass nothing more is done then.
pub trait Ops {
    type Buffer: Buffer + Send;
    /// A measurement that was queued.
    type Pending: Send;

    /// Dense, uninitialised.
    fn alloc(&mut self, shape: Shape) -> Result<Self::Buffer>;

    /// `out := x`
    fn copy(&mut self, out: View, x: View);

    /// `out := x - base`; `out` may be `base`.
    fn subtract(&mut self, out: View, x: View, base: View);

    /// `out := x + sum_j c_j Y_j`, without `x` if there is none; `out` may be `x` or one of the
    /// `Y_j`. `c_j` is rounded to f32. Without terms, it is a [`copy`](Self::copy). A weight of 0
    /// must not be given: its value would not be read.
    fn combine(&mut self, out: View, x: Option<View>, terms: &[(f64, View)], rounding: Rounding);

    /// [`combine`](Self::combine) for each sum that `sums` hands over, which a backend may do at
    /// once: what one sum writes must not overlap what another reads or writes.
    fn combine_all(&mut self, rounding: Rounding, sums: impl FnOnce(&mut dyn FnMut(Sum))) {
        sums(&mut |sum| self.combine(sum.out, sum.x, sum.terms, rounding));
    }

    /// Puts value `y` on a ladder of backward quotients, in place: with `t := y`, for each rung
    /// `D_k` of the first `held` in turn `(t, D_k) := ((t - D_k) / gap, t)`; then `D_held := t`, if
    /// there are as many rungs. At most [`MAX_RUNGS`] rungs.
    fn ladder(&mut self, y: View, rungs: &[View], held: usize, gap: f64);

    /// `out :=` the low frequencies of `x`; both are dense f32 and apart. Its elements are planes of
    /// `height * width`; of each those waves stay that have less than `r` cycles, or `r`, over the
    /// plane, where `r` is a fifth of the shorter side, rounded down: `ky^2 + kx^2 <= r^2`.
    fn low_pass(&mut self, out: View, x: View, height: usize, width: usize);

    /// Queues the sums over `|u - v|`, `|u|` and `|v|` of all comparisons together. With `rounded`,
    /// `u - v` is rounded to the dtype of `v` before it is summed.
    fn measure(&mut self, comparisons: &[Comparison], rounded: bool) -> Self::Pending;

    /// The only operation that may wait.
    fn read(&mut self, pending: Self::Pending) -> Change;

    /// Adds what this rank has measured, and its vote, to those of the others.
    fn agree(
        &mut self,
        own: Option<&mut Measured<Self::Pending>>,
        veto: bool,
        reduce: Reduce,
    ) -> Result<Agreed>
    where
        Self: Sized,
    {
        let own = own.map(|own| own.read(self));
        let mut votes = votes(own, veto);
        reduce(votes.as_mut_ptr(), votes.len(), self.stream())?;
        Ok(Agreed::new(votes, own.map(|own| own.dtype)))
    }

    /// What the engine's callbacks order their work on.
    fn stream(&self) -> *mut c_void {
        std::ptr::null_mut()
    }

    // ---- where the work is done; the defaults are those of a backend that works at once ----

    /// A run begins: old failures are forgotten.
    fn begin_run(&mut self) {}

    /// Work from here on belongs on `stream`.
    fn begin(&mut self, stream: *mut c_void) -> Result<()> {
        let _ = stream;
        Ok(())
    }

    /// A shape as this backend tells them apart.
    fn placed(&self, shape: Shape) -> Shape {
        shape.on_host(false)
    }

    /// A view of the engine's, checked: can this backend work on its memory?
    fn admit(&mut self, view: View) -> Result<View> {
        Ok(view.on_host(self.placed(view.shape()).is_on_host()))
    }

    /// Buffers are about to be dropped, in a call that may not have used the stream yet.
    fn before_drop(&mut self) {}

    /// The failure, if an operation has failed since [`begin`](Self::begin).
    fn status(&self) -> Result<()> {
        Ok(())
    }

    /// The last thing in every call: leaves the thread as it was found. The first failure since the
    /// last time.
    fn finish_call(&mut self) -> Result<()> {
        Ok(())
    }

    /// The engine's stream may be gone. Buffers may be dropped afterwards, and then the call be
    /// finished.
    fn retire(&mut self) {}

    /// Time that was spent waiting, of all calls.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }
}
