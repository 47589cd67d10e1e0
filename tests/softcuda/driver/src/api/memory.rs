//! Allocation, copies and fills.
//!
//! As the manual has it, a copy from pageable memory takes the source at the call, and one into
//! pageable memory returns when it is done; with pinned memory both are left to the stream.

use super::{CUdeviceptr, CUresult, CUstream, out};
use crate::{
    driver::call,
    memory::{Access, Kind},
    status::Status,
    work::{Side, Work},
};
use std::ffi::{c_uchar, c_uint, c_void};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize) -> CUresult {
    call("cuMemAlloc_v2", |driver| {
        let place = unsafe { out(address)? };
        let address = driver.allocate_now(bytes, Kind::Device)?;
        driver.log.note(format_args!("alloc {address:#x} {bytes}"));
        place.set(address);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocManaged(
    address: *mut CUdeviceptr,
    bytes: usize,
    flags: c_uint,
) -> CUresult {
    call("cuMemAllocManaged", |driver| {
        let place = unsafe { out(address)? };
        if !matches!(flags, 1 | 2) {
            return Err(Status::INVALID_VALUE);
        }
        let address = driver.allocate_now(bytes, Kind::Managed)?;
        driver.log.note(format_args!("alloc_managed {address:#x} {bytes}"));
        place.set(address);
        Ok(())
    })
}

/// With unified addressing all pinned memory is mapped and portable, whatever the flags.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(
    address: *mut *mut c_void,
    bytes: usize,
    flags: c_uint,
) -> CUresult {
    call("cuMemHostAlloc", |driver| {
        let place = unsafe { out(address)? };
        if flags > 7 {
            return Err(Status::INVALID_VALUE);
        }
        let address = driver.allocate_now(bytes, Kind::Pinned)?;
        driver.log.note(format_args!("alloc_host {address:#x} {bytes}"));
        place.set(address as *mut c_void);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    address: *mut CUdeviceptr,
    host: *mut c_void,
    flags: c_uint,
) -> CUresult {
    call("cuMemHostGetDevicePointer_v2", |driver| {
        let place = unsafe { out(address)? };
        driver.current()?;
        let pinned = driver
            .heap
            .live_around(host as u64)
            .is_some_and(|allocation| allocation.kind == Kind::Pinned);
        if flags != 0 || !pinned {
            return Err(Status::INVALID_VALUE);
        }
        place.set(host as u64);
        Ok(())
    })
}

/// Waits for all work of the context.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: CUdeviceptr) -> CUresult {
    call("cuMemFree_v2", |driver| {
        driver.log.note(format_args!("free {address:#x} (sync_ctx)"));
        driver.free_now(address, false)
    })
}

/// Waits for all work of the context.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: *mut c_void) -> CUresult {
    call("cuMemFreeHost", |driver| {
        driver.log.note(format_args!("free_host {address:?} (sync_ctx)"));
        driver.free_now(address as u64, true)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(
    address: *mut CUdeviceptr,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    call("cuMemAllocAsync", |driver| {
        let place = unsafe { out(address)? };
        let address = driver.allocate_on(bytes, stream)?;
        driver.log.note(format_args!("alloc_async {address:#x} {bytes} stream={stream:#x}"));
        place.set(address);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: CUdeviceptr, stream: CUstream) -> CUresult {
    call("cuMemFreeAsync", |driver| {
        driver.log.note(format_args!("free_async {address:#x} stream={stream:#x}"));
        driver.free_on(address, stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: CUdeviceptr,
    from: *const c_void,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    call("cuMemcpyHtoDAsync_v2", |driver| {
        driver.log.note(format_args!("copy_htod {to:#x} {bytes} stream={stream:#x}"));
        let stream = driver.find_stream(stream)?;
        let to = driver.device_side(stream, to, bytes, Access::Write)?;
        match driver.host_side(from as u64, bytes)? {
            from @ Side::Cuda(_) => driver.submit(stream, Work::Copy { to, from, bytes }),
            Side::Pageable(_) => {
                // SAFETY: the caller promises `bytes` readable bytes.
                let data = unsafe { bytes_at(from, bytes) };
                driver.submit(stream, Work::Write { to: to.address(), data })
            }
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: CUdeviceptr,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    call("cuMemcpyDtoHAsync_v2", |driver| {
        let stream = driver.find_stream(stream)?;
        let from = driver.device_side(stream, from, bytes, Access::Read)?;
        let to = driver.host_side(to as u64, bytes)?;
        let waits = matches!(to, Side::Pageable(_)) && driver.streams[&stream].capture.is_none();
        let how = if waits { " (sync_stream)" } else { "" };
        driver
            .log
            .note(format_args!("copy_dtoh {:#x} {bytes} stream={stream:#x}{how}", from.address()));
        driver.submit(stream, Work::Copy { to, from, bytes })?;
        if waits { driver.synchronise_stream(stream) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    call("cuMemcpyDtoDAsync_v2", |driver| {
        driver.log.note(format_args!("copy_dtod {to:#x} {from:#x} {bytes} stream={stream:#x}"));
        let stream = driver.find_stream(stream)?;
        let from = driver.device_side(stream, from, bytes, Access::Read)?;
        let to = driver.device_side(stream, to, bytes, Access::Write)?;
        driver.submit(stream, Work::Copy { to, from, bytes })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(
    to: CUdeviceptr,
    from: *const c_void,
    bytes: usize,
) -> CUresult {
    call("cuMemcpyHtoD_v2", |driver| {
        driver.log.note(format_args!("copy_htod {to:#x} {bytes} (sync_stream)"));
        let stream = driver.find_stream(0)?;
        let to = driver.device_side(stream, to, bytes, Access::Write)?;
        driver.host_side(from as u64, bytes)?;
        // SAFETY: the caller promises `bytes` readable bytes.
        let data = unsafe { bytes_at(from, bytes) };
        driver.do_now(stream, Work::Write { to: to.address(), data })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(
    to: *mut c_void,
    from: CUdeviceptr,
    bytes: usize,
) -> CUresult {
    call("cuMemcpyDtoH_v2", |driver| {
        driver.log.note(format_args!("copy_dtoh {from:#x} {bytes} (sync_stream)"));
        let stream = driver.find_stream(0)?;
        let from = driver.device_side(stream, from, bytes, Access::Read)?;
        let to = driver.host_side(to as u64, bytes)?;
        driver.do_now(stream, Work::Copy { to, from, bytes })
    })
}

/// Within the device, the host does not wait for it.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoD_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> CUresult {
    call("cuMemcpyDtoD_v2", |driver| {
        driver.log.note(format_args!("copy_dtod {to:#x} {from:#x} {bytes} stream=0x0"));
        let stream = driver.find_stream(0)?;
        let from = driver.device_side(stream, from, bytes, Access::Read)?;
        let to = driver.device_side(stream, to, bytes, Access::Write)?;
        driver.refuse_unsafe_in_capture()?;
        driver.submit(stream, Work::Copy { to, from, bytes })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(
    to: CUdeviceptr,
    value: c_uchar,
    count: usize,
    stream: CUstream,
) -> CUresult {
    call("cuMemsetD8Async", |driver| driver.fill(to, &[value], count, stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32Async(
    to: CUdeviceptr,
    value: c_uint,
    count: usize,
    stream: CUstream,
) -> CUresult {
    call("cuMemsetD32Async", |driver| driver.fill(to, &value.to_ne_bytes(), count, stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8_v2(to: CUdeviceptr, value: c_uchar, count: usize) -> CUresult {
    call("cuMemsetD8_v2", |driver| {
        driver.refuse_unsafe_in_capture()?;
        driver.fill(to, &[value], count, 0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32_v2(to: CUdeviceptr, value: c_uint, count: usize) -> CUresult {
    call("cuMemsetD32_v2", |driver| {
        driver.refuse_unsafe_in_capture()?;
        driver.fill(to, &value.to_ne_bytes(), count, 0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CUresult {
    call("cuMemGetInfo_v2", |driver| {
        let (free, total) = unsafe { (out(free)?, out(total)?) };
        let place = driver.place(driver.current()?);
        let memory = driver.settings.memory;
        free.set((memory - driver.heap.bytes_on(place.device)) as usize);
        total.set(memory as usize);
        Ok(())
    })
}

/// # Safety
/// `from` is valid for reads of `bytes` bytes.
unsafe fn bytes_at(from: *const c_void, bytes: usize) -> Vec<u8> {
    match bytes {
        0 => Vec::new(),
        // SAFETY: not empty, and the caller of the copy has promised it.
        _ => unsafe { std::slice::from_raw_parts(from.cast(), bytes) }.to_vec(),
    }
}
