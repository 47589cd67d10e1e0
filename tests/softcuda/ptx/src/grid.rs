//! Blocks one after another, the warps of a block in turns from barrier to barrier. Both orders
//! follow from the seed; 0 is the order of their numbers.

use crate::access::Memories;
use crate::fault::{Fault, Kind, Trouble};
use crate::function::{Code, Function, Special};
use crate::instruction::{BarrierVote, BarrierVoteMode};
use crate::registers::LANES;
use crate::shared::{MAX_WARPS, Shared};
use crate::warp::{Barrier, Meter, Warp};
use crate::{Counts, Launch, Memory};

pub(crate) fn run(
    function: &Function,
    launch: &Launch,
    memory: &dyn Memory,
    limit: u64,
) -> Result<Counts, Fault> {
    let fault = |block, warp, line, trouble: Trouble| Fault {
        kind: trouble.kind,
        kernel: function.name.clone(),
        block,
        warp,
        line,
        what: trouble.what,
    };
    let threads =
        threads(function, launch).map_err(|trouble| fault([0; 3], 0, function.line, trouble))?;
    let mut grid = Grid {
        code: &function.code,
        launch,
        threads,
        memories: Memories {
            global: memory,
            storage: &function.code.storage,
            params: launch.params,
            shared: Shared::new(function.static_shared + launch.dynamic_shared),
        },
        warps: (0..threads.div_ceil(LANES) as u32)
            .map(|index| Warp::new(index, &function.code))
            .collect(),
        meter: Meter { counts: Counts::default(), limit },
        random: Random(launch.seed),
        limit,
    };
    let blocks: u64 = launch.grid.iter().map(|n| *n as u64).product();
    let order = Permutation::new(blocks, launch.seed);
    for turn in 0..blocks {
        let number = order.at(turn);
        let [x, y, _] = launch.grid.map(u64::from);
        let block = [number % x, number / x % y, number / (x * y)].map(|n| n as u32);
        grid.block(block).map_err(|(warp, line, trouble)| fault(block, warp, line, trouble))?;
    }
    Ok(grid.meter.counts)
}

/// Threads a block.
fn threads(function: &Function, launch: &Launch) -> Result<usize, Trouble> {
    let invalid = |what: String| Err(Trouble::new(Kind::InvalidLaunch, what));
    let threads: u64 = launch.block.iter().map(|n| *n as u64).product();
    if threads == 0 || launch.grid.contains(&0) {
        return invalid("an empty grid or block".into());
    }
    if threads > function.max_threads() as u64 || threads > (MAX_WARPS * LANES) as u64 {
        return invalid(format!(
            "{threads} threads a block, {} are allowed",
            function.max_threads()
        ));
    }
    let needed = function.params.last().map_or(0, |(offset, size)| offset + size);
    if launch.params.len() < needed {
        return invalid(format!(
            "{} bytes of parameters, {needed} are needed",
            launch.params.len()
        ));
    }
    Ok(threads as usize)
}

/// A fault's warp and line.
type Stop = (u32, u32, Trouble);

struct Grid<'a> {
    code: &'a Code,
    launch: &'a Launch<'a>,
    threads: usize,
    memories: Memories<'a>,
    warps: Vec<Warp>,
    meter: Meter,
    random: Random,
    /// Of warp instructions a block.
    limit: u64,
}

impl Grid<'_> {
    fn block(&mut self, block: [u32; 3]) -> Result<(), Stop> {
        self.memories.shared.start();
        for index in 0..self.warps.len() {
            let lanes = (self.threads - index * LANES).min(LANES);
            self.warps[index].start(u32::MAX >> (LANES - lanes));
            self.fill_specials(index, block);
        }
        self.meter.limit = self.meter.counts.warp_instructions + self.limit;
        let mut order: Vec<usize> = (0..self.warps.len()).collect();
        while self.warps.iter().any(|w| !w.has_ended()) {
            if self.launch.seed != 0 {
                self.random.shuffle(&mut order);
            }
            for index in &order {
                let warp = &mut self.warps[*index];
                warp.run(self.code, &mut self.memories, &mut self.meter)
                    .map_err(|(trouble, line)| (*index as u32, line, trouble))?;
            }
            self.release_barriers()?;
        }
        Ok(())
    }

    fn fill_specials(&mut self, index: usize, block: [u32; 3]) {
        let Launch { grid, block: size, dynamic_shared, .. } = self.launch;
        let [x, y, _] = *size;
        let total_shared = self.memories.shared.bytes() as u32;
        let warps = self.warps.len() as u32;
        let words = &mut self.warps[index].registers.words;
        for (row, special) in &self.code.specials {
            for (lane, value) in words[*row as usize].iter_mut().enumerate() {
                let thread = (index * LANES + lane) as u32;
                let equal = 1u32 << lane;
                *value = match special {
                    Special::Thread(axis) => [thread % x, thread / x % y, thread / (x * y)][*axis],
                    Special::BlockSize(axis) => size[*axis],
                    Special::Block(axis) => block[*axis],
                    Special::GridSize(axis) => grid[*axis],
                    Special::Lane => lane as u32,
                    Special::Warp => index as u32,
                    Special::Warps => warps,
                    Special::MaskEqual => equal,
                    Special::MaskLess => equal - 1,
                    Special::MaskLessEqual => equal | (equal - 1),
                    Special::MaskGreater => !(equal | (equal - 1)),
                    Special::MaskGreaterEqual => !(equal - 1),
                    Special::DynamicShared => *dynamic_shared as u32,
                    Special::TotalShared => total_shared,
                };
            }
        }
    }

    /// Lets go those who are complete. As on a GPU, warps that have ended are not waited for, and
    /// with a number of threads only as many warps as that.
    fn release_barriers(&mut self) -> Result<(), Stop> {
        let waiting: Vec<(usize, Barrier)> =
            self.warps.iter().enumerate().filter_map(|(i, w)| Some((i, w.barrier?))).collect();
        let alive = self.warps.iter().filter(|w| !w.has_ended()).count();
        let mut released = false;
        for (first, barrier) in &waiting {
            let same: Vec<usize> =
                waiting.iter().filter(|(_, b)| b.id == barrier.id).map(|(i, _)| *i).collect();
            let expected =
                barrier.threads.map_or(alive, |threads| (threads as usize).div_ceil(LANES));
            let agrees =
                |i: &usize| self.warps[*i].barrier.is_some_and(|b| b.threads == barrier.threads);
            if same[0] == *first && same.len() == expected && same.iter().all(agrees) {
                self.release(&same);
                released = true;
            }
        }
        match waiting.first() {
            Some((warp, barrier)) if !released => {
                Err((*warp as u32, barrier.line, self.deadlock(&waiting)))
            }
            _ => Ok(()),
        }
    }

    fn release(&mut self, warps: &[usize]) {
        self.memories.shared.barrier(warps.iter().fold(0, |mask, warp| mask | 1 << warp));
        let votes: Vec<(&BarrierVote, u32)> =
            warps.iter().filter_map(|w| self.warps[*w].barrier_vote(self.code)).collect();
        let holds: u32 = votes.iter().map(|(_, holds)| holds.count_ones()).sum();
        let voters: u32 = warps.iter().map(|w| self.warps[*w].alive.count_ones()).sum();
        for warp in warps {
            let warp = &mut self.warps[*warp];
            if let Some((vote, _)) = warp.barrier_vote(self.code) {
                let result = match vote.mode {
                    BarrierVoteMode::And => (holds == voters) as u64,
                    BarrierVoteMode::Or => (holds != 0) as u64,
                    BarrierVoteMode::Count => holds as u64,
                };
                crate::registers::for_lanes(warp.alive, |l| {
                    warp.registers.set(vote.into, l, result)
                });
            }
            warp.release();
        }
    }

    fn deadlock(&self, waiting: &[(usize, Barrier)]) -> Trouble {
        let places: Vec<String> = waiting
            .iter()
            .map(|(warp, b)| {
                let threads = b.threads.map_or(String::new(), |n| format!(" for {n} threads"));
                format!("warp {warp} at barrier {} in line {}{threads}", b.id, b.line)
            })
            .collect();
        Trouble::new(Kind::Deadlock, format!("the block waits for itself: {}", places.join(", ")))
    }
}

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn shuffle(&mut self, order: &mut [usize]) {
        for i in (1..order.len()).rev() {
            order.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

/// `start + turn * step` modulo the length, the step coprime to it: any grid in an order that needs
/// no table.
struct Permutation {
    length: u64,
    start: u64,
    step: u64,
}

impl Permutation {
    fn new(length: u64, seed: u64) -> Permutation {
        if seed == 0 {
            return Permutation { length, start: 0, step: 1 };
        }
        let mut random = Random(seed);
        let start = random.next() % length;
        let mut step = random.next() % length;
        while greatest_common_divisor(step, length) != 1 {
            step = (step + 1) % length.max(2);
        }
        Permutation { length, start, step }
    }

    fn at(&self, turn: u64) -> u64 {
        ((self.start as u128 + turn as u128 * self.step as u128) % self.length as u128) as u64
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
