//! What was decided, and why: one record for each decision of a pass and branch.
use crate::rule::{Action, Reason};
use std::collections::VecDeque;

/// Records kept; the oldest give way.
pub const CAPACITY: usize = 4096;

#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub step: u32,
    pub branch: u32,
    /// First block of the part that may be skipped, or [`MODEL`](crate::cache::MODEL).
    pub unit: u32,
    pub action: Action,
    pub reason: Reason,
    /// NaN where unknown; so are the numbers below.
    pub timestep: f32,
    pub change: f64,
    pub accumulated: f64,
    pub threshold: f64,
}

/// The newest `CAPACITY` values.
#[derive(Clone, Debug)]
pub struct Ring<T>(VecDeque<T>);

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Ring<T> {
    /// Makes room for so many values, as far as they will be kept.
    pub fn expect(&mut self, n: usize) {
        self.0.reserve_exact(n.min(CAPACITY).saturating_sub(self.0.len()));
    }

    pub fn push(&mut self, value: T) {
        if self.0.len() == CAPACITY {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}
