//! Blocks and the model: which of them a pass may leave out, and what they are given and give.
use super::tensors::{check_out, cut};
use super::{Cache, MODEL, OpenPass, Read, reason_of, reducer};
use crate::error::{Error, Result, bail};
use crate::group::Place;
use crate::ops::Ops;
use crate::rows::Stacked;
use crate::rule::Action;
use crate::scope::Base;

impl<O: Ops> Cache<O> {
    /// Without `out`, results go over `input`.
    pub fn before_block(
        &mut self,
        unit: u32,
        input: Read,
        out: Option<Read>,
    ) -> (Action, Result<()>) {
        let Some(mut pass) = self.pass.take() else {
            let text = format!("before_block({unit}) outside begin_pass and end_pass");
            return (Action::Compute, Err(Error::State(text)));
        };
        let (action, result) = match self.group_of(unit) {
            Some(index) if unit == MODEL => self.enter(index, &mut pass, unit, input, out),
            Some(index) => self.before_one_block(index, &mut pass, unit, input, out),
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
        input: Read,
        out: Option<Read>,
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
            let late = self.leave_late(index, pass, input);
            if late.is_err() || block >= end {
                return (Action::Compute, late);
            }
        }
        if block >= front && !(single && self.groups[index].is_reached()) {
            return self.enter(index, pass, block, input, out);
        }
        if block >= front {
            return (if filled { Action::Skip } else { Action::Compute }, Ok(()));
        }
        let result = match block {
            0 => self
                .cut_block(pass, input, out, false)
                .and_then(|_| self.groups[index].input(&mut self.ops, &self.input)),
            _ => Ok(()),
        };
        (Action::Compute, result)
    }

    /// Cuts what a block is given and where its result goes; true if that is a place of its own.
    fn cut_block(
        &mut self,
        pass: &OpenPass,
        input: Read,
        out: Option<Read>,
        residual: bool,
    ) -> Result<bool> {
        let stacked = pass.members.len();
        cut(&mut self.ops, input, stacked, &mut self.input)?;
        let Some(out) = out else {
            check_out(&self.input, &self.input, residual)?;
            return Ok(false);
        };
        cut(&mut self.ops, out, stacked, &mut self.out)?;
        check_out(&self.input, &self.out, residual)?;
        Ok(true)
    }

    /// What a block is given has left the blocks before it.
    fn leave_late(&mut self, index: usize, pass: &OpenPass, input: Read) -> Result<()> {
        let group = &mut self.groups[index];
        let Some(number) = group.open_site() else {
            return Ok(());
        };
        cut(&mut self.ops, input, pass.members.len(), &mut self.input)?;
        group.leave(&mut self.ops, Place { number, entry: number as u32 }, &self.input)
    }

    /// A block or the model that may be skipped, or a stack of blocks, begins here.
    fn enter(
        &mut self,
        index: usize,
        pass: &mut OpenPass,
        unit: u32,
        input: Read,
        out: Option<Read>,
    ) -> (Action, Result<()>) {
        let group = &mut self.groups[index];
        let place = group.place(unit);
        if group.is_reached_at(place) {
            let text = "before_block(DC_MODEL) a second time in one pass".to_owned();
            let action = if group.is_filled() { Action::Skip } else { Action::Compute };
            return (action, Err(Error::State(text)));
        }
        let residual = group.policy().keep.base == Base::Residual;
        let given = self.cut_block(pass, input, out, residual);
        let group = &mut self.groups[index];
        let mut reduce = reducer(&self.engine);
        let mut reduce = reduce.as_mut().map(|r| r as _);
        let entered = given.and_then(|apart| {
            let input = &self.input;
            let out: &Stacked = if apart { &self.out } else { input };
            // Unless `after_block` of the last front block showed what left it, this is it.
            if !group.is_reached() {
                group.front(&mut self.ops, input)?;
            }
            group.enter(&mut self.ops, place, input, out, reduce.take())
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

    pub fn after_block(&mut self, unit: u32, read: Read) -> Result<()> {
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

    fn after(&mut self, index: usize, pass: &mut OpenPass, unit: u32, read: Read) -> Result<()> {
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
            cut(&mut self.ops, read, pass.members.len(), &mut self.out)?;
            group.leave(&mut self.ops, place, &self.out)
        } else if inside && !group.is_reached_at(place) {
            group.pass_by(place);
            let first = if model || !single { unit } else { front };
            bail!(State, "after_block({unit}) before before_block({first})")
        } else if !model && unit + 1 == front {
            cut(&mut self.ops, read, pass.members.len(), &mut self.out)?;
            group.front(&mut self.ops, &self.out)
        } else {
            Ok(())
        }
    }
}
