//! FoCa as cache-dit ships it: the mean of two slopes, that between the last two computed values
//! and that of the last two values of any kind, with a gain that falls beyond three steps.
//!
//! cache-dit does not divide the first slope by its gap, and so overshoots where steps were
//! skipped; this does, unless it is asked not to. Source: cache-dit `calibrators/foca.py`.
use super::*;

#[derive(Clone, Copy, Debug)]
pub struct FoCa {
    pub true_gaps: bool,
}

impl Estimator for FoCa {
    /// The last two computed values, and the prediction between them.
    fn capacity(&self) -> usize {
        3
    }

    fn is_recursive(&self) -> bool {
        true
    }

    fn weights(&self, kept: &Kept, wanted: Wanted) -> Weights {
        let newest = Weights::unit(0);
        let computed = |anchor: &&Anchor| !anchor.carried;
        let Some(older) = kept.anchors[1..].iter().position(|a| computed(&a)).map(|i| i + 1) else {
            return newest;
        };
        let gap = if self.true_gaps { kept.step(0) - kept.step(older) } else { 1.0 };
        let computed_slope = newest.plus(-1.0, Weights::unit(older));
        // Number 1 is the carried prediction, or the older computed value if nothing was skipped.
        let (newer, before) = match kept.predicted {
            [] => (newest, Weights::unit(1)),
            [last] => (*last, newest),
            [last, earlier, ..] => (*last, *earlier),
        };
        let elapsed = wanted.step - kept.step(0);
        let gain = if elapsed <= 3.0 { elapsed / 2.0 } else { 4.5 / elapsed };
        newest.plus(gain / gap, computed_slope).plus(gain, newer).plus(-gain, before)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn a_line_is_followed_where_gaps_count() {
        let foca = FoCa { true_gaps: true };
        // One step on, both slopes are 1.
        assert!(
            (forecast(weights(&foca, &[4.0, 3.0], 5.0), &[4.0, 3.0], |t| t) - 5.0).abs() < 1e-12
        );
        assert_eq!(weights(&foca, &[4.0], 5.0), Weights::unit(0));
    }

    #[test]
    fn predictions_enter_the_second_slope() {
        let anchors =
            [Anchor::computed(6.0), Anchor { step: 5.0, carried: true }, Anchor::computed(2.0)];
        let foca = FoCa { true_gaps: false };
        let at = |predicted: &[Weights], step| {
            foca.weights(&Kept { anchors: &anchors, predicted }, Wanted { step, progress: None })
        };
        // Computed slope Y0 - Y2, recent slope Y0 - Y1, gain 1/2.
        let first = at(&[], 7.0);
        assert_close(first, &[2.0, -0.5, -0.5]);
        // Recent slope: the first prediction less Y0; gain 1.
        let second = at(&[first], 8.0);
        assert_close(second, &[1.0 + 1.0 + 2.0 - 1.0, -0.5, -1.5]);
    }
}
