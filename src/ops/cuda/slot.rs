//! Where a measurement's sums arrive: pinned memory that the device writes and the host reads, and
//! what the kernels need on the device to put them together. A slot serves one measurement at a time.
use super::context::Context;
use crate::error::{Error, Result};
use crate::rule::Change;
use cudarc::driver::sys::{
    CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_PORTABLE, CUdeviceptr, CUevent, CUstream,
};
use std::ffi::c_void;
use std::ptr::null_mut;

/// Blocks of a measuring kernel at most; more would not read faster.
pub const MAX_GRID: u32 = 1024;

/// Launches of one measurement: a sum over all branches of a pass and all their tensors, none of
/// which shares a launch with another.
pub const MAX_LAUNCHES: usize = 32;

/// Doubles that ranks add up.
pub const N_VOTES: usize = 6;

/// Slots made at a time.
const PAGE: usize = 16;

/// Pinned, of one slot: sums of each launch, and what the ranks agreed on.
const HOST_BYTES: usize = (3 * MAX_LAUNCHES + N_VOTES).next_multiple_of(32) * size_of::<f64>();
/// On the device: partial sums of each block, the ranks' sums, and the counter of blocks done.
const PARTIALS_BYTES: usize = 3 * MAX_GRID as usize * size_of::<f64>();
const VOTES_AT: usize = PARTIALS_BYTES;
const COUNTER_AT: usize = VOTES_AT + 64;
const DEVICE_BYTES: usize = PARTIALS_BYTES + 256;

/// What the header says that a context holds.
const _: () = assert!(PAGE * (HOST_BYTES + DEVICE_BYTES) < 1 << 19);

pub struct Slot {
    host: *mut f64,
    host_on_device: CUdeviceptr,
    device: CUdeviceptr,
    /// After the last work that was given this slot.
    pub event: CUevent,
    /// Nobody waited for that work.
    pub unread: bool,
}

// The driver's handles and pinned memory may be used by any thread.
unsafe impl Send for Slot {}

impl Slot {
    /// Where the sums of a launch go, as the device sees it.
    pub fn result(&self, launch: usize) -> CUdeviceptr {
        assert!(launch < MAX_LAUNCHES);
        self.host_on_device + (3 * launch * size_of::<f64>()) as u64
    }

    pub fn partials(&self) -> CUdeviceptr {
        self.device
    }

    pub fn votes(&self) -> CUdeviceptr {
        self.device + VOTES_AT as u64
    }

    pub fn counter(&self) -> CUdeviceptr {
        self.device + COUNTER_AT as u64
    }

    /// The sums of some launches, added in order. The work is done.
    pub fn sums(&self, launches: usize) -> [f64; 3] {
        let at = |k: usize| unsafe { self.host.add(k).read_volatile() };
        (0..launches)
            .fold([0.0; 3], |sum, launch| std::array::from_fn(|k| sum[k] + at(3 * launch + k)))
    }

    /// Sums from the host, in place of those of a launch. Nothing else is queued for this slot.
    pub fn put_sums(&self, change: Change) {
        for (k, sum) in [change.difference, change.value, change.reference].into_iter().enumerate()
        {
            unsafe { self.host.add(k).write_volatile(sum) };
        }
    }

    /// A vote against the skip and sums of 0, without a kernel.
    pub fn put_veto(&self, context: &Context, stream: CUstream) -> Result<()> {
        const WORDS: usize = N_VOTES * size_of::<f64>() / size_of::<u32>();
        /// The upper half of 1.0, in the last word: that of the vote.
        const ONE: u32 = (1f64.to_bits() >> 32) as u32;
        let last = self.votes() + ((WORDS - 1) * size_of::<u32>()) as u64;
        for (at, word, n) in [(self.votes(), 0, WORDS), (last, ONE, 1)] {
            let code = unsafe { (context.driver.memset_d32_async)(at, word, n, stream) };
            context.driver.check("cuMemsetD32Async", code)?;
        }
        Ok(())
    }

    /// Queues the way to the host of what the ranks agreed on.
    pub fn fetch_votes(&self, context: &Context, stream: CUstream) -> Result<()> {
        let (to, bytes) = (self.host.wrapping_add(3 * MAX_LAUNCHES), N_VOTES * size_of::<f64>());
        let (driver, from) = (context.driver, self.votes());
        let code = unsafe { (driver.memcpy_dtoh_async)(to.cast(), from, bytes, stream) };
        driver.check("cuMemcpyDtoHAsync", code)
    }

    /// What the ranks agreed on. The work is done.
    pub fn agreed(&self) -> [f64; N_VOTES] {
        std::array::from_fn(|k| unsafe { self.host.add(3 * MAX_LAUNCHES + k).read_volatile() })
    }
}

/// Some slots, which share two allocations.
pub struct Page;

impl Page {
    /// The context is entered.
    pub fn slots(context: &Context) -> Result<Vec<Slot>> {
        let driver = context.driver;
        let flags = CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE;
        let (mut host, mut device) = (null_mut::<c_void>(), 0);
        let code = unsafe { (driver.mem_host_alloc)(&mut host, PAGE * HOST_BYTES, flags) };
        driver.check("cuMemHostAlloc", code)?;
        let code = unsafe { (driver.mem_alloc)(&mut device, PAGE * DEVICE_BYTES) };
        let allocated = driver.check("cuMemAlloc", code);
        let slots = allocated.and_then(|()| Self::cut(context, host, device));
        if slots.is_err() {
            // No slot is left that would name them.
            unsafe {
                (driver.mem_free_host)(host);
                if device != 0 {
                    (driver.mem_free)(device);
                }
            }
        }
        slots
    }

    fn cut(context: &Context, host: *mut c_void, device: CUdeviceptr) -> Result<Vec<Slot>> {
        let (driver, mut seen) = (context.driver, 0);
        let code = unsafe { (driver.mem_host_get_device_pointer)(&mut seen, host, 0) };
        driver.check("cuMemHostGetDevicePointer", code)?;
        // The counters start at 0; whoever uses a slot first waits for that.
        let stream = context.own_stream()?;
        let words = PAGE * DEVICE_BYTES / 4;
        let code = unsafe { (driver.memset_d32_async)(device, 0, words, stream) };
        driver.check("cuMemsetD32Async", code)?;
        let slot = |k: usize| {
            let event = context.take_event()?;
            context.record(event, stream)?;
            Ok::<_, Error>(Slot {
                host: host.cast::<u8>().wrapping_add(k * HOST_BYTES).cast(),
                host_on_device: seen + (k * HOST_BYTES) as u64,
                device: device + (k * DEVICE_BYTES) as u64,
                event,
                unread: true,
            })
        };
        (0..PAGE).map(slot).collect()
    }
}
