//! Primary contexts, created contexts, and the calling thread's current one.

use super::{CUcontext, CUdevice, CUresult, out};
use crate::{
    context,
    driver::call,
    status::{Outcome, Status},
};
use std::ffi::{c_int, c_uint};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    device: CUdevice,
    flags: *mut c_uint,
    active: *mut c_int,
) -> CUresult {
    call("cuDevicePrimaryCtxGetState", |driver| {
        let (flags, active) = unsafe { (out(flags)?, out(active)?) };
        let context = driver.contexts.primary(driver.contexts.device(device)?);
        flags.set(context.map_or(0, |context| context.flags));
        active.set(context.is_some().into());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(
    context: *mut CUcontext,
    device: CUdevice,
) -> CUresult {
    call("cuDevicePrimaryCtxRetain", |driver| {
        let place = unsafe { out(context)? };
        let device = driver.contexts.device(device)?;
        let context = driver.retain_primary(device)?;
        driver.log.note(format_args!("retain_primary ctx={context:#x} device={device}"));
        place.set(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) -> CUresult {
    call("cuDevicePrimaryCtxRelease_v2", |driver| {
        let device = driver.contexts.device(device)?;
        driver.log.note(format_args!("release_primary device={device}"));
        driver.release_primary(device)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v2(
    context: *mut CUcontext,
    flags: c_uint,
    device: CUdevice,
) -> CUresult {
    call("cuCtxCreate_v2", |driver| {
        let place = unsafe { out(context)? };
        let device = driver.contexts.device(device)?;
        let created = driver.create_context(device, flags)?;
        driver.log.note(format_args!("create_ctx ctx={created:#x} device={device}"));
        context::push(created);
        place.set(created);
        Ok(())
    })
}

/// A primary context cannot be destroyed, only released.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxDestroy_v2(context: CUcontext) -> CUresult {
    call("cuCtxDestroy_v2", |driver| {
        driver.contexts.existing(context)?;
        if driver.is_primary(context) {
            return Err(Status::INVALID_CONTEXT);
        }
        driver.log.note(format_args!("destroy_ctx ctx={context:#x}"));
        driver.end_context(context);
        if context::current() == Some(context) {
            context::pop();
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut CUcontext) -> CUresult {
    call("cuCtxGetCurrent", |_| {
        unsafe { out(context)? }.set(context::current().unwrap_or(0));
        Ok(())
    })
}

/// Replaces the top of the thread's stack; null takes it away.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: CUcontext) -> CUresult {
    call("cuCtxSetCurrent", |driver| {
        driver.log.note(format_args!("set_current ctx={context:#x}"));
        if context != 0 {
            driver.contexts.existing(context)?;
        }
        context::pop();
        if context != 0 {
            context::push(context);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPushCurrent_v2(context: CUcontext) -> CUresult {
    call("cuCtxPushCurrent_v2", |driver| {
        driver.log.note(format_args!("push ctx={context:#x}"));
        driver.contexts.existing(context)?;
        context::push(context);
        Ok(())
    })
}

/// The old context may be asked for or not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut CUcontext) -> CUresult {
    call("cuCtxPopCurrent_v2", |driver| {
        let popped = context::pop().ok_or(Status::INVALID_CONTEXT)?;
        driver.log.note(format_args!("pop ctx={popped:#x}"));
        if let Ok(place) = unsafe { out(context) } {
            place.set(popped);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(device: *mut CUdevice) -> CUresult {
    call("cuCtxGetDevice", |driver| {
        let place = unsafe { out(device)? };
        let current = context::current().ok_or(Status::INVALID_CONTEXT)?;
        place.set(driver.contexts.existing(current)?.device as CUdevice);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetId(context: CUcontext, id: *mut u64) -> CUresult {
    call("cuCtxGetId", |driver| {
        let place = unsafe { out(id)? };
        let context =
            if context == 0 { context::current().ok_or(Status::INVALID_CONTEXT)? } else { context };
        place.set(driver.contexts.existing(context)?.id);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> CUresult {
    call("cuCtxSynchronize", |driver| -> Outcome {
        let current = driver.current()?;
        driver.log.note(format_args!("sync_ctx ctx={current:#x}"));
        driver.refuse_context_wait_in_capture(current)?;
        driver.refuse_unsafe_in_capture()?;
        let all = driver.timeline.all_of(current);
        driver.synchronise(current, &all)
    })
}
