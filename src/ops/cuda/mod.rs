//! The operations on CUDA devices: kernels of the library's own, queued on the engine's stream.
//!
//! | file | what |
//! |---|---|
//! | `driver` | the driver's functions, found at run time |
//! | `context` | what is kept for each CUDA context: modules, a stream, slots, events |
//! | `slot` | where a measurement arrives |
//! | `layout` | views as the kernels take them |
//! | `sums` | sums of several tensors in one launch |
//! | `kernels` | the kernels of `kernels/`, and their parameters |
//!
//! **Streams.** Work goes to the stream named last by [`begin`](Ops::begin). A call that has queued
//! something ends with an event, the fence. From then on the engine may do with its stream what it
//! likes, capture or destroy it, also in the middle of a pass: the stream of the next one waits for
//! the fence, on the device, and the old one is not touched. Memory is allocated and freed
//! in stream order; where the engine's stream is refused, or may be gone, it is freed on a stream of
//! the library's own. With `DC_STREAM_SYNC` all work is done there, and each call waits for its fence.
//!
//! **The thread.** The first thing in a call that needs the device makes the context current and
//! takes the thread out of other threads' captures; the end of the call undoes both.
//!
//! **Waiting.** Only [`read`](Ops::read) and [`agree`](Ops::agree) wait, for an event recorded right
//! after the measurement.
//!
//! **Failures.** A stream that is being captured is left alone: a replay would not do what the first
//! time did. After a failure nothing more is queued until the next [`begin`](Ops::begin).
//!
//! Tensors in the host's memory (`DC_TENSOR_HOST`) are worked on by the [`Host`] backend, at once.
mod context;
mod driver;
mod kernels;
mod layout;
mod slot;
mod sums;

use super::host::Host;
use super::memory::{Memory, Storage};
use super::{
    Agreed, Comparison, Dtype, MAX_RUNGS, Measured, Ops, Reduce, Rounding, Shape, Sum, View,
};
use crate::error::{Error, Result, bail};
use crate::rule::Change;
use context::{Context, Entered};
use cudarc::driver::sys::{CUevent, CUstream};
use kernels::{
    BLOCK, ComparedRows, ComparedStrided, Kernel, LadderRows, LadderStrided, MAX_COMPARED, Measure,
    WARP,
};
use layout::{Cut, Rows, Strided};
use slot::{MAX_GRID, N_VOTES, Slot};
use std::collections::HashSet;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sums::{Batch, combine_strided, kernel_for, plain_copy};

/// `DC_STREAM_SYNC`
const SYNC: *mut c_void = std::ptr::without_provenance_mut(usize::MAX);

/// Blocks of an elementwise kernel at most; their threads then take turns.
const MOST_BLOCKS: u64 = 1 << 20;

/// Checks that the driver is there and has such a device; below 0, any.
pub fn check(device: i32) -> Result<()> {
    context::check_device(device)
}

/// Loads the driver and all kernels, and takes what measurements need.
pub fn prepare(device: i32) -> Result<()> {
    context::context_of(null_mut(), device)?.prepare()
}

pub struct Cuda {
    memory: Arc<Memory>,
    /// For tensors in the host's memory.
    host: Host,
    /// As the engine said; below 0, that of the first stream.
    device: i32,
    /// Known from the first stream on.
    home: Option<Arc<Context>>,
    /// As the engine named it, and where work goes.
    named: Option<*mut c_void>,
    stream: CUstream,
    /// Every call waits for its work.
    sync: bool,
    /// While a call uses the device.
    entered: Option<Entered>,
    /// ... and has seen that the stream takes work.
    open: bool,
    /// Recorded after the last work that was queued in an earlier call.
    fence: Option<CUevent>,
    /// This call has queued work.
    dirty: bool,
    failed: Option<Error>,
    /// ... and no call has said so yet.
    unsaid: bool,
    /// First elements of the engine's tensors that have been found to be this device's, in this run.
    admitted: HashSet<usize>,
    waited: Duration,
}

// The streams and events may be used by any thread. What was entered is left by the end of the same
// call.
unsafe impl Send for Cuda {}

/// A measurement that was queued.
pub struct Pending {
    /// Where that of device memory arrives, and in how many parts.
    queued: Option<Queued>,
    /// That of host memory, and the number of elements of all.
    known: Change,
}

struct Queued {
    context: Arc<Context>,
    /// Until it is given back.
    slot: Option<Slot>,
    launches: usize,
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.context.give_slot(slot);
        }
    }
}

impl Pending {
    pub fn known(change: Change) -> Self {
        Self { queued: None, known: change }
    }

    /// What is known without waiting.
    pub fn on_host(self) -> Change {
        self.known
    }

    /// A measurement that was not to be had.
    fn failed(dtype: Dtype) -> Self {
        let change = Change { difference: f64::NAN, count: 1.0, ..Change::zero(dtype) };
        Self::known(change)
    }
}

impl Cuda {
    /// Asks nothing of the driver yet.
    pub fn new(memory: Arc<Memory>, device: i32, threads: usize) -> Self {
        Self {
            host: Host::new(memory.clone(), threads),
            memory,
            device,
            home: None,
            named: None,
            stream: null_mut(),
            sync: false,
            entered: None,
            open: false,
            fence: None,
            dirty: false,
            failed: None,
            unsaid: false,
            admitted: HashSet::new(),
            waited: Duration::ZERO,
        }
    }

    // ---- the call ----

    /// The context, entered, with a stream that takes work.
    fn bind(&mut self) -> Result<Arc<Context>> {
        self.status()?;
        self.reach()
    }

    /// The same, whatever failed before.
    fn reach(&mut self) -> Result<Arc<Context>> {
        let home = self.enter()?;
        if !self.open {
            if let Err(error) = refuse_capture(&home, self.stream) {
                self.fail(error.clone());
                self.retreat()?;
                return Err(error);
            }
            self.open = true;
        }
        Ok(home)
    }

    /// The context, entered.
    fn enter(&mut self) -> Result<Arc<Context>> {
        let Some(home) = self.home.clone() else {
            bail!(State, "no stream was named yet: begin_pass comes first");
        };
        if self.entered.is_none() {
            self.entered = Some(home.enter()?);
        }
        Ok(home)
    }

    /// Queues something; a failure is kept for the end of the call.
    fn queue(&mut self, work: impl FnOnce(&mut Self, &Arc<Context>) -> Result<()>) {
        let done = self.bind().and_then(|context| {
            // Also where only a part of it comes to be queued.
            self.dirty = true;
            work(self, &context)
        });
        if let Err(error) = done {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: Error) {
        if self.failed.is_none() {
            (self.failed, self.unsaid) = (Some(error), true);
        }
    }

    /// `parameters` points to those of the kernel, in order.
    fn launch(
        &self,
        context: &Context,
        kernel: Kernel,
        (grid, block, shared): (u32, u32, u32),
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        let function = context.function(kernel)?;
        let code = unsafe {
            (context.driver.launch_kernel)(
                function,
                grid,
                1,
                1,
                block,
                1,
                1,
                shared,
                self.stream,
                parameters.as_mut_ptr(),
                null_mut(),
            )
        };
        context.driver.check("cuLaunchKernel", code)
    }

    /// A kernel that takes one struct and shares `items` out among its threads.
    fn launch_over<P>(
        &self,
        context: &Context,
        kernel: Kernel,
        items: u64,
        parameters: &mut P,
    ) -> Result<()> {
        let grid = blocks_for(items);
        let parameters = std::ptr::from_mut(parameters).cast();
        self.launch(context, kernel, (grid, BLOCK, 0), &mut [parameters])
    }

    // ---- sums ----

    fn combine_rows(&mut self, mut batch: Batch) {
        let Some(kernel) = batch.kernel() else { return };
        if let Some((out, x)) = batch.lone_copy() {
            return self.copy_bytes(out, x);
        }
        let grid = (batch.blocks, BLOCK, 0);
        let parameters = (&raw mut batch.parameters).cast();
        self.queue(|cuda, context| cuda.launch(context, kernel, grid, &mut [parameters]));
    }

    fn combine_strided(&mut self, sum: &Sum, rounding: Rounding) {
        if let Some((out, x)) = plain_copy(sum) {
            return self.copy_bytes(out, x);
        }
        let mut parameters = combine_strided(sum, rounding);
        let elements = parameters.elements;
        self.queue(|cuda, context| {
            cuda.launch_over(context, Kernel::CombineStrided, elements, &mut parameters)
        });
    }

    fn copy_bytes(&mut self, out: View, x: View) {
        let (to, from) = (out.address().addr() as u64, x.address().addr() as u64);
        let bytes = out.shape().bytes();
        self.queue(|cuda, context| {
            let driver = context.driver;
            let code = unsafe { (driver.memcpy_dtod_async)(to, from, bytes, cuda.stream) };
            driver.check("cuMemcpyDtoDAsync", code)
        });
    }

    // ---- waiting ----

    /// Waits for an event; the time counts.
    fn wait(&mut self, context: &Context, event: CUevent) -> Result<()> {
        let start = Instant::now();
        let done = context.wait(event);
        self.waited += start.elapsed();
        done
    }

    /// Marks the work queued so far, and with `sync` waits for it.
    fn raise_fence(&mut self) -> Result<()> {
        let context = self.enter()?;
        let fence = match self.fence {
            Some(fence) => fence,
            None => *self.fence.insert(context.take_event()?),
        };
        context.record(fence, self.stream)?;
        if self.sync { self.wait(&context, fence) } else { Ok(()) }
    }

    // ---- streams ----

    /// Work goes to `stream` from here on, after what was queued elsewhere.
    fn move_to(&mut self, context: &Context, stream: CUstream) -> Result<()> {
        // The same handle may be another stream: each thread has a per-thread one, and the driver
        // uses the handles of those that were destroyed again.
        if let Some(fence) = self.fence {
            context.order(stream, fence)?;
        }
        self.stream = stream;
        self.memory.set_stream(stream.cast());
        Ok(())
    }

    fn take_up(&mut self, stream: *mut c_void) -> Result<()> {
        let sync = stream == SYNC;
        let named: CUstream = if sync { null_mut() } else { stream.cast() };
        let context = self.context_of(stream, named)?;
        match &self.home {
            Some(home) if !Arc::ptr_eq(home, &context) => bail!(
                Device,
                "stream {stream:p} is of another context, on device {}, than this cache, which works \
                 on device {}",
                context.ordinal(),
                home.ordinal()
            ),
            Some(_) => {}
            None => {
                let _entered = context.enter()?;
                // There is always somewhere to retreat to.
                context.own_stream()?;
                self.memory.set_device(context.clone());
                self.home = Some(context);
            }
        }
        let context = self.enter()?;
        let to = if sync { context.own_stream()? } else { named };
        refuse_capture(&context, to)?;
        self.move_to(&context, to)?;
        (self.named, self.sync, self.open) = (Some(stream), sync, true);
        Ok(())
    }

    /// The context that a stream of the engine's means, which may not be this cache's.
    fn context_of(&self, stream: *mut c_void, named: CUstream) -> Result<Arc<Context>> {
        if let Some(home) = &self.home {
            let is_home = match context::is_of_no_context(named) {
                // With `sync` the work is done here in any case.
                true => stream == SYNC || home.is_implied()?,
                false => self.named == Some(stream),
            };
            if is_home {
                return Ok(home.clone());
            }
        }
        context::context_of(named, self.device)
    }

    /// The engine's stream takes no work, or may be gone: what must be done, above all giving memory
    /// back, is done on the library's own.
    fn retreat(&mut self) -> Result<()> {
        if self.home.is_none() {
            return Ok(());
        }
        let home = self.enter()?;
        if std::mem::take(&mut self.dirty) {
            self.raise_fence()?;
        }
        self.named = None;
        self.move_to(&home, home.own_stream()?)?;
        self.open = true;
        Ok(())
    }

    // ---- measuring ----

    /// Queues the sums of all comparisons in device memory; how many launches it took.
    fn measure_queued(
        &mut self,
        context: &Arc<Context>,
        slot: &mut Slot,
        comparisons: &[Comparison],
        rounded: bool,
    ) -> Result<usize> {
        if std::mem::take(&mut slot.unread) {
            // Whoever had it before may still write to it.
            context.order(self.stream, slot.event)?;
        }
        let (mut rows, mut strided) = (Vec::new(), Vec::new());
        for comparison in comparisons {
            let Comparison { x, base, earlier, keep } = comparison;
            let views = [Some(x), base.as_ref(), Some(earlier), keep.as_ref()];
            match Cut::of(views.into_iter().flatten()) {
                Some(cut) => rows.push((cut, comparison)),
                None => strided.push(comparison),
            }
        }
        slot.unread = true;
        let launched = self.launch_all(context, slot, &rows, &strided, rounded);
        // Also where only some of it was launched: that works in the slot until then.
        let recorded = context.record(slot.event, self.stream);
        launched.and_then(|launches| recorded.map(|()| launches))
    }

    fn launch_all(
        &self,
        context: &Context,
        slot: &Slot,
        rows: &[(Cut, &Comparison)],
        strided: &[&Comparison],
        rounded: bool,
    ) -> Result<usize> {
        let mut launches = 0;
        for some in rows.chunks(MAX_COMPARED) {
            let compared = some.iter().map(|(cut, comparison)| compared_rows(cut, comparison));
            let items = some.iter().map(|(cut, _)| cut.items()).sum();
            self.launch_measure(
                context,
                slot,
                launches,
                Kernel::MeasureRows,
                compared,
                items,
                rounded,
            )?;
            launches += 1;
        }
        for some in strided.chunks(MAX_COMPARED) {
            let compared = some.iter().map(|comparison| compared_strided(comparison));
            let items = some.iter().map(|comparison| comparison.x.len() as u64).sum();
            let kernel = Kernel::MeasureStrided;
            self.launch_measure(context, slot, launches, kernel, compared, items, rounded)?;
            launches += 1;
        }
        Ok(launches)
    }

    #[expect(clippy::too_many_arguments)]
    fn launch_measure<C: Default>(
        &self,
        context: &Context,
        slot: &Slot,
        launch: usize,
        kernel: Kernel,
        compared: impl Iterator<Item = C>,
        items: u64,
        rounded: bool,
    ) -> Result<()>
    where
        Measure<C>: Default,
    {
        let mut parameters = Measure::<C> {
            partials: slot.partials(),
            counter: slot.counter(),
            result: slot.result(launch),
            rounded: u32::from(rounded),
            ..Default::default()
        };
        for (to, compared) in parameters.c.iter_mut().zip(compared) {
            *to = compared;
            parameters.n += 1;
        }
        // Of the number of elements alone, so that every GPU adds in the same order.
        let grid = items.div_ceil(u64::from(BLOCK)).clamp(1, u64::from(MAX_GRID)) as u32;
        let pointer = (&raw mut parameters).cast();
        self.launch(context, kernel, (grid, BLOCK, 0), &mut [pointer])
    }

    // ---- ranks ----

    /// Lays this rank's sums and its vote out on the device, has them added up, and waits for what
    /// comes back. Whatever fails here, the other ranks get this one's vote: against.
    fn agree_on(
        &mut self,
        slot: &Slot,
        launches: usize,
        count: f64,
        veto: bool,
        reduce: Reduce,
    ) -> Result<[f64; N_VOTES]> {
        let context = self.reach_to_vote()?;
        let veto = veto || self.failed.is_some();
        self.dirty = true;
        let laid_out = self.lay_out_votes(&context, slot, launches, count, veto);
        if laid_out.is_err() {
            slot.put_veto(&context, self.stream)?;
        }
        let sums = std::ptr::with_exposed_provenance_mut(slot.votes() as usize);
        let reduced = {
            // The engine may make a context of its own the current one.
            let _entered = context.enter()?;
            reduce(sums, N_VOTES, self.stream.cast())
        };
        let copied = slot.fetch_votes(&context, self.stream);
        let recorded = context.record(slot.event, self.stream);
        let done =
            laid_out.and(copied).and(recorded).and_then(|()| self.wait(&context, slot.event));
        done.inspect_err(|error| self.fail(error.clone()))?;
        reduced.map(|()| slot.agreed())
    }

    /// A stream that takes work: the engine's, else the library's own.
    fn reach_to_vote(&mut self) -> Result<Arc<Context>> {
        // A stream that was refused has been left.
        self.reach().or_else(|_| self.reach())
    }

    fn lay_out_votes(
        &self,
        context: &Context,
        slot: &Slot,
        launches: usize,
        mut count: f64,
        veto: bool,
    ) -> Result<()> {
        let (mut results, mut n, mut votes) = (slot.result(0), launches as u32, slot.votes());
        let mut veto = f64::from(u8::from(veto));
        let mut parameters = [
            (&raw mut results).cast(),
            (&raw mut n).cast(),
            (&raw mut count).cast(),
            (&raw mut veto).cast(),
            (&raw mut votes).cast(),
        ];
        self.launch(context, Kernel::Vote, (1, WARP, 0), &mut parameters)
    }
}

fn refuse_capture(context: &Context, stream: CUstream) -> Result<()> {
    if context.is_capturing(stream)? {
        bail!(Capture, "stream {stream:p} is being captured: a replay would not decide anew");
    }
    Ok(())
}

/// Of an elementwise kernel that shares `items` out among its threads.
fn blocks_for(items: u64) -> u32 {
    items.div_ceil(u64::from(BLOCK)).clamp(1, MOST_BLOCKS) as u32
}

/// Some of it was worked out on the host.
fn has_sums(known: &Change) -> bool {
    [known.difference, known.value, known.reference].iter().any(|sum| *sum != 0.0)
}

/// Highest frequency whose waves along a row `low_pass` has room for.
const MOST_WAVES: u32 = 2004;

/// Bytes of shared memory that `low_pass` makes the best use of.
fn low_pass_memory(height: u64, width: u64, r: u64) -> u32 {
    /// What a block may have on every GPU, less what the kernel itself declares.
    const MOST: u64 = 48_128;
    const PAIR: u64 = 8;
    if r == 0 {
        return 0;
    }
    let turns = height.max(width);
    let waves = (2 * r + 1) * (r + 1);
    (PAIR * (turns + waves.max(16 * (r + 1)))).min(MOST) as u32
}

fn compared_rows(cut: &Cut, comparison: &Comparison) -> ComparedRows {
    let Comparison { x, base, earlier, keep } = comparison;
    let rows =
        |view: &Option<View>| view.as_ref().map_or(Rows::default(), |view| cut.rows_of(view));
    ComparedRows {
        x: cut.rows_of(x),
        base: rows(base),
        earlier: cut.rows_of(earlier),
        keep: rows(keep),
        rows: cut.rows,
        cols: cut.cols,
        has_base: u32::from(base.is_some()),
        has_keep: u32::from(keep.is_some()),
        unused: 0,
    }
}

fn compared_strided(comparison: &Comparison) -> ComparedStrided {
    let Comparison { x, base, earlier, keep } = comparison;
    let strided = |view: &Option<View>| view.as_ref().map_or(Strided::default(), Strided::of);
    ComparedStrided {
        x: Strided::of(x),
        base: strided(base),
        earlier: Strided::of(earlier),
        keep: strided(keep),
        elements: x.len() as u64,
        has_base: u32::from(base.is_some()),
        has_keep: u32::from(keep.is_some()),
    }
}

impl Ops for Cuda {
    type Buffer = Storage;
    type Pending = Pending;

    fn alloc(&mut self, shape: Shape) -> Result<Storage> {
        if shape.is_on_host() {
            return self.host.alloc(shape);
        }
        self.bind()?;
        let block = self.memory.take(shape.bytes())?;
        self.dirty = true;
        Ok(Storage::new(block, shape))
    }

    fn copy(&mut self, out: View, x: View) {
        self.combine_all(std::iter::once(Sum::copy(out, x)), Rounding::Once);
    }

    fn subtract(&mut self, out: View, x: View, base: View) {
        self.combine_all(std::iter::once(Sum::difference(out, x, base)), Rounding::Once);
    }

    fn combine(&mut self, out: View, x: Option<View>, terms: &[(f64, View)], rounding: Rounding) {
        let mut sum = Sum::new(out, x);
        terms.iter().for_each(|(c, y)| sum.add(*c, *y));
        self.combine_all(std::iter::once(sum), rounding);
    }

    fn combine_all(&mut self, sums: impl Iterator<Item = Sum>, rounding: Rounding) {
        let mut batch = Batch::default();
        for sum in sums.filter(|sum| !sum.out.is_empty()) {
            if sum.out.is_on_host() {
                self.host.combine(sum.out, sum.x, sum.terms(), rounding);
                continue;
            }
            let Some(cut) = Cut::of(sum.views()) else {
                self.combine_strided(&sum, rounding);
                continue;
            };
            let kernel = kernel_for(&sum, rounding);
            if !batch.takes(kernel) {
                self.combine_rows(std::mem::take(&mut batch));
            }
            batch.push(kernel, &sum, &cut, rounding);
        }
        self.combine_rows(batch);
    }

    fn ladder(&mut self, y: View, rungs: &[View], held: usize, gap: f64) {
        if y.is_on_host() {
            return self.host.ladder(y, rungs, held, gap);
        }
        if y.is_empty() {
            return;
        }
        assert!(held <= rungs.len() && rungs.len() <= MAX_RUNGS);
        let (n_rungs, held, gap) = (rungs.len() as u32, held as u32, gap as f32);
        let views = || [&y].into_iter().chain(rungs);
        self.queue(|cuda, context| match Cut::of(views()) {
            Some(cut) => {
                let mut parameters = LadderRows {
                    y: cut.rows_of(&y),
                    rows: cut.rows,
                    cols: cut.cols,
                    n_rungs,
                    held,
                    gap,
                    ..Default::default()
                };
                let rung = parameters.rung.iter_mut().zip(rungs);
                rung.for_each(|(to, rung)| *to = cut.rows_of(rung));
                cuda.launch_over(context, Kernel::LadderRows, cut.items(), &mut parameters)
            }
            None => {
                let elements = y.len() as u64;
                let y = Strided::of(&y);
                let mut parameters =
                    LadderStrided { y, elements, n_rungs, held, gap, ..Default::default() };
                let rung = parameters.rung.iter_mut().zip(rungs);
                rung.for_each(|(to, rung)| *to = Strided::of(rung));
                cuda.launch_over(context, Kernel::LadderStrided, elements, &mut parameters)
            }
        });
    }

    fn low_pass(&mut self, out: View, x: View, height: usize, width: usize) {
        if out.is_on_host() {
            return self.host.low_pass(out, x, height, width);
        }
        let len = height * width;
        if out.is_empty() || len == 0 {
            return;
        }
        assert!([out, x].iter().all(|view| view.is_dense() && view.dtype() == Dtype::F32));
        let r = (height.min(width) / 5) as u32;
        if r > MOST_WAVES {
            let most = 5 * MOST_WAVES + 4;
            return self.fail(Error::Unsupported(format!(
                "planes are {height} x {width}, on CUDA the shorter side may be up to {most}"
            )));
        }
        let shared = low_pass_memory(height as u64, width as u64, u64::from(r));
        self.queue(|cuda, context| {
            let (mut from, mut to) = (x.address().addr() as u64, out.address().addr() as u64);
            let mut planes = (x.len() / len) as u64;
            let (mut height, mut width, mut r, mut memory) =
                (height as u32, width as u32, r, shared);
            let grid = planes.min(MOST_BLOCKS) as u32;
            let mut parameters = [
                (&raw mut from).cast(),
                (&raw mut to).cast(),
                (&raw mut planes).cast(),
                (&raw mut height).cast(),
                (&raw mut width).cast(),
                (&raw mut r).cast(),
                (&raw mut memory).cast(),
            ];
            cuda.launch(context, Kernel::LowPass, (grid, BLOCK, shared), &mut parameters)
        });
    }

    fn measure(&mut self, comparisons: &[Comparison], rounded: bool) -> Pending {
        let dtype = comparisons.first().map_or(Dtype::F32, |c| c.earlier.dtype());
        let on_host = |c: &&Comparison| c.x.is_on_host();
        let hosts: Vec<_> = comparisons.iter().filter(on_host).copied().collect();
        let others = comparisons.iter().filter(|c| !c.x.is_on_host() && !c.x.is_empty());
        let others: Vec<_> = others.copied().collect();
        let mut known = self.host.measure(&hosts, rounded);
        known.dtype = dtype;
        known.count += others.iter().map(|c| c.x.len() as f64).sum::<f64>();
        if others.is_empty() {
            return Pending::known(known);
        }
        let mut pending = None;
        self.queue(|cuda, context| {
            let mut slot = context.take_slot()?;
            let launched = cuda.measure_queued(context, &mut slot, &others, rounded);
            let launches = launched.as_ref().map_or(0, |launches| *launches);
            let queued = Queued { context: context.clone(), slot: Some(slot), launches };
            pending = Some(Pending { queued: Some(queued), known });
            launched.map(drop)
        });
        pending.filter(|_| self.failed.is_none()).unwrap_or_else(|| Pending::failed(dtype))
    }

    fn read(&mut self, pending: Pending) -> Change {
        let Pending { queued, known } = pending;
        let Some(mut queued) = queued else {
            return known;
        };
        let Some(mut slot) = queued.slot.take() else {
            return known;
        };
        // The stream is not asked: it may be gone by now.
        let context = self.status().and_then(|()| self.enter());
        let waited = context.and_then(|context| self.wait(&context, slot.event));
        slot.unread = waited.is_err();
        let [difference, value, reference] = slot.sums(queued.launches);
        queued.slot = Some(slot);
        if let Err(error) = waited {
            self.fail(error);
            return Pending::failed(known.dtype).known;
        }
        Change {
            difference: known.difference + difference,
            value: known.value + value,
            reference: known.reference + reference,
            ..known
        }
    }

    fn agree(
        &mut self,
        own: Option<&mut Measured<Pending>>,
        veto: bool,
        reduce: Reduce,
    ) -> Result<Agreed> {
        let dtype = match &own {
            Some(Measured::Queued(pending)) => Some(pending.known.dtype),
            Some(Measured::Known(change)) => Some(change.dtype),
            None => None,
        };
        let own = match own {
            // What the kernels have summed need not come to the host and go back.
            Some(Measured::Queued(Pending { queued: Some(queued), known })) if !has_sums(known) => {
                let slot = queued.slot.as_ref().expect("a queued measurement has its slot");
                let votes = self.agree_on(slot, queued.launches, known.count, veto, reduce)?;
                return Ok(Agreed::new(votes, dtype));
            }
            own => own.map(|own| own.read(self)),
        };
        let context = self.reach_to_vote()?;
        let mut slot = context.take_slot()?;
        if std::mem::take(&mut slot.unread) {
            // Its results are about to be written here.
            self.wait(&context, slot.event)?;
        }
        slot.put_sums(own.unwrap_or(Change::zero(Dtype::F32)));
        let count = own.map_or(0.0, |own| own.count);
        let votes = self.agree_on(&slot, 1, count, veto, reduce);
        slot.unread = votes.is_err();
        context.give_slot(slot);
        Ok(Agreed::new(votes?, dtype))
    }

    fn stream(&self) -> *mut c_void {
        self.stream.cast()
    }

    fn begin_run(&mut self) {
        (self.failed, self.unsaid) = (None, false);
        self.admitted.clear();
        self.waited = Duration::ZERO;
    }

    fn begin(&mut self, stream: *mut c_void) -> Result<()> {
        (self.failed, self.unsaid) = (None, false);
        let taken = self.take_up(stream);
        if taken.is_err() {
            // If that fails too, so does all that is done there.
            let _ = self.retreat();
        }
        // The caller says so; until the next pass nothing is queued.
        self.failed = taken.clone().err();
        taken
    }

    fn placed(&self, shape: Shape) -> Shape {
        shape
    }

    fn admit(&mut self, view: View) -> Result<View> {
        if view.is_on_host() || view.is_empty() {
            return Ok(view);
        }
        let context = self.bind()?;
        let address = view.address().addr();
        if !self.admitted.contains(&address) {
            context.check_pointer(address)?;
            self.admitted.insert(address);
        }
        Ok(view)
    }

    fn before_drop(&mut self) {
        // A stream that is refused has been left, which is all that matters here.
        let _ = self.reach();
    }

    fn status(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn finish_call(&mut self) -> Result<()> {
        if std::mem::take(&mut self.dirty)
            && let Err(error) = self.raise_fence()
        {
            self.fail(error);
        }
        (self.entered, self.open) = (None, false);
        match std::mem::take(&mut self.unsaid) {
            true => self.status(),
            false => Ok(()),
        }
    }

    fn retire(&mut self) {
        if let Err(error) = self.retreat() {
            // The context is gone, and its memory with it.
            self.fail(error);
        }
        if let (Some(home), Some(fence)) = (&self.home, self.fence.take()) {
            home.give_event(fence);
        }
    }

    fn waited(&self) -> Duration {
        self.waited
    }
}
