//! FasterCache's attention: a damped step along the last difference, `b + w x (b - a) / gap`.
//!
//! `x` and `gap` count steps: from the newest value `b` to the wanted one, and from `a` to `b`. The
//! paper leaves the gaps out; diffusers also lets its predictions enter the pair, which is
//! [`Chain`]. Source: FasterCache (arXiv 2410.19355).
use super::*;

/// A weight that may change over the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    /// At the run's first step.
    pub start: f64,
    /// At its last.
    pub end: f64,
}

impl Ramp {
    pub fn is_constant(&self) -> bool {
        self.start == self.end
    }

    fn at(&self, wanted: Wanted) -> f64 {
        self.start + (self.end - self.start) * wanted.progress.unwrap_or(0.0)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub weight: Ramp,
    pub true_gaps: bool,
}

impl Estimator for Linear {
    fn capacity(&self) -> usize {
        2
    }

    fn needs_progress(&self) -> bool {
        !self.weight.is_constant()
    }

    fn weights(&self, kept: &Kept, wanted: Wanted) -> Weights {
        if kept.anchors.len() < 2 {
            return Weights::unit(0);
        }
        let (newest, older) = (kept.step(0), kept.step(1));
        let steps = if self.true_gaps { (wanted.step - newest) / (newest - older) } else { 1.0 };
        let g = self.weight.at(wanted) * steps;
        Weights::from_fn(2, |i| if i == 0 { 1.0 + g } else { -g })
    }
}

/// diffusers' `hooks/faster_cache.py`: the same step, from a pair that predictions enter as well.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    pub weight: Ramp,
}

impl Estimator for Chain {
    fn capacity(&self) -> usize {
        2
    }

    fn needs_progress(&self) -> bool {
        !self.weight.is_constant()
    }

    fn form(&self) -> Form {
        Form::Chain
    }

    /// Over the newer of the pair and their difference.
    fn weights(&self, kept: &Kept, wanted: Wanted) -> Weights {
        let g = self.weight.at(wanted);
        Weights::from_fn(kept.anchors.len().min(2), |i| if i == 0 { 1.0 } else { g })
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    const HALF: Ramp = Ramp { start: 0.5, end: 0.5 };

    #[test]
    fn it_counts_true_gaps_unless_it_must_not() {
        for (true_gaps, steps, now, g) in [
            (true, [1.0, 0.0], 2.0, 0.5),
            (true, [1.0, 0.0], 3.0, 1.0),
            (true, [6.0, 4.0], 7.0, 0.25),
            (false, [6.0, 4.0], 7.0, 0.5),
            (false, [6.0, 4.0], 9.0, 0.5),
        ] {
            let linear = Linear { weight: HALF, true_gaps };
            assert_close(weights(&linear, &steps, now), &[1.0 + g, -g]);
            assert_eq!(weights(&linear, &steps[..1], now), Weights::unit(0));
        }
    }

    #[test]
    fn a_ramp_goes_from_the_first_step_to_the_last() {
        let ramp = Ramp { start: 0.2, end: 0.8 };
        for (progress, expected) in [(0.0, 0.2), (0.5, 0.5), (1.0, 0.8)] {
            let at = ramp.at(Wanted { step: 7.0, progress: Some(progress) });
            assert!((at - expected).abs() < 1e-12);
        }
        assert!(Linear { weight: ramp, true_gaps: true }.needs_progress());
        assert!(!Linear { weight: HALF, true_gaps: true }.needs_progress());
    }
}
