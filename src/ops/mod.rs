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
//! * CUDA may use a fixed order of its own; its sums agree within 1e-6 relative, its elements bit
//!   for bit.
pub mod host;
pub mod memory;
mod tensor;

pub use tensor::{Dtype, MAX_DIMS, Shape, Tensor, View};

use crate::error::Result;
use crate::rule::Change;

/// Elements whose sum is taken in f32 lanes.
pub const BLOCK: usize = 4096;
/// Interleaved f32 sums within a block: 32 lanes of three sums fit the registers of every vector
/// unit, so this order costs nothing.
pub const LANES: usize = 32;
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

/// Views given to one operation have equal extents. They do not overlap, except that a view may be
/// given twice where an operation says so.
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
    /// `Y_j`. `c_j` is rounded to f32. A weight of 0 must not be given: its value would not be read.
    fn combine(&mut self, out: View, x: Option<View>, terms: &[(f64, View)], rounding: Rounding);

    /// Puts value `y` on a ladder of backward quotients, in place: with `t := y`, for each rung
    /// `D_k` of the first `held` in turn `(t, D_k) := ((t - D_k) / gap, t)`; then `D_held := t`, if
    /// there are as many rungs. At most [`MAX_RUNGS`] rungs.
    fn ladder(&mut self, y: View, rungs: &[View], held: usize, gap: f64);

    /// `out :=` the low frequencies of `x`. Its elements are planes of `height * width`; of each
    /// those waves stay that have less than `r` cycles, or `r`, over the plane, where `r` is a
    /// fifth of the shorter side, rounded down: `ky^2 + kx^2 <= r^2`.
    fn low_pass(&mut self, out: View, x: View, height: usize, width: usize);

    /// Queues the sums over `|u - v|`, `|u|` and `|v|` of all comparisons together. With `rounded`,
    /// `u - v` is rounded to the dtype of `v` before it is summed.
    fn measure(&mut self, comparisons: &[Comparison], rounded: bool) -> Self::Pending;

    /// The only operation that may wait.
    fn read(&mut self, pending: Self::Pending) -> Change;
}
