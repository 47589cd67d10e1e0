//! The functions of `include/diffcache.h`, in its order. Their docs are the header's.
use super::guard::{self, caught, reported, set_last_error, status, value};
use super::handle::{Entered, Notes, Table};
use super::structs::{self, Backend, Versioned};
use super::thread::{self, Mine};
use super::types::*;
use crate::cache::{Cache, Given, PassInfo, Read};
use crate::error::{Error, Result, bail};
use crate::log::{self, Level};
use crate::ops::any::Any;
use crate::ops::cuda::{self, Cuda};
use crate::ops::host::Host;
use crate::ops::memory::Memory;
use crate::options::Options;
use crate::preset::{PRESETS, method};
use crate::rule::Action;
use crate::stats::{Observed, Stats, percentiles};
use crate::trace::Ring;
use std::collections::VecDeque;
use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

static CACHES: Table<Entry> = Table::new();

/// What a handle names.
struct Entry {
    cache: Cache<Any>,
    n_branches: usize,
    /// Number of the pass begun last, and the thread that began it, while it is open.
    serial: u64,
    owner: Option<usize>,
    /// Passes that another thread ended, newest last.
    cancelled: VecDeque<u64>,
    /// A bug was hit: everything computes.
    broken: Option<Error>,
    /// ... while a pass was open, whose output may be half written.
    spoilt: bool,
}

/// Passes ended by other threads that an entry remembers.
const REMEMBERED: usize = 1024;

impl Entry {
    /// The open pass ends for another reason than its own `end_pass`.
    fn take_over(&mut self) {
        let me = thread::me();
        if self.owner.take().is_some_and(|owner| owner != me) {
            if self.cancelled.len() == REMEMBERED {
                self.cancelled.pop_front();
            }
            self.cancelled.push_back(self.serial);
        }
    }

    /// A call of the open pass that was turned away makes the pass compute; true if an answer is in
    /// doubt.
    fn heed_refused(&mut self, notes: &Notes) -> bool {
        let (refused, doubted) = notes.take_refused();
        if refused {
            let text = "a call of this pass met another thread in a call on this cache";
            let _ = self.cache.fail::<()>(Error::Busy(text.to_owned()));
        }
        doubted
    }

    /// Was the pass that a thread believes open ended by another thread?
    fn has_lost(&self, mine: Option<Mine>) -> bool {
        !self.cancelled.is_empty() && mine.is_some_and(|mine| self.cancelled.contains(&mine.serial))
    }

    /// Is this what a thread has to know of the open pass?
    fn is_known(&self, mine: Option<Mine>) -> bool {
        mine.is_some_and(|mine| {
            let serial = mine.serial == self.serial;
            serial && (mine.span.is_some() || self.cache.filled_span().is_none())
        })
    }
}

// What it returns is slow to move just after it was written in parts.
#[inline(always)]
fn enter(cache: *const dc_cache_t) -> Result<Entered<'static, Entry>> {
    CACHES.enter(cache.addr())
}

/// Runs `f` on the cache; null is caching off. A panic breaks the cache, not the host.
fn with<T>(cache: *const dc_cache_t, off: T, f: impl FnOnce(&mut Entry) -> Result<T>) -> Result<T> {
    if cache.is_null() { Ok(off) } else { serve(cache, |entry, _| f(entry)) }
}

/// As [`with`], on a cache that is not null.
fn serve<T>(
    cache: *const dc_cache_t,
    f: impl FnOnce(&mut Entry, &Notes) -> Result<T>,
) -> Result<T> {
    let mut entered = enter(cache)?;
    let (entry, notes) = entered.parts();
    if let Some(error) = &entry.broken {
        return Err(error.clone());
    }
    let result = caught(|| f(entry, notes));
    if let Err(error @ Error::Internal(_)) = &result {
        let entry = entered.value();
        entry.broken = Some(error.clone());
        entry.spoilt = entry.owner.is_some();
        entry.cache.spoil_pass(error.clone());
    }
    result
}

/// As [`with`], in a pass. What this thread was told before holds whatever happened to the pass:
/// `told` is asked for that if the call cannot be served.
fn in_pass<T>(
    cache: *mut dc_cache_t,
    off: T,
    told: impl Fn(&Mine) -> T,
    otherwise: T,
    f: impl FnOnce(&mut Entry) -> Result<T>,
) -> T {
    if cache.is_null() {
        return off;
    }
    let handle = cache.addr();
    let (mine, edits) = (thread::find(handle), thread::edits());
    let served = match mine {
        Some(Mine { serial: 0, .. }) => {
            let text = "begin_pass was refused: another thread is in a call on this cache";
            Err(Error::Busy(text.to_owned()))
        }
        _ => serve(cache, |entry, notes| {
            if entry.has_lost(mine) {
                bail!(State, "another thread began a run or a pass on this cache");
            }
            entry.heed_refused(notes);
            let result = f(entry);
            let known = entry.is_known(mine) && thread::edits() == edits;
            if !known && entry.owner.is_some() {
                thread::join(handle, entry.serial, entry.cache.filled_span());
            }
            result
        }),
    };
    served.unwrap_or_else(|error| {
        set_last_error(&error);
        let mine = thread::find(handle);
        let current = CACHES.announced(handle);
        if let Error::Busy(_) = error
            && mine.is_none_or(|mine| mine.serial != 0)
        {
            // Was it another pass that this thread was told to skip in? Only its end can tell.
            let skips = mine.filter(|mine| mine.span.is_some());
            let doubt = skips.is_some_and(|mine| Ok(mine.serial) != current);
            CACHES.refuse(handle, doubt);
            if doubt {
                thread::doubt(handle);
            }
        }
        match mine {
            // Of a cache that is gone, only who began the pass knows that it was open.
            Some(mine) if mine.began || current.is_ok() => told(&mine),
            _ => otherwise,
        }
    })
}

// ---- library ----

/// ---- Library -------------------------------------------------------------------------------
///
/// major*10000 + minor*100 + patch of the library that runs, which may not be the one whose header
/// was compiled.
#[unsafe(no_mangle)]
pub extern "C" fn dc_version_number() -> u32 {
    DC_VERSION_MAJOR * 10_000 + DC_VERSION_MINOR * 100 + DC_VERSION_PATCH
}

/// "0.1.0". Static.
#[unsafe(no_mangle)]
pub extern "C" fn dc_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// "DC_ERR_STATE" for -2; "unknown dc_status_t" for a number that is none. Static, never null.
#[unsafe(no_mangle)]
pub extern "C" fn dc_status_name(status: dc_status_t) -> *const c_char {
    let name = match status {
        0 => c"DC_OK",
        -1 => c"DC_ERR_ARG",
        -2 => c"DC_ERR_STATE",
        -3 => c"DC_ERR_HANDLE",
        -4 => c"DC_ERR_BUSY",
        -5 => c"DC_ERR_SHAPE",
        -6 => c"DC_ERR_MEMORY",
        -7 => c"DC_ERR_DEVICE",
        -8 => c"DC_ERR_UNSUPPORTED",
        -9 => c"DC_ERR_VERSION",
        -10 => c"DC_ERR_INTERNAL",
        -11 => c"DC_ERR_CAPTURE",
        -100 => c"DC_ERR_DISCARD",
        _ => c"unknown dc_status_t",
    };
    name.as_ptr()
}

/// Text of this thread's last failure, naming the argument, its value and what is allowed. It lives
/// in a fixed buffer of the thread: it may go stale, it never dangles. Never null.
#[unsafe(no_mangle)]
pub extern "C" fn dc_last_error() -> *const c_char {
    guard::last_error()
}

/// Messages up to `level` go to `log`; null = to stderr, if the environment variable DIFFCACHE_LOG
/// is "error", "warn", "info" or "debug". For the whole process.
///
/// # Safety
/// `log` can be called from any thread until it is replaced, and for a moment after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_set_log(log: dc_log_fn, user: *mut c_void, level: dc_log_level_t) {
    value((), || {
        let level = match level {
            0 => Level::Off,
            1 => Level::Error,
            2 => Level::Warn,
            3 => Level::Info,
            _ => Level::Debug,
        };
        log::set(log, user, level);
        Ok(())
    });
}

/// Checks a backend and loads what it needs, so that no later call pays for it: on CUDA the driver,
/// the kernels (which the driver compiles the first time, and caches) and room for measurements, in
/// the current context if it is on `device`, else in its primary one. `device` is a CUDA ordinal, -1 =
/// as in dc_engine_t; unused on the CPU. A context holds about half a megabyte for measurements, and
/// more only where many are under way.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn dc_backend_prepare(backend: dc_backend_t, device: i32) -> dc_status_t {
    status(|| match structs::backend(backend, device)? {
        Backend::Cpu => Ok(()),
        Backend::Cuda { device } => cuda::prepare(device),
    })
}

// ---- engine and options ----

/// ---- Engine and options --------------------------------------------------------------------
///
/// What the engine is, and what the user wants. Both structs begin with their size, so that headers
/// and libraries of different versions work together: what an older header lacks has its default, a
/// field this library does not know is an error (DC_ERR_VERSION) only if it is set.
///
/// Writes the defaults. `struct_size` is sizeof(dc_engine_t).
///
/// # Safety
/// `engine` is null or has `struct_size` bytes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_engine_init(
    engine: *mut dc_engine_t,
    struct_size: usize,
) -> dc_status_t {
    status(|| unsafe { structs::init(engine, struct_size, &dc_engine_t::defaults()) })
}

/// Fills `options` with the preset `method`: "none", "fbcache", "dbcache", "mask", "taylorseer",
/// "hicache", "pab", "pab-cogvideox", "pab-latte", "pab-opensora", "pab-opensoraplan",
/// "pab-vchitect" or "fastercache"; null = "none". An unknown name is an error that lists the known
/// ones. `struct_size` is sizeof(dc_options_t).
///
/// # Safety
/// `options` is null or has `struct_size` bytes; `method` is null or ends with a NUL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_options_init(
    options: *mut dc_options_t,
    struct_size: usize,
    method: *const c_char,
) -> dc_status_t {
    status(|| unsafe {
        let name = if method.is_null() { PRESETS[0].0 } else { structs::text("method", method)? };
        let preset = structs::options_to_c(&Options::preset(name)?);
        structs::init(options, struct_size, &preset)
    })
}

/// Applies text such as "dbcache,threshold=0.12,estimator=taylor": items between commas, each
/// `field=value` by the names in dc_options_t; a bare first word applies that preset. All or
/// nothing: on failure `options` is unchanged, and the text names the key and lists the valid ones.
///
/// # Safety
/// `options` is null or was filled by dc_options_init; `text` is null or ends with a NUL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_options_parse(
    options: *mut dc_options_t,
    text: *const c_char,
) -> dc_status_t {
    status(|| unsafe {
        let mut parsed = structs::options(options)?;
        parsed.parse(structs::text("text", text)?)?;
        structs::put_options(options, &parsed)
    })
}

/// The canonical text that dc_options_parse reads back: the preset, and what differs from it. `*len`
/// is its length without the NUL. `buf` may be null if `cap` is 0, which asks for the length; a
/// `cap` that is too small is an error, with as much of the text as fits.
///
/// # Safety
/// `options` is null or was filled by dc_options_init; `buf` has `cap` bytes; `len` is writable.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_options_format(
    options: *const dc_options_t,
    buf: *mut c_char,
    cap: usize,
    len: *mut usize,
) -> dc_status_t {
    status(|| unsafe {
        if len.is_null() {
            bail!(Arg, "len is null");
        }
        if buf.is_null() && cap > 0 {
            bail!(Arg, "buf is null, cap is {cap}");
        }
        let text = structs::options(options)?.format()?;
        if cap > 0 {
            let n = text.len().min(cap - 1);
            buf.copy_from_nonoverlapping(text.as_ptr().cast(), n);
            buf.add(n).write(0);
        }
        len.write(text.len());
        if cap > 0 && cap <= text.len() {
            bail!(Arg, "cap is {cap}, the text needs {} with its NUL", text.len() + 1);
        }
        Ok(())
    })
}

/// Exactly the bytes that mem_alloc will be asked for, given the shapes of all tensors (and the heap,
/// for those of DC_TENSOR_HOST); allocates nothing. FBCache on B branches with an image stream of N
/// and a text stream of E bytes holds B(2N + E) + N, or B(2N + E) with DC_ENGINE_KEEPS_INPUT; passes
/// that stack S branches hold SN in place of the last N; an estimator of order n holds n(N + E) more
/// for each branch. L layers with outputs of A bytes hold BLA under PAB, BLA(n + 1) under TaylorSeer
/// and HiCache, 2(B - 1)LA under FasterCache, whose guidance holds 8 bytes for each element of a
/// prediction (4 where low and high are scaled alike).
///
/// # Safety
/// The structs are null or were filled by their init functions; `shapes` has `n` rows; `bytes` is
/// writable.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_memory_needed(
    engine: *const dc_engine_t,
    options: *const dc_options_t,
    shapes: *const dc_shape_t,
    n: usize,
    bytes: *mut u64,
) -> dc_status_t {
    status(|| unsafe {
        if bytes.is_null() {
            bail!(Arg, "bytes is null");
        }
        let (cache, n_branches) = new_cache(engine, options, Default::default())?;
        bytes.write(cache.memory_needed(&structs::layouts(shapes, n, n_branches)?)?);
        Ok(())
    })
}

/// A cache and its number of branches; it holds no memory for tensors.
///
/// # Safety
/// The structs are null or were filled by their init functions.
unsafe fn new_cache(
    engine: *const dc_engine_t,
    options: *const dc_options_t,
    observed: Arc<Mutex<Observed>>,
) -> Result<(Cache<Any>, usize)> {
    let facts = unsafe { structs::engine(engine)? };
    let options = unsafe { structs::options(options)? };
    let method = method(&options, &facts.hooks)?;
    let n_branches = facts.engine.n_branches;
    let memory = Memory::new(facts.allocator, facts.budget);
    let ops = match facts.backend {
        Backend::Cpu => Any::Host(Host::new(memory.clone(), facts.threads)),
        Backend::Cuda { device } => {
            Any::Cuda(Box::new(Cuda::new(memory.clone(), device, facts.threads)))
        }
    };
    Ok((Cache::new(ops, memory, facts.engine, method, options.share, observed), n_branches))
}

// ---- cache and run ----

/// ---- Cache and run -------------------------------------------------------------------------
///
/// One cache per request (or per model, if requests follow one another). Creating one takes
/// microseconds and no tensor memory. Any number can exist; each is used by one thread at a time,
/// any thread: a second one inside a call gets DC_ERR_BUSY. dc_cache_stats(), dc_cache_trace() and
/// dc_cache_destroy() are for any thread at any time.
///
/// Copies both structs. On failure `*out` is null, which is caching off; the text says what is
/// wrong, for example that the method needs a hook that the engine does not make.
///
/// # Safety
/// The structs are null or were filled by their init functions; the callbacks in `engine` are what
/// their docs say, for as long as the cache lives; `out` is null or writable.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_cache_create(
    engine: *const dc_engine_t,
    options: *const dc_options_t,
    out: *mut *mut dc_cache_t,
) -> dc_status_t {
    status(|| unsafe {
        if out.is_null() {
            bail!(Arg, "out is null");
        }
        out.write(null_mut());
        let observed = Arc::new(Mutex::new(Observed::default()));
        let (cache, n_branches) = new_cache(engine, options, observed.clone())?;
        if let Backend::Cuda { device } = structs::engine(engine)?.backend {
            cuda::check(device)?;
        }
        let entry = Box::new(Entry {
            cache,
            n_branches,
            serial: 0,
            owner: None,
            cancelled: VecDeque::new(),
            broken: None,
            spoilt: false,
        });
        let handle = CACHES.insert(entry, observed)?;
        out.write(std::ptr::without_provenance_mut(handle));
        Ok(())
    })
}

/// Ends the cache and frees what it holds; null is fine. Any time, any thread: a call that is still
/// running on the cache carries it out on its way out. The handle is DC_ERR_HANDLE ever after.
#[unsafe(no_mangle)]
pub extern "C" fn dc_cache_destroy(cache: *mut dc_cache_t) {
    value((), || if cache.is_null() { Ok(()) } else { CACHES.destroy(cache.addr()) });
}

/// Gives the cached memory back, ordered on `stream`. Between passes; the branches start again.
///
/// # Safety
/// `stream` is what mem_free of this engine understands.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_cache_trim(cache: *mut dc_cache_t, stream: *mut c_void) -> dc_status_t {
    reported(with(cache, (), |entry| entry.cache.trim(stream)))
}

/// Starts a sampling run: forgets results, counters and trace, and keeps the memory. Legal at any
/// time, also inside a pass, which is how a run is cancelled. If the memory for `run->shapes` cannot
/// be had, the call says so (DC_ERR_MEMORY) and the run computes.
///
/// # Safety
/// `run` is null or starts from DC_RUN_INIT; its arrays have as many elements as their counts say.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_cache_begin_run(
    cache: *mut dc_cache_t,
    run: *const dc_run_t,
) -> dc_status_t {
    reported(with(cache, (), |entry| {
        entry.take_over();
        thread::end(cache.addr());
        entry.cache.end_run();
        entry.cache.begin_run(unsafe { structs::run(run, entry.n_branches)? })
    }))
}

/// Ends the run and logs how it went: passes, skips, and the percentiles of the measured change
/// beside the threshold; a warning if nothing, or everything possible, was skipped. Optional:
/// dc_cache_begin_run and dc_cache_destroy imply it.
#[unsafe(no_mangle)]
pub extern "C" fn dc_cache_end_run(cache: *mut dc_cache_t) -> dc_status_t {
    reported(with(cache, (), |entry| {
        entry.take_over();
        thread::end(cache.addr());
        entry.cache.end_run();
        Ok(())
    }))
}

// ---- one pass ----

/// ---- One pass ------------------------------------------------------------------------------
///
/// One evaluation of the model. Ask before each block, report after each block that ran. Everything
/// the engine does up to the next dc_cache_before_block belongs to the block (control and adapter
/// additions), so it stays inside the `if`. Only boundary blocks need to be asked and reported:
/// 0, front_blocks, n_blocks - back_blocks and the last; blocks that the engine itself leaves out
/// (skip-layer guidance) are not asked.
///
/// Nothing that goes wrong in a pass is fatal: it computes, and dc_cache_end_pass says what was
/// wrong.
///
/// Opens a pass. A failure means "computes everything"; dc_cache_end_pass reports it again.
///
/// # Safety
/// `pass` is null or starts from DC_PASS_INIT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_cache_begin_pass(
    cache: *mut dc_cache_t,
    pass: *const dc_pass_t,
) -> dc_status_t {
    if cache.is_null() {
        return dc_status::DC_OK as i32;
    }
    let handle = cache.addr();
    let mut served = false;
    let begun = serve(cache, |entry, notes| {
        entry.take_over();
        entry.serial += 1;
        entry.owner = Some(thread::me());
        thread::begin(handle, entry.serial, |handle| CACHES.announced(handle).is_ok());
        notes.announce(entry.serial);
        notes.take_refused();
        served = true;
        let mut info = PassInfo::default();
        let given = unsafe { structs::pass(pass, &mut info) };
        entry.cache.begin_pass(given.map(|()| &info))
    });
    match &begun {
        Err(Error::Busy(_)) => thread::begin(handle, 0, |_| true),
        // Nothing that an earlier pass was told holds any more.
        Err(_) if !served => drop(thread::end(handle)),
        _ => {}
    }
    reported(begun)
}

/// DC_COMPUTE: run `block`, then report it. DC_SKIP: its result is in `out` (null: over `in`).
///
/// When a span of blocks is left out, `out` of the first block asked in it gets the result of the
/// whole span; the rest answer DC_SKIP and write nothing. What is reused is (out of the span's last
/// block) - (in of its first). The k-th tensor is the same stream in every call, unless `id` says
/// otherwise; tensors that are missing at the end of the span are not restored on a skip. `in` and
/// `out` may be the same or apart, but not overlap in part; shapes of the two must agree if
/// on_residual. DC_MODEL as block: `in` the latents, `out` the prediction.
///
/// With scope=block each block is a span of its own; its tensors must not change their number or shape
/// between steps, but blocks may differ.
///
/// Cost, in reads + writes of a stream. A skip: one read for each kept value with a weight, one for
/// the input of a residual, one write; so hold 2 + 1, or 1 + 1 on outputs, and order n as much as n
/// reads more. A value that is computed: 3 + 2 as a residual (a copy in, a difference out), 1 + 1 as
/// an output. Where a change is measured, before either, the measured streams: 1 + 1 at block 0 and
/// 3 + 1 after the front; with DC_ENGINE_KEEPS_INPUT 3 + 0, and 2 + 1 more if the pass computes.
///
/// Errors are kept for dc_cache_end_pass; the answer is then DC_COMPUTE, but stays DC_SKIP for the
/// rest of a span whose result is in place.
///
/// # Safety
/// `in_` has `n` tensors, valid for reads and, with `out` null, for writes; `out` is null or has `n`
/// tensors valid for writes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_cache_before_block(
    cache: *mut dc_cache_t,
    block: u32,
    in_: *const dc_tensor_t,
    out: *const dc_tensor_t,
    n: usize,
) -> dc_action_t {
    let (compute, skip) = (dc_action::DC_COMPUTE as u32, dc_action::DC_SKIP as u32);
    let told = |mine: &Mine| if mine.skips(block) { skip } else { compute };
    in_pass(cache, compute, told, compute, |entry| {
        let input = |given: &mut Given| unsafe { structs::tensors("in", in_, n, given) };
        let output = |given: &mut Given| unsafe { structs::tensors("out", out, n, given) };
        let output: Read = &output;
        let output = (!out.is_null()).then_some(output);
        let (action, result) = entry.cache.before_block(block, &input, output);
        if let Err(error) = result {
            set_last_error(&error);
        }
        Ok(structs::action(action))
    })
}

/// Reports what a block that ran produced. After the last front block this measures the change;
/// after the last block of the span its result is taken into the history. Where either is not
/// reported, what the next block is given as `in` stands for it.
///
/// # Safety
/// `out` has `n` tensors, valid for reads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_cache_after_block(
    cache: *mut dc_cache_t,
    block: u32,
    out: *const dc_tensor_t,
    n: usize,
) {
    in_pass(
        cache,
        (),
        |_| (),
        (),
        |entry| {
            let read = |given: &mut Given| unsafe { structs::tensors("out", out, n, given) };
            if let Err(error) = entry.cache.after_block(block, &read) {
                set_last_error(&error);
            }
            Ok(())
        },
    );
}

/// Closes the pass. One code to test: DC_ERR_DISCARD = throw this output away and redo the pass with
/// DC_PASS_COMPUTE, under its own step. Any other code = the output is right; if it is not DC_OK,
/// the cache did not work in this pass. dc_last_error() has the pass's first error.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn dc_cache_end_pass(cache: *mut dc_cache_t) -> dc_status_t {
    reported(end_pass(cache))
}

fn end_pass(cache: *mut dc_cache_t) -> Result<()> {
    if cache.is_null() {
        return Ok(());
    }
    let mine = thread::end(cache.addr());
    if mine.is_some_and(|mine| mine.serial == 0) {
        bail!(Busy, "begin_pass was refused: another thread was in a call on this cache");
    }
    let ended = serve(cache, |entry, notes| {
        if entry.has_lost(mine) {
            bail!(State, "another thread began a run or a pass on this cache");
        }
        let doubted = entry.heed_refused(notes);
        entry.owner = None;
        let ended = entry.cache.end_pass();
        if doubted {
            bail!(Discard, "two threads met in a pass: whether it was skipped is in doubt");
        }
        ended
    });
    if mine.is_some_and(|mine| mine.doubted) {
        bail!(Discard, "two threads met in a pass: whether it was skipped is in doubt");
    }
    if let Err(error @ Error::Internal(_)) = &ended {
        let spoilt = with_broken(cache, |entry| std::mem::take(&mut entry.spoilt));
        if spoilt {
            bail!(Discard, "{error}");
        }
    }
    ended
}

/// As [`with`], on a cache that hit a bug.
fn with_broken(cache: *const dc_cache_t, f: impl FnOnce(&mut Entry) -> bool) -> bool {
    enter(cache).is_ok_and(|mut entered| f(entered.value()))
}

// ---- layers ----

/// ---- Layers --------------------------------------------------------------------------------
///
/// Attention and MLP outputs, for TaylorSeer, PAB, FasterCache and their like (scope=layers). Where
/// the calls stand decides what is kept: before gate and residual addition it is what diffusers and
/// the paper of TaylorSeer keep; around them it is what PAB's Open-Sora and Latte keep. Layers that
/// the engine does not ask about always compute.
///
/// All layers of a kind share one decision per pass; each keeps its own outputs for each branch. A
/// layer of which nothing is kept yet computes by itself. (Among ranks, a value that one of them has
/// lost makes all of them compute.)
///
/// `layer` is the engine's number, below n_layers and unique in the model; `out` is where its output
/// goes: one tensor, or several (a joint attention's image and text). DC_COMPUTE: run the layer, then
/// report it. DC_SKIP: `out` holds the estimate.
///
/// Cost of a skip: one read for each kept value with a weight, one write (PAB 1 + 1, TaylorSeer of
/// order n and HiCache n + 1 + 1, FasterCache 2 + 1; with compat=diffusers FasterCache keeps its own
/// prediction as well, 2 + 2 more). Errors are kept for dc_cache_end_pass; the layer then computes, and
/// of what the rest of the pass computes nothing is kept.
///
/// # Safety
/// `out` has `n` tensors, valid for writes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_cache_before_layer(
    cache: *mut dc_cache_t,
    layer: u32,
    kind: dc_kind_t,
    out: *const dc_tensor_t,
    n: usize,
) -> dc_action_t {
    let compute = dc_action::DC_COMPUTE as u32;
    in_pass(
        cache,
        compute,
        |_| compute,
        compute,
        |entry| {
            let kind = match structs::kind(kind) {
                Ok(kind) => kind,
                Err(error) => return entry.cache.fail(error),
            };
            let read = |given: &mut Given| unsafe { structs::tensors("out", out, n, given) };
            let (action, result) = entry.cache.before_layer(layer, kind, &read);
            if let Err(error) = result {
                set_last_error(&error);
            }
            Ok(structs::action(action))
        },
    )
}

/// Reports the output of a layer that ran. Cost: one read, one write; compat=diffusers with TaylorSeer
/// of order n or FasterCache (n = 1): n + 1 reads, n + 1 writes.
///
/// # Safety
/// `out` has `n` tensors, valid for reads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_cache_after_layer(
    cache: *mut dc_cache_t,
    layer: u32,
    out: *const dc_tensor_t,
    n: usize,
) {
    in_pass(
        cache,
        (),
        |_| (),
        (),
        |entry| {
            let read = |given: &mut Given| unsafe { structs::tensors("out", out, n, given) };
            if let Err(error) = entry.cache.after_layer(layer, &read) {
                set_last_error(&error);
            }
            Ok(())
        },
    );
}

// ---- guidance ----

/// ---- Guidance ------------------------------------------------------------------------------
///
/// Classifier-free guidance evaluates an unconditional branch beside the conditional one;
/// FasterCache leaves it out of most steps. Both calls stand outside passes (inside one they are
/// served just the same). `pass` names the step, the stream and, as its only branch,
/// dc_engine_t::uncond_branch; `cond` and `uncond` are one branch's prediction each, of one shape, with
/// height and width as their last dimensions.
///
/// One branch after the other:
///
///   ... a pass of the conditional branch ...
///   if (dc_cache_before_uncond(c, &u, &cond, &uncond) == DC_COMPUTE) {
///       ... a pass of the unconditional branch ...
///       dc_cache_after_uncond(c, &u, &cond, &uncond);
///   }
///
/// Stacked in one pass, ask beforehand: dc_cache_peek(c, &u, DC_UNCOND) == DC_SKIP leaves the branch
/// out of the pass; then call dc_cache_before_uncond, which fills it in, or says DC_COMPUTE for a
/// branch that has just been evaluated: report it. Should it say DC_COMPUTE for one that was left out
/// (something failed: see dc_last_error), evaluate it now, in a pass of its own.
///
/// DC_SKIP: `uncond` holds the estimate, at a cost of three reads and one write (two and one where
/// low and high frequencies are scaled alike), and of one low pass after each computed step.
/// DC_COMPUTE: run the branch. On any error both tensors are as they were, and the answer is
/// DC_COMPUTE; dc_last_error() says why.
///
/// # Safety
/// `pass` is null or starts from DC_PASS_INIT; `cond` is null or valid for reads, `uncond` for
/// writes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_cache_before_uncond(
    cache: *mut dc_cache_t,
    pass: *const dc_pass_t,
    cond: *const dc_tensor_t,
    uncond: *const dc_tensor_t,
) -> dc_action_t {
    let compute = dc_action::DC_COMPUTE as u32;
    value(compute, || {
        with(cache, compute, |entry| {
            let cond = |given: &mut Given| unsafe { structs::tensors("cond", cond, 1, given) };
            let uncond =
                |given: &mut Given| unsafe { structs::tensors("uncond", uncond, 1, given) };
            let mut info = PassInfo::default();
            let given = unsafe { structs::pass(pass, &mut info) };
            let given = given.map(|()| &info);
            let (action, result) = entry.cache.before_uncond(given, &cond, &uncond);
            result.map(|()| structs::action(action))
        })
    })
}

/// Reports both predictions of a step in which the branch ran. Cost: two reads, one write. An error
/// leaves both tensors and what is kept as they were.
///
/// # Safety
/// As dc_cache_before_uncond; both tensors are valid for reads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_cache_after_uncond(
    cache: *mut dc_cache_t,
    pass: *const dc_pass_t,
    cond: *const dc_tensor_t,
    uncond: *const dc_tensor_t,
) -> dc_status_t {
    reported(with(cache, (), |entry| {
        let cond = |given: &mut Given| unsafe { structs::tensors("cond", cond, 1, given) };
        let uncond = |given: &mut Given| unsafe { structs::tensors("uncond", uncond, 1, given) };
        let mut info = PassInfo::default();
        let given = unsafe { structs::pass(pass, &mut info) };
        entry.cache.after_uncond(given.map(|()| &info), &cond, &uncond)
    }))
}

// ---- steering ----

/// ---- Steering ------------------------------------------------------------------------------
///
/// Engines that batch requests, stream weights or build graphs want the answer before they act.
///
/// Settles the open pass before its first skippable unit, and touches no tensor. `wish`:
/// DC_UNDECIDED = what the rule says (may wait for the measurement); DC_COMPUTE or DC_SKIP = overrule
/// it. Returns what will happen: a skip without anything kept computes. DC_UNDECIDED is returned, and
/// nothing settled, while the rule has yet to see what leaves the front blocks; also, with all of
/// them settled, where kinds of layers differ: dc_cache_peek tells each. Once a skippable unit has
/// been entered nothing changes any more.
#[unsafe(no_mangle)]
pub extern "C" fn dc_cache_decide(cache: *mut dc_cache_t, wish: dc_action_t) -> dc_action_t {
    let (compute, undecided) = (dc_action::DC_COMPUTE as u32, dc_action::DC_UNDECIDED as u32);
    let told = |mine: &Mine| match mine.span {
        Some(_) => dc_action::DC_SKIP as u32,
        None => compute,
    };
    in_pass(cache, compute, told, compute, |entry| {
        let wish = match wish {
            0 => Some(Action::Compute),
            1 => Some(Action::Skip),
            2 => None,
            other => {
                return entry.cache.fail(Error::Arg(format!("wish is {other}, allowed is 0 to 2")));
            }
        };
        Ok(entry.cache.decide(wish)?.map_or(undecided, structs::action))
    })
}

/// What `unit` (a block, DC_LAYER(layer), DC_UNCOND or DC_MODEL) of a coming pass will be answered;
/// null = of the open one. DC_COMPUTE and DC_SKIP are promises if every step up to that pass is
/// evaluated, without a gap, with branches stacked as in it (and the unconditional one left out where
/// guidance says so), and nothing fails or is overruled on the way (another rank's veto included);
/// DC_UNDECIDED: not certain yet. Never waits for the open pass. Compare with `==`: DC_UNDECIDED is
/// not zero.
///
/// # Safety
/// `pass` is null or starts from DC_PASS_INIT.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn dc_cache_peek(
    cache: *mut dc_cache_t,
    pass: *const dc_pass_t,
    unit: u32,
) -> dc_action_t {
    let (compute, undecided) = (dc_action::DC_COMPUTE as u32, dc_action::DC_UNDECIDED as u32);
    let peeked = with(cache, compute, |entry| {
        let answer = match pass.is_null() {
            true => entry.cache.peek(None, unit)?,
            false => {
                let mut info = PassInfo::default();
                unsafe { structs::pass(pass, &mut info)? };
                entry.cache.peek(Some(&info), unit)?
            }
        };
        Ok(answer.map_or(undecided, structs::action))
    });
    peeked.unwrap_or_else(|error| {
        set_last_error(&error);
        // Whatever is wrong, the engine would be told to compute; unless it only asked too soon.
        if matches!(error, Error::Busy(_)) { undecided } else { compute }
    })
}

// ---- looking inside ----

/// ---- Looking inside ------------------------------------------------------------------------
///
/// For any thread at any time; never makes another call fail. What is seen is the state after the
/// last pass or run that ended.
///
/// Counts of the current run. Set `stats->struct_size` to sizeof(dc_stats_t) first. A null cache
/// gives zeros.
///
/// # Safety
/// `stats` is null or has as many bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_cache_stats(
    cache: *const dc_cache_t,
    stats: *mut dc_stats_t,
) -> dc_status_t {
    status(|| {
        let seen = match cache.is_null() {
            true => None,
            false => Some(observe(cache, |seen| (seen.stats.clone(), seen.changes.clone()))?),
        };
        let filled =
            seen.map_or_else(dc_stats_t::defaults, |(s, changes)| stats_to_c(&s, &changes));
        unsafe { structs::fill(stats, &filled) }
    })
}

/// Looks at a cache's observed side, as shortly as `f` can.
fn observe<T>(cache: *const dc_cache_t, f: impl FnOnce(&Observed) -> T) -> Result<T> {
    let observed = CACHES.observe(cache.addr())?;
    let observed = observed.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(f(&observed))
}

fn stats_to_c(stats: &Stats, changes: &Ring<f64>) -> dc_stats_t {
    let [change_p5, change_p50, change_p95] = percentiles(changes);
    let first_error = stats.first_error.as_ref().map_or(dc_status::DC_OK, guard::code);
    dc_stats_t {
        first_error: first_error as i32,
        passes: stats.passes,
        passes_skipped: stats.passes_skipped,
        blocks_computed: stats.blocks_computed,
        blocks_skipped: stats.blocks_skipped,
        layers_computed: stats.layers_computed,
        layers_skipped: stats.layers_skipped,
        uncond_computed: stats.uncond_computed,
        uncond_skipped: stats.uncond_skipped,
        not_finite: stats.not_finite,
        discarded: stats.discarded,
        errors: stats.errors,
        bytes_held: stats.bytes_held,
        bytes_peak: stats.bytes_peak,
        allocations: stats.allocations,
        wait_ns: stats.waited.as_nanos() as u64,
        threshold: stats.threshold.unwrap_or(f64::NAN),
        change_p5,
        change_p50,
        change_p95,
        ..dc_stats_t::defaults()
    }
}

/// Decisions of the current run, oldest first: up to `capacity` records of `record_size` bytes
/// (sizeof(dc_trace_t)). `*n` = how many exist, at most the newest 4096. `records` may be null if
/// `capacity` is 0.
///
/// # Safety
/// `records` has room for `capacity` records; `n` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_cache_trace(
    cache: *const dc_cache_t,
    records: *mut dc_trace_t,
    record_size: usize,
    capacity: usize,
    n: *mut usize,
) -> dc_status_t {
    status(|| {
        if n.is_null() {
            bail!(Arg, "n is null");
        }
        unsafe { n.write(0) };
        if records.is_null() && capacity > 0 {
            bail!(Arg, "records is null, capacity is {capacity}");
        }
        if !(8..=1 << 16).contains(&record_size) {
            let size = size_of::<dc_trace_t>();
            bail!(Arg, "record_size is {record_size}, it must be sizeof(dc_trace_t), now {size}");
        }
        if cache.is_null() {
            return Ok(());
        }
        let (exist, trace) = observe(cache, |seen| {
            let records: Vec<_> = seen.trace.iter().take(capacity).copied().collect();
            (seen.trace.count(), records)
        })?;
        for (k, record) in trace.iter().enumerate() {
            let record = dc_trace_t {
                step: record.step,
                branch: record.branch,
                unit: record.unit,
                action: structs::action(record.action),
                reason: structs::reason(record.reason),
                timestep: record.timestep,
                change: record.change,
                accumulated: record.accumulated,
                threshold: record.threshold,
            };
            unsafe {
                let to = records.cast::<u8>().add(k * record_size);
                to.write_bytes(0, record_size);
                let known = record_size.min(size_of::<dc_trace_t>());
                to.copy_from_nonoverlapping((&raw const record).cast(), known);
            }
        }
        unsafe { n.write(exist) };
        Ok(())
    })
}
