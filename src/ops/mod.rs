//! The only code that touches tensors: five operations, written once per backend. **This page is
//! the specification of the numbers**; every backend, and every golden value, follows it.
//!
//! * Elements are converted to f32, computed in f32, and rounded once, at the store, to nearest
//!   even in the dtype of the tensor that is written. NaN and infinities travel unchanged.
//! * A product is rounded before it is added: no fused multiply-add.
//! * [`combine`](Ops::combine) adds its terms in the order given, newest value first, after `x`.
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

    /// `out := x + sum_j c_j Y_j`, without `x` if there is none; `out` may be `x`. `c_j` is rounded
    /// to f32. A weight of 0 must not be given: its value would not be read.
    fn combine(&mut self, out: View, x: Option<View>, terms: &[(f64, View)]);

    /// Queues the sums over `|u - v|`, `|u|` and `|v|` of all comparisons together. With `rounded`,
    /// `u - v` is rounded to the dtype of `v` before it is summed.
    fn measure(&mut self, comparisons: &[Comparison], rounded: bool) -> Self::Pending;

    /// The only operation that may wait.
    fn read(&mut self, pending: Self::Pending) -> Change;
}
