//! Vector clocks: which work comes before which, whatever order it really ran in.
//!
//! A lane is one stream's line of work; its n-th piece of work has tick n. A clock says of each lane
//! up to which tick everything is known to be done, so it is both what a piece of work must wait
//! for and what it may rely on.

use std::sync::Arc;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock(Vec<u64>);

impl Clock {
    pub fn get(&self, lane: usize) -> u64 {
        self.0.get(lane).copied().unwrap_or(0)
    }

    pub fn set(&mut self, lane: usize, tick: u64) {
        if self.0.len() <= lane {
            self.0.resize(lane + 1, 0);
        }
        self.0[lane] = tick;
    }

    /// Comes after all that `other` comes after.
    pub fn join(&mut self, other: &Clock) {
        for (lane, tick) in other.ticks() {
            if self.get(lane) < tick {
                self.set(lane, tick);
            }
        }
    }

    /// (lane, tick) of every lane that matters.
    pub fn ticks(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.0.iter().copied().enumerate().filter(|&(_, tick)| tick > 0)
    }
}

/// The place of one piece of work: its own tick, and the clock of all that comes before it and itself.
#[derive(Clone, Debug)]
pub struct Stamp {
    pub lane: usize,
    pub tick: u64,
    pub clock: Arc<Clock>,
}

impl Stamp {
    /// Whether `earlier` is sure to be done when this begins (or is this).
    pub fn follows(&self, earlier: &Stamp) -> bool {
        self.clock.get(earlier.lane) >= earlier.tick
    }
}
