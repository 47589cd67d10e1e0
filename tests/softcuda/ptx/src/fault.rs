//! What can go wrong while a kernel runs, and where it did.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Global, local, constant or parameter memory that is not there.
    IllegalAddress,
    /// An address that is not a multiple of the size of the access.
    Misaligned,
    /// Shared memory beyond what the block has.
    SharedOutOfBounds,
    /// Two warps touch the same shared memory, one of them writing, with no barrier between.
    SharedRace,
    /// Lanes or warps wait for others that never come.
    Deadlock,
    /// A shuffle reads a lane that takes no part in it, or a lane is not in its own member mask.
    InactiveLane,
    /// `trap`.
    Trap,
    /// The block has run for so long that it must be waiting for something that cannot happen.
    Endless,
    /// The launch does not fit the function.
    InvalidLaunch,
}

/// The first fault of a launch, and its place.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub kernel: String,
    pub block: [u32; 3],
    pub warp: u32,
    /// Of the PTX text, from 1.
    pub line: u32,
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Fault { kind, kernel, block: [x, y, z], warp, line, what } = self;
        write!(
            f,
            "kernel {kernel}, block ({x},{y},{z}), warp {warp}, PTX line {line}: {what} [{kind:?}]"
        )
    }
}

impl std::error::Error for Fault {}

/// A fault before the place is added to it.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub kind: Kind,
    pub what: String,
}

impl Trouble {
    pub fn new(kind: Kind, what: impl Into<String>) -> Trouble {
        Trouble { kind, what: what.into() }
    }
}
