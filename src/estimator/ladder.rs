//! TaylorSeer as diffusers computes it: from the ladder itself, kept and updated in its own dtype.
//!
//! In exact arithmetic this is [`Polynomial`] with [`Basis::Taylor`](super::Basis::Taylor). In half
//! formats 4 to 30 % of its elements differ, because each rung is rounded where it is kept.
//! Source: diffusers `hooks/taylorseer_cache.py`.
use super::*;

#[derive(Clone, Copy, Debug)]
pub struct Ladder {
    pub order: usize,
}

impl Estimator for Ladder {
    fn capacity(&self) -> usize {
        self.order + 1
    }

    fn form(&self) -> Form {
        Form::Ladder
    }

    /// Over the rungs: `x^k / k!`
    fn weights(&self, kept: &Kept, wanted: Wanted) -> Weights {
        let x = wanted.step - kept.step(0);
        let factorial = |k: usize| (1..=k).map(|i| i as f64).product::<f64>();
        Weights::from_fn(kept.anchors.len(), |k| x.powi(k as i32) / factorial(k))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn one_weight_for_each_rung() {
        let ladder = Ladder { order: 3 };
        assert_close(weights(&ladder, &[6.0, 5.0, 4.0, 2.0], 9.0), &[1.0, 3.0, 4.5, 4.5]);
        assert_close(weights(&ladder, &[6.0, 5.0], 9.0), &[1.0, 3.0]);
    }
}
