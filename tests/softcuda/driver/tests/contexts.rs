//! Devices and contexts: the thread's stack, primary contexts, errors that stay.

mod support;

use softcuda::*;
use std::{ffi::c_int, ptr::null_mut};
use support::*;

fn current() -> usize {
    got(|context| unsafe { cuCtxGetCurrent(context) })
}

#[test]
fn there_are_two_devices_and_no_third() {
    ok(cuInit(0));
    assert_eq!(got(|count| unsafe { cuDeviceGetCount(count) }), 2);
    assert_eq!(got(|device| unsafe { cuDeviceGet(device, 1) }), 1);
    let mut device = 0;
    assert_eq!(unsafe { cuDeviceGet(&mut device, 2) }, 101);
    assert_eq!(unsafe { cuDeviceGet(&mut device, -1) }, 101);
}

#[test]
fn a_device_says_what_it_is() {
    ok(cuInit(0));
    let attribute =
        |which| got(|value: *mut c_int| unsafe { cuDeviceGetAttribute(value, which, 0) });
    assert_eq!((attribute(75), attribute(76)), (8, 0));
    assert_eq!(attribute(115), 1, "memory pools");
    assert_eq!(attribute(10), 32, "warp size");
    let mut value = 0;
    assert_eq!(unsafe { cuDeviceGetAttribute(&mut value, 0, 0) }, INVALID_VALUE);
    let mut name = [1i8; 64];
    ok(unsafe { cuDeviceGetName(name.as_mut_ptr().cast(), 64, 0) });
    assert!(name.contains(&0));
    let uuid = |device| got(|uuid: *mut [u8; 16]| unsafe { cuDeviceGetUuid_v2(uuid, device) });
    assert_ne!(uuid(0), uuid(1));
    assert_eq!(got(|bytes| unsafe { cuDeviceTotalMem_v2(bytes, 0) }), 4 << 30);
}

#[test]
fn null_pointers_are_refused() {
    context();
    unsafe {
        let refused = [
            cuDeviceGetCount(null_mut()),
            cuDeviceGet(null_mut(), 0),
            cuDeviceGetAttribute(null_mut(), 1, 0),
            cuDeviceGetName(null_mut(), 8, 0),
            cuDevicePrimaryCtxRetain(null_mut(), 0),
            cuDevicePrimaryCtxGetState(0, null_mut(), null_mut()),
            cuCtxCreate_v2(null_mut(), 0, 0),
            cuCtxGetCurrent(null_mut()),
            cuCtxGetDevice(null_mut()),
            cuCtxGetId(0, null_mut()),
            cuStreamCreate(null_mut(), 0),
            cuStreamGetCtx(0, null_mut()),
            cuStreamIsCapturing(0, null_mut()),
            cuThreadExchangeStreamCaptureMode(null_mut()),
            cuEventCreate(null_mut(), 0),
            cuMemAlloc_v2(null_mut(), 1),
            cuMemAllocAsync(null_mut(), 1, 0),
            cuMemHostAlloc(null_mut(), 1, 0),
            cuModuleLoadData(null_mut(), null_mut()),
            cuModuleGetFunction(null_mut(), 0, null_mut()),
            cuPointerGetAttribute(null_mut(), 2, 0),
            cuPointerGetAttributes(1, null_mut(), null_mut(), 0),
            cuGetErrorName(0, null_mut()),
            cuGetErrorString(0, null_mut()),
            cuDriverGetVersion(null_mut()),
        ];
        assert_eq!(refused, [INVALID_VALUE; 25]);
    }
}

#[test]
fn errors_have_names_and_unknown_ones_have_none() {
    let name = |code| {
        let mut name = null_mut::<i8>() as *const _;
        (unsafe { cuGetErrorName(code, &mut name) }, name)
    };
    let (code, text) = name(700);
    ok(code);
    assert_eq!(unsafe { std::ffi::CStr::from_ptr(text) }, c"CUDA_ERROR_ILLEGAL_ADDRESS");
    let (code, text) = name(12345);
    assert_eq!(code, INVALID_VALUE);
    assert!(text.is_null());
}

#[test]
fn the_stack_of_current_contexts_is_the_threads_own() {
    let (first, second) = (context(), context());
    assert_eq!(current(), second);
    std::thread::spawn(|| assert_eq!(current(), 0)).join().unwrap();
    assert_eq!(got(|popped| unsafe { cuCtxPopCurrent_v2(popped) }), second);
    assert_eq!(current(), first);
    ok(cuCtxPushCurrent_v2(second));
    ok(cuCtxSetCurrent(first));
    assert_eq!(current(), first, "set replaces the top");
    ok(cuCtxSetCurrent(0));
    assert_eq!(current(), first, "setting null takes the top away");
    ok(unsafe { cuCtxPopCurrent_v2(null_mut()) });
    assert_eq!(current(), 0);
    assert_eq!(unsafe { cuCtxPopCurrent_v2(null_mut()) }, INVALID_CONTEXT);
}

#[test]
fn without_a_current_context_nothing_works() {
    let created = context();
    let stream = stream();
    ok(unsafe { cuCtxPopCurrent_v2(null_mut()) });
    let mut address = 0;
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 16) }, INVALID_CONTEXT);
    assert_eq!(cuCtxSynchronize(), INVALID_CONTEXT);
    assert_eq!(cuStreamSynchronize(stream), INVALID_CONTEXT);
    ok(cuCtxPushCurrent_v2(created));
    ok(cuStreamSynchronize(stream));
}

#[test]
fn a_primary_context_lives_as_long_as_it_is_retained() {
    ok(cuInit(0));
    let state = || {
        let (mut flags, mut active) = (0, 0);
        ok(unsafe { cuDevicePrimaryCtxGetState(1, &mut flags, &mut active) });
        active
    };
    let id = |context| got(|id| unsafe { cuCtxGetId(context, id) });
    assert_eq!(state(), 0);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(1), INVALID_CONTEXT);
    let primary = got(|context| unsafe { cuDevicePrimaryCtxRetain(context, 1) });
    assert_eq!(got(|context| unsafe { cuDevicePrimaryCtxRetain(context, 1) }), primary);
    let first_id = id(primary);
    assert_eq!(cuCtxDestroy_v2(primary), INVALID_CONTEXT, "released, not destroyed");
    ok(cuDevicePrimaryCtxRelease_v2(1));
    assert_eq!(state(), 1);
    ok(cuCtxPushCurrent_v2(primary));
    assert_eq!(got(|device| unsafe { cuCtxGetDevice(device) }), 1);
    ok(cuDevicePrimaryCtxRelease_v2(1));
    assert_eq!(state(), 0);
    assert_eq!(cuCtxSynchronize(), 709, "destroyed, though current");
    assert_eq!(got(|context| unsafe { cuDevicePrimaryCtxRetain(context, 1) }), primary);
    assert_ne!(id(primary), first_id, "another life of it");
    ok(cuDevicePrimaryCtxRelease_v2(1));
}

#[test]
fn a_destroyed_context_takes_its_objects_along() {
    let keep = context();
    let gone = context();
    let (stream, event, module) = (stream(), event(), load(kernels::ADD_ONE).unwrap());
    let address = memory(64);
    ok(cuCtxDestroy_v2(gone));
    assert_eq!(current(), keep, "it was current, so it is popped");
    assert_eq!(cuCtxPushCurrent_v2(gone), 709);
    assert_eq!(cuStreamSynchronize(stream), INVALID_HANDLE);
    assert_eq!(cuEventQuery(event), INVALID_HANDLE);
    assert_eq!(cuModuleUnload(module), INVALID_HANDLE);
    assert_eq!(cuMemFree_v2(address), INVALID_VALUE);
}

#[test]
fn a_stream_knows_its_context() {
    let first = context();
    let stream = stream();
    let second = context();
    let of = |stream| got(|context| unsafe { cuStreamGetCtx(stream, context) });
    assert_eq!(of(stream), first);
    assert_eq!(
        (of(0), of(1), of(2)),
        (second, second, second),
        "of the default streams it is the current one"
    );
}

#[test]
fn an_error_in_a_kernel_stays_with_its_context_and_no_other() {
    let other = context();
    let address = memory(64);
    let failed = context();
    let stream = stream();
    let event = recorded(stream);
    let add_one = kernel(kernels::ADD_ONE, "add_one");
    ok(launch(add_one, 1, 32, stream, &[address + 32, 1000]));
    assert_eq!(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
    let mut place = 0;
    unsafe {
        assert_eq!(cuMemAlloc_v2(&mut place, 64), ILLEGAL_ADDRESS);
        assert_eq!(cuStreamGetCtx(stream, &mut 0), ILLEGAL_ADDRESS);
    }
    assert_eq!(launch(add_one, 1, 32, stream, &[address, 1]), ILLEGAL_ADDRESS);
    assert_eq!(cuEventQuery(event), ILLEGAL_ADDRESS);
    assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS);
    assert_eq!(
        got(|popped| unsafe { cuCtxPopCurrent_v2(popped) }),
        failed,
        "the stack still works"
    );
    assert_eq!(current(), other);
    ok(cuCtxSynchronize());
    ok(cuMemFree_v2(address));
}
