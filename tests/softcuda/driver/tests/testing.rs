//! What the stand-in has for tests: the access log, the counters, failures on demand.

mod support;

use softcuda::*;
use support::*;

#[test]
fn the_log_has_a_line_for_each_call_that_matters() {
    let _alone = alone();
    let ctx = context();
    softcuda_log_start();
    let stream = stream();
    let module = load(kernels::ADD_ONE).unwrap();
    let add_one = function(module, "add_one");
    let address = memory_on(stream, 4096);
    ok(set(address, 0, 1024, stream));
    ok(launch(add_one, 8, 128, stream, &[address, 1024]));
    let event = recorded(stream);
    ok(cuMemFreeAsync(address, stream));
    ok(cuEventSynchronize(event));
    ok(cuStreamSynchronize(stream));
    ok(cuCtxSynchronize());
    ok(cuCtxPushCurrent_v2(ctx));
    ok(unsafe { cuCtxPopCurrent_v2(std::ptr::null_mut()) });
    assert_eq!(cuStreamSynchronize(77), INVALID_HANDLE);
    assert_eq!(cuMemFree_v2(12345), INVALID_VALUE);
    let expected = format!(
        "create_stream stream={stream:#x} ctx={ctx:#x}\n\
         module_load module={module:#x}\n\
         alloc_async {address:#x} 4096 stream={stream:#x}\n\
         memset {address:#x} 4096 stream={stream:#x}\n\
         launch add_one stream={stream:#x} ctx={ctx:#x} grid=[8, 1, 1] block=[128, 1, 1]\n\
         create_event event={event:#x} ctx={ctx:#x}\n\
         record_event event={event:#x} stream={stream:#x}\n\
         free_async {address:#x} stream={stream:#x}\n\
         sync_event event={event:#x}\n\
         sync_stream stream={stream:#x}\n\
         sync_ctx ctx={ctx:#x}\n\
         push ctx={ctx:#x}\n\
         pop ctx={ctx:#x}\n\
         sync_stream stream=0x4d = CUDA_ERROR_INVALID_HANDLE\n\
         free 0x3039 (sync_ctx) = CUDA_ERROR_INVALID_VALUE\n"
    );
    assert_eq!(log(), expected);
    softcuda_log_start();
    assert_eq!(log(), "");
}

#[test]
fn a_log_that_is_too_long_for_the_buffer_is_cut_and_its_length_told() {
    let _alone = alone();
    let ctx = context();
    softcuda_log_start();
    ok(cuCtxPushCurrent_v2(ctx));
    let whole = log();
    let (mut buffer, mut length) = ([1u8; 5], 0);
    ok(unsafe { softcuda_log_text(buffer.as_mut_ptr().cast(), 5, &mut length) });
    assert_eq!((&buffer, length), (b"push\0", whole.len()));
    ok(unsafe { softcuda_log_text(std::ptr::null_mut(), 0, &mut length) });
}

#[test]
fn the_counters_count_what_lives() {
    let _alone = alone();
    context();
    let before = stats();
    let (stream, event, module) = (stream(), event(), load(kernels::ADD_ONE).unwrap());
    let (address, on_stream, host) = (memory(100), memory_on(stream, 28), pinned(1));
    ok(launch(function(module, "nothing"), 1, 32, stream, &[]));
    let now = stats();
    assert_eq!(now.launches - before.launches, 1);
    assert_eq!(now.live_allocations - before.live_allocations, 2);
    assert_eq!(now.live_bytes - before.live_bytes, 128);
    assert_eq!(now.pinned_live - before.pinned_live, 1);
    assert_eq!(now.modules - before.modules, 1);
    assert_eq!((now.events - before.events, now.streams - before.streams), (1, 1));
    assert_eq!(now.synchronises, before.synchronises);

    ok(cuMemFreeAsync(on_stream, stream)); // counts as free when called
    ok(cuMemFree_v2(address));
    ok(cuMemFreeHost(host.cast()));
    ok(cuModuleUnload(module));
    ok(cuEventDestroy_v2(event));
    ok(cuStreamDestroy_v2(stream));
    let after = Stats { launches: before.launches, synchronises: before.synchronises, ..stats() };
    assert_eq!(after, before);
    assert_eq!(stats().synchronises - before.synchronises, 2, "both frees wait");
}

#[test]
fn everything_that_waits_is_counted() {
    let _alone = alone();
    context();
    let (stream, address, event) = (stream(), memory(4), event());
    let mut there = 0u32;
    let place = (&raw mut there).cast();
    let waits: [&mut dyn FnMut() -> i32; 6] = [
        &mut || cuStreamSynchronize(stream),
        &mut || cuCtxSynchronize(),
        &mut || unsafe { cuMemcpyDtoH_v2(place, address, 4) },
        &mut || unsafe { cuMemcpyDtoHAsync_v2(place, address, 4, stream) },
        &mut || unsafe { cuMemcpyHtoD_v2(address, place, 4) },
        &mut || [cuEventRecord(event, stream), cuEventSynchronize(event)].into_iter().sum(),
    ];
    for wait in waits {
        let before = stats().synchronises;
        ok(wait());
        assert_eq!(stats().synchronises - before, 1);
    }
    let before = stats().synchronises;
    let host = pinned(1);
    ok(cuEventQuery(event));
    ok(cuStreamQuery(stream));
    ok(unsafe { cuMemcpyDtoHAsync_v2(host.cast(), address, 4, stream) });
    assert_eq!(stats().synchronises, before);
}

#[test]
fn the_call_that_was_asked_to_fails_once() {
    let _alone = alone();
    context();
    let (stream, mut address) = (stream(), 0);
    let mut allocate = || unsafe { cuMemAllocAsync(&mut address, 4, stream) };
    fail("cuMemAllocAsync", 3, OUT_OF_MEMORY);
    let codes: Vec<i32> = (0..5).map(|_| allocate()).collect();
    assert_eq!(codes, [0, 0, OUT_OF_MEMORY, 0, 0]);
    fail("cuMemAllocAsync", 1, OUT_OF_MEMORY);
    fail("cuMemAllocAsync", 0, 0); // taken back
    ok(allocate());
}

#[test]
fn a_failed_launch_does_nothing_and_may_stay() {
    let _alone = alone();
    context();
    let nothing = kernel(kernels::ADD_ONE, "nothing");
    fail("cuLaunchKernel", 1, 701);
    assert_eq!(launch(nothing, 1, 32, 0, &[]), 701);
    ok(launch(nothing, 1, 32, 0, &[]));
    fail("cuLaunchKernel", 1, LAUNCH_FAILED);
    assert_eq!(launch(nothing, 1, 32, 0, &[]), LAUNCH_FAILED);
    assert_eq!(
        cuCtxSynchronize(),
        LAUNCH_FAILED,
        "a code of that kind is the context's from then on"
    );
}

#[test]
fn a_kernel_can_fail_while_it_runs() {
    let _alone = alone();
    context();
    let nothing = kernel(kernels::ADD_ONE, "nothing");
    fail("execute", 2, ILLEGAL_ADDRESS);
    ok(launch(nothing, 1, 32, 0, &[]));
    ok(launch(nothing, 1, 32, 0, &[]));
    assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS);
    assert!(fault().contains("nothing"));
}

#[test]
fn a_broken_device_takes_its_contexts_along_and_no_others() {
    let _alone = alone();
    let whole = context_on(0);
    context_on(1);
    assert_eq!(softcuda_break(2), 101);
    ok(softcuda_break(1));
    assert_eq!(cuCtxSynchronize(), 46);
    let mut place = 0;
    assert_eq!(unsafe { cuDevicePrimaryCtxRetain(&mut place, 1) }, 46);
    assert_eq!(unsafe { cuCtxCreate_v2(&mut place, 0, 1) }, 46);
    ok(cuCtxSetCurrent(whole));
    ok(cuCtxSynchronize());
}
