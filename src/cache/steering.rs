//! Engines that want the answer before they act: settling a pass, and looking ahead.
use super::{Cache, MODEL, PassInfo, UNCOND, flag, is_skip, layer_of, reducer};
use crate::error::{Error, Result, bail};
use crate::group::{Between, Group};
use crate::ops::Ops;
use crate::rule::{Action, Pass};
use crate::scope::Scope;

impl<O: Ops> Cache<O> {
    /// Settles the open pass before the part that may be skipped.
    /// `None` while the rules have nothing to decide from.
    pub fn decide(&mut self, wish: Option<Action>) -> Result<Option<Action>> {
        if self.pass.is_none() {
            bail!(State, "decide outside begin_pass and end_pass");
        }
        if wish.is_none() && self.groups.iter().any(Group::awaits_front) {
            return Ok(None);
        }
        let (mut answer, mut settled) = (None, Ok(()));
        // Kinds of layers that the model turns out not to have do not matter.
        let seen = self.groups.iter().any(Group::has_sites);
        for group in &mut self.groups {
            let mut reduce = reducer(&self.engine);
            let reduce = reduce.as_mut().map(|r| r as _);
            let action = match wish {
                None => group.settle(&mut self.ops, reduce),
                Some(wish) => group.overrule(&mut self.ops, wish, reduce),
            };
            match action {
                Ok(_) if seen && !group.has_sites() => {}
                Ok(action) => match answer {
                    None => answer = Some(Some(action)),
                    Some(other) if other != Some(action) => answer = Some(None),
                    Some(_) => {}
                },
                Err(error) => settled = settled.and(Err(error)),
            }
        }
        let finished = self.finish_call();
        if let (Err(_), Some(pass)) = (&finished, &mut self.pass) {
            pass.void = true;
        }
        match settled.and(finished) {
            Ok(()) => Ok(answer.unwrap_or(Some(Action::Compute))),
            Err(error) => self.fail(error),
        }
    }

    /// The open pass computes, and its end will say why.
    pub fn fail<T>(&mut self, error: Error) -> Result<T> {
        if let Some(mut pass) = self.pass.take() {
            let _ = self.noted(&mut pass, Action::Compute, Err(error.clone()));
            self.pass = Some(pass);
        }
        Err(error)
    }

    /// What `unit` of the open pass, or of a coming one, will be answered, if that is certain.
    pub fn peek(&mut self, info: Option<&PassInfo>, unit: u32) -> Result<Option<Action>> {
        match self.foresee(info, unit) {
            Ok(answer) => self.finish_call().map(|()| answer),
            Err(error) => self.finish_call().and(Err(error)),
        }
    }

    fn foresee(&mut self, info: Option<&PassInfo>, unit: u32) -> Result<Option<Action>> {
        self.check_unit(unit)?;
        let Some(run) = &self.run else {
            bail!(State, "peek before begin_run");
        };
        if let Some(info) = info {
            self.check_pass(info, "peek")?;
        } else if self.pass.is_none() {
            bail!(State, "peek at the open pass, but none is open");
        }
        if run.failed.is_some() {
            return Ok(Some(Action::Compute));
        }
        if unit == UNCOND {
            return self.peek_uncond(info);
        }
        let index = match layer_of(unit) {
            None => self.group_of(unit),
            Some(layer) => match self.kinds[layer as usize] {
                Some(kind) => self.group_of_kind(kind),
                // Nobody has told yet what it is.
                None => return self.peek_unknown(info),
            },
        };
        let Some(index) = index else {
            return Ok(Some(Action::Compute));
        };
        if let Some((front, end)) = self.span(index)
            && !(front..end).contains(&unit)
        {
            return Ok(Some(Action::Compute));
        }
        let group = &mut self.groups[index];
        let place = match group.policy().scope {
            // The whole span is one value.
            Scope::Stack { front, .. } => group.place(front),
            _ => group.place(layer_of(unit).unwrap_or(unit)),
        };
        let Some(info) = info else {
            return Ok(group.peek_open(&mut self.ops, place));
        };
        let next = info.branches.iter().fold(run.first_step, |n, branch| n.max(run.next(*branch)));
        if info.step < next {
            bail!(State, "step {} has been evaluated; the next one is {next}", info.step);
        }
        if info.flags & (flag::FORGET | flag::COMPUTE) != 0 {
            return Ok(Some(Action::Compute));
        }
        let uncond = self.engine.uncond;
        let with_uncond = info.branches.contains(&uncond);
        // Made anew each time, not copied: what was just written in parts is slow to read as a whole.
        let passes = |step| match step == info.step {
            true => run.pass_of(info),
            false => run.pass(step, 0, None),
        };
        let mut guidance = self.guidance.as_mut();
        let cond_only = match (with_uncond, guidance.as_deref_mut()) {
            (true, _) => Some(false),
            (false, Some(guide)) => {
                guide.forecast(run.first_step).at(info.step, passes).map(is_skip)
            }
            (false, None) => None,
        };
        let mut pass = run.pass_of(info);
        pass.cond_only = cond_only;
        let mut forecast = guidance.map(|guidance| guidance.forecast(run.first_step));
        let stacks = self.engine.max_stacked > 1 && forecast.is_some();
        let at = |step| {
            let left_out = match &mut forecast {
                Some(forecast) => is_skip(forecast.at(step, passes)?),
                None => false,
            };
            let pass = Pass { cond_only: Some(left_out), ..passes(step) };
            let without = (with_uncond && left_out).then_some(uncond);
            let with = (stacks && !with_uncond && !left_out).then_some(uncond);
            Some(Between { pass, without, with })
        };
        Ok(group.peek(&mut self.ops, place, &pass, &info.branches, next, at))
    }

    fn check_unit(&self, unit: u32) -> Result<()> {
        let (n_blocks, n_layers) = (self.engine.n_blocks, self.engine.n_layers);
        match layer_of(unit) {
            Some(layer) if layer >= n_layers => {
                bail!(Arg, "unit is layer {layer}, allowed is below n_layers, {n_layers}")
            }
            None if unit != MODEL && unit != UNCOND && unit >= n_blocks => bail!(
                Arg,
                "unit is {unit}, allowed is a block below n_blocks, {n_blocks}, DC_LAYER(...), \
                 DC_UNCOND or DC_MODEL"
            ),
            _ => Ok(()),
        }
    }

    fn peek_uncond(&mut self, info: Option<&PassInfo>) -> Result<Option<Action>> {
        let (Some(guidance), Some(run)) = (&mut self.guidance, &self.run) else {
            return Ok(Some(Action::Compute));
        };
        let (asked, flags) = match (info, &self.pass) {
            (Some(info), _) => (run.pass_of(info), info.flags),
            (None, Some(pass)) => (pass.about, pass.flags),
            (None, None) => return Ok(Some(Action::Compute)),
        };
        if flags & (flag::FORGET | flag::COMPUTE) != 0 {
            return Ok(Some(Action::Compute));
        }
        Ok(guidance.forecast(run.first_step).at(asked.step, |step| run.coming(asked, step)))
    }

    /// A layer that was never asked about: nothing is kept of it, so it computes when it comes.
    fn peek_unknown(&self, info: Option<&PassInfo>) -> Result<Option<Action>> {
        let (Some(info), Some(run)) = (info, &self.run) else {
            return Ok(Some(Action::Compute));
        };
        let first = info.branches.iter().any(|branch| info.step <= run.next(*branch));
        let none = !self.groups.iter().any(|g| matches!(g.policy().scope, Scope::Layers { .. }));
        Ok((first || none).then_some(Action::Compute))
    }
}
