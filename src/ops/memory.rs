//! Where kept tensors live: the engine's allocator, a device or the heap, with exact accounting and
//! a hard budget. Backend code asks here and nowhere else.
use super::{Buffer, Shape, View};
use crate::error::{Result, bail};
use once_cell::sync::OnceCell;
use std::alloc::Layout;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

/// Every kept tensor starts on such a boundary.
pub const ALIGNMENT: usize = 256;

/// A large page of the usual processors. Tensors of the heap that fill one start on one and ask for
/// them: fewer addresses are to be translated, and a plain loop over such memory was measured to take
/// about three quarters of its time.
const LARGE_PAGE: usize = 2 << 20;

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

/// Memory that is not the host's.
pub trait Device: Send + Sync {
    /// Memory that work queued on `stream` from here on may use.
    fn alloc(&self, bytes: usize, stream: *mut c_void) -> Result<*mut u8>;

    /// Takes it back, once the work queued on `stream` so far is done.
    ///
    /// # Safety
    /// `address` came from [`alloc`](Self::alloc), and nothing uses it afterwards.
    unsafe fn free(&self, address: *mut u8, stream: *mut c_void);

    /// Runs `f` as the device's user.
    fn within(&self, f: &mut dyn FnMut());
}

pub struct Memory {
    allocator: Option<Allocator>,
    /// Where tensors live that are not the host's, once it is known.
    device: OnceCell<Arc<dyn Device>>,
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
            device: OnceCell::new(),
            budget,
            held: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            allocations: AtomicU64::new(0),
            stream: AtomicPtr::default(),
        })
    }

    /// For all its life.
    pub fn set_device(&self, device: Arc<dyn Device>) {
        let _ = self.device.set(device);
    }

    pub fn set_stream(&self, stream: *mut c_void) {
        self.stream.store(stream, Relaxed);
    }

    pub fn stream(&self) -> *mut c_void {
        self.stream.load(Relaxed)
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

    /// A block of `bytes` where tensors live, freed on drop. Nothing is asked for if there are none.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        let source = match (self.allocator, self.device.get()) {
            (Some(allocator), _) => Source::Engine(allocator),
            (None, Some(device)) => Source::Device(device.clone()),
            (None, None) => Source::Heap,
        };
        self.take_from(source, bytes)
    }

    /// The same, in the host's own memory.
    pub fn take_on_host(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        self.take_from(Source::Heap, bytes)
    }

    fn take_from(self: &Arc<Self>, source: Source, bytes: usize) -> Result<Block> {
        let mut block =
            Block { address: std::ptr::null_mut(), bytes: 0, source, memory: self.clone() };
        if bytes == 0 {
            return Ok(block);
        }
        let held = self.held() + bytes as u64;
        if held > self.budget {
            bail!(Memory, "memory_budget is {} bytes, {held} are needed", self.budget);
        }
        let stream = self.stream.load(Relaxed);
        block.address = match &block.source {
            Source::Engine(allocator) => self.ask(allocator, bytes, stream),
            Source::Device(device) => device.alloc(bytes, stream)?,
            Source::Heap => from_heap(bytes),
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

    /// What the engine's allocator gives. It may make a context of its own the current one.
    fn ask(&self, allocator: &Allocator, bytes: usize, stream: *mut c_void) -> *mut u8 {
        let Allocator { alloc, user, .. } = *allocator;
        let mut address = std::ptr::null_mut();
        // The engine promised an allocator that takes these arguments.
        self.within(&mut || address = unsafe { alloc(user, bytes, stream) });
        address.cast()
    }

    fn within(&self, f: &mut dyn FnMut()) {
        match self.device.get() {
            Some(device) => device.within(f),
            None => f(),
        }
    }
}

#[derive(Clone)]
enum Source {
    Engine(Allocator),
    Device(Arc<dyn Device>),
    Heap,
}

/// Memory of one kept tensor.
pub struct Block {
    address: *mut u8,
    bytes: usize,
    source: Source,
    memory: Arc<Memory>,
}

// The block owns its memory.
unsafe impl Send for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let (memory, address, bytes) = (&self.memory, self.address, self.bytes);
        memory.held.fetch_sub(bytes as u64, Relaxed);
        let stream = memory.stream.load(Relaxed);
        // Address and size are those of `take_from`.
        let mut free = || match &self.source {
            Source::Engine(a) => unsafe { (a.free)(a.user, address.cast(), bytes, stream) },
            Source::Device(device) => unsafe { device.free(address, stream) },
            Source::Heap => unsafe { std::alloc::dealloc(address, layout(bytes)) },
        };
        memory.within(&mut free);
    }
}

/// A kept tensor: dense, in a block of its own.
pub struct Storage {
    block: Block,
    shape: Shape,
}

impl Storage {
    /// `block` has room for the shape.
    pub fn new(block: Block, shape: Shape) -> Self {
        assert!(block.bytes == shape.bytes());
        Self { block, shape }
    }
}

impl Buffer for Storage {
    fn view(&self) -> View {
        // The block has room for the shape, and lives as long as the buffer.
        unsafe { View::dense(self.block.address, self.shape) }
    }
}

fn from_heap(bytes: usize) -> *mut u8 {
    // Nothing is asked for that has 0 bytes.
    let address = unsafe { std::alloc::alloc(layout(bytes)) };
    #[cfg(target_os = "linux")]
    if bytes >= LARGE_PAGE && !address.is_null() {
        // Whole pages only, so that no more memory is held than without; a refusal does no harm.
        let whole = bytes - bytes % LARGE_PAGE;
        unsafe { libc::madvise(address.cast(), whole, libc::MADV_HUGEPAGE) };
    }
    address
}

fn layout(bytes: usize) -> Layout {
    let alignment = if bytes >= LARGE_PAGE { LARGE_PAGE } else { ALIGNMENT };
    Layout::from_size_align(bytes, alignment).expect("a tensor's bytes fit an address")
}
