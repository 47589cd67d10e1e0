//! Skip only inside a window of timesteps, whose bounds are excluded: PAB and FasterCache.
use super::*;

/// Bounds as fractions of the timestep at pure noise: 1 is noise, 0 the finished picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub low: f64,
    pub high: f64,
}

impl Window {
    /// `None` where the pass has no timestep, or no scale for it.
    pub fn contains(&self, pass: &Pass) -> Option<bool> {
        let (t, max) = (pass.timestep?, pass.timestep_max?);
        // In the timestep's own precision, so that 0.1 of 1000 is 100.
        let bound = |fraction: f64| (fraction * f64::from(max)) as f32;
        Some(bound(self.low) < t && t < bound(self.high))
    }
}

impl Rule for Window {
    fn needs_timestep(&self) -> bool {
        true
    }

    fn decide(&self, pass: &Pass, _: Option<f64>) -> Verdict {
        match self.contains(pass) {
            Some(true) => Verdict::Skip,
            Some(false) => Verdict::Compute(Reason::Window),
            None => Verdict::Unknown(Reason::Timestep),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_outside_on_any_scale() {
        let window = Window { low: 0.1, high: 0.8 };
        for (max, timesteps) in [
            (1000.0, [900.0, 800.0, 799.0, 101.0, 100.0, 99.0]),
            (1.0, [0.9, 0.8, 0.799, 0.101, 0.1, 0.099]),
        ] {
            let inside = timesteps.map(|t| {
                let pass = Pass { timestep: Some(t), timestep_max: Some(max), ..Pass::START };
                window.decide(&pass, None) == Verdict::Skip
            });
            assert_eq!(inside, [false, false, true, true, false, false], "{max}");
        }
    }

    #[test]
    fn without_a_timestep_nothing_is_skipped() {
        let window = Window { low: 0.0, high: 1.0 };
        let timeless = Verdict::Unknown(Reason::Timestep);
        assert_eq!(window.decide(&Pass::START, None), timeless);
        let scaleless = Pass { timestep: Some(0.5), ..Pass::START };
        assert_eq!(window.decide(&scaleless, None), timeless);
    }
}
