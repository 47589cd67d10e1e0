//! Initialisation, version, errors by name, devices.

use super::{CUdevice, CUresult, out, put_text};
use crate::{
    driver::call,
    module::SHARED_BY_DEFAULT,
    settings::Settings,
    status::{self, Outcome, Status},
};
use std::ffi::{c_char, c_int, c_uint};

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> CUresult {
    call("cuInit", |driver| {
        if driver.settings.stub {
            return Err(Status::STUB_LIBRARY);
        }
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        if driver.settings.devices == 0 {
            return Err(Status::NO_DEVICE);
        }
        driver.initialized = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CUresult {
    call("cuDriverGetVersion", |driver| {
        if driver.settings.stub {
            return Err(Status::STUB_LIBRARY);
        }
        unsafe { out(version)? }.set(driver.settings.driver);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: CUresult, name: *mut *const c_char) -> CUresult {
    unsafe { error_text(name, status::name(error)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: CUresult, text: *mut *const c_char) -> CUresult {
    unsafe { error_text(text, status::text(error)) }
}

/// Needs no initialisation, and an unknown code gives null.
unsafe fn error_text(to: *mut *const c_char, text: Option<&'static std::ffi::CStr>) -> CUresult {
    let Ok(place) = (unsafe { out(to) }) else { return Status::INVALID_VALUE.0 };
    place.set(text.map_or(std::ptr::null(), |text| text.as_ptr()));
    if text.is_some() { 0 } else { Status::INVALID_VALUE.0 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CUresult {
    call("cuDeviceGetCount", |driver| {
        unsafe { out(count)? }.set(driver.settings.devices as c_int);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) -> CUresult {
    call("cuDeviceGet", |driver| {
        let place = unsafe { out(device)? };
        driver.contexts.device(ordinal)?;
        place.set(ordinal);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(
    name: *mut c_char,
    length: c_int,
    device: CUdevice,
) -> CUresult {
    call("cuDeviceGetName", |driver| {
        let device = driver.contexts.device(device)?;
        let room = usize::try_from(length).ok().filter(|&room| room > 0 && !name.is_null());
        unsafe {
            put_text(&format!("softcuda {device}"), name, room.ok_or(Status::INVALID_VALUE)?)
        };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) -> CUresult {
    call("cuDeviceTotalMem_v2", |driver| {
        driver.contexts.device(device)?;
        unsafe { out(bytes)? }.set(driver.settings.memory as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: CUdevice) -> CUresult {
    call("cuDeviceGetUuid_v2", |driver| {
        let device = driver.contexts.device(device)? as u8;
        let mut id = *b"softcuda device ";
        id[15] = device;
        unsafe { out(uuid)? }.set(id);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    device: CUdevice,
) -> CUresult {
    call("cuDeviceGetAttribute", |driver| {
        let place = unsafe { out(value)? };
        let device = driver.contexts.device(device)?;
        place.set(device_attribute(&driver.settings, attribute, device)?);
        Ok(())
    })
}

fn device_attribute(settings: &Settings, attribute: c_int, device: usize) -> Outcome<c_int> {
    Ok(match attribute {
        1..=3 => 1024,                           // threads per block; block dimensions x, y
        4 => 64,                                 // block dimension z
        5 => i32::MAX,                           // grid dimension x
        6 | 7 => 65535,                          // grid dimensions y, z
        8 => SHARED_BY_DEFAULT as c_int,         // shared memory per block
        9 => 65536,                              // constant memory
        10 => 32,                                // warp size
        12 | 82 => 65536,                        // registers per block, per multiprocessor
        13 => 1_000_000,                         // clock rate, kHz
        14 => 512,                               // texture alignment
        16 => 4,                                 // multiprocessors
        17 | 18 => 0,                            // kernel timeout, integrated
        19 | 31 | 41 | 83 => 1, // maps host memory, concurrent kernels, unified addressing, managed memory
        20 => 0,                // compute mode: default
        32 => 0,                // ECC
        33 => 1 + device as c_int, // PCI bus
        34 | 50 => 0,           // PCI device, domain
        36 => 1_000_000,        // memory clock rate, kHz
        37 => 256,              // memory bus width, bits
        38 => 4 << 20,          // L2 cache
        39 => 1024,             // threads per multiprocessor
        40 => 2,                // copy engines
        75 => settings.capability as c_int / 10, // compute capability, major
        76 => settings.capability as c_int % 10, // and minor
        78 => 1,                // stream priorities
        81 | 97 => settings.shared_on_request() as c_int, // shared memory of a multiprocessor, a block
        89 => 1,   // host and device may use managed memory at the same time
        95 => 0,   // cooperative launch: not modelled
        106 => 16, // blocks per multiprocessor
        115 => settings.has_pools().into(), // memory pools
        other if (1..=150).contains(&other) => 0, // known to the driver, not to this one
        _ => return Err(Status::INVALID_VALUE),
    })
}
