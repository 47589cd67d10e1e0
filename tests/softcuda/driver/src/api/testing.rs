//! What a driver does not have: failures on demand, the access log, counters. For tests, by `dlsym`.

use super::{CUdevice, CUresult, out, put_text, text};
use crate::{
    driver::{Driver, lock},
    fault,
    log::Stats,
    memory::Kind,
    status::{Outcome, Status},
};
use std::ffi::{c_char, c_int};

fn code(outcome: Outcome) -> CUresult {
    outcome.map_or_else(|status| status.0, |()| 0)
}

/// The `nth` call of `what` from now (1 is the next) returns `code`, once. `what` is a function's name,
/// or "execute": then the nth kernel to run fails while it runs. Codes that are sticky in CUDA (700,
/// 702, 710..719) stay with the current context. `nth` 0 takes orders for `what` back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softcuda_fail(what: *const c_char, nth: u64, code: c_int) -> CUresult {
    self::code(unsafe { text(what) }.map(|what| lock().injections.order(what, nth, code)))
}

/// The device is lost: from now on every call with one of its contexts returns 46, and no new one can be had.
#[unsafe(no_mangle)]
pub extern "C" fn softcuda_break(device: CUdevice) -> CUresult {
    let mut driver = lock();
    code(
        driver
            .contexts
            .device(device)
            .map(|device| driver.lose_device(device, Status::DEVICE_UNAVAILABLE)),
    )
}

/// From now on, and from nothing, calls that touch contexts, streams, events, memory or modules are logged.
#[unsafe(no_mangle)]
pub extern "C" fn softcuda_log_start() {
    lock().log.start();
}

/// The log since then, one line a call, cut to `capacity` bytes with its zero. `length`, if not null,
/// receives the length of the whole text, without the zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softcuda_log_text(
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> CUresult {
    unsafe { give_text(lock().log.text(), buffer, capacity, length) }
}

/// The last fault that a call of this thread ran into, in words, in the same manner: what stderr was told.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softcuda_fault_text(
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> CUresult {
    unsafe { give_text(&fault::last(), buffer, capacity, length) }
}

unsafe fn give_text(
    text: &str,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> CUresult {
    if let Ok(place) = unsafe { out(length) } {
        place.set(text.len());
    }
    if buffer.is_null() {
        return code(if capacity == 0 { Ok(()) } else { Err(Status::INVALID_VALUE) });
    }
    unsafe { put_text(text, buffer, capacity) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn softcuda_stats(stats: *mut Stats) -> CUresult {
    code(unsafe { out(stats) }.map(|place| place.set(lock().count())))
}

impl Driver {
    fn count(&self) -> Stats {
        let (pinned, device): (Vec<_>, Vec<_>) =
            self.heap.all_live().partition(|a| a.kind == Kind::Pinned);
        Stats {
            live_allocations: device.len() as u64,
            live_bytes: device.iter().map(|allocation| allocation.bytes as u64).sum(),
            pinned_live: pinned.len() as u64,
            contexts_retained: self.contexts.retained(),
            modules: self.modules.count(),
            events: self.events.len() as u64,
            streams: self.streams.values().filter(|stream| stream.created).count() as u64,
            ..self.stats
        }
    }
}
