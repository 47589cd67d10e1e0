//! Nothing leaves the library but numbers: errors become codes and a text in the thread's last
//! error, a panic becomes `DC_ERR_INTERNAL` and says nothing on the host's stderr.
use super::types::dc_status;
use crate::error::{Error, Result};
use once_cell::sync::Lazy;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes of the text, with its NUL.
const TEXT: usize = 1024;

thread_local! {
    /// Fixed, so that a pointer to it may go stale but never dangles while its thread lives.
    static LAST: UnsafeCell<[u8; TEXT]> = const { UnsafeCell::new([0; TEXT]) };
    static GUARDED: Cell<u32> = const { Cell::new(0) };
}

/// Panics inside a guard are reported by code; the host's own hook sees all others.
static QUIET: Lazy<()> = Lazy::new(|| {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if GUARDED.try_with(Cell::get).unwrap_or(0) == 0 {
            hook(info);
        }
    }));
});

pub fn last_error() -> *const c_char {
    LAST.with(|last| last.get().cast())
}

pub fn set_last_error(error: &Error) {
    let text = error.to_string();
    let mut n = text.len().min(TEXT - 1);
    while !text.is_char_boundary(n) {
        n -= 1;
    }
    LAST.with(|last| {
        // Only this thread has the buffer, and no reference to it outlives a call.
        let last = unsafe { &mut *last.get() };
        last[..n].copy_from_slice(&text.as_bytes()[..n]);
        // A text of the engine's may hold a NUL.
        last[..n].iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        last[n] = 0;
    });
}

pub fn code(error: &Error) -> dc_status {
    match error {
        Error::Arg(_) => dc_status::DC_ERR_ARG,
        Error::State(_) => dc_status::DC_ERR_STATE,
        Error::Handle(_) => dc_status::DC_ERR_HANDLE,
        Error::Busy(_) => dc_status::DC_ERR_BUSY,
        Error::Shape(_) => dc_status::DC_ERR_SHAPE,
        Error::Memory(_) => dc_status::DC_ERR_MEMORY,
        Error::Device(_) => dc_status::DC_ERR_DEVICE,
        Error::Unsupported(_) => dc_status::DC_ERR_UNSUPPORTED,
        Error::Version(_) => dc_status::DC_ERR_VERSION,
        Error::Internal(_) => dc_status::DC_ERR_INTERNAL,
        Error::Capture(_) => dc_status::DC_ERR_CAPTURE,
        Error::Discard(_) => dc_status::DC_ERR_DISCARD,
    }
}

/// Runs `f`; a panic is an error like any other.
pub fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    Lazy::force(&QUIET);
    GUARDED.with(|depth| depth.set(depth.get() + 1));
    let result = catch_unwind(AssertUnwindSafe(f));
    GUARDED.with(|depth| depth.set(depth.get() - 1));
    result.unwrap_or_else(|panic| Err(Error::Internal(panic_text(panic))))
}

fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = match panic.downcast_ref::<&str>() {
        Some(text) => Some((*text).to_owned()),
        None => panic.downcast_ref::<String>().cloned(),
    };
    if text.is_none() {
        // Dropping a payload of unknown type may panic again.
        std::mem::forget(panic);
    }
    format!("internal error: {}", text.unwrap_or_else(|| "no text".to_owned()))
}

/// The code of `f`, with its text in the last error.
pub fn status(f: impl FnOnce() -> Result<()>) -> i32 {
    reported(caught(f))
}

/// The code of what was [`caught`], with its text in the last error.
pub fn reported(result: Result<()>) -> i32 {
    match result {
        Ok(()) => dc_status::DC_OK as i32,
        Err(error) => {
            set_last_error(&error);
            code(&error) as i32
        }
    }
}

/// The value of `f`, or `otherwise` and a text in the last error.
pub fn value<T>(otherwise: T, f: impl FnOnce() -> Result<T>) -> T {
    caught(f).unwrap_or_else(|error| {
        set_last_error(&error);
        otherwise
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last() -> String {
        unsafe { CStr::from_ptr(last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_is_a_code_and_a_text() {
        assert_eq!(status(|| panic!("boom {}", 7)), dc_status::DC_ERR_INTERNAL as i32);
        assert_eq!(last(), "internal error: boom 7");
        assert_eq!(value(3, || std::panic::panic_any(vec![1])), 3);
        assert_eq!(last(), "internal error: no text");
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_a_nul_is_a_space() {
        set_last_error(&Error::Arg("é".repeat(TEXT)));
        assert_eq!(last().chars().count(), (TEXT - 1) / 2);
        set_last_error(&Error::Arg("a\0b".to_owned()));
        assert_eq!(last(), "a b");
    }
}
