//! Queued work, and the order it runs in.
//!
//! Streams are lazy. Work runs only when something waits for it, and then no more of it than the wait
//! needs: what the library under test forgot to order is seen in its stalest form. (A stream that holds
//! very much runs its oldest work, as a driver with a full queue waits for the device.) With a seed, work
//! that nothing has asked for yet is now and then run early, in an order drawn from the seed, as a
//! device would be free to.

use crate::{
    clock::{Clock, Stamp},
    work::Work,
};
use std::{collections::VecDeque, sync::Arc};

/// How a stream stands to the legacy stream of its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The null stream: after all that blocking streams hold, and they after it.
    Legacy,
    Blocking,
    /// `CU_STREAM_NON_BLOCKING`.
    Independent,
}

/// Pieces of work that a lane holds at most.
const FULL: usize = 1 << 14;

struct Lane {
    context: usize,
    role: Role,
    /// What the next piece of work in the lane comes after.
    clock: Clock,
    issued: u64,
    done: u64,
    queue: VecDeque<(Stamp, Work)>,
    /// The stream is destroyed: once all is done and known to be, another may use the lane.
    retired: bool,
}

pub struct Timeline {
    lanes: Vec<Lane>,
    /// What the host has waited for. One clock for all threads: how they order among each other is theirs.
    host: Clock,
    random: Option<Random>,
}

impl Timeline {
    pub fn new(seed: u64) -> Timeline {
        Timeline {
            lanes: Vec::new(),
            host: Clock::default(),
            random: (seed != 0).then_some(Random(seed)),
        }
    }

    pub fn open(&mut self, context: usize, role: Role) -> usize {
        let free = (0..self.lanes.len()).find(|&lane| {
            let Lane { retired, issued, .. } = self.lanes[lane];
            retired && self.host.get(lane) >= issued
        });
        let Some(lane) = free else {
            let (clock, queue) = (Clock::default(), VecDeque::new());
            self.lanes.push(Lane {
                context,
                role,
                clock,
                issued: 0,
                done: 0,
                queue,
                retired: false,
            });
            return self.lanes.len() - 1;
        };
        let reused = &mut self.lanes[lane];
        reused.clock = self.host.clone();
        (reused.context, reused.role, reused.retired) = (context, role, false);
        lane
    }

    pub fn retire(&mut self, lane: usize) {
        self.lanes[lane].retired = true;
    }

    /// Queues work at the end of a lane, after all that the stream has waited for, and what the rules of
    /// the legacy stream put before it.
    pub fn push(&mut self, lane: usize, work: Work) -> Stamp {
        let mut clock = self.horizon(lane);
        clock.join(&self.host);
        let tick = self.lanes[lane].issued + 1;
        clock.set(lane, tick);
        let stamp = Stamp { lane, tick, clock: Arc::new(clock.clone()) };
        let owner = &mut self.lanes[lane];
        (owner.issued, owner.clock) = (tick, clock);
        owner.queue.push_back((stamp.clone(), work));
        stamp
    }

    /// All that work queued in the lane now would come after.
    pub fn horizon(&self, lane: usize) -> Clock {
        let Lane { context, role, ref clock, .. } = self.lanes[lane];
        let mut clock = clock.clone();
        let before = match role {
            Role::Legacy => Some(Role::Blocking),
            Role::Blocking => Some(Role::Legacy),
            Role::Independent => None,
        };
        for other in
            self.lanes.iter().filter(|other| other.context == context && Some(other.role) == before)
        {
            clock.join(&other.clock);
        }
        clock
    }

    /// What a wait for the stream waits for: its own work; for the legacy stream that of the blocking
    /// ones too.
    pub fn extent(&self, lane: usize) -> Clock {
        match self.lanes[lane].role {
            Role::Legacy => self.horizon(lane),
            Role::Blocking | Role::Independent => self.lanes[lane].clock.clone(),
        }
    }

    /// All work of a context.
    pub fn all_of(&self, context: usize) -> Clock {
        let mut all = Clock::default();
        for lane in self.lanes.iter().filter(|lane| lane.context == context) {
            all.join(&lane.clock);
        }
        all
    }

    /// Later work in the lane comes after `clock`.
    pub fn order_after(&mut self, lane: usize, clock: &Clock) {
        self.lanes[lane].clock.join(clock);
    }

    /// The host has seen that all of this is done.
    pub fn host_saw(&mut self, clock: &Clock) {
        self.host.join(clock);
    }

    pub fn is_done(&self, clock: &Clock) -> bool {
        clock.ticks().all(|(lane, tick)| self.lanes[lane].done >= tick)
    }

    pub fn is_full(&self, lane: usize) -> bool {
        self.lanes[lane].queue.len() >= FULL
    }

    pub fn context_of(&self, lane: usize) -> usize {
        self.lanes[lane].context
    }

    /// Takes the next piece of work to run so that `clock` comes nearer; `None` when all of it is done.
    pub fn next_towards(&mut self, clock: &Clock) -> Option<(Stamp, Work)> {
        let (lane, tick) = self.first_undone(clock)?;
        let pending = self.pending();
        let early = self.random.as_mut().and_then(|random| random.perhaps(2, &pending));
        let (lane, tick) = early.unwrap_or((lane, tick));
        self.take_towards(lane, tick)
    }

    /// Takes work that nothing has asked for, when the seed will have it so.
    pub fn next_at_will(&mut self) -> Option<(Stamp, Work)> {
        let pending = self.pending();
        let (lane, tick) = self.random.as_mut()?.perhaps(3, &pending)?;
        self.take_towards(lane, tick)
    }

    /// The first tick not yet done of every lane that has work.
    fn pending(&self) -> Vec<(usize, u64)> {
        let busy = self.lanes.iter().enumerate().filter(|(_, lane)| !lane.queue.is_empty());
        busy.map(|(lane, state)| (lane, state.done + 1)).collect()
    }

    fn first_undone(&self, clock: &Clock) -> Option<(usize, u64)> {
        clock.ticks().find(|&(lane, tick)| self.lanes[lane].done < tick)
    }

    /// Follows what the lane's first piece of work waits for, to one that waits for nothing.
    fn take_towards(&mut self, mut lane: usize, tick: u64) -> Option<(Stamp, Work)> {
        debug_assert!(self.lanes[lane].done < tick);
        loop {
            let (stamp, _) = self.lanes[lane].queue.front()?;
            let earlier = stamp
                .clock
                .ticks()
                .find(|&(other, tick)| other != lane && self.lanes[other].done < tick);
            match earlier {
                Some((other, _)) => lane = other,
                None => break,
            }
        }
        let item = self.lanes[lane].queue.pop_front()?;
        self.lanes[lane].done = item.0.tick;
        Some(item)
    }

    /// Nothing more of this context will ever run.
    pub fn abandon(&mut self, context: usize) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.context == context) {
            lane.queue.clear();
            lane.done = lane.issued;
        }
    }
}

/// xorshift64*: all that an order needs.
struct Random(u64);

impl Random {
    /// Once in `often` times, one of them.
    fn perhaps<T: Copy>(&mut self, often: usize, choices: &[T]) -> Option<T> {
        (self.below(often) == 0 && !choices.is_empty()).then(|| choices[self.below(choices.len())])
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }
}
