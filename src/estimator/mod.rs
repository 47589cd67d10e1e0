//! WHAT stands in for a skipped value?
//!
//! An estimator sees step numbers, never tensors: when each kept value was made, and which step is
//! wanted. It answers with one weight per kept value, newest first; [`ops`](crate::ops) then forms
//! `a*x + sum_j c_j Y_j` in one pass over memory.
//!
//! Most kept values were computed. A recursive estimator (FoCa) builds on its own predictions;
//! since a prediction is itself a sum of kept values, the recursion lives in the weights, and only
//! the last prediction before a computed value has to be kept for real. That is the one *carried*
//! value of a history.
mod foca;
mod hermite;
mod hold;
mod ladder;
mod linear;
mod polynomial;

pub use foca::FoCa;
pub use hermite::Hermite;
pub use hold::Hold;
pub use ladder::Ladder;
pub use linear::{Chain, Linear, Ramp};
pub use polynomial::{Basis, Polynomial};

use crate::rule::Pass;
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

/// A kept value: the step it belongs to, and whether it is a carried prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Anchor {
    pub step: f64,
    pub carried: bool,
}

impl Anchor {
    pub fn computed(step: f64) -> Self {
        Self { step, carried: false }
    }
}

/// What an estimator forecasts from.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// Newest first, their steps strictly falling; at least one.
    pub anchors: &'a [Anchor],
    /// The last two predictions since the newest anchor, newest first, as weights over the anchors;
    /// of recursive estimators only.
    pub predicted: &'a [Weights],
}

impl Kept<'_> {
    fn step(&self, index: usize) -> f64 {
        self.anchors[index].step
    }

    /// Of this step or a later one.
    fn count_since(&self, step: u32) -> usize {
        self.anchors.iter().take_while(|anchor| anchor.step >= f64::from(step)).count()
    }
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Counted from the run's first, as those of the anchors. After all of them.
    pub step: f64,
    /// 0 at the run's first step, 1 at its last; `None` if its length is unknown.
    pub progress: Option<f64>,
}

impl Wanted {
    pub fn of(pass: &Pass) -> Self {
        Self { step: f64::from(pass.position()), progress: pass.progress() }
    }
}

/// What a history keeps of the values it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The values.
    Values,
    /// Their ladder of backward quotients: the newest value, and differences over the gaps between
    /// the newest two. diffusers' TaylorSeer, whose roundings can be had no other way.
    Ladder,
    /// The same with every gap taken for one step, and predictions entering like computed values:
    /// diffusers' FasterCache.
    Chain,
}

pub trait Estimator: Debug + Send + Sync {
    /// Values to keep; 1 to [`MAX_HISTORY`].
    fn capacity(&self) -> usize;

    /// Pure.
    fn weights(&self, kept: &Kept, wanted: Wanted) -> Weights;

    fn form(&self) -> Form {
        Form::Values
    }

    /// Builds on its own predictions.
    fn is_recursive(&self) -> bool {
        false
    }

    /// Needs to know how far the run has come.
    fn needs_progress(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod testing {
    use super::*;

    /// Weights from computed values at these steps, newest first.
    pub fn weights(estimator: &impl Estimator, steps: &[f64], now: f64) -> Weights {
        let anchors: Vec<_> = steps.iter().map(|step| Anchor::computed(*step)).collect();
        let kept = Kept { anchors: &anchors, predicted: &[] };
        estimator.weights(&kept, Wanted { step: now, progress: None })
    }

    pub fn assert_close(got: Weights, expected: &[f64]) {
        for (i, expected) in expected.iter().enumerate() {
            assert!((got.0[i] - expected).abs() < 5e-5, "{i}: {} is not {expected}", got.0[i]);
        }
        assert!(got.0[expected.len()..].iter().all(|c| *c == 0.0));
    }

    /// What the weights make of `f`, kept at these steps.
    pub fn forecast(weights: Weights, steps: &[f64], f: impl Fn(f64) -> f64) -> f64 {
        steps.iter().zip(weights.as_slice()).map(|(t, c)| c * f(*t)).sum()
    }
}
