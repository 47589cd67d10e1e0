//! Polynomial forecasts of order n from the last n + 1 values, over the true gaps between their
//! steps; a lower order while there are fewer values, or where the weights would amplify noise.
//!
//! With `x` the distance from the newest value and `w0`, `w1` the last two gaps:
//!
//! ```text
//! order 0            1                                      every basis
//! order 1            1 + x/w0, -x/w0                        every basis
//! order 2, Taylor    1 + x/w0 + x^2/(2 w0^2),
//!                    -x/w0 - x^2/(2 w0) (1/w0 + 1/w1),
//!                    x^2/(2 w0 w1)
//! order 2, Newton    the parabola through the last three values
//! ```
//!
//! Sources: TaylorSeer (arXiv 2503.06923; diffusers `hooks/taylorseer_cache.py`), as weights over
//! the values instead of a ladder of derivatives; Newton's interpolation in Lagrange's form.
use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Repeated backward quotients times `x^k / k!`: what TaylorSeer publishes. From order 2 on it
    /// is exact on polynomials only in the limit of small gaps.
    Taylor,
    /// Exact on every polynomial of its order, whatever the gaps.
    Newton,
}

#[derive(Clone, Copy, Debug)]
pub struct Polynomial {
    pub order: usize,
    pub basis: Basis,
    /// Bound on `sum |c|`; a weight vector above it gives way to the next lower order.
    pub max_gain: Option<f64>,
    /// Values of earlier steps do not count: the original TaylorSeer starts its ladder two steps
    /// before the end of the warm-up.
    pub since: u32,
}

impl Estimator for Polynomial {
    fn capacity(&self) -> usize {
        self.order + 1
    }

    fn weights(&self, kept: &Kept, wanted: Wanted) -> Weights {
        let highest = self.order.min(kept.count_since(self.since).saturating_sub(1));
        let of_order = |order: usize| match self.basis {
            Basis::Taylor => ladder(&kept.anchors[..=order], wanted.step),
            Basis::Newton => lagrange(&kept.anchors[..=order], wanted.step),
        };
        let tame = |weights: &Weights| self.max_gain.is_none_or(|max| weights.gain() <= max);
        (1..=highest).rev().map(of_order).find(tame).unwrap_or(Weights::unit(0))
    }
}

fn lagrange(kept: &[Anchor], now: f64) -> Weights {
    let factor = |j: usize, m: usize| (now - kept[m].step) / (kept[j].step - kept[m].step);
    Weights::from_fn(kept.len(), |j| {
        (0..kept.len()).filter(|&m| m != j).map(|m| factor(j, m)).product()
    })
}

/// `sum_k D_k x^k / k!`
fn ladder(kept: &[Anchor], now: f64) -> Weights {
    let x = now - kept[0].step;
    let mut term = 1.0;
    (1..kept.len()).fold(Weights::unit(0), |sum, k| {
        term *= x / k as f64;
        sum.plus(term, quotient(kept, k, 0))
    })
}

/// The ladder's `D_k` as it stood when value `at` was the newest: the difference of two `D_{k-1}`
/// over the gap between the two newest values.
pub(super) fn quotient(kept: &[Anchor], k: usize, at: usize) -> Weights {
    if k == 0 {
        return Weights::unit(at);
    }
    let gap = kept[at].step - kept[at + 1].step;
    let (newer, older) = (quotient(kept, k - 1, at), quotient(kept, k - 1, at + 1));
    Weights::from_fn(MAX_HISTORY, |i| (newer.0[i] - older.0[i]) / gap)
}

#[cfg(test)]
mod tests {
    use super::testing::{self, assert_close, forecast};
    use super::*;
    use proptest::prelude::*;

    fn weights(order: usize, basis: Basis, steps: &[f64], now: f64) -> Weights {
        testing::weights(&Polynomial { order, basis, max_gain: None, since: 0 }, steps, now)
    }

    #[test]
    fn values_from_before_the_ladder_do_not_count() {
        let late = Polynomial { order: 2, basis: Basis::Taylor, max_gain: None, since: 1 };
        assert_eq!(testing::weights(&late, &[1.0, 0.0], 2.0), Weights::unit(0));
        assert_close(testing::weights(&late, &[2.0, 1.0, 0.0], 4.0), &[3.0, -2.0]);
    }

    #[test]
    fn recorded_weights() {
        use Basis::*;
        for (order, basis, expected) in [
            (0, Taylor, &[1.0][..]),
            (0, Newton, &[1.0]),
            (1, Taylor, &[1.5, -0.5]),
            (1, Newton, &[1.5, -0.5]),
            (2, Taylor, &[1.625, -0.79167, 0.16667]),
            (2, Newton, &[1.92857, -1.5, 0.57143]),
        ] {
            assert_close(weights(order, basis, &[12.0, 8.0, 5.0], 14.0), expected);
        }
    }

    #[test]
    fn the_published_ladder_is_biased_on_uneven_gaps() {
        // t^2, updated at 0, 1, 2, 4, 9.
        let updates = [0.0f64, 1.0, 2.0, 4.0, 9.0];
        for (now, expected) in [(3.0, 8.0), (5.0, 22.75), (6.0, 31.0), (7.0, 40.75), (8.0, 52.0)]
            .into_iter()
            .chain([(10.0, 94.7), (11.0, 109.8)])
        {
            let kept: Vec<_> = updates.iter().rev().copied().filter(|t| *t < now).take(3).collect();
            let value = |weights| forecast(weights, &kept, |t| t * t);
            assert!((value(weights(2, Basis::Taylor, &kept, now)) - expected).abs() < 1e-9);
            assert!((value(weights(2, Basis::Newton, &kept, now)) - now * now).abs() < 1e-9);
        }
    }

    #[test]
    fn fewer_values_give_a_lower_order() {
        assert_eq!(weights(4, Basis::Newton, &[3.0], 5.0), Weights::unit(0));
        assert_close(weights(4, Basis::Taylor, &[3.0, 2.0], 5.0), &[3.0, -2.0]);
    }

    #[test]
    fn weights_that_amplify_noise_give_way_to_a_lower_order() {
        // After a gap of 1, five steps ahead: 1 + 5 and -5, a gain of 11.
        let capped = Polynomial { order: 1, basis: Basis::Taylor, max_gain: Some(4.0), since: 0 };
        assert_eq!(testing::weights(&capped, &[1.0, 0.0], 6.0), Weights::unit(0));
        assert_close(testing::weights(&capped, &[5.0, 0.0], 10.0), &[2.0, -1.0]);
    }

    /// Strictly falling steps, and one after them.
    fn steps() -> impl Strategy<Value = (Vec<f64>, f64)> {
        prop::collection::vec(1u32..6, 2..6).prop_map(|gaps| {
            let mut steps = vec![0.0];
            gaps.iter().for_each(|gap| steps.insert(0, steps[0] + f64::from(*gap)));
            let now = steps.remove(0);
            (steps, now)
        })
    }

    proptest! {
        #[test]
        fn every_basis_reproduces_a_constant((steps, now) in steps(), order in 0usize..5) {
            for basis in [Basis::Taylor, Basis::Newton] {
                let sum: f64 = weights(order, basis, &steps, now).as_slice().iter().sum();
                prop_assert!((sum - 1.0).abs() < 1e-6, "{sum}");
            }
        }

        #[test]
        fn every_basis_is_exact_on_a_line((steps, now) in steps(), order in 1usize..5) {
            prop_assume!(steps.len() > 1);
            for basis in [Basis::Taylor, Basis::Newton] {
                let weights = weights(order, basis, &steps, now);
                let value = forecast(weights, &steps, |t| t);
                prop_assert!((value - now).abs() < 1e-6 * weights.gain(), "{value} at {now}");
            }
        }

        #[test]
        fn newton_is_exact_on_polynomials_of_its_order((steps, now) in steps(), order in 0usize..5) {
            let order = order.min(steps.len() - 1);
            let weights = weights(order, Basis::Newton, &steps, now);
            for power in 0..=order as i32 {
                let value = forecast(weights, &steps, |t| t.powi(power));
                let scale = weights.gain() * now.powi(power).max(1.0);
                prop_assert!((value - now.powi(power)).abs() < 1e-9 * scale);
            }
        }

        #[test]
        fn the_gain_never_exceeds_its_bound((steps, now) in steps(), max in 1.0f64..8.0) {
            for basis in [Basis::Taylor, Basis::Newton] {
                let capped = Polynomial { order: 4, basis, max_gain: Some(max), since: 0 };
                prop_assert!(testing::weights(&capped, &steps, now).gain() <= max);
            }
        }
    }
}
