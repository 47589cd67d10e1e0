//! FirstBlockCache held against diffusers' own: its recorded runs (`conformance/README.md`) are
//! replayed through the C ABI by an engine whose blocks return what was recorded.
//!
//! Each run is replayed twice over. With `compat=diffusers`, decisions, metrics and tensors must be
//! those of diffusers. Without it, and without rails, they must be those of the corrected rule in
//! f64. No recorded decision is so near its threshold that the order of a sum could turn it (the
//! script sees to that), so decisions are compared without exception.

mod support;

use std::ffi::{CStr, CString, c_void};
use std::{fmt, mem, ptr};

use diffcache::capi::*;
use half::{bf16, f16};
use support::Dtype;
use support::recording::Recording;

// ---- the recordings ----

fn recordings() -> Vec<Recording> {
    Recording::all("fbcache")
}

/// One row of `value`: the bytes of each stream.
fn streams<'a>(recording: &'a Recording, value: &str, row: usize) -> Vec<&'a [u8]> {
    let of = |stream| recording.stack(&format!("{value}.{stream}"));
    recording.list("streams").into_iter().map(|stream| of(stream).rows[row].as_slice()).collect()
}

fn shapes(recording: &Recording) -> Vec<Vec<i64>> {
    let of = |stream| &recording.stack(&format!("x.cond.{stream}")).shape;
    let extents = |stream| of(stream).iter().map(|extent| *extent as i64).collect();
    recording.list("streams").into_iter().map(extents).collect()
}

#[derive(Clone, Copy)]
enum Rule {
    Diffusers,
    Corrected,
}

/// One threshold of a recording, under one rule.
struct Run<'a> {
    recording: &'a Recording,
    rule: Rule,
    index: usize,
}

impl Run<'_> {
    fn key(&self, value: &str, branch: &str) -> String {
        let rule = match self.rule {
            Rule::Diffusers => "diffusers",
            Rule::Corrected => "corrected",
        };
        format!("{}.{rule}.{value}.{branch}", self.index)
    }

    fn options(&self) -> String {
        let rails = match self.rule {
            Rule::Diffusers => "compat=diffusers",
            Rule::Corrected => {
                "warmup_steps=0,last_steps=0,max_consecutive=none,max_error=none,max_age=none"
            }
        };
        format!("fbcache,{rails},threshold={}", self.recording.list("thresholds")[self.index])
    }

    fn decisions(&self, branch: &str) -> &str {
        self.recording.text(&self.key("decisions", branch))
    }

    /// NaN where nothing was measured.
    fn metrics(&self, branch: &str) -> Vec<f64> {
        let number = |word: &str| if word == "-" { f64::NAN } else { word.parse().unwrap() };
        self.recording.list(&self.key("metrics", branch)).into_iter().map(number).collect()
    }

    /// The recorded output of the `row`-th reused pass.
    fn reused(&self, branch: &str, row: usize) -> Vec<&[u8]> {
        streams(self.recording, &self.key("reused", branch), row)
    }
}

impl fmt::Display for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} with \"{}\"", self.recording.text("name"), self.options())
    }
}

// ---- the engine ----

/// The ways in which an engine may hold what flows through its blocks.
#[derive(Clone, Copy, Debug)]
enum Buffers {
    /// Every block works in place.
    One,
    /// Block 0 leaves its input alone, and the engine says so.
    InputKept,
    /// The result of a skipped span goes into buffers of its own.
    ResultApart,
}

/// A tensor of the engine: aligned for any dtype.
struct Buffer {
    words: Vec<u64>,
    len: usize,
}

impl Buffer {
    fn new(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer { words: vec![0; bytes.len().div_ceil(8)], len: bytes.len() };
        buffer.set(bytes);
        buffer
    }

    fn data(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast()
    }

    fn set(&mut self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.len);
        // SAFETY: `words` owns at least `len` bytes.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.data(), self.len) }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) }
    }
}

fn buffers(streams: &[&[u8]]) -> Vec<Buffer> {
    streams.iter().map(|bytes| Buffer::new(bytes)).collect()
}

fn bytes_of(buffers: &[Buffer]) -> Vec<&[u8]> {
    buffers.iter().map(Buffer::bytes).collect()
}

fn set(buffers: &mut [Buffer], streams: &[&[u8]]) {
    buffers.iter_mut().zip(streams).for_each(|(buffer, bytes)| buffer.set(bytes));
}

/// NaN in every dtype.
fn spoil(buffers: &mut [Buffer]) {
    buffers.iter_mut().for_each(|buffer| buffer.words.fill(u64::MAX));
}

fn zeroed<T>() -> T {
    // SAFETY: used for the plain C structs of the API only, for all of which zero bytes are a value.
    unsafe { mem::zeroed() }
}

fn ok(status: dc_status_t) {
    // SAFETY: both functions return C strings, static or the thread's own.
    let (name, text) =
        unsafe { (CStr::from_ptr(dc_status_name(status)), CStr::from_ptr(dc_last_error())) };
    assert_eq!(status, DC_OK, "{name:?}: {text:?}");
}

/// What a replay showed of one branch.
#[derive(Default)]
struct Branch {
    decisions: String,
    metrics: Vec<f64>,
    /// Per reused pass and stream.
    reused: Vec<Vec<Vec<u8>>>,
}

struct Replay {
    branches: Vec<Branch>,
    stats: dc_stats_t,
}

struct Engine<'a> {
    run: &'a Run<'a>,
    buffers: Buffers,
    cache: *mut dc_cache_t,
}

impl Engine<'_> {
    fn new<'a>(run: &'a Run, buffers: Buffers) -> Engine<'a> {
        let mut engine: dc_engine_t = zeroed();
        let mut options: dc_options_t = zeroed();
        let mut cache = ptr::null_mut();
        let text = CString::new(run.options()).unwrap();
        // SAFETY: every pointer is to a live local.
        unsafe {
            ok(dc_engine_init(&mut engine, size_of::<dc_engine_t>()));
            engine.hooks = DC_HOOK_EACH;
            engine.n_blocks = run.recording.count("n_blocks") as u32;
            engine.n_branches = run.recording.list("branches").len() as u32;
            if matches!(buffers, Buffers::InputKept) {
                engine.flags |= DC_ENGINE_KEEPS_INPUT;
            }
            ok(dc_options_init(&mut options, size_of::<dc_options_t>(), ptr::null()));
            ok(dc_options_parse(&mut options, text.as_ptr()));
            ok(dc_cache_create(&engine, &options, &mut cache));
        }
        Engine { run, buffers, cache }
    }

    fn tensors(&self, buffers: &mut [Buffer]) -> Vec<dc_tensor_t> {
        let dtype = match self.run.recording.dtype {
            Dtype::F16 => DC_F16,
            Dtype::Bf16 => DC_BF16,
            _ => DC_F32,
        };
        let tensor = |(buffer, shape): (&mut Buffer, Vec<i64>)| {
            let mut tensor: dc_tensor_t = zeroed();
            tensor.data = buffer.data().cast::<c_void>();
            tensor.dtype = dtype;
            tensor.ndim = shape.len() as u32;
            tensor.shape[..shape.len()].copy_from_slice(&shape);
            tensor
        };
        buffers.iter_mut().zip(shapes(self.run.recording)).map(tensor).collect()
    }

    fn before(&self, block: u32, x: &mut [Buffer], out: Option<&mut [Buffer]>) -> dc_action_t {
        let n = x.len();
        let x = self.tensors(x);
        let out = out.map(|out| self.tensors(out));
        let out = out.as_ref().map_or(ptr::null(), |out| out.as_ptr());
        // SAFETY: the views name live buffers of the sizes they state.
        unsafe { dc_cache_before_block(self.cache, block, x.as_ptr(), out, n) }
    }

    fn after(&self, block: u32, x: &mut [Buffer]) {
        let views = self.tensors(x);
        // SAFETY: as above.
        unsafe { dc_cache_after_block(self.cache, block, views.as_ptr(), views.len()) }
    }

    /// One evaluation of the model: whether the blocks after the first were skipped, and the output.
    fn pass(&self, step: usize, branch: usize) -> (bool, Vec<Buffer>) {
        let recording = self.run.recording;
        let n_blocks = recording.count("n_blocks") as u32;
        let name = recording.list("branches")[branch];
        let recorded = |value| streams(recording, &format!("{value}.{name}"), step);

        let mut pass: dc_pass_t = zeroed();
        pass.struct_size = size_of::<dc_pass_t>() as u32;
        pass.step = step as u32;
        pass.n_branches = 1;
        pass.branches[0] = branch as u32;
        // SAFETY: `pass` is a live local.
        unsafe { ok(dc_cache_begin_pass(self.cache, &pass)) };

        let mut x = buffers(&recorded("x"));
        assert_eq!(self.before(0, &mut x, None), DC_COMPUTE, "block 0 always runs");
        let mut spare = buffers(&recorded("h1"));
        if matches!(self.buffers, Buffers::One) {
            set(&mut x, &recorded("h1"));
        } else {
            mem::swap(&mut x, &mut spare); // the input stands in `spare`
        }
        self.after(0, &mut x);

        let mut result = buffers(&recorded("h1"));
        spoil(&mut result);
        let apart = matches!(self.buffers, Buffers::ResultApart);
        let first = self.before(1, &mut x, apart.then_some(&mut result));
        if first == DC_SKIP && apart {
            assert_eq!(bytes_of(&x), recorded("h1"), "`in` stands where `out` is given");
            x = result;
        }
        for block in 1..n_blocks {
            let answer = if block == 1 { first } else { self.before(block, &mut x, None) };
            assert_eq!(answer, first, "one answer for all blocks of the span");
            if answer == DC_SKIP {
                continue;
            }
            if block == n_blocks - 1 {
                set(&mut x, &recorded("y"));
            } else {
                spoil(&mut x); // what flows inside the span is none of the cache's business
            }
            self.after(block, &mut x);
        }
        // SAFETY: a handle is always valid to pass.
        ok(dc_cache_end_pass(self.cache));
        if first == DC_COMPUTE {
            assert_eq!(bytes_of(&x), recorded("y"), "a computed pass is the engine's own");
        }
        (first == DC_SKIP, x)
    }

    fn replay(&self) -> Replay {
        let recording = self.run.recording;
        let mut branches: Vec<Branch> = Vec::new();
        branches.resize_with(recording.list("branches").len(), Branch::default);

        let mut run: dc_run_t = zeroed();
        run.struct_size = size_of::<dc_run_t>() as u32;
        run.n_steps = recording.count("steps") as u32;
        // SAFETY: `run` is a live local.
        unsafe { ok(dc_cache_begin_run(self.cache, &run)) };
        for step in 0..recording.count("steps") {
            for (number, branch) in branches.iter_mut().enumerate() {
                let (skipped, output) = self.pass(step, number);
                branch.decisions.push(if skipped { 's' } else { 'C' });
                if skipped {
                    branch.reused.push(output.iter().map(|one| one.bytes().to_vec()).collect());
                }
            }
        }

        for record in self.trace() {
            let branch = &mut branches[record.branch as usize];
            assert_eq!(record.step as usize, branch.metrics.len(), "one record a pass");
            let skipped = branch.decisions.as_bytes()[record.step as usize] == b's';
            assert_eq!(record.action == DC_SKIP, skipped, "the trace tells what was answered");
            branch.metrics.push(record.change);
        }
        let mut stats: dc_stats_t = zeroed();
        stats.struct_size = size_of::<dc_stats_t>() as u32;
        // SAFETY: `stats` is a live local.
        unsafe { ok(dc_cache_stats(self.cache, &mut stats)) };
        Replay { branches, stats }
    }

    fn trace(&self) -> Vec<dc_trace_t> {
        let mut n = 0;
        let size = size_of::<dc_trace_t>();
        // SAFETY: a capacity of 0 writes only `n`; then there is room for `n` records.
        unsafe {
            ok(dc_cache_trace(self.cache, ptr::null_mut(), size, 0, &mut n));
            let mut records: Vec<dc_trace_t> = (0..n).map(|_| zeroed()).collect();
            ok(dc_cache_trace(self.cache, records.as_mut_ptr(), size, n, &mut n));
            records
        }
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `dc_cache_create`, destroyed once.
        dc_cache_destroy(self.cache);
    }
}

/// Replays every run under `rule`, with engines of every build, and hands it to `check`.
fn replay_all(rule: Rule, mut check: impl FnMut(&Run, &Replay)) {
    for recording in &recordings() {
        for index in 0..recording.list("thresholds").len() {
            let run = Run { recording, rule, index };
            for buffers in [Buffers::One, Buffers::InputKept, Buffers::ResultApart] {
                println!("{run}, buffers {buffers:?}");
                check(&run, &Engine::new(&run, buffers).replay());
            }
        }
    }
}

/// As `replay_all`, a branch at a time.
fn replay_branches(rule: Rule, mut check: impl FnMut(&Run, &str, &Branch)) {
    replay_all(rule, |run, replay| {
        for (name, branch) in run.recording.list("branches").into_iter().zip(&replay.branches) {
            check(run, name, branch);
        }
    });
}

// ---- numbers ----

fn width(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let value = |word: &[u8]| match dtype {
        Dtype::F16 => f16::from_le_bytes([word[0], word[1]]).to_f32(),
        Dtype::Bf16 => bf16::from_le_bytes([word[0], word[1]]).to_f32(),
        _ => f32::from_le_bytes([word[0], word[1], word[2], word[3]]),
    };
    bytes.chunks(width(dtype)).map(value).collect()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().map(|value| value.abs()).filter(|value| value.is_finite()).fold(0.0, f32::max)
}

/// NaN is near NaN, and an infinity only near itself.
fn near(ours: f64, theirs: f64, tolerance: f64) -> bool {
    ours == theirs || (ours.is_nan() && theirs.is_nan()) || (ours - theirs).abs() <= tolerance
}

/// Steps of the dtype's grid between two of its values; 0 between any two NaN.
fn ulps(dtype: Dtype, ours: f32, theirs: f32) -> u32 {
    if ours.is_nan() || theirs.is_nan() {
        return if ours.is_nan() && theirs.is_nan() { 0 } else { u32::MAX };
    }
    // The bits of a float, without its sign, count the grid from zero.
    let place = |value: f32| {
        let magnitude = match dtype {
            Dtype::F16 => f16::from_f32(value.abs()).to_bits().into(),
            Dtype::Bf16 => bf16::from_f32(value.abs()).to_bits().into(),
            _ => value.abs().to_bits(),
        };
        if value < 0.0 { -i64::from(magnitude) } else { i64::from(magnitude) }
    };
    place(ours).abs_diff(place(theirs)) as u32
}

// ---- claims ----

#[test]
fn the_recordings_hold_what_a_comparison_needs() {
    let all = recordings();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let of_dtype = || all.iter().filter(|recording| recording.dtype == dtype);
        for (branches, streams) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let decisions: Vec<_> = of_dtype()
                .filter(|one| one.list("branches").len() == branches)
                .filter(|one| one.list("streams").len() == streams)
                .flat_map(|one| one.section(""))
                .filter(|(key, _)| key.contains(".diffusers.decisions."))
                .map(|(_, decisions)| decisions)
                .collect();
            let what = format!("{dtype:?}, {branches} branches, {streams} streams");
            let some = |kind: fn(&str) -> bool| decisions.iter().any(|one| kind(one));
            assert!(some(|one| !one.contains('s')), "{what}: a run that never skips");
            assert!(some(|one| !one[1..].contains('C')), "{what}: a run that always skips");
            assert!(some(|one| one.matches("Cs").count() > 2), "{what}: a run that does both");
        }
        for edge in ["equal", "zero-residual", "nan", "nan-first", "infinite-residual"] {
            let found = of_dtype().any(|one| one.text("name").rsplit_once('-').unwrap().0 == edge);
            assert!(found, "{dtype:?}: {edge}");
        }
    }
}

#[test]
fn compat_decides_as_diffusers_does() {
    replay_branches(Rule::Diffusers, |run, name, branch| {
        assert_eq!(branch.decisions, run.decisions(name), "{run}, {name}");
    });
}

#[test]
fn compat_measures_what_diffusers_measures() {
    replay_branches(Rule::Diffusers, |run, name, branch| {
        let dtype = run.recording.dtype;
        // Sums in another order differ by some ulp of f32; on the grid of a half format nothing
        // of that is left.
        let allowed = if dtype == Dtype::F32 { 4 } else { 0 };
        for (step, (ours, theirs)) in branch.metrics.iter().zip(run.metrics(name)).enumerate() {
            let apart = ulps(dtype, *ours as f32, theirs as f32);
            assert!(apart <= allowed, "{run}, {name}, step {step}: {ours}, diffusers {theirs}");
        }
    });
}

#[test]
fn compat_reuses_what_diffusers_reuses() {
    replay_branches(Rule::Diffusers, |run, name, branch| {
        let dtype = run.recording.dtype;
        let (mut elements, mut unequal) = (0, 0);
        for (row, ours) in branch.reused.iter().enumerate() {
            for (ours, theirs) in ours.iter().zip(run.reused(name, row)) {
                let (ours, theirs) = (values(dtype, ours), values(dtype, theirs));
                let atol = 1e-6 * f64::from(largest(&theirs));
                for (&ours, &theirs) in ours.iter().zip(&theirs) {
                    let apart = ulps(dtype, ours, theirs);
                    let good = if dtype == Dtype::F32 {
                        near(ours.into(), theirs.into(), 1e-5 * f64::from(theirs.abs()) + atol)
                    } else {
                        apart <= 1
                    };
                    assert!(good, "{run}, {name}, skip {row}: {ours}, diffusers {theirs}");
                    elements += 1;
                    unequal += u32::from(apart > 0);
                }
            }
        }
        let rare = f64::from(unequal) <= 0.001 * f64::from(elements);
        assert!(rare || dtype == Dtype::F32, "{run}, {name}: {unequal} of {elements} differ");
    });
}

#[test]
fn corrected_decides_as_the_rule_in_f64() {
    replay_branches(Rule::Corrected, |run, name, branch| {
        assert_eq!(branch.decisions, run.decisions(name), "{run}, {name}");
    });
}

#[test]
fn corrected_measures_what_the_rule_measures_in_f64() {
    replay_branches(Rule::Corrected, |run, name, branch| {
        for (step, (&ours, exact)) in branch.metrics.iter().zip(run.metrics(name)).enumerate() {
            let good = near(ours, exact, 1e-5 * exact);
            assert!(good, "{run}, {name}, step {step}: {ours}, exactly {exact}");
        }
    });
}

#[test]
fn corrected_reuses_what_f64_gives() {
    replay_branches(Rule::Corrected, |run, name, branch| {
        let dtype = run.recording.dtype;
        let skips = run.decisions(name).match_indices('s');
        for (row, (ours, (step, _))) in branch.reused.iter().zip(skips).enumerate() {
            let h1 = streams(run.recording, &format!("h1.{name}"), step);
            for ((ours, exact), h1) in ours.iter().zip(run.reused(name, row)).zip(h1) {
                let (ours, h1) = (values(dtype, ours), values(dtype, h1));
                let exact = values(Dtype::F32, exact);
                let largest = f64::from(largest(&exact));
                for ((&ours, &exact), &h1) in ours.iter().zip(&exact).zip(&h1) {
                    // A half format rounds twice, the kept residual (exact - h1) and the sum.
                    let both = f64::from(exact.abs() + h1.abs());
                    let tolerance = match dtype {
                        Dtype::F16 => 2e-3 * both,
                        Dtype::Bf16 => 1.6e-2 * both,
                        _ => 1e-5 * f64::from(exact.abs()) + 1e-6 * largest,
                    };
                    let good = near(ours.into(), exact.into(), tolerance);
                    assert!(good, "{run}, {name}, step {step}: {ours}, exactly {exact}");
                }
            }
        }
    });
}

#[test]
fn corrected_counts_every_measurement_that_is_not_finite() {
    replay_all(Rule::Corrected, |run, replay| {
        let not_finite = |name: &&str| {
            let words = run.recording.list(&run.key("metrics", name));
            words.into_iter().filter(|word| matches!(*word, "nan" | "inf")).count()
        };
        let expected: usize = run.recording.list("branches").iter().map(not_finite).sum();
        assert_eq!(replay.stats.not_finite as usize, expected, "{run}");
    });
}

#[test]
fn the_statistics_add_up() {
    for rule in [Rule::Diffusers, Rule::Corrected] {
        replay_all(rule, |run, replay| {
            let n_blocks = run.recording.count("n_blocks") as u64;
            let passes: usize = replay.branches.iter().map(|branch| branch.decisions.len()).sum();
            let skipped: usize = replay.branches.iter().map(|branch| branch.reused.len()).sum();
            let (passes, skipped) = (passes as u64, skipped as u64);
            let stats = &replay.stats;
            assert_eq!((stats.passes, stats.passes_skipped), (passes, skipped), "{run}");
            assert_eq!(stats.blocks_skipped, skipped * (n_blocks - 1), "{run}");
            assert_eq!(stats.blocks_computed, passes * n_blocks - stats.blocks_skipped, "{run}");
            assert_eq!((stats.errors, stats.discarded), (0, 0), "{run}");
        });
    }
}
