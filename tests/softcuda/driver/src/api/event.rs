//! Events.

use super::{CUevent, CUresult, CUstream, out};
use crate::{
    driver::call,
    event::{Event, Recorded},
    status::Status,
};
use std::ffi::c_uint;

const BLOCKING_SYNC: c_uint = 1;
const DISABLE_TIMING: c_uint = 2;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut CUevent, flags: c_uint) -> CUresult {
    call("cuEventCreate", |driver| {
        let place = unsafe { out(event)? };
        if flags & !(BLOCKING_SYNC | DISABLE_TIMING) != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let context = driver.current()?;
        let event = driver.new_handle();
        let timed = flags & DISABLE_TIMING == 0;
        driver
            .events
            .insert(event, Event { context, timed, recorded: Recorded::Never, happened: None });
        driver.log.note(format_args!("create_event event={event:#x} ctx={context:#x}"));
        place.set(event);
        Ok(())
    })
}

/// Work that waits for the event still does.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: CUevent) -> CUresult {
    call("cuEventDestroy_v2", |driver| {
        driver.log.note(format_args!("destroy_event event={event:#x}"));
        driver.find_event(event)?;
        driver.events.remove(&event);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: CUevent, stream: CUstream) -> CUresult {
    call("cuEventRecord", |driver| {
        driver.log.note(format_args!("record_event event={event:#x} stream={stream:#x}"));
        driver.record_event(event, stream)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: CUevent) -> CUresult {
    call("cuEventQuery", |driver| {
        driver.log.note(format_args!("query_event event={event:#x}"));
        driver.refuse_unsafe_in_capture()?;
        driver.query_event(event)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: CUevent) -> CUresult {
    call("cuEventSynchronize", |driver| {
        driver.log.note(format_args!("sync_event event={event:#x}"));
        driver.refuse_unsafe_in_capture()?;
        driver.synchronise_event(event)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(
    milliseconds: *mut f32,
    start: CUevent,
    end: CUevent,
) -> CUresult {
    call("cuEventElapsedTime", |driver| {
        let place = unsafe { out(milliseconds)? };
        place.set(driver.milliseconds_between(start, end)?);
        Ok(())
    })
}
