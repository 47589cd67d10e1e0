//! The rails: warm-up, last steps, and bounds on how much is skipped.
//!
//! No published method needs all of them and most have none; without them one bad skip makes the
//! next more likely, because a collapsed latent hardly changes any more.
use super::*;

/// The steps at the start of a run that are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmUp {
    Steps(u32),
    /// A tenth of the run's steps, and at least two.
    Tenth,
}

impl WarmUp {
    pub fn steps(self, pass: &Pass) -> u32 {
        match self {
            Self::Steps(steps) => steps,
            Self::Tenth => pass.steps().map_or(2, |steps| (steps / 10).max(2)),
        }
    }
}

/// The bounds themselves; `None` is no bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rails {
    pub warm_up: WarmUp,
    /// Within the warm-up only every n-th step is forced (cache-dit's `warmup_interval`).
    pub warm_up_interval: u32,
    /// Last steps, always computed; without effect while the number of steps is unknown.
    pub last: u32,
    /// Skips in a row.
    pub consecutive: Option<u32>,
    /// Skips in a run.
    pub total: Option<u32>,
    /// Metrics of one streak of skips, added up, the coming one included.
    pub streak_error: Option<f64>,
    /// All metrics of the run, added up (cache-dit's `max_accumulated_residual_diff_threshold`):
    /// once it is reached nothing is skipped any more.
    pub run_error: Option<f64>,
}

impl Rails {
    /// No rail at all.
    pub const OFF: Self = Self {
        warm_up: WarmUp::Steps(0),
        warm_up_interval: 1,
        last: 0,
        consecutive: None,
        total: None,
        streak_error: None,
        run_error: None,
    };
}

#[derive(Clone, Debug)]
pub struct Limits {
    rails: Rails,
    consecutive: u32,
    total: u32,
    streak_error: f64,
    run_error: f64,
}

impl Limits {
    pub fn new(rails: Rails) -> Self {
        Self { rails, consecutive: 0, total: 0, streak_error: 0.0, run_error: 0.0 }
    }

    fn warms_up(&self, pass: &Pass) -> bool {
        let steps = self.rails.warm_up.steps(pass);
        let position = pass.position();
        position < steps && position.is_multiple_of(self.rails.warm_up_interval)
    }

    fn is_last(&self, pass: &Pass) -> bool {
        let by_number = pass.end_step.is_some_and(|end| end - pass.step <= self.rails.last);
        by_number || (pass.last && self.rails.last > 0)
    }
}

impl Rule for Limits {
    fn accumulated(&self) -> Option<f64> {
        Some(self.streak_error)
    }

    fn decide(&self, pass: &Pass, metric: Option<f64>) -> Verdict {
        let rails = &self.rails;
        let reached = |count: u32, max: Option<u32>| max.is_some_and(|max| count >= max);
        let streak_error = self.streak_error + metric.unwrap_or(0.0);
        if self.warms_up(pass) {
            Verdict::Compute(Reason::WarmUp)
        } else if self.is_last(pass) {
            Verdict::Compute(Reason::Last)
        } else if reached(self.total, rails.total) {
            Verdict::Compute(Reason::MaxTotal)
        } else if reached(self.consecutive, rails.consecutive) {
            Verdict::Compute(Reason::MaxConsecutive)
        } else if rails.run_error.is_some_and(|max| self.run_error >= max)
            || rails.streak_error.is_some_and(|max| streak_error > max)
        {
            Verdict::Compute(Reason::MaxError)
        } else {
            Verdict::Skip
        }
    }

    fn record(&mut self, _: &Pass, action: Action, metric: Option<f64>) {
        let metric = metric.filter(|metric| metric.is_finite()).unwrap_or(0.0);
        self.run_error += metric;
        match action {
            Action::Compute => (self.consecutive, self.streak_error) = (0, 0.0),
            Action::Skip => {
                self.consecutive += 1;
                self.total += 1;
                self.streak_error += metric;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Compute, Skip};

    fn pass(step: u32) -> Pass {
        Pass { step, end_step: Some(40), ..Pass::START }
    }

    /// Asks at every step and records what it was told, as a run does. `C` and `s`, as in a trace.
    fn run(rails: Rails, steps: std::ops::Range<u32>, end: Option<u32>, metric: f64) -> String {
        let mut limits = Limits::new(rails);
        let first_step = steps.start;
        steps
            .map(|step| {
                let pass = Pass { step, first_step, end_step: end, ..Pass::START };
                let action = match limits.decide(&pass, Some(metric)) {
                    Verdict::Skip => Skip,
                    _ => Compute,
                };
                limits.record(&pass, action, Some(metric));
                if action == Skip { 's' } else { 'C' }
            })
            .collect()
    }

    #[test]
    fn each_rail_alone() {
        let off = Rails::OFF;
        for (rails, expected) in [
            (off, "ssssssssssss"),
            (Rails { warm_up: WarmUp::Steps(3), ..off }, "CCCsssssssss"),
            (Rails { warm_up: WarmUp::Tenth, ..off }, "CCssssssssss"),
            (Rails { warm_up: WarmUp::Steps(6), warm_up_interval: 3, ..off }, "CssCssssssss"),
            (Rails { last: 2, ..off }, "ssssssssssCC"),
            (Rails { consecutive: Some(2), ..off }, "ssCssCssCssC"),
            (Rails { consecutive: Some(0), ..off }, "CCCCCCCCCCCC"),
            (Rails { total: Some(5), ..off }, "sssssCCCCCCC"),
            (Rails { streak_error: Some(0.35), ..off }, "sssCsssCsssC"),
            (Rails { run_error: Some(0.25), ..off }, "sssCCCCCCCCC"),
        ] {
            assert_eq!(run(rails, 0..12, Some(12), 0.1), expected, "{rails:?}");
        }
    }

    #[test]
    fn rails_count_from_the_first_step_of_the_run() {
        let rails = Rails { warm_up: WarmUp::Steps(2), last: 1, ..Rails::OFF };
        assert_eq!(run(rails, 12..20, Some(20), 0.0), "CCsssssC");
    }

    #[test]
    fn a_tenth_of_a_long_run_is_more_than_two_steps() {
        let rails = Rails { warm_up: WarmUp::Tenth, ..Rails::OFF };
        assert_eq!(run(rails, 0..40, Some(40), 0.0).find('s'), Some(4));
        assert_eq!(run(rails, 0..8, None, 0.0), "CCssssss");
    }

    #[test]
    fn a_last_step_can_be_announced() {
        let limits = Limits::new(Rails { last: 1, ..Rails::OFF });
        let unknown = Pass { end_step: None, ..pass(7) };
        assert_eq!(limits.decide(&unknown, None), Verdict::Skip);
        let last = Pass { last: true, ..unknown };
        assert_eq!(limits.decide(&last, None), Verdict::Compute(Reason::Last));
    }

    #[test]
    fn a_metric_that_is_not_a_number_does_not_spoil_the_sums() {
        let mut limits = Limits::new(Rails { run_error: Some(1.0), ..Rails::OFF });
        limits.record(&pass(0), Compute, Some(f64::NAN));
        limits.record(&pass(1), Compute, Some(f64::INFINITY));
        assert_eq!(limits.decide(&pass(2), None), Verdict::Skip);
    }
}
