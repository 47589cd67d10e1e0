//! The addresses of device memory: one stretch of address space that the host cannot touch, so that a
//! host that reads or writes device memory dies at that very instruction, as it would with a real
//! driver. What a call works on is opened for the time of that call. No address is given out twice.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    ptr::{null, null_mut},
    sync::OnceLock,
};

const PAGE: u64 = 4096;
const ALIGNMENT: u64 = 256;
/// Asked for first; a machine or a tool that will not give so much is asked for less.
const MOST: usize = 4 << 40;
const LEAST: usize = 1 << 30;

pub struct Arena {
    base: u64,
    /// Up to here addresses have been given out.
    used: u64,
    end: u64,
    /// Start and end of what can be touched now.
    opened: RefCell<BTreeMap<u64, u64>>,
}

/// Where the arena is, for the handler of segmentation faults.
static BOUNDS: OnceLock<(u64, u64)> = OnceLock::new();

impl Arena {
    pub fn reserve() -> Arena {
        let sizes = std::iter::successors(Some(MOST), |size| Some(size / 2))
            .take_while(|&size| size >= LEAST);
        let (base, size) =
            sizes.filter_map(|size| Some((map(size)?, size))).next().unwrap_or((0, 0));
        let end = base + size as u64;
        if BOUNDS.set((base, end)).is_ok() {
            explain_stray_accesses();
        }
        Arena { base, used: base, end, opened: RefCell::default() }
    }

    /// `None` when the addresses have run out.
    pub fn take(&mut self, bytes: usize) -> Option<u64> {
        let start = self.used.next_multiple_of(ALIGNMENT);
        self.used = start.checked_add(bytes as u64).filter(|&end| end <= self.end)?;
        Some(start)
    }

    /// Until `close` these bytes can be touched. Memory outside the arena always can.
    pub fn open(&self, start: u64, bytes: usize) {
        let end = start + bytes as u64;
        let mut opened = self.opened.borrow_mut();
        if (self.base..self.end).contains(&start)
            && opened.get(&start).is_none_or(|&known| known < end)
        {
            protect(start, end, libc::PROT_READ | libc::PROT_WRITE);
            opened.insert(start, end);
        }
    }

    pub fn close(&self) {
        for (start, end) in std::mem::take(&mut *self.opened.borrow_mut()) {
            protect(start, end, libc::PROT_NONE);
        }
    }

    /// Gives the pages behind these addresses back to the system; the addresses stay taken.
    pub fn discard(&self, start: u64, bytes: usize) {
        let (from, to) = (start.next_multiple_of(PAGE), (start + bytes as u64) / PAGE * PAGE);
        if from < to {
            // SAFETY: whole pages of one allocation, that nothing uses any more.
            unsafe {
                libc::madvise(from as *mut c_void, (to - from) as usize, libc::MADV_DONTNEED)
            };
        }
    }
}

/// Of all pages that the range has a part in.
fn protect(start: u64, end: u64, access: c_int) {
    let from = start / PAGE * PAGE;
    let length = (end.next_multiple_of(PAGE) - from) as usize;
    // SAFETY: within the arena, which only this library and its kernels touch.
    let code = unsafe { libc::mprotect(from as *mut c_void, length, access) };
    assert_eq!(code, 0, "the arena is mapped");
}

fn map(size: usize) -> Option<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: asks for fresh addresses.
    let base = unsafe { libc::mmap(null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
    (base != libc::MAP_FAILED).then_some(base as u64)
}

static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// From now on a segmentation fault in the arena is told on stderr before it takes its course.
fn explain_stray_accesses() {
    let (mut before, mut action) =
        (MaybeUninit::uninit(), MaybeUninit::<libc::sigaction>::zeroed());
    // SAFETY: a zeroed action is a valid one; the handler is safe to run in a signal.
    unsafe {
        (*action.as_mut_ptr()).sa_sigaction = on_fault as *const () as usize;
        (*action.as_mut_ptr()).sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGSEGV, action.as_ptr(), before.as_mut_ptr()) == 0 {
            let _ = BEFORE.set(before.assume_init());
        }
    }
}

/// Puts the former handler back and returns: the instruction faults again, and that one takes over.
extern "C" fn on_fault(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    const SENTENCE: &[u8] = b"softcuda: the host touches device memory\n";
    // SAFETY: the system passes valid information; `write` and `sigaction` may be called in a handler.
    unsafe {
        let address = (*info).si_addr() as u64;
        if BOUNDS.get().is_some_and(|&(base, end)| (base..end).contains(&address)) {
            libc::write(2, SENTENCE.as_ptr().cast(), SENTENCE.len());
        }
        libc::sigaction(libc::SIGSEGV, BEFORE.get().map_or(null(), |before| before), null_mut());
    }
}
