//! The operations on CUDA devices: kernels of the library's own, queued on the engine's stream.
//!
//! | file | what |
//! |---|---|
//! | `driver` | the driver's functions, found at run time |
//! | `context` | what is kept for each CUDA context: modules, a stream, slots, events |
//! | `streams` | which stream work goes to, and what it waits for |
//! | `admitted` | which of the engine's addresses were found to be the device's |
//! | `measure`, `slot` | measurements, and where they arrive |
//! | `ranks` | what ranks add up to decide alike |
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
mod admitted;
mod context;
mod driver;
mod kernels;
mod layout;
mod measure;
mod ranks;
mod slot;
mod streams;
mod sums;

pub use measure::Pending;

use super::host::Host;
use super::memory::{Memory, Storage};
use super::{
    Agreed, Comparison, Dtype, MAX_RUNGS, Measured, Ops, Reduce, Rounding, Shape, Sum, View,
};
use crate::error::{Error, Result, bail};
use crate::rule::Change;
use admitted::Admitted;
use context::{Context, Entered};
use cudarc::driver::sys::{CUevent, CUstream};
use kernels::{BLOCK, Kernel, LadderRows, LadderStrided};
use layout::{Cut, Strided};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streams::refuse_capture;
use sums::{Batch, combine_strided, kernel_for, plain_copy};

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
    /// First elements of the engine's tensors, in this run.
    admitted: Admitted,
    waited: Duration,
}

// The streams and events may be used by any thread. What was entered is left by the end of the same
// call.
unsafe impl Send for Cuda {}

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
            admitted: Admitted::none(),
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

    /// At once, or with others in a batch.
    fn form(&mut self, batch: &mut Batch, sum: &Sum, rounding: Rounding) {
        if sum.out.is_empty() {
            return;
        }
        if sum.out.is_on_host() {
            return self.host.combine(sum.out, sum.x, sum.terms, rounding);
        }
        let Some(cut) = Cut::of(sum.views()) else {
            return self.combine_strided(sum, rounding);
        };
        let kernel = kernel_for(sum, rounding);
        if !batch.takes(kernel) {
            self.combine_rows(batch);
        }
        batch.push(kernel, sum, &cut, rounding);
    }

    /// Launches a batch, and leaves it empty.
    fn combine_rows(&mut self, batch: &mut Batch) {
        let Some(kernel) = batch.kernel() else { return };
        if let Some((out, x)) = batch.lone_copy() {
            self.copy_bytes(out, x);
        } else {
            let grid = (batch.blocks, BLOCK, 0);
            let parameters = (&raw mut batch.parameters).cast();
            self.queue(|cuda, context| cuda.launch(context, kernel, grid, &mut [parameters]));
        }
        *batch = Batch::default();
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
}

/// Of an elementwise kernel of so many threads, each with work of its own.
fn blocks_for(threads: u64) -> u32 {
    threads.div_ceil(u64::from(BLOCK)).clamp(1, MOST_BLOCKS) as u32
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
        self.combine(out, Some(x), &[], Rounding::Once);
    }

    fn subtract(&mut self, out: View, x: View, base: View) {
        // A product with -1 is exact.
        self.combine(out, Some(x), &[(-1.0, base)], Rounding::Once);
    }

    fn combine(&mut self, out: View, x: Option<View>, terms: &[(f64, View)], rounding: Rounding) {
        self.combine_all(rounding, |form| form(Sum::new(out, x, terms)));
    }

    fn combine_all(&mut self, rounding: Rounding, sums: impl FnOnce(&mut dyn FnMut(Sum))) {
        let mut batch = Batch::default();
        sums(&mut |sum| self.form(&mut batch, &sum, rounding));
        self.combine_rows(&mut batch);
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
        self.measure_all(comparisons, rounded)
    }

    fn read(&mut self, pending: Pending) -> Change {
        self.wait_for(pending)
    }

    fn agree(
        &mut self,
        own: Option<&mut Measured<Pending>>,
        veto: bool,
        reduce: Reduce,
    ) -> Result<Agreed> {
        self.agree_with_others(own, veto, reduce)
    }

    fn stream(&self) -> *mut c_void {
        self.stream.cast()
    }

    fn begin_run(&mut self) {
        (self.failed, self.unsaid) = (None, false);
        self.admitted = Admitted::none();
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
        if !self.admitted.contains(address) {
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
