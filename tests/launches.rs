//! How often a device is given work: once for all tensors of a block, where the same kernel does for
//! them. Only the stand-in for the driver tells, so on anything else this says nothing.
mod support;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use support::*;

/// The stand-in's log of calls.
struct Log {
    start: unsafe extern "C" fn(),
    text: unsafe extern "C" fn(*mut c_char, usize, *mut usize) -> c_int,
}

impl Log {
    fn of_the_stand_in() -> Option<Self> {
        if !device::on_cuda() {
            return None;
        }
        let start = device::stand_in("softcuda_log_start")?;
        let text = device::stand_in("softcuda_log_text")?;
        // These are the types that it gives them.
        Some(unsafe {
            Self {
                start: std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(start),
                text: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_char, usize, *mut usize) -> c_int,
                >(text),
            }
        })
    }

    /// What `work` gives the device to do: kernels by their names, and the driver's own copies.
    fn queued(&self, work: impl FnOnce()) -> Vec<String> {
        let mut text = vec![0; 1 << 16];
        unsafe { (self.start)() };
        work();
        let code = unsafe { (self.text)(text.as_mut_ptr().cast(), text.len(), null_mut()) };
        assert_eq!(code, 0);
        let text = CStr::from_bytes_until_nul(&text).expect("it ends").to_str().expect("UTF-8");
        let of_line = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
            ["launch", kernel, ..] => Some(kernel.to_owned()),
            ["copy_dtod", ..] => Some("copy".to_owned()),
            _ => None,
        };
        text.lines().filter_map(of_line).collect()
    }
}

/// What each pass of a model of three blocks queues, whose blocks work on tensors of these dtypes, and
/// of unlike shapes.
fn passes(log: &Log, options: &str, dtypes: &[Dtype]) -> Vec<Vec<String>> {
    let all = (1 << dtypes.len()) - 1;
    let cache = Setup::new(3, options).with(|engine| engine.measure = all).create();
    let shape = |k| [40 - 13 * k, 64];
    let tensors = dtypes.iter().enumerate();
    let x: Vec<_> = tensors.map(|(k, dtype)| Tensor::new(*dtype, &shape(k))).collect();
    ok(cache.begin_run(10));
    let pass = |step: u32| {
        x.iter().for_each(|x| x.fill(1.0 + step as f32));
        ok(cache.begin_pass(&pass_of(step, &[0])));
        let mut queued = Vec::new();
        for block in 0..3 {
            let mut action = DC_COMPUTE;
            queued.extend(log.queued(|| action = cache.before(block, &x)));
            if action == DC_COMPUTE {
                x.iter().for_each(|x| x.map(|x| 1.25 * x));
                queued.extend(log.queued(|| cache.after(block, &x)));
            }
        }
        ok(cache.end_pass());
        queued
    };
    (0..4).map(pass).collect()
}

#[test]
fn the_tensors_of_a_block_share_their_launches() {
    let Some(log) = Log::of_the_stand_in() else { return };
    let text = "fbcache,estimator=taylor,warmup_steps=2,max_error=none,max_gain=none,threshold=9";
    for dtypes in [&DTYPES[..1], &DTYPES[..2], &DTYPES] {
        // A copy of one tensor is the driver's.
        let copy = if dtypes.len() == 1 { "copy" } else { "combine_rows_0" };
        let passes = passes(&log, text, dtypes);
        // The input's copy and what the front adds, the stack's input and what the stack adds.
        let computed = [copy, "combine_rows_1", copy, "combine_rows_1"];
        // The input's copy, the measurement, and the stack's input with two values added.
        let skipped = [copy, "measure_rows", "combine_rows_2"];
        assert_eq!(passes[..2], [computed; 2], "{dtypes:?}");
        assert_eq!(passes[2..], [skipped; 2], "{dtypes:?}");
    }
}
