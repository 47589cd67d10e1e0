//! WHAT stands in for a skipped value?
//!
//! An estimator sees step numbers, never tensors: when each kept value was computed, and which step
//! is wanted. It answers with one weight per kept value, newest first; [`ops`](crate::ops) then
//! forms `a*x + sum_j c_j Y_j` in one pass over memory.
mod hold;
mod polynomial;

pub use hold::Hold;
pub use polynomial::{Basis, Polynomial};

use std::fmt::Debug;

/// Most values a history can keep.
pub const MAX_HISTORY: usize = 16;

/// One weight per kept value, newest first; zero past the history's end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights([f64; MAX_HISTORY]);

impl Weights {
    /// The kept value number `index` itself.
    pub fn unit(index: usize) -> Self {
        Self::from_fn(MAX_HISTORY, |i| if i == index { 1.0 } else { 0.0 })
    }

    pub fn from_fn(len: usize, weight: impl Fn(usize) -> f64) -> Self {
        Self(std::array::from_fn(|i| if i < len { weight(i) } else { 0.0 }))
    }

    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }

    /// `sum |c|`: how much noise in the kept values is amplified.
    pub fn gain(&self) -> f64 {
        self.0.iter().map(|c| c.abs()).sum()
    }

    /// `self + factor * other`
    fn plus(self, factor: f64, other: Self) -> Self {
        Self::from_fn(MAX_HISTORY, |i| self.0[i] + factor * other.0[i])
    }
}

pub trait Estimator: Debug + Send + Sync {
    /// Values to keep; 1 to [`MAX_HISTORY`].
    fn capacity(&self) -> usize;

    /// Weights for step `now`. `steps` are those of the kept values, newest first, strictly
    /// falling, at least one, all before `now`. Pure.
    fn weights(&self, steps: &[f64], now: f64) -> Weights;
}
