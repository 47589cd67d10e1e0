//! FBCache and DBCache: skip while what the front blocks add has hardly changed since the last
//! computed pass.
//!
//! Source: ParaAttention `first_block_cache`; diffusers `hooks/first_block_cache.py`; cache-dit
//! `DBCache`. Cost: one pass over the measured streams (three reads, one write).
use super::*;

/// Skips while the relative L1 change of the front residual is below `threshold`.
#[derive(Clone, Debug)]
pub struct ResidualChange {
    pub threshold: f64,
    /// diffusers computes when the change is *above* the threshold, so equality, NaN and 0/0 skip,
    /// and it rounds every intermediate to the tensors' dtype.
    pub diffusers: bool,
}

impl Rule for ResidualChange {
    fn probe(&self) -> Option<Probe> {
        Some(Probe::FrontResidual { rounded: self.diffusers })
    }

    fn metric(&self, measured: Change) -> f64 {
        if self.diffusers { measured.rounded_ratio() } else { measured.ratio() }
    }

    fn threshold(&self) -> Option<f64> {
        Some(self.threshold)
    }

    fn decide(&self, _: &Pass, metric: Option<f64>) -> Verdict {
        let Some(change) = metric else {
            return Verdict::Measure;
        };
        let above = change > self.threshold;
        if change < self.threshold || (self.diffusers && !above) {
            Verdict::Skip
        } else if change.is_finite() {
            Verdict::Compute(Reason::Rule)
        } else {
            Verdict::Compute(Reason::NotFinite)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_the_threshold() {
        let pass = Pass { step: 1, ..Pass::START };
        let (skip, above) = (Verdict::Skip, Verdict::Compute(Reason::Rule));
        let not_finite = Verdict::Compute(Reason::NotFinite);
        for (change, ours, theirs) in [
            (0.24, skip, skip),
            (0.25, above, skip),
            (0.26, above, above),
            (f64::NAN, not_finite, skip),
            (f64::INFINITY, not_finite, not_finite),
        ] {
            let rule = |diffusers| ResidualChange { threshold: 0.25, diffusers };
            assert_eq!(rule(false).decide(&pass, Some(change)), ours, "{change}");
            assert_eq!(rule(true).decide(&pass, Some(change)), theirs, "{change}");
        }
    }

    #[test]
    fn a_bf16_metric_lies_on_the_grid_of_bf16() {
        // 0.049997 is 0.050049 in bf16, on the other side of 0.05.
        let change = Change {
            difference: 0.049997,
            value: 1.0,
            reference: 1.0,
            count: 1.0,
            dtype: Dtype::Bf16,
        };
        assert_eq!(change.rounded_ratio(), 0.050048828125);
        let rule = |diffusers| ResidualChange { threshold: 0.05, diffusers };
        assert!(rule(false).metric(change) < 0.05 && rule(true).metric(change) > 0.05);
    }
}
