//! Compute every n-th step, counted from the last one of the warm-up: TaylorSeer, HiCache, and
//! without a warm-up PAB and FasterCache. diffusers' TaylorSeer counts from two steps later.
use super::*;

#[derive(Clone, Debug)]
pub struct Interval {
    /// At least 1.
    pub every: u32,
    pub warm_up: WarmUp,
    /// Steps from the last of the warm-up to the one that is counted from.
    pub phase: u32,
}

impl Rule for Interval {
    fn decide(&self, pass: &Pass, _: Option<f64>) -> Verdict {
        let warm_up = self.warm_up.steps(pass);
        let origin = match self.phase {
            0 => i64::from(warm_up.saturating_sub(1)),
            phase => i64::from(warm_up) + i64::from(phase) - 1,
        };
        match (i64::from(pass.position()) - origin).rem_euclid(i64::from(self.every)) {
            0 => Verdict::Compute(Reason::Interval),
            _ => Verdict::Skip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nth_step_computes_before_the_origin_too() {
        for (every, warm_up, phase, expected) in [
            (1, 0, 0, "CCCCCCCCCC"),
            (2, 0, 0, "CsCsCsCsCs"),
            (3, 2, 0, "sCssCssCss"),
            (5, 1, 0, "CssssCssss"),
            (5, 3, 2, "ssssCssssC"),
            (5, 0, 2, "sCssssCsss"),
        ] {
            let rule = Interval { every, warm_up: WarmUp::Steps(warm_up), phase };
            let letter = |step| match rule.decide(&Pass { step, ..Pass::START }, None) {
                Verdict::Skip => 's',
                _ => 'C',
            };
            assert_eq!((0..10).map(letter).collect::<String>(), expected);
        }
        // A run that enters the schedule later counts from there.
        let late = Pass { step: 7, first_step: 7, ..Pass::START };
        let rule = Interval { every: 2, warm_up: WarmUp::Steps(0), phase: 0 };
        assert_eq!(rule.decide(&late, None), Verdict::Compute(Reason::Interval));
    }
}
