//! A thin layer over the calls, so that tests read as claims. Each test works in a context of its own:
//! an error in one does not reach another.
#![allow(dead_code)] // No test binary uses all of it.

pub mod kernels;

use softcuda::*;
use std::{
    ffi::{CString, c_char, c_int, c_void},
    ptr::null_mut,
    sync::{Mutex, MutexGuard, PoisonError},
};

pub const NON_BLOCKING: u32 = 1;
pub const NULL_STREAM: usize = 0;

pub const INVALID_VALUE: c_int = 1;
pub const OUT_OF_MEMORY: c_int = 2;
pub const INVALID_CONTEXT: c_int = 201;
pub const INVALID_HANDLE: c_int = 400;
pub const NOT_FOUND: c_int = 500;
pub const NOT_READY: c_int = 600;
pub const ILLEGAL_ADDRESS: c_int = 700;
pub const LAUNCH_FAILED: c_int = 719;

#[track_caller]
pub fn ok(code: c_int) {
    assert_eq!(code, 0, "{}", fault());
}

/// What the call fills in, if it succeeds.
#[track_caller]
pub fn got<T: Default>(call: impl FnOnce(*mut T) -> c_int) -> T {
    let mut value = T::default();
    ok(call(&mut value));
    value
}

/// A context of its own on the device, current to this thread.
pub fn context_on(device: c_int) -> usize {
    ok(cuInit(0));
    got(|context| unsafe { cuCtxCreate_v2(context, 0, device) })
}

pub fn context() -> usize {
    context_on(0)
}

pub fn stream() -> usize {
    got(|stream| unsafe { cuStreamCreate(stream, NON_BLOCKING) })
}

pub fn blocking_stream() -> usize {
    got(|stream| unsafe { cuStreamCreate(stream, 0) })
}

pub fn event() -> usize {
    got(|event| unsafe { cuEventCreate(event, 2) })
}

/// An event that is where the stream is now.
pub fn recorded(stream: usize) -> usize {
    let event = event();
    ok(cuEventRecord(event, stream));
    event
}

pub fn memory(bytes: usize) -> u64 {
    got(|address| unsafe { cuMemAlloc_v2(address, bytes) })
}

pub fn memory_on(stream: usize, bytes: usize) -> u64 {
    got(|address| unsafe { cuMemAllocAsync(address, bytes, stream) })
}

/// Pinned memory of `count` numbers.
pub fn pinned(count: usize) -> *mut u32 {
    let mut address = null_mut();
    ok(unsafe { cuMemHostAlloc(&mut address, count * 4, 3) });
    address.cast()
}

pub fn set(address: u64, value: u32, count: usize, stream: usize) -> c_int {
    cuMemsetD32Async(address, value, count, stream)
}

/// The numbers there, once the null stream and all blocking ones are done.
pub fn read(address: u64, count: usize) -> Result<Vec<u32>, c_int> {
    let mut numbers = vec![0; count];
    match unsafe { cuMemcpyDtoH_v2(numbers.as_mut_ptr().cast(), address, count * 4) } {
        0 => Ok(numbers),
        code => Err(code),
    }
}

pub fn write(address: u64, numbers: &[u32], stream: usize) {
    ok(unsafe {
        cuMemcpyHtoDAsync_v2(address, numbers.as_ptr().cast(), size_of_val(numbers), stream)
    });
}

pub fn load(ptx: &str) -> Result<usize, c_int> {
    let (text, mut module) = (CString::new(ptx).unwrap(), 0);
    match unsafe { cuModuleLoadData(&mut module, text.as_ptr().cast()) } {
        0 => Ok(module),
        code => Err(code),
    }
}

pub fn function(module: usize, name: &str) -> usize {
    let name = CString::new(name).unwrap();
    got(|function| unsafe { cuModuleGetFunction(function, module, name.as_ptr()) })
}

/// A kernel of a module that is loaded for it.
pub fn kernel(ptx: &str, name: &str) -> usize {
    function(load(ptx).unwrap(), name)
}

/// One-dimensional. Parameters are 64 bits wide in memory; the kernel takes what it needs of each.
pub fn launch(function: usize, grid: u32, block: u32, stream: usize, params: &[u64]) -> c_int {
    let mut places: Vec<*mut c_void> =
        params.iter().map(|param| std::ptr::from_ref(param) as *mut c_void).collect();
    unsafe {
        cuLaunchKernel(
            function,
            grid,
            1,
            1,
            block,
            1,
            1,
            0,
            stream,
            places.as_mut_ptr(),
            null_mut(),
        )
    }
}

/// While it is held, no other test that asks for it runs: the log, the counters, failures on demand and
/// captures are the whole process's.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last fault of this thread, in words.
pub fn fault() -> String {
    text(|buffer, room, length| unsafe { softcuda_fault_text(buffer, room, length) })
}

pub fn log() -> String {
    text(|buffer, room, length| unsafe { softcuda_log_text(buffer, room, length) })
}

fn text(call: impl FnOnce(*mut c_char, usize, *mut usize) -> c_int) -> String {
    let (mut buffer, mut length) = (vec![0u8; 1 << 16], 0);
    assert_eq!(call(buffer.as_mut_ptr().cast(), buffer.len(), &mut length), 0);
    buffer.truncate(length);
    String::from_utf8(buffer).unwrap()
}

pub fn stats() -> Stats {
    got(|stats| unsafe { softcuda_stats(stats) })
}

pub fn fail(what: &str, nth: u64, code: c_int) {
    let what = CString::new(what).unwrap();
    ok(unsafe { softcuda_fail(what.as_ptr(), nth, code) });
}
