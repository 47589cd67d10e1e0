//! What coming passes will be answered, as far as it is certain: the rules are asked ahead of time,
//! which changes nothing, because a rule is pure to ask and clones of it take the record.
use super::Group;
use crate::ops::Ops;
use crate::rule::{self, Action, Pass, Reason, Verdict};

/// Steps that a coming pass may lie ahead to be played forward to.
const FORESIGHT: u32 = 1 << 14;

impl<O: Ops> Group<O> {
    /// The answer of the open pass, as far as it is certain.
    pub fn peek_open(&mut self, ops: &mut O) -> Option<Action> {
        // A pass that was refused computes.
        let Some(turn) = &self.turn else {
            return Some(Action::Compute);
        };
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
