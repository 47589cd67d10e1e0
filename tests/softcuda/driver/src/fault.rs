//! Telling people what went wrong: on stderr, and kept for the thread whose call ran into it.

use std::cell::RefCell;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// `quiet` keeps it from stderr.
pub fn tell(what: &str, quiet: bool) {
    LAST.set(what.to_string());
    if !quiet {
        eprintln!("softcuda: {what}");
    }
}

/// The last fault that a call of this thread ran into.
pub fn last() -> String {
    LAST.with_borrow(String::clone)
}
