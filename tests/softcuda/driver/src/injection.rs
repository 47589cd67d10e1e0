//! Failures on demand: the n-th call of a function from now returns a code of the test's choice.
//!
//! Besides the driver's functions there is the name `execute`: the n-th *kernel* from now fails while
//! it runs, so that the error surfaces at some later call, as asynchronous errors do.

use crate::status::Status;
use std::ffi::c_int;

struct Failure {
    what: String,
    /// Calls until it strikes; 1 is the next.
    remaining: u64,
    code: c_int,
}

#[derive(Default)]
pub struct Injections(Vec<Failure>);

impl Injections {
    /// `nth` 0 takes back what was ordered for this name.
    pub fn order(&mut self, what: &str, nth: u64, code: c_int) {
        if nth == 0 {
            self.0.retain(|failure| failure.what != what);
        } else {
            self.0.push(Failure { what: what.to_string(), remaining: nth, code });
        }
    }

    /// Counts one call of `what`; the code to fail with, once, when its turn has come.
    pub fn strike(&mut self, what: &str) -> Option<Status> {
        for failure in self.0.iter_mut().filter(|failure| failure.what == what) {
            failure.remaining = failure.remaining.saturating_sub(1);
        }
        let due = self.0.iter().position(|failure| failure.remaining == 0)?;
        Some(Status(self.0.remove(due).code))
    }
}
