//! The CUDA driver, found at run time.
//!
//! Nothing is linked: `libcuda.so.1` is opened when CUDA is first asked for, and every function used
//! here is looked up then. So the library runs where there is no driver, and a driver that is
//! missing, too old, a stub or without a device is an error with a text that helps. The types are
//! cudarc's; the table is our own, because cudarc looks for `libcuda.so` first, which on a
//! development machine is often the toolkit's stub, and panics on a function that is missing.
use crate::error::{Error, Result, bail};
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream,
};
use once_cell::sync::OnceCell;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

/// A `CUresult`. Not cudarc's enum: a newer driver may return a number that it does not list.
pub type Code = c_int;

pub const SUCCESS: Code = 0;
pub const OUT_OF_MEMORY: Code = 2;
const STUB_LIBRARY: Code = 34;
const NO_DEVICE: Code = 100;
pub const INVALID_CONTEXT: Code = 201;
pub const UNSUPPORTED_PTX_VERSION: Code = 222;
pub const CAPTURE_IMPLICIT: Code = 906;

/// The oldest driver that knows sm_75 and the PTX that is embedded here, as `cuDriverGetVersion`
/// counts: CUDA 10.0, driver 410.
const OLDEST: c_int = 10_000;

const LIBRARY: &CStr = c"libcuda.so.1";

/// `table! { fields }` is a struct of functions, each looked up by its name; those in an `Option`
/// may be missing.
macro_rules! table {
    (
        needed { $($name:ident = $symbol:literal ($($argument:ty),*);)* }
        optional { $($later:ident = $later_symbol:literal ($($later_argument:ty),*);)* }
    ) => {
        /// Functions of the driver, by their names without `cu`.
        pub struct Driver {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> Code,)*
            $(pub $later: Option<unsafe extern "C" fn($($later_argument),*) -> Code>,)*
        }

        impl Driver {
            /// # Safety
            /// `library` is an open handle of a CUDA driver.
            unsafe fn look_up(library: *mut c_void) -> Result<Self> {
                // The driver's functions have these types for ever: a new one gets a new name.
                unsafe {
                    Ok(Self {
                        $($name: std::mem::transmute::<
                            *mut c_void,
                            unsafe extern "C" fn($($argument),*) -> Code,
                        >(needed(library, $symbol)?),)*
                        $($later: std::mem::transmute::<
                            *mut c_void,
                            Option<unsafe extern "C" fn($($later_argument),*) -> Code>,
                        >(symbol(library, $later_symbol)),)*
                    })
                }
            }
        }
    };
}

table! {
    needed {
        init = "cuInit" (c_uint);
        driver_get_version = "cuDriverGetVersion" (*mut c_int);
        get_error_name = "cuGetErrorName" (Code, *mut *const c_char);
        get_error_string = "cuGetErrorString" (Code, *mut *const c_char);
        device_get_count = "cuDeviceGetCount" (*mut c_int);
        device_get = "cuDeviceGet" (*mut CUdevice, c_int);
        device_get_attribute = "cuDeviceGetAttribute" (*mut c_int, c_uint, CUdevice);
        primary_ctx_retain = "cuDevicePrimaryCtxRetain" (*mut CUcontext, CUdevice);
        ctx_get_current = "cuCtxGetCurrent" (*mut CUcontext);
        ctx_get_device = "cuCtxGetDevice" (*mut CUdevice);
        ctx_push_current = "cuCtxPushCurrent_v2" (CUcontext);
        ctx_pop_current = "cuCtxPopCurrent_v2" (*mut CUcontext);
        stream_create = "cuStreamCreate" (*mut CUstream, c_uint);
        stream_get_ctx = "cuStreamGetCtx" (CUstream, *mut CUcontext);
        stream_wait_event = "cuStreamWaitEvent" (CUstream, CUevent, c_uint);
        stream_is_capturing = "cuStreamIsCapturing" (CUstream, *mut c_uint);
        event_create = "cuEventCreate" (*mut CUevent, c_uint);
        event_record = "cuEventRecord" (CUevent, CUstream);
        event_synchronize = "cuEventSynchronize" (CUevent);
        mem_alloc = "cuMemAlloc_v2" (*mut CUdeviceptr, usize);
        mem_free = "cuMemFree_v2" (CUdeviceptr);
        mem_host_alloc = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
        mem_free_host = "cuMemFreeHost" (*mut c_void);
        mem_host_get_device_pointer =
            "cuMemHostGetDevicePointer_v2" (*mut CUdeviceptr, *mut c_void, c_uint);
        memcpy_dtod_async =
            "cuMemcpyDtoDAsync_v2" (CUdeviceptr, CUdeviceptr, usize, CUstream);
        memcpy_dtoh_async = "cuMemcpyDtoHAsync_v2" (*mut c_void, CUdeviceptr, usize, CUstream);
        memset_d32_async = "cuMemsetD32Async" (CUdeviceptr, c_uint, usize, CUstream);
        module_load_data = "cuModuleLoadData" (*mut CUmodule, *const c_void);
        module_get_function = "cuModuleGetFunction" (*mut CUfunction, CUmodule, *const c_char);
        func_get_attribute = "cuFuncGetAttribute" (*mut c_int, c_uint, CUfunction);
        pointer_get_attributes =
            "cuPointerGetAttributes" (c_uint, *mut c_uint, *mut *mut c_void, CUdeviceptr);
        launch_kernel = "cuLaunchKernel" (
            CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream,
            *mut *mut c_void, *mut *mut c_void
        );
    }
    optional {
        // CUDA 10.1
        thread_exchange_stream_capture_mode = "cuThreadExchangeStreamCaptureMode" (*mut c_uint);
        // CUDA 11.2
        mem_alloc_async = "cuMemAllocAsync" (*mut CUdeviceptr, usize, CUstream);
        mem_free_async = "cuMemFreeAsync" (CUdeviceptr, CUstream);
        // CUDA 12.0
        ctx_get_id = "cuCtxGetId" (CUcontext, *mut u64);
    }
}

unsafe fn symbol(library: *mut c_void, name: &str) -> *mut c_void {
    let name = CString::new(name).expect("no NUL in a name");
    unsafe { libc::dlsym(library, name.as_ptr()) }
}

unsafe fn needed(library: *mut c_void, name: &str) -> Result<*mut c_void> {
    let address = unsafe { symbol(library, name) };
    if address.is_null() {
        bail!(
            Device,
            "{} has no {name}: the driver is too old, CUDA 10.0 (driver 410) or newer is needed",
            LIBRARY.to_string_lossy()
        );
    }
    Ok(address)
}

/// The driver, loaded and initialised. Tried again each time until it succeeds.
pub fn driver() -> Result<&'static Driver> {
    static DRIVER: OnceCell<Driver> = OnceCell::new();
    DRIVER.get_or_try_init(load)
}

fn load() -> Result<Driver> {
    let driver = unsafe {
        let library = libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if library.is_null() {
            let why = libc::dlerror();
            let why = if why.is_null() { c"not found" } else { CStr::from_ptr(why) };
            bail!(
                Device,
                "there is no CUDA driver: {}. It comes with the NVIDIA driver, not with the toolkit",
                why.to_string_lossy()
            );
        }
        Driver::look_up(library)?
    };
    let initialised = unsafe { (driver.init)(0) };
    if initialised == STUB_LIBRARY {
        bail!(
            Device,
            "{} is the toolkit's stub, not the driver: take the folder 'stubs' out of \
             LD_LIBRARY_PATH",
            LIBRARY.to_string_lossy()
        );
    }
    let mut version = 0;
    // Fine without `cuInit`.
    driver.check("cuDriverGetVersion", unsafe { (driver.driver_get_version)(&mut version) })?;
    if initialised == NO_DEVICE {
        bail!(
            Device,
            "the CUDA driver ({}) finds no device: is there a GPU, and does CUDA_VISIBLE_DEVICES \
             leave one?",
            dotted(version)
        );
    }
    driver.check("cuInit", initialised)?;
    if version < OLDEST {
        bail!(
            Device,
            "the driver is for CUDA {}, 10.0 (driver 410) or newer is needed",
            dotted(version)
        );
    }
    Ok(driver)
}

fn dotted(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

impl Driver {
    /// The error of a call that returned `code`, with the driver's own words.
    pub fn check(&self, call: &str, code: Code) -> Result<()> {
        if code == SUCCESS { Ok(()) } else { Err(self.error(call, code)) }
    }

    fn error(&self, call: &str, code: Code) -> Error {
        let text = |get: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| {
            let mut text = std::ptr::null();
            // Static texts of the driver's.
            match unsafe { get(code, &mut text) } {
                SUCCESS if !text.is_null() => {
                    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
                }
                _ => "of an unknown kind".to_owned(),
            }
        };
        let (name, words) = (text(self.get_error_name), text(self.get_error_string));
        let text = format!("{call}: error {code}, {name}: {words}");
        if code == OUT_OF_MEMORY { Error::Memory(text) } else { Error::Device(text) }
    }

    /// `device` as the driver counts, checked.
    pub fn device(&self, ordinal: i32) -> Result<CUdevice> {
        let (mut count, mut device) = (0, 0);
        self.check("cuDeviceGetCount", unsafe { (self.device_get_count)(&mut count) })?;
        if ordinal < 0 || ordinal >= count {
            bail!(Device, "device is {ordinal}, there are {count}: allowed is 0 to {}", count - 1);
        }
        self.check("cuDeviceGet", unsafe { (self.device_get)(&mut device, ordinal) })?;
        Ok(device)
    }

    pub fn attribute(&self, attribute: c_uint, device: CUdevice) -> Result<c_int> {
        let mut value = 0;
        let code = unsafe { (self.device_get_attribute)(&mut value, attribute, device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value)
    }
}
