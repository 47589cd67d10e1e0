//! What the environment makes of the driver. It is read once in a process, so each claim is tested in
//! a process of its own: this binary again, told to run that one test.

mod support;

use softcuda::*;
use std::{ffi::c_int, process::Command};
use support::*;

/// Runs `claim` in a new process with these settings.
fn with(test: &str, settings: &[(&str, &str)], claim: impl FnOnce()) {
    const INNER: &str = "SOFTCUDA_TEST_INNER";
    if std::env::var_os(INNER).is_some() {
        return claim();
    }
    let mut inner = Command::new(std::env::current_exe().unwrap());
    let output = inner
        .args(["--exact", test, "--nocapture"])
        .env(INNER, "")
        .envs(settings.iter().copied())
        .output();
    let output = output.unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn no_device() {
    with("no_device", &[("SOFTCUDA_DEVICES", "0")], || {
        assert_eq!(cuInit(0), 100);
        assert_eq!(unsafe { cuDeviceGetCount(&mut 0) }, 3, "not initialised");
    });
}

#[test]
fn one_device() {
    with("one_device", &[("SOFTCUDA_DEVICES", "1")], || {
        ok(cuInit(0));
        assert_eq!(got(|count| unsafe { cuDeviceGetCount(count) }), 1);
    });
}

#[test]
fn stub_library() {
    with("stub_library", &[("SOFTCUDA_STUB", "1")], || {
        assert_eq!(cuInit(0), 34);
        assert_eq!(unsafe { cuDriverGetVersion(&mut 0) }, 34);
    });
}

#[test]
fn nothing_works_before_initialisation() {
    with("nothing_works_before_initialisation", &[], || {
        assert_eq!(got(|version| unsafe { cuDriverGetVersion(version) }), 12040);
        let mut context = 0;
        assert_eq!(unsafe { cuCtxGetCurrent(&mut context) }, 3);
        assert_eq!(cuInit(1), INVALID_VALUE);
        ok(cuInit(0));
        ok(unsafe { cuCtxGetCurrent(&mut context) });
    });
}

#[test]
fn old_driver() {
    with("old_driver", &[("SOFTCUDA_DRIVER", "11000")], || {
        context();
        assert_eq!(unsafe { cuMemAllocAsync(&mut 0, 4, 0) }, NOT_FOUND);
        assert_eq!(unsafe { cuCtxGetId(0, &mut 0) }, NOT_FOUND);
        assert_eq!(got(|value: *mut c_int| unsafe { cuDeviceGetAttribute(value, 115, 0) }), 0);
        assert_eq!(
            load(&kernels::ADD_ONE.replace("6.3", "7.1")),
            Err(222),
            "CUDA 11.0 knows PTX 7.0"
        );
        load(&kernels::ADD_ONE.replace("6.3", "7.0")).unwrap();
    });
}

#[test]
fn device_without_pools() {
    with("device_without_pools", &[("SOFTCUDA_NO_POOLS", "1")], || {
        context();
        assert_eq!(got(|value: *mut c_int| unsafe { cuDeviceGetAttribute(value, 115, 0) }), 0);
        assert_eq!(unsafe { cuMemAllocAsync(&mut 0, 4, 0) }, 801);
        memory(4);
    });
}

#[test]
fn older_and_newer_devices() {
    with("older_and_newer_devices", &[("SOFTCUDA_CC", "7.5"), ("SOFTCUDA_QUIET", "1")], || {
        context();
        load(kernels::ADD_ONE).unwrap();
        assert_eq!(
            load(&kernels::ADD_ONE.replace("sm_75", "sm_80").replace("6.3", "7.0")),
            Err(218)
        );
        assert_eq!(got(|value: *mut c_int| unsafe { cuDeviceGetAttribute(value, 76, 0) }), 5);
    });
}

#[test]
fn little_memory() {
    with("little_memory", &[("SOFTCUDA_MEMORY", "1000")], || {
        context();
        let address = memory(600);
        assert_eq!(unsafe { cuMemAlloc_v2(&mut 0, 600) }, OUT_OF_MEMORY);
        ok(cuMemFree_v2(address));
        memory(600);
        context_on(1);
        memory(600);
    });
}

#[test]
fn handles_of_streams_that_are_gone() {
    with("handles_of_streams_that_are_gone", &[("SOFTCUDA_REUSE", "1")], || {
        context();
        let (first, other) = (stream(), stream());
        ok(cuStreamDestroy_v2(first));
        assert_eq!(cuStreamSynchronize(first), INVALID_HANDLE);
        assert_eq!(stream(), first);
        assert_ne!(stream(), other);
    });
}

#[test]
fn failures_from_the_start() {
    with(
        "failures_from_the_start",
        &[("SOFTCUDA_FAIL", "cuMemAlloc_v2:2:2, cuStreamCreate:1:999")],
        || {
            context();
            memory(4);
            assert_eq!(unsafe { cuMemAlloc_v2(&mut 0, 4) }, OUT_OF_MEMORY);
            assert_eq!(unsafe { cuStreamCreate(&mut 0, 0) }, 999);
            memory(4);
            stream();
        },
    );
}

#[test]
fn eager_streams() {
    with("eager_streams", &[("SOFTCUDA_EAGER", "1")], || {
        context();
        let (one, address, host) = (stream(), memory(4), pinned(1));
        ok(set(address, 3, 1, one));
        ok(unsafe { cuMemcpyDtoHAsync_v2(host.cast(), address, 4, one) });
        assert_eq!(unsafe { host.read_volatile() }, 3, "at once");
        ok(cuStreamQuery(one));
        let other = stream();
        ok(set(address, 4, 1, one));
        assert_eq!(set(address, 5, 1, other), ILLEGAL_ADDRESS, "a race is one though it went well");
    });
}

/// When a race comes to light depends on the order; that it does, not.
#[test]
fn seeds_give_other_orders_and_the_same_verdict() {
    let test = "seeds_give_other_orders_and_the_same_verdict";
    for seed in ["0", "1", "2", "3", "4", "5", "6", "7"] {
        with(test, &[("SOFTCUDA_SEED", seed), ("SOFTCUDA_QUIET", "1")], || {
            let lazy: Vec<bool> = (0..20).map(|_| writer_runs_only_when_waited_for()).collect();
            let laziest = std::env::var("SOFTCUDA_SEED").unwrap() == "0";
            assert_eq!(lazy.iter().all(|&lazy| lazy), laziest, "{lazy:?}");
        });
    }
}

/// A writer and a reader with no order between them: whichever runs second finds the race.
fn writer_runs_only_when_waited_for() -> bool {
    context();
    let (writer, reader, address, host) = (stream(), stream(), memory(4), pinned(1));
    let write = set(address, 3, 1, writer);
    let read = unsafe { cuMemcpyDtoHAsync_v2(host.cast(), address, 4, reader) };
    let codes = [write, read, cuStreamSynchronize(reader), cuStreamSynchronize(writer)];
    assert!(codes.contains(&ILLEGAL_ADDRESS), "{codes:?}");
    codes == [0, 0, 0, ILLEGAL_ADDRESS]
}

/// Not a knob, but a death, and so in need of a process of its own.
#[test]
fn the_host_cannot_touch_device_memory() {
    const TOUCH: &str = "SOFTCUDA_TEST_TOUCH";
    if std::env::var_os(TOUCH).is_some() {
        context();
        let address = memory(4);
        println!("read {}", unsafe { (address as *const u32).read_volatile() });
        return;
    }
    let mut inner = Command::new(std::env::current_exe().unwrap());
    inner.args(["--exact", "the_host_cannot_touch_device_memory", "--nocapture"]).env(TOUCH, "");
    let output = inner.output().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(11), "SIGSEGV");
    assert!(String::from_utf8_lossy(&output.stderr).contains("the host touches device memory"));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("read"));
}

#[test]
fn a_right_program_computes_the_same_in_every_order() {
    let test = "a_right_program_computes_the_same_in_every_order";
    for order in [
        ("SOFTCUDA_EAGER", "1"),
        ("SOFTCUDA_SEED", "1"),
        ("SOFTCUDA_SEED", "2"),
        ("SOFTCUDA_SEED", "3"),
    ] {
        with(test, &[order], || {
            context();
            let (streams, add_one) =
                ([stream(), stream(), stream()], kernel(kernels::ADD_ONE, "add_one"));
            let address = memory_on(streams[0], 400);
            ok(set(address, 0, 100, streams[0]));
            for i in 0..60 {
                ok(launch(add_one, 1, 128, streams[i % 3], &[address, 100]));
                ok(cuStreamWaitEvent(streams[(i + 1) % 3], recorded(streams[i % 3]), 0));
            }
            let host = pinned(100);
            ok(unsafe { cuMemcpyDtoHAsync_v2(host.cast(), address, 400, streams[0]) });
            ok(cuMemFreeAsync(address, streams[0]));
            ok(cuStreamSynchronize(streams[0]));
            assert_eq!(unsafe { std::slice::from_raw_parts(host, 100) }, [60; 100]);
        });
    }
}
