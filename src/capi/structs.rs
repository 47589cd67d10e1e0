//! C structs in and out: sizes, magic numbers, unknown tails, and every field's range.
//!
//! A struct carries the size its caller was compiled with. One from an older header is shorter:
//! what it lacks has its default, and nothing is written past its end. One from a newer header is
//! longer: that is fine as long as what this library does not know is zero.
use super::types::*;
use crate::cache::{self, Engine, Given, PassInfo, Reducer, Run};
use crate::error::{Result, bail};
use crate::group::{Layout, Unit};
use crate::ops::memory::Allocator;
use crate::ops::{Dtype, Tensor};
use crate::options::{
    Bound, Compat, FILL_ALL, Limit, OfGuidance, OfKind, Options, Span, What, When, Where,
};
use crate::preset::{Hooks, PRESETS};
use crate::rule::{Action, Reason};
use crate::scope::Kind;
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

const ENGINE_MAGIC: u32 = 0x6463_656e;
const OPTIONS_MAGIC: u32 = 0x6463_6f70;

/// No struct of ours will ever be larger; a size beyond it is garbage.
const LARGEST: usize = 1 << 16;

/// A struct that begins with its own size.
///
/// # Safety
/// `repr(C)`, first field `struct_size: u32`, any bytes valid.
pub unsafe trait Versioned: Copy {
    const NAME: &'static str;
    /// What every such struct starts from.
    const START: &'static str;
    /// Bytes that every version has had.
    const LEAST: usize = 8;
    fn defaults() -> Self;
}

unsafe impl Versioned for dc_engine_t {
    const NAME: &'static str = "dc_engine_t";
    const START: &'static str = "dc_engine_init";

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            magic: ENGINE_MAGIC,
            backend: dc_backend::DC_BACKEND_CPU as u32,
            device: -1,
            hooks: 0,
            flags: 0,
            n_blocks: 0,
            n_layers: 0,
            n_branches: 1,
            measure: 1,
            n_threads: 0,
            max_stacked: 1,
            memory_budget: 0,
            mem_alloc: None,
            mem_free: None,
            mem_user: std::ptr::null_mut(),
            reduce: None,
            reduce_user: std::ptr::null_mut(),
            label: [0; 32],
            uncond_branch: 1,
            reserved0: 0,
        }
    }
}

unsafe impl Versioned for dc_options_t {
    const NAME: &'static str = "dc_options_t";
    const START: &'static str = "dc_options_init";

    fn defaults() -> Self {
        let (none, make) = PRESETS[0];
        options_to_c(&make(none))
    }
}

unsafe impl Versioned for dc_run_t {
    const NAME: &'static str = "dc_run_t";
    const START: &'static str = "DC_RUN_INIT";

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            n_steps: 0,
            first_step: 0,
            end_step: 0,
            timesteps: std::ptr::null(),
            timestep_max: 0.0,
            n_shapes: 0,
            shapes: std::ptr::null(),
            stream: std::ptr::null_mut(),
        }
    }
}

unsafe impl Versioned for dc_pass_t {
    const NAME: &'static str = "dc_pass_t";
    const START: &'static str = "DC_PASS_INIT";

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            step: 0,
            n_branches: 1,
            branches: [0; DC_MAX_BRANCHES],
            flags: 0,
            timestep: 0.0,
            stream: std::ptr::null_mut(),
        }
    }
}

unsafe impl Versioned for dc_stats_t {
    const NAME: &'static str = "dc_stats_t";
    const START: &'static str = "its struct_size, sizeof(dc_stats_t)";

    fn defaults() -> Self {
        // All counts zero.
        let zero: Self = unsafe { std::mem::zeroed() };
        Self {
            struct_size: size_of::<Self>() as u32,
            threshold: f64::NAN,
            change_p5: f64::NAN,
            change_p50: f64::NAN,
            change_p95: f64::NAN,
            ..zero
        }
    }
}

fn check_size<T: Versioned>(size: usize, argument: &str) -> Result<()> {
    if size < T::LEAST || size > LARGEST {
        bail!(
            Arg,
            "{argument} of the {} is {size}, sizeof is {} in this version: start from {}",
            T::NAME,
            size_of::<T>(),
            T::START
        );
    }
    Ok(())
}

/// The caller's struct, with defaults for what an older one lacks.
///
/// # Safety
/// `from` is null or points to a struct whose first field is its size.
pub unsafe fn read<T: Versioned>(from: *const T) -> Result<T> {
    if from.is_null() {
        bail!(Arg, "{} is null", T::NAME);
    }
    let size = unsafe { from.cast::<u32>().read_unaligned() } as usize;
    check_size::<T>(size, "struct_size")?;
    let known = size_of::<T>();
    if size == known {
        return Ok(unsafe { from.read_unaligned() });
    }
    let mut value = T::defaults();
    unsafe {
        let into = (&raw mut value).cast::<u8>();
        into.copy_from_nonoverlapping(from.cast(), size.min(known));
        for offset in known..size {
            if from.cast::<u8>().add(offset).read() != 0 {
                bail!(
                    Version,
                    "{} sets a field at offset {offset} that this version of the library, with {} \
                     bytes, does not know",
                    T::NAME,
                    known
                );
            }
        }
    }
    Ok(value)
}

/// As [`read`], but one of this version is not copied: it may just have been written, field by field,
/// and wide loads of that would stall.
///
/// # Safety
/// As [`read`].
unsafe fn read_in_place<T: Versioned>(from: *const T, copy: &mut MaybeUninit<T>) -> Result<&T> {
    unsafe {
        if !from.is_null() && from.is_aligned() && *from.cast::<u32>() as usize == size_of::<T>() {
            return Ok(&*from);
        }
        Ok(copy.write(read(from)?))
    }
}

/// Writes no byte past `size`, which must be `check_size`d; what a newer struct has more is zero.
unsafe fn write<T: Versioned>(to: *mut T, value: &T, size: usize) {
    unsafe {
        to.cast::<u8>().write_bytes(0, size);
        let n = size.min(size_of::<T>());
        to.cast::<u8>().copy_from_nonoverlapping(std::ptr::from_ref(value).cast(), n);
        to.cast::<u32>().write_unaligned(size as u32);
    }
}

/// Fills a struct of `size` bytes.
///
/// # Safety
/// `to` is null or has `size` bytes.
pub unsafe fn init<T: Versioned>(to: *mut T, size: usize, value: &T) -> Result<()> {
    if to.is_null() {
        bail!(Arg, "{} is null", T::NAME);
    }
    check_size::<T>(size, "struct_size")?;
    unsafe { write(to, value, size) };
    Ok(())
}

/// Fills a struct that carries its size.
///
/// # Safety
/// As [`read`].
pub unsafe fn fill<T: Versioned>(to: *mut T, value: &T) -> Result<()> {
    if to.is_null() {
        bail!(Arg, "{} is null", T::NAME);
    }
    let size = unsafe { to.cast::<u32>().read_unaligned() } as usize;
    check_size::<T>(size, "struct_size")?;
    unsafe { write(to, value, size) };
    Ok(())
}

/// Up to the first NUL, or all of it.
fn text_of(bytes: &[c_char]) -> String {
    let text = bytes.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0);
    String::from_utf8_lossy(&text.collect::<Vec<_>>()).into_owned()
}

// ---- engine ----

/// What the engine says of itself.
pub struct Facts {
    pub engine: Engine,
    pub hooks: Hooks,
    pub backend: Backend,
    pub allocator: Option<Allocator>,
    pub budget: u64,
    pub threads: usize,
}

/// # Safety
/// As [`read`]; the callbacks of the struct are what its docs say.
pub unsafe fn engine(from: *const dc_engine_t) -> Result<Facts> {
    let e = unsafe { read(from)? };
    if e.magic != ENGINE_MAGIC {
        bail!(Arg, "dc_engine_t was not filled by dc_engine_init");
    }
    let backend = backend(e.backend, e.device)?;
    let blocks = DC_HOOK_BLOCKS | DC_HOOK_EACH;
    let known = blocks | DC_HOOK_LAYERS | DC_HOOK_MODEL | DC_HOOK_GUIDE;
    if e.hooks == 0 || e.hooks & !known != 0 {
        bail!(
            Arg,
            "hooks is {:#x}, required is one or more of DC_HOOK_BLOCKS (1), DC_HOOK_EACH (2), \
             DC_HOOK_LAYERS (4), DC_HOOK_MODEL (8) and DC_HOOK_GUIDE (32)",
            e.hooks
        );
    }
    let makes = |hooks| e.hooks & hooks != 0;
    if e.flags & !DC_ENGINE_KEEPS_INPUT != 0 {
        bail!(Arg, "flags is {:#x}, known is DC_ENGINE_KEEPS_INPUT (1)", e.flags);
    }
    if e.n_blocks > 1 << 20 || (makes(blocks) && e.n_blocks == 0) {
        bail!(Arg, "n_blocks is {}, required is 1 to {}", e.n_blocks, 1 << 20);
    }
    let (n, most) = (e.n_layers, 1 << 20);
    match makes(DC_HOOK_LAYERS) {
        true if n == 0 || n > most => {
            bail!(Arg, "n_layers is {n}, with DC_HOOK_LAYERS required is 1 to {most}")
        }
        false if n != 0 => bail!(Arg, "n_layers is {n}, without DC_HOOK_LAYERS required is 0"),
        _ => {}
    }
    let max = DC_MAX_BRANCHES;
    if e.n_branches == 0 || e.n_branches as usize > max {
        bail!(Arg, "n_branches is {}, allowed is 1 to {max}", e.n_branches);
    }
    if e.max_stacked == 0 || e.max_stacked as usize > max {
        bail!(Arg, "max_stacked is {}, allowed is 1 to {max}", e.max_stacked);
    }
    if e.measure == 0 || e.measure >= 1 << DC_MAX_TENSORS {
        bail!(Arg, "measure is {:#b}, required is one or more of the bits 0 to 3", e.measure);
    }
    if e.n_threads > 1 << 16 {
        bail!(Arg, "n_threads is {}, allowed is 0 to {}", e.n_threads, 1 << 16);
    }
    let allocator = match (e.mem_alloc, e.mem_free) {
        (None, None) => None,
        (Some(alloc), Some(free)) => Some(Allocator { alloc, free, user: e.mem_user }),
        (Some(_), None) => bail!(Arg, "mem_alloc is set and mem_free is null: both or neither"),
        (None, Some(_)) => bail!(Arg, "mem_free is set and mem_alloc is null: both or neither"),
    };
    if e.uncond_branch as usize >= max {
        bail!(Arg, "uncond_branch is {}, allowed is below {max}", e.uncond_branch);
    }
    if e.reserved0 != 0 {
        bail!(Version, "reserved0 is {}, it must be 0", e.reserved0);
    }
    let label = text_of(&e.label);
    let engine = Engine {
        n_blocks: e.n_blocks.max(1),
        n_layers: e.n_layers,
        n_branches: e.n_branches as usize,
        uncond: e.uncond_branch as usize,
        max_stacked: e.max_stacked as usize,
        measure: e.measure,
        keeps_input: e.flags & DC_ENGINE_KEEPS_INPUT != 0,
        reduce: e.reduce.map(|reduce| Reducer { reduce, user: e.reduce_user }),
        label,
    };
    let hooks = Hooks {
        blocks: makes(blocks),
        each_block: makes(DC_HOOK_EACH),
        layers: makes(DC_HOOK_LAYERS),
        model: makes(DC_HOOK_MODEL),
        guide: makes(DC_HOOK_GUIDE),
        n_blocks: engine.n_blocks,
        n_branches: engine.n_branches,
        uncond: engine.uncond,
    };
    let (budget, threads) = (e.memory_budget, e.n_threads as usize);
    Ok(Facts { engine, hooks, backend, allocator, budget, threads })
}

/// Where tensors live.
#[derive(Clone, Copy)]
pub enum Backend {
    Cpu,
    /// Below 0: the device of the first stream.
    Cuda {
        device: i32,
    },
}

pub fn backend(backend: dc_backend_t, device: i32) -> Result<Backend> {
    match backend {
        0 => Ok(Backend::Cpu),
        1 if device < -1 => {
            bail!(Arg, "device is {device}, allowed is a CUDA ordinal, or -1")
        }
        1 => Ok(Backend::Cuda { device }),
        other => {
            bail!(Arg, "backend is {other}, known are DC_BACKEND_CPU (0) and DC_BACKEND_CUDA (1)")
        }
    }
}

// ---- options ----

fn limit(value: u32) -> Limit {
    match value {
        DC_NONE => Limit::None,
        DC_AUTO => Limit::Auto,
        steps => Limit::At(steps),
    }
}

fn limit_to_c(limit: Limit) -> u32 {
    match limit {
        Limit::None => DC_NONE,
        Limit::Auto => DC_AUTO,
        Limit::At(steps) => steps,
    }
}

fn bound(name: &str, value: f64) -> Result<Bound> {
    if value.is_nan() {
        bail!(Arg, "{name} is NaN, allowed is 0 and above, INFINITY (none) or negative (auto)");
    }
    Ok(match value {
        f64::INFINITY => Bound::None,
        value if value < 0.0 => Bound::Auto,
        value => Bound::At(value),
    })
}

fn bound_to_c(bound: Bound) -> f64 {
    match bound {
        Bound::None => f64::INFINITY,
        Bound::Auto => -1.0,
        Bound::At(bound) => bound,
    }
}

fn choice<T: Copy>(name: &str, value: u32, choices: &[T]) -> Result<T> {
    match choices.get(value as usize) {
        Some(choice) => Ok(*choice),
        None => bail!(Arg, "{name} is {value}, allowed is 0 to {}", choices.len() - 1),
    }
}

fn place<T: PartialEq>(value: &T, choices: &[T]) -> u32 {
    choices.iter().position(|choice| choice == value).unwrap_or_default() as u32
}

// In the order of the C values.
const RULES: [When; 3] = [When::None, When::Change, When::Schedule];
const SCOPES: [Where; 4] = [Where::Stack, Where::Model, Where::Block, Where::Layers];
const ESTIMATORS: [What; 6] =
    [What::Hold, What::Taylor, What::Newton, What::Hermite, What::Linear, What::FoCa];
const COMPATS: [Compat; 3] = [Compat::None, Compat::Diffusers, Compat::Paper];
const DTYPES: [Option<Dtype>; 4] = [None, Some(Dtype::F32), Some(Dtype::F16), Some(Dtype::Bf16)];
const SWITCH: [bool; 2] = [false, true];

/// # Safety
/// As [`read`].
pub unsafe fn options(from: *const dc_options_t) -> Result<Options> {
    let o = unsafe { read(from)? };
    if o.magic != OPTIONS_MAGIC {
        bail!(Arg, "dc_options_t was not filled by dc_options_init");
    }
    let named = text_of(&o.preset);
    let Some((preset, _)) = PRESETS.iter().find(|(name, _)| *name == named) else {
        bail!(Arg, "preset is '{named}', which is no preset's name");
    };
    let known = Kind::ALL.len();
    let kinds = o.kind_every[known..].iter().chain(&o.kind_layers[known..]).all(|n| *n == 0)
        && o.kind_window[known..].iter().flatten().all(|x| *x == 0.0);
    if !kinds {
        bail!(
            Version,
            "kind_every, kind_layers and kind_window set a kind from {known} on, which this version \
             does not have"
        );
    }
    if o.n_table != 0 || o.table.iter().any(|x| *x != 0.0) {
        bail!(Version, "n_table is {}, but table is not used by this version: leave 0", o.n_table);
    }
    for (name, value) in [("reserved0", o.reserved0), ("reserved1", o.reserved1)] {
        if value != 0 {
            bail!(Version, "{name} is {value}, it must be 0");
        }
    }
    if o.n_mlp_at as usize > DC_MAX_MARKS {
        bail!(Arg, "n_mlp_at is {}, allowed is 0 to {DC_MAX_MARKS}", o.n_mlp_at);
    }
    let of_kind = |kind: usize| OfKind {
        every: every(o.kind_every[kind]),
        window: window(o.kind_window[kind]),
        layers: every(o.kind_layers[kind]),
    };
    if o.mask_len as usize > DC_MAX_STEPS {
        bail!(Arg, "mask_len is {}, allowed is 0 to {DC_MAX_STEPS}", o.mask_len);
    }
    let mask = &o.mask[..o.mask_len as usize];
    if let Some(at) = mask.iter().position(|byte| *byte > 1) {
        bail!(Arg, "mask[{at}] is {}, allowed is 0 or 1", mask[at]);
    }
    Ok(Options {
        preset,
        rule: choice("rule", o.rule, &RULES)?,
        scope: choice("scope", o.scope, &SCOPES)?,
        estimator: choice("estimator", o.estimator, &ESTIMATORS)?,
        on_residual: choice("on_residual", o.on_residual, &SWITCH)?,
        compat: choice("compat", o.compat, &COMPATS)?,
        lagged: choice("lagged", o.lagged, &SWITCH)?,
        share: choice("share", o.share, &SWITCH)?,
        fill: tensors_filled(o.fill),
        history_dtype: choice("history_dtype", o.history_dtype, &DTYPES)?,
        max_age: limit(o.max_age),
        front_blocks: o.front_blocks,
        back_blocks: o.back_blocks,
        order: o.order,
        warmup_steps: limit(o.warmup_steps),
        warmup_interval: o.warmup_interval,
        last_steps: limit(o.last_steps),
        max_consecutive: limit(o.max_consecutive),
        max_total: limit(o.max_total),
        threshold: o.threshold,
        max_error: bound("max_error", o.max_error)?,
        max_run_error: bound("max_run_error", o.max_run_error)?,
        max_gain: bound("max_gain", o.max_gain)?,
        mask: mask.iter().map(|byte| *byte == 1).collect(),
        every: every(o.every),
        window: window(o.window),
        kinds: std::array::from_fn(of_kind),
        mlp_at: o.mlp_at[..o.n_mlp_at as usize].to_vec(),
        mlp_skips: o.mlp_skips,
        cond_only: choice("cond_only", o.cond_only, &SWITCH)?,
        weight: Span(o.weight[0], o.weight[1]),
        scale: o.scale,
        guidance: OfGuidance {
            every: every(o.guide_every),
            window: window(o.guide_window),
            low: o.guide_low,
            low_window: window(o.guide_low_window),
            high: o.guide_high,
            high_window: window(o.guide_high_window),
            max_growth: limit(o.guide_max_growth),
        },
    })
}

/// Bits of tensors that no block can have say nothing.
fn tensors_filled(bits: u32) -> u32 {
    let all = (1 << DC_MAX_TENSORS) - 1;
    if bits & all == all { FILL_ALL } else { bits & all }
}

/// 0 is not set.
fn every(value: u32) -> Option<u32> {
    (value != 0).then_some(value)
}

/// Both 0 is not set.
fn window(value: [f64; 2]) -> Option<Span> {
    (value != [0.0, 0.0]).then_some(Span(value[0], value[1]))
}

fn window_to_c(window: Option<Span>) -> [f64; 2] {
    window.map_or([0.0; 2], |Span(low, high)| [low, high])
}

pub fn options_to_c(options: &Options) -> dc_options_t {
    let mut preset = [0; 24];
    let name = options.preset.bytes().map(u8::cast_signed);
    preset.iter_mut().zip(name).for_each(|(to, from)| *to = from as c_char);
    let mut mask = [0; DC_MAX_STEPS];
    mask.iter_mut().zip(&options.mask).for_each(|(to, from)| *to = u8::from(*from));
    let mut mlp_at = [0.0; DC_MAX_MARKS];
    mlp_at.iter_mut().zip(&options.mlp_at).for_each(|(to, from)| *to = *from);
    let guidance = &options.guidance;
    let kind = |index: usize| options.kinds.get(index).copied().unwrap_or_default();
    dc_options_t {
        struct_size: size_of::<dc_options_t>() as u32,
        magic: OPTIONS_MAGIC,
        preset,
        rule: place(&options.rule, &RULES),
        scope: place(&options.scope, &SCOPES),
        estimator: place(&options.estimator, &ESTIMATORS),
        on_residual: u32::from(options.on_residual),
        compat: place(&options.compat, &COMPATS),
        lagged: u32::from(options.lagged),
        share: u32::from(options.share),
        fill: options.fill,
        history_dtype: place(&options.history_dtype, &DTYPES),
        max_age: limit_to_c(options.max_age),
        front_blocks: options.front_blocks,
        back_blocks: options.back_blocks,
        order: options.order,
        warmup_steps: limit_to_c(options.warmup_steps),
        warmup_interval: options.warmup_interval,
        last_steps: limit_to_c(options.last_steps),
        max_consecutive: limit_to_c(options.max_consecutive),
        max_total: limit_to_c(options.max_total),
        threshold: options.threshold,
        max_error: bound_to_c(options.max_error),
        max_run_error: bound_to_c(options.max_run_error),
        max_gain: bound_to_c(options.max_gain),
        every: options.every.unwrap_or(0),
        cond_only: u32::from(options.cond_only),
        window: window_to_c(options.window),
        kind_every: std::array::from_fn(|k| kind(k).every.unwrap_or(0)),
        kind_layers: std::array::from_fn(|k| kind(k).layers.unwrap_or(0)),
        kind_window: std::array::from_fn(|k| window_to_c(kind(k).window)),
        mlp_at,
        n_mlp_at: options.mlp_at.len() as u32,
        mlp_skips: options.mlp_skips,
        weight: [options.weight.0, options.weight.1],
        scale: options.scale,
        guide_every: guidance.every.unwrap_or(0),
        guide_max_growth: limit_to_c(guidance.max_growth),
        guide_window: window_to_c(guidance.window),
        guide_low: guidance.low,
        guide_high: guidance.high,
        guide_low_window: window_to_c(guidance.low_window),
        guide_high_window: window_to_c(guidance.high_window),
        mask_len: options.mask.len() as u32,
        reserved1: 0,
        mask,
        n_table: 0,
        reserved0: 0,
        table: [0.0; DC_MAX_TABLE],
    }
}

/// Puts changed options back; a choice that the caller's older struct has no room for is an error.
///
/// # Safety
/// As [`read`], and writable.
pub unsafe fn put_options(to: *mut dc_options_t, options: &Options) -> Result<()> {
    let value = options_to_c(options);
    let size = unsafe { to.cast::<u32>().read_unaligned() } as usize;
    let defaults = dc_options_t::defaults();
    let bytes = |value: &dc_options_t| -> Vec<u8> {
        let start = std::ptr::from_ref(value).cast::<u8>();
        // The struct has no padding (tested in tests/layout.rs), so all its bytes are set.
        unsafe { std::slice::from_raw_parts(start, size_of::<dc_options_t>()) }.to_vec()
    };
    let cut = size.min(size_of::<dc_options_t>());
    if bytes(&value)[cut..] != bytes(&defaults)[cut..] {
        bail!(Version, "the caller's dc_options_t has {size} bytes, too few for these options");
    }
    unsafe { fill(to, &value) }
}

// ---- tensors ----

fn dtype(dtype: dc_dtype_t) -> Result<Dtype> {
    match dtype {
        1 => Ok(Dtype::F32),
        2 => Ok(Dtype::F16),
        3 => Ok(Dtype::Bf16),
        other => {
            bail!(Unsupported, "dtype is {other}, known are DC_F32 (1), DC_F16 (2) and DC_BF16 (3)")
        }
    }
}

fn tensor(t: &dc_tensor_t) -> Result<Tensor> {
    if t.flags & !DC_TENSOR_HOST != 0 {
        bail!(Arg, "flags is {:#x}, known is DC_TENSOR_HOST (1)", t.flags);
    }
    if t.reserved != 0 {
        bail!(Arg, "reserved is {:#x}, it must be 0", t.reserved);
    }
    let ndim = t.ndim as usize;
    let (Some(shape), Some(stride)) = (t.shape.get(..ndim), t.stride.get(..ndim)) else {
        bail!(Arg, "ndim is {ndim}, allowed is 1 to {DC_MAX_DIMS}");
    };
    let mut tensor = Tensor::new(t.data.cast(), dtype(t.dtype)?, shape, stride, t.id)?;
    tensor.on_host = t.flags & DC_TENSOR_HOST != 0;
    Ok(tensor)
}

/// # Safety
/// `from` is null or points to `n` tensors.
unsafe fn tensor_slice<'a>(
    name: &str,
    from: *const dc_tensor_t,
    n: usize,
) -> Result<&'a [dc_tensor_t]> {
    if n == 0 || n > DC_MAX_TENSORS {
        bail!(Arg, "n is {n}, allowed is 1 to {DC_MAX_TENSORS}");
    }
    if from.is_null() {
        bail!(Arg, "{name} is null");
    }
    Ok(unsafe { std::slice::from_raw_parts(from, n) })
}

/// # Safety
/// `from` is null or points to `n` tensors.
pub unsafe fn tensors(
    name: &str,
    from: *const dc_tensor_t,
    n: usize,
    given: &mut Given,
) -> Result<()> {
    let slice = unsafe { tensor_slice(name, from, n)? };
    for (k, t) in slice.iter().enumerate() {
        let tensor = tensor(t).map_err(|error| error.within(&format!("{name}[{k}]")))?;
        if tensor.is_null() && !tensor.is_empty() {
            bail!(Arg, "{name}[{k}]: data is null");
        }
        if t.id != 0 && slice[..k].iter().any(|other| other.id == t.id) {
            bail!(Arg, "{name}[{k}]: id {} is another tensor's already", t.id);
        }
        given.push(tensor);
    }
    Ok(())
}

pub fn kind(kind: dc_kind_t) -> Result<Kind> {
    match Kind::ALL.get(kind as usize) {
        Some(kind) => Ok(*kind),
        None => bail!(
            Arg,
            "kind is {kind}, known are DC_KIND_SPATIAL (0), TEMPORAL (1), CROSS (2) and MLP (3)"
        ),
    }
}

/// # Safety
/// `from` is null or points to `n` rows whose tensors are as their counts say.
pub unsafe fn layouts(from: *const dc_shape_t, n: usize, n_branches: usize) -> Result<Vec<Layout>> {
    if from.is_null() && n > 0 {
        bail!(Arg, "shapes is null, and there are {n}");
    }
    let rows = if n == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(from, n) } };
    let layout = |(k, row): (usize, &dc_shape_t)| {
        let layout = unsafe { layout(row, n_branches) };
        layout.map_err(|error| error.within(&format!("shapes[{k}]")))
    };
    rows.iter().enumerate().map(layout).collect()
}

/// # Safety
/// The row's tensors are as their count says.
unsafe fn layout(row: &dc_shape_t, n_branches: usize) -> Result<Layout> {
    let of = match row.hook {
        DC_HOOK_BLOCKS | DC_HOOK_EACH => Unit::Block,
        DC_HOOK_LAYERS => Unit::Layer(kind(row.kind)?),
        DC_HOOK_MODEL => Unit::Model,
        DC_HOOK_GUIDE => Unit::Uncond,
        other => bail!(Arg, "hook is {other}, allowed is one of 1, 2, 4, 8 and 32"),
    };
    if row.reserved0 != 0 {
        bail!(Version, "reserved0 is {}, it must be 0", row.reserved0);
    }
    if !matches!(of, Unit::Layer(_)) && row.kind != 0 {
        bail!(Arg, "kind is {}: it is for DC_HOOK_LAYERS, leave 0", row.kind);
    }
    if !matches!(of, Unit::Layer(_) | Unit::Block) && row.count > 1 {
        bail!(Arg, "count is {}: it is for layers and blocks, leave 0", row.count);
    }
    if row.count > 1 << 20 {
        bail!(Arg, "count is {}, allowed is up to {}", row.count, 1 << 20);
    }
    let branch = match row.branch {
        u32::MAX => None,
        branch if (branch as usize) < n_branches => Some(branch as usize),
        branch => bail!(Arg, "branch is {branch}, n_branches is {n_branches}"),
    };
    let tensors = unsafe { tensor_slice("tensors", row.tensors, row.n as usize)? };
    // No element is touched through this view.
    let shape = |t: &dc_tensor_t| Ok(unsafe { tensor(t)?.rows(0, 1) }.shape());
    let tensors = tensors.iter().map(shape).collect::<Result<_>>()?;
    Ok(Layout { of, branch, count: row.count.max(1), tensors })
}

// ---- run and pass ----

/// # Safety
/// As [`read`]; `timesteps` and `shapes` have as many elements as their counts say.
pub unsafe fn run(from: *const dc_run_t, n_branches: usize) -> Result<Run> {
    let r = unsafe { read(from)? };
    let known = |n: u32| (n != 0).then_some(n);
    let end = if r.end_step == 0 { r.n_steps } else { r.end_step };
    if r.n_steps != 0 && r.end_step > r.n_steps {
        bail!(Arg, "end_step is {}, allowed is up to n_steps, {}", r.end_step, r.n_steps);
    }
    if end != 0 && r.first_step >= end {
        bail!(Arg, "first_step is {}, allowed is below the run's end, {end}", r.first_step);
    }
    let max = r.timestep_max;
    let bad = !(max.is_finite() && max >= 0.0);
    if bad || (max == 0.0 && !r.timesteps.is_null()) {
        bail!(Arg, "timestep_max is {max}, required is a number above 0, or 0 without timesteps");
    }
    let timesteps = if r.timesteps.is_null() {
        Vec::new()
    } else {
        if r.n_steps == 0 {
            bail!(Arg, "n_steps is 0, but timesteps are given: one for each step");
        }
        unsafe { std::slice::from_raw_parts(r.timesteps, r.n_steps as usize) }.to_vec()
    };
    if let Some(at) = timesteps.iter().position(|t| !t.is_finite()) {
        bail!(Arg, "timesteps[{at}] is {}, it must be finite", timesteps[at]);
    }
    if r.n_shapes > 0 && r.shapes.is_null() {
        bail!(Arg, "shapes is null, n_shapes is {}", r.n_shapes);
    }
    let layouts = match r.n_shapes {
        0 => None,
        n => Some(unsafe { layouts(r.shapes, n as usize, n_branches)? }),
    };
    Ok(Run {
        n_steps: known(r.n_steps),
        first_step: r.first_step,
        end_step: known(r.end_step),
        timesteps,
        timestep_max: (max > 0.0).then_some(max),
        layouts,
        stream: r.stream,
    })
}

/// Fills `into`, which would be slow to move just after it was written.
///
/// # Safety
/// As [`read`].
pub unsafe fn pass(from: *const dc_pass_t, into: &mut PassInfo) -> Result<()> {
    let mut copy = MaybeUninit::uninit();
    let p = unsafe { read_in_place(from, &mut copy)? };
    let Some(branches) = p.branches.get(..p.n_branches as usize) else {
        bail!(Arg, "pass->n_branches is {}, allowed is 1 to {DC_MAX_BRANCHES}", p.n_branches);
    };
    into.branches.clear();
    into.branches.extend(branches.iter().map(|branch| *branch as usize));
    (into.step, into.flags) = (p.step, p.flags);
    (into.timestep, into.stream) = (p.timestep, p.stream);
    Ok(())
}

// ---- out ----

pub fn action(action: Action) -> dc_action_t {
    match action {
        Action::Compute => dc_action::DC_COMPUTE as u32,
        Action::Skip => dc_action::DC_SKIP as u32,
    }
}

pub fn reason(reason: Reason) -> dc_reason_t {
    use dc_reason::*;
    let reason = match reason {
        Reason::None => DC_REASON_NONE,
        Reason::WarmUp => DC_REASON_WARMUP,
        Reason::Last => DC_REASON_LAST,
        Reason::NoHistory => DC_REASON_NO_HISTORY,
        Reason::Rule => DC_REASON_RULE,
        Reason::MaxConsecutive => DC_REASON_MAX_CONSECUTIVE,
        Reason::MaxTotal => DC_REASON_MAX_TOTAL,
        Reason::MaxError => DC_REASON_MAX_ERROR,
        Reason::NotFinite => DC_REASON_NOT_FINITE,
        Reason::Shape => DC_REASON_SHAPE,
        Reason::Memory => DC_REASON_MEMORY,
        Reason::Veto => DC_REASON_VETO,
        Reason::Engine => DC_REASON_ENGINE,
        Reason::Shared => DC_REASON_SHARED,
        Reason::Error => DC_REASON_ERROR,
        Reason::Capture => DC_REASON_CAPTURE,
        Reason::Age => DC_REASON_AGE,
        Reason::Interval => DC_REASON_INTERVAL,
        Reason::Window => DC_REASON_WINDOW,
        Reason::Unlisted => DC_REASON_UNLISTED,
        Reason::Guidance => DC_REASON_GUIDANCE,
        Reason::Timestep => DC_REASON_TIMESTEP,
    };
    reason as u32
}

/// # Safety
/// `text` is null or ends with a NUL.
pub unsafe fn text<'a>(name: &str, text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        bail!(Arg, "{name} is null");
    }
    match unsafe { CStr::from_ptr(text) }.to_str() {
        Ok(text) => Ok(text),
        Err(_) => bail!(Arg, "{name} is not UTF-8"),
    }
}

/// The Rust constants that the C ones repeat.
const _: () = {
    assert!(DC_MAX_TENSORS == crate::rows::MAX_TENSORS);
    assert!(DC_MAX_DIMS == crate::ops::MAX_DIMS);
    assert!(DC_MAX_BRANCHES == cache::MAX_BRANCHES);
    assert!(DC_MAX_STEPS == crate::options::MAX_STEPS);
    assert!(DC_MODEL == cache::MODEL && DC_UNCOND == cache::UNCOND);
    assert!(DC_MAX_MARKS == crate::rule::MAX_MARKS && DC_MAX_KINDS >= Kind::ALL.len());
    assert!(DC_PASS_LAST == cache::flag::LAST && DC_PASS_COMPUTE == cache::flag::COMPUTE);
    assert!(DC_PASS_FORGET == cache::flag::FORGET && DC_PASS_TIMESTEP == cache::flag::TIMESTEP);
};
