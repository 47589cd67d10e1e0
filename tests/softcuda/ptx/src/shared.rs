//! The shared memory of a block, and who touched it: two accesses of the same four bytes by two
//! warps, one of them a write, must have a barrier between them, also where the values agree.
//!
//! Time is the number of barriers the block has passed. For each pair of warps the time of the last
//! barrier that ordered them is known, and for each four bytes the last write and the last readers;
//! what happened before the ordering barrier is settled, anything later is a race. Within a warp
//! nothing is checked.

use crate::fault::{Kind, Trouble};

const WORD: usize = 4;

pub(crate) const MAX_WARPS: usize = 32;

/// What an uninitialised read returns: NaN in every float format.
pub(crate) const POISON: u8 = 0xFF;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Atomic,
}

/// Who is asking.
#[derive(Clone, Copy)]
pub(crate) struct Site {
    pub warp: u32,
    pub line: u32,
}

#[derive(Clone, Copy, Default)]
struct Cell {
    written: u32,
    write_line: u32,
    read: u32,
    read_line: u32,
    /// A bit a warp.
    readers: u32,
    writer: u8,
    atomic: bool,
}

pub(crate) struct Shared {
    /// Vectors are 16 bytes, and aligned.
    memory: Vec<u128>,
    bytes: usize,
    cells: Vec<Cell>,
    now: u32,
    /// `[a][b]`: the time of the barrier by which what `b` did before is settled for `a`.
    settled: [[u32; MAX_WARPS]; MAX_WARPS],
}

impl Shared {
    pub fn new(bytes: usize) -> Shared {
        Shared {
            memory: vec![0; bytes.div_ceil(16)],
            bytes,
            cells: vec![Cell::default(); bytes.div_ceil(WORD)],
            now: 0,
            settled: [[0; MAX_WARPS]; MAX_WARPS],
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn contains(&self, pointer: *const u8) -> bool {
        self.memory.as_ptr_range().contains(&pointer.cast())
    }

    /// A new block: its memory is poison, and all earlier blocks are settled.
    pub fn start(&mut self) {
        self.memory.fill(u128::from_ne_bytes([POISON; 16]));
        self.now += 1;
        self.settled = [[self.now; MAX_WARPS]; MAX_WARPS];
    }

    /// The warps of the mask have waited for each other.
    pub fn barrier(&mut self, warps: u32) {
        self.now += 1;
        let together = |warp: usize| warps >> warp & 1 != 0;
        let mut latest = [0; MAX_WARPS];
        for warp in (0..MAX_WARPS).filter(|w| together(*w)) {
            for (latest, known) in latest.iter_mut().zip(&self.settled[warp]) {
                *latest = (*latest).max(*known);
            }
        }
        for warp in (0..MAX_WARPS).filter(|w| together(*w)) {
            latest[warp] = self.now;
        }
        for warp in (0..MAX_WARPS).filter(|w| together(*w)) {
            self.settled[warp] = latest;
        }
    }

    pub fn pointer(
        &mut self,
        offset: u64,
        bytes: usize,
        access: Access,
        site: Site,
    ) -> Result<*mut u8, Trouble> {
        let end = offset.checked_add(bytes as u64).filter(|end| *end <= self.bytes as u64);
        if end.is_none() {
            let what =
                format!("{bytes} bytes at {offset:#x} of {:#x} bytes of shared memory", self.bytes);
            return Err(Trouble::new(Kind::SharedOutOfBounds, what));
        }
        let offset = offset as usize;
        for word in offset / WORD..(offset + bytes).div_ceil(WORD) {
            self.touch(word, access, site)?;
        }
        Ok(self.memory.as_mut_ptr().cast::<u8>().wrapping_add(offset))
    }

    #[inline]
    fn touch(&mut self, word: usize, access: Access, site: Site) -> Result<(), Trouble> {
        let cell = &mut self.cells[word];
        let settled = &self.settled[site.warp as usize];
        let both_atomic = cell.atomic && access == Access::Atomic;
        if cell.writer as u32 != site.warp
            && cell.written >= settled[cell.writer as usize]
            && !both_atomic
        {
            return Err(race(word, access, site, "wrote", cell.writer as u32, cell.write_line));
        }
        let own = 1u32 << site.warp;
        let unsettled = unsettled(cell.readers & !own, cell.read, settled);
        if access == Access::Read {
            cell.readers = if unsettled == 0 { own } else { cell.readers | own };
            cell.read = self.now;
            cell.read_line = site.line;
            return Ok(());
        }
        if unsettled != 0 {
            return Err(race(
                word,
                access,
                site,
                "read",
                unsettled.trailing_zeros(),
                cell.read_line,
            ));
        }
        cell.readers = 0;
        cell.writer = site.warp as u8;
        cell.written = self.now;
        cell.write_line = site.line;
        cell.atomic = access == Access::Atomic;
        Ok(())
    }
}

/// Those of the readers whose reads at that time are not yet settled.
#[inline]
fn unsettled(readers: u32, time: u32, settled: &[u32; MAX_WARPS]) -> u32 {
    let mut rest = readers;
    let mut unsettled = 0;
    while rest != 0 {
        let reader = rest.trailing_zeros();
        unsettled |= ((time >= settled[reader as usize]) as u32) << reader;
        rest &= rest - 1;
    }
    unsettled
}

#[cold]
fn race(word: usize, access: Access, site: Site, did: &str, other: u32, line: u32) -> Trouble {
    let does = match access {
        Access::Read => "reads",
        Access::Write => "writes",
        Access::Atomic => "updates",
    };
    let address = word * WORD;
    let what = format!(
        "warp {} {does} shared address {address:#x}, which warp {other} {did} in line {line}, with no barrier between",
        site.warp
    );
    Trouble::new(Kind::SharedRace, what)
}
