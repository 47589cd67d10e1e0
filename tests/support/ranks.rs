//! Ranks as threads, and the sums over all of them, as a collective gives them.
use std::ffi::c_void;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Barrier, Mutex};

use super::device;
use diffcache::capi::dc_engine_t;

/// It must outlive the caches that it serves.
pub struct Collective {
    barrier: Barrier,
    sums: Mutex<Vec<f64>>,
    calls: AtomicUsize,
}

impl Collective {
    pub fn new(ranks: usize) -> Self {
        Self { barrier: Barrier::new(ranks), sums: Mutex::default(), calls: AtomicUsize::new(0) }
    }

    pub fn serve(&self, engine: &mut dc_engine_t) {
        engine.reduce = Some(add_over_ranks);
        engine.reduce_user = std::ptr::from_ref(self).cast_mut().cast();
    }

    /// Of all ranks together.
    pub fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }

    fn add(&self, own: &mut [f64]) {
        let lock = || self.sums.lock().expect("no rank panics");
        self.calls.fetch_add(1, Relaxed);
        self.barrier.wait();
        lock().resize(own.len(), 0.0);
        self.barrier.wait();
        lock().iter_mut().zip(&*own).for_each(|(sum, own)| *sum += own);
        self.barrier.wait();
        own.copy_from_slice(&lock());
        self.barrier.wait();
        lock().clear();
    }
}

unsafe extern "C-unwind" fn add_over_ranks(
    user: *mut c_void,
    sums: *mut f64,
    n: usize,
    stream: *mut c_void,
) -> i32 {
    // `serve` put it there; `sums` has n numbers, on the backend under test.
    let all = unsafe { &*user.cast::<Collective>() };
    if !device::on_cuda() {
        all.add(unsafe { slice::from_raw_parts_mut(sums, n) });
        return 0;
    }
    let mut bytes = vec![0; n * size_of::<f64>()];
    device::read(&mut bytes, sums.cast(), stream);
    let number = |bytes: &[u8]| f64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    let mut own: Vec<_> = bytes.chunks(size_of::<f64>()).map(number).collect();
    all.add(&mut own);
    let bytes: Vec<_> = own.iter().flat_map(|sum| sum.to_ne_bytes()).collect();
    device::write(sums.cast(), &bytes, stream);
    0
}
