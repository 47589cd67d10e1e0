//! Memory: its life, its owner, copies, and what the driver tells of a pointer.

mod support;

use softcuda::*;
use std::{ffi::c_int, ptr::null_mut};
use support::*;

const POISON: u32 = u32::MAX;

#[test]
fn memory_is_full_of_nan_until_it_is_written() {
    context();
    let address = memory(16);
    write(address, &[1, 2], NULL_STREAM);
    assert_eq!(read(address, 4).unwrap(), [1, 2, POISON, POISON]);
    assert!(f32::from_bits(POISON).is_nan());
    let host = pinned(1);
    assert_eq!(unsafe { host.read() }, POISON);
}

#[test]
fn fills_and_copies_do_what_they_say() {
    context();
    let (one, other) = (memory(16), memory(16));
    ok(cuMemsetD32_v2(one, 0x01020304, 4));
    ok(cuMemsetD8_v2(one + 5, 0xAB, 2));
    ok(cuMemcpyDtoD_v2(other, one, 16));
    ok(unsafe { cuMemcpyHtoD_v2(other + 12, [9u32].as_ptr().cast(), 4) });
    assert_eq!(read(other, 4).unwrap(), [0x01020304, 0x01ABAB04, 0x01020304, 9]);
    ok(cuMemcpyDtoDAsync_v2(one, other, 8, 2));
    ok(cuMemsetD8Async(one, 0, 4, 2));
    assert_eq!(read(one, 2).unwrap(), [0, 0x01ABAB04]);
    assert_eq!(cuMemsetD32_v2(one + 2, 0, 1), INVALID_VALUE, "not aligned");
    ok(cuMemcpyDtoD_v2(one, other, 0));
}

#[test]
fn a_copy_from_pageable_memory_takes_the_source_at_the_call() {
    context();
    let (stream, address) = (stream(), memory(4));
    let mut source = [1u32];
    write(address, &source, stream);
    source[0] = 2;
    std::hint::black_box(&source);
    ok(cuStreamSynchronize(stream));
    assert_eq!(read(address, 1).unwrap(), [1]);
}

#[test]
fn a_copy_from_pinned_memory_reads_the_source_when_it_runs() {
    context();
    let (stream, address, source) = (stream(), memory(4), pinned(1));
    unsafe { source.write(1) };
    ok(unsafe { cuMemcpyHtoDAsync_v2(address, source.cast(), 4, stream) });
    unsafe { source.write(2) };
    ok(cuStreamSynchronize(stream));
    assert_eq!(read(address, 1).unwrap(), [2]);
}

#[test]
fn a_copy_to_pageable_memory_returns_when_it_is_done() {
    context();
    let (stream, address) = (stream(), memory(4));
    ok(set(address, 3, 1, stream));
    let mut there = [0u32];
    ok(unsafe { cuMemcpyDtoHAsync_v2(there.as_mut_ptr().cast(), address, 4, stream) });
    assert_eq!(there, [3]);
}

#[test]
fn a_copy_outside_live_memory_is_refused_at_the_call() {
    context();
    let (address, freed, pageable) = (memory(64), memory(64), [0u32; 16]);
    ok(cuMemFree_v2(freed));
    assert_eq!(set(address, 0, 17, 0), INVALID_VALUE, "beyond the end");
    assert_eq!(set(freed, 0, 16, 0), INVALID_VALUE);
    assert_eq!(set(pageable.as_ptr() as u64, 0, 16, 0), INVALID_VALUE, "no device memory");
    assert_eq!(unsafe { cuMemcpyHtoDAsync_v2(address, freed as *const _, 4, 0) }, INVALID_VALUE);
    assert_eq!(
        unsafe { cuMemcpyHtoDAsync_v2(address, memory(4) as *const _, 4, 0) },
        INVALID_VALUE,
        "no host memory"
    );
    assert_eq!(unsafe { cuMemcpyDtoH_v2(null_mut(), address, 4) }, INVALID_VALUE);
    assert_eq!(read(address, 16).unwrap(), [POISON; 16], "and nothing is broken by it");
}

#[test]
fn memory_is_freed_once_and_by_its_start() {
    context();
    let address = memory(64);
    assert_eq!(cuMemFree_v2(address + 16), INVALID_VALUE);
    ok(cuMemFree_v2(address));
    assert_eq!(cuMemFree_v2(address), INVALID_VALUE);
    ok(cuMemFree_v2(0));
    let stream = stream();
    let address = memory_on(stream, 64);
    ok(cuMemFreeAsync(address, stream));
    assert_eq!(cuMemFreeAsync(address, stream), INVALID_VALUE);
    let host = pinned(4);
    assert_eq!(cuMemFree_v2(host as u64), INVALID_VALUE, "pinned memory has a free of its own");
    ok(cuMemFreeHost(host.cast()));
    assert_eq!(cuMemFreeHost(host.cast()), INVALID_VALUE);
}

#[test]
fn a_free_waits_for_all_work() {
    context();
    let (stream, address, host) = (stream(), memory(4), pinned(1));
    ok(set(address, 4, 1, stream));
    ok(unsafe { cuMemcpyDtoHAsync_v2(host.cast(), address, 4, stream) });
    ok(cuMemFree_v2(address));
    assert_eq!(unsafe { host.read() }, 4);
}

#[test]
fn too_much_memory_is_refused() {
    context();
    let mut address = 0;
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 5 << 30) }, OUT_OF_MEMORY);
    assert_eq!(unsafe { cuMemAllocAsync(&mut address, usize::MAX, 0) }, OUT_OF_MEMORY);
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 0) }, INVALID_VALUE);
}

#[test]
fn stream_ordered_memory_lives_from_its_allocation_to_its_free() {
    context();
    let (one, other) = (stream(), stream());
    let address = memory_on(one, 4);
    ok(set(address, 5, 1, one));
    ok(cuStreamWaitEvent(other, recorded(one), 0));
    ok(set(address, 6, 1, other));
    ok(cuStreamWaitEvent(one, recorded(other), 0));
    ok(cuMemFreeAsync(address, one));
    ok(cuCtxSynchronize());
}

#[test]
fn using_memory_on_a_stream_not_ordered_after_its_allocation_is_a_fault() {
    context();
    let address = memory_on(stream(), 4);
    let other = stream();
    ok(set(address, 5, 1, other));
    assert_eq!(cuStreamSynchronize(other), ILLEGAL_ADDRESS);
}

#[test]
fn freeing_memory_on_a_stream_not_ordered_after_its_use_is_a_fault() {
    context();
    let (one, other, address) = (stream(), stream(), memory(4));
    ok(set(address, 5, 1, one));
    ok(cuMemFreeAsync(address, other));
    ok(cuStreamSynchronize(other));
    assert_eq!(cuStreamSynchronize(one), ILLEGAL_ADDRESS, "the free has run before the use");

    context();
    let (one, other, address) = (stream(), stream(), memory(4));
    ok(set(address, 5, 1, one));
    ok(cuMemFreeAsync(address, other));
    assert_eq!(cuStreamSynchronize(one), ILLEGAL_ADDRESS, "the use runs before the free");

    context();
    let (one, other, address) = (stream(), stream(), memory(4));
    ok(set(address, 5, 1, one));
    assert_eq!(cuStreamQuery(one), NOT_READY);
    assert_eq!(
        cuMemFreeAsync(address, other),
        ILLEGAL_ADDRESS,
        "the use has run, but nobody knows"
    );
}

#[test]
fn freeing_memory_after_a_host_wait_is_fine_on_any_stream() {
    context();
    let (one, other) = (stream(), stream());
    let address = memory_on(one, 4);
    ok(set(address, 5, 1, one));
    ok(cuStreamSynchronize(one));
    ok(cuMemFreeAsync(address, other));
    ok(cuCtxSynchronize());
}

#[test]
fn a_kernel_that_uses_freed_memory_is_told_so() {
    context();
    let (stream, address) = (stream(), memory(64));
    let add_one = kernel(kernels::ADD_ONE, "add_one");
    ok(cuMemFree_v2(address));
    ok(launch(add_one, 1, 32, stream, &[address, 1]));
    assert_eq!(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
    let fault = fault();
    for part in ["kernel add_one", "was freed", "block (0,0,0)", "warp 0", "line"] {
        assert!(fault.contains(part), "{part:?} in {fault:?}");
    }
}

#[test]
fn a_kernel_that_leaves_its_memory_is_told_by_how_much() {
    context();
    let (stream, address) = (stream(), memory(40));
    let add_one = kernel(kernels::ADD_ONE, "add_one");
    ok(launch(add_one, 1, 32, stream, &[address, 11]));
    assert_eq!(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
    assert!(fault().contains("4 bytes past the end of the 40 bytes"), "{}", fault());
}

#[test]
fn a_misaligned_kernel_access_is_a_fault_of_its_own() {
    context();
    let (stream, address) = (stream(), memory(64));
    ok(launch(kernel(kernels::ADD_ONE, "add_one"), 1, 32, stream, &[address + 2, 1]));
    assert_eq!(cuStreamSynchronize(stream), 716);
}

#[test]
fn memory_of_another_context_or_device_is_out_of_reach() {
    context_on(1);
    let (abroad, pool) = (memory(64), memory_on(NULL_STREAM, 64));
    context();
    let next_door = memory(64);
    for (address, why) in [(abroad, "device 1"), (pool, "device 1"), (next_door, "another context")]
    {
        context();
        assert_eq!(set(address, 0, 1, 0), INVALID_VALUE);
        ok(launch(kernel(kernels::ADD_ONE, "add_one"), 1, 32, 0, &[address, 1]));
        assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS);
        assert!(fault().contains(why), "{}", fault());
    }
}

#[test]
fn kernels_reach_pinned_and_managed_memory() {
    context();
    let host = pinned(1);
    unsafe { host.write(1) };
    let mapped = got(|address| unsafe { cuMemHostGetDevicePointer_v2(address, host.cast(), 0) });
    let managed = got(|address| unsafe { cuMemAllocManaged(address, 4, 1) });
    ok(cuMemsetD32_v2(managed, 5, 1));
    let add_one = kernel(kernels::ADD_ONE, "add_one");
    for address in [mapped, managed] {
        ok(launch(add_one, 1, 32, 0, &[address, 1]));
    }
    assert_eq!(unsafe { host.read_volatile() }, 1, "nobody has waited");
    ok(cuCtxSynchronize());
    assert_eq!(unsafe { host.read_volatile() }, 2);
    assert_eq!(unsafe { (managed as *const u32).read_volatile() }, 6);
    let mut address = 0;
    let pageable = [0u32];
    let code =
        unsafe { cuMemHostGetDevicePointer_v2(&mut address, pageable.as_ptr() as *mut _, 0) };
    assert_eq!(code, INVALID_VALUE);
}

const CONTEXT: c_int = 1;
const MEMORY_TYPE: c_int = 2;
const DEVICE_POINTER: c_int = 3;
const HOST_POINTER: c_int = 4;
const IS_MANAGED: c_int = 8;
const DEVICE_ORDINAL: c_int = 9;
const RANGE_START: c_int = 11;
const RANGE_SIZE: c_int = 12;

fn attribute(which: c_int, address: u64) -> Result<u64, c_int> {
    let mut value = 0u64;
    match unsafe { cuPointerGetAttribute((&raw mut value).cast(), which, address) } {
        0 => Ok(value),
        code => Err(code),
    }
}

fn attributes<const N: usize>(which: [c_int; N], address: u64) -> [u64; N] {
    let mut values = [0u64; N];
    let mut places = values.each_mut().map(|value| (value as *mut u64).cast());
    ok(unsafe { cuPointerGetAttributes(N as u32, which.as_ptr(), places.as_mut_ptr(), address) });
    values
}

#[test]
fn a_pointer_says_what_it_points_to() {
    let context = context_on(1) as u64;
    let (device, host) = (memory(64) + 8, pinned(4) as u64);
    let pool = memory_on(NULL_STREAM, 64);
    let managed = got(|address| unsafe { cuMemAllocManaged(address, 4, 1) });
    let which = [MEMORY_TYPE, DEVICE_ORDINAL, DEVICE_POINTER, CONTEXT, IS_MANAGED, HOST_POINTER];
    assert_eq!(attributes(which, device), [2, 1, device, context, 0, 0]);
    assert_eq!(attributes(which, host), [1, 1, host, context, 0, host]);
    assert_eq!(
        attributes(which, pool),
        [2, 1, pool, 0, 0, 0],
        "a pool is the device's, not a context's"
    );
    assert_eq!(attributes(which, managed), [2, 1, managed, context, 1, managed]);
    assert_eq!(attribute(MEMORY_TYPE, device), Ok(2));
    assert_eq!(
        (attribute(RANGE_START, device), attribute(RANGE_SIZE, device)),
        (Ok(device - 8), Ok(64))
    );
    assert_eq!(attribute(HOST_POINTER, device), Err(INVALID_VALUE));
    assert_eq!(attribute(99, device), Err(INVALID_VALUE));
}

#[test]
fn a_pointer_that_cuda_does_not_know_is_an_error_or_zeros() {
    context();
    let (pageable, freed) = (0u32, memory(4));
    ok(cuMemFree_v2(freed));
    for address in [std::ptr::from_ref(&pageable) as u64, freed, 0] {
        assert_eq!(attribute(MEMORY_TYPE, address), Err(INVALID_VALUE));
        assert_eq!(attributes([MEMORY_TYPE, DEVICE_POINTER, DEVICE_ORDINAL], address), [0, 0, 0]);
    }
}
