//! The state machine: it walks runs, passes and branches, checks what the engine says, and sends
//! each call to the group it concerns.
//!
//! ```text
//! begin_run ( begin_pass ( before_block after_block? | before_layer after_layer? )* end_pass
//!             ( before_uncond after_uncond? )? )* end_run?
//! ```
//!
//! Nothing the engine does wrong is fatal: the pass computes, and `end_pass` says what was wrong.
mod blocks;
mod layers;
mod steering;
mod tensors;
mod uncond;

use crate::error::{Error, Result, bail};
use crate::group::{Group, Layout, Members, Setting, Unit, bytes_of, rows_of};
use crate::guidance::Guidance;
use crate::log::{self, Level};
use crate::ops::memory::Memory;
use crate::ops::{Ops, Shape, Tensor};
use crate::preset::Method;
use crate::rows::{MAX_TENSORS, Stacked};
use crate::rule::{Action, Pass, Reason};
use crate::scope::{Kind, Scope};
use crate::stats::{Observed, Stats, percentiles};
use crate::trace::{CAPACITY, Record};
use arrayvec::ArrayVec;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

pub use crate::group::MAX_BRANCHES;

/// Instead of a block number: the whole evaluation.
pub const MODEL: u32 = u32::MAX;
/// Instead of a block number: the unconditional branch.
pub const UNCOND: u32 = u32::MAX - 1;
/// Added to a layer's number, where a block's could stand.
pub const LAYER: u32 = 1 << 31;
/// Added to a kind's number, for all layers of it.
pub const KIND: u32 = 0xffff_ff00;
/// Layer numbers are below this.
pub const MAX_LAYERS: u32 = KIND - LAYER;

/// Bits of [`PassInfo::flags`].
pub mod flag {
    pub const LAST: u32 = 1;
    pub const COMPUTE: u32 = 2;
    pub const FORGET: u32 = 4;
    pub const TIMESTEP: u32 = 8;
    pub const ALL: u32 = LAST | COMPUTE | FORGET | TIMESTEP;
}

/// Sums doubles over the ranks that must agree.
#[derive(Clone, Copy)]
pub struct Reducer {
    pub reduce: unsafe extern "C-unwind" fn(*mut c_void, *mut f64, usize, *mut c_void) -> i32,
    pub user: *mut c_void,
}

// `user` is only handed back to the engine, from whichever thread uses the cache.
unsafe impl Send for Reducer {}

/// What the engine is.
pub struct Engine {
    pub n_blocks: u32,
    pub n_layers: u32,
    pub n_branches: usize,
    /// The branch that guidance may leave out.
    pub uncond: usize,
    pub max_stacked: usize,
    pub measure: u32,
    pub keeps_input: bool,
    pub reduce: Option<Reducer>,
    pub label: String,
}

/// One sampling run.
pub struct Run {
    /// Evaluations of one branch in the full schedule, if known.
    pub n_steps: Option<u32>,
    pub first_step: u32,
    pub end_step: Option<u32>,
    /// Of every step of the full schedule, or none.
    pub timesteps: Vec<f32>,
    /// Of a timestep, at pure noise.
    pub timestep_max: Option<f32>,
    /// What the tensors look like, if memory is to be taken now.
    pub layouts: Option<Vec<Layout>>,
    pub stream: *mut c_void,
}

/// One evaluation of the model, as the engine announces it.
pub struct PassInfo {
    pub step: u32,
    pub branches: Members,
    pub flags: u32,
    pub timestep: f32,
    pub stream: *mut c_void,
}

impl Default for PassInfo {
    fn default() -> Self {
        let (branches, stream) = (Members::new(), std::ptr::null_mut());
        Self { step: 0, branches, flags: 0, timestep: 0.0, stream }
    }
}

/// The tensors of one call.
pub type Given = ArrayVec<Tensor, MAX_TENSORS>;

/// Puts the tensors of a call where they are wanted; asked only if they matter.
pub type Read<'a> = &'a dyn Fn(&mut Given) -> Result<()>;

pub struct Cache<O: Ops> {
    ops: O,
    memory: Arc<Memory>,
    engine: Engine,
    setting: Setting,
    groups: Vec<Group<O>>,
    guidance: Option<Guidance<O>>,
    /// What kind each layer said it is.
    kinds: Vec<Option<Kind>>,
    run: Option<OpenRun>,
    /// Boxed, so that what works on it can take it out and leave the rest of the cache free.
    pass: Option<Box<OpenPass>>,
    /// The box of the pass before.
    spare: Option<Box<OpenPass>>,
    /// What the call in progress was given; kept for their memory, as are the records of a pass.
    input: Stacked,
    out: Stacked,
    records: Vec<Record>,
    observed: Arc<Mutex<Observed>>,
}

struct OpenRun {
    n_steps: Option<u32>,
    first_step: u32,
    end_step: Option<u32>,
    timesteps: Vec<f32>,
    timestep_max: Option<f32>,
    /// Step last evaluated of each branch.
    last: [Option<u32>; MAX_BRANCHES],
    /// The run computes, because it could not get its memory.
    failed: Option<Error>,
}

struct OpenPass {
    /// As the rules see it, and as the engine flagged it.
    about: Pass,
    flags: u32,
    /// Where its work goes, if there may be any.
    stream: Option<*mut c_void>,
    members: Members,
    /// Step of the run that each branch evaluated before.
    before: [Option<u32>; MAX_BRANCHES],
    error: Option<Error>,
    discard: Option<String>,
    /// What it kept is not what it computed: the device failed.
    void: bool,
    /// Block last asked about.
    asked: Option<u32>,
}

// The stream is only handed on.
unsafe impl Send for OpenPass {}

impl OpenRun {
    fn end(&self) -> Option<u32> {
        self.end_step.or(self.n_steps)
    }

    fn pass(&self, step: u32, flags: u32, timestep: Option<f32>) -> Pass {
        let listed = self.timesteps.get(step as usize).copied();
        Pass {
            step,
            first_step: self.first_step,
            end_step: self.end(),
            last: flags & flag::LAST != 0,
            timestep: timestep.or(listed),
            timestep_max: self.timestep_max,
            cond_only: None,
        }
    }

    fn pass_of(&self, info: &PassInfo) -> Pass {
        let timestep = (info.flags & flag::TIMESTEP != 0).then_some(info.timestep);
        self.pass(info.step, info.flags, timestep)
    }

    /// A coming pass: the one that is asked about, or one of which but the step is known.
    fn coming(&self, asked: Pass, step: u32) -> Pass {
        if step == asked.step { asked } else { self.pass(step, 0, None) }
    }

    /// Step that a branch has not evaluated yet.
    fn next(&self, branch: usize) -> u32 {
        self.last[branch].map_or(self.first_step, |last| last.saturating_add(1))
    }
}

impl OpenPass {
    fn new() -> Self {
        Self {
            about: Pass::START,
            flags: 0,
            stream: None,
            members: Members::new(),
            before: [None; MAX_BRANCHES],
            error: None,
            discard: None,
            void: false,
            asked: None,
        }
    }

    /// The first error of a pass is the one that is reported.
    fn note(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }
}

impl<O: Ops> Cache<O> {
    pub fn new(
        ops: O,
        memory: Arc<Memory>,
        engine: Engine,
        method: Method,
        share: bool,
        observed: Arc<Mutex<Observed>>,
    ) -> Self {
        let setting = engine.setting(share);
        let groups = method.policies.into_iter().map(|policy| Group::new(policy, &setting));
        Self {
            ops,
            memory,
            setting,
            groups: groups.collect(),
            guidance: method.guidance.map(Guidance::new),
            kinds: vec![None; engine.n_layers as usize],
            engine,
            run: None,
            pass: None,
            spare: None,
            input: Stacked::default(),
            out: Stacked::default(),
            records: Vec::new(),
            observed,
        }
    }

    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    // ---- runs ----

    /// Forgets everything but the memory, whatever was going on.
    pub fn begin_run(&mut self, run: Run) -> Result<()> {
        self.end_run();
        self.ops.begin_run();
        self.groups.iter_mut().for_each(Group::clear);
        self.guidance.iter_mut().for_each(Guidance::clear);
        let reserve = |layouts: &Vec<Layout>| {
            self.ops.begin(run.stream)?;
            self.reserve(layouts)
        };
        let reserved = run.layouts.as_ref().map_or(Ok(()), reserve);
        let finished = self.ops.finish_call();
        let begun = reserved.and(finished).and_then(|()| self.check_run(&run));
        self.run = Some(OpenRun {
            n_steps: run.n_steps,
            first_step: run.first_step,
            end_step: run.end_step,
            timesteps: run.timesteps,
            timestep_max: run.timestep_max,
            last: [None; MAX_BRANCHES],
            failed: begun.clone().err(),
        });
        let threshold = self.groups.iter().find_map(|group| group.policy().threshold());
        self.observed().begin_run(Stats {
            threshold,
            first_error: begun.clone().err(),
            errors: u64::from(begun.is_err()),
            ..Stats::default()
        });
        self.expect_records();
        self.refresh_memory();
        if let Err(error) = &begun {
            log::log(Level::Error, &self.engine.label, || format!("begin_run: {error}"));
        }
        begun
    }

    /// Does the run tell what the policies decide by?
    fn check_run(&self, run: &Run) -> Result<()> {
        if self.needs_timestep() && run.timestep_max.is_none() {
            bail!(
                Arg,
                "timestep_max is 0, which windows and mlp.at need: the timestep at pure noise"
            );
        }
        let end = run.end_step.or(run.n_steps);
        let ramps = |group: &Group<O>| group.policy().estimator.needs_progress();
        if end.is_none() && self.groups.iter().any(ramps) {
            bail!(Arg, "n_steps is 0, but weight changes over the run, which needs its length");
        }
        Ok(())
    }

    /// Room for the records of the whole run, where its length is known, so that a pass takes none.
    fn expect_records(&mut self) {
        let branches = self.engine.n_branches;
        let decisions = branches * self.groups.len() + usize::from(self.guidance.is_some());
        self.records.clear();
        self.records.reserve(decisions);
        let steps = self.run.as_ref().and_then(OpenRun::end).map_or(CAPACITY, |end| end as usize);
        let mut observed = self.observed();
        let changes = if observed.stats.threshold.is_some() { branches } else { 0 };
        observed.trace.expect(steps.saturating_mul(decisions));
        observed.changes.expect(steps.saturating_mul(changes));
    }

    fn needs_timestep(&self) -> bool {
        self.groups.iter().any(|group| group.policy().needs_timestep())
            || self.guidance.as_ref().is_some_and(|guidance| guidance.policy().needs_timestep())
    }

    /// Shapes of all tensors that will be kept: each group's, then guidance's.
    fn plan(&self, layouts: &[Layout]) -> Result<Vec<Vec<(Shape, usize)>>> {
        let mut layouts = layouts.to_vec();
        let shapes = layouts.iter_mut().flat_map(|layout| &mut layout.tensors);
        shapes.for_each(|shape| *shape = self.ops.placed(*shape));
        let layouts = &layouts[..];
        for branch in 0..self.engine.n_branches {
            let layers = Kind::ALL.map(|kind| rows_of(layouts, Unit::Layer(kind), branch));
            let layers = layers.into_iter().flatten().flatten();
            let (n, n_layers) =
                (layers.map(|row| u64::from(row.count)).sum::<u64>(), self.engine.n_layers);
            if n > u64::from(n_layers) {
                bail!(Arg, "shapes count {n} layers for branch {branch}, n_layers is {n_layers}");
            }
        }
        let is_layers = |group: &Group<O>| matches!(group.policy().scope, Scope::Layers { .. });
        let rows = layouts.iter().any(|row| matches!(row.of, Unit::Layer(_)));
        if self.groups.iter().any(is_layers) && !rows {
            bail!(Arg, "shapes has no row of DC_HOOK_LAYERS, which the method needs");
        }
        let groups = self.groups.iter();
        let groups = groups.map(|group| Group::<O>::plan(group.policy(), &self.setting, layouts));
        let uncond = self.engine.uncond;
        let guidance = self.guidance.iter();
        let guidance = guidance.map(|guidance| guidance.policy().plan(layouts, uncond));
        groups.chain(guidance).collect()
    }

    /// Bytes asked of the allocator for tensors like these.
    pub fn memory_needed(&self, layouts: &[Layout]) -> Result<u64> {
        bytes_of(&self.plan(layouts)?.concat())
    }

    fn reserve(&mut self, layouts: &[Layout]) -> Result<()> {
        let plan = self.plan(layouts)?;
        let needed = bytes_of(&plan.concat())?;
        let budget = self.memory.budget();
        if needed > budget {
            self.free();
            bail!(Memory, "memory_budget is {budget} bytes, this run needs {needed}");
        }
        // What an earlier run of other shapes left behind must not count against this one.
        if self.memory.held() != needed {
            self.free();
        }
        let kept = self.memory.held() > 0;
        match self.reserve_planned(&plan) {
            Err(_) if kept => self.reserve_planned(&plan),
            reserved => reserved,
        }
    }

    /// Takes all or nothing.
    fn reserve_planned(&mut self, plan: &[Vec<(Shape, usize)>]) -> Result<()> {
        let ops = &mut self.ops;
        let (of_groups, of_guidance) = plan.split_at(self.groups.len());
        let mut groups = self.groups.iter_mut().zip(of_groups);
        let mut guidance = self.guidance.iter_mut().zip(of_guidance);
        let reserved = groups
            .try_for_each(|(group, shapes)| group.reserve(ops, shapes))
            .and_then(|()| guidance.try_for_each(|(guide, shapes)| guide.reserve(ops, shapes)));
        reserved.inspect_err(|_| self.free())
    }

    fn free(&mut self) {
        self.groups.iter_mut().for_each(Group::free);
        self.guidance.iter_mut().for_each(Guidance::free);
    }

    /// Ends the run and says how it went.
    pub fn end_run(&mut self) {
        self.cancel_pass();
        self.refresh_memory();
        if self.run.take().is_some() {
            self.summarise();
        }
    }

    fn summarise(&self) {
        // No lock is held while the host's callback runs.
        let stats = self.observed().stats.clone();
        let changes = || percentiles(&self.observed().changes);
        let Stats { passes, passes_skipped, passes_skippable, threshold, .. } = stats;
        let label = &self.engine.label;
        if passes > 0 && self.guidance.is_some() {
            self.summarise_guidance(&stats);
        }
        if passes == 0 || self.groups.is_empty() {
            return;
        }
        log::log(Level::Info, label, || {
            let [p5, p50, p95] = changes();
            let change = threshold.map_or(String::new(), |threshold| {
                format!("; change p5 {p5:.4}, p50 {p50:.4}, p95 {p95:.4}, threshold {threshold}")
            });
            format!("{passes} passes, {passes_skipped} skipped{change}")
        });
        if passes_skipped == 0 {
            log::log(Level::Warn, label, || {
                let [p5, ..] = changes();
                let hint = match threshold.filter(|_| p5.is_finite()) {
                    Some(t) => format!(": the change was rarely below {p5:.4}, threshold is {t}"),
                    None => stats
                        .first_error
                        .as_ref()
                        .map_or(": the rules never allowed it".to_owned(), |error| {
                            format!(": {error}")
                        }),
                };
                format!("nothing was skipped in {passes} passes{hint}")
            });
        } else if let Some(t) = threshold.filter(|_| passes_skipped == passes_skippable) {
            log::log(Level::Warn, label, || {
                let [.., p95] = changes();
                format!(
                    "everything that could be skipped was, {passes_skipped} of {passes} passes: \
                     threshold is {t}, 95 % of the changes were up to {p95:.4}"
                )
            });
        }
    }

    fn summarise_guidance(&self, stats: &Stats) {
        let Stats { uncond_computed: computed, uncond_skipped: skipped, .. } = *stats;
        let label = &self.engine.label;
        log::log(Level::Info, label, || {
            format!("unconditional branch: {} steps, {skipped} skipped", computed + skipped)
        });
        if skipped == 0 {
            let hint = match computed {
                0 => "before_uncond was never called",
                _ => "the rules never allowed it, or nothing was kept",
            };
            log::log(Level::Warn, label, || {
                format!("the unconditional branch was never skipped: {hint}")
            });
        }
    }

    /// Gives all kept memory back; the branches start again.
    pub fn trim(&mut self, stream: *mut c_void) -> Result<()> {
        if self.pass.is_some() {
            bail!(State, "trim inside a pass: end_pass comes first");
        }
        let begun = self.ops.begin(stream);
        self.free();
        let finished = self.ops.finish_call();
        self.refresh_memory();
        begun.and(finished)
    }

    fn refresh_memory(&self) {
        self.note_memory(&mut self.observed().stats);
    }

    fn note_memory(&self, stats: &mut Stats) {
        stats.bytes_held = self.memory.held();
        stats.bytes_peak = self.memory.peak();
        stats.allocations = self.memory.allocations();
        stats.waited = self.ops.waited();
    }

    // ---- passes ----

    /// Opens a pass, also after an error: it then computes everything.
    pub fn begin_pass(&mut self, info: Result<&PassInfo>) -> Result<()> {
        let nested = self.pass.is_some();
        self.cancel_pass();
        let mut pass = self.spare.take().unwrap_or_else(|| Box::new(OpenPass::new()));
        *pass = OpenPass::new();
        let begun = info.and_then(|info| {
            (pass.about.step, pass.flags) = (info.step, info.flags);
            let checked = self.check_pass(info, "begin_pass");
            if checked.is_err() && info.flags & flag::FORGET != 0 {
                // The weights have changed all the same.
                let n = self.engine.n_branches;
                self.groups.iter_mut().for_each(|group| (0..n).for_each(|b| group.forget(b)));
                self.guidance.iter_mut().for_each(Guidance::forget);
            }
            checked?;
            self.open_groups(info, &mut pass)
        });
        if let Err(error) = begun {
            pass.note(error);
        }
        if nested {
            let text = "begin_pass inside a pass: the open one was cancelled, end_pass is missing";
            pass.note(Error::State(text.to_owned()));
        }
        if let Err(error) = self.ops.finish_call() {
            pass.note(error);
        }
        if pass.error.is_some() {
            self.groups.iter_mut().for_each(|group| group.veto(Reason::Error));
        }
        let result = pass.error.clone().map_or(Ok(()), Err);
        self.pass = Some(pass);
        result
    }

    fn check_pass(&self, info: &PassInfo, call: &str) -> Result<()> {
        let PassInfo { step, branches, flags, timestep, .. } = info;
        let Some(run) = &self.run else {
            bail!(State, "{call} before begin_run");
        };
        let (n, stacked) = (self.engine.n_branches, self.engine.max_stacked);
        if branches.is_empty() || branches.len() > stacked {
            bail!(
                Arg,
                "pass->n_branches is {}, max_stacked of the engine allows 1 to {stacked}",
                branches.len()
            );
        }
        let mut seen = 0u32;
        for (k, branch) in branches.iter().enumerate() {
            if *branch >= n {
                bail!(Arg, "pass->branches[{k}] is {branch}, allowed is below n_branches, {n}");
            }
            if seen >> branch & 1 == 1 {
                bail!(Arg, "pass->branches names branch {branch} twice");
            }
            seen |= 1 << branch;
        }
        if flags & !flag::ALL != 0 {
            bail!(Arg, "pass->flags is {flags:#x}, known are the bits of {:#x}", flag::ALL);
        }
        if flags & flag::TIMESTEP != 0 && !timestep.is_finite() {
            bail!(Arg, "pass->timestep is {timestep}, it must be finite");
        }
        if *step < run.first_step || run.end().is_some_and(|end| *step >= end) {
            let end = run.end().map_or(String::new(), |end| format!(" and below {end}"));
            bail!(Arg, "pass->step is {step}, allowed is {} and above{end}", run.first_step);
        }
        Ok(())
    }

    fn open_groups(&mut self, info: &PassInfo, pass: &mut OpenPass) -> Result<()> {
        let needs_timestep = self.needs_timestep();
        let Some(run) = &mut self.run else { return Ok(()) };
        if info.flags & flag::FORGET != 0 {
            self.guidance.iter_mut().for_each(Guidance::forget);
        }
        pass.about = run.pass_of(info);
        pass.about.cond_only = match info.branches.contains(&self.engine.uncond) {
            true => Some(false),
            false => self.guidance.as_ref().and_then(|guidance| guidance.leaves_out(&pass.about)),
        };
        pass.before = run.last;
        let about = &pass.about;
        let repeated = info.branches.iter().find(|b| run.last[**b] >= Some(info.step));
        let order = match repeated {
            Some(branch) => Err(Error::State(format!(
                "pass->step is {}, but step {} of branch {branch} has been evaluated: steps rise",
                info.step,
                run.last[*branch].unwrap_or_default()
            ))),
            None => Ok(()),
        };
        if order.is_ok() {
            info.branches.iter().for_each(|branch| run.last[*branch] = Some(info.step));
        }
        let timed = if about.timestep.is_none() && needs_timestep {
            let step = info.step;
            Err(Error::Arg(format!(
                "pass->timestep: step {step} has none, neither with DC_PASS_TIMESTEP nor in the \
                 run's list, which windows and mlp.at need"
            )))
        } else {
            Ok(())
        };
        // A cache that never works has no quarrel with the stream; one that has failed votes on it.
        let begun = match self.groups.is_empty() {
            true => Ok(()),
            false => self.ops.begin(info.stream),
        };
        pass.stream = begun.is_ok().then_some(info.stream);
        let failed = run.failed.clone().map_or(begun, Err);
        for group in &mut self.groups {
            if info.flags & flag::FORGET != 0 {
                info.branches.iter().for_each(|branch| group.forget(*branch));
            }
            group.begin(about, &info.branches, info.flags & flag::COMPUTE != 0);
            if let Err(error) = &failed {
                group.veto(reason_of(error));
            } else if timed.is_err() {
                group.veto(Reason::Timestep);
            }
        }
        pass.members.clone_from(&info.branches);
        order.and(failed).and(timed)
    }

    // ---- the end of a pass ----

    /// Closes the pass. An error means that the cache did not work and the output is right, unless
    /// it is [`Error::Discard`].
    pub fn end_pass(&mut self) -> Result<()> {
        let Some(mut pass) = self.pass.take() else {
            bail!(State, "end_pass without begin_pass");
        };
        let mut tally = Tally::default();
        self.records.clear();
        for index in 0..self.groups.len() {
            let group = &mut self.groups[index];
            let scope = group.policy().scope;
            let layers = matches!(scope, Scope::Layers { .. });
            if pass.error.is_none() {
                if !group.is_reached() && !layers {
                    pass.note(Error::State(format!(
                        "the pass ended before before_block({}) was called",
                        name_of(unit_of(scope))
                    )));
                    group.veto(Reason::Error);
                } else if let Some(open) = group.open_site() {
                    let call = match scope {
                        Scope::Layers { .. } => format!("after_layer({open})"),
                        Scope::Blocks { .. } => format!("after_block({open})"),
                        _ => format!("after_block({})", last_of(scope, self.engine.n_blocks)),
                    };
                    pass.note(Error::State(format!(
                        "the pass ended before {call} was called: nothing was learned"
                    )));
                }
            }
            let (filled, reached) = (group.is_filled(), group.is_reached());
            let discarded = pass.discard.is_some();
            if !discarded {
                tally.add(scope, self.engine.n_blocks, group.count());
            }
            let mut reduce = reducer(&self.engine);
            let reduce = reduce.as_mut().map(|r| r as _);
            let (decision, settled) = group.end(&mut self.ops, discarded, reduce);
            if let Err(error) = settled {
                pass.note(error);
            }
            // A model may be without layers of some kind.
            let Some(decision) = decision.filter(|_| reached || !layers) else { continue };
            tally.skipped |= filled && !discarded;
            tally.skippable |= filled || !is_forced(decision.reason);
            for member in &pass.members {
                let policy = group.policy();
                self.records.push(Record {
                    step: pass.about.step,
                    branch: *member as u32,
                    unit: unit_of(policy.scope),
                    action: decision.action,
                    reason: decision.reason,
                    timestep: pass.about.timestep.unwrap_or(f32::NAN),
                    change: decision.metric.unwrap_or(f64::NAN),
                    accumulated: group
                        .accumulated(*member)
                        .filter(|_| decision.metric.is_some())
                        .unwrap_or(f64::NAN),
                    threshold: policy.threshold().unwrap_or(f64::NAN),
                });
            }
        }
        if let Err(error) = self.finish_call() {
            pass.void = true;
            pass.note(error);
        }
        if pass.void {
            self.forget_branches(&pass.members);
        }
        let result = match (pass.discard.take(), pass.error.take()) {
            (Some(text), _) => {
                // The pass is to be done again, under its own number.
                self.run.iter_mut().for_each(|run| run.last = pass.before);
                Err(Error::Discard(text))
            }
            (None, Some(error)) => Err(error),
            (None, None) => Ok(()),
        };
        self.count_pass(&result, &tally);
        self.spare = Some(pass);
        result
    }

    fn count_pass(&self, result: &Result<()>, tally: &Tally) {
        let mut observed = self.observed();
        let observed = &mut *observed;
        let stats = &mut observed.stats;
        stats.passes += 1;
        stats.passes_skipped += u64::from(tally.skipped);
        stats.passes_skippable += u64::from(tally.skippable);
        stats.blocks_skipped += tally.blocks;
        stats.blocks_computed += u64::from(self.engine.n_blocks) - tally.blocks;
        stats.layers_skipped += tally.layers_skipped;
        stats.layers_computed += tally.layers_computed;
        if let Err(error) = result {
            stats.errors += 1;
            stats.discarded += u64::from(matches!(error, Error::Discard(_)));
            stats.first_error.get_or_insert(error.clone());
        }
        self.note_memory(stats);
        if let Some(record) = self.records.first() {
            let measured = record.accumulated.is_finite();
            // What a device failed to measure says nothing about the tensors.
            let lost = matches!(result, Err(Error::Device(_)));
            let not_finite = measured && !lost && !record.change.is_finite();
            stats.not_finite += u64::from(not_finite);
            if record.change.is_finite() {
                observed.changes.push(record.change);
            }
        }
        self.records.iter().for_each(|record| observed.trace.push(*record));
    }

    /// Drops the open pass; the rules hear nothing of it.
    pub fn cancel_pass(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.groups.iter_mut().for_each(Group::cancel);
            if self.finish_call().is_err() || pass.void {
                self.forget_branches(&pass.members);
            }
            self.spare = Some(pass);
        }
    }

    fn forget_branches(&mut self, branches: &[usize]) {
        for group in &mut self.groups {
            branches.iter().for_each(|branch| group.forget(*branch));
        }
    }

    /// What the device has to say at the end of a call. Where it has failed, the rest of the run
    /// computes; where it could only not be used now, the pass does.
    fn finish_call(&mut self) -> Result<()> {
        self.ops.finish_call().inspect_err(|error| {
            if let Some(run) = self.run.as_mut().filter(|_| !matches!(error, Error::Capture(_))) {
                run.failed.get_or_insert_with(|| error.clone());
            }
        })
    }

    /// The open pass must not be used: something broke inside a call.
    pub fn spoil_pass(&mut self, error: Error) {
        self.groups.iter_mut().for_each(Group::cancel);
        self.free_all();
        let observed = &mut self.observed().stats;
        observed.errors += 1;
        observed.first_error.get_or_insert(error);
    }

    /// Is the result of the skipped part in place? Then this is the part.
    pub fn filled_span(&self) -> Option<(u32, u32)> {
        self.pass.as_ref()?;
        let filled = |group: &Group<O>| group.policy().scope.is_single() && group.is_filled();
        let index = self.groups.iter().position(filled)?;
        Some(self.span(index).unwrap_or((MODEL, MODEL)))
    }

    // ---- helpers ----

    /// The end of a cache, or of a call that broke it: leaves the thread as it was found.
    fn free_all(&mut self) {
        self.ops.retire();
        self.groups.clear();
        self.guidance = None;
        let _ = self.ops.finish_call();
    }

    /// The group that answers for a block or for the model.
    fn group_of(&self, unit: u32) -> Option<usize> {
        let answers = |group: &Group<O>| match group.policy().scope {
            Scope::Model => unit == MODEL,
            Scope::Stack { .. } | Scope::Blocks { .. } => unit != MODEL,
            Scope::Layers { .. } => false,
        };
        self.groups.iter().position(answers)
    }

    fn group_of_kind(&self, kind: Kind) -> Option<usize> {
        let is_for = |scope| matches!(scope, Scope::Layers { kind: own, .. } if own == kind);
        self.groups.iter().position(|group| is_for(group.policy().scope))
    }

    /// The blocks a group may leave out; `None` if it is not for blocks.
    fn span(&self, index: usize) -> Option<(u32, u32)> {
        match self.groups[index].policy().scope {
            Scope::Stack { front, back } | Scope::Blocks { front, back } => {
                Some((front, self.engine.n_blocks - back))
            }
            Scope::Layers { .. } | Scope::Model => None,
        }
    }

    /// Keeps an error for `end_pass` and makes the pass compute; `action` is what the engine is told.
    fn noted(&mut self, pass: &mut OpenPass, action: Action, result: Result<()>) -> Result<()> {
        let finished = self.finish_call();
        if result.is_ok() && finished.is_ok() {
            return Ok(());
        }
        pass.void |= finished.is_err();
        if let (Action::Skip, Err(error)) = (action, &finished) {
            let text = format!("what stands in may not have been written: {error}");
            pass.discard.get_or_insert(text);
        }
        let result = result.and(finished);
        if let Err(error) = &result {
            let reason = reason_of(error);
            self.groups.iter_mut().for_each(|group| group.veto(reason));
            let label = &self.engine.label;
            if pass.error.is_none() {
                log::log(Level::Debug, label, || format!("step {}: {error}", pass.about.step));
            }
            pass.note(error.clone());
        }
        result
    }
}

impl<O: Ops> Drop for Cache<O> {
    fn drop(&mut self) {
        self.end_run();
        self.free_all();
    }
}

impl Engine {
    pub fn setting(&self, share: bool) -> Setting {
        Setting {
            n_blocks: self.n_blocks,
            n_branches: self.n_branches,
            uncond: self.uncond,
            ranks: self.reduce.is_some(),
            max_stacked: self.max_stacked,
            measure: self.measure,
            keeps_input: self.keeps_input,
            share,
        }
    }
}

fn reason_of(error: &Error) -> Reason {
    match error {
        Error::Shape(_) => Reason::Shape,
        Error::Memory(_) => Reason::Memory,
        Error::Capture(_) => Reason::Capture,
        _ => Reason::Error,
    }
}

/// What a pass did.
#[derive(Default)]
struct Tally {
    skipped: bool,
    skippable: bool,
    /// Blocks left out.
    blocks: u64,
    layers_skipped: u64,
    layers_computed: u64,
}

impl Tally {
    /// `filled` and other sites that a group reached.
    fn add(&mut self, scope: Scope, n_blocks: u32, (filled, others): (u64, u64)) {
        match scope {
            Scope::Stack { front, back } => {
                self.blocks += filled * u64::from(n_blocks - front - back)
            }
            Scope::Blocks { .. } => self.blocks += filled,
            Scope::Model => self.blocks += filled * u64::from(n_blocks),
            Scope::Layers { .. } => {
                self.layers_skipped += filled;
                self.layers_computed += others;
            }
        }
    }
}

/// No data could have changed it.
fn is_forced(reason: Reason) -> bool {
    use Reason::*;
    matches!(
        reason,
        WarmUp | Last | Engine | NoHistory | Interval | Window | Unlisted | Guidance | Timestep
    )
}

fn is_skip(action: Action) -> bool {
    action == Action::Skip
}

/// The layer a unit names.
fn layer_of(unit: u32) -> Option<u32> {
    let layer = unit & !LAYER;
    (unit & LAYER != 0 && layer < MAX_LAYERS).then_some(layer)
}

/// What stands for all values of a scope: its first block, or its kind of layer.
fn unit_of(scope: Scope) -> u32 {
    match scope {
        Scope::Stack { front, .. } | Scope::Blocks { front, .. } => front,
        Scope::Layers { kind, .. } => KIND | kind as u32,
        Scope::Model => MODEL,
    }
}

fn name_of(unit: u32) -> String {
    if unit == MODEL { "DC_MODEL".to_owned() } else { unit.to_string() }
}

fn last_of(scope: Scope, n_blocks: u32) -> String {
    match scope {
        Scope::Stack { back, .. } => (n_blocks - back - 1).to_string(),
        _ => name_of(MODEL),
    }
}

/// The engine's agreement between ranks, as a group calls it.
fn reducer(
    engine: &Engine,
) -> Option<impl FnMut(*mut f64, usize, *mut c_void) -> Result<()> + use<>> {
    let Reducer { reduce, user } = engine.reduce?;
    Some(move |sums, n, stream| {
        // The engine promised a function that takes these arguments.
        match unsafe { reduce(user, sums, n, stream) } {
            0 => Ok(()),
            code => Err(Error::Device(format!("reduce returned {code}"))),
        }
    })
}
