//! Instructions by which the lanes of a warp talk to each other.

use super::{Form, unsupported};
use crate::instruction::{Action, Exchange, Shuffle, Update, Vote};
use crate::parse::{Operand, Result};
use crate::registers::Width;
use crate::types::Type;

pub(super) fn decode(name: &str, form: &mut Form) -> Result<Action> {
    if name == "activemask" {
        form.expect_operands(1)?;
        let operand = form.operand(0)?;
        return Ok(Action::ActiveMask(form.destination(operand, Width::Word)?));
    }
    // Without `.sync` they need lanes in lockstep, which no GPU in question promises.
    form.require("sync")?;
    let last = form.operands.len().saturating_sub(1);
    let members = form.source(form.operand(last)?, Type::B32)?;
    let exchange = match name {
        "shfl" => shuffle(form)?,
        "vote" => vote(form)?,
        "match" => match_(form)?,
        _ => reduce(form)?,
    };
    Ok(Action::Sync { members, exchange })
}

fn shuffle(form: &mut Form) -> Result<Exchange> {
    form.expect_operands(5)?;
    let mode = match form.next_modifier()? {
        "up" => Shuffle::Up,
        "down" => Shuffle::Down,
        "bfly" => Shuffle::Butterfly,
        "idx" => Shuffle::Index,
        other => return Err(format!("`.{other}` is not supported")),
    };
    let ty = form.ty()?;
    if ty != Type::B32 {
        return unsupported(ty);
    }
    let (into, valid) = match form.operand(0)? {
        Operand::Pair(into, valid) => {
            (form.destination(into, Width::Word)?, Some(form.destination(valid, Width::Predicate)?))
        }
        into => (form.destination(into, Width::Word)?, None),
    };
    Ok(Exchange::Shuffle {
        mode,
        into,
        valid,
        value: form.source(form.operand(1)?, ty)?,
        lane: form.source(form.operand(2)?, Type::B32)?,
        clamp: form.source(form.operand(3)?, Type::B32)?,
    })
}

fn vote(form: &mut Form) -> Result<Exchange> {
    form.expect_operands(3)?;
    let (mode, width) = match form.next_modifier()? {
        "all" => (Vote::All, Width::Predicate),
        "any" => (Vote::Any, Width::Predicate),
        "uni" => (Vote::Uniform, Width::Predicate),
        "ballot" => (Vote::Ballot, Width::Word),
        other => return Err(format!("`.{other}` is not supported")),
    };
    let (predicate, negated) = form.predicate(1)?;
    Ok(Exchange::Vote {
        mode,
        into: form.destination(form.operand(0)?, width)?,
        predicate,
        negated,
    })
}

fn match_(form: &mut Form) -> Result<Exchange> {
    form.expect_operands(3)?;
    let every = form.take("all");
    if !every {
        form.require("any")?;
    }
    let (into, all) = match form.operand(0)? {
        Operand::Pair(into, all) => {
            (form.destination(into, Width::Word)?, Some(form.destination(all, Width::Predicate)?))
        }
        into => (form.destination(into, Width::Word)?, None),
    };
    Ok(Exchange::Match { all, every, into, value: form.source(form.operand(1)?, form.ty()?)? })
}

fn reduce(form: &mut Form) -> Result<Exchange> {
    form.expect_operands(3)?;
    let update = match form.next_modifier()? {
        "add" => Update::Add,
        "min" => Update::Minimum,
        "max" => Update::Maximum,
        "and" => Update::And,
        "or" => Update::Or,
        "xor" => Update::Xor,
        other => return Err(format!("`.{other}` is not supported")),
    };
    let ty = form.ty()?;
    if !matches!(ty, Type::U32 | Type::S32 | Type::B32) {
        return unsupported(ty);
    }
    Ok(Exchange::Reduce {
        ty,
        update,
        into: form.destination(form.operand(0)?, Width::Word)?,
        value: form.source(form.operand(1)?, ty)?,
    })
}
