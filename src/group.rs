//! One policy at work: it decides once a pass, for all branches stacked in it, and fills or keeps
//! the value of each of its sites: one for a stack or a model, else one for each block or layer.
//!
//! ```text
//! begin  (input front)?  settle?  (enter leave?)*  end
//! ```
//!
//! Rules hear of a pass in `end` only, so a cancelled pass leaves nothing behind but emptied
//! histories. A site where the decision cannot be carried out, because nothing is kept there yet,
//! computes by itself.
mod foresight;
mod memory;

pub use foresight::Between;
pub use memory::{Layout, Unit, bytes_of, rows_of};

use crate::error::{Error, Result, bail};
use crate::estimator::Wanted;
use crate::gauge::Gauge;
use crate::history::{History, Rows};
use crate::ops::{Dtype, Ops};
use crate::pool::Pool;
use crate::preset::Policy;
use crate::rule::{self, Action, Change, Pass, Probe, Reason, Rule, Verdict};
use crate::scope::{Base, Scope};

pub struct Group<O: Ops> {
    policy: Policy,
    setting: Setting,
    branches: Vec<Branch<O>>,
    /// By their number: 0 for a stack or a model, else that of the block or layer.
    sites: Vec<Site<O>>,
    /// Sites that were ever reached.
    n_sites: u32,
    gauge: Option<Gauge<O>>,
    pool: Pool<O>,
    /// Step whose first pass decided for the branches that follow in it.
    leader: Option<Leader>,
    turn: Option<Turn<O>>,
}

#[derive(Clone, Copy)]
struct Leader {
    step: u32,
    action: Action,
    /// Step of its newest value: what it skipped by was measured against that pass.
    newest: Option<f64>,
}

/// A place whose value is kept; without histories until it is first reached.
struct Site<O: Ops> {
    /// Of each branch.
    histories: Vec<History<O>>,
    state: State<O>,
}

struct Branch<O: Ops> {
    rules: Vec<Box<dyn Rule>>,
    /// Step of its last pass.
    evaluated: Option<u32>,
    /// Position of the computed pass that changes are measured from.
    reference: Option<f64>,
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
    /// Some site was reached, or passed by.
    reached: bool,
    voted: bool,
}

/// What the open pass did at a site.
enum State<O: Ops> {
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
    pub n_blocks: u32,
    pub n_branches: usize,
    pub max_stacked: usize,
    pub measure: u32,
    pub keeps_input: bool,
    pub share: bool,
    /// The branch that guidance may leave out.
    pub uncond: usize,
    /// Ranks must agree, so no site computes by itself.
    pub ranks: bool,
}

/// What a call concerns.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Of the site.
    pub number: usize,
    /// Block or layer that was asked about.
    pub entry: u32,
}

impl<O: Ops> Group<O> {
    pub fn new(policy: Policy, setting: &Setting) -> Self {
        let Setting { measure, share, .. } = *setting;
        let keeps_input = setting.keeps_input && policy.scope.front() == 1;
        let gauge = policy.probe().map(|Probe::FrontResidual { rounded }| {
            Gauge::new(measure, rounded, keeps_input, share)
        });
        let branch =
            || Branch { rules: policy.rules.clone(), evaluated: None, reference: None, last: None };
        let branches = (0..setting.n_branches).map(|_| branch()).collect();
        Self {
            branches,
            sites: Vec::new(),
            n_sites: 0,
            gauge,
            pool: Pool::default(),
            leader: None,
            turn: None,
            setting: *setting,
            policy,
        }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

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
            reached: false,
            voted: false,
        });
    }

    /// The place of a block, a layer or the model, which this group is for.
    pub fn place(&self, unit: u32) -> Place {
        let number = if self.policy.scope.is_single() { 0 } else { unit as usize };
        Place { number, entry: unit }
    }

    /// Is this one of the layers that the policy is for? A new one is, while there is room.
    pub fn takes(&self, place: Place) -> bool {
        match self.policy.scope {
            Scope::Layers { first: Some(first), .. } => {
                self.site(place).is_some() || self.n_sites < first
            }
            _ => true,
        }
    }

    /// Its values are kept. Where only the conditional branches are ever skipped, the other is not.
    fn keeps(&self, branch: usize) -> bool {
        !(self.policy.cond_only && branch == self.setting.uncond)
    }

    /// If it was ever reached.
    fn site(&self, place: Place) -> Option<&Site<O>> {
        self.sites.get(place.number).filter(|site| !site.histories.is_empty())
    }

    fn site_mut(&mut self, place: Place) -> &mut Site<O> {
        if self.sites.len() <= place.number {
            let absent = || Site { histories: Vec::new(), state: State::NotReached };
            self.sites.resize_with(place.number + 1, absent);
        }
        let site = &mut self.sites[place.number];
        if site.histories.is_empty() {
            let history = || History::new(self.policy.keep, &*self.policy.estimator);
            site.histories = (0..self.branches.len()).map(|_| history()).collect();
            self.n_sites += 1;
        }
        site
    }

    fn state(&self, place: Place) -> &State<O> {
        self.site(place).map_or(&State::NotReached, |site| &site.state)
    }

    fn histories(&mut self) -> impl Iterator<Item = &mut History<O>> {
        self.sites.iter_mut().flat_map(|site| &mut site.histories)
    }

    /// Step of the newest value of a branch.
    fn newest(&self, branch: usize) -> Option<f64> {
        let newest = self.sites.iter().filter_map(|site| site.histories.get(branch)?.newest());
        newest.reduce(f64::max)
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

    /// A value that may be skipped was passed by: this pass neither fills it nor learns from it.
    pub fn pass_by(&mut self, place: Place) {
        self.land();
        let single = self.policy.scope.is_single();
        if self.turn.is_none() || self.is_reached_at(place) {
            return;
        }
        self.site_mut(place).state = State::Left;
        if let Some(turn) = &mut self.turn {
            turn.reached = true;
            if single {
                turn.take_back(turn.veto.unwrap_or(Reason::Error));
            }
        }
    }

    /// Any site was filled.
    pub fn is_filled(&self) -> bool {
        self.sites.iter().any(|site| matches!(site.state, State::Filled))
    }

    pub fn is_filled_at(&self, place: Place) -> bool {
        matches!(self.state(place), State::Filled)
    }

    pub fn is_settled(&self) -> bool {
        self.turn.as_ref().is_none_or(|turn| turn.decision.is_some())
    }

    pub fn has_sites(&self) -> bool {
        self.n_sites > 0
    }

    pub fn is_reached(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.reached)
    }

    pub fn is_reached_at(&self, place: Place) -> bool {
        !matches!(self.state(place), State::NotReached)
    }

    pub fn is_open_at(&self, place: Place) -> bool {
        matches!(self.state(place), State::Open(_))
    }

    /// A site whose value has not been reported.
    pub fn open_site(&self) -> Option<usize> {
        self.sites.iter().position(|site| matches!(site.state, State::Open(_)))
    }

    /// Sites that the open pass filled, and others that it reached.
    pub fn count(&self) -> (u64, u64) {
        let states = || self.sites.iter().map(|site| &site.state);
        let filled = states().filter(|state| matches!(state, State::Filled)).count();
        let idle = states().filter(|state| matches!(state, State::NotReached)).count();
        (filled as u64, (self.sites.len() - idle - filled) as u64)
    }

    /// The action that the first pass of this step chose, if it decides for this one.
    fn led(&self, step: u32) -> Option<Action> {
        self.leader_of(step).map(|leader| leader.action)
    }

    fn leader_of(&self, step: u32) -> Option<Leader> {
        self.leader.filter(|leader| self.setting.share && leader.step == step)
    }

    /// Branches whose rules decide.
    fn deciding<'a>(&self, members: &'a [usize]) -> &'a [usize] {
        if self.setting.share { &members[..1] } else { members }
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
                Verdict::Unknown(reason) => return Verdict::Compute(reason),
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
            rows.iter().for_each(|(branch, _)| self.reshape_all(*branch));
        }
        checked.map(drop)
    }

    /// What left the front blocks; queues the measurement, once.
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
                && self.unusable(&turn.members, &turn.pass).is_none()
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
        let Some(turn) = self.turn.as_mut().filter(|turn| !turn.reached) else {
            return self.settle(ops, None);
        };
        turn.wish = Some(wish);
        if let Some(decision) = turn.decision.take() {
            // The ranks have spoken: the engine answers for all of them.
            let metric = decision.metric;
            let vetoed = turn.veto.is_some() && decision.action == Action::Compute;
            let (pass, members) = (turn.pass, turn.members.clone());
            let able = !vetoed && self.unusable(&members, &pass).is_none();
            let action = if able { wish } else { Action::Compute };
            let reason = if action == wish { Reason::Engine } else { decision.reason };
            if let Some(turn) = &mut self.turn {
                turn.decision = Some(Decision { action, reason, metric });
            }
        }
        self.settle(ops, reduce)
    }

    /// Why nothing that these branches keep can stand in at this step: at no site, or, where ranks
    /// must agree, at any of them.
    fn unusable(&self, members: &[usize], pass: &Pass) -> Option<Reason> {
        let mut reasons = self
            .sites
            .iter()
            .filter(|site| !site.histories.is_empty())
            .map(|site| self.unusable_at(site, members, pass));
        if self.setting.ranks {
            return reasons.find(Option::is_some).unwrap_or(match self.n_sites {
                0 => Some(Reason::NoHistory),
                _ => None,
            });
        }
        let all = |worst: Option<Reason>, reason: Option<Reason>| match (worst, reason) {
            (Some(Reason::Age), Some(_)) => Some(Reason::Age),
            (Some(_), reason) => reason,
            (None, _) => None,
        };
        reasons.fold(Some(Reason::NoHistory), all)
    }

    /// The same of one site.
    fn unusable_at(&self, site: &Site<O>, members: &[usize], pass: &Pass) -> Option<Reason> {
        // Where one branch's change speaks for others, their values must be as new as its own.
        let led = || match self.leader_of(pass.step) {
            Some(leader) => leader.newest,
            None => self.newest(members[0]),
        };
        let leader = self.setting.share.then(led).flatten();
        let now = f64::from(pass.position());
        members.iter().find_map(|member| {
            let Some(newest) = site.histories[*member].newest() else {
                return Some(Reason::NoHistory);
            };
            let max_age = self.policy.keep.max_age;
            // A change is measured from a computed pass: what stands in must not be older.
            let needed = leader.or(self.branches[*member].reference);
            if needed.is_some_and(|needed| newest < needed) {
                Some(Reason::NoHistory)
            } else if max_age.is_some_and(|max| now - newest > f64::from(max)) {
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
        let unusable = self.unusable(&turn.members, &turn.pass);
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
                _ => decision(Action::Compute, Reason::NoHistory),
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

    /// A site is reached: its value is filled in, or room is made for the one to be computed.
    /// `input` and `out` hold each member's rows; a layer has no input, and may be given none.
    pub fn enter(
        &mut self,
        ops: &mut O,
        place: Place,
        input: &[Rows],
        out: &[Rows],
        reduce: Option<Reduce>,
    ) -> Result<Action> {
        let front = self.check_front();
        if front.is_err() {
            self.veto(Reason::Error);
        }
        let fits = self.check_shapes(place, input, out);
        if fits.is_err() {
            self.restart();
        }
        let settled = self.settle(ops, reduce);
        let Some(mut turn) = self.turn.take() else {
            return Ok(Action::Compute);
        };
        turn.reached = true;
        let entered = self.enter_settled(ops, &mut turn, place, (input, out), &fits);
        self.turn = Some(turn);
        settled.and(front).and(fits).and(entered)
    }

    /// A change can be measured only if the front was seen from its start; unless the engine has
    /// decided without.
    fn check_front(&self) -> Result<()> {
        let turn = self.turn.as_ref().filter(|turn| !turn.reached);
        let skips = |turn: &Turn<O>| turn.decision.is_some_and(|d| d.action == Action::Skip);
        if turn.is_none_or(skips) {
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

    fn check_shapes(&self, place: Place, input: &[Rows], out: &[Rows]) -> Result<()> {
        let (Some(turn), Some(site)) = (&self.turn, self.site(place)) else {
            return Ok(());
        };
        let shown = match self.policy.keep.base {
            Base::Residual => input,
            Base::Output => out,
        };
        let members = turn.members.iter().zip(shown);
        let check = |(m, rows): (&usize, &Rows)| site.histories[*m].check(place.entry, rows);
        members.into_iter().try_for_each(check)
    }

    fn enter_settled(
        &mut self,
        ops: &mut O,
        turn: &mut Turn<O>,
        place: Place,
        (input, out): (&[Rows], &[Rows]),
        fits: &Result<()>,
    ) -> Result<Action> {
        let skip = turn.decision.is_some_and(|decision| decision.action == Action::Skip);
        // What was there when the pass was settled may be gone by now, or never was at this site.
        let lost = match self.site(place) {
            _ if !skip => None,
            Some(site) => self.unusable_at(site, &turn.members, &turn.pass),
            None => Some(Reason::NoHistory),
        };
        if skip && lost.is_none() && fits.is_ok() {
            self.fill(ops, turn, place, input, out);
            self.keep_lagged(turn);
            self.land();
            return Ok(Action::Skip);
        }
        if self.policy.scope.is_single() {
            turn.take_back(lost.unwrap_or(Reason::Shape));
        }
        if fits.is_err() {
            turn.members.iter().for_each(|member| self.reshape(place, *member));
        }
        self.site_mut(place).state = State::Left;
        if !turn.learns() {
            self.land();
            return Ok(Action::Compute);
        }
        match self.open(ops, turn, place, input) {
            Ok(staged) => self.site_mut(place).state = State::Open(staged),
            Err(error) => {
                // Some of what is kept may be newer than the rest: none of it is of use.
                turn.veto.get_or_insert(Reason::Memory);
                self.land();
                turn.members.iter().for_each(|member| self.forget_at(place.number, *member));
                self.reclaim();
                return Err(error);
            }
        }
        self.tidy_pool();
        Ok(Action::Compute)
    }

    fn fill(&mut self, ops: &mut O, turn: &Turn<O>, place: Place, input: &[Rows], out: &[Rows]) {
        let site = &mut self.sites[place.number];
        let estimator = &*self.policy.estimator;
        let wanted = Wanted::of(&turn.pass);
        for (k, (member, out)) in turn.members.iter().zip(out).enumerate() {
            let input = input.get(k).unwrap_or(&Rows::NONE);
            site.histories[*member].estimate(ops, estimator, wanted, input, out);
        }
        site.state = State::Filled;
    }

    fn open(
        &mut self,
        ops: &mut O,
        turn: &mut Turn<O>,
        place: Place,
        input: &[Rows],
    ) -> Result<Vec<Vec<O::Buffer>>> {
        // Where the pass as a whole is skipped, changes go on being measured from an earlier one.
        let computes = turn.decision.is_none_or(|decision| decision.action == Action::Compute);
        if let Some(gauge) = self.gauge.as_mut().filter(|_| computes) {
            let committed = gauge.commit(ops, &mut self.pool)?;
            let position = Some(f64::from(turn.pass.position()));
            committed.into_iter().for_each(|branch| self.branches[branch].reference = position);
        }
        self.keep_lagged(turn);
        let mut staged = Vec::new();
        for (k, member) in turn.members.iter().enumerate() {
            if !self.keeps(*member) {
                continue;
            }
            let input = input.get(k).unwrap_or(&Rows::NONE);
            let shapes = input.iter().map(|(view, _)| view.shape()).enumerate();
            let shapes = History::<O>::staging(&self.policy.keep, shapes);
            let take = |shape| self.pool.take(ops, shape);
            let buffers = shapes.into_iter().map(take).collect::<Result<Vec<_>>>()?;
            let history = &mut self.sites[place.number].histories[*member];
            history.open(ops, &mut self.pool, place.entry, input, &buffers)?;
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

    /// A site's value has been computed: `out` holds each member's rows.
    pub fn leave(&mut self, ops: &mut O, place: Place, out: &[Rows]) -> Result<()> {
        let Some(turn) = self.turn.as_ref().filter(|_| self.is_open_at(place)) else {
            return Ok(());
        };
        let (step, members) = (f64::from(turn.pass.position()), turn.members.clone());
        let kept = members.iter().zip(out).filter(|(member, _)| self.keeps(**member));
        let kept: Vec<_> = kept.map(|(member, rows)| (*member, *rows)).collect();
        let site = &mut self.sites[place.number];
        let State::Open(staged) = std::mem::replace(&mut site.state, State::Left) else {
            return Ok(());
        };
        let mut result = Ok(());
        for ((member, out), staged) in kept.iter().zip(&staged) {
            let history = &mut site.histories[*member];
            result = result.and(history.close(ops, &mut self.pool, step, out, staged));
        }
        staged.into_iter().flatten().for_each(|buffer| self.pool.give(buffer));
        if result.is_err() {
            kept.iter().for_each(|(member, _)| self.reshape(place, *member));
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
                let settled = self.turn.as_ref().is_some_and(|turn| turn.decision.is_some());
                if !self.is_reached() && !settled {
                    self.veto(Reason::Error);
                }
                self.settle(ops, reduce).map(drop)
            }
            None => Ok(()),
        };
        let Some(turn) = self.turn.take() else {
            return (None, settled);
        };
        let filled = self.is_filled();
        let failed = turn.veto.filter(|_| !filled);
        let unsettled = Decision { action: Action::Compute, reason: Reason::Error, metric: None };
        let mut decision = turn.decision.unwrap_or(unsettled);
        if let Some(reason) = failed {
            (decision.action, decision.reason) = (Action::Compute, reason);
        }
        self.close(&turn.members, discarded);
        let Decision { action, metric, .. } = decision;
        let step = turn.pass.step;
        for member in turn.members.iter().filter(|_| !discarded) {
            let branch = &mut self.branches[*member];
            branch.evaluated = Some(step);
            branch.rules.iter_mut().for_each(|rule| rule.record(&turn.pass, action, metric));
        }
        if self.led(step).is_none() && !discarded {
            let newest = self.newest(turn.members[0]);
            self.leader = Some(Leader { step, action, newest });
        }
        (Some(decision), settled)
    }

    /// Ends the pass without a word to the rules; a value that it computed is forgotten.
    pub fn cancel(&mut self) {
        let Some(turn) = self.turn.take() else { return };
        self.close(&turn.members, true);
        let step = Some(f64::from(turn.pass.position()));
        for member in turn.members {
            if self.newest(member) == step {
                self.forget(member);
            }
        }
    }

    /// Every site is done with. A value that was begun and not finished is dropped, and with it what
    /// it was to replace; where the pass is `void`, so are values that its skips have changed.
    fn close(&mut self, members: &[usize], void: bool) {
        self.land();
        let changed = void && History::<O>::is_changed_by_skips(&*self.policy.estimator);
        let mut lost = Vec::new();
        for (number, site) in self.sites.iter_mut().enumerate() {
            match std::mem::replace(&mut site.state, State::NotReached) {
                State::Open(staged) => {
                    staged.into_iter().flatten().for_each(|buffer| self.pool.give(buffer));
                }
                State::Filled if changed => {
                    members.iter().for_each(|member| site.histories[*member].clear());
                }
                _ => {}
            }
            let open =
                members.iter().filter(|m| site.histories.get(**m).is_some_and(History::is_open));
            lost.extend(open.map(|member| (number, *member)));
        }
        for (number, member) in lost {
            self.forget_at(number, member);
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
}

impl<O: Ops> Turn<O> {
    /// What the pass shows is kept, also if the rules were overruled.
    fn learns(&self) -> bool {
        self.veto.is_none() || self.restart
    }

    /// A skip that was settled cannot be carried out.
    fn take_back(&mut self, reason: Reason) {
        let skip = |decision: &Decision| decision.action == Action::Skip;
        if let Some(decision) = self.decision.as_mut().filter(|decision| skip(decision)) {
            *decision = Decision { action: Action::Compute, reason, ..*decision };
        }
    }
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
