//! The device on which the suites run when `DC_TEST_BACKEND=cuda`: memory, streams and copies of the
//! tests' own, by the driver that the library finds too, be it a GPU's or the stand-in for it.
//!
//! A test's own arithmetic is done on the host: what is queued on its thread's stream is waited for,
//! the data copied out, worked on, and copied in again on that stream. The copy in is not waited for,
//! so a library that works on another stream reads old data, and the stand-in says so.
use std::cell::{Cell, OnceCell};
use std::ffi::{CString, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::ptr::null_mut;
use std::sync::OnceLock;

/// DC_STREAM_SYNC
pub const HIDDEN_STREAM: *mut c_void = std::ptr::without_provenance_mut(usize::MAX);

/// Whether the suites run on the CUDA backend.
pub fn on_cuda() -> bool {
    static CUDA: OnceLock<bool> = OnceLock::new();
    *CUDA.get_or_init(|| match std::env::var("DC_TEST_BACKEND").as_deref() {
        Err(_) | Ok("cpu") => false,
        Ok("cuda") => true,
        Ok(other) => panic!("DC_TEST_BACKEND is {other}, known are cpu and cuda"),
    })
}

/// So many of a test's random cases: a stand-in for a GPU is no GPU, and gets an eighth of them.
pub fn fewer(on_the_cpu: u32) -> u32 {
    if on_cuda() { on_the_cpu.div_ceil(8) } else { on_the_cpu }
}

// ---- the driver ----

type Code = c_int;

macro_rules! driver {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        struct Driver {
            $($name: unsafe extern "C" fn($($argument),*) -> Code,)*
            primary: usize,
        }

        impl Driver {
            /// With the first device's primary context.
            fn load() -> Self {
                // These are the types that the driver gives these functions for ever.
                unsafe {
                    let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
                    assert!(!library.is_null(), "there is no libcuda.so.1: set LD_LIBRARY_PATH");
                    let mut driver = Self {
                        $($name: std::mem::transmute::<
                            *mut c_void,
                            unsafe extern "C" fn($($argument),*) -> Code,
                        >(symbol(library, $symbol)),)*
                        primary: 0,
                    };
                    let (mut device, mut primary) = (0, null_mut());
                    check((driver.init)(0));
                    check((driver.device_get)(&mut device, 0));
                    check((driver.primary_ctx_retain)(&mut primary, device));
                    driver.primary = primary.expose_provenance();
                    driver
                }
            }
        }
    };
}

driver! {
    init = "cuInit" (c_uint);
    device_get = "cuDeviceGet" (*mut c_int, c_int);
    primary_ctx_retain = "cuDevicePrimaryCtxRetain" (*mut *mut c_void, c_int);
    ctx_set_current = "cuCtxSetCurrent" (*mut c_void);
    ctx_get_current = "cuCtxGetCurrent" (*mut *mut c_void);
    ctx_synchronize = "cuCtxSynchronize" ();
    stream_create = "cuStreamCreate" (*mut *mut c_void, c_uint);
    stream_destroy = "cuStreamDestroy_v2" (*mut c_void);
    stream_synchronize = "cuStreamSynchronize" (*mut c_void);
    mem_alloc = "cuMemAlloc_v2" (*mut u64, usize);
    mem_free = "cuMemFree_v2" (u64);
    memset_d8_async = "cuMemsetD8Async" (u64, u8, usize, *mut c_void);
    memcpy_htod_async = "cuMemcpyHtoDAsync_v2" (u64, *const c_void, usize, *mut c_void);
    memcpy_dtoh_async = "cuMemcpyDtoHAsync_v2" (*mut c_void, u64, usize, *mut c_void);
}

unsafe fn symbol(library: *mut c_void, name: &str) -> *mut c_void {
    let text = CString::new(name).expect("no NUL in a name");
    let address = unsafe { libc::dlsym(library, text.as_ptr()) };
    assert!(!address.is_null(), "the driver has no {name}");
    address
}

#[track_caller]
fn check(code: Code) {
    assert_eq!(code, 0, "the driver's result");
}

/// With a current context on this thread.
fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    thread_local!(static CURRENT: Cell<bool> = const { Cell::new(false) });
    let driver = DRIVER.get_or_init(Driver::load);
    if !CURRENT.replace(true) {
        let primary = std::ptr::with_exposed_provenance_mut(driver.primary);
        check(unsafe { (driver.ctx_set_current)(primary) });
    }
    driver
}

/// The thread's current context; null on the CPU.
pub fn current_context() -> *mut c_void {
    let mut context = null_mut();
    if on_cuda() {
        check(unsafe { (driver().ctx_get_current)(&mut context) });
    }
    context
}

/// A function that only the stand-in for the driver has.
pub fn stand_in(name: &str) -> Option<*mut c_void> {
    driver();
    let name = CString::new(name).expect("no NUL in a name");
    // It is loaded already.
    let address = unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        libc::dlsym(library, name.as_ptr())
    };
    (!address.is_null()).then_some(address)
}

// ---- streams ----

/// A non-blocking stream, destroyed on drop.
pub struct Stream(*mut c_void);

impl Stream {
    pub fn new() -> Self {
        const NON_BLOCKING: c_uint = 1;
        let mut stream = null_mut();
        check(unsafe { (driver().stream_create)(&mut stream, NON_BLOCKING) });
        Self(stream)
    }

    pub fn raw(&self) -> *mut c_void {
        self.0
    }

    pub fn synchronise(&self) {
        check(unsafe { (driver().stream_synchronize)(self.0) });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Work that was queued on it is still done.
        unsafe { (driver().stream_destroy)(self.0) };
    }
}

thread_local! {
    /// Of the thread, for as long as it lives and longer: caches that it made may go on elsewhere.
    static OWN: OnceCell<*mut c_void> = const { OnceCell::new() };
    /// The library is given DC_STREAM_SYNC.
    static HIDDEN: Cell<bool> = const { Cell::new(false) };
}

/// The stream of this thread's work.
fn working() -> *mut c_void {
    OWN.with(|own| *own.get_or_init(|| ManuallyDrop::new(Stream::new()).raw()))
}

/// What this thread's calls name as their stream; null on the CPU.
pub fn stream() -> *mut c_void {
    match on_cuda() {
        false => null_mut(),
        true if HIDDEN.get() => HIDDEN_STREAM,
        true => working(),
    }
}

/// All work of this thread is done.
pub fn synchronise() {
    if on_cuda() {
        check(unsafe { (driver().stream_synchronize)(working()) });
    }
}

/// All work of all streams is done.
pub fn synchronise_all() {
    check(unsafe { (driver().ctx_synchronize)() });
}

/// What `f` calls is not told the stream: it gets DC_STREAM_SYNC, and this thread synchronises.
pub fn hiding_the_stream<T>(f: impl FnOnce() -> T) -> T {
    synchronise();
    HIDDEN.set(true);
    let result = f();
    HIDDEN.set(false);
    result
}

// ---- memory ----

/// `bytes` on the device, all 0xff: NaN in every dtype. The work on `stream` may use them.
pub fn allocate(bytes: usize, stream: *mut c_void) -> *mut c_void {
    let mut address = 0;
    check(unsafe { (driver().mem_alloc)(&mut address, bytes) });
    check(unsafe { (driver().memset_d8_async)(address, 0xff, bytes, queue_of(stream)) });
    settle(stream);
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// Takes them back, once the work on `stream` is done.
pub fn free(address: *mut c_void, stream: *mut c_void) {
    let driver = driver();
    // A context that is lost has lost its memory too.
    unsafe {
        (driver.stream_synchronize)(queue_of(stream));
        (driver.mem_free)(address.addr() as u64);
    }
}

fn queue_of(stream: *mut c_void) -> *mut c_void {
    if stream == HIDDEN_STREAM { working() } else { stream }
}

/// A stream that the library is not told is synchronised.
fn settle(stream: *mut c_void) {
    if stream == HIDDEN_STREAM {
        check(unsafe { (driver().stream_synchronize)(working()) });
    }
}

/// Copies to the host once the work on `stream` is done.
pub fn read(to: &mut [u8], from: *const u8, stream: *mut c_void) {
    let (queue, address) = (queue_of(stream), from.addr() as u64);
    let to = (to.as_mut_ptr().cast(), to.len());
    check(unsafe { (driver().memcpy_dtoh_async)(to.0, address, to.1, queue) });
    check(unsafe { (driver().stream_synchronize)(queue) });
}

/// Copies from the host after the work on `stream`.
pub fn write(to: *const u8, from: &[u8], stream: *mut c_void) {
    let (bytes, len) = (from.as_ptr().cast(), from.len());
    // Pageable memory is copied aside before this returns.
    check(unsafe { (driver().memcpy_htod_async)(to.addr() as u64, bytes, len, queue_of(stream)) });
    settle(stream);
}

// ---- tensors' memory ----

/// Where the suites' tensors live.
pub enum Memory {
    Host(Box<[Cell<u8>]>),
    Device { address: *mut c_void, len: usize },
}

impl Memory {
    /// All 0xff.
    pub fn new(len: usize) -> Self {
        match on_cuda() {
            false => Self::on_host(len),
            true => Self::Device { address: allocate(len, stream()), len },
        }
    }

    /// The same, wherever other tensors live.
    pub fn on_host(len: usize) -> Self {
        Self::Host(vec![Cell::new(0xff); len].into())
    }

    pub fn address(&self) -> *mut u8 {
        match self {
            Self::Host(cells) => cells.as_ptr().cast::<u8>().cast_mut(),
            Self::Device { address, .. } => address.cast(),
        }
    }

    /// All of it.
    pub fn read(&self) -> Vec<u8> {
        match self {
            Self::Host(cells) => {
                // Cells of bytes are bytes, and nobody writes them meanwhile.
                unsafe { &*(std::ptr::from_ref(&**cells) as *const [u8]) }.to_vec()
            }
            Self::Device { address, len } => {
                let mut bytes = vec![0; *len];
                read(&mut bytes, address.cast(), stream());
                bytes
            }
        }
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        match self {
            Self::Host(cells) => {
                cells[at..at + bytes.len()].iter().zip(bytes).for_each(|(to, byte)| to.set(*byte));
            }
            Self::Device { .. } if bytes.is_empty() => {}
            Self::Device { address, len } => {
                assert!(at + bytes.len() <= *len);
                write(address.cast::<u8>().wrapping_add(at), bytes, stream());
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Self::Device { address, .. } = self {
            free(*address, stream());
        }
    }
}
