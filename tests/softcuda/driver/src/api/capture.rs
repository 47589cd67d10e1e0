//! Stream capture, and the graphs that come of it.

use super::{CUgraph, CUresult, CUstream, out};
use crate::{
    capture::{Mode, exchange_mode},
    driver::call,
    status::Status,
};
use std::ffi::c_int;

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_int) -> CUresult {
    call("cuStreamBeginCapture_v2", |driver| {
        driver.log.note(format_args!("begin_capture stream={stream:#x}"));
        driver.begin_capture(stream, Mode::from_code(mode)?)
    })
}

/// A capture that was invalidated ends too, and gives null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph) -> CUresult {
    call("cuStreamEndCapture", |driver| {
        driver.log.note(format_args!("end_capture stream={stream:#x}"));
        let place = unsafe { out(graph)? };
        let ended = driver.end_capture(stream);
        place.set(ended.unwrap_or(0));
        ended.map(|_| ())
    })
}

/// 0 not capturing, 1 capturing, 2 capturing and invalidated. Asking disturbs nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(stream: CUstream, status: *mut c_int) -> CUresult {
    call("cuStreamIsCapturing", |driver| {
        let place = unsafe { out(status)? };
        let stream = driver.find_stream(stream)?;
        if driver.is_legacy_in_capture(stream) {
            return Err(Status::CAPTURE_IMPLICIT);
        }
        place.set(match driver.streams[&stream].capture {
            None => 0,
            Some(capture) if driver.captures.is_valid(capture) => 1,
            Some(_) => 2,
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut c_int) -> CUresult {
    call("cuThreadExchangeStreamCaptureMode", |driver| {
        if mode.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, so valid for a read and a write.
        let new = Mode::from_code(unsafe { mode.read() })?;
        driver.log.note(format_args!("exchange_capture_mode {new:?}"));
        unsafe { mode.write(exchange_mode(new) as c_int) };
        Ok(())
    })
}

/// Only to be counted: `nodes` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphGetNodes(
    graph: CUgraph,
    nodes: *mut usize,
    count: *mut usize,
) -> CUresult {
    call("cuGraphGetNodes", |driver| {
        let place = unsafe { out(count)? };
        if !nodes.is_null() {
            return Err(Status::NOT_SUPPORTED);
        }
        place.set(driver.captures.nodes(graph)? as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: CUgraph) -> CUresult {
    call("cuGraphDestroy", |driver| driver.captures.forget_graph(graph))
}
