//! What coming passes will be answered, as far as it is certain: the rules are asked ahead of time,
//! which changes nothing, because a rule is pure to ask and clones of it take the record.
use super::{Group, Place};
use crate::ops::Ops;
use crate::rule::{self, Action, Pass, Reason, Verdict};
use crate::scope::Scope;

/// Steps that a coming pass may lie ahead to be played forward to.
pub const FORESIGHT: u32 = 1 << 14;

/// An open pass: what it is, the branches in it, and its answer if that is certain.
type Open = (Pass, Vec<usize>, Option<Action>);

impl<O: Ops> Group<O> {
    /// The answer of the open pass at a site, as far as it is certain.
    pub fn peek_open(&mut self, ops: &mut O, place: Place) -> Option<Action> {
        // A pass that was refused computes.
        let Some(turn) = &self.turn else {
            return Some(Action::Compute);
        };
        if self.is_reached_at(place) {
            let filled = self.is_filled_at(place);
            return Some(if filled { Action::Skip } else { Action::Compute });
        }
        if let Some(decision) = turn.decision {
            let able = self.is_able(place, &turn.members, &turn.pass);
            return Some(if able { decision.action } else { Action::Compute });
        }
        if turn.veto.is_some() || turn.compute {
            return Some(Action::Compute);
        }
        let (pass, members) = (turn.pass, turn.members.clone());
        self.foresee(ops, place, pass, &members, None, pass.step, |step| Pass { step, ..pass })
    }

    /// The answer of a coming pass, as far as it is certain. `next` is the first step that can
    /// still be evaluated; `at` gives the passes between it and `pass`.
    pub fn peek(
        &mut self,
        ops: &mut O,
        place: Place,
        pass: Pass,
        members: &[usize],
        next: u32,
        at: impl FnMut(u32) -> Pass,
    ) -> Option<Action> {
        // What the open pass does comes before.
        let open = self.turn.as_ref().map(|turn| (turn.pass, turn.members.clone()));
        let open = open.map(|(pass, with)| (pass, with, self.peek_open(ops, place)));
        self.foresee(ops, place, pass, members, open, next, at)
    }

    /// What is kept at a site could stand in.
    fn is_able(&self, place: Place, members: &[usize], pass: &Pass) -> bool {
        let usable = |site| self.unusable_at(site, members, pass).is_none();
        self.site(place).is_some_and(usable)
    }

    /// Plays the rules forward from `next` without touching them.
    #[expect(clippy::too_many_arguments)]
    fn foresee(
        &mut self,
        ops: &mut O,
        place: Place,
        pass: Pass,
        members: &[usize],
        open: Option<Open>,
        next: u32,
        mut at: impl FnMut(u32) -> Pass,
    ) -> Option<Action> {
        if !self.takes(place) {
            return Some(Action::Compute);
        }
        match self.led(pass.step) {
            Some(Action::Compute) => return Some(Action::Compute),
            Some(Action::Skip) => {
                let able = self.is_able(place, members, &pass);
                return Some(if able { Action::Skip } else { Action::Compute });
            }
            None => {}
        }
        // With `share` it is not known whether this branch will decide or follow; nor of a layer
        // that was not seen yet, whether it will be among the first.
        let chosen = matches!(self.policy.scope, Scope::Layers { first: Some(_), .. });
        let mut known = pass.step - next <= FORESIGHT
            && !(self.setting.share && self.branches.len() > 1)
            && !(chosen && self.site(place).is_none());
        let newest = |member: &usize| self.site(place)?.histories[*member].newest();
        let mut newest: Vec<_> = members.iter().map(newest).collect();
        let kept: Vec<_> = members.iter().map(|member| self.keeps(*member)).collect();
        let compute = |newest: &mut [Option<f64>], pass: &Pass| {
            let newest = newest.iter_mut().zip(&kept).filter(|(_, kept)| **kept);
            newest.for_each(|(newest, _)| *newest = Some(f64::from(pass.position())));
        };
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
            if action == Action::Compute {
                let position = Some(f64::from(pass.position()));
                let with =
                    members.iter().map(|member| with.contains(member) && self.keeps(*member));
                let newest = newest.iter_mut().zip(with).filter(|(_, with)| *with);
                newest.for_each(|(newest, _)| *newest = position);
            }
        }
        let mut rules: Vec<_> = rules.into_iter().flat_map(|(_, rules)| rules).collect();
        let max_age = self.policy.keep.max_age;
        let stale = |newest: &[Option<f64>], pass: &Pass| {
            let age = |newest| f64::from(pass.position()) - newest;
            let old = |newest| max_age.is_some_and(|max| age(newest) > max.into());
            newest.iter().any(|newest| newest.is_none_or(old))
        };
        for step in if known { next..pass.step } else { 0..0 } {
            let between = at(step);
            let action = match rule::decide(&rules, &between, None) {
                Verdict::Compute(_) => Action::Compute,
                _ if stale(&newest, &between) => Action::Compute,
                Verdict::Skip => Action::Skip,
                Verdict::Measure | Verdict::Unknown(_) => {
                    known = false;
                    break;
                }
            };
            rules.iter_mut().for_each(|rule| rule.record(&between, action, None));
            if action == Action::Compute {
                compute(&mut newest, &between);
            }
        }
        use Reason::{Guidance, Interval, Last, Rule, WarmUp, Window};
        match rule::decide(&rules, &pass, None) {
            Verdict::Unknown(_) => None,
            // Facts of the schedule hold whatever happens before; counts do not.
            Verdict::Compute(WarmUp | Last | Rule | Interval | Window | Guidance) => {
                Some(Action::Compute)
            }
            _ if !known => None,
            Verdict::Compute(_) => Some(Action::Compute),
            _ if stale(&newest, &pass) => Some(Action::Compute),
            Verdict::Skip => Some(Action::Skip),
            Verdict::Measure if self.policy.lagged && next == pass.step && !waits => {
                let Some(change) = self.last_measurement(ops, members) else {
                    return Some(Action::Compute);
                };
                match rule::decide(&rules, &pass, Some(self.policy.metric(change))) {
                    Verdict::Skip if self.is_able(place, members, &pass) => Some(Action::Skip),
                    _ => Some(Action::Compute),
                }
            }
            Verdict::Measure => None,
        }
    }
}
