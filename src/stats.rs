//! Counts of a run, and what other threads may see of a cache while it works.
use crate::error::Error;
use crate::trace::{Record, Ring};
use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub first_error: Option<Error>,
    pub passes: u64,
    /// Something was left out.
    pub passes_skipped: u64,
    /// The rules could have skipped, had the data allowed it.
    pub passes_skippable: u64,
    pub blocks_computed: u64,
    pub blocks_skipped: u64,
    pub layers_computed: u64,
    pub layers_skipped: u64,
    pub uncond_computed: u64,
    pub uncond_skipped: u64,
    pub not_finite: u64,
    pub discarded: u64,
    pub errors: u64,
    pub bytes_held: u64,
    pub bytes_peak: u64,
    pub allocations: u64,
    /// Time spent waiting for a device.
    pub waited: Duration,
    pub threshold: Option<f64>,
}

/// A copy that any thread may look at; the cache refreshes it when a pass or a run ends.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub stats: Stats,
    pub trace: Ring<Record>,
    /// The finite metrics of the run, newest last.
    pub changes: Ring<f64>,
}

impl Observed {
    /// Forgets the run before, and keeps the memory.
    pub fn begin_run(&mut self, stats: Stats) {
        self.stats = stats;
        self.trace.clear();
        self.changes.clear();
    }
}

/// The 5th, 50th and 95th percentile of the metric; NaN if nothing was measured.
pub fn percentiles(changes: &Ring<f64>) -> [f64; 3] {
    let mut sorted: Vec<_> = changes.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    [0.05, 0.5, 0.95].map(|p| {
        let last = sorted.len().checked_sub(1);
        last.map_or(f64::NAN, |last| sorted[(p * last as f64).round() as usize])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let mut changes = Ring::default();
        assert!(percentiles(&changes).iter().all(|p| p.is_nan()));
        (0..=100).rev().for_each(|x| changes.push(f64::from(x)));
        assert_eq!(percentiles(&changes), [5.0, 50.0, 95.0]);
    }
}
