//! What calls cost that touch no tensor, or hardly any: an engine makes hundreds of them a step.
//!
//! The library is the shared one, opened as an engine's linker would: nothing is inlined. `cargo bench` has built it beside
//! this program; DIFFCACHE_SO names another. The engine has 57 blocks and stacks 4 branches.
use criterion::Criterion;
use diffcache::capi::*;
use figures::{Spread, Target, report};
use std::ffi::{CString, c_char, c_void};
use std::hint::black_box;
use std::path::PathBuf;
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

mod figures;

const BLOCKS: u32 = 57;
const LAYERS: u32 = 2 * BLOCKS;
const BRANCHES: usize = 4;
const WIDTH: usize = 16;
/// Nothing but the rule decides.
const NO_RAILS: &str =
    "warmup_steps=0,last_steps=0,max_consecutive=none,max_error=none,max_gain=none,max_age=none";

// ---- the library ----

macro_rules! api {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions, as the dynamic linker finds them.
        struct Api {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Api {
            /// # Safety
            /// `library` is a libdiffcache of this version, and stays open.
            unsafe fn of(library: *mut c_void) -> Self {
                let find = |name: &str| {
                    let name = CString::new(name).expect("no NUL");
                    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
                    assert!(!found.is_null(), "the library has no {name:?}");
                    found
                };
                // Each has the type that the header gives it.
                Self { $($name: unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(find(stringify!($name))) },)* }
            }
        }
    };
}

api! {
    dc_engine_init: fn(*mut dc_engine_t, usize) -> dc_status_t;
    dc_options_init: fn(*mut dc_options_t, usize, *const c_char) -> dc_status_t;
    dc_options_parse: fn(*mut dc_options_t, *const c_char) -> dc_status_t;
    dc_cache_create: fn(*const dc_engine_t, *const dc_options_t, *mut *mut dc_cache_t) -> dc_status_t;
    dc_cache_destroy: fn(*mut dc_cache_t);
    dc_cache_begin_run: fn(*mut dc_cache_t, *const dc_run_t) -> dc_status_t;
    dc_cache_begin_pass: fn(*mut dc_cache_t, *const dc_pass_t) -> dc_status_t;
    dc_cache_end_pass: fn(*mut dc_cache_t) -> dc_status_t;
    dc_cache_before_block: fn(*mut dc_cache_t, u32, *const dc_tensor_t, *const dc_tensor_t, usize) -> dc_action_t;
    dc_cache_after_block: fn(*mut dc_cache_t, u32, *const dc_tensor_t, usize);
    dc_cache_before_layer: fn(*mut dc_cache_t, u32, dc_kind_t, *const dc_tensor_t, usize) -> dc_action_t;
    dc_cache_after_layer: fn(*mut dc_cache_t, u32, *const dc_tensor_t, usize);
    dc_cache_peek: fn(*mut dc_cache_t, *const dc_pass_t, u32) -> dc_action_t;
    dc_cache_stats: fn(*const dc_cache_t, *mut dc_stats_t) -> dc_status_t;
}

/// DIFFCACHE_SO, else what was built with this program.
fn library() -> PathBuf {
    let named = std::env::var_os("DIFFCACHE_SO").map(PathBuf::from);
    named.unwrap_or_else(|| {
        let program = std::env::current_exe().expect("a program knows its place");
        program.with_file_name("libdiffcache.so")
    })
}

fn open() -> &'static Api {
    let path = library();
    let name = CString::new(path.to_str().expect("a path in UTF-8")).expect("no NUL");
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null(), "{path:?} cannot be opened; DIFFCACHE_SO may name another");
    Box::leak(Box::new(unsafe { Api::of(library) }))
}

// ---- an engine ----

/// A cache in a run without an end, and the tensor that it is shown.
struct Scene {
    api: &'static Api,
    cache: *mut dc_cache_t,
    pass: dc_pass_t,
    /// Boxed, because `x` points at it.
    data: Box<[f32; BRANCHES * WIDTH]>,
    x: dc_tensor_t,
}

fn ok(status: dc_status_t) {
    assert_eq!(status, DC_OK);
}

fn engine(api: &Api) -> dc_engine_t {
    let mut engine = unsafe { std::mem::zeroed::<dc_engine_t>() };
    ok(unsafe { (api.dc_engine_init)(&mut engine, size_of::<dc_engine_t>()) });
    engine.hooks = DC_HOOK_EACH | DC_HOOK_BLOCKS | DC_HOOK_LAYERS;
    (engine.n_blocks, engine.n_layers) = (BLOCKS, LAYERS);
    (engine.n_branches, engine.max_stacked) = (BRANCHES as u32, BRANCHES as u32);
    engine.n_threads = 1;
    engine
}

fn options(api: &Api, text: &str) -> dc_options_t {
    let mut options = unsafe { std::mem::zeroed::<dc_options_t>() };
    let text = CString::new(text).expect("no NUL");
    unsafe {
        ok((api.dc_options_init)(&mut options, size_of::<dc_options_t>(), null()));
        ok((api.dc_options_parse)(&mut options, text.as_ptr()));
    }
    options
}

impl Scene {
    fn new(api: &'static Api, text: &str) -> Self {
        let (engine, options) = (engine(api), options(api, text));
        let mut cache = null_mut();
        let mut run = unsafe { std::mem::zeroed::<dc_run_t>() };
        (run.struct_size, run.timestep_max) = (size_of::<dc_run_t>() as u32, 1000.0);
        unsafe {
            ok((api.dc_cache_create)(&engine, &options, &mut cache));
            ok((api.dc_cache_begin_run)(cache, &run));
        }
        let mut pass = unsafe { std::mem::zeroed::<dc_pass_t>() };
        (pass.struct_size, pass.n_branches) = (size_of::<dc_pass_t>() as u32, BRANCHES as u32);
        (0..BRANCHES).for_each(|branch| pass.branches[branch] = branch as u32);
        (pass.flags, pass.timestep) = (DC_PASS_TIMESTEP, 500.0);
        let mut data = Box::new(std::array::from_fn(|k| 1.0 + 0.01 * k as f32));
        let mut x = unsafe { std::mem::zeroed::<dc_tensor_t>() };
        (x.data, x.dtype, x.ndim) = ((&raw mut *data).cast(), DC_F32, 2);
        (x.shape[0], x.shape[1]) = (BRANCHES as i64, WIDTH as i64);
        Self { api, cache, pass, data, x }
    }

    fn begin(&mut self) {
        // What the front adds is new in every pass.
        self.data[0] = 1.0 + self.pass.step as f32;
        ok(unsafe { (self.api.dc_cache_begin_pass)(self.cache, &self.pass) });
        self.pass.step += 1;
    }

    fn end(&mut self) {
        ok(unsafe { (self.api.dc_cache_end_pass)(self.cache) });
    }

    #[inline(always)]
    fn pair(&mut self, block: u32) -> dc_action_t {
        let (api, x) = (self.api, &raw const self.x);
        unsafe {
            let action = (api.dc_cache_before_block)(self.cache, block, x, null(), 1);
            if action == DC_COMPUTE {
                self.data[0] *= 2.0;
                (api.dc_cache_after_block)(self.cache, block, x, 1);
            }
            action
        }
    }

    /// One pass, its time: of `begin` and `end`, and of the pairs that touch no tensor.
    fn pass(&mut self, expected: dc_action_t) -> (Duration, Duration) {
        let start = Instant::now();
        self.begin();
        let begun = start.elapsed();
        self.pair(0);
        assert_eq!(self.pair(1), expected);
        let start = Instant::now();
        (2..BLOCKS - 1).for_each(|block| assert_eq!(self.pair(black_box(block)), expected));
        let inside = start.elapsed();
        self.pair(BLOCKS - 1);
        let start = Instant::now();
        self.end();
        (begun + start.elapsed(), inside)
    }

    fn layers(&mut self, expected: dc_action_t) {
        self.begin();
        let (api, x) = (self.api, &raw const self.x);
        for layer in 0..LAYERS {
            let kind = if layer % 2 == 0 { DC_KIND_SPATIAL } else { DC_KIND_MLP };
            unsafe {
                let action = (api.dc_cache_before_layer)(self.cache, layer, kind, x, 1);
                assert_eq!(action, expected);
                if action == DC_COMPUTE {
                    (api.dc_cache_after_layer)(self.cache, layer, x, 1);
                }
            }
        }
        self.end();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        unsafe { (self.api.dc_cache_destroy)(self.cache) };
    }
}

/// Pairs inside a span of one pass.
const PAIRS: u64 = BLOCKS as u64 - 3;

/// The time of so many passes, as `of` counts it.
fn passes(
    scene: &mut Scene,
    n: u64,
    expected: dc_action_t,
    of: fn((Duration, Duration)) -> Duration,
) -> Duration {
    (0..n).map(|_| of(scene.pass(expected))).sum()
}

/// The time of `n` calls of `f`.
fn timed(n: u64, mut f: impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..n).for_each(|_| f());
    start.elapsed()
}

// ---- figures ----

/// Shows a figure twice: criterion's estimate, and a row of the table. `time` takes a number of repeats and gives their
/// time; each is `units` calls.
fn figure(
    criterion: &mut Criterion,
    name: &str,
    target: Target,
    units: u64,
    mut time: impl FnMut(u64) -> Duration,
) -> Spread {
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|n| {
            time(n.div_ceil(units)).mul_f64(n as f64 / (n.div_ceil(units) * units) as f64)
        });
    });
    // As many repeats as take about a centisecond.
    let once = time(16).as_nanos().max(1) / 16;
    let n = (10_000_000 / once.max(1)).clamp(1, 1 << 20) as u64;
    let spread = Spread::of((0..41).map(|_| time(n).as_nanos() as f64 / (n * units) as f64));
    report("calls", name, spread, "ns", target, "");
    spread
}

fn pairs(criterion: &mut Criterion, api: &'static Api) {
    let mut off = Scene::off(api);
    figure(criterion, "before/after pair, null cache", Target::AtMost(20.0), 1, |n| {
        timed(n, || assert_eq!(off.pair(black_box(3)), DC_COMPUTE))
    });
    let skipped = format!("fbcache,{NO_RAILS},threshold=1e9");
    for (name, text, expected) in [
        ("before/after pair, preset none", "none".to_owned(), DC_COMPUTE),
        (
            "before/after pair, inside a computed span",
            format!("fbcache,{NO_RAILS},threshold=1e-9"),
            DC_COMPUTE,
        ),
        ("before/after pair, inside a skipped span", skipped.clone(), DC_SKIP),
    ] {
        let mut scene = Scene::warm(api, &text);
        let pairs = |n| passes(&mut scene, n, expected, |(_, inside)| inside);
        figure(criterion, name, Target::AtMost(150.0), PAIRS, pairs);
        let mut scene = Scene::warm(api, &text);
        let ends = |n| passes(&mut scene, n, expected, |(ends, _)| ends);
        let name = name
            .replace("before/after pair, inside a", "begin/end pass of a")
            .replace("before/after pair", "begin/end pass");
        figure(criterion, &name, Target::AtMost(500.0), 1, ends);
    }
    let crowd: Vec<_> = (0..1000).map(|_| Scene::opened(api, "fbcache")).collect();
    let mut scene = Scene::warm(api, &skipped);
    let pairs = |n| passes(&mut scene, n, DC_SKIP, |(_, inside)| inside);
    let name = "before/after pair, 1000 other passes open";
    figure(criterion, name, Target::AtMost(150.0), PAIRS, pairs);
    drop(crowd);
}

impl Scene {
    /// Without a cache.
    fn off(api: &'static Api) -> Self {
        let mut scene = Self::new(api, "none");
        unsafe { (api.dc_cache_destroy)(std::mem::replace(&mut scene.cache, null_mut())) };
        scene
    }

    /// After its first pass, which computes.
    fn warm(api: &'static Api, text: &str) -> Self {
        let mut scene = Self::new(api, text);
        scene.pass(DC_COMPUTE);
        scene
    }

    fn opened(api: &'static Api, text: &str) -> Self {
        let mut scene = Self::new(api, text);
        scene.begin();
        scene
    }
}

fn looks(criterion: &mut Criterion, api: &'static Api) {
    let at_most = Target::AtMost(50.0);
    let scene = Scene::warm(api, "fbcache,warmup_steps=4000000000");
    let peek = |pass: *const dc_pass_t, cache| {
        assert_eq!(unsafe { (api.dc_cache_peek)(cache, pass, 1) }, DC_COMPUTE);
    };
    figure(criterion, "peek at the next pass", at_most, 1, |n| {
        timed(n, || peek(&scene.pass, scene.cache))
    });
    let open = Scene::opened(api, "fbcache,warmup_steps=4000000000");
    figure(criterion, "peek at the open pass", at_most, 1, |n| {
        timed(n, || peek(null(), open.cache))
    });
    let mut ahead = scene.pass;
    ahead.step += 10;
    figure(criterion, "peek 10 passes ahead", Target::None, 1, |n| {
        timed(n, || peek(&ahead, scene.cache))
    });
    let mut stats = unsafe { std::mem::zeroed::<dc_stats_t>() };
    stats.struct_size = size_of::<dc_stats_t>() as u32;
    figure(criterion, "stats", Target::None, 1, |n| {
        timed(n, || ok(unsafe { (api.dc_cache_stats)(scene.cache, &mut stats) }))
    });
}

fn caches(criterion: &mut Criterion, api: &'static Api) {
    let (engine, options) = (engine(api), options(api, "fbcache"));
    figure(criterion, "create and destroy", Target::AtMost(20_000.0), 1, |n| {
        timed(n, || unsafe {
            let mut cache = null_mut();
            ok((api.dc_cache_create)(&engine, &options, &mut cache));
            (api.dc_cache_destroy)(cache);
        })
    });
    let scene = Scene::new(api, "fbcache");
    let mut run = unsafe { std::mem::zeroed::<dc_run_t>() };
    (run.struct_size, run.n_steps) = (size_of::<dc_run_t>() as u32, 50);
    figure(criterion, "begin_run", Target::None, 1, |n| {
        timed(n, || ok(unsafe { (api.dc_cache_begin_run)(scene.cache, &run) }))
    });
}

/// A spatial and an MLP layer in each block, of 16 elements for each branch.
fn layers(criterion: &mut Criterion, api: &'static Api) {
    let mut of = |name: &str, text: &str, expected| {
        let mut scene = Scene::new(api, text);
        scene.layers(DC_COMPUTE);
        let name = format!("before/after a layer, {name}");
        figure(criterion, &name, Target::None, u64::from(LAYERS), |n| {
            timed(n, || scene.layers(expected))
        })
    };
    let none = of("preset none", "none", DC_COMPUTE);
    let computed = of("computed by taylorseer", "taylorseer,warmup_steps=4000000000", DC_COMPUTE);
    let skipped = format!("taylorseer,every=4000000000,{NO_RAILS}");
    let skipped = of("skipped by taylorseer", &skipped, DC_SKIP);
    for (name, spread) in [("computed", computed), ("skipped", skipped)] {
        let Spread { median, low, high } = spread;
        let by = none.median;
        let ratio = Spread { median: median / by, low: low / by, high: high / by };
        report("calls", &format!("a tiny layer {name}"), ratio, "x", Target::None, "preset none");
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .nresamples(1000)
        .configure_from_args();
    let api = open();
    pairs(&mut criterion, api);
    looks(&mut criterion, api);
    caches(&mut criterion, api);
    layers(&mut criterion, api);
    criterion.final_summary();
}
