//! Skip only where a list of steps says so: cache-dit's steps computation mask (SCM), and every
//! schedule found offline.
use super::*;
use std::sync::Arc;

/// `true` computes. Steps past the end may be skipped, as in cache-dit.
#[derive(Clone, Debug)]
pub struct Mask(pub Arc<[bool]>);

impl Rule for Mask {
    fn decide(&self, pass: &Pass, _: Option<f64>) -> Verdict {
        match self.0.get(pass.step as usize) {
            Some(true) => Verdict::Compute(Reason::Rule),
            _ => Verdict::Skip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_compute_and_steps_past_the_end_may_be_skipped() {
        let mask = Mask([true, false, true].into());
        let compute = |step| {
            let pass = Pass { step, ..Pass::START };
            mask.decide(&pass, None) == Verdict::Compute(Reason::Rule)
        };
        assert_eq!([0, 1, 2, 3, 99].map(compute), [true, false, true, false, false]);
    }
}
