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
mod decision;
mod foresight;
mod memory;
mod sites;

pub use foresight::{Between, FORESIGHT};
pub use memory::{Layout, Unit, bytes_of, rows_of};

use crate::error::{Error, Result};
use crate::gauge::{Gauge, Shown};
use crate::history::History;
use crate::ops::{Measured, Ops, Reduce};
use crate::pool::Pool;
use crate::preset::Policy;
use crate::rows::Stacked;
use crate::rule::{Action, Pass, Probe, Reason, Rule, Verdict};
use arrayvec::ArrayVec;
use foresight::Player;

pub const MAX_BRANCHES: usize = 8;

/// Branches stacked in a pass, in order.
pub type Members = ArrayVec<usize, MAX_BRANCHES>;

pub struct Group<O: Ops> {
    policy: Policy,
    setting: Setting,
    branches: Vec<Branch<O>>,
    /// By their number: 0 for a stack or a model, else that of the block or layer.
    sites: Vec<Site<O>>,
    /// Sites that were ever reached.
    n_sites: u32,
    /// Sites whose value is being computed.
    n_open: usize,
    gauge: Option<Gauge<O>>,
    pool: Pool<O>,
    /// Step whose first pass decided for the branches that follow in it.
    leader: Option<Leader>,
    /// Boxed, so that what works on it can take it out and leave the rest of the group free.
    turn: Option<Box<Turn<O>>>,
    /// The box of the pass before.
    spare: Option<Box<Turn<O>>>,
    /// Who looks ahead; kept for their memory.
    players: Vec<Player>,
}

#[derive(Clone, Copy)]
struct Leader {
    step: u32,
    action: Action,
    /// Position of the pass that its change was measured from.
    reference: Option<f64>,
}

/// A place whose value is kept; without histories until it is first reached.
struct Site<O: Ops> {
    /// Of each branch.
    histories: Vec<History<O>>,
    state: State,
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
    members: Members,
    measured: Measured<O::Pending>,
}

/// The open pass.
struct Turn<O: Ops> {
    pass: Pass,
    members: Members,
    /// The engine wants this pass computed.
    compute: bool,
    wish: Option<Action>,
    /// Something went wrong here: compute.
    veto: Option<Reason>,
    /// ... namely that the tensors have new shapes, with which the branch starts again.
    restart: bool,
    measured: Option<Measured<O::Pending>>,
    decision: Option<Decision>,
    /// Some site was reached, or passed by.
    reached: bool,
    voted: bool,
}

/// What the open pass did at a site.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    NotReached,
    Filled,
    /// Its value is being computed.
    Open,
    Left,
}

#[derive(Clone, Copy, Debug)]
pub struct Decision {
    pub action: Action,
    pub reason: Reason,
    /// What the rule judged by, if anything was measured.
    pub metric: Option<f64>,
}

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
            n_open: 0,
            gauge,
            pool: Pool::default(),
            leader: None,
            turn: None,
            spare: None,
            players: Vec::new(),
            setting: *setting,
            policy,
        }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub fn begin(&mut self, pass: &Pass, members: &Members, compute: bool) {
        self.cancel();
        let mut turn = self.spare.take().unwrap_or_else(|| Box::new(Turn::idle()));
        (turn.pass, turn.compute) = (*pass, compute);
        turn.members.clone_from(members);
        self.turn = Some(turn);
    }

    /// Nothing of a pass stays but its box, which waits for the next.
    fn put_away(&mut self, mut turn: Box<Turn<O>>) {
        *turn = Turn::idle();
        self.spare = Some(turn);
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

    /// What goes into the first block of the model.
    pub fn input(&mut self, ops: &mut O, rows: &Stacked) -> Result<()> {
        let branches = self.measured();
        let shown = Shown { branches: &branches, rows };
        let Some(gauge) = self.gauge.as_mut().filter(|_| !branches.is_empty()) else {
            return Ok(());
        };
        let mut result = gauge.input(ops, &mut self.pool, shown);
        if matches!(result, Err(Error::Memory(_))) && self.reclaim() {
            // What an earlier run had left behind stood in the way of this one.
            let Some(gauge) = &mut self.gauge else { return Ok(()) };
            result = gauge.input(ops, &mut self.pool, shown);
        }
        let checked = result.and_then(|()| self.gauge.as_ref().map_or(Ok(true), Gauge::check));
        if let Err(Error::Shape(_)) = &checked {
            self.restart();
            branches.iter().for_each(|branch| self.reshape_all(*branch));
        }
        checked.map(drop)
    }

    /// What left the front blocks; queues the measurement, once.
    pub fn front(&mut self, ops: &mut O, rows: &Stacked) -> Result<()> {
        if self.gauge.as_ref().is_none_or(|gauge| !gauge.has_input() || gauge.is_complete()) {
            return Ok(());
        }
        let Some(turn) = &self.turn else {
            return Ok(());
        };
        let wanted = self.policy.lagged || self.foreseen(turn) == Verdict::Measure;
        let branches = self.measured();
        let Some(gauge) = self.gauge.as_mut().filter(|_| !branches.is_empty()) else {
            return Ok(());
        };
        let pending = gauge.front(ops, Shown { branches: &branches, rows }, wanted);
        if pending.is_err() {
            gauge.land(&mut self.pool);
        }
        let pending = pending?;
        if let Some(turn) = &mut self.turn {
            turn.measured = pending.map(Measured::Queued);
        }
        Ok(())
    }

    /// Branches whose change decides; none if this pass follows another or has failed.
    fn measured(&self) -> Members {
        let turn = self.turn.as_ref();
        let turn = turn.filter(|turn| turn.learns() && self.led(turn.pass.step).is_none());
        turn.map_or(Members::new(), |turn| self.deciding(&turn.members).iter().copied().collect())
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
        self.close(&turn, discarded);
        let Decision { action, metric, .. } = decision;
        let step = turn.pass.step;
        // Of kinds of layers that a model is without, nothing was decided.
        let took_place = turn.reached || self.policy.scope.is_single();
        for member in turn.members.iter().filter(|_| !discarded && took_place) {
            let branch = &mut self.branches[*member];
            branch.evaluated = Some(step);
            branch.rules.iter_mut().for_each(|rule| rule.record(&turn.pass, action, metric));
        }
        if self.led(step).is_none() && !discarded {
            let reference = self.branches[turn.members[0]].reference;
            self.leader = Some(Leader { step, action, reference });
        }
        self.put_away(turn);
        self.tidy_pool(ops);
        (Some(decision), settled)
    }

    /// Ends the pass without a word to the rules.
    pub fn cancel(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.close(&turn, true);
            self.put_away(turn);
        }
    }

    /// Every site is done with. A value that was begun and not finished is dropped, and with it what
    /// it was to replace. Where the pass is `void`, so is what it computed, and what its skips have
    /// changed.
    fn close(&mut self, turn: &Turn<O>, void: bool) {
        self.land();
        let changed = void && History::<O>::is_changed_by_skips(&*self.policy.estimator);
        let now = Some(f64::from(turn.pass.position()));
        let mut lost = Vec::new();
        for (number, site) in self.sites.iter_mut().enumerate() {
            let state = std::mem::replace(&mut site.state, State::NotReached);
            if state == State::NotReached || (state == State::Filled && !changed) {
                continue;
            }
            for member in &turn.members {
                let Some(history) = site.histories.get_mut(*member) else { continue };
                history.unstage(&mut self.pool);
                if history.is_open() || (void && history.newest() == now) {
                    lost.push((number, *member));
                } else if changed && state == State::Filled {
                    history.clear();
                }
            }
        }
        for (number, member) in lost {
            self.lose(number, member);
        }
        self.n_open = 0;
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
    fn idle() -> Self {
        Self {
            pass: Pass::START,
            members: Members::new(),
            compute: false,
            wish: None,
            veto: None,
            restart: false,
            measured: None,
            decision: None,
            reached: false,
            voted: false,
        }
    }

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
