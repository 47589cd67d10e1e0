//! The exported functions, by their driver names, grouped as the driver's manual groups them. Each
//! checks its pointers, finds its objects, says what it does to the log, and leaves the rest to the
//! model.
//!
//! # Safety
//!
//! The contracts are those of the CUDA driver API: every pointer is null or valid for what the
//! function reads or writes there. A null that the manual does not allow is `CUDA_ERROR_INVALID_VALUE`.
#![allow(non_snake_case, clippy::missing_safety_doc)]

mod capture;
mod context;
mod device;
mod event;
mod memory;
mod module;
mod pointer;
mod stream;
mod testing;

pub use capture::*;
pub use context::*;
pub use device::*;
pub use event::*;
pub use memory::*;
pub use module::*;
pub use pointer::*;
pub use stream::*;
pub use testing::*;

use crate::status::{Outcome, Status};
use std::ffi::{CStr, c_char, c_int};

pub type CUresult = c_int;
pub type CUdevice = c_int;
pub type CUdeviceptr = u64;
/// Handles are numbers here: nothing lies behind them.
pub type CUcontext = usize;
pub type CUstream = usize;
pub type CUevent = usize;
pub type CUmodule = usize;
pub type CUfunction = usize;
pub type CUgraph = usize;

/// Where a result goes.
///
/// # Safety
/// `pointer` is null or valid for a write.
unsafe fn out<'a, T>(pointer: *mut T) -> Outcome<Out<'a, T>> {
    if pointer.is_null() {
        Err(Status::INVALID_VALUE)
    } else {
        Ok(Out(pointer, std::marker::PhantomData))
    }
}

/// A place of the caller's that need not hold anything yet.
struct Out<'a, T>(*mut T, std::marker::PhantomData<&'a mut T>);

impl<T> Out<'_, T> {
    fn set(self, value: T) {
        // SAFETY: `out` was promised a valid place.
        unsafe { self.0.write(value) }
    }
}

/// # Safety
/// `text` is null or ends in a zero.
unsafe fn text<'a>(text: *const c_char) -> Outcome<&'a str> {
    if text.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| Status::INVALID_VALUE)
}

/// Copies a text with a zero at its end, cut to `room` bytes; gives the bytes written.
///
/// # Safety
/// `to` is valid for writes of `room` bytes.
unsafe fn put_text(text: &str, to: *mut c_char, room: usize) -> usize {
    let Some(most) = room.checked_sub(1) else { return 0 };
    let length = text.len().min(most);
    // SAFETY: `length + 1 <= room`.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), length);
        to.add(length).write(0);
    }
    length + 1
}
