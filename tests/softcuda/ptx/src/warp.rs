//! One warp: lanes that go different ways are groups, each with its own place in the code. The
//! group with the lowest place runs first, and groups that meet become one; compilers lay out code
//! so that this reconverges where a GPU would. A `.sync` instruction holds a group until all living
//! members of its mask have come; `bar.sync`, until the whole warp has.

use crate::Counts;
use crate::access::{Local, Memories, Visitor};
use crate::fault::{Kind, Trouble};
use crate::function::Code;
use crate::instruction::{Action, BarrierVote, Exchange, Instruction};
use crate::registers::{ALL, LANES, Mask, Register, Registers, for_lanes};
use crate::shared::Site;
use crate::shuffle::exchange;

#[derive(Clone, Copy)]
struct Group {
    place: usize,
    lanes: Mask,
    /// At a `.sync` instruction or a barrier, for lanes that have not come.
    waits: bool,
}

pub(crate) struct Warp {
    pub index: u32,
    pub registers: Registers,
    pub local: Local,
    /// Lanes that have not ended.
    pub alive: Mask,
    groups: Vec<Group>,
    pub barrier: Option<Barrier>,
}

/// Where a whole warp waits for others.
#[derive(Clone, Copy)]
pub(crate) struct Barrier {
    pub id: u32,
    pub threads: Option<u32>,
    pub line: u32,
    place: usize,
}

/// What has been executed, and how much may be.
pub(crate) struct Meter {
    pub counts: Counts,
    /// Of warp instructions.
    pub limit: u64,
}

impl Meter {
    #[inline(always)]
    fn count(&mut self, lanes: Mask) -> Result<(), Trouble> {
        self.counts.warp_instructions += 1;
        self.counts.lane_instructions += lanes.count_ones() as u64;
        if self.counts.warp_instructions <= self.limit {
            return Ok(());
        }
        let what = "it runs on and on: it must be waiting for something that cannot happen";
        Err(Trouble::new(Kind::Endless, what))
    }
}

/// What a step does to the group that made it.
enum Next {
    Continue,
    Jump(usize),
    /// These lanes are gone from the group.
    Without(Mask),
    /// It has been dissolved into the warp's groups.
    Split,
}

impl Warp {
    pub fn new(index: u32, code: &Code) -> Warp {
        let mut registers = Registers {
            words: vec![[!0; LANES]; code.words],
            doubles: vec![[!0; LANES]; code.doubles],
            predicates: vec![0; code.predicates],
        };
        for (row, value) in &code.word_constants {
            registers.words[*row as usize] = [*value; LANES];
        }
        for (row, value) in &code.double_constants {
            registers.doubles[*row as usize] = [*value; LANES];
        }
        for (row, value) in &code.predicate_constants {
            registers.predicates[*row as usize] = if *value { !0 } else { 0 };
        }
        Warp {
            index,
            registers,
            local: Local::new(code.local),
            alive: 0,
            groups: Vec::new(),
            barrier: None,
        }
    }

    pub fn start(&mut self, lanes: Mask) {
        self.alive = lanes;
        self.groups.clear();
        self.groups.push(Group { place: 0, lanes, waits: false });
        self.barrier = None;
        self.local.poison();
    }

    pub fn has_ended(&self) -> bool {
        self.alive == 0
    }

    /// Leaves the barrier.
    pub fn release(&mut self) {
        if let Some(barrier) = self.barrier.take() {
            self.groups.push(Group { place: barrier.place + 1, lanes: self.alive, waits: false });
        }
    }

    /// The vote that the warp brings to the barrier it waits at.
    pub fn barrier_vote<'a>(&self, code: &'a Code) -> Option<(&'a BarrierVote, Mask)> {
        match &code.instructions[self.barrier?.place].action {
            Action::Barrier { vote: Some(vote), .. } => {
                let flip = if vote.negated { !0 } else { 0 };
                Some((
                    vote,
                    (self.registers.predicates[vote.predicate.index as usize] ^ flip) & self.alive,
                ))
            }
            _ => None,
        }
    }

    /// Until the warp waits at a barrier, or ends. An error comes with the line it happened in.
    pub fn run(
        &mut self,
        code: &Code,
        memories: &mut Memories,
        meter: &mut Meter,
    ) -> Result<(), (Trouble, u32)> {
        while self.barrier.is_none() && !self.groups.is_empty() {
            let next = (0..self.groups.len())
                .filter(|g| !self.groups[*g].waits)
                .min_by_key(|g| self.groups[*g].place);
            let Some(next) = next else {
                return Err(self.deadlock(code));
            };
            let group = self.groups.swap_remove(next);
            self.run_group(group, code, memories, meter)?;
        }
        Ok(())
    }

    /// Until the group ends, waits, splits, or is no longer the one with the lowest place.
    fn run_group(
        &mut self,
        mut group: Group,
        code: &Code,
        memories: &mut Memories,
        meter: &mut Meter,
    ) -> Result<(), (Trouble, u32)> {
        let mut lowest_other = self.lowest_place();
        loop {
            if group.place >= lowest_other {
                self.merge(&mut group);
                lowest_other = self.lowest_place();
                if self.groups.iter().any(|g| !g.waits && g.place < group.place) {
                    self.groups.push(group);
                    return Ok(());
                }
            }
            let instruction = &code.instructions[group.place];
            meter.count(group.lanes).map_err(|trouble| (trouble, instruction.line))?;
            let lanes = group.lanes & self.guard(instruction);
            if let Action::Compute(compute) = &instruction.action {
                compute(&mut self.registers, lanes);
                group.place += 1;
                continue;
            }
            if lanes == 0 {
                group.place += 1;
                continue;
            }
            match self
                .step(instruction, group, lanes, memories)
                .map_err(|trouble| (trouble, instruction.line))?
            {
                Next::Continue => group.place += 1,
                Next::Jump(place) => group.place = place,
                Next::Without(gone) => {
                    group.lanes &= !gone;
                    group.place += 1;
                }
                Next::Split => return Ok(()),
            }
            if group.lanes == 0 {
                return Ok(());
            }
        }
    }

    /// The lanes for which the guard holds.
    #[inline(always)]
    fn guard(&self, instruction: &Instruction) -> Mask {
        match instruction.guard {
            None => ALL,
            Some((predicate, false)) => self.registers.predicates[predicate as usize],
            Some((predicate, true)) => !self.registers.predicates[predicate as usize],
        }
    }

    fn lowest_place(&self) -> usize {
        self.groups.iter().map(|g| g.place).min().unwrap_or(usize::MAX)
    }

    /// Takes in the groups that are at the same place.
    fn merge(&mut self, group: &mut Group) {
        self.groups.retain(|other| {
            let meets = other.place == group.place;
            if meets {
                group.lanes |= other.lanes;
            }
            !meets
        });
    }

    fn step(
        &mut self,
        instruction: &Instruction,
        group: Group,
        lanes: Mask,
        memories: &mut Memories,
    ) -> Result<Next, Trouble> {
        let site = Site { warp: self.index, line: instruction.line };
        let Warp { registers, local, .. } = self;
        let mut visitor = Visitor { registers, local, lanes, site };
        match &instruction.action {
            Action::Nothing | Action::Compute(_) => {}
            Action::Load { from, ty, into } => visitor.load(memories, *from, *ty, into)?,
            Action::Store { to, ty, values } => visitor.store(memories, *to, *ty, values)?,
            Action::Atomic { at, ty, update, old, operands } => {
                visitor.atomic(memories, *at, (*ty, *update), *old, operands)?;
            }
            Action::ActiveMask(into) => {
                for_lanes(lanes, |l| self.registers.set(*into, l, lanes as u64))
            }
            Action::Sync { members, exchange } => {
                return self.sync(*members, exchange, group, lanes);
            }
            Action::Barrier { id, threads, .. } => {
                return Ok(self.arrive(*id, *threads, group, lanes, instruction.line));
            }
            Action::Branch(target) if lanes == group.lanes => return Ok(Next::Jump(*target)),
            Action::Branch(target) => {
                self.groups.push(Group { place: *target, lanes, waits: false });
                self.groups.push(Group {
                    place: group.place + 1,
                    lanes: group.lanes & !lanes,
                    waits: false,
                });
                return Ok(Next::Split);
            }
            Action::BranchIndexed { index, targets } => {
                return self.branch_indexed(*index, targets, group, lanes);
            }
            Action::Exit => {
                self.alive &= !lanes;
                // Those who waited for these lanes may go on.
                self.groups.iter_mut().for_each(|g| g.waits = false);
                return Ok(Next::Without(lanes));
            }
            Action::Trap => return Err(Trouble::new(Kind::Trap, "trap")),
        }
        Ok(Next::Continue)
    }

    fn branch_indexed(
        &mut self,
        index: Register,
        targets: &[usize],
        group: Group,
        lanes: Mask,
    ) -> Result<Next, Trouble> {
        let mut rest = lanes;
        while rest != 0 {
            let lane = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let index = self.registers.get(index, lane) as usize;
            let place = *targets.get(index).ok_or_else(|| {
                Trouble::new(
                    Kind::IllegalAddress,
                    format!("lane {lane}: branch target {index} of {}", targets.len()),
                )
            })?;
            match self.groups.iter_mut().find(|g| g.place == place && !g.waits) {
                Some(other) => other.lanes |= 1 << lane,
                None => self.groups.push(Group { place, lanes: 1 << lane, waits: false }),
            }
        }
        if group.lanes != lanes {
            self.groups.push(Group {
                place: group.place + 1,
                lanes: group.lanes & !lanes,
                waits: false,
            });
        }
        Ok(Next::Split)
    }

    /// Lanes may name different members; those who name the same act together.
    fn sync(
        &mut self,
        members: Register,
        what: &Exchange,
        group: Group,
        lanes: Mask,
    ) -> Result<Next, Trouble> {
        let mut parties: Vec<(Mask, Mask)> = Vec::new();
        for_lanes(lanes, |lane| {
            let named = self.registers.get(members, lane) as Mask;
            match parties.iter_mut().find(|(m, _)| *m == named) {
                Some((_, party)) => *party |= 1 << lane,
                None => parties.push((named, 1 << lane)),
            }
        });
        for (named, party) in &parties {
            if party & !named != 0 {
                let what = format!(
                    "lanes {party:#010x} name the members {named:#010x}, not all of themselves"
                );
                return Err(Trouble::new(Kind::InactiveLane, what));
            }
            if named & self.alive & !party != 0 {
                return Ok(self.wait(group, lanes));
            }
        }
        for (_, party) in parties {
            exchange(what, &mut self.registers, party)?;
        }
        Ok(Next::Continue)
    }

    fn arrive(
        &mut self,
        id: Register,
        threads: Option<Register>,
        group: Group,
        lanes: Mask,
        line: u32,
    ) -> Next {
        if lanes != self.alive {
            return self.wait(group, lanes);
        }
        let lane = lanes.trailing_zeros() as usize;
        let value = |register: Register| self.registers.get(register, lane) as u32;
        self.barrier =
            Some(Barrier { id: value(id), threads: threads.map(value), line, place: group.place });
        Next::Split
    }

    /// The lanes stay where they are; the others of the group go on.
    fn wait(&mut self, group: Group, lanes: Mask) -> Next {
        self.groups.push(Group { place: group.place, lanes, waits: true });
        if group.lanes != lanes {
            self.groups.push(Group {
                place: group.place + 1,
                lanes: group.lanes & !lanes,
                waits: false,
            });
        }
        Next::Split
    }

    fn deadlock(&self, code: &Code) -> (Trouble, u32) {
        let line = |group: &Group| code.instructions[group.place].line;
        let waiting: Vec<String> = self
            .groups
            .iter()
            .map(|g| format!("lanes {:#010x} in line {}", g.lanes, line(g)))
            .collect();
        let what = format!("the warp waits for itself: {}", waiting.join(", "));
        (Trouble::new(Kind::Deadlock, what), line(&self.groups[0]))
    }
}
