//! C structs in and out: sizes, magic numbers, unknown tails, and every field's range.
//!
//! A struct carries the size its caller was compiled with. One from an older header is shorter:
//! what it lacks has its default, and nothing is written past its end. One from a newer header is
//! longer: that is fine as long as what this library does not know is zero.
use super::types::*;
use crate::cache::{self, Engine, Given, PassInfo, Reducer, Run};
use crate::error::{Result, bail};
use crate::ops::memory::Allocator;
use crate::ops::{Dtype, Shape, Tensor};
use crate::options::{Bound, Compat, Limit, Options, What, When, Where};
use crate::preset::{Hooks, PRESETS};
use crate::rule::{Action, Reason};
use std::ffi::{CStr, c_char};

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
    let text = bytes.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
    String::from_utf8_lossy(&text.collect::<Vec<_>>()).into_owned()
}

// ---- engine ----

/// What the engine says of itself.
pub struct Facts {
    pub engine: Engine,
    pub hooks: Hooks,
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
    backend(e.backend)?;
    let known = DC_HOOK_BLOCKS | DC_HOOK_EACH | DC_HOOK_MODEL;
    if e.hooks == 0 || e.hooks & !known != 0 {
        bail!(
            Arg,
            "hooks is {:#x}, required is one or more of DC_HOOK_BLOCKS (1), DC_HOOK_EACH (2) and \
             DC_HOOK_MODEL (8)",
            e.hooks
        );
    }
    if e.flags & !DC_ENGINE_KEEPS_INPUT != 0 {
        bail!(Arg, "flags is {:#x}, known is DC_ENGINE_KEEPS_INPUT (1)", e.flags);
    }
    let blocks = e.hooks & (DC_HOOK_BLOCKS | DC_HOOK_EACH) != 0;
    if e.n_blocks > 1 << 20 || (blocks && e.n_blocks == 0) {
        bail!(Arg, "n_blocks is {}, required is 1 to {}", e.n_blocks, 1 << 20);
    }
    if e.n_layers != 0 {
        bail!(Version, "n_layers is {}, this version has no layer hooks", e.n_layers);
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
    let label = text_of(&e.label);
    let engine = Engine {
        n_blocks: e.n_blocks.max(1),
        n_branches: e.n_branches as usize,
        max_stacked: e.max_stacked as usize,
        measure: e.measure,
        keeps_input: e.flags & DC_ENGINE_KEEPS_INPUT != 0,
        reduce: e.reduce.map(|reduce| Reducer { reduce, user: e.reduce_user }),
        label,
    };
    let hooks = Hooks { blocks, model: e.hooks & DC_HOOK_MODEL != 0 };
    let (budget, threads) = (e.memory_budget, e.n_threads as usize);
    Ok(Facts { engine, hooks, allocator, budget, threads })
}

pub fn backend(backend: dc_backend_t) -> Result<()> {
    match backend {
        0 => Ok(()),
        1 => bail!(
            Unsupported,
            "backend is DC_BACKEND_CUDA (1), this version of the library has DC_BACKEND_CPU (0)"
        ),
        other => bail!(Arg, "backend is {other}, known are 0 and 1"),
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
const SCOPES: [Where; 2] = [Where::Stack, Where::Model];
const ESTIMATORS: [What; 3] = [What::Hold, What::Taylor, What::Newton];
const COMPATS: [Compat; 2] = [Compat::None, Compat::Diffusers];
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
    let later = o.interval.iter().all(|n| *n == 0)
        && o.window.iter().flatten().chain(&o.guide_window).all(|x| *x == 0.0)
        && (o.guide_interval, o.guide_low, o.guide_high) == (0, 0.0, 0.0)
        && (o.n_table, o.reserved0) == (0, 0)
        && o.table.iter().all(|x| *x == 0.0);
    if !later {
        bail!(Version, "interval, window, guide_* and table are not used by this version: leave 0");
    }
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
        fill: o.fill,
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
    })
}

pub fn options_to_c(options: &Options) -> dc_options_t {
    let mut preset = [0; 24];
    let name = options.preset.bytes().map(u8::cast_signed);
    preset.iter_mut().zip(name).for_each(|(to, from)| *to = from as c_char);
    let mut mask = [0; DC_MAX_STEPS];
    mask.iter_mut().zip(&options.mask).for_each(|(to, from)| *to = u8::from(*from));
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
        interval: [0; DC_MAX_KINDS],
        window: [[0.0; 2]; DC_MAX_KINDS],
        guide_interval: 0,
        mask_len: options.mask.len() as u32,
        guide_window: [0.0; 2],
        guide_low: 0.0,
        guide_high: 0.0,
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
    Tensor::new(t.data.cast(), dtype(t.dtype)?, shape, stride, t.id)
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
pub unsafe fn tensors(name: &str, from: *const dc_tensor_t, n: usize) -> Result<Given> {
    let mut given = Given { tensors: [None; DC_MAX_TENSORS], n };
    let slice = unsafe { tensor_slice(name, from, n)? };
    for (k, t) in slice.iter().enumerate() {
        let tensor = tensor(t).map_err(|error| error.within(&format!("{name}[{k}]")))?;
        if tensor.is_null() && !tensor.is_empty() {
            bail!(Arg, "{name}[{k}]: data is null");
        }
        if t.id != 0 && slice[..k].iter().any(|other| other.id == t.id) {
            bail!(Arg, "{name}[{k}]: id {} is another tensor's already", t.id);
        }
        given.tensors[k] = Some(tensor);
    }
    Ok(given)
}

/// Each branch's shapes with ids, for the policy's hook.
///
/// # Safety
/// `from` is null or points to `n` rows whose tensors are as their counts say.
pub unsafe fn shapes(
    from: *const dc_shape_t,
    n: usize,
    n_branches: usize,
    model: bool,
) -> Result<Vec<Vec<(u32, Shape)>>> {
    if from.is_null() && n > 0 {
        bail!(Arg, "shapes is null, and there are {n}");
    }
    let rows = if n == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(from, n) } };
    let mut common = None;
    let mut own = vec![None; n_branches];
    for (k, row) in rows.iter().enumerate() {
        let read = || -> Result<Vec<(u32, Shape)>> {
            if row.kind != 0 || row.count > 1 || row.reserved0 != 0 {
                bail!(Version, "kind, count and reserved0 are for layers: leave 0");
            }
            let tensors = unsafe { tensor_slice("tensors", row.tensors, row.n as usize)? };
            let shape = |t: &dc_tensor_t| {
                let tensor = tensor(t)?;
                // No element is touched through this view.
                Ok((t.id, unsafe { tensor.rows(0, 1) }.shape()))
            };
            tensors.iter().map(shape).collect()
        };
        let read = read().map_err(|error| error.within(&format!("shapes[{k}]")))?;
        let for_model = match row.hook {
            DC_HOOK_BLOCKS | DC_HOOK_EACH => false,
            DC_HOOK_MODEL => true,
            other => bail!(Arg, "shapes[{k}]: hook is {other}, allowed is one of 1, 2 and 8"),
        };
        if for_model != model {
            continue;
        }
        match row.branch {
            u32::MAX => common = Some(read),
            branch => match own.get_mut(branch as usize) {
                Some(own) => *own = Some(read),
                None => bail!(Arg, "shapes[{k}]: branch is {branch}, n_branches is {n_branches}"),
            },
        }
    }
    let hook = if model { "DC_HOOK_MODEL" } else { "DC_HOOK_BLOCKS" };
    let missing = own.iter().position(|own| own.is_none() && common.is_none());
    if let Some(branch) = missing {
        bail!(Arg, "shapes has no row of {hook} for branch {branch}");
    }
    let rows = own.into_iter().map(|own| own.or_else(|| common.clone()).unwrap_or_default());
    Ok(rows.collect())
}

// ---- run and pass ----

/// # Safety
/// As [`read`]; `timesteps` and `shapes` have as many elements as their counts say.
pub unsafe fn run(from: *const dc_run_t, n_branches: usize, model: Option<bool>) -> Result<Run> {
    let r = unsafe { read(from)? };
    let known = |n: u32| (n != 0).then_some(n);
    let end = if r.end_step == 0 { r.n_steps } else { r.end_step };
    if r.n_steps != 0 && r.end_step > r.n_steps {
        bail!(Arg, "end_step is {}, allowed is up to n_steps, {}", r.end_step, r.n_steps);
    }
    if end != 0 && r.first_step >= end {
        bail!(Arg, "first_step is {}, allowed is below the run's end, {end}", r.first_step);
    }
    let timesteps = if r.timesteps.is_null() {
        Vec::new()
    } else {
        let max = r.timestep_max;
        if !(max.is_finite() && max > 0.0) {
            bail!(Arg, "timestep_max is {max}, with timesteps it is required: above 0");
        }
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
    let shapes = match model.filter(|_| r.n_shapes > 0) {
        Some(model) => Some(unsafe { shapes(r.shapes, r.n_shapes as usize, n_branches, model)? }),
        None => None,
    };
    Ok(Run {
        n_steps: known(r.n_steps),
        first_step: r.first_step,
        end_step: known(r.end_step),
        timesteps,
        shapes,
        stream: r.stream,
    })
}

/// # Safety
/// As [`read`].
pub unsafe fn pass(from: *const dc_pass_t) -> Result<PassInfo> {
    let p = unsafe { read(from)? };
    let Some(branches) = p.branches.get(..p.n_branches as usize) else {
        bail!(Arg, "pass->n_branches is {}, allowed is 1 to {DC_MAX_BRANCHES}", p.n_branches);
    };
    Ok(PassInfo {
        step: p.step,
        branches: branches.iter().map(|branch| *branch as usize).collect(),
        flags: p.flags,
        timestep: p.timestep,
        stream: p.stream,
    })
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
        Reason::Age => DC_REASON_AGE,
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
    assert!(DC_MAX_TENSORS == crate::history::MAX_TENSORS);
    assert!(DC_MAX_DIMS == crate::ops::MAX_DIMS);
    assert!(DC_MAX_BRANCHES == cache::MAX_BRANCHES);
    assert!(DC_MAX_STEPS == crate::options::MAX_STEPS);
    assert!(DC_MODEL == cache::MODEL);
    assert!(DC_PASS_LAST == cache::flag::LAST && DC_PASS_COMPUTE == cache::flag::COMPUTE);
    assert!(DC_PASS_FORGET == cache::flag::FORGET && DC_PASS_TIMESTEP == cache::flag::TIMESTEP);
};
