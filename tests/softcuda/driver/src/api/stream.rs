//! Streams.

use super::{CUcontext, CUevent, CUresult, CUstream, out};
use crate::{driver::call, status::Status, stream::is_default, timeline::Role};
use std::ffi::c_uint;

const NON_BLOCKING: c_uint = 1;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut CUstream, flags: c_uint) -> CUresult {
    call("cuStreamCreate", |driver| {
        let place = unsafe { out(stream)? };
        let role = match flags {
            0 => Role::Blocking,
            NON_BLOCKING => Role::Independent,
            _ => return Err(Status::INVALID_VALUE),
        };
        let context = driver.current()?;
        let stream = driver.open_stream(context, role);
        driver.streams.get_mut(&stream).expect("just made").created = true;
        driver.log.note(format_args!("create_stream stream={stream:#x} ctx={context:#x}"));
        place.set(stream);
        Ok(())
    })
}

/// Returns at once; what is queued still runs.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: CUstream) -> CUresult {
    call("cuStreamDestroy_v2", |driver| {
        driver.log.note(format_args!("destroy_stream stream={stream:#x}"));
        if is_default(stream) {
            return Err(Status::INVALID_HANDLE);
        }
        let stream = driver.find_stream(stream)?;
        let ended = driver.streams.remove(&stream).expect("found above");
        if let Some(capture) = ended.capture {
            driver.captures.invalidate(capture);
        }
        driver.timeline.retire(ended.lane);
        if driver.settings.reuse {
            driver.stream_handles.push(stream);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: CUstream) -> CUresult {
    call("cuStreamSynchronize", |driver| {
        driver.log.note(format_args!("sync_stream stream={stream:#x}"));
        let stream = driver.find_stream(stream)?;
        driver.refuse_wait_for_capture(stream)?;
        driver.refuse_unsafe_in_capture()?;
        driver.synchronise_stream(stream)
    })
}

/// One piece of work runs if some is left, so that a loop that polls ends.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(stream: CUstream) -> CUresult {
    call("cuStreamQuery", |driver| {
        driver.log.note(format_args!("query_stream stream={stream:#x}"));
        let handle = stream;
        let stream = driver.find_stream(handle)?;
        driver.refuse_wait_for_capture(stream)?;
        driver.refuse_unsafe_in_capture()?;
        let extent = driver.timeline.extent(driver.streams[&stream].lane);
        if driver.timeline.is_done(&extent) {
            driver.timeline.host_saw(&extent);
            return Ok(());
        }
        driver.run_one_towards(&extent);
        driver.find_stream(handle)?;
        Err(Status::NOT_READY)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: CUstream, event: CUevent, _flags: c_uint) -> CUresult {
    call("cuStreamWaitEvent", |driver| {
        driver.log.note(format_args!("wait_event event={event:#x} stream={stream:#x}"));
        driver.stream_wait_event(stream, event)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCtx(stream: CUstream, context: *mut CUcontext) -> CUresult {
    call("cuStreamGetCtx", |driver| {
        let place = unsafe { out(context)? };
        let stream = driver.find_stream(stream)?;
        place.set(driver.streams[&stream].context);
        Ok(())
    })
}
