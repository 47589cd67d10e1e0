//! Blocks and the model: which of them a pass may leave out, and what they are given and give.
use super::tensors::{check_out, rows};
use super::{Cache, Given, MODEL, OpenPass, reason_of, reducer};
use crate::error::{Error, Result, bail};
use crate::group::Place;
use crate::ops::Ops;
use crate::rule::Action;
use crate::scope::Base;

impl<O: Ops> Cache<O> {
    /// `read` gives the tensors of the call; it is asked only where they matter.
    pub fn before_block(
        &mut self,
        unit: u32,
        read: impl Fn() -> Result<(Given, Option<Given>)>,
    ) -> (Action, Result<()>) {
        let Some(mut pass) = self.pass.take() else {
            let text = format!("before_block({unit}) outside begin_pass and end_pass");
            return (Action::Compute, Err(Error::State(text)));
        };
        let (action, result) = match self.group_of(unit) {
            Some(index) if unit == MODEL => self.enter(index, &mut pass, unit, read),
            Some(index) => self.before_one_block(index, &mut pass, unit, read),
            None => (Action::Compute, Ok(())),
        };
        let result = self.noted(&mut pass, action, result);
        self.pass = Some(pass);
        (action, result)
    }

    fn before_one_block(
        &mut self,
        index: usize,
        pass: &mut OpenPass,
        block: u32,
        read: impl Fn() -> Result<(Given, Option<Given>)>,
    ) -> (Action, Result<()>) {
        let Some((front, end)) = self.span(index) else {
            return (Action::Compute, Ok(()));
        };
        let single = self.groups[index].policy().scope.is_single();
        let place = self.groups[index].place(block);
        let filled = self.groups[index].is_filled_at(place);
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
        if !single || block >= end {
            // Unless `after_block` showed what left the last one, this is it.
            let late = self.leave_late(index, pass, &read);
            if late.is_err() || block >= end {
                return (Action::Compute, late);
            }
        }
        if block >= front && !(single && self.groups[index].is_reached()) {
            return self.enter(index, pass, block, read);
        }
        if block >= front {
            return (if filled { Action::Skip } else { Action::Compute }, Ok(()));
        }
        let result = match block {
            0 => read().and_then(|(input, out)| {
                let stacked = pass.members.len();
                let ops = &mut self.ops;
                let input = rows(ops, &input, stacked)?;
                let out = out.as_ref().map_or(Ok(input.clone()), |out| rows(ops, out, stacked))?;
                check_out(&input, &out, false)?;
                self.groups[index].input(&mut self.ops, &input)
            }),
            _ => Ok(()),
        };
        (Action::Compute, result)
    }

    /// What a block is given has left the blocks before it.
    fn leave_late(
        &mut self,
        index: usize,
        pass: &OpenPass,
        read: impl Fn() -> Result<(Given, Option<Given>)>,
    ) -> Result<()> {
        let group = &mut self.groups[index];
        let Some(number) = group.open_site() else {
            return Ok(());
        };
        let rows = rows(&mut self.ops, &read()?.0, pass.members.len())?;
        group.leave(&mut self.ops, Place { number, entry: number as u32 }, &rows)
    }

    /// A block or the model that may be skipped, or a stack of blocks, begins here.
    fn enter(
        &mut self,
        index: usize,
        pass: &mut OpenPass,
        unit: u32,
        read: impl Fn() -> Result<(Given, Option<Given>)>,
    ) -> (Action, Result<()>) {
        let group = &mut self.groups[index];
        let place = group.place(unit);
        if group.is_reached_at(place) {
            let text = "before_block(DC_MODEL) a second time in one pass".to_owned();
            let action = if group.is_filled() { Action::Skip } else { Action::Compute };
            return (action, Err(Error::State(text)));
        }
        let residual = group.policy().keep.base == Base::Residual;
        let given = read().and_then(|(input, out)| {
            let stacked = pass.members.len();
            let ops = &mut self.ops;
            let input_rows = rows(ops, &input, stacked)?;
            let out_rows =
                out.as_ref().map_or(Ok(input_rows.clone()), |out| rows(ops, out, stacked))?;
            check_out(&input_rows, &out_rows, residual)?;
            Ok((input_rows, out_rows))
        });
        let mut reduce = reducer(&self.engine);
        let mut reduce = reduce.as_mut().map(|r| r as _);
        let entered = given.and_then(|(input, out)| {
            // Unless `after_block` of the last front block showed what left it, this is it.
            if !group.is_reached() {
                group.front(&mut self.ops, &input)?;
            }
            group.enter(&mut self.ops, place, &input, &out, reduce.take())
        });
        match entered {
            Ok(action) => (action, Ok(())),
            Err(error) => {
                if let Error::Discard(text) = &error {
                    pass.discard.get_or_insert(text.clone());
                }
                group.veto(reason_of(&error));
                group.pass_by(place);
                // Whatever failed here, the other ranks wait for this one's vote.
                let voted = group.settle(&mut self.ops, reduce).map(drop);
                (Action::Compute, Err::<(), _>(error).and(voted))
            }
        }
    }

    pub fn after_block(&mut self, unit: u32, read: impl Fn() -> Result<Given>) -> Result<()> {
        let Some(mut pass) = self.pass.take() else {
            bail!(State, "after_block({unit}) outside begin_pass and end_pass");
        };
        let result = match self.group_of(unit) {
            Some(index) => self.after(index, &mut pass, unit, read),
            None => Ok(()),
        };
        let result = self.noted(&mut pass, Action::Compute, result);
        self.pass = Some(pass);
        result
    }

    fn after(
        &mut self,
        index: usize,
        pass: &mut OpenPass,
        unit: u32,
        read: impl Fn() -> Result<Given>,
    ) -> Result<()> {
        let (front, end) = self.span(index).unwrap_or((unit, unit));
        let group = &mut self.groups[index];
        let model = unit == MODEL;
        if !model && unit >= self.engine.n_blocks {
            let n = self.engine.n_blocks;
            bail!(Arg, "block is {unit}, allowed is below n_blocks, {n}");
        }
        let place = group.place(unit);
        let inside = model || (front..end).contains(&unit);
        if inside && group.is_filled_at(place) {
            let text = format!("block {unit} was answered SKIP and ran: its result counts twice");
            pass.discard.get_or_insert(text.clone());
            bail!(Discard, "{text}");
        }
        let single = group.policy().scope.is_single();
        let leaves = model || unit + 1 == end || (inside && !single);
        if leaves && group.is_open_at(place) {
            let rows = rows(&mut self.ops, &read()?, pass.members.len())?;
            group.leave(&mut self.ops, place, &rows)
        } else if inside && !group.is_reached_at(place) {
            group.pass_by(place);
            let first = if model || !single { unit } else { front };
            bail!(State, "after_block({unit}) before before_block({first})")
        } else if !model && unit + 1 == front {
            let rows = rows(&mut self.ops, &read()?, pass.members.len())?;
            group.front(&mut self.ops, &rows)
        } else {
            Ok(())
        }
    }
}
