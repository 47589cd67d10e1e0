//! What the driver knows of a pointer.

use super::{CUdeviceptr, CUresult};
use crate::{
    driver::{Driver, call},
    memory::{Allocation, Kind},
    status::{Outcome, Status},
};
use std::ffi::{c_int, c_uint, c_void};

const CONTEXT: c_int = 1;
const MEMORY_TYPE: c_int = 2;
const DEVICE_POINTER: c_int = 3;
const HOST_POINTER: c_int = 4;
const IS_MANAGED: c_int = 8;
const DEVICE_ORDINAL: c_int = 9;
const RANGE_START: c_int = 11;
const RANGE_SIZE: c_int = 12;
const MAPPED: c_int = 13;

/// An attribute is of 1, 4 or 8 bytes.
enum Value {
    Bool(bool),
    Int(u32),
    Long(u64),
}

impl Value {
    fn zero(attribute: c_int) -> Outcome<Value> {
        match attribute {
            IS_MANAGED | MAPPED => Ok(Value::Bool(false)),
            MEMORY_TYPE | DEVICE_ORDINAL => Ok(Value::Int(0)),
            CONTEXT | DEVICE_POINTER | HOST_POINTER | RANGE_START | RANGE_SIZE => {
                Ok(Value::Long(0))
            }
            _ => Err(Status::INVALID_VALUE),
        }
    }

    /// # Safety
    /// `place` is valid for a write of the attribute's size.
    unsafe fn store(&self, place: *mut c_void) {
        unsafe {
            match *self {
                Value::Bool(value) => place.cast::<bool>().write(value),
                Value::Int(value) => place.cast::<u32>().write(value),
                Value::Long(value) => place.cast::<u64>().write(value),
            }
        }
    }
}

/// `None` for what this kind of memory does not have.
fn attribute_of(allocation: &Allocation, attribute: c_int, address: u64) -> Outcome<Option<Value>> {
    const HOST: u32 = 1;
    const DEVICE: u32 = 2;
    let in_host_memory = matches!(allocation.kind, Kind::Pinned | Kind::Managed);
    Ok(match attribute {
        // Memory of a pool belongs to the device, to none of its contexts.
        CONTEXT => Some(Value::Long(if allocation.kind == Kind::Pool {
            0
        } else {
            allocation.context as u64
        })),
        MEMORY_TYPE => {
            Some(Value::Int(if allocation.kind == Kind::Pinned { HOST } else { DEVICE }))
        }
        DEVICE_POINTER => Some(Value::Long(address)),
        HOST_POINTER => in_host_memory.then_some(Value::Long(address)),
        IS_MANAGED => Some(Value::Bool(allocation.kind == Kind::Managed)),
        DEVICE_ORDINAL => Some(Value::Int(allocation.device as u32)),
        RANGE_START => Some(Value::Long(allocation.start)),
        RANGE_SIZE => Some(Value::Long(allocation.bytes as u64)),
        MAPPED => Some(Value::Bool(true)),
        _ => return Err(Status::INVALID_VALUE),
    })
}

/// A pointer that CUDA knows nothing of is an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuPointerGetAttribute(
    data: *mut c_void,
    attribute: c_int,
    address: CUdeviceptr,
) -> CUresult {
    call("cuPointerGetAttribute", |driver| {
        if data.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        driver.current()?;
        let allocation = driver.heap.live_around(address).ok_or(Status::INVALID_VALUE)?;
        let value = attribute_of(allocation, attribute, address)?.ok_or(Status::INVALID_VALUE)?;
        unsafe { value.store(data) };
        Ok(())
    })
}

/// A pointer that CUDA knows nothing of has attributes that are all zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuPointerGetAttributes(
    count: c_uint,
    attributes: *const c_int,
    data: *mut *mut c_void,
    address: CUdeviceptr,
) -> CUresult {
    call("cuPointerGetAttributes", |driver| {
        if count == 0 || attributes.is_null() || data.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        driver.current()?;
        for i in 0..count as usize {
            // SAFETY: `count` attributes and as many places.
            let (attribute, place) = unsafe { (*attributes.add(i), *data.add(i)) };
            if place.is_null() {
                return Err(Status::INVALID_VALUE);
            }
            let value = driver.attribute_or_zero(attribute, address)?;
            unsafe { value.store(place) };
        }
        Ok(())
    })
}

impl Driver {
    fn attribute_or_zero(&self, attribute: c_int, address: u64) -> Outcome<Value> {
        let Some(allocation) = self.heap.live_around(address) else {
            return Value::zero(attribute);
        };
        attribute_of(allocation, attribute, address)?.map_or_else(|| Value::zero(attribute), Ok)
    }
}
