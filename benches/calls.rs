//! What a call costs when there is nothing to compute: through the C ABI, tensors of a few bytes.
use criterion::Criterion;
use diffcache::capi::*;
use std::ffi::CStr;
use std::hint::black_box;
use std::ptr::{null, null_mut};
use std::time::Duration;

const BLOCKS: u32 = 57;

fn ok(status: dc_status_t) {
    assert_eq!(status, DC_OK, "{:?}", unsafe { CStr::from_ptr(dc_last_error()) });
}

fn create(text: &CStr) -> *mut dc_cache_t {
    let (mut engine, mut options, mut cache): (dc_engine_t, dc_options_t, _) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed(), null_mut()) };
    unsafe {
        ok(dc_engine_init(&mut engine, size_of::<dc_engine_t>()));
        (engine.n_blocks, engine.hooks, engine.n_branches) = (BLOCKS, DC_HOOK_EACH, 4);
        ok(dc_options_init(&mut options, size_of::<dc_options_t>(), null()));
        ok(dc_options_parse(&mut options, text.as_ptr()));
        ok(dc_cache_create(&engine, &options, &mut cache));
    }
    cache
}

fn begin_run(cache: *mut dc_cache_t) {
    let mut run: dc_run_t = unsafe { std::mem::zeroed() };
    run.struct_size = size_of::<dc_run_t>() as u32;
    ok(unsafe { dc_cache_begin_run(cache, &run) });
}

fn pass(step: u32) -> dc_pass_t {
    let mut pass: dc_pass_t = unsafe { std::mem::zeroed() };
    (pass.struct_size, pass.n_branches, pass.step) = (size_of::<dc_pass_t>() as u32, 1, step);
    pass
}

fn tensor(data: &mut [f32]) -> dc_tensor_t {
    let mut tensor: dc_tensor_t = unsafe { std::mem::zeroed() };
    (tensor.data, tensor.dtype, tensor.ndim) = (data.as_mut_ptr().cast(), DC_F32, 1);
    tensor.shape[0] = data.len() as i64;
    tensor
}

fn whole_pass(cache: *mut dc_cache_t, x: &dc_tensor_t, step: u32) {
    unsafe {
        dc_cache_begin_pass(cache, &pass(step));
        for block in 0..BLOCKS {
            if dc_cache_before_block(cache, block, x, null(), 1) == DC_COMPUTE {
                dc_cache_after_block(cache, block, x, 1);
            }
        }
        let _ = dc_cache_end_pass(cache);
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .configure_from_args()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    let mut data = [1.0f32; 8];
    let x = tensor(&mut data);

    let pair = |cache: *mut dc_cache_t, block: u32| unsafe {
        black_box(dc_cache_before_block(cache, block, &x, null(), 1));
        dc_cache_after_block(cache, block, &x, 1);
    };
    criterion.bench_function("a before/after pair, null cache", |b| {
        b.iter(|| pair(black_box(null_mut()), 20));
    });

    // Blocks inside the skipped part are neither measured nor kept.
    let cache = create(c"fbcache,threshold=1e-9");
    begin_run(cache);
    let mut step = 0;
    criterion.bench_function("a pass of 57 blocks that computes, tensors of 32 bytes", |b| {
        b.iter(|| {
            whole_pass(cache, &x, step);
            step += 1;
        });
    });
    let skipping = create(c"mask,mask=1000");
    begin_run(skipping);
    let mut step = 0;
    criterion.bench_function("a pass of 57 blocks that skips, tensors of 32 bytes", |b| {
        b.iter(|| {
            whole_pass(skipping, &x, step);
            step += 1;
        });
    });
    criterion.bench_function("begin_pass and end_pass of the preset none", |b| {
        let none = create(c"none");
        begin_run(none);
        let mut step = 0;
        b.iter(|| unsafe {
            dc_cache_begin_pass(none, &pass(step));
            step += 1;
            dc_cache_end_pass(none)
        });
        dc_cache_destroy(none);
    });
    criterion.bench_function("peek at the next pass", |b| {
        b.iter(|| unsafe { dc_cache_peek(skipping, &pass(step), 20) });
    });
    criterion.bench_function("stats", |b| {
        let mut stats: dc_stats_t = unsafe { std::mem::zeroed() };
        stats.struct_size = size_of::<dc_stats_t>() as u32;
        b.iter(|| unsafe { dc_cache_stats(skipping, &mut stats) });
    });
    criterion.bench_function("create and destroy", |b| {
        b.iter(|| dc_cache_destroy(create(c"fbcache")));
    });
    dc_cache_destroy(cache);
    dc_cache_destroy(skipping);
    criterion.final_summary();
}
