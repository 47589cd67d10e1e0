//! Skip only in steps in which guidance leaves the unconditional branch out: FasterCache's
//! attention.
use super::*;

#[derive(Clone, Copy, Debug)]
pub struct CondOnly;

impl Rule for CondOnly {
    fn decide(&self, pass: &Pass, _: Option<f64>) -> Verdict {
        match pass.cond_only {
            Some(true) => Verdict::Skip,
            Some(false) => Verdict::Compute(Reason::Guidance),
            None => Verdict::Unknown(Reason::Guidance),
        }
    }
}
