//! What a statement becomes: names are rows, labels are positions, types are part of the closure.

use crate::parse::Space;
use crate::registers::{Compute, Register};
use crate::types::Type;

pub(crate) struct Instruction {
    pub line: u32,
    /// The predicate, and whether it must be false.
    pub guard: Option<(u32, bool)>,
    pub action: Action,
}

pub(crate) enum Action {
    Nothing,
    Compute(Compute),
    Load { from: Address, ty: Type, into: Vec<Register> },
    Store { to: Address, ty: Type, values: Vec<Register> },
    Atomic { at: Address, ty: Type, update: Update, old: Option<Register>, operands: Vec<Register> },
    Sync { members: Register, exchange: Exchange },
    ActiveMask(Register),
    Barrier { id: Register, threads: Option<Register>, vote: Option<BarrierVote> },
    Branch(usize),
    BranchIndexed { index: Register, targets: Vec<usize> },
    Exit,
    Trap,
}

#[derive(Clone, Copy)]
pub(crate) struct Address {
    pub space: Space,
    pub base: Option<Register>,
    pub offset: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Update {
    Add,
    Increment,
    Decrement,
    Minimum,
    Maximum,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
}

/// What lanes do together at a `.sync` instruction.
pub(crate) enum Exchange {
    /// `bar.warp.sync`
    Wait,
    Shuffle {
        mode: Shuffle,
        into: Register,
        valid: Option<Register>,
        value: Register,
        lane: Register,
        clamp: Register,
    },
    Vote {
        mode: Vote,
        into: Register,
        predicate: Register,
        negated: bool,
    },
    Match {
        all: Option<Register>,
        every: bool,
        into: Register,
        value: Register,
    },
    Reduce {
        ty: Type,
        update: Update,
        into: Register,
        value: Register,
    },
}

#[derive(Clone, Copy)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// `bar.red`: a vote of the whole block.
pub(crate) struct BarrierVote {
    pub mode: BarrierVoteMode,
    pub into: Register,
    pub predicate: Register,
    pub negated: bool,
}

#[derive(Clone, Copy)]
pub(crate) enum BarrierVoteMode {
    And,
    Or,
    Count,
}
