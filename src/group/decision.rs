//! The decision of a pass: what the rules say, what was measured, what the engine wishes, what is
//! kept to stand in, and what other ranks vote.
use super::{Decision, Group, Leader, Site, Turn};
use crate::error::Result;
use crate::ops::{Measured, Ops, Reduce};
use crate::rule::{self, Action, Pass, Reason, Verdict};

impl<O: Ops> Group<O> {
    /// The action that the first pass of this step chose, if it decides for this one.
    pub(super) fn led(&self, step: u32) -> Option<Action> {
        self.leader_of(step).map(|leader| leader.action)
    }

    fn leader_of(&self, step: u32) -> Option<Leader> {
        self.leader.filter(|leader| self.setting.share && leader.step == step)
    }

    /// Branches whose rules decide.
    pub(super) fn deciding<'a>(&self, members: &'a [usize]) -> &'a [usize] {
        if self.setting.share { &members[..1] } else { members }
    }

    /// What the rules say before anything is measured; the same on every rank.
    pub(super) fn foreseen(&self, turn: &Turn<O>) -> Verdict {
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
        match self.judge_branches(&turn.members, &turn.pass, metric) {
            Verdict::Unknown(reason) => Verdict::Compute(reason),
            verdict => verdict,
        }
    }

    /// The verdict of the rules of several branches together, as they stand.
    pub(super) fn judge_branches(
        &self,
        members: &[usize],
        pass: &Pass,
        metric: Option<f64>,
    ) -> Verdict {
        let deciding = self.deciding(members).iter();
        rule::decide(deciding.flat_map(|member| &self.branches[*member].rules), pass, metric)
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
        let (decision, result) = match turn.decision {
            Some(decision) => (decision, Ok(())),
            None => self.reach_decision(ops, &mut turn, reduce),
        };
        turn.decision = Some(decision);
        self.turn = Some(turn);
        result.map(|()| decision.action)
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
    /// must agree, because this one has lost a value that others may have.
    fn unusable(&self, members: &[usize], pass: &Pass) -> Option<Reason> {
        if self.setting.ranks && self.has_lost(members) {
            return Some(Reason::NoHistory);
        }
        let reached = self.sites.iter().filter(|site| !site.histories.is_empty());
        let mut reasons = reached.map(|site| self.unusable_at(site, members, pass));
        let all = |worst: Reason, reason: Option<Reason>| match worst {
            Reason::Age => reason.map(|_| Reason::Age),
            _ => reason,
        };
        reasons.try_fold(Reason::NoHistory, all)
    }

    /// Something of these branches was lost at some site, and is not there again.
    pub(super) fn has_lost(&self, members: &[usize]) -> bool {
        let lost = |member: &usize| {
            self.sites.iter().any(|site| site.histories.get(*member).is_some_and(|h| h.is_lost))
        };
        members.iter().any(lost)
    }

    /// The same of one site.
    pub(super) fn unusable_at(
        &self,
        site: &Site<O>,
        members: &[usize],
        pass: &Pass,
    ) -> Option<Reason> {
        // Where one branch's change speaks for others, their values must be as new as its own.
        let led = || match self.leader_of(pass.step) {
            Some(leader) => leader.reference,
            None => self.branches[members[0]].reference,
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
        let reduce = reduce.filter(|_| !std::mem::replace(&mut turn.voted, true));
        let mut own = None;
        if measures && veto.is_none() {
            own = self.measurement(turn);
            veto = if own.is_none() { Some(Reason::NoHistory) } else { None };
        }
        let change = match reduce {
            None => own.map(|own| own.read(ops)),
            Some(reduce) => match ops.agree(own, veto.is_some(), reduce) {
                Ok(agreed) => {
                    veto = veto.or(agreed.vetoed.then_some(Reason::Veto));
                    agreed.change
                }
                Err(error) => return (of(Action::Compute, Reason::Error), Err(error)),
            },
        };
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
    fn measurement<'a>(
        &'a mut self,
        turn: &'a mut Turn<O>,
    ) -> Option<&'a mut Measured<O::Pending>> {
        match self.policy.lagged {
            true => self.last_measurement(&turn.members),
            false => turn.measured.as_mut(),
        }
    }

    /// The measurement of the pass before, if these branches were in it, and in it together.
    pub(super) fn last_measurement(
        &mut self,
        members: &[usize],
    ) -> Option<&mut Measured<O::Pending>> {
        let first = *members.first()?;
        let last = self.branches[first].last.as_ref()?;
        let newest = |member: &usize| self.branches[*member].evaluated == Some(last.step);
        let valid = last.members[..] == *members && members.iter().all(newest);
        self.branches[first].last.as_mut().filter(|_| valid).map(|last| &mut last.measured)
    }
}
