//! Modules, functions, launches.

use super::{CUfunction, CUmodule, CUresult, CUstream, out, put_text, text};
use crate::{
    driver::{Driver, call},
    module::{Function, Shape},
    status::{Outcome, Status},
    work::Work,
};
use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    slice,
};

const INFO_LOG_BUFFER: c_int = 3;
const INFO_LOG_BUFFER_SIZE: c_int = 4;
const ERROR_LOG_BUFFER: c_int = 5;
const ERROR_LOG_BUFFER_SIZE: c_int = 6;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) -> CUresult {
    call("cuModuleLoadData", |driver| {
        unsafe { load(driver, module, image) }.map_err(|(status, _)| status)
    })
}

/// Of the options only the logs matter: the assembler's complaint goes to the error log.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut CUmodule,
    image: *const c_void,
    count: c_uint,
    options: *const c_int,
    values: *mut *mut c_void,
) -> CUresult {
    call("cuModuleLoadDataEx", |driver| {
        if count > 0 && (options.is_null() || values.is_null()) {
            return Err(Status::INVALID_VALUE);
        }
        let loaded = unsafe { load(driver, module, image) };
        let complaint = loaded.as_ref().err().map_or("", |(_, complaint)| complaint);
        if count > 0 {
            // SAFETY: `count` options and values, as the caller promises.
            let (options, values) = unsafe {
                (
                    slice::from_raw_parts(options, count as usize),
                    slice::from_raw_parts_mut(values, count as usize),
                )
            };
            unsafe {
                fill_log(options, values, (INFO_LOG_BUFFER, INFO_LOG_BUFFER_SIZE), "");
                fill_log(options, values, (ERROR_LOG_BUFFER, ERROR_LOG_BUFFER_SIZE), complaint);
            }
        }
        loaded.map_err(|(status, _)| status)
    })
}

unsafe fn load(
    driver: &mut Driver,
    module: *mut CUmodule,
    image: *const c_void,
) -> Result<(), (Status, String)> {
    let bare = |status| (status, String::new());
    let place = unsafe { out(module) }.map_err(bare)?;
    if image.is_null() {
        return Err(bare(Status::INVALID_VALUE));
    }
    // SAFETY: an image is text with a zero at its end, or begins with a magic number that is no text.
    let image = unsafe { text(image.cast()) }.map_err(|_| bare(Status::INVALID_IMAGE))?;
    let loaded = driver.load_module(image)?;
    driver.log.note(format_args!("module_load module={loaded:#x}"));
    place.set(loaded);
    Ok(())
}

/// The value of the size option is the room before and what was filled after, in the pointer itself.
unsafe fn fill_log(
    options: &[c_int],
    values: &mut [*mut c_void],
    (buffer, size): (c_int, c_int),
    message: &str,
) {
    let find = |wanted| options.iter().position(|&option| option == wanted);
    let (Some(buffer), Some(size)) = (find(buffer), find(size)) else { return };
    if !values[buffer].is_null() {
        let filled = unsafe { put_text(message, values[buffer].cast(), values[size] as usize) };
        values[size] = filled as *mut c_void;
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: CUmodule) -> CUresult {
    call("cuModuleUnload", |driver| {
        driver.log.note(format_args!("module_unload module={module:#x}"));
        driver.current()?;
        driver.refuse_unsafe_in_capture()?;
        driver.modules.unload(module)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut CUfunction,
    module: CUmodule,
    name: *const c_char,
) -> CUresult {
    call("cuModuleGetFunction", |driver| {
        let (place, name) = unsafe { (out(function)?, text(name)?) };
        driver.current()?;
        place.set(driver.module_function(module, name)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetLoadingMode(mode: *mut c_int) -> CUresult {
    const EAGER: c_int = 1;
    call("cuModuleGetLoadingMode", |_| {
        unsafe { out(mode)? }.set(EAGER);
        Ok(())
    })
}

const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
const PREFERRED_SHARED_MEMORY_CARVEOUT: c_int = 9;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    function: CUfunction,
) -> CUresult {
    call("cuFuncGetAttribute", |driver| {
        let place = unsafe { out(value)? };
        let function = driver.modules.function(function)?;
        let (major, minor) = function.image.version();
        place.set(match attribute {
            0 => function.max_threads() as c_int,
            1 => function.kernel().static_shared() as c_int,
            2 | 3 => 0, // constant, local bytes
            4 => function.kernel().registers() as c_int,
            5 => (major * 10 + minor) as c_int,
            6 => driver.settings.capability as c_int,
            7 => 0, // cache mode
            MAX_DYNAMIC_SHARED_SIZE_BYTES => function.dynamic_shared_limit() as c_int,
            PREFERRED_SHARED_MEMORY_CARVEOUT => -1,
            _ => return Err(Status::INVALID_VALUE),
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(
    function: CUfunction,
    attribute: c_int,
    value: c_int,
) -> CUresult {
    call("cuFuncSetAttribute", |driver| match attribute {
        MAX_DYNAMIC_SHARED_SIZE_BYTES => driver.set_dynamic_shared_limit(function, value),
        PREFERRED_SHARED_MEMORY_CARVEOUT => driver.modules.function(function).map(|_| ()),
        _ => Err(Status::INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: CUfunction,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic_shared: c_uint,
    stream: CUstream,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    call("cuLaunchKernel", |driver| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let handle = stream;
        let stream = driver.find_stream(handle)?;
        let context = driver.streams[&stream].context;
        let function = driver.modules.function(function)?;
        driver.log.note(format_args!(
            "launch {} stream={handle:#x} ctx={context:#x} grid={grid:?} block={block:?}",
            function.name
        ));
        if function.context != context {
            driver.tell(&launched_abroad(function));
            return Err(Status::INVALID_HANDLE);
        }
        let shape = Shape { grid, block, dynamic_shared: dynamic_shared as usize };
        function.check(&shape)?;
        let params = unsafe { gather(function, params, extra)? };
        let kernel = function.launch(shape, params);
        driver.stats.launches += 1;
        driver.submit(stream, Work::Kernel(kernel))
    })
}

fn launched_abroad(function: &Function) -> String {
    format!("kernel {} is launched on a stream of another context than its module's", function.name)
}

/// The parameters as one block of memory, copied at the launch as the driver does.
unsafe fn gather(
    function: &Function,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Outcome<Vec<u8>> {
    let mut block = vec![0; function.params_size()];
    if block.is_empty() {
        return Ok(block);
    }
    match (params.is_null(), extra.is_null()) {
        (false, true) => {}
        (true, false) => return unsafe { gather_packed(block, extra) },
        _ => return Err(Status::INVALID_VALUE),
    }
    for (i, &(offset, size)) in function.kernel().params().iter().enumerate() {
        // SAFETY: one pointer for each parameter, to as many bytes as it has.
        let param: *const u8 = unsafe { *params.add(i) }.cast();
        if param.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        unsafe { param.copy_to_nonoverlapping(block[offset..][..size].as_mut_ptr(), size) };
    }
    Ok(block)
}

/// `extra`: pairs of a name and a value up to an end mark.
unsafe fn gather_packed(mut block: Vec<u8>, mut extra: *mut *mut c_void) -> Outcome<Vec<u8>> {
    const END: usize = 0;
    const BUFFER_POINTER: usize = 1;
    const BUFFER_SIZE: usize = 2;
    let (mut buffer, mut size) = (std::ptr::null::<u8>(), 0);
    // SAFETY: the list ends in `END`; the size is given by pointer.
    unsafe {
        loop {
            match *extra as usize {
                END => break,
                BUFFER_POINTER => buffer = (*extra.add(1)).cast(),
                BUFFER_SIZE => size = *(*extra.add(1)).cast::<usize>(),
                _ => return Err(Status::INVALID_VALUE),
            }
            extra = extra.add(2);
        }
        if buffer.is_null() || size < block.len() {
            return Err(Status::INVALID_VALUE);
        }
        buffer.copy_to_nonoverlapping(block.as_mut_ptr(), block.len());
    }
    Ok(block)
}
