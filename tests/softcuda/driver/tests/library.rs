//! The library as a program finds it: a shared object with the driver's names.

use std::{
    ffi::{CString, c_int},
    path::{Path, PathBuf},
};

/// Cargo builds it beside the tests.
fn built() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("libsoftcuda.so")
}

fn symbol(library: &Path, name: &str) -> usize {
    let (path, name) =
        (CString::new(library.to_str().unwrap()).unwrap(), CString::new(name).unwrap());
    // SAFETY: loading it runs nothing, and only an address is taken.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(!handle.is_null());
        libc::dlsym(handle, name.as_ptr()) as usize
    }
}

#[test]
fn it_has_the_drivers_names() {
    for name in ["cuInit", "cuMemAlloc_v2", "cuLaunchKernel", "cuStreamGetCtx", "softcuda_stats"] {
        assert_ne!(symbol(&built(), name), 0, "{name}");
    }
    assert_eq!(symbol(&built(), "cuMemAlloc_v99"), 0);
    let init: extern "C" fn(u32) -> c_int =
        unsafe { std::mem::transmute(symbol(&built(), "cuInit")) };
    assert_eq!(init(0), 0);
}

/// How an old driver that lacks a symbol is made: the name is changed in a copy of the file.
#[test]
fn a_symbol_can_be_taken_away() {
    let (missing, instead) = (b"cuStreamGetCtx", b"cuStreamGetXxx");
    let mut bytes = std::fs::read(built()).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - missing.len()).filter(|&i| bytes[i..].starts_with(missing)).collect();
    for place in places {
        bytes[place..][..instead.len()].copy_from_slice(instead);
    }
    let copy = built().with_file_name("libsoftcuda-without-a-symbol.so");
    std::fs::write(&copy, bytes).unwrap();
    assert_eq!(symbol(&copy, "cuStreamGetCtx"), 0);
    assert_ne!(symbol(&copy, "cuStreamSynchronize"), 0);
    assert_ne!(symbol(&built(), "cuStreamGetCtx"), 0);
}
