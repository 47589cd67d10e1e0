//! Modules, functions, launches.

mod support;

use softcuda::*;
use std::{
    ffi::{CString, c_int, c_void},
    ptr::null_mut,
};
use support::*;

fn attribute(function: usize, which: c_int) -> c_int {
    got(|value| unsafe { cuFuncGetAttribute(value, which, function) })
}

#[test]
fn a_kernel_computes() {
    context();
    let (stream, address) = (stream(), memory(4 * 1000));
    ok(set(address, 41, 1000, stream));
    ok(launch(kernel(kernels::ADD_ONE, "add_one"), 8, 128, stream, &[address, 999]));
    ok(cuStreamSynchronize(stream));
    let mut expected = [42; 1000];
    expected[999] = 41;
    assert_eq!(read(address, 1000).unwrap(), expected);
}

#[test]
fn parameters_are_copied_at_the_launch() {
    context();
    let (stream, address) = (stream(), memory(8));
    ok(set(address, 0, 2, stream));
    let mut params = (address, 1u32);
    let mut places: [*mut c_void; 2] = [(&raw mut params.0).cast(), (&raw mut params.1).cast()];
    let add_one = kernel(kernels::ADD_ONE, "add_one");
    ok(unsafe {
        cuLaunchKernel(add_one, 1, 1, 1, 32, 1, 1, 0, stream, places.as_mut_ptr(), null_mut())
    });
    params = (0, 9);
    std::hint::black_box(&params);
    ok(cuStreamSynchronize(stream));
    assert_eq!(read(address, 2).unwrap(), [1, 0]);
}

#[test]
fn parameters_may_come_packed() {
    context();
    let address = memory(4);
    ok(cuMemsetD32_v2(address, 0, 1));
    let mut packed = [address, 1];
    let mut size = 12usize;
    let named = |name: usize| name as *mut c_void;
    let (buffer, size) = (packed.as_mut_ptr().cast(), (&raw mut size).cast());
    let mut extra = [named(1), buffer, named(2), size, named(0)];
    let add_one = kernel(kernels::ADD_ONE, "add_one");
    ok(unsafe { cuLaunchKernel(add_one, 1, 1, 1, 32, 1, 1, 0, 0, null_mut(), extra.as_mut_ptr()) });
    assert_eq!(read(address, 1).unwrap(), [1]);
}

#[test]
fn a_launch_that_does_not_fit_is_refused() {
    context();
    let module = load(kernels::SUM).unwrap();
    let (sum, nothing) = (function(module, "sum"), kernel(kernels::ADD_ONE, "nothing"));
    let shaped = |function, grid: [u32; 3], block: [u32; 3], shared| unsafe {
        let [[gx, gy, gz], [bx, by, bz]] = [grid, block];
        cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, 0, null_mut(), null_mut())
    };
    ok(shaped(nothing, [2, 2, 2], [8, 4, 2], 48 << 10));
    assert_eq!(shaped(nothing, [0, 1, 1], [32, 1, 1], 0), INVALID_VALUE);
    assert_eq!(shaped(nothing, [1, 65536, 1], [32, 1, 1], 0), INVALID_VALUE);
    assert_eq!(shaped(nothing, [1, 1, 1], [0, 1, 1], 0), INVALID_VALUE);
    assert_eq!(shaped(nothing, [1, 1, 1], [1025, 1, 1], 0), INVALID_VALUE);
    assert_eq!(shaped(nothing, [1, 1, 1], [1, 1, 65], 0), INVALID_VALUE);
    assert_eq!(shaped(nothing, [1, 1, 1], [32, 1, 1], (48 << 10) + 1), INVALID_VALUE);
    assert_eq!(launch(sum, 1, 256, 0, &[0; 5]), 701, "more threads than .maxntid");
    assert_eq!(shaped(sum, [1, 1, 1], [128, 1, 1], 0), INVALID_VALUE, "no parameters");
    assert_eq!(launch(sum + 1, 1, 128, 0, &[0; 5]), INVALID_HANDLE);
}

#[test]
fn more_shared_memory_is_to_be_asked_for() {
    context();
    let nothing = kernel(kernels::ADD_ONE, "nothing");
    let with = |shared| unsafe {
        cuLaunchKernel(nothing, 1, 1, 1, 32, 1, 1, shared, 0, null_mut(), null_mut())
    };
    assert_eq!(with(100 << 10), INVALID_VALUE);
    ok(cuFuncSetAttribute(nothing, 8, 100 << 10));
    ok(with(100 << 10));
    assert_eq!(cuFuncSetAttribute(nothing, 8, 1 << 20), INVALID_VALUE);
    assert_eq!(cuFuncSetAttribute(nothing, 0, 1), INVALID_VALUE);
}

#[test]
fn a_function_has_attributes() {
    context();
    let sum = kernel(kernels::SUM, "sum");
    assert_eq!(attribute(sum, 0), 128, "threads");
    assert_eq!(attribute(sum, 1), 36, "static shared bytes");
    assert_eq!(attribute(sum, 5), 63, "PTX version");
    let mut value = 0;
    assert_eq!(unsafe { cuFuncGetAttribute(&mut value, 77, sum) }, INVALID_VALUE);
    assert_eq!(unsafe { cuFuncGetAttribute(&mut value, 0, 5) }, INVALID_HANDLE);
}

#[test]
fn functions_are_found_by_name_and_go_with_their_module() {
    context();
    let module = load(kernels::ADD_ONE).unwrap();
    let add_one = function(module, "add_one");
    assert_eq!(function(module, "add_one"), add_one);
    let mut place = 0;
    assert_eq!(unsafe { cuModuleGetFunction(&mut place, module, c"add_two".as_ptr()) }, NOT_FOUND);
    ok(cuModuleUnload(module));
    assert_eq!(
        unsafe { cuModuleGetFunction(&mut place, module, c"add_one".as_ptr()) },
        INVALID_HANDLE
    );
    assert_eq!(launch(add_one, 1, 32, 0, &[0, 0]), INVALID_HANDLE);
    assert_eq!(cuModuleUnload(module), INVALID_HANDLE);
}

#[test]
fn a_kernel_runs_only_on_streams_of_its_modules_context() {
    context();
    let nothing = kernel(kernels::ADD_ONE, "nothing");
    context();
    assert_eq!(launch(nothing, 1, 32, stream(), &[]), INVALID_HANDLE);
}

#[test]
fn what_is_not_ptx_for_this_device_and_driver_is_refused() {
    context();
    assert_eq!(load("\x7fELF"), Err(200));
    assert_eq!(
        load(&kernels::changed(kernels::ADD_ONE, "ld.global.u32", "ld.nowhere.u32")),
        Err(218)
    );
    assert_eq!(
        load(&kernels::changed(kernels::ADD_ONE, "sm_75", "sm_90")),
        Err(218),
        "the device is an sm_80"
    );
    assert_eq!(
        load(&kernels::changed(kernels::ADD_ONE, "sm_75", "sm_80").replace("6.3", "8.4"))
            .map(|_| ()),
        Ok(())
    );
    assert_eq!(
        load(&kernels::changed(kernels::ADD_ONE, "6.3", "8.5")),
        Err(222),
        "the driver is a 12.4"
    );
}

#[test]
fn the_assemblers_complaint_comes_in_the_error_log() {
    context();
    let ptx = kernels::changed(kernels::ADD_ONE, "add.s32 %r5", "frob.s32 %r5");
    let line = 1 + ptx.lines().position(|line| line.contains("frob")).unwrap();
    let text = CString::new(ptx).unwrap();
    let mut complaint = [0u8; 200];
    let options = [5, 6]; // CU_JIT_ERROR_LOG_BUFFER and its size
    let mut values: [*mut c_void; 2] =
        [complaint.as_mut_ptr().cast(), complaint.len() as *mut c_void];
    let mut module = 0;
    let code = unsafe {
        cuModuleLoadDataEx(
            &mut module,
            text.as_ptr().cast(),
            2,
            options.as_ptr(),
            values.as_mut_ptr(),
        )
    };
    assert_eq!(code, 218);
    let complaint = std::str::from_utf8(&complaint[..values[1] as usize - 1]).unwrap();
    assert!(
        complaint.contains("frob") && complaint.contains(&format!("line {line}")),
        "{complaint:?}"
    );
}
