//! The types of `include/diffcache.h`, in its order. Their docs are the header's.
#![allow(non_camel_case_types)]
use std::ffi::{c_char, c_void};

pub const DC_VERSION_MAJOR: u32 = 0;
pub const DC_VERSION_MINOR: u32 = 1;
pub const DC_VERSION_PATCH: u32 = 0;

/// Most dimensions of a tensor.
pub const DC_MAX_DIMS: usize = 6;
/// Most tensors one block works on (image stream, text stream, audio, ...).
pub const DC_MAX_TENSORS: usize = 4;
/// Most branches of a run (conditional, unconditional, skip-layer, ...).
pub const DC_MAX_BRANCHES: usize = 8;
/// Room for kinds of layers.
pub const DC_MAX_KINDS: usize = 8;
/// Most timesteps in dc_options_t::mlp_at.
pub const DC_MAX_MARKS: usize = 16;
/// Longest step mask.
pub const DC_MAX_STEPS: usize = 256;
/// Longest table of coefficients.
pub const DC_MAX_TABLE: usize = 256;

/// For a limit in dc_options_t that counts steps: there is none.
pub const DC_NONE: u32 = 0xffff_ffff;
/// For such a limit: the library's own default. For limits of type double INFINITY is "none" and
/// any negative number is "auto".
pub const DC_AUTO: u32 = 0xffff_fffe;

/// Instead of a block number: the whole evaluation, latents in, prediction out.
pub const DC_MODEL: u32 = 0xffff_ffff;
/// Instead of a block number, for dc_cache_peek and in the trace: the unconditional branch.
pub const DC_UNCOND: u32 = 0xffff_fffe;

/// dc_engine_t::hooks: before and after the boundary blocks: 0, front_blocks, n_blocks -
/// back_blocks, and the last.
pub const DC_HOOK_BLOCKS: u32 = 1;
/// dc_engine_t::hooks: before and after every block.
pub const DC_HOOK_EACH: u32 = 2;
/// dc_engine_t::hooks: dc_cache_before_layer and dc_cache_after_layer.
pub const DC_HOOK_LAYERS: u32 = 4;
/// dc_engine_t::hooks: before and after DC_MODEL.
pub const DC_HOOK_MODEL: u32 = 8;
/// dc_engine_t::hooks: dc_cache_before_uncond and dc_cache_after_uncond.
pub const DC_HOOK_GUIDE: u32 = 32;

/// dc_engine_t::flags: with front_blocks 1, the tensors given to before_block(0) as `in` and to
/// after_block(0) stand unchanged until before_block(1) has returned. Saves one copy a pass, and
/// the memory of that copy.
pub const DC_ENGINE_KEEPS_INPUT: u32 = 1;

/// dc_tensor_t::flags: `data` is host memory although the backend is not the CPU. It must be ready when
/// the call is made, and is written when it returns; the copies of it are kept in host memory.
/// Without effect on the CPU.
pub const DC_TENSOR_HOST: u32 = 1;

/// dc_pass_t::flags: the run's last step. Needed only if n_steps is unknown.
pub const DC_PASS_LAST: u32 = 1;
/// dc_pass_t::flags: compute everything, and learn from it.
pub const DC_PASS_COMPUTE: u32 = 2;
/// dc_pass_t::flags: the weights changed (LoRA, expert): drop what these branches hold.
pub const DC_PASS_FORGET: u32 = 4;
/// dc_pass_t::flags: `timestep` is set; else the run's list is used.
pub const DC_PASS_TIMESTEP: u32 = 8;

/// Result of a call: DC_OK or a negative dc_status. dc_last_error() has the text.
pub type dc_status_t = i32;
/// Values of dc_status_t. Frozen.
#[repr(C)]
pub enum dc_status {
    DC_OK = 0,
    /// Null, malformed or out of range; the text names the argument, its value and what is allowed.
    DC_ERR_ARG = -1,
    /// A call out of order, or a step evaluated before.
    DC_ERR_STATE = -2,
    /// Destroyed, or never a cache.
    DC_ERR_HANDLE = -3,
    /// Another thread is in a call on this cache.
    DC_ERR_BUSY = -4,
    /// A branch's tensors changed shape or dtype within a run, and it starts again; or tensors that
    /// must be alike are not: in and out of a residual, cond and uncond.
    DC_ERR_SHAPE = -5,
    /// The allocator returned null, or memory_budget would be exceeded.
    DC_ERR_MEMORY = -6,
    /// No device or driver, or an error of theirs; after one in a pass the rest of the run computes.
    DC_ERR_DEVICE = -7,
    /// Known but not to be had: a hook the engine does not make, a backend, a dtype.
    DC_ERR_UNSUPPORTED = -8,
    /// A struct sets a field that this library does not know.
    DC_ERR_VERSION = -9,
    /// A bug in the library; the cache only computes from now on.
    DC_ERR_INTERNAL = -10,
    /// The stream is being captured, or is the legacy one while another is: the pass computes, and the
    /// capture goes on undisturbed.
    DC_ERR_CAPTURE = -11,
    /// Only from dc_cache_end_pass: do not use this pass's output. Redo it with DC_PASS_COMPUTE.
    DC_ERR_DISCARD = -100,
}

/// What to do with a unit of work. Compare with `==`.
pub type dc_action_t = u32;
/// Values of dc_action_t. Zero is always the safe answer.
#[repr(C)]
pub enum dc_action {
    /// Run the work, then report it.
    DC_COMPUTE = 0,
    /// Leave the work out: its result is in place.
    DC_SKIP = 1,
    /// Not certain yet (dc_cache_peek), or no wish (dc_cache_decide).
    DC_UNDECIDED = 2,
}

/// Where tensors live.
pub type dc_backend_t = u32;
/// Values of dc_backend_t.
#[repr(C)]
pub enum dc_backend {
    DC_BACKEND_CPU = 0,
    DC_BACKEND_CUDA = 1,
}

/// Element type. f32 maths inside, rounded once at the store.
pub type dc_dtype_t = u32;
/// Values of dc_dtype_t.
#[repr(C)]
pub enum dc_dtype {
    DC_F32 = 1,
    DC_F16 = 2,
    DC_BF16 = 3,
}

/// What a layer does; an index into dc_options_t::kind_every and its like.
pub type dc_kind_t = u32;
/// Values of dc_kind_t, with their names in text options.
#[repr(C)]
pub enum dc_kind {
    /// "spatial": attention within a picture or frame, and joint attention over picture and text.
    DC_KIND_SPATIAL = 0,
    /// "temporal": attention across frames.
    DC_KIND_TEMPORAL = 1,
    /// "cross": attention to the text.
    DC_KIND_CROSS = 2,
    /// "mlp": the feed-forward part of a block.
    DC_KIND_MLP = 3,
}

/// When: what decides, beside the limits, intervals, windows and the mask. A pass is skipped when
/// all agree.
pub type dc_rule_t = u32;
/// Values of dc_rule_t.
#[repr(C)]
pub enum dc_rule {
    /// Never skip.
    DC_RULE_NONE = 0,
    /// Skip while what the front blocks add has changed by less than `threshold` since the last
    /// computed pass: sum|r - r_old| / sum|r_old| over the measured tensors. NaN, infinity and 0/0
    /// compute.
    DC_RULE_CHANGE = 1,
    /// Skip wherever intervals, windows and the mask allow it.
    DC_RULE_SCHEDULE = 2,
}

/// Where: which values are left out together.
pub type dc_scope_t = u32;
/// Values of dc_scope_t.
#[repr(C)]
pub enum dc_scope {
    /// The blocks between the first front_blocks and the last back_blocks, as one value.
    DC_SCOPE_STACK = 0,
    /// DC_MODEL.
    DC_SCOPE_MODEL = 1,
    /// The same blocks, each for itself.
    DC_SCOPE_BLOCK = 2,
    /// Layers; each kind has its own interval and window.
    DC_SCOPE_LAYERS = 3,
}

/// What stands in for the skipped value, from the last ones computed.
pub type dc_estimator_t = u32;
/// Values of dc_estimator_t.
#[repr(C)]
pub enum dc_estimator {
    /// The newest one.
    DC_ESTIMATOR_HOLD = 0,
    /// TaylorSeer: the last `order` + 1, as a Taylor series of backward differences.
    DC_ESTIMATOR_TAYLOR = 1,
    /// The polynomial through the last `order` + 1, exact whatever the gaps between their steps.
    DC_ESTIMATOR_NEWTON = 2,
    /// HiCache: the last `order` + 1, as Hermite polynomials of backward differences; `scale` damps.
    DC_ESTIMATOR_HERMITE = 3,
    /// FasterCache: the newest, and `weight` times the slope of the last two.
    DC_ESTIMATOR_LINEAR = 4,
    /// FoCa: half the slope of the last two computed, and half that of the last two of any kind.
    DC_ESTIMATOR_FOCA = 5,
}

/// Whose behaviour, quirks included.
pub type dc_compat_t = u32;
/// Values of dc_compat_t.
#[repr(C)]
pub enum dc_compat {
    /// This library's own.
    DC_COMPAT_NONE = 0,
    /// Hugging Face diffusers. Limits left to "auto" are off. FirstBlockCache: a change equal to the
    /// threshold, NaN and 0/0 skip, and every intermediate is rounded to the tensors' dtype.
    /// TaylorSeer: the interval is counted from the second step after the warm-up, and the ladder of
    /// differences is kept in history_dtype (diffusers' own default is bf16) with a rounding for
    /// each operation. FasterCache: predictions enter the pair that the next is made from. Branches
    /// never mix, which in diffusers they do.
    DC_COMPAT_DIFFUSERS = 1,
    /// The method's original code, where it differs: limits left to "auto" are off; TaylorSeer's
    /// differences begin two steps before the end of the warm-up; FasterCache and FoCa do not count
    /// the gaps between steps.
    DC_COMPAT_PAPER = 2,
}

/// How much to say.
pub type dc_log_level_t = u32;
/// Values of dc_log_level_t.
#[repr(C)]
pub enum dc_log_level {
    DC_LOG_OFF = 0,
    DC_LOG_ERROR = 1,
    /// A run that skipped nothing, or everything it could.
    DC_LOG_WARN = 2,
    /// A line at the end of each run.
    DC_LOG_INFO = 3,
    /// Every error of a pass.
    DC_LOG_DEBUG = 4,
}

/// Why a pass was computed or skipped. Grows at the end.
pub type dc_reason_t = u32;
/// Values of dc_reason_t.
#[repr(C)]
pub enum dc_reason {
    DC_REASON_NONE = 0,
    /// Within warmup_steps.
    DC_REASON_WARMUP,
    /// Within last_steps.
    DC_REASON_LAST,
    /// Nothing is kept, or nothing to compare with.
    DC_REASON_NO_HISTORY,
    /// The rule, or the mask, said so.
    DC_REASON_RULE,
    /// max_consecutive was reached.
    DC_REASON_MAX_CONSECUTIVE,
    /// max_total was reached.
    DC_REASON_MAX_TOTAL,
    /// max_error or max_run_error was reached.
    DC_REASON_MAX_ERROR,
    /// The measured change was NaN or infinite.
    DC_REASON_NOT_FINITE,
    /// A tensor changed shape or dtype.
    DC_REASON_SHAPE,
    /// Memory could not be had.
    DC_REASON_MEMORY,
    /// The stream is being captured.
    DC_REASON_CAPTURE,
    /// Another rank voted against the skip.
    DC_REASON_VETO,
    /// The engine overruled: dc_cache_decide or DC_PASS_COMPUTE.
    DC_REASON_ENGINE,
    /// The first branch of the step decided (`share`).
    DC_REASON_SHARED,
    /// A call of this pass failed.
    DC_REASON_ERROR,
    /// What is kept is older than max_age.
    DC_REASON_AGE,
    /// The interval's turn to compute.
    DC_REASON_INTERVAL,
    /// The timestep is outside the window.
    DC_REASON_WINDOW,
    /// No listed timestep came just before (mlp_at).
    DC_REASON_UNLISTED,
    /// The unconditional branch runs in this step (cond_only).
    DC_REASON_GUIDANCE,
    /// A window needs a timestep, and the engine did not tell it.
    DC_REASON_TIMESTEP,
}

/// A cache for one model, or one request. Opaque: an index and a generation, not an address, so a
/// stale handle never names a new cache. Null is valid everywhere and means "caching off".
pub struct dc_cache_t {
    _private: [u8; 0],
}

/// A borrowed view of a tensor. The library reads and writes `data` only in calls that are given
/// the view, and keeps copies, never the pointer. Frozen: 128 bytes, never to grow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dc_tensor_t {
    /// First element. May be null if the tensor has no elements.
    pub data: *mut c_void,
    pub dtype: dc_dtype_t,
    /// 1 to DC_MAX_DIMS.
    pub ndim: u32,
    /// 0 and above. Extents of 1 do not count when shapes are compared.
    pub shape: [i64; DC_MAX_DIMS],
    /// In elements, 0 and above. All zero = dense, last dimension fastest. A stride of 0 repeats
    /// elements: legal where the tensor is only read.
    pub stride: [i64; DC_MAX_DIMS],
    /// DC_TENSOR_* bits.
    pub flags: u32,
    /// 0 = known by its position in the array; else the engine's number for this stream, by which
    /// it is matched between the start and the end of the skipped part.
    pub id: u32,
    /// Must be 0.
    pub reserved: u64,
}

/// What the ENGINE is: set once per model by the engine's author. Start with dc_engine_init().
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dc_engine_t {
    pub struct_size: u32,
    pub magic: u32,
    /// Default DC_BACKEND_CPU.
    pub backend: dc_backend_t,
    /// CUDA ordinal; -1 (default) = that of the first stream's context, which for streams without one
    /// (null, per-thread) is the current context, else the primary one of device 0. Unused on the CPU.
    pub device: i32,
    /// DC_HOOK_* bits, required: the calls this engine makes. A method that needs another call is
    /// refused by dc_cache_create().
    pub hooks: u32,
    /// DC_ENGINE_* bits.
    pub flags: u32,
    /// Units the engine can run or leave out, in running order. Required unless hooks is
    /// DC_HOOK_MODEL alone.
    pub n_blocks: u32,
    /// Layer numbers are below this. Required with DC_HOOK_LAYERS, else 0.
    pub n_layers: u32,
    /// Branch numbers are below this. Default 1, at most DC_MAX_BRANCHES.
    pub n_branches: u32,
    /// Bit k: tensor k of a block enters the measured change. Default 1: the first only.
    pub measure: u32,
    /// CPU backend: 1 = the calling thread only, 0 (default) = one thread per core that this process may
    /// use, at most 16. These threads are the library's own, for all caches, and are started when a tensor
    /// first has a million elements or so; smaller ones stay on the calling thread, and so does a cache that
    /// finds the threads at work for another. Results are the same bits for any number.
    pub n_threads: u32,
    /// Most branches one pass stacks along dimension 0. Default 1.
    pub max_stacked: u32,
    /// Bytes; 0 (default) = no limit.
    pub memory_budget: u64,
    /// Where kept tensors live; both or neither. Gives `size` bytes aligned to 256, or null: of the
    /// device, if there is one, for work that is queued on `stream` from here on. Called on the thread
    /// that called the library; must not throw, nor call back into this cache. Without: CUDA's
    /// stream-ordered allocator, or before CUDA 11.2 cuMemAlloc.
    pub mem_alloc: Option<
        unsafe extern "C-unwind" fn(
            user: *mut c_void,
            size: usize,
            stream: *mut c_void,
        ) -> *mut c_void,
    >,
    /// Takes back what mem_alloc gave: work that is queued on `stream` so far may still use it. In
    /// dc_cache_destroy(), and where a pass's stream was refused, that is a stream of the library's
    /// own (on the CPU null).
    pub mem_free: Option<
        unsafe extern "C-unwind" fn(
            user: *mut c_void,
            ptr: *mut c_void,
            size: usize,
            stream: *mut c_void,
        ),
    >,
    pub mem_user: *mut c_void,
    /// Adds `n` doubles over the ranks that must agree on every decision, in place; on CUDA in device
    /// memory, queued on `stream` without waiting (ncclAllReduce and its like). That is the stream of
    /// the pass, or where it was refused one of the library's own. Called on every rank exactly once
    /// per pass that could be skipped by facts all ranks share (limits, schedule, flags), and for
    /// layers once per kind, at the first layer of the pass; also by a rank on which something failed:
    /// it votes against. Three do not vote: a pass that dc_cache_begin_pass refuses for its arguments;
    /// a rank whose device is lost, or out of memory for its vote (dc_backend_prepare takes it); and
    /// guidance, whose schedule is the same on all ranks: let them agree that dc_cache_begin_run, given
    /// the shapes, succeeded on each, for nothing in guidance can fail after it. A pass that one rank
    /// must redo (DC_ERR_DISCARD), all must. 0 = success.
    pub reduce: Option<
        unsafe extern "C-unwind" fn(
            user: *mut c_void,
            sums: *mut f64,
            n: usize,
            stream: *mut c_void,
        ) -> i32,
    >,
    pub reduce_user: *mut c_void,
    /// Begins every log line of this cache.
    pub label: [c_char; 32],
    /// The branch that guidance may leave out. Default 1.
    pub uncond_branch: u32,
    /// Must be 0.
    pub reserved0: u32,
}

/// What the USER wants: chosen per request, all of it reachable from text by the names of these
/// fields, or, for the later ones, by the name that stands in quotes with them. Start with
/// dc_options_init(). Holds no pointers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dc_options_t {
    pub struct_size: u32,
    pub magic: u32,
    /// The preset that filled the rest.
    pub preset: [c_char; 24],
    /// "none", "change", "schedule".
    pub rule: dc_rule_t,
    /// "stack", "block", "layers", "model".
    pub scope: dc_scope_t,
    /// "hold", "taylor", "newton", "hermite", "linear", "foca".
    pub estimator: dc_estimator_t,
    /// 1 = keep output - input and add it to the new input; 0 = keep the output, which is all that a
    /// layer shows, and all that there is where the shapes of the two differ.
    pub on_residual: u32,
    /// "none", "diffusers", "paper".
    pub compat: dc_compat_t,
    /// 1 = decide from the measurement one step back, so that nothing waits.
    pub lagged: u32,
    /// 1 = the first branch evaluated in a step decides for all; the others are not measured.
    pub share: u32,
    /// Bit k: tensor k is restored on a skip; others pass through. Default all, which on_residual 0
    /// needs; as text "all" or "0:1".
    pub fill: u32,
    /// dc_dtype_t the kept values are stored in; 0 ("tensor", default) = each tensor's own.
    pub history_dtype: dc_dtype_t,
    /// Steps after which a kept value is no longer used. Auto: 8.
    pub max_age: u32,
    /// Blocks that always compute, at the start; the change is measured over them.
    pub front_blocks: u32,
    /// Blocks that always compute, at the end.
    pub back_blocks: u32,
    /// Of the estimator, 0 to 4. Default 1.
    pub order: u32,
    /// First steps of a run, computed. Intervals count from the last of them. Auto: where a change is
    /// measured a tenth of the run, at least 2; else none. The same for all limits: a schedule has
    /// none but those that are set.
    pub warmup_steps: u32,
    /// Within the warm-up only every n-th step must compute. Default 1.
    pub warmup_interval: u32,
    /// Last steps of a run, computed. Auto: 1.
    pub last_steps: u32,
    /// Skips in a row. Auto: 4.
    pub max_consecutive: u32,
    /// Skips in a run: of a branch, for each kind of layer and for guidance apart. Auto: no limit.
    pub max_total: u32,
    /// Above 0. Typical: 0.05 to 0.2. The summary at the end of a run shows what was measured.
    pub threshold: f64,
    /// Bound on the changes of one streak of skips, added up. Auto: 4 * threshold.
    pub max_error: f64,
    /// Bound on all changes of the run, added up. Auto: no limit.
    pub max_run_error: f64,
    /// Bound on the sum of the |weights| of "taylor" and "newton"; above it a lower order is used.
    /// Auto: 4.
    pub max_gain: f64,
    /// Compute every n-th step; 0 ("none") = no interval, 1 = every step. For layers this is what a
    /// kind has that has no interval of its own.
    pub every: u32,
    /// 1 = layers are skipped only in steps in which guidance leaves the unconditional branch out.
    /// Nothing is then kept of that branch. Without effect if guidance is off.
    pub cond_only: u32,
    /// Low and high: skip only while low < timestep / timestep_max < high, so 1 is pure noise, and what
    /// others write as 100 to 800 is "0.1:0.8". Both 0 ("none") = always. For layers this is what a
    /// kind has that has none itself.
    pub window: [f64; 2],
    /// "spatial.every", "temporal.every", "cross.every", "mlp.every": of a kind. 0 ("auto") = every.
    pub kind_every: [u32; DC_MAX_KINDS],
    /// "spatial.layers" and so on: only so many layers of the kind, the first that the engine asks
    /// about. 0 ("all") = all.
    pub kind_layers: [u32; DC_MAX_KINDS],
    /// "spatial.window" and so on. Both 0 ("auto") = window.
    pub kind_window: [[f64; 2]; DC_MAX_KINDS],
    /// "mlp.at": timesteps, as fractions of timestep_max, at which MLP outputs are kept for the next
    /// mlp_skips steps, and at no others; each is met by the first step at or below it. "mlp.every"
    /// then has no default. As text "0.72:0.64".
    pub mlp_at: [f64; DC_MAX_MARKS],
    /// Timesteps in mlp_at.
    pub n_mlp_at: u32,
    /// "mlp.skips". Default 2.
    pub mlp_skips: u32,
    /// Of estimator "linear": at the first and at the last step of the run; as text "0.5", or
    /// "0.2:0.8" if they differ.
    pub weight: [f64; 2],
    /// Of estimator "hermite", above 0. Default 0.5.
    pub scale: f64,
    /// "guidance.every": compute the unconditional branch every n-th step, and estimate it in the
    /// others as cond + high * d + (low - high) * LP(d): d is uncond - cond of the last computed
    /// step, LP its low frequencies, up to a fifth of the shorter side of the planes, which are the
    /// last two dimensions. 0 ("none"), 1 = it always computes.
    pub guide_every: u32,
    /// "guidance.max_growth": low and high grow with every skipped step in a row, up to this power.
    /// Auto: 4; DC_NONE with compat.
    pub guide_max_growth: u32,
    /// "guidance.window": where the branch may be left out. Of the limits warmup_steps, last_steps,
    /// max_total and max_age hold for guidance too, as far as they are set.
    pub guide_window: [f64; 2],
    /// "guidance.low", "guidance.high": factors; 1 = none.
    pub guide_low: f64,
    pub guide_high: f64,
    /// "guidance.low_window", "guidance.high_window": where they grow. Outside they keep what they have
    /// grown to, until the branch is computed again.
    pub guide_low_window: [f64; 2],
    pub guide_high_window: [f64; 2],
    /// Steps in `mask`.
    pub mask_len: u32,
    /// Must be 0.
    pub reserved1: u32,
    /// 1 = compute, 0 = may be skipped, counted from step 0 of the full schedule. Steps past the end
    /// may be skipped. As text: "mask=11101001".
    pub mask: [u8; DC_MAX_STEPS],
    /// Not used by this version: leave 0.
    pub n_table: u32,
    /// Must be 0.
    pub reserved0: u32,
    /// Not used by this version: leave 0.
    pub table: [f64; DC_MAX_TABLE],
}

/// What the engine's tensors look like, so that memory is exact before the first pass: a row for the
/// blocks, a row for each kind and shape of layer, a row for the model's output or for a prediction
/// of guidance, as far as the method needs them; others are ignored. `data` of the tensors is too.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dc_shape_t {
    /// One DC_HOOK_* bit: BLOCKS or EACH for blocks, LAYERS, MODEL for the model's output, GUIDE for a
    /// prediction of one branch.
    pub hook: u32,
    /// With DC_HOOK_LAYERS; else 0.
    pub kind: dc_kind_t,
    /// One branch, or UINT32_MAX for each that has no row of its own.
    pub branch: u32,
    /// Layers of this kind and shape, together at most n_layers, in the order in which the engine
    /// asks if only the first of them are kept (kind_layers). With scope=block, blocks of this shape,
    /// or 0 in one row for all. Else 0 or 1.
    pub count: u32,
    /// One branch's rows: of a block what goes in, or with on_residual 0 what comes out; of layers and
    /// the model what comes out.
    pub tensors: *const dc_tensor_t,
    pub n: u32,
    /// Must be 0.
    pub reserved0: u32,
}

/// One sampling run. Start from DC_RUN_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dc_run_t {
    pub struct_size: u32,
    /// Evaluations of one branch in the FULL schedule (Heun of 20 steps: 39); 0 = unknown.
    pub n_steps: u32,
    /// First step of this run: image-to-image, a second expert. Masks stay aligned with the full
    /// schedule, limits count from here.
    pub first_step: u32,
    /// One past this run's last step; 0 = n_steps.
    pub end_step: u32,
    /// n_steps values, copied; null = none. Windows need them, here or with each pass.
    pub timesteps: *const f32,
    /// Their value at pure noise: 1000, or 1 for flow sigmas. Required with timesteps, and by windows.
    pub timestep_max: f32,
    /// 0 = memory is taken in the first computed pass of each branch.
    pub n_shapes: u32,
    /// Given: all memory is taken here, or the call fails and the run computes.
    pub shapes: *const dc_shape_t,
    /// For those allocations; as in dc_pass_t.
    pub stream: *mut c_void,
}

/// One evaluation of the model. Start from DC_PASS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dc_pass_t {
    pub struct_size: u32,
    /// Counts EVALUATIONS of a branch: rises strictly, gaps are fine. In sequential guidance cond
    /// and uncond of one sampler step have the same number.
    pub step: u32,
    /// Branches stacked along dimension 0 of every tensor, in order, equal rows each.
    pub n_branches: u32,
    pub branches: [u32; DC_MAX_BRANCHES],
    /// DC_PASS_* bits.
    pub flags: u32,
    /// With DC_PASS_TIMESTEP.
    pub timestep: f32,
    /// The stream of this pass's work; see DC_STREAM_SYNC. Another one in another pass is fine. The
    /// CPU backend works before a call returns and hands this to the callbacks only.
    pub stream: *mut c_void,
}

/// Counts of the current run. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dc_stats_t {
    pub struct_size: u32,
    /// Of the run; DC_OK if there was none.
    pub first_error: dc_status_t,
    pub passes: u64,
    /// Something was left out.
    pub passes_skipped: u64,
    /// A skipped pass leaves out the blocks between front and back, or some of them.
    pub blocks_computed: u64,
    pub blocks_skipped: u64,
    /// Of the layers that the method is for.
    pub layers_computed: u64,
    pub layers_skipped: u64,
    /// Steps of the unconditional branch while guidance is on, as dc_cache_before_uncond answered or
    /// dc_cache_after_uncond reported.
    pub uncond_computed: u64,
    pub uncond_skipped: u64,
    /// Measurements that were NaN or infinite.
    pub not_finite: u64,
    /// Passes that ended with DC_ERR_DISCARD.
    pub discarded: u64,
    /// Passes that ended with an error.
    pub errors: u64,
    /// Kept tensors now, and at most; since the cache was created.
    pub bytes_held: u64,
    pub bytes_peak: u64,
    pub allocations: u64,
    /// Time spent waiting for a device: for measurements, and with DC_STREAM_SYNC for all work.
    pub wait_ns: u64,
    /// NaN if nothing is measured.
    pub threshold: f64,
    /// Percentiles of the measured change; NaN if nothing was measured.
    pub change_p5: f64,
    pub change_p50: f64,
    pub change_p95: f64,
}

/// One decision: of a pass, for a branch.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dc_trace_t {
    pub step: u32,
    pub branch: u32,
    /// First block that could be skipped, DC_KIND(kind) for all layers of a kind, DC_UNCOND or
    /// DC_MODEL.
    pub unit: u32,
    pub action: dc_action_t,
    pub reason: dc_reason_t,
    /// NaN if the engine did not tell; so are the numbers below where nothing was measured.
    pub timestep: f32,
    pub change: f64,
    /// Changes of the current streak of skips, added up.
    pub accumulated: f64,
    pub threshold: f64,
}

/// Receives messages, on any thread that calls the library. May call dc_cache_stats() and
/// dc_cache_trace().
pub type dc_log_fn = Option<
    unsafe extern "C-unwind" fn(user: *mut c_void, level: dc_log_level_t, message: *const c_char),
>;
