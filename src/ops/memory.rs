//! Where kept tensors live: the engine's allocator or the library's own, with exact accounting and
//! a hard budget. Backend code asks here and nowhere else.
use crate::error::{Result, bail};
use std::alloc::Layout;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

/// Every kept tensor starts on such a boundary.
pub const ALIGNMENT: usize = 256;

pub type AllocFn = unsafe extern "C-unwind" fn(*mut c_void, usize, *mut c_void) -> *mut c_void;
pub type FreeFn = unsafe extern "C-unwind" fn(*mut c_void, *mut c_void, usize, *mut c_void);

/// The engine's allocator.
#[derive(Clone, Copy, Debug)]
pub struct Allocator {
    pub alloc: AllocFn,
    pub free: FreeFn,
    pub user: *mut c_void,
}

// `user` is only handed back to the engine, which allows its allocator to be called from whichever
// thread uses the cache.
unsafe impl Send for Allocator {}
unsafe impl Sync for Allocator {}

#[derive(Debug)]
pub struct Memory {
    allocator: Option<Allocator>,
    /// Bytes; `u64::MAX` is no limit.
    budget: u64,
    held: AtomicU64,
    peak: AtomicU64,
    allocations: AtomicU64,
    /// What the allocator is told to order its work on.
    stream: AtomicPtr<c_void>,
}

impl Memory {
    /// A budget of 0 is no limit.
    pub fn new(allocator: Option<Allocator>, budget: u64) -> Arc<Self> {
        let budget = if budget == 0 { u64::MAX } else { budget };
        Arc::new(Self {
            allocator,
            budget,
            held: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            allocations: AtomicU64::new(0),
            stream: AtomicPtr::default(),
        })
    }

    pub fn set_stream(&self, stream: *mut c_void) {
        self.stream.store(stream, Relaxed);
    }

    pub fn budget(&self) -> u64 {
        self.budget
    }

    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    pub fn allocations(&self) -> u64 {
        self.allocations.load(Relaxed)
    }

    /// A block of `bytes`, freed on drop. Nothing is asked for if there are none.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        let mut block = Block { address: std::ptr::null_mut(), bytes: 0, memory: self.clone() };
        if bytes == 0 {
            return Ok(block);
        }
        let held = self.held() + bytes as u64;
        if held > self.budget {
            bail!(Memory, "memory_budget is {} bytes, {held} are needed", self.budget);
        }
        block.address = match self.allocator {
            // The engine promised an allocator that takes these arguments.
            Some(a) => unsafe { (a.alloc)(a.user, bytes, self.stream.load(Relaxed)).cast() },
            None => unsafe { std::alloc::alloc(layout(bytes)) },
        };
        if block.address.is_null() {
            let held = self.held();
            bail!(Memory, "the allocator gave nothing for {bytes} bytes; {held} are held");
        }
        block.bytes = bytes;
        self.held.store(held, Relaxed);
        self.peak.fetch_max(held, Relaxed);
        self.allocations.fetch_add(1, Relaxed);
        if !block.address.addr().is_multiple_of(ALIGNMENT) {
            bail!(
                Memory,
                "mem_alloc gave {:p}, which is not aligned to {ALIGNMENT} bytes",
                block.address
            );
        }
        Ok(block)
    }
}

/// Memory of one kept tensor.
#[derive(Debug)]
pub struct Block {
    address: *mut u8,
    bytes: usize,
    memory: Arc<Memory>,
}

// The block owns its memory.
unsafe impl Send for Block {}

impl Block {
    pub fn address(&self) -> *mut u8 {
        self.address
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let memory = &self.memory;
        memory.held.fetch_sub(self.bytes as u64, Relaxed);
        // Address and size are those of `take`.
        match memory.allocator {
            Some(a) => unsafe {
                (a.free)(a.user, self.address.cast(), self.bytes, memory.stream.load(Relaxed));
            },
            None => unsafe { std::alloc::dealloc(self.address, layout(self.bytes)) },
        }
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, ALIGNMENT).expect("a tensor's bytes fit an address")
}
