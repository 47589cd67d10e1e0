//! The C ABI as the tests use it: caches made from text, tensors of any dtype and layout, and a toy
//! model whose results can be worked out by hand.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unused_imports, reason = "likewise")]

pub mod device;
pub mod ranks;
pub mod recording;

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, Once};

use device::on_cuda;
pub use diffcache::capi::*;
pub use diffcache::ops::{Dtype, View};
use half::{bf16, f16};
use proptest::test_runner::{Config as ProptestConfig, RngSeed};

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// Nothing but the rule decides.
pub const NO_RAILS: &str =
    "warmup_steps=0,last_steps=0,max_consecutive=none,max_error=none,max_gain=none,max_age=none";

/// The same cases every time; PROPTEST_CASES and PROPTEST_RNG_SEED ask for more, and for others.
pub fn properties(cases: u32) -> ProptestConfig {
    let asked = ProptestConfig::default();
    let rng_seed = match asked.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        fixed => fixed,
    };
    let cases = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => asked.cases,
        None => device::fewer(cases),
    };
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..asked }
}

// ---- tensors ----

/// A view of elements in memory that views share, as an engine's tensors share its buffers.
#[derive(Clone)]
pub struct Tensor {
    memory: Rc<device::Memory>,
    /// Byte of the first element.
    start: usize,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// In elements.
    stride: Vec<usize>,
    pub id: u32,
}

impl Tensor {
    /// Dense. Every byte is 0xff, which is NaN in every dtype.
    pub fn new(dtype: Dtype, shape: &[usize]) -> Self {
        Self::unaligned(dtype, shape, 0)
    }

    /// Dense, with its first element `offset` bytes behind a boundary of 64.
    pub fn unaligned(dtype: Dtype, shape: &[usize], offset: usize) -> Self {
        let stride: Vec<_> =
            (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        Self::strided(dtype, shape, &stride, offset)
    }

    /// The same with any strides, in elements.
    pub fn strided(dtype: Dtype, shape: &[usize], stride: &[usize], offset: usize) -> Self {
        let last = |(n, stride): (&usize, &usize)| n.saturating_sub(1) * stride;
        let elements = shape.iter().zip(stride).map(last).sum::<usize>() + 1;
        let memory = Rc::new(device::Memory::new(elements * dtype.size() + 64 + offset));
        let address = memory.address().addr();
        let start = address.next_multiple_of(64) - address + offset;
        let (shape, stride) = (shape.to_vec(), stride.to_vec());
        Self { memory, start, dtype, shape, stride, id: 0 }
    }

    /// Dense, one dimension.
    pub fn of(dtype: Dtype, values: &[f32]) -> Self {
        let tensor = Self::new(dtype, &[values.len()]);
        tensor.set(values);
        tensor
    }

    /// The same elements in memory of their own, dense.
    pub fn copy(&self) -> Self {
        let copy = Self { id: self.id, ..Self::new(self.dtype, &self.shape) };
        copy.set(&self.values());
        copy
    }

    /// The same elements in the host's memory, dense.
    pub fn on_host(&self) -> Self {
        let bytes = self.bytes();
        let memory = Rc::new(device::Memory::on_host(bytes.len()));
        memory.write(0, &bytes);
        let dense = |axis: usize| self.shape[axis + 1..].iter().product();
        let stride = (0..self.shape.len()).map(dense).collect();
        Self { memory, start: 0, stride, ..self.clone() }
    }

    /// `extent` places from `from` on along `axis`, in the same memory.
    pub fn part(&self, axis: usize, from: usize, extent: usize) -> Self {
        assert!(from + extent <= self.shape[axis]);
        let mut part = self.clone();
        part.start += from * self.stride[axis] * self.dtype.size();
        part.shape[axis] = extent;
        part
    }

    pub fn with_id(self, id: u32) -> Self {
        Self { id, ..self }
    }

    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Runs of elements without a gap, in row-major order: first byte and elements of each.
    fn runs(&self) -> Vec<(usize, usize)> {
        let (size, axes) = (self.dtype.size(), self.shape.iter().zip(&self.stride));
        let (mut runs, mut extent) = (vec![self.start], 1);
        for (k, (&n, &stride)) in axes.enumerate() {
            let inner = self.shape[k..].iter().product();
            let dense = (k..self.shape.len()).all(|axis| {
                let after: usize = self.shape[axis + 1..].iter().product();
                self.shape[axis] == 1 || self.stride[axis] == after
            });
            if dense {
                extent = inner;
                break;
            }
            let along = |at| (0..n).map(move |k| at + k * stride * size);
            runs = runs.into_iter().flat_map(along).collect();
        }
        runs.into_iter().map(|at| (at, extent)).collect()
    }

    /// The elements' bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let (memory, size) = (self.memory.read(), self.dtype.size());
        self.runs().into_iter().flat_map(|(at, n)| &memory[at..at + n * size]).copied().collect()
    }

    /// The bytes around the elements, which are none of anybody's business.
    pub fn surroundings(&self) -> Vec<u8> {
        let mut memory = self.memory.read();
        for (at, n) in self.runs() {
            memory[at..at + n * self.dtype.size()].fill(0);
        }
        memory
    }

    pub fn values(&self) -> Vec<f32> {
        values_of(self.dtype, &self.bytes())
    }

    /// Rounds `values` to the dtype.
    pub fn set(&self, values: &[f32]) {
        assert_eq!(values.len(), self.len());
        let bytes: Vec<u8> = match self.dtype {
            Dtype::F32 => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_ne_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect(),
        };
        self.set_bytes(&bytes);
    }

    /// The elements as [`bytes`](Self::bytes) gives them.
    pub fn set_bytes(&self, mut bytes: &[u8]) {
        assert_eq!(bytes.len(), self.len() * self.dtype.size());
        let runs = self.runs();
        if let [(at, _)] = runs[..] {
            return self.memory.write(at, bytes);
        }
        let mut memory = self.memory.read();
        for (at, n) in runs {
            let (run, rest) = bytes.split_at(n * self.dtype.size());
            memory[at..at + run.len()].copy_from_slice(run);
            bytes = rest;
        }
        self.memory.write(0, &memory);
    }

    pub fn fill(&self, value: f32) {
        self.set(&vec![value; self.len()]);
    }

    pub fn map(&self, f: impl FnMut(f32) -> f32) {
        self.set(&self.values().into_iter().map(f).collect::<Vec<_>>());
    }

    /// As the operations take it.
    pub fn view(&self) -> View {
        let first = self.memory.address().wrapping_add(self.start);
        // It names elements of `memory`, which the caller keeps while it uses the view.
        unsafe { View::strided(first, self.dtype, &self.shape, &self.stride) }
    }

    /// As the C ABI takes it: valid while the memory lives.
    pub fn lent(&self) -> dc_tensor_t {
        let (mut shape, mut stride) = ([0; DC_MAX_DIMS], [0; DC_MAX_DIMS]);
        shape.iter_mut().zip(&self.shape).for_each(|(to, extent)| *to = *extent as i64);
        stride.iter_mut().zip(&self.stride).for_each(|(to, step)| *to = *step as i64);
        dc_tensor_t {
            data: self.memory.address().wrapping_add(self.start).cast(),
            dtype: match self.dtype {
                Dtype::F32 => DC_F32,
                Dtype::F16 => DC_F16,
                Dtype::Bf16 => DC_BF16,
            },
            ndim: self.shape.len() as u32,
            shape,
            stride,
            flags: match *self.memory {
                device::Memory::Host(_) if on_cuda() => DC_TENSOR_HOST,
                _ => 0,
            },
            id: self.id,
            reserved: 0,
        }
    }
}

/// What elements of this dtype are, from their bytes.
pub fn values_of(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let pair = |b: &[u8]| [b[0], b[1]];
    match dtype {
        Dtype::F32 => {
            bytes.chunks(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_ne_bytes(pair(b)).to_f32()).collect(),
        Dtype::Bf16 => bytes.chunks(2).map(|b| bf16::from_ne_bytes(pair(b)).to_f32()).collect(),
    }
}

pub fn lent(tensors: &[Tensor]) -> Vec<dc_tensor_t> {
    tensors.iter().map(Tensor::lent).collect()
}

/// The elements' bytes of all of them.
pub fn bytes(tensors: &[Tensor]) -> Vec<Vec<u8>> {
    tensors.iter().map(Tensor::bytes).collect()
}

/// The relative error that one rounding to `dtype` may leave, with room for a few of them.
pub fn tolerance(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => 1e-5,
        Dtype::F16 => 2e-3,
        Dtype::Bf16 => 1.6e-2,
    }
}

/// A sum of a measurement, or their ratio: on the CPU bit for bit, on CUDA within 1e-6; what is not
/// finite is so on both.
pub fn is_sum(got: f64, expected: f64) -> bool {
    match on_cuda() {
        _ if !expected.is_finite() => !got.is_finite(),
        true => (got - expected).abs() <= 1e-6 * expected.abs(),
        false => got.to_bits() == expected.to_bits(),
    }
}

pub fn assert_close(got: &[f32], expected: &[f32], dtype: Dtype) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let allowed = tolerance(dtype) * expected.abs().max(1.0);
        assert!((got - expected).abs() <= allowed, "{dtype:?} {i}: {got} is not {expected}");
    }
}

// ---- caches ----

/// Text of this thread's last failure.
pub fn last_error() -> String {
    // The text lives as long as the thread.
    unsafe { CStr::from_ptr(dc_last_error()) }.to_string_lossy().into_owned()
}

#[track_caller]
pub fn ok(status: dc_status_t) {
    assert_eq!(status, DC_OK, "{}", last_error());
}

/// What an engine is and what its user wants.
#[derive(Clone, Copy)]
pub struct Setup {
    pub engine: dc_engine_t,
    pub options: dc_options_t,
}

impl Setup {
    /// An engine that asks before and reports after each of its blocks, on this thread and the
    /// backend under test.
    pub fn new(n_blocks: usize, options: &str) -> Self {
        let text = CString::new(options).expect("no NUL");
        // Plain C structs, which the calls fill before anything is read.
        unsafe {
            let (mut engine, mut parsed) = std::mem::zeroed::<(dc_engine_t, dc_options_t)>();
            ok(dc_engine_init(&mut engine, size_of_val(&engine)));
            engine.hooks = DC_HOOK_EACH;
            engine.n_blocks = n_blocks as u32;
            engine.n_threads = 1;
            if on_cuda() {
                (engine.backend, engine.device) = (DC_BACKEND_CUDA, 0);
            }
            ok(dc_options_init(&mut parsed, size_of_val(&parsed), null()));
            ok(dc_options_parse(&mut parsed, text.as_ptr()));
            Self { engine, options: parsed }
        }
    }

    pub fn with(mut self, change: impl FnOnce(&mut dc_engine_t)) -> Self {
        change(&mut self.engine);
        self
    }

    /// Branches, and how many of them one pass may stack.
    pub fn branches(self, n: u32, max_stacked: u32) -> Self {
        self.with(|engine| (engine.n_branches, engine.max_stacked) = (n, max_stacked))
    }

    pub fn label(self, label: &str) -> Self {
        self.with(|engine| {
            let bytes = label.bytes().map(|byte| byte as c_char);
            engine.label.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
        })
    }

    #[track_caller]
    pub fn create(&self) -> Cache {
        let mut handle = null_mut();
        // The structs were filled by their init functions.
        ok(unsafe { dc_cache_create(&self.engine, &self.options, &mut handle) });
        Cache(handle)
    }

    /// Bytes, for any rows.
    pub fn memory_needed_for(&self, rows: &[ShapeRow]) -> u64 {
        let mut bytes = u64::MAX;
        let (_tensors, rows) = lent_rows(rows);
        let (engine, options) = (&self.engine, &self.options);
        // The rows and their tensors live as long as the call.
        ok(unsafe { dc_memory_needed(engine, options, rows.as_ptr(), rows.len(), &mut bytes) });
        bytes
    }

    /// Bytes, if the blocks work on tensors like these.
    pub fn memory_needed(&self, shapes: &Shapes) -> u64 {
        let mut bytes = u64::MAX;
        let (_tensors, rows) = shape_rows(shapes);
        let (engine, options) = (&self.engine, &self.options);
        // The rows and their tensors live as long as the call.
        ok(unsafe { dc_memory_needed(engine, options, rows.as_ptr(), rows.len(), &mut bytes) });
        bytes
    }
}

/// A row of dc_shape_t: `branch` may be [`EACH`].
pub struct ShapeRow {
    pub hook: u32,
    pub kind: dc_kind_t,
    pub branch: u32,
    pub count: u32,
    pub tensors: Vec<Tensor>,
}

impl ShapeRow {
    /// So many layers of a kind, alike in every branch.
    pub fn layers(kind: dc_kind_t, count: u32, tensors: &[Tensor]) -> Self {
        let tensors = tensors.to_vec();
        Self { hook: DC_HOOK_LAYERS, kind, branch: EACH, count, tensors }
    }

    /// The output of the model, in every branch.
    pub fn model(output: &[Tensor]) -> Self {
        let tensors = output.to_vec();
        Self { hook: DC_HOOK_MODEL, kind: 0, branch: EACH, count: 0, tensors }
    }

    /// A prediction of guidance.
    pub fn guide(prediction: &Tensor) -> Self {
        let tensors = vec![prediction.clone()];
        Self { hook: DC_HOOK_GUIDE, kind: 0, branch: EACH, count: 0, tensors }
    }
}

/// The second names the first.
fn lent_rows(rows: &[ShapeRow]) -> (Vec<Vec<dc_tensor_t>>, Vec<dc_shape_t>) {
    let tensors: Vec<_> = rows.iter().map(|row| lent(&row.tensors)).collect();
    let row = |(row, tensors): (&ShapeRow, &Vec<dc_tensor_t>)| dc_shape_t {
        hook: row.hook,
        kind: row.kind,
        branch: row.branch,
        count: row.count,
        tensors: tensors.as_ptr(),
        n: tensors.len() as u32,
        reserved0: 0,
    };
    let rows = rows.iter().zip(&tensors).map(row).collect();
    (tensors, rows)
}

/// Tensors like those of a branch's blocks, one branch's rows each; [`EACH`] stands for all others.
pub type Shapes = [(u32, Vec<Tensor>)];
pub const EACH: u32 = u32::MAX;

/// The second names the first.
fn shape_rows(shapes: &Shapes) -> (Vec<Vec<dc_tensor_t>>, Vec<dc_shape_t>) {
    let tensors: Vec<_> = shapes.iter().map(|(_, tensors)| lent(tensors)).collect();
    let row = |((branch, _), tensors): (&(u32, _), &Vec<dc_tensor_t>)| dc_shape_t {
        hook: DC_HOOK_BLOCKS,
        kind: 0,
        branch: *branch,
        count: 0,
        tensors: tensors.as_ptr(),
        n: tensors.len() as u32,
        reserved0: 0,
    };
    let rows = shapes.iter().zip(&tensors).map(row).collect();
    (tensors, rows)
}

/// DC_LAYER
pub const fn layer_unit(layer: u32) -> u32 {
    0x8000_0000 | layer
}

/// DC_KIND
pub const fn kind_unit(kind: dc_kind_t) -> u32 {
    0xffff_ff00 | kind
}

/// DC_RUN_INIT, with a number of steps, on this thread's stream.
pub fn run_of(n_steps: u32) -> dc_run_t {
    dc_run_t {
        struct_size: size_of::<dc_run_t>() as u32,
        n_steps,
        first_step: 0,
        end_step: 0,
        timesteps: null(),
        timestep_max: 0.0,
        n_shapes: 0,
        shapes: null(),
        stream: device::stream(),
    }
}

/// DC_PASS_INIT, with a step and the branches stacked in it, on this thread's stream.
pub fn pass_of(step: u32, members: &[u32]) -> dc_pass_t {
    let mut branches = [0; DC_MAX_BRANCHES];
    branches[..members.len()].copy_from_slice(members);
    dc_pass_t {
        struct_size: size_of::<dc_pass_t>() as u32,
        step,
        n_branches: members.len() as u32,
        branches,
        flags: 0,
        timestep: 0.0,
        stream: device::stream(),
    }
}

/// The same, with flags.
pub fn flagged(step: u32, members: &[u32], flags: u32) -> dc_pass_t {
    dc_pass_t { flags, ..pass_of(step, members) }
}

/// A handle, destroyed on drop.
pub struct Cache(pub *mut dc_cache_t);

// A handle may be used from any thread, by one at a time.
unsafe impl Send for Cache {}

impl Cache {
    pub fn begin_run(&self, n_steps: u32) -> dc_status_t {
        self.begin_run_as(&run_of(n_steps))
    }

    pub fn begin_run_as(&self, run: &dc_run_t) -> dc_status_t {
        // Its arrays are as long as their counts say.
        unsafe { dc_cache_begin_run(self.0, run) }
    }

    /// A run whose blocks work on tensors like these.
    pub fn begin_run_on(&self, n_steps: u32, shapes: &Shapes) -> dc_status_t {
        let (_tensors, rows) = shape_rows(shapes);
        let (n_shapes, shapes) = (rows.len() as u32, rows.as_ptr());
        self.begin_run_as(&dc_run_t { n_shapes, shapes, ..run_of(n_steps) })
    }

    /// The same run with rows of shapes of any hook.
    pub fn begin_run_for(&self, run: &dc_run_t, rows: &[ShapeRow]) -> dc_status_t {
        let (_tensors, rows) = lent_rows(rows);
        let (n_shapes, shapes) = (rows.len() as u32, rows.as_ptr());
        self.begin_run_as(&dc_run_t { n_shapes, shapes, ..*run })
    }

    pub fn end_run(&self) -> dc_status_t {
        dc_cache_end_run(self.0)
    }

    pub fn begin_pass(&self, pass: &dc_pass_t) -> dc_status_t {
        // It starts from DC_PASS_INIT.
        unsafe { dc_cache_begin_pass(self.0, pass) }
    }

    pub fn end_pass(&self) -> dc_status_t {
        dc_cache_end_pass(self.0)
    }

    pub fn before(&self, block: u32, x: &[Tensor]) -> dc_action_t {
        // The tensors own what they lend.
        unsafe { self.before_raw(block, &lent(x), None) }
    }

    pub fn before_into(&self, block: u32, x: &[Tensor], out: &[Tensor]) -> dc_action_t {
        // The tensors own what they lend.
        unsafe { self.before_raw(block, &lent(x), Some(&lent(out))) }
    }

    /// # Safety
    /// As dc_cache_before_block.
    pub unsafe fn before_raw(
        &self,
        block: u32,
        x: &[dc_tensor_t],
        out: Option<&[dc_tensor_t]>,
    ) -> dc_action_t {
        let out = out.map_or(null(), <[_]>::as_ptr);
        unsafe { dc_cache_before_block(self.0, block, x.as_ptr(), out, x.len()) }
    }

    pub fn after(&self, block: u32, out: &[Tensor]) {
        // The tensors own what they lend.
        unsafe { self.after_raw(block, &lent(out)) }
    }

    /// # Safety
    /// As dc_cache_after_block.
    pub unsafe fn after_raw(&self, block: u32, out: &[dc_tensor_t]) {
        unsafe { dc_cache_after_block(self.0, block, out.as_ptr(), out.len()) }
    }

    pub fn before_layer(&self, layer: u32, kind: dc_kind_t, out: &[Tensor]) -> dc_action_t {
        // The tensors own what they lend.
        unsafe { self.before_layer_raw(layer, kind, &lent(out)) }
    }

    /// # Safety
    /// As dc_cache_before_layer.
    pub unsafe fn before_layer_raw(
        &self,
        layer: u32,
        kind: dc_kind_t,
        out: &[dc_tensor_t],
    ) -> dc_action_t {
        unsafe { dc_cache_before_layer(self.0, layer, kind, out.as_ptr(), out.len()) }
    }

    pub fn after_layer(&self, layer: u32, out: &[Tensor]) {
        // The tensors own what they lend.
        unsafe { self.after_layer_raw(layer, &lent(out)) }
    }

    /// # Safety
    /// As dc_cache_after_layer.
    pub unsafe fn after_layer_raw(&self, layer: u32, out: &[dc_tensor_t]) {
        unsafe { dc_cache_after_layer(self.0, layer, out.as_ptr(), out.len()) }
    }

    pub fn before_uncond(&self, pass: &dc_pass_t, cond: &Tensor, uncond: &Tensor) -> dc_action_t {
        // The tensors own what they lend; the pass starts from DC_PASS_INIT.
        unsafe { dc_cache_before_uncond(self.0, pass, &cond.lent(), &uncond.lent()) }
    }

    pub fn after_uncond(&self, pass: &dc_pass_t, cond: &Tensor, uncond: &Tensor) -> dc_status_t {
        // As above.
        unsafe { dc_cache_after_uncond(self.0, pass, &cond.lent(), &uncond.lent()) }
    }

    pub fn decide(&self, wish: dc_action_t) -> dc_action_t {
        dc_cache_decide(self.0, wish)
    }

    /// `None` is the open pass.
    pub fn peek(&self, pass: Option<&dc_pass_t>, unit: u32) -> dc_action_t {
        // It starts from DC_PASS_INIT.
        unsafe { dc_cache_peek(self.0, pass.map_or(null(), |pass| pass), unit) }
    }

    pub fn trim(&self) -> dc_status_t {
        // A stream of the backend's.
        unsafe { dc_cache_trim(self.0, device::stream()) }
    }

    pub fn stats(&self) -> dc_stats_t {
        // A plain C struct that says its size.
        unsafe {
            let mut stats: dc_stats_t = std::mem::zeroed();
            stats.struct_size = size_of_val(&stats) as u32;
            ok(dc_cache_stats(self.0, &mut stats));
            stats
        }
    }

    pub fn trace(&self) -> Trace {
        const SIZE: usize = size_of::<dc_trace_t>();
        let mut n = 0;
        // There is room for as many records as each call is told.
        unsafe {
            ok(dc_cache_trace(self.0, null_mut(), SIZE, 0, &mut n));
            let mut records = vec![std::mem::zeroed(); n];
            ok(dc_cache_trace(self.0, records.as_mut_ptr(), SIZE, n, &mut n));
            Trace(records)
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        dc_cache_destroy(self.0);
    }
}

pub fn letter(action: dc_action_t) -> char {
    match action {
        DC_COMPUTE => 'C',
        DC_SKIP => 's',
        _ => '?',
    }
}

/// Letters of dc_reason_t in the order of its values; those that end a streak of skips are capital.
const REASONS: &str = "-WLHrctaNSMKVEsXAiwugT";

/// Decisions, oldest first.
pub struct Trace(pub Vec<dc_trace_t>);

impl Trace {
    pub fn of(&self, branch: u32) -> Self {
        Self(self.0.iter().filter(|record| record.branch == branch).copied().collect())
    }

    pub fn of_unit(&self, unit: u32) -> Self {
        Self(self.0.iter().filter(|record| record.unit == unit).copied().collect())
    }

    /// "CCss": computed, computed, skipped, skipped.
    pub fn actions(&self) -> String {
        self.0.iter().map(|record| letter(record.action)).collect()
    }

    /// A letter each: `W`arm-up, `L`ast, no `H`istory, `r`ule, `c` max_consecutive, `t` max_total,
    /// `a` max_error (accumulated), `N`ot finite, `S`hape, `M`emory, `K` capture, `V`eto, `E`ngine,
    /// `s`hared, `X` error, `A`ge, `i`nterval, `w`indow, `u`nlisted, `g`uidance, no `T`imestep, `-`
    /// none.
    pub fn reasons(&self) -> String {
        let letter = |reason| REASONS.chars().nth(reason as usize).unwrap_or('?');
        self.0.iter().map(|record| letter(record.reason)).collect()
    }

    /// All of it, for comparison bit for bit.
    pub fn bits(&self) -> Vec<[u64; 7]> {
        let bits = |r: &dc_trace_t| {
            let [step, branch, action] = [r.step, r.branch, r.action].map(u64::from);
            let numbers = [r.change, r.accumulated, r.threshold].map(f64::to_bits);
            [step, branch, action, u64::from(r.reason), numbers[0], numbers[1], numbers[2]]
        };
        self.0.iter().map(bits).collect()
    }
}

// ---- a toy model ----

/// Block b turns every tensor h into h + gain_b * h: two f32 operations, rounded to h's dtype.
#[derive(Clone)]
pub struct Toy {
    pub gains: Vec<f32>,
    /// What DC_ENGINE_KEEPS_INPUT asks for: block 0 writes to other memory than it reads.
    pub keeps_input: bool,
}

/// What a pass was answered.
#[derive(Debug, PartialEq)]
pub struct Answers {
    /// Of each block in turn, "Csss".
    pub blocks: String,
    pub status: dc_status_t,
}

impl Toy {
    pub fn new(gains: &[f32]) -> Self {
        Self { gains: gains.to_vec(), keeps_input: false }
    }

    /// Blocks that all double what they are given.
    pub fn doubling(n_blocks: usize) -> Self {
        Self::new(&vec![1.0; n_blocks])
    }

    pub fn n_blocks(&self) -> usize {
        self.gains.len()
    }

    pub fn block(&self, block: usize, x: &[Tensor]) {
        x.iter().for_each(|x| x.map(|h| h + self.gains[block] * h));
    }

    /// The whole model.
    pub fn forward(&self, x: &[Tensor]) {
        (0..self.n_blocks()).for_each(|block| self.block(block, x));
    }

    /// One evaluation, by the six lines of the header; the result is in `x`.
    pub fn pass(&self, cache: &Cache, pass: &dc_pass_t, x: &[Tensor]) -> Answers {
        let blocks = self.pass_until(usize::MAX, cache, pass, x);
        Answers { blocks, status: cache.end_pass() }
    }

    /// The same, broken off after so many calls, and never ended.
    pub fn pass_until(
        &self,
        mut calls: usize,
        cache: &Cache,
        pass: &dc_pass_t,
        x: &[Tensor],
    ) -> String {
        let mut more = || calls.checked_sub(1).map(|left| calls = left).is_some();
        let mut blocks = String::new();
        let mut h = x.to_vec();
        if more() {
            let _ = cache.begin_pass(pass);
        }
        for block in 0..self.n_blocks() {
            if !more() {
                break;
            }
            let action = cache.before(block as u32, &h);
            blocks.push(letter(action));
            if action == DC_COMPUTE {
                if self.keeps_input && block == 0 {
                    h = x.iter().map(Tensor::copy).collect();
                }
                self.block(block, &h);
                if !more() {
                    break;
                }
                cache.after(block as u32, &h);
            }
        }
        if self.keeps_input {
            x.iter().zip(&h).for_each(|(x, h)| x.set(&h.values()));
        }
        blocks
    }

    /// A whole run of one branch on tensors of `len` equal elements.
    pub fn run_filled(&self, cache: &Cache, dtype: Dtype, len: usize, inputs: &[f32]) -> Vec<f32> {
        ok(cache.begin_run(inputs.len() as u32));
        let step = |(step, &input): (u32, &f32)| {
            let x = [Tensor::of(dtype, &vec![input; len])];
            ok(self.pass(cache, &pass_of(step, &[0]), &x).status);
            let output = x[0].values();
            assert!(
                output.iter().all(|y| y.to_bits() == output[0].to_bits()),
                "all elements alike"
            );
            output[0]
        };
        (0..).zip(inputs).map(step).collect()
    }

    /// The same on a cache of its own: its decisions and outputs.
    pub fn run(&self, options: &str, dtype: Dtype, inputs: &[f32]) -> (Trace, Vec<f32>) {
        let cache = Setup::new(self.n_blocks(), options).create();
        let outputs = self.run_filled(&cache, dtype, 5, inputs);
        (cache.trace(), outputs)
    }
}

/// Numbers between -1 and 1 without a pattern.
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

// ---- an allocator that keeps books ----

#[derive(Clone, Debug, Default)]
pub struct Books {
    pub calls: usize,
    /// Calls of mem_free.
    pub frees: usize,
    /// Bytes: ever asked for, held now, most ever held.
    pub asked: u64,
    pub held: u64,
    pub peak: u64,
    /// From this call on, counted from 0, it gives nothing.
    pub fails_from: Option<usize>,
    /// This call panics.
    pub panics_at: Option<usize>,
}

/// mem_alloc and mem_free of an engine. It must outlive the engine's caches.
#[derive(Default)]
pub struct Ledger(Box<Mutex<Books>>);

const ALIGNMENT: usize = 256;

impl Ledger {
    pub fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.0)
    }

    pub fn serve(&self, engine: &mut dc_engine_t) {
        engine.mem_alloc = Some(ledger_alloc);
        engine.mem_free = Some(ledger_free);
        engine.mem_user = std::ptr::from_ref(&*self.0).cast_mut().cast();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

unsafe extern "C-unwind" fn ledger_alloc(
    user: *mut c_void,
    size: usize,
    stream: *mut c_void,
) -> *mut c_void {
    // `serve` put it there.
    let mut books = lock(unsafe { &*user.cast::<Mutex<Books>>() });
    let call = books.calls;
    books.calls += 1;
    assert!(books.panics_at != Some(call), "the allocator panics");
    if books.fails_from.is_some_and(|from| call >= from) {
        return null_mut();
    }
    assert!(size > 0, "nothing is never asked for");
    books.asked += size as u64;
    books.held += size as u64;
    books.peak = books.peak.max(books.held);
    if on_cuda() {
        return device::allocate(size, stream);
    }
    let layout = Layout::from_size_align(size, ALIGNMENT).expect("a tensor's size");
    // Of more than no bytes; NaN, as nobody promised zeros.
    unsafe {
        let block = alloc(layout);
        block.write_bytes(0xff, size);
        block.cast()
    }
}

unsafe extern "C-unwind" fn ledger_free(
    user: *mut c_void,
    block: *mut c_void,
    size: usize,
    stream: *mut c_void,
) {
    // As above; the block came from `ledger_alloc`.
    let mut books = lock(unsafe { &*user.cast::<Mutex<Books>>() });
    books.frees += 1;
    books.held = books.held.checked_sub(size as u64).expect("no more is freed than is held");
    if on_cuda() {
        return device::free(block, stream);
    }
    unsafe {
        block.cast::<u8>().write_bytes(0xff, size);
        dealloc(block.cast(), Layout::from_size_align_unchecked(size, ALIGNMENT));
    }
}

// ---- what the library says ----

static LINES: Mutex<Vec<(dc_log_level_t, String)>> = Mutex::new(Vec::new());

unsafe extern "C-unwind" fn listener(
    _: *mut c_void,
    level: dc_log_level_t,
    message: *const c_char,
) {
    // A C string that lives as long as the call.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    lock(&LINES).push((level, text));
}

/// Every message from now on is kept. The callback is the whole process's.
pub fn listen() {
    static ONCE: Once = Once::new();
    // The callback is good for ever.
    ONCE.call_once(|| unsafe { dc_set_log(Some(listener), null_mut(), DC_LOG_DEBUG) });
}

/// What was said so far under a label, which is left out.
pub fn said(label: &str) -> Vec<(dc_log_level_t, String)> {
    let lines = lock(&LINES);
    let own = |(level, line): &(dc_log_level_t, String)| {
        let text = line.strip_prefix(label)?.strip_prefix(": ")?;
        Some((*level, text.to_owned()))
    };
    lines.iter().filter_map(own).collect()
}
