//! HiCache: the ladder of backward quotients against Hermite polynomials in place of powers,
//!
//! ```text
//! D_0 + sum_k D_k s^k H_k(s x) / k!        H_0 = 1, H_1 = 2u, H_(k+1) = 2u H_k - 2k H_(k-1)
//! ```
//!
//! with `x` steps since the newest value and a scale `s`, which damps: at `s` = 0.5 a first-order
//! step is half of Taylor's. Source: HiCache (arXiv 2508.16984).
use super::polynomial::quotient;
use super::*;

#[derive(Clone, Copy, Debug)]
pub struct Hermite {
    pub order: usize,
    pub scale: f64,
    /// Values of earlier steps do not count, as in [`Polynomial`].
    pub since: u32,
}

impl Estimator for Hermite {
    fn capacity(&self) -> usize {
        self.order + 1
    }

    fn weights(&self, kept: &Kept, wanted: Wanted) -> Weights {
        let u = self.scale * (wanted.step - kept.step(0));
        let (mut before, mut h, mut factor) = (0.0, 1.0, 1.0);
        (1..kept.count_since(self.since).min(self.order + 1)).fold(Weights::unit(0), |sum, k| {
            (before, h) = (h, 2.0 * u * h - 2.0 * (k as f64 - 1.0) * before);
            factor *= self.scale / k as f64;
            sum.plus(factor * h, quotient(kept.anchors, k, 0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    /// Of `D_k` alone: with unit gaps the last value enters through it only, with sign `(-1)^k`.
    fn coefficient(order: usize, scale: f64, x: f64) -> f64 {
        let steps: Vec<_> = (0..=order).rev().map(|step| step as f64).collect();
        let weights = weights(&Hermite { order, scale, since: 0 }, &steps, order as f64 + x);
        weights.as_slice()[order] * (-1f64).powi(order as i32)
    }

    #[test]
    fn recorded_coefficients() {
        for (order, scale, expected) in [
            (1, 0.5, &[0.5, 1.0, 1.5, 2.0, 2.5][..]),
            (2, 0.5, &[-0.125, 0.25, 0.875, 1.75, 2.875]),
            (3, 0.5, &[-0.10417, -0.08333, 0.1875, 0.83333, 1.97917]),
            (1, 0.71, &[1.0082]),
            (2, 0.71, &[0.0041, 1.529, 4.070, 7.628]),
        ] {
            for (x, expected) in (1..).zip(expected) {
                let got = coefficient(order, scale, f64::from(x));
                assert!((got - expected).abs() < 5e-4, "{order} {scale} {x}: {got}");
            }
        }
    }

    #[test]
    fn it_reproduces_a_constant_and_lowers_its_order_for_want_of_values() {
        let hermite = Hermite { order: 3, scale: 0.5, since: 0 };
        let sum: f64 = weights(&hermite, &[9.0, 4.0, 3.0, 1.0], 13.0).as_slice().iter().sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert_eq!(weights(&hermite, &[9.0], 13.0), Weights::unit(0));
        assert_close(weights(&hermite, &[9.0, 8.0], 11.0), &[2.0, -1.0]);
        let late = Hermite { since: 9, ..hermite };
        assert_eq!(weights(&late, &[9.0, 8.0], 11.0), Weights::unit(0));
    }
}
