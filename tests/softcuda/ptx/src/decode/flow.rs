//! Branches, ends, and barriers.

use super::Form;
use crate::instruction::{Action, BarrierVote, BarrierVoteMode, Exchange};
use crate::parse::{Operand, Result};
use crate::registers::Width;
use crate::types::Type;

pub(super) fn decode(name: &str, form: &mut Form) -> Result<Action> {
    match name {
        "ret" | "exit" => {
            form.expect_operands(0)?;
            form.take("uni");
            Ok(Action::Exit)
        }
        "trap" => Ok(Action::Trap),
        "bra" => {
            form.expect_operands(1)?;
            form.take("uni");
            Ok(Action::Branch(form.names.label(name_of(form.operand(0)?)?)?))
        }
        "brx" => {
            form.expect_operands(2)?;
            form.require("idx")?;
            form.take("uni");
            let targets = form.names.targets(name_of(form.operand(1)?)?)?;
            Ok(Action::BranchIndexed { index: form.source(form.operand(0)?, Type::U32)?, targets })
        }
        _ => barrier(name, form),
    }
}

fn name_of(operand: &Operand) -> Result<&str> {
    match operand {
        Operand::Name(name, 0) => Ok(name),
        other => Err(format!("{other:?} is not a label")),
    }
}

fn barrier(name: &str, form: &mut Form) -> Result<Action> {
    if form.take("warp") {
        form.require("sync")?;
        form.expect_operands(1)?;
        let members = form.source(form.operand(0)?, Type::B32)?;
        return Ok(Action::Sync { members, exchange: Exchange::Wait });
    }
    // `barrier` without `.aligned` lets the lanes of a warp come one by one.
    if name == "barrier" {
        form.require("aligned")?;
    }
    form.take("cta");
    let vote = if form.take("red") { Some(vote(form)?) } else { None };
    if vote.is_none() {
        form.require("sync")?;
    }
    // bar.sync id {, threads}; bar.red.op d, id {, threads}, p
    let first = vote.is_some() as usize;
    let threads = match form.operands.len() - 2 * first {
        1 => None,
        2 => Some(form.source(form.operand(first + 1)?, Type::U32)?),
        count => return Err(format!("a barrier with {count} operands")),
    };
    Ok(Action::Barrier { id: form.source(form.operand(first)?, Type::U32)?, threads, vote })
}

fn vote(form: &mut Form) -> Result<BarrierVote> {
    let (mode, width) = match form.next_modifier()? {
        "and" => (BarrierVoteMode::And, Width::Predicate),
        "or" => (BarrierVoteMode::Or, Width::Predicate),
        "popc" => (BarrierVoteMode::Count, Width::Word),
        other => return Err(format!("`.{other}` is not supported")),
    };
    if form.operands.len() < 3 {
        return Err("an operand is missing".into());
    }
    let (predicate, negated) = form.predicate(form.operands.len() - 1)?;
    Ok(BarrierVote { mode, into: form.destination(form.operand(0)?, width)?, predicate, negated })
}
