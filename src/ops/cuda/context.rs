//! What the process keeps for each CUDA context: loaded kernels, a stream of the library's own, and
//! slots for measurements. Made lazily, and never taken down: at the end of a process the driver may
//! be gone before us.
use super::driver::{
    self, CAPTURE_IMPLICIT, Code, Driver, INVALID_CONTEXT, OUT_OF_MEMORY, SUCCESS,
};
use super::kernels::{Family, Kernel};
use super::slot::{Page, Slot};
use crate::error::{Error, Result, bail};
use crate::ops::memory::Device;
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute_enum as Attribute, CUevent,
    CUevent_flags_enum as EventFlag, CUfunction, CUfunction_attribute_enum as FunctionAttribute,
    CUmemorytype_enum as MemoryType, CUmodule, CUpointer_attribute_enum as Attributed, CUstream,
    CUstream_flags_enum as StreamFlag,
};
use once_cell::sync::OnceCell;
use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Streams with these handles are not of a context but of whichever is current: null, legacy, and
/// per-thread.
pub fn is_of_no_context(stream: CUstream) -> bool {
    stream.addr() <= 2
}

pub struct Context {
    pub driver: &'static Driver,
    raw: CUcontext,
    /// Tells contexts apart that had the same address one after the other; 0 on old drivers.
    id: u64,
    ordinal: i32,
    has_sm80: bool,
    pools: bool,
    own: OnceCell<Handle<CUstream>>,
    families: [OnceCell<Vec<Handle<CUfunction>>>; Family::ALL.len()],
    slots: Mutex<Vec<Slot>>,
    events: Mutex<Vec<Handle<CUevent>>>,
}

/// A handle of the driver's, which any thread may use.
#[derive(Clone, Copy)]
pub struct Handle<T>(pub T);

unsafe impl<T> Send for Handle<T> {}
unsafe impl<T> Sync for Handle<T> {}

// The driver's handles may be used by any thread.
unsafe impl Send for Context {}
unsafe impl Sync for Context {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Undoes, on drop, what [`Context::enter`] did.
pub struct Entered {
    driver: &'static Driver,
    mode: Option<u32>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        unsafe {
            if let (Some(exchange), Some(mode)) =
                (self.driver.thread_exchange_stream_capture_mode, &mut self.mode)
            {
                exchange(mode);
            }
            (self.driver.ctx_pop_current)(&mut null_mut());
        }
    }
}

/// The context that work on `stream` belongs to: its own; for a stream without one the caller's
/// current context if it is on `device`, else the primary context of `device`. A `device` below 0
/// is that of the current context, or the first.
pub fn context_of(stream: CUstream, device: i32) -> Result<Arc<Context>> {
    let driver = driver::driver()?;
    let mut raw = null_mut();
    if !is_of_no_context(stream) {
        let context = find(driver, owner_of(driver, stream, device)?)?;
        if device >= 0 && context.ordinal != device {
            bail!(
                Device,
                "the stream belongs to device {}, dc_engine_t::device is {device}",
                context.ordinal
            );
        }
        return Ok(context);
    }
    driver.check("cuCtxGetCurrent", unsafe { (driver.ctx_get_current)(&mut raw) })?;
    if !raw.is_null() {
        let current = find(driver, raw)?;
        if device < 0 || current.ordinal == device {
            return Ok(current);
        }
    }
    primary(driver, device.max(0))
}

fn owner_of(driver: &'static Driver, stream: CUstream, device: i32) -> Result<CUcontext> {
    let mut raw = null_mut();
    let mut ask = || unsafe { (driver.stream_get_ctx)(stream, &mut raw) };
    let code = match ask() {
        // The thread has no context, and the driver wants one to be current, whichever.
        INVALID_CONTEXT => {
            let _entered = primary(driver, device.max(0))?.enter()?;
            ask()
        }
        code => code,
    };
    driver.check("cuStreamGetCtx", code).map(|()| raw)
}

/// Is there such a device? Creates nothing on it.
pub fn check_device(device: i32) -> Result<()> {
    driver::driver()?.device(device.max(0)).map(drop)
}

fn primary(driver: &'static Driver, ordinal: i32) -> Result<Arc<Context>> {
    static PRIMARIES: Mutex<Vec<(i32, Arc<Context>)>> = Mutex::new(Vec::new());
    let mut known = lock(&PRIMARIES);
    if let Some(at) = known.iter().position(|(other, _)| *other == ordinal) {
        let context = known[at].1.clone();
        // Unless somebody has reset the device.
        if find(driver, context.raw).is_ok_and(|now| Arc::ptr_eq(&now, &context)) {
            return Ok(context);
        }
        known.swap_remove(at);
    }
    let (device, mut raw) = (driver.device(ordinal)?, null_mut());
    // Retained for good: what is loaded into it stays loaded.
    driver.check("cuDevicePrimaryCtxRetain", unsafe {
        (driver.primary_ctx_retain)(&mut raw, device)
    })?;
    let context = find(driver, raw)?;
    known.push((ordinal, context.clone()));
    Ok(context)
}

fn find(driver: &'static Driver, raw: CUcontext) -> Result<Arc<Context>> {
    static CONTEXTS: Mutex<Vec<Arc<Context>>> = Mutex::new(Vec::new());
    let mut id = 0;
    if let Some(get_id) = driver.ctx_get_id
        && unsafe { get_id(raw, &mut id) } != SUCCESS
    {
        id = 0;
    }
    let mut known = lock(&CONTEXTS);
    if let Some(context) = known.iter().find(|known| known.raw == raw && known.id == id) {
        return Ok(context.clone());
    }
    let context = Arc::new(Context::new(driver, raw, id)?);
    known.push(context.clone());
    Ok(context)
}

impl Context {
    fn new(driver: &'static Driver, raw: CUcontext, id: u64) -> Result<Self> {
        let entered = push(driver, raw)?;
        let mut device: CUdevice = 0;
        driver.check("cuCtxGetDevice", unsafe { (driver.ctx_get_device)(&mut device) })?;
        let attribute = |attribute: Attribute| driver.attribute(attribute as u32, device);
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if (major, minor) < (7, 5) {
            bail!(
                Unsupported,
                "device {device} has compute capability {major}.{minor}, 7.5 (Turing) or newer is \
                 needed"
            );
        }
        // Old drivers do not know the question.
        let pools = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED);
        let pools = driver.mem_alloc_async.is_some()
            && driver.mem_free_async.is_some()
            && pools.is_ok_and(|supported| supported != 0);
        drop(entered);
        Ok(Self {
            driver,
            raw,
            id,
            ordinal: device,
            has_sm80: major >= 8,
            pools,
            own: OnceCell::new(),
            families: Default::default(),
            slots: Mutex::default(),
            events: Mutex::default(),
        })
    }

    pub fn ordinal(&self) -> i32 {
        self.ordinal
    }

    /// On the calling thread no other context is current.
    pub fn is_implied(&self) -> Result<bool> {
        let mut raw = null_mut();
        let code = unsafe { (self.driver.ctx_get_current)(&mut raw) };
        self.driver.check("cuCtxGetCurrent", code)?;
        Ok(raw.is_null() || raw == self.raw)
    }

    /// Makes the context current, and keeps what is done meanwhile out of other threads' captures,
    /// until the result is dropped.
    pub fn enter(&self) -> Result<Entered> {
        push(self.driver, self.raw)
    }

    /// A stream of the library's own, which no other waits for unless told to. The context is
    /// entered.
    pub fn own_stream(&self) -> Result<CUstream> {
        let stream = self.own.get_or_try_init(|| {
            let (mut stream, flag) = (null_mut(), StreamFlag::CU_STREAM_NON_BLOCKING as u32);
            let code = unsafe { (self.driver.stream_create)(&mut stream, flag) };
            self.driver.check("cuStreamCreate", code).map(|()| Handle(stream))
        });
        stream.map(|stream| stream.0)
    }

    /// Is work on the stream being recorded instead of done? The context is entered.
    pub fn is_capturing(&self, stream: CUstream) -> Result<bool> {
        let mut status = 0;
        match unsafe { (self.driver.stream_is_capturing)(stream, &mut status) } {
            // The legacy stream may not be used while another one is captured.
            CAPTURE_IMPLICIT => Ok(true),
            code => self.driver.check("cuStreamIsCapturing", code).map(|()| status != 0),
        }
    }

    /// Is the memory at `address` this device's? Where the driver cannot tell, it is taken to be.
    pub fn check_pointer(&self, address: usize) -> Result<()> {
        let (mut kind, mut ordinal, mut managed) = (0u32, -1i32, 0u32);
        let mut attributes = [
            Attributed::CU_POINTER_ATTRIBUTE_MEMORY_TYPE as u32,
            Attributed::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL as u32,
            Attributed::CU_POINTER_ATTRIBUTE_IS_MANAGED as u32,
        ];
        let mut values = [
            (&raw mut kind).cast(),
            (&raw mut ordinal).cast::<c_void>(),
            (&raw mut managed).cast(),
        ];
        let code = unsafe {
            (self.driver.pointer_get_attributes)(
                attributes.len() as u32,
                attributes.as_mut_ptr(),
                values.as_mut_ptr(),
                address as u64,
            )
        };
        self.driver.check("cuPointerGetAttributes", code)?;
        let own = self.ordinal;
        if managed != 0 {
            return Ok(());
        }
        if kind != MemoryType::CU_MEMORYTYPE_DEVICE as u32 {
            bail!(
                Arg,
                "data is {address:#x}, which is host memory, and this cache works on device {own}: \
                 device memory is needed, or DC_TENSOR_HOST in flags"
            );
        }
        if ordinal != own {
            bail!(
                Arg,
                "data is {address:#x}, which is memory of device {ordinal}, and this cache works on \
                 device {own}"
            );
        }
        Ok(())
    }

    // ---- events ----

    /// An event, to be given back. The context is entered.
    pub fn take_event(&self) -> Result<CUevent> {
        if let Some(event) = lock(&self.events).pop() {
            return Ok(event.0);
        }
        let (mut event, flag) = (null_mut(), EventFlag::CU_EVENT_DISABLE_TIMING as u32);
        let code = unsafe { (self.driver.event_create)(&mut event, flag) };
        self.driver.check("cuEventCreate", code).map(|()| event)
    }

    pub fn give_event(&self, event: CUevent) {
        lock(&self.events).push(Handle(event));
    }

    /// Marks what has been queued on `stream` so far.
    pub fn record(&self, event: CUevent, stream: CUstream) -> Result<()> {
        let code = unsafe { (self.driver.event_record)(event, stream) };
        self.driver.check("cuEventRecord", code)
    }

    /// What is queued on `stream` from here on waits for `event`.
    pub fn order(&self, stream: CUstream, event: CUevent) -> Result<()> {
        let code = unsafe { (self.driver.stream_wait_event)(stream, event, 0) };
        self.driver.check("cuStreamWaitEvent", code)
    }

    /// Waits on the calling thread.
    pub fn wait(&self, event: CUevent) -> Result<()> {
        let code = unsafe { (self.driver.event_synchronize)(event) };
        self.driver.check("cuEventSynchronize", code)
    }

    // ---- kernels ----

    /// The function of a kernel; its module is loaded when it is first wanted. The context is
    /// entered.
    pub fn function(&self, kernel: Kernel) -> Result<CUfunction> {
        let family = kernel.family();
        let functions =
            self.families[family as usize].get_or_try_init(|| self.load_family(family))?;
        Ok(functions[kernel.index()].0)
    }

    fn load_family(&self, family: Family) -> Result<Vec<Handle<CUfunction>>> {
        let (driver, ptx) = (self.driver, family.ptx(self.has_sm80));
        let mut module: CUmodule = null_mut();
        let code = unsafe { (driver.module_load_data)(&mut module, ptx.as_ptr().cast()) };
        if code == driver::UNSUPPORTED_PTX_VERSION {
            let needed = if self.has_sm80 { "11.0 (driver 450)" } else { "10.0 (driver 410)" };
            bail!(Device, "the driver is too old for device {}: CUDA {needed}", self.ordinal);
        }
        driver.check("cuModuleLoadData", code)?;
        let function = |name: &&CStr| {
            let mut function: CUfunction = null_mut();
            let code =
                unsafe { (driver.module_get_function)(&mut function, module, name.as_ptr()) };
            driver.check("cuModuleGetFunction", code)?;
            // A driver that loads lazily does it now, and not in the middle of a pass.
            let (mut registers, asked) = (0, FunctionAttribute::CU_FUNC_ATTRIBUTE_NUM_REGS as u32);
            let code = unsafe { (driver.func_get_attribute)(&mut registers, asked, function) };
            driver.check("cuFuncGetAttribute", code).map(|()| Handle(function))
        };
        family.names().iter().map(function).collect()
    }

    /// Loads all that any cache may want, so that no later call pays for it.
    pub fn prepare(&self) -> Result<()> {
        let _entered = self.enter()?;
        self.own_stream()?;
        for family in Family::ALL {
            self.families[family as usize].get_or_try_init(|| self.load_family(family))?;
        }
        let slot = self.take_slot()?;
        self.give_slot(slot);
        Ok(())
    }

    // ---- measurements ----

    /// Room for a measurement. The context is entered.
    pub fn take_slot(&self) -> Result<Slot> {
        let mut slots = lock(&self.slots);
        if slots.is_empty() {
            slots.extend(Page::slots(self)?);
        }
        Ok(slots.pop().expect("a page has slots"))
    }

    pub fn give_slot(&self, slot: Slot) {
        lock(&self.slots).push(slot);
    }
}

fn push(driver: &'static Driver, raw: CUcontext) -> Result<Entered> {
    /// CU_STREAM_CAPTURE_MODE_RELAXED
    const RELAXED: u32 = 2;
    driver.check("cuCtxPushCurrent", unsafe { (driver.ctx_push_current)(raw) })?;
    let mode = driver.thread_exchange_stream_capture_mode.map(|exchange| {
        let mut mode = RELAXED;
        unsafe { exchange(&mut mode) };
        mode
    });
    Ok(Entered { driver, mode })
}

impl Device for Context {
    fn alloc(&self, bytes: usize, stream: *mut c_void) -> Result<*mut u8> {
        let mut address = 0;
        let code: Code = match self.driver.mem_alloc_async.filter(|_| self.pools) {
            Some(alloc) => unsafe { alloc(&mut address, bytes, stream.cast()) },
            None => unsafe { (self.driver.mem_alloc)(&mut address, bytes) },
        };
        match code {
            SUCCESS => Ok(std::ptr::with_exposed_provenance_mut(address as usize)),
            OUT_OF_MEMORY => {
                Err(Error::Memory(format!("device {} has no {bytes} bytes left", self.ordinal)))
            }
            code => Err(self.driver.check("cuMemAlloc", code).unwrap_err()),
        }
    }

    unsafe fn free(&self, address: *mut u8, stream: *mut c_void) {
        // Nothing can be done about a failure: the context is gone, and the memory with it.
        match self.driver.mem_free_async.filter(|_| self.pools) {
            Some(free) => unsafe { free(address.addr() as u64, stream.cast()) },
            None => unsafe { (self.driver.mem_free)(address.addr() as u64) },
        };
    }

    fn within(&self, f: &mut dyn FnMut()) {
        let _entered = self.enter();
        f();
    }
}
