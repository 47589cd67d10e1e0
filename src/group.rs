//! One policy at work: it decides once a pass, for all branches stacked in it, and fills or keeps
//! the value of its site.
//!
//! ```text
//! begin  (input front)?  settle?  enter  leave?  end
//! ```
//!
//! Rules hear of a pass in `end` only, so a cancelled pass leaves nothing behind but emptied
//! histories.
use crate::error::{Error, Result, bail};
use crate::gauge::{Gauge, Pool};
use crate::history::{History, Rows, kept_dtype};
use crate::ops::{Dtype, Ops, Shape};
use crate::preset::Policy;
use crate::rule::{self, Action, Change, Pass, Probe, Reason, Rule, Verdict};
use crate::scope::Base;

pub struct Group<O: Ops> {
    policy: Policy,
    share: bool,
    branches: Vec<Branch<O>>,
    gauge: Option<Gauge<O>>,
    pool: Pool<O>,
    /// Step whose first pass decided for the branches that follow in it.
    leader: Option<Leader>,
    turn: Option<Turn<O>>,
    /// All memory of this run has been taken in advance.
    planned: bool,
}

#[derive(Clone, Copy)]
struct Leader {
    step: u32,
    action: Action,
    /// Step of its newest value: what it skipped by was measured against that pass.
    newest: Option<f64>,
}

struct Branch<O: Ops> {
    rules: Vec<Box<dyn Rule>>,
    history: History<O>,
    /// Step of its last pass.
    evaluated: Option<u32>,
    /// In lagged mode: the measurement of a pass whose first branch this is.
    last: Option<Last<O>>,
}

struct Last<O: Ops> {
    step: u32,
    members: Vec<usize>,
    measured: Measured<O>,
}

enum Measured<O: Ops> {
    Queued(O::Pending),
    Known(Change),
}

/// The open pass.
struct Turn<O: Ops> {
    pass: Pass,
    /// Branches stacked in the pass, in order.
    members: Vec<usize>,
    /// The engine wants this pass computed.
    compute: bool,
    wish: Option<Action>,
    /// Something went wrong here: compute.
    veto: Option<Reason>,
    /// ... namely that the tensors have new shapes, with which the branch starts again.
    restart: bool,
    measured: Option<Measured<O>>,
    decision: Option<Decision>,
    site: Site<O>,
    voted: bool,
}

enum Site<O: Ops> {
    NotReached,
    Filled,
    /// Its value is being computed; with the staged inputs of each member.
    Open(Vec<Vec<O::Buffer>>),
    Left,
}

#[derive(Clone, Copy, Debug)]
pub struct Decision {
    pub action: Action,
    pub reason: Reason,
    /// What the rule judged by, if anything was measured.
    pub metric: Option<f64>,
}

/// Adds `[difference, value, reference, count, not finite, veto]` over the ranks that must agree.
pub type Reduce<'a> = &'a mut dyn FnMut(&mut [f64]) -> Result<()>;

/// Facts of the engine that a group depends on.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub n_branches: usize,
    pub max_stacked: usize,
    pub measure: u32,
    pub keeps_input: bool,
    pub share: bool,
}

impl<O: Ops> Group<O> {
    pub fn new(policy: Policy, setting: &Setting) -> Self {
        let Setting { measure, share, .. } = *setting;
        let keeps_input = setting.keeps_input && policy.front() == 1;
        let gauge = policy.probe().map(|Probe::FrontResidual { rounded }| {
            Gauge::new(measure, rounded, keeps_input, share)
        });
        let branch = || Branch {
            rules: policy.rules.clone(),
            history: History::new(policy.keep, policy.estimator.capacity()),
            evaluated: None,
            last: None,
        };
        let branches = (0..setting.n_branches).map(|_| branch()).collect();
        Self {
            branches,
            gauge,
            pool: Pool::default(),
            leader: None,
            turn: None,
            planned: false,
            share,
            policy,
        }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    // ---- memory ----

    /// Shapes of every tensor kept, given each branch's tensors: the histories, and the pool.
    fn plan(policy: &Policy, setting: &Setting, shapes: &[Vec<Shape>]) -> (Vec<Shape>, Vec<Shape>) {
        let keep = &policy.keep;
        let kept = |shapes: &Vec<Shape>| {
            let filled = shapes.iter().enumerate().filter(|(index, _)| keep.fills(*index));
            let kept = filled.map(|(_, s)| s.with_dtype(kept_dtype(keep, s.dtype)));
            kept.collect::<Vec<_>>().repeat(policy.estimator.capacity())
        };
        let slots = shapes.iter().flat_map(kept).collect();

        let probe = policy.probe().is_some();
        let measure = if probe { setting.measure } else { 0 };
        let measured = shapes.iter().map(|s| Gauge::<O>::measured(measure, s).collect());
        let measured: Vec<Vec<_>> = measured.collect();
        let staged =
            shapes.iter().map(|s| History::<O>::staging(keep, s.iter().copied().enumerate()));
        let staged: Vec<Vec<_>> = staged.collect();
        let copied = if setting.keeps_input && policy.front() == 1 { &[][..] } else { &measured };

        let mut distinct: Vec<_> = measured.iter().chain(&staged).flatten().copied().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let pool = distinct.into_iter().flat_map(|shape| {
            // A reference for each branch, or for the one that decides; and for the branches that
            // one pass may stack what is in flight: first inputs, then staged values.
            let together = if setting.share { 1 } else { setting.max_stacked };
            let references = if setting.share { 1 } else { setting.n_branches };
            let in_flight = most(&shape, copied, together);
            let waiting = most(&shape, &staged, setting.max_stacked);
            let n = most(&shape, &measured, references) + in_flight.max(waiting);
            std::iter::repeat_n(shape, n)
        });
        (slots, pool.collect())
    }

    /// Bytes asked of the allocator, given each branch's tensors.
    pub fn bytes_needed(policy: &Policy, setting: &Setting, shapes: &[Vec<Shape>]) -> Result<u64> {
        let (slots, pool) = Self::plan(policy, setting, shapes);
        let mut bytes = slots.iter().chain(&pool).map(|shape| shape.bytes() as u64);
        let sum = bytes.try_fold(0u64, |sum, bytes| sum.checked_add(bytes));
        let sum = sum.filter(|sum| *sum <= isize::MAX as u64);
        sum.ok_or_else(|| Error::Arg("shapes need more bytes than an address can count".to_owned()))
    }

    /// Takes all memory that will ever be needed for these tensors.
    pub fn reserve(
        &mut self,
        ops: &mut O,
        setting: &Setting,
        shapes: &[Vec<(u32, Shape)>],
    ) -> Result<()> {
        let plain: Vec<Vec<_>> =
            shapes.iter().map(|s| s.iter().map(|(_, shape)| *shape).collect()).collect();
        let (_, pool) = Self::plan(&self.policy, setting, &plain);
        self.pool.reserve(ops, &pool)?;
        for (branch, shapes) in self.branches.iter_mut().zip(shapes) {
            let shapes = shapes.iter().enumerate().map(|(index, (id, s))| (index, *id, *s));
            branch.history.reserve(ops, shapes)?;
        }
        self.planned = true;
        Ok(())
    }

    /// Gives all memory back. What the rules have counted stands: all ranks count alike.
    pub fn free(&mut self) {
        self.cancel();
        (0..self.branches.len()).for_each(|branch| self.forget(branch));
        for branch in &mut self.branches {
            branch.history.free();
        }
        self.pool.free();
        self.planned = false;
    }

    /// Gives back what is of no use in this run; true if there was any.
    fn reclaim(&mut self) -> bool {
        let mut any = self.pool.free();
        for branch in self.branches.iter_mut().filter(|branch| branch.history.is_empty()) {
            any |= branch.history.free();
        }
        any
    }

    /// Gives back buffers that wait for tensors of an earlier run.
    fn tidy_pool(&mut self) {
        if !self.planned {
            let mut used = self.gauge.as_ref().map_or(Vec::new(), Gauge::shapes);
            used.extend(self.branches.iter().flat_map(|branch| branch.history.shapes()));
            self.pool.keep_only(&used);
        }
    }

    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        self.cancel();
        self.leader = None;
        for branch in &mut self.branches {
            branch.rules = self.policy.rules.clone();
            branch.history.clear();
            (branch.evaluated, branch.last) = (None, None);
        }
        if let Some(gauge) = &mut self.gauge {
            gauge.clear(&mut self.pool);
        }
    }

    /// Forgets what one branch holds.
    pub fn forget(&mut self, branch: usize) {
        self.branches[branch].history.clear();
        self.branches[branch].last = None;
        if let Some(gauge) = &mut self.gauge {
            gauge.forget(branch, &mut self.pool);
        }
    }

    /// One branch's tensors have other shapes from here on: nothing of the old ones is of use.
    fn reshape(&mut self, branch: usize) {
        self.forget(branch);
        self.branches[branch].history.free();
        self.pool.free();
    }

    // ---- one pass ----

    pub fn begin(&mut self, pass: Pass, members: &[usize], compute: bool) {
        self.cancel();
        self.turn = Some(Turn {
            pass,
            members: members.to_vec(),
            compute,
            wish: None,
            veto: None,
            restart: false,
            measured: None,
            decision: None,
            site: Site::NotReached,
            voted: false,
        });
    }

    /// The pass computes because something failed in it; what it shows is not learned from.
    pub fn veto(&mut self, reason: Reason) {
        if let Some(turn) = &mut self.turn {
            turn.veto.get_or_insert(reason);
            turn.restart &= reason == Reason::Shape;
        }
    }

    /// The pass computes because its tensors have other shapes than those before it; it is the
    /// first one of a new start.
    fn restart(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.restart |= turn.veto.is_none();
            turn.veto.get_or_insert(Reason::Shape);
        }
    }

    /// The part that may be skipped was passed by: this pass neither fills it nor learns from it.
    pub fn pass_by(&mut self) {
        self.land();
        if let Some(turn) = &mut self.turn
            && matches!(turn.site, Site::NotReached)
        {
            turn.site = Site::Left;
        }
    }

    pub fn is_filled(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| matches!(turn.site, Site::Filled))
    }

    pub fn is_reached(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| !matches!(turn.site, Site::NotReached))
    }

    pub fn is_open(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| matches!(turn.site, Site::Open(_)))
    }

    /// The action that the first pass of this step chose, if it decides for this one.
    fn led(&self, step: u32) -> Option<Action> {
        self.leader_of(step).map(|leader| leader.action)
    }

    fn leader_of(&self, step: u32) -> Option<Leader> {
        self.leader.filter(|leader| self.share && leader.step == step)
    }

    /// Branches whose rules decide.
    fn deciding<'a>(&self, members: &'a [usize]) -> &'a [usize] {
        if self.share { &members[..1] } else { members }
    }

    /// What the rules say before anything is measured; the same on every rank.
    fn foreseen(&self, turn: &Turn<O>) -> Verdict {
        if turn.compute {
            return Verdict::Compute(Reason::Engine);
        }
        match self.led(turn.pass.step) {
            Some(Action::Compute) => return Verdict::Compute(Reason::Shared),
            Some(Action::Skip) => return Verdict::Skip,
            None => {}
        }
        self.judge(turn, None)
    }

    fn judge(&self, turn: &Turn<O>, metric: Option<f64>) -> Verdict {
        let mut verdict = Verdict::Skip;
        for member in self.deciding(&turn.members) {
            match rule::decide(&self.branches[*member].rules, &turn.pass, metric) {
                veto @ Verdict::Compute(_) => return veto,
                Verdict::Measure => verdict = Verdict::Measure,
                Verdict::Skip => {}
            }
        }
        verdict
    }

    /// What goes into the first block of the model.
    pub fn input(&mut self, ops: &mut O, rows: &[Rows]) -> Result<()> {
        let rows = self.measured_rows(rows);
        let Some(gauge) = self.gauge.as_mut().filter(|_| !rows.is_empty()) else {
            return Ok(());
        };
        let mut result = gauge.input(ops, &mut self.pool, &rows);
        if matches!(result, Err(Error::Memory(_))) && self.reclaim() {
            // What an earlier run had left behind stood in the way of this one.
            let Some(gauge) = &mut self.gauge else { return Ok(()) };
            result = gauge.input(ops, &mut self.pool, &rows);
        }
        let checked = result.and_then(|()| self.gauge.as_ref().map_or(Ok(true), Gauge::check));
        if let Err(Error::Shape(_)) = &checked {
            self.restart();
            rows.iter().for_each(|(branch, _)| self.reshape(*branch));
        }
        checked.map(drop)
    }

    /// What left the front blocks; queues the measurement.
    pub fn front(&mut self, ops: &mut O, rows: &[Rows]) -> Result<()> {
        if self.gauge.as_ref().is_none_or(|gauge| !gauge.has_input() || gauge.is_complete()) {
            return Ok(());
        }
        let Some(turn) = &self.turn else {
            return Ok(());
        };
        let wanted = self.policy.lagged || self.foreseen(turn) == Verdict::Measure;
        let rows = self.measured_rows(rows);
        let Some(gauge) = self.gauge.as_mut().filter(|_| !rows.is_empty()) else {
            return Ok(());
        };
        let pending = gauge.front(ops, &rows, wanted);
        if pending.is_err() {
            gauge.land(&mut self.pool);
        }
        let pending = pending?;
        if let Some(turn) = &mut self.turn {
            turn.measured = pending.map(Measured::Queued);
        }
        Ok(())
    }

    /// The front blocks have been seen from start to end, or need not be.
    pub fn front_is_known(&self) -> bool {
        self.gauge.as_ref().is_none_or(|gauge| !gauge.has_input() || gauge.is_complete())
    }

    /// Rows of the branches whose change decides; none if this pass follows another or has failed.
    fn measured_rows(&self, rows: &[Rows]) -> Vec<(usize, Rows)> {
        let turn = self.turn.as_ref();
        let turn = turn.filter(|turn| turn.learns() && self.led(turn.pass.step).is_none());
        let members = turn.map_or(&[][..], |turn| self.deciding(&turn.members));
        members.iter().copied().zip(rows.iter().copied()).collect()
    }

    /// The rules would have to decide from a measurement that is yet to come.
    pub fn awaits_front(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| {
            turn.decision.is_none()
                && turn.veto.is_none()
                && turn.measured.is_none()
                && !self.policy.lagged
                && self.foreseen(turn) == Verdict::Measure
                && self.gauge.as_ref().is_some_and(|gauge| !gauge.is_complete())
                && self.unusable(&turn.members, turn.pass.step).is_none()
        })
    }

    /// Settles the pass, if it is not settled yet. The only place that waits for a measurement.
    pub fn settle(&mut self, ops: &mut O, reduce: Option<Reduce>) -> Result<Action> {
        let Some(mut turn) = self.turn.take() else {
            return Ok(Action::Compute);
        };
        let mut result = Ok(());
        if turn.decision.is_none() {
            let (decision, error) = self.reach_decision(ops, &mut turn, reduce);
            turn.decision = Some(decision);
            result = error;
        }
        let action = turn.decision.map_or(Action::Compute, |decision| decision.action);
        self.turn = Some(turn);
        result.map(|()| action)
    }

    /// The engine overrules the rules, before the site is reached.
    pub fn overrule(
        &mut self,
        ops: &mut O,
        wish: Action,
        reduce: Option<Reduce>,
    ) -> Result<Action> {
        let Some(turn) = self.turn.as_mut().filter(|turn| matches!(turn.site, Site::NotReached))
        else {
            return self.settle(ops, None);
        };
        turn.wish = Some(wish);
        if let Some(decision) = turn.decision.take() {
            // The ranks have spoken: the engine answers for all of them.
            let metric = decision.metric;
            let vetoed = turn.veto.is_some() && decision.action == Action::Compute;
            let (step, members) = (turn.pass.step, turn.members.clone());
            let able = !vetoed && self.unusable(&members, step).is_none();
            let action = if able { wish } else { Action::Compute };
            let reason = if action == wish { Reason::Engine } else { decision.reason };
            if let Some(turn) = &mut self.turn {
                turn.decision = Some(Decision { action, reason, metric });
            }
        }
        self.settle(ops, reduce)
    }

    /// Why nothing that these branches keep can stand in at this step.
    fn unusable(&self, members: &[usize], step: u32) -> Option<Reason> {
        // Where one branch's change speaks for others, their values must be as new as its own.
        let leader = self
            .leader_of(step)
            .map_or_else(|| self.branches[members[0]].history.newest(), |leader| leader.newest);
        let needed = leader.filter(|_| self.share);
        members.iter().find_map(|member| {
            let Some(newest) = self.branches[*member].history.newest() else {
                return Some(Reason::NoHistory);
            };
            let max_age = self.policy.keep.max_age;
            if needed.is_some_and(|needed| newest < needed) {
                Some(Reason::NoHistory)
            } else if max_age.is_some_and(|max| f64::from(step) - newest > f64::from(max)) {
                Some(Reason::Age)
            } else {
                None
            }
        })
    }

    fn reach_decision(
        &mut self,
        ops: &mut O,
        turn: &mut Turn<O>,
        reduce: Option<Reduce>,
    ) -> (Decision, Result<()>) {
        let foreseen = self.foreseen(turn);
        let of = |action, reason| Decision { action, reason, metric: None };
        if let (Verdict::Compute(reason), None | Some(Action::Compute)) = (foreseen, turn.wish) {
            let reason = turn.veto.unwrap_or(reason);
            return (of(Action::Compute, reason), Ok(()));
        }
        // From here on every rank comes by, with a vote against the skip or without.
        let step = turn.pass.step;
        let unusable = self.unusable(&turn.members, step);
        let wished = turn.wish.filter(|wish| *wish == Action::Compute).map(|_| Reason::Engine);
        let mut veto = turn.veto.or(wished).or(unusable);
        let measures = foreseen == Verdict::Measure && turn.wish.is_none();
        let mut change = None;
        if measures && veto.is_none() {
            change = self.measurement(ops, turn);
            veto = if change.is_none() { Some(Reason::NoHistory) } else { None };
        }
        if let Some(reduce) = reduce.filter(|_| !std::mem::replace(&mut turn.voted, true)) {
            match agree(reduce, change, veto) {
                Ok((agreed, vetoed)) => {
                    change = agreed;
                    veto = veto.or(vetoed.then_some(Reason::Veto));
                }
                Err(error) => return (of(Action::Compute, Reason::Error), Err(error)),
            }
        }
        let metric = change.map(|change| self.policy.metric(change));
        let decision = |action, reason| Decision { action, reason, metric };
        if let Some(reason) = veto {
            return (decision(Action::Compute, reason), Ok(()));
        }
        let settled = match turn.wish {
            Some(wish) => decision(wish, Reason::Engine),
            None if self.led(step).is_some() => decision(Action::Skip, Reason::Shared),
            None => match self.judge(turn, metric) {
                Verdict::Compute(reason) => decision(Action::Compute, reason),
                Verdict::Skip => decision(Action::Skip, Reason::Rule),
                Verdict::Measure => decision(Action::Compute, Reason::NoHistory),
            },
        };
        (settled, Ok(()))
    }

    /// What this pass is judged by: its own measurement, or in lagged mode that of the last pass.
    fn measurement(&mut self, ops: &mut O, turn: &mut Turn<O>) -> Option<Change> {
        if self.policy.lagged {
            return self.last_measurement(ops, &turn.members);
        }
        let (change, measured) = match turn.measured.take()? {
            Measured::Queued(pending) => {
                let change = ops.read(pending);
                (change, Measured::Known(change))
            }
            known @ Measured::Known(change) => (change, known),
        };
        turn.measured = Some(measured);
        Some(change)
    }

    /// The measurement of the pass before, if these branches were in it, and in it together.
    fn last_measurement(&mut self, ops: &mut O, members: &[usize]) -> Option<Change> {
        let last = self.branches[*members.first()?].last.take()?;
        let Last { step, members: with, measured } = last;
        let change = match measured {
            Measured::Queued(pending) => ops.read(pending),
            Measured::Known(change) => change,
        };
        let measured = Measured::Known(change);
        let newest = |member: &usize| self.branches[*member].evaluated == Some(step);
        let valid = with == members && members.iter().all(newest);
        self.branches[members[0]].last = Some(Last { step, members: with, measured });
        valid.then_some(change)
    }

    /// The site is reached: its value is filled in, or room is made for the one to be computed.
    /// `input` and `out` hold each member's rows.
    pub fn enter(
        &mut self,
        ops: &mut O,
        entry: u32,
        input: &[Rows],
        out: &[Rows],
        reduce: Option<Reduce>,
    ) -> Result<Action> {
        let front = self.check_front();
        if front.is_err() {
            self.veto(Reason::Error);
        }
        let fits = self.check_shapes(entry, input, out);
        if fits.is_err() {
            self.restart();
        }
        let settled = self.settle(ops, reduce);
        let Some(mut turn) = self.turn.take() else {
            return Ok(Action::Compute);
        };
        let entered = self.enter_settled(ops, &mut turn, entry, (input, out), &fits);
        self.turn = Some(turn);
        settled.and(front).and(fits).and(entered)
    }

    /// A change can be measured only if the front was seen from its start; unless the engine has
    /// decided without.
    fn check_front(&self) -> Result<()> {
        let decision = self.turn.as_ref().and_then(|turn| turn.decision);
        if decision.is_some_and(|decision| decision.action == Action::Skip) {
            return Ok(());
        }
        let measured = !self.measured_rows(&[Rows::NONE]).is_empty();
        match &self.gauge {
            Some(gauge) if measured && !gauge.has_input() => {
                bail!(State, "before_block(0) was not called: what the front adds is not known")
            }
            _ => Ok(()),
        }
    }

    fn check_shapes(&self, entry: u32, input: &[Rows], out: &[Rows]) -> Result<()> {
        let Some(turn) = &self.turn else {
            return Ok(());
        };
        let shown = match self.policy.keep.base {
            Base::Residual => input,
            Base::Output => out,
        };
        let members = turn.members.iter().zip(shown);
        members.into_iter().try_for_each(|(m, rows)| self.branches[*m].history.check(entry, rows))
    }

    fn enter_settled(
        &mut self,
        ops: &mut O,
        turn: &mut Turn<O>,
        entry: u32,
        (input, out): (&[Rows], &[Rows]),
        fits: &Result<()>,
    ) -> Result<Action> {
        let skip = turn.decision.is_some_and(|decision| decision.action == Action::Skip);
        if skip && fits.is_ok() {
            for ((member, input), out) in turn.members.iter().zip(input).zip(out) {
                let history = &self.branches[*member].history;
                let estimator = &*self.policy.estimator;
                history.estimate(ops, estimator, f64::from(turn.pass.step), input, out);
            }
            turn.site = Site::Filled;
            self.keep_lagged(turn);
            self.land();
            return Ok(Action::Skip);
        }
        if fits.is_err() {
            turn.members.iter().for_each(|member| self.reshape(*member));
        } else if !turn.learns() {
            turn.site = Site::Left;
            self.land();
            return Ok(Action::Compute);
        }
        turn.site = Site::Left;
        match self.open(ops, turn, entry, input) {
            Ok(staged) => turn.site = Site::Open(staged),
            Err(error) => {
                // Some of what is kept may be newer than the rest: none of it is of use.
                turn.veto.get_or_insert(Reason::Memory);
                self.land();
                turn.members.iter().for_each(|member| self.forget(*member));
                self.reclaim();
                return Err(error);
            }
        }
        self.tidy_pool();
        Ok(Action::Compute)
    }

    fn open(
        &mut self,
        ops: &mut O,
        turn: &mut Turn<O>,
        entry: u32,
        input: &[Rows],
    ) -> Result<Vec<Vec<O::Buffer>>> {
        if let Some(gauge) = &mut self.gauge {
            gauge.commit(ops, &mut self.pool)?;
        }
        self.keep_lagged(turn);
        let mut staged = Vec::new();
        for (member, input) in turn.members.iter().zip(input) {
            let shapes = input.iter().map(|(view, _)| view.shape()).enumerate();
            let shapes = History::<O>::staging(&self.policy.keep, shapes);
            let take = |shape| self.pool.take(ops, shape);
            let buffers = shapes.into_iter().map(take).collect::<Result<Vec<_>>>()?;
            self.branches[*member].history.open(ops, entry, input, &buffers)?;
            staged.push(buffers);
        }
        Ok(staged)
    }

    fn keep_lagged(&mut self, turn: &mut Turn<O>) {
        if self.policy.lagged
            && let Some(measured) = turn.measured.take()
        {
            let (step, members) = (turn.pass.step, turn.members.clone());
            self.branches[turn.members[0]].last = Some(Last { step, members, measured });
        }
    }

    /// The site's value has been computed: `out` holds each member's rows.
    pub fn leave(&mut self, ops: &mut O, out: &[Rows]) -> Result<()> {
        let Some(turn) = &mut self.turn else {
            return Ok(());
        };
        let Site::Open(staged) = std::mem::replace(&mut turn.site, Site::Left) else {
            return Ok(());
        };
        let step = f64::from(turn.pass.step);
        let mut result = Ok(());
        for ((member, out), staged) in turn.members.iter().zip(out).zip(&staged) {
            let history = &mut self.branches[*member].history;
            result = result.and(history.close(ops, step, out, staged));
        }
        staged.into_iter().flatten().for_each(|buffer| self.pool.give(buffer));
        if result.is_err() {
            let members = turn.members.clone();
            members.into_iter().for_each(|member| self.reshape(member));
        }
        result
    }

    /// Tells the rules what the pass did, unless its output is thrown away and it is done again.
    pub fn end(
        &mut self,
        ops: &mut O,
        discarded: bool,
        reduce: Option<Reduce>,
    ) -> (Option<Decision>, Result<()>) {
        // A rank that never came to the site still owes the others its vote.
        let settled = match reduce {
            Some(_) => {
                if !self.is_reached() {
                    self.veto(Reason::Error);
                }
                self.settle(ops, reduce).map(drop)
            }
            None => Ok(()),
        };
        let Some(mut turn) = self.turn.take() else {
            return (None, settled);
        };
        let failed = turn.veto.filter(|_| !matches!(turn.site, Site::Filled));
        let unsettled = Decision { action: Action::Compute, reason: Reason::Error, metric: None };
        let mut decision = turn.decision.unwrap_or(unsettled);
        if let Some(reason) = failed {
            (decision.action, decision.reason) = (Action::Compute, reason);
        }
        self.abandon(&mut turn);
        let Decision { action, metric, .. } = decision;
        let step = turn.pass.step;
        for member in turn.members.iter().filter(|_| !discarded) {
            let branch = &mut self.branches[*member];
            branch.evaluated = Some(step);
            branch.rules.iter_mut().for_each(|rule| rule.record(&turn.pass, action, metric));
        }
        if self.led(step).is_none() && !discarded {
            let newest = self.branches[turn.members[0]].history.newest();
            self.leader = Some(Leader { step, action, newest });
        }
        (Some(decision), settled)
    }

    /// Ends the pass without a word to the rules; a value that it computed is forgotten.
    pub fn cancel(&mut self) {
        if let Some(mut turn) = self.turn.take() {
            self.abandon(&mut turn);
            let step = Some(f64::from(turn.pass.step));
            let members = turn.members.into_iter();
            let learned = members.filter(|m| self.branches[*m].history.newest() == step);
            for member in learned.collect::<Vec<_>>() {
                self.forget(member);
            }
        }
    }

    /// A value that was begun and not finished is dropped, and with it what it was to replace.
    fn abandon(&mut self, turn: &mut Turn<O>) {
        self.land();
        if let Site::Open(staged) = std::mem::replace(&mut turn.site, Site::Left) {
            staged.into_iter().flatten().for_each(|buffer| self.pool.give(buffer));
        }
        for member in &turn.members {
            if self.branches[*member].history.is_open() {
                self.forget(*member);
            }
        }
    }

    fn land(&mut self) {
        if let Some(gauge) = &mut self.gauge {
            gauge.land(&mut self.pool);
        }
    }

    /// Sum of the metrics of the current streak of skips of a branch.
    pub fn accumulated(&self, branch: usize) -> Option<f64> {
        self.branches[branch].rules.iter().find_map(|rule| rule.accumulated())
    }

    // ---- foresight ----

    /// The answer of the open pass, as far as it is certain.
    pub fn peek_open(&mut self, ops: &mut O) -> Option<Action> {
        let turn = self.turn.as_ref()?;
        if let Some(decision) = turn.decision {
            return Some(decision.action);
        }
        if turn.veto.is_some() || turn.compute {
            return Some(Action::Compute);
        }
        let (pass, members) = (turn.pass, turn.members.clone());
        self.foresee(ops, pass, &members, None, pass.step, |step| Pass { step, ..pass })
    }

    /// The answer of a coming pass, as far as it is certain. `next` is the first step that can
    /// still be evaluated; `at` gives the passes between it and `pass`.
    pub fn peek(
        &mut self,
        ops: &mut O,
        pass: Pass,
        members: &[usize],
        next: u32,
        at: impl Fn(u32) -> Pass,
    ) -> Option<Action> {
        // What the open pass does comes before.
        let open = self.turn.as_ref().map(|turn| (turn.pass, turn.members.clone()));
        let open = open.map(|(pass, with)| (pass, with, self.peek_open(ops)));
        self.foresee(ops, pass, members, open, next, at)
    }

    /// Plays the rules forward from `next` without touching them.
    fn foresee(
        &mut self,
        ops: &mut O,
        pass: Pass,
        members: &[usize],
        open: Option<(Pass, Vec<usize>, Option<Action>)>,
        next: u32,
        at: impl Fn(u32) -> Pass,
    ) -> Option<Action> {
        match self.led(pass.step) {
            Some(Action::Compute) => return Some(Action::Compute),
            Some(Action::Skip) => {
                let unusable = self.unusable(members, pass.step);
                return Some(if unusable.is_some() { Action::Compute } else { Action::Skip });
            }
            None => {}
        }
        // With `share` it is not known whether this branch will decide or follow.
        let mut known = pass.step - next <= FORESIGHT && !(self.share && self.branches.len() > 1);
        let mut newest: Vec<_> =
            members.iter().map(|member| self.branches[*member].history.newest()).collect();
        let mut rules: Vec<_> = self
            .deciding(members)
            .iter()
            .map(|member| (*member, self.branches[*member].rules.clone()))
            .collect();
        let waits = open.is_some();
        if let Some((pass, with, action)) = open {
            known &= action.is_some();
            let action = action.unwrap_or(Action::Compute);
            for (_, rules) in rules.iter_mut().filter(|(member, _)| with.contains(member)) {
                rules.iter_mut().for_each(|rule| rule.record(&pass, action, None));
            }
            for (_, newest) in members.iter().zip(&mut newest).filter(|(m, _)| with.contains(m)) {
                if action == Action::Compute {
                    *newest = Some(f64::from(pass.step));
                }
            }
        }
        let mut rules: Vec<_> = rules.into_iter().flat_map(|(_, rules)| rules).collect();
        let max_age = self.policy.keep.max_age;
        let stale = |newest: &[Option<f64>], step: u32| {
            let old = |newest| max_age.is_some_and(|max| f64::from(step) - newest > max.into());
            newest.iter().any(|newest| newest.is_none_or(old))
        };
        for step in if known { next..pass.step } else { 0..0 } {
            let between = at(step);
            let action = match rule::decide(&rules, &between, None) {
                Verdict::Compute(_) => Action::Compute,
                _ if stale(&newest, step) => Action::Compute,
                Verdict::Skip => Action::Skip,
                Verdict::Measure => {
                    known = false;
                    break;
                }
            };
            rules.iter_mut().for_each(|rule| rule.record(&between, action, None));
            if action == Action::Compute {
                newest.fill(Some(f64::from(step)));
            }
        }
        match rule::decide(&rules, &pass, None) {
            // Facts of the schedule hold whatever happens before; counts do not.
            Verdict::Compute(Reason::WarmUp | Reason::Last | Reason::Rule) => Some(Action::Compute),
            _ if !known => None,
            Verdict::Compute(_) => Some(Action::Compute),
            _ if stale(&newest, pass.step) => Some(Action::Compute),
            Verdict::Skip => Some(Action::Skip),
            Verdict::Measure if self.policy.lagged && next == pass.step && !waits => {
                let Some(change) = self.last_measurement(ops, members) else {
                    return Some(Action::Compute);
                };
                match rule::decide(&rules, &pass, Some(self.policy.metric(change))) {
                    Verdict::Skip => Some(Action::Skip),
                    _ => Some(Action::Compute),
                }
            }
            Verdict::Measure => None,
        }
    }
}

/// Steps that a coming pass may lie ahead to be played forward to.
const FORESIGHT: u32 = 1 << 14;

impl<O: Ops> Turn<O> {
    /// What the pass shows is kept, also if the rules were overruled.
    fn learns(&self) -> bool {
        self.veto.is_none() || self.restart
    }
}

/// Most buffers of this shape that any `together` branches have among them.
fn most(shape: &Shape, branches: &[Vec<Shape>], together: usize) -> usize {
    let count = |shapes: &Vec<Shape>| shapes.iter().filter(|other| *other == shape).count();
    let mut counts: Vec<_> = branches.iter().map(count).collect();
    counts.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
    counts.into_iter().take(together).sum()
}

/// The sums over all ranks, and whether any of them votes against the skip.
fn agree(
    reduce: Reduce,
    change: Option<Change>,
    veto: Option<Reason>,
) -> Result<(Option<Change>, bool)> {
    let vote = f64::from(u8::from(veto.is_some()));
    let mut sums = [0.0, 0.0, 0.0, 0.0, 0.0, vote];
    if let Some(change) = change {
        let Change { difference, value, reference, count, .. } = change;
        let finite = [difference, value, reference].iter().all(|sum| sum.is_finite());
        let not_finite = f64::from(u8::from(!finite));
        sums = [difference, value, reference, count, not_finite, vote];
    }
    reduce(&mut sums)?;
    let [difference, value, reference, count, not_finite, votes] = sums;
    // All ranks see the same sums, also one that had nothing to add, so their rules stay alike. A
    // rank whose sums are not finite makes everybody's so.
    let spoilt = if not_finite > 0.0 { f64::NAN } else { 0.0 };
    let dtype = change.map_or(Dtype::F32, |own| own.dtype);
    let agreed = Change { difference: difference + spoilt, value, reference, count, dtype };
    Ok(((count > 0.0).then_some(agreed), votes > 0.0))
}
