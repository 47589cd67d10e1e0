//! The state machine: it walks runs, passes and branches, checks what the engine says, and sends
//! each call to the group it concerns.
//!
//! ```text
//! begin_run ( begin_pass ( before_block after_block? )* end_pass )* end_run?
//! ```
//!
//! Nothing the engine does wrong is fatal: the pass computes, and `end_pass` says what was wrong.
use crate::error::{Error, Result, bail};
use crate::group::{Group, Setting};
use crate::history::{MAX_TENSORS, Rows};
use crate::log::{self, Level};
use crate::ops::memory::Memory;
use crate::ops::{Ops, Shape, Tensor, View};
use crate::preset::Policy;
use crate::rule::{Action, Pass, Reason};
use crate::scope::{Base, Scope};
use crate::stats::{Observed, Stats, percentiles};
use crate::trace::Record;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

pub const MAX_BRANCHES: usize = 8;

/// Instead of a block number: the whole evaluation.
pub const MODEL: u32 = u32::MAX;

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
    pub n_branches: usize,
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
    /// Each branch's tensors with their ids, if memory is to be taken now.
    pub shapes: Option<Vec<Vec<(u32, Shape)>>>,
    pub stream: *mut c_void,
}

/// One evaluation of the model, as the engine announces it.
pub struct PassInfo {
    pub step: u32,
    pub branches: Vec<usize>,
    pub flags: u32,
    pub timestep: f32,
    pub stream: *mut c_void,
}

/// The tensors of one call.
#[derive(Clone, Copy)]
pub struct Given {
    pub tensors: [Option<Tensor>; MAX_TENSORS],
    pub n: usize,
}

pub struct Cache<O: Ops> {
    ops: O,
    memory: Arc<Memory>,
    engine: Engine,
    setting: Setting,
    groups: Vec<Group<O>>,
    run: Option<OpenRun>,
    pass: Option<OpenPass>,
    observed: Arc<Mutex<Observed>>,
}

struct OpenRun {
    n_steps: Option<u32>,
    first_step: u32,
    end_step: Option<u32>,
    timesteps: Vec<f32>,
    /// Step last evaluated of each branch.
    last: [Option<u32>; MAX_BRANCHES],
    /// The run computes, because it could not get its memory.
    failed: Option<Error>,
}

struct OpenPass {
    step: u32,
    timestep: Option<f32>,
    stream: *mut c_void,
    members: Vec<usize>,
    /// Step of the run that each branch evaluated before.
    before: [Option<u32>; MAX_BRANCHES],
    error: Option<Error>,
    discard: Option<String>,
    /// Block last asked about.
    asked: Option<u32>,
}

// The streams are only handed on.
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
        }
    }
}

impl OpenPass {
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
        policies: Vec<Policy>,
        share: bool,
        observed: Arc<Mutex<Observed>>,
    ) -> Self {
        let setting = engine.setting(share);
        let groups = policies.into_iter().map(|policy| Group::new(policy, &setting)).collect();
        Self { ops, memory, engine, setting, groups, run: None, pass: None, observed }
    }

    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    // ---- runs ----

    /// Forgets everything but the memory, whatever was going on.
    pub fn begin_run(&mut self, run: Run) -> Result<()> {
        self.end_run();
        self.memory.set_stream(run.stream);
        self.groups.iter_mut().for_each(Group::clear);
        let reserved = run.shapes.as_ref().map_or(Ok(()), |shapes| self.reserve(shapes));
        self.run = Some(OpenRun {
            n_steps: run.n_steps,
            first_step: run.first_step,
            end_step: run.end_step,
            timesteps: run.timesteps,
            last: [None; MAX_BRANCHES],
            failed: reserved.clone().err(),
        });
        let threshold = self.groups.iter().find_map(|group| group.policy().threshold());
        {
            let mut observed = self.observed();
            *observed = Observed::default();
            observed.stats.threshold = threshold;
            observed.stats.first_error = reserved.clone().err();
            observed.stats.errors = u64::from(reserved.is_err());
        }
        self.refresh_memory();
        if let Err(error) = &reserved {
            log::log(Level::Error, &self.engine.label, || format!("begin_run: {error}"));
        }
        reserved
    }

    fn reserve(&mut self, shapes: &[Vec<(u32, Shape)>]) -> Result<()> {
        let plain: Vec<Vec<_>> =
            shapes.iter().map(|s| s.iter().map(|(_, shape)| *shape).collect()).collect();
        let needed =
            |group: &Group<O>| Group::<O>::bytes_needed(group.policy(), &self.setting, &plain);
        let needed: u64 = self.groups.iter().map(needed).sum::<Result<_>>()?;
        let budget = self.memory.budget();
        if needed > budget {
            self.groups.iter_mut().for_each(Group::free);
            bail!(Memory, "memory_budget is {budget} bytes, this run needs {needed}");
        }
        // What an earlier run of other shapes left behind must not count against this one.
        if self.memory.held() != needed {
            self.groups.iter_mut().for_each(Group::free);
        }
        let kept = self.memory.held() > 0;
        match self.reserve_groups(shapes) {
            Err(_) if kept => self.reserve_groups(shapes),
            reserved => reserved,
        }
    }

    /// Takes all or nothing.
    fn reserve_groups(&mut self, shapes: &[Vec<(u32, Shape)>]) -> Result<()> {
        let (ops, setting) = (&mut self.ops, &self.setting);
        let reserved =
            self.groups.iter_mut().try_for_each(|group| group.reserve(ops, setting, shapes));
        reserved.inspect_err(|_| self.groups.iter_mut().for_each(Group::free))
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
        let observed = self.observed().clone();
        let Stats { passes, passes_skipped, passes_skippable, threshold, .. } = observed.stats;
        let label = &self.engine.label;
        if passes == 0 || self.groups.is_empty() {
            return;
        }
        log::log(Level::Info, label, || {
            let [p5, p50, p95] = percentiles(&observed.changes);
            let change = threshold.map_or(String::new(), |threshold| {
                format!("; change p5 {p5:.4}, p50 {p50:.4}, p95 {p95:.4}, threshold {threshold}")
            });
            format!("{passes} passes, {passes_skipped} skipped{change}")
        });
        if passes_skipped == 0 {
            log::log(Level::Warn, label, || {
                let [p5, ..] = percentiles(&observed.changes);
                let hint = match threshold.filter(|_| p5.is_finite()) {
                    Some(t) => format!(": the change was rarely below {p5:.4}, threshold is {t}"),
                    None => observed
                        .stats
                        .first_error
                        .map_or(": the rules never allowed it".to_owned(), |error| {
                            format!(": {error}")
                        }),
                };
                format!("nothing was skipped in {passes} passes{hint}")
            });
        } else if let Some(t) = threshold.filter(|_| passes_skipped == passes_skippable) {
            log::log(Level::Warn, label, || {
                let [.., p95] = percentiles(&observed.changes);
                format!(
                    "everything that could be skipped was, {passes_skipped} of {passes} passes: \
                     threshold is {t}, 95 % of the changes were up to {p95:.4}"
                )
            });
        }
    }

    /// Gives all kept memory back; the branches start again.
    pub fn trim(&mut self, stream: *mut c_void) -> Result<()> {
        if self.pass.is_some() {
            bail!(State, "trim inside a pass: end_pass comes first");
        }
        self.memory.set_stream(stream);
        self.groups.iter_mut().for_each(Group::free);
        self.refresh_memory();
        Ok(())
    }

    fn refresh_memory(&self) {
        let mut observed = self.observed();
        observed.stats.bytes_held = self.memory.held();
        observed.stats.bytes_peak = self.memory.peak();
        observed.stats.allocations = self.memory.allocations();
    }

    // ---- passes ----

    /// Opens a pass, also after an error: it then computes everything.
    pub fn begin_pass(&mut self, info: Result<PassInfo>) -> Result<()> {
        let nested = self.pass.is_some();
        self.cancel_pass();
        let mut pass = OpenPass {
            step: 0,
            timestep: None,
            stream: std::ptr::null_mut(),
            members: Vec::new(),
            before: [None; MAX_BRANCHES],
            error: None,
            discard: None,
            asked: None,
        };
        let begun = info.and_then(|info| {
            pass.stream = info.stream;
            pass.step = info.step;
            let checked = self.check_pass(&info);
            if checked.is_err() && info.flags & flag::FORGET != 0 {
                // The weights have changed all the same.
                let n = self.engine.n_branches;
                self.groups.iter_mut().for_each(|group| (0..n).for_each(|b| group.forget(b)));
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
        if pass.error.is_some() {
            self.groups.iter_mut().for_each(|group| group.veto(Reason::Error));
        }
        let result = pass.error.clone().map_or(Ok(()), Err);
        self.pass = Some(pass);
        result
    }

    fn check_pass(&self, info: &PassInfo) -> Result<()> {
        let PassInfo { step, branches, flags, timestep, .. } = info;
        let Some(run) = &self.run else {
            bail!(State, "begin_pass before begin_run");
        };
        let (n, stacked) = (self.engine.n_branches, self.engine.max_stacked);
        if branches.is_empty() || branches.len() > stacked {
            bail!(
                Arg,
                "pass->n_branches is {}, max_stacked of the engine allows 1 to {stacked}",
                branches.len()
            );
        }
        for (k, branch) in branches.iter().enumerate() {
            if *branch >= n {
                bail!(Arg, "pass->branches[{k}] is {branch}, allowed is below n_branches, {n}");
            }
            if branches[..k].contains(branch) {
                bail!(Arg, "pass->branches names branch {branch} twice");
            }
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

    fn open_groups(&mut self, info: PassInfo, pass: &mut OpenPass) -> Result<()> {
        let Some(run) = &mut self.run else { return Ok(()) };
        self.memory.set_stream(info.stream);
        let timestep = (info.flags & flag::TIMESTEP != 0).then_some(info.timestep);
        let about = run.pass(info.step, info.flags, timestep);
        (pass.timestep, pass.before) = (about.timestep, run.last);
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
        let failed = run.failed.clone().map_or(Ok(()), Err);
        for group in &mut self.groups {
            if info.flags & flag::FORGET != 0 {
                info.branches.iter().for_each(|branch| group.forget(*branch));
            }
            group.begin(about, &info.branches, info.flags & flag::COMPUTE != 0);
            if failed.is_err() {
                group.veto(Reason::Memory);
            }
        }
        pass.members = info.branches;
        order.and(failed)
    }

    /// `read` gives the tensors of the call; it is asked only where they matter.
    pub fn before_block(
        &mut self,
        unit: u32,
        read: impl FnOnce() -> Result<(Given, Option<Given>)>,
    ) -> (Action, Result<()>) {
        let Some(mut pass) = self.pass.take() else {
            let text = format!("before_block({unit}) outside begin_pass and end_pass");
            return (Action::Compute, Err(Error::State(text)));
        };
        let (action, result) = match self.group_of(unit) {
            Some(index) if unit == MODEL => self.enter(index, &pass, unit, read),
            Some(index) => self.before_stack_block(index, &mut pass, unit, read),
            None => (Action::Compute, Ok(())),
        };
        let result = self.noted(&mut pass, result);
        self.pass = Some(pass);
        (action, result)
    }

    fn before_stack_block(
        &mut self,
        index: usize,
        pass: &mut OpenPass,
        block: u32,
        read: impl FnOnce() -> Result<(Given, Option<Given>)>,
    ) -> (Action, Result<()>) {
        let Some((front, end)) = self.span(index) else {
            return (Action::Compute, Ok(()));
        };
        let filled = self.groups[index].is_filled();
        let n_blocks = self.engine.n_blocks;
        let last = pass.asked;
        let legal = if block >= n_blocks {
            Err(Error::Arg(format!("block is {block}, allowed is below n_blocks, {n_blocks}")))
        } else if last.is_some_and(|last| block <= last) {
            let last = last.unwrap_or_default();
            Err(Error::State(format!("before_block({block}) after before_block({last})")))
        } else {
            pass.asked = Some(block);
            Ok(())
        };
        if let Err(error) = legal {
            // Where the result of the span is in place, nothing may be computed on top of it.
            let inside = (front..end).contains(&block)
                || (block >= n_blocks && last.is_some_and(|last| last + 1 < end));
            let skip = filled && inside;
            return (if skip { Action::Skip } else { Action::Compute }, Err(error));
        }
        if block >= end {
            return (Action::Compute, self.leave_late(index, pass, read));
        }
        if block >= front && !self.groups[index].is_reached() {
            return self.enter(index, pass, block, read);
        }
        if block >= front {
            return (if filled { Action::Skip } else { Action::Compute }, Ok(()));
        }
        let result = match block {
            0 => read().and_then(|(input, out)| {
                let stacked = pass.members.len();
                let input = rows(&input, stacked)?;
                let out = out.as_ref().map_or(Ok(input.clone()), |out| rows(out, stacked))?;
                check_out(&input, &out, false)?;
                self.groups[index].input(&mut self.ops, &input)
            }),
            _ => Ok(()),
        };
        (Action::Compute, result)
    }

    /// A back block is reached. Unless `after_block` of the last block before them showed what left
    /// it, this is it.
    fn leave_late(
        &mut self,
        index: usize,
        pass: &OpenPass,
        read: impl FnOnce() -> Result<(Given, Option<Given>)>,
    ) -> Result<()> {
        let group = &mut self.groups[index];
        if !group.is_open() {
            return Ok(());
        }
        let rows = rows(&read()?.0, pass.members.len())?;
        group.leave(&mut self.ops, &rows)
    }

    /// The part that may be skipped begins here.
    fn enter(
        &mut self,
        index: usize,
        pass: &OpenPass,
        unit: u32,
        read: impl FnOnce() -> Result<(Given, Option<Given>)>,
    ) -> (Action, Result<()>) {
        let group = &mut self.groups[index];
        if group.is_reached() {
            let text = "before_block(DC_MODEL) a second time in one pass".to_owned();
            let action = if group.is_filled() { Action::Skip } else { Action::Compute };
            return (action, Err(Error::State(text)));
        }
        let residual = group.policy().keep.base == Base::Residual;
        let given = read().and_then(|(input, out)| {
            let stacked = pass.members.len();
            let input_rows = rows(&input, stacked)?;
            let out_rows = out.as_ref().map_or(Ok(input_rows.clone()), |out| rows(out, stacked))?;
            check_out(&input_rows, &out_rows, residual)?;
            Ok((input_rows, out_rows))
        });
        let mut reduce = reducer(&self.engine, pass.stream);
        let mut reduce = reduce.as_mut().map(|r| r as _);
        let entered = given.and_then(|(input, out)| {
            // Unless `after_block` of the last front block showed what left it, this is it.
            group.front(&mut self.ops, &input)?;
            group.enter(&mut self.ops, unit, &input, &out, reduce.take())
        });
        match entered {
            Ok(action) => (action, Ok(())),
            Err(error) => {
                group.veto(reason_of(&error));
                group.pass_by();
                // Whatever failed here, the other ranks wait for this one's vote.
                let voted = group.settle(&mut self.ops, reduce).map(drop);
                (Action::Compute, Err::<(), _>(error).and(voted))
            }
        }
    }

    pub fn after_block(&mut self, unit: u32, read: impl FnOnce() -> Result<Given>) -> Result<()> {
        let Some(mut pass) = self.pass.take() else {
            bail!(State, "after_block({unit}) outside begin_pass and end_pass");
        };
        let result = match self.group_of(unit) {
            Some(index) => self.after(index, &mut pass, unit, read),
            None => Ok(()),
        };
        let result = self.noted(&mut pass, result);
        self.pass = Some(pass);
        result
    }

    fn after(
        &mut self,
        index: usize,
        pass: &mut OpenPass,
        unit: u32,
        read: impl FnOnce() -> Result<Given>,
    ) -> Result<()> {
        let (front, end) = self.span(index).unwrap_or((unit, unit));
        let group = &mut self.groups[index];
        let model = unit == MODEL;
        if !model && unit >= self.engine.n_blocks {
            let n = self.engine.n_blocks;
            bail!(Arg, "block is {unit}, allowed is below n_blocks, {n}");
        }
        if group.is_filled() && (model || (front..end).contains(&unit)) {
            let text = format!("block {unit} was answered SKIP and ran: its result counts twice");
            pass.discard.get_or_insert(text.clone());
            bail!(Discard, "{text}");
        }
        let leaves = model || unit + 1 == end;
        if leaves && group.is_open() {
            let rows = rows(&read()?, pass.members.len())?;
            group.leave(&mut self.ops, &rows)
        } else if (model || (front..end).contains(&unit)) && !group.is_reached() {
            group.pass_by();
            bail!(
                State,
                "after_block({unit}) before before_block({})",
                if model { unit } else { front }
            )
        } else if !model && unit + 1 == front {
            let rows = rows(&read()?, pass.members.len())?;
            group.front(&mut self.ops, &rows)
        } else {
            Ok(())
        }
    }

    /// Closes the pass. An error means that the cache did not work and the output is right, unless
    /// it is [`Error::Discard`].
    pub fn end_pass(&mut self) -> Result<()> {
        let Some(mut pass) = self.pass.take() else {
            bail!(State, "end_pass without begin_pass");
        };
        let mut skipped = false;
        let mut skippable = false;
        let mut records = Vec::new();
        for index in 0..self.groups.len() {
            let group = &mut self.groups[index];
            if pass.error.is_none() {
                if !group.is_reached() {
                    let unit = unit_of(group.policy().scope);
                    pass.note(Error::State(format!(
                        "the pass ended before before_block({}) was called",
                        name_of(unit)
                    )));
                    group.veto(Reason::Error);
                } else if group.is_open() {
                    let unit = group.policy().scope;
                    pass.note(Error::State(format!(
                        "the pass ended before after_block({}) was called: nothing was learned",
                        last_of(unit, self.engine.n_blocks)
                    )));
                }
            }
            let filled = group.is_filled();
            let mut reduce = reducer(&self.engine, pass.stream);
            let reduce = reduce.as_mut().map(|r| r as _);
            let discarded = pass.discard.is_some();
            let (decision, settled) = group.end(&mut self.ops, discarded, reduce);
            if let Err(error) = settled {
                pass.note(error);
            }
            skipped |= filled && !discarded;
            let Some(decision) = decision else { continue };
            let forced = [Reason::WarmUp, Reason::Last, Reason::Engine, Reason::NoHistory];
            skippable |= filled || !forced.contains(&decision.reason);
            for member in &pass.members {
                let policy = group.policy();
                records.push(Record {
                    step: pass.step,
                    branch: *member as u32,
                    unit: unit_of(policy.scope),
                    action: decision.action,
                    reason: decision.reason,
                    timestep: pass.timestep.unwrap_or(f32::NAN),
                    change: decision.metric.unwrap_or(f64::NAN),
                    accumulated: group
                        .accumulated(*member)
                        .filter(|_| decision.metric.is_some())
                        .unwrap_or(f64::NAN),
                    threshold: policy.threshold().unwrap_or(f64::NAN),
                });
            }
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
        self.count_pass(&result, skipped, skippable, &records);
        result
    }

    fn count_pass(&self, result: &Result<()>, skipped: bool, skippable: bool, new: &[Record]) {
        let n_blocks = u64::from(self.engine.n_blocks);
        let span = self.groups.first().map_or(0, |group| match group.policy().scope {
            Scope::Stack { front, back } => n_blocks - u64::from(front) - u64::from(back),
            Scope::Model => n_blocks,
        });
        let left_out = if skipped { span } else { 0 };
        let mut observed = self.observed();
        let stats = &mut observed.stats;
        stats.passes += 1;
        stats.passes_skipped += u64::from(skipped);
        stats.passes_skippable += u64::from(skippable);
        stats.blocks_skipped += left_out;
        stats.blocks_computed += n_blocks - left_out;
        if let Err(error) = result {
            stats.errors += 1;
            stats.discarded += u64::from(matches!(error, Error::Discard(_)));
            stats.first_error.get_or_insert(error.clone());
        }
        stats.bytes_held = self.memory.held();
        stats.bytes_peak = self.memory.peak();
        stats.allocations = self.memory.allocations();
        if let Some(record) = new.first() {
            let measured = record.accumulated.is_finite();
            observed.stats.not_finite += u64::from(measured && !record.change.is_finite());
            if record.change.is_finite() {
                observed.changes.push(record.change);
            }
        }
        new.iter().for_each(|record| observed.trace.push(*record));
    }

    /// Drops the open pass; the rules hear nothing of it.
    pub fn cancel_pass(&mut self) {
        if self.pass.take().is_some() {
            self.groups.iter_mut().for_each(Group::cancel);
        }
    }

    /// The open pass must not be used: something broke inside a call.
    pub fn spoil_pass(&mut self, error: Error) {
        self.groups.iter_mut().for_each(Group::cancel);
        self.groups.clear();
        let observed = &mut self.observed().stats;
        observed.errors += 1;
        observed.first_error.get_or_insert(error);
    }

    /// Is the result of the skipped part in place? Then this is the part.
    pub fn filled_span(&self) -> Option<(u32, u32)> {
        self.pass.as_ref()?;
        let index = self.groups.iter().position(Group::is_filled)?;
        Some(self.span(index).unwrap_or((MODEL, MODEL)))
    }

    // ---- steering ----

    /// Settles the open pass before the part that may be skipped.
    /// `None` while the rules have nothing to decide from.
    pub fn decide(&mut self, wish: Option<Action>) -> Result<Option<Action>> {
        let Some(pass) = &self.pass else {
            bail!(State, "decide outside begin_pass and end_pass");
        };
        let mut reduce = reducer(&self.engine, pass.stream);
        let reduce = reduce.as_mut().map(|r| r as _);
        let Some(group) = self.groups.first_mut() else {
            return Ok(Some(Action::Compute));
        };
        let settled = match wish {
            None if group.awaits_front() => return Ok(None),
            None => group.settle(&mut self.ops, reduce),
            Some(wish) => group.overrule(&mut self.ops, wish, reduce),
        };
        settled.map(Some).or_else(|error| self.fail(error))
    }

    /// The open pass computes, and its end will say why.
    pub fn fail<T>(&mut self, error: Error) -> Result<T> {
        if let Some(mut pass) = self.pass.take() {
            let _ = self.noted(&mut pass, Err(error.clone()));
            self.pass = Some(pass);
        }
        Err(error)
    }

    /// What `unit` of the open pass, or of a coming one, will be answered, if that is certain.
    pub fn peek(&mut self, info: Option<PassInfo>, unit: u32) -> Result<Option<Action>> {
        if unit != MODEL && unit >= self.engine.n_blocks {
            let n = self.engine.n_blocks;
            bail!(Arg, "unit is {unit}, allowed is a block below n_blocks, {n}, or DC_MODEL");
        }
        let Some(run) = &self.run else {
            bail!(State, "peek before begin_run");
        };
        if let Some(info) = &info {
            self.check_pass(info)?;
        }
        let Some(index) = self.group_of(unit) else {
            return Ok(Some(Action::Compute));
        };
        if let Some((front, end)) = self.span(index)
            && !(front..end).contains(&unit)
        {
            return Ok(Some(Action::Compute));
        }
        let group = &mut self.groups[index];
        let Some(info) = info else {
            if self.pass.is_none() {
                bail!(State, "peek at the open pass, but none is open");
            }
            return Ok(group.peek_open(&mut self.ops));
        };
        if run.failed.is_some() {
            return Ok(Some(Action::Compute));
        }
        let timestep = (info.flags & flag::TIMESTEP != 0).then_some(info.timestep);
        let pass = run.pass(info.step, info.flags, timestep);
        let next = info
            .branches
            .iter()
            .map(|b| run.last[*b].map_or(run.first_step, |s| s.saturating_add(1)));
        let next = next.max().unwrap_or(run.first_step);
        if info.step < next {
            bail!(State, "step {} has been evaluated; the next one is {next}", info.step);
        }
        if info.flags & (flag::FORGET | flag::COMPUTE) != 0 {
            return Ok(Some(Action::Compute));
        }
        let at = |step| run.pass(step, 0, None);
        Ok(group.peek(&mut self.ops, pass, &info.branches, next, at))
    }

    // ---- helpers ----

    /// The group that answers for a block or for the model.
    fn group_of(&self, unit: u32) -> Option<usize> {
        let model = unit == MODEL;
        self.groups.iter().position(|group| (group.policy().scope == Scope::Model) == model)
    }

    /// The blocks a group may leave out; `None` if it is for the whole model.
    fn span(&self, index: usize) -> Option<(u32, u32)> {
        match self.groups[index].policy().scope {
            Scope::Stack { front, back } => Some((front, self.engine.n_blocks - back)),
            Scope::Model => None,
        }
    }

    /// Keeps an error for `end_pass` and makes the pass compute.
    fn noted(&mut self, pass: &mut OpenPass, result: Result<()>) -> Result<()> {
        if let Err(error) = &result {
            let reason = reason_of(error);
            self.groups.iter_mut().for_each(|group| group.veto(reason));
            let label = &self.engine.label;
            if pass.error.is_none() {
                log::log(Level::Debug, label, || format!("step {}: {error}", pass.step));
            }
            pass.note(error.clone());
        }
        result
    }
}

impl<O: Ops> Drop for Cache<O> {
    fn drop(&mut self) {
        self.end_run();
        self.memory.set_stream(std::ptr::null_mut());
    }
}

impl Engine {
    pub fn setting(&self, share: bool) -> Setting {
        Setting {
            n_branches: self.n_branches,
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
        _ => Reason::Error,
    }
}

fn unit_of(scope: Scope) -> u32 {
    match scope {
        Scope::Stack { front, .. } => front,
        Scope::Model => MODEL,
    }
}

fn name_of(unit: u32) -> String {
    if unit == MODEL { "DC_MODEL".to_owned() } else { unit.to_string() }
}

fn last_of(scope: Scope, n_blocks: u32) -> String {
    match scope {
        Scope::Stack { back, .. } => (n_blocks - back - 1).to_string(),
        Scope::Model => name_of(MODEL),
    }
}

/// The engine's agreement between ranks, as a group calls it.
fn reducer(
    engine: &Engine,
    stream: *mut c_void,
) -> Option<impl FnMut(&mut [f64]) -> Result<()> + use<>> {
    let Reducer { reduce, user } = engine.reduce?;
    Some(move |sums: &mut [f64]| {
        // The engine promised a function that takes these arguments.
        match unsafe { reduce(user, sums.as_mut_ptr(), sums.len(), stream) } {
            0 => Ok(()),
            code => Err(Error::Device(format!("reduce returned {code}"))),
        }
    })
}

/// Each branch's rows of the given tensors.
fn rows(given: &Given, stacked: usize) -> Result<Vec<Rows>> {
    let stacked = stacked.max(1);
    for (k, tensor) in given.tensors[..given.n].iter().flatten().enumerate() {
        if tensor.height() % stacked != 0 {
            let height = tensor.height();
            bail!(
                Arg,
                "tensor {k}: shape[0] is {height}, which {stacked} stacked branches do not divide"
            );
        }
    }
    let member = |index| {
        let mut rows = Rows::NONE;
        for tensor in given.tensors[..given.n].iter().flatten() {
            // The engine's tensors are valid while the call lasts.
            rows.push(unsafe { tensor.rows(index, stacked) }, tensor.id);
        }
        rows
    };
    Ok((0..stacked).map(member).collect())
}

/// May `out` receive what stands in for the blocks between `input` and it?
fn check_out(input: &[Rows], out: &[Rows], residual: bool) -> Result<()> {
    let views = |rows: &[Rows]| -> Vec<View> {
        rows.iter().flat_map(|rows| rows.iter().map(|(view, _)| view).collect::<Vec<_>>()).collect()
    };
    for (input, out) in input.iter().zip(out) {
        for (k, (written, id)) in out.iter().enumerate() {
            if !written.is_injective() {
                bail!(Arg, "out tensor {k} has elements that share a place (a stride of 0?)");
            }
            let own = input.find(k, id);
            if residual && own.is_none() {
                bail!(Arg, "out tensor {k} (id {id}) has no counterpart among the input tensors");
            }
            if let Some(own) = own.filter(|own| residual && own.shape() != written.shape()) {
                let (was, is) = (own.shape(), written.shape());
                bail!(
                    Shape,
                    "tensor {k}: in is {was} and out is {is}, a residual needs them equal"
                );
            }
        }
    }
    // Stacked branches are written one after the other, so none may lie over another's rows.
    let (read, written) = (views(input), views(out));
    for (k, out) in written.iter().enumerate() {
        let n = out_tensor(k, written.len(), input.len());
        if let Some(j) = read.iter().position(|input| out.overlaps(input) && !out.is_same(input)) {
            let j = out_tensor(j, read.len(), input.len());
            bail!(Arg, "out tensor {n} overlaps input tensor {j} in part");
        }
        if let Some(j) = written[..k].iter().position(|other| out.overlaps(other)) {
            let j = out_tensor(j, written.len(), input.len());
            bail!(Arg, "out tensor {n} overlaps out tensor {j}");
        }
        // The same place is one tensor's, in and out.
        let same = read.iter().position(|input| out.is_same(input));
        if same.is_some_and(|j| read.len() == written.len() && j != k) {
            bail!(Arg, "out tensor {n} lies where another input tensor is");
        }
    }
    Ok(())
}

/// Position in the engine's array of one of `n` views of `members` branches.
fn out_tensor(view: usize, n: usize, members: usize) -> usize {
    view % (n / members.max(1)).max(1)
}
