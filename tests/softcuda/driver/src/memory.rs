//! Device, pinned and managed memory: what lives, whose it is, and who has touched it.
//!
//! Device addresses are addresses of this process, though the host cannot touch what lies there: see
//! [`crate::arena`]. Memory is full of 0xFF (NaN in every float type) when it is allocated and again
//! when it is freed. Freed memory is kept aside for a while, so that its use is known for what it is.
//!
//! Every access is checked for its bounds, for the owner of the memory, and for order: it must come
//! after the allocation and before the free, and two accesses of which one writes must be ordered
//! among themselves. A kernel's accesses to one allocation count as the range from the lowest byte to
//! the highest; of every allocation the last accesses are remembered, not all.

use crate::{
    arena::Arena,
    clock::Stamp,
    status::{Outcome, Status},
};
use std::{
    alloc::Layout,
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

const POISON: u8 = 0xFF;
const ALIGNMENT: usize = 256;
/// Bytes of freed memory that stay known.
const KEPT_ASIDE: usize = 64 << 20;
/// Accesses remembered of each allocation.
const REMEMBERED: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `cuMemAlloc`: of one context.
    Device,
    /// `cuMemAllocAsync`: of the device's pool, for all its contexts.
    Pool,
    Managed,
    Pinned,
    /// Of a graph; the address means nothing before it is launched.
    Graph,
}

pub struct Allocation {
    pub start: u64,
    pub bytes: usize,
    pub kind: Kind,
    pub context: usize,
    pub device: usize,
    allocated: Option<Stamp>,
    /// Set when the free is called; the memory goes when the free is reached.
    freed: Option<Stamp>,
    gone: bool,
    uses: VecDeque<Use>,
}

/// Who touches memory.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub context: usize,
    pub device: usize,
}

pub enum Access {
    Read,
    Write,
}

/// An access that has been made.
pub struct Use {
    pub stamp: Stamp,
    pub by: Arc<str>,
    pub read: Range<u64>,
    pub write: Range<u64>,
}

pub struct Heap {
    arena: Arena,
    allocations: BTreeMap<u64, Allocation>,
    /// Bytes of each device's memory: a sum over all allocations would be taken at every new one.
    in_use: HashMap<usize, u64>,
    aside: VecDeque<u64>,
    bytes_aside: usize,
}

impl Allocation {
    pub fn end(&self) -> u64 {
        self.start + self.bytes as u64
    }

    pub fn is_live(&self) -> bool {
        self.freed.is_none() && !self.gone
    }

    /// Whether an address not below the start is in the allocation, or so close behind it that it must
    /// be meant.
    fn is_near(&self, address: u64) -> bool {
        address < self.end() + (1 << 16)
    }

    /// Whether the memory itself is the host's too.
    fn in_host_memory(kind: Kind) -> bool {
        matches!(kind, Kind::Pinned | Kind::Managed)
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, ALIGNMENT).ok()
}

fn take_from_host(bytes: usize) -> Option<u64> {
    // SAFETY: the size is not 0.
    let start = unsafe { std::alloc::alloc(layout(bytes)?) };
    (!start.is_null()).then_some(start as u64)
}

fn give_back_to_host(start: u64, bytes: usize) {
    let layout = layout(bytes).expect("it was taken with it");
    // SAFETY: taken with this layout, and nothing can name it any more.
    unsafe { std::alloc::dealloc(start as *mut u8, layout) };
}

impl Heap {
    pub fn new() -> Heap {
        Heap {
            arena: Arena::reserve(),
            allocations: BTreeMap::new(),
            in_use: HashMap::new(),
            aside: VecDeque::new(),
            bytes_aside: 0,
        }
    }

    /// From here on it is a fault to touch device memory.
    pub fn close(&self) {
        self.arena.close();
    }

    /// `bytes` is above 0.
    pub fn allocate(&mut self, bytes: usize, kind: Kind, place: Place) -> Outcome<u64> {
        let start = match Allocation::in_host_memory(kind) {
            true => take_from_host(bytes),
            false => self.arena.take(bytes),
        };
        let start = start.ok_or(Status::OUT_OF_MEMORY)?;
        self.arena.open(start, bytes);
        // SAFETY: just taken, `bytes` long.
        unsafe { (start as *mut u8).write_bytes(POISON, bytes) };
        let Place { context, device } = place;
        let (allocated, freed, gone, uses) = (None, None, false, VecDeque::new());
        if kind != Kind::Pinned {
            *self.in_use.entry(device).or_default() += bytes as u64;
        }
        self.allocations.insert(
            start,
            Allocation { start, bytes, kind, context, device, allocated, freed, gone, uses },
        );
        Ok(start)
    }

    pub fn allocated_at(&mut self, start: u64, stamp: Stamp) {
        self.allocations.get_mut(&start).expect("just allocated").allocated = Some(stamp);
    }

    /// The live allocation that begins at this address.
    pub fn live(&self, start: u64) -> Option<&Allocation> {
        self.allocations.get(&start).filter(|allocation| allocation.is_live())
    }

    /// The live allocation this address lies in.
    pub fn live_around(&self, address: u64) -> Option<&Allocation> {
        self.find(address).filter(|allocation| allocation.is_live())
    }

    pub fn all_live(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.values().filter(|allocation| allocation.is_live())
    }

    /// Bytes of the device's memory that are in use.
    pub fn bytes_on(&self, device: usize) -> u64 {
        self.in_use.get(&device).copied().unwrap_or(0)
    }

    fn find(&self, address: u64) -> Option<&Allocation> {
        let (_, below) = self.allocations.range(..=address).next_back()?;
        (address < below.end()).then_some(below)
    }

    /// Whether the address lies in memory of this library's, live or not.
    pub fn knows(&self, address: u64) -> bool {
        self.find(address).is_some()
    }

    /// The free has been called and will be reached at `stamp`. What has used the memory must be over by
    /// then.
    pub fn free_at(&mut self, start: u64, stamp: Stamp) -> Result<(), String> {
        let allocation = self.allocations.get_mut(&start).expect("the caller has found it live");
        let unordered = |earlier: &Stamp| !stamp.follows(earlier);
        let late = allocation.uses.iter().find(|used| unordered(&used.stamp));
        let fault = match (late, &allocation.allocated) {
            (Some(used), _) => {
                Some(format!("the free of {start:#x} is not ordered after its use by {}", used.by))
            }
            (None, Some(birth)) if unordered(birth) => {
                Some(format!("the free of {start:#x} is not ordered after its allocation"))
            }
            _ => None,
        };
        allocation.freed = Some(stamp);
        fault.map_or(Ok(()), Err)
    }

    /// The free is reached. The memory is poisoned and kept aside.
    pub fn bury(&mut self, start: u64) {
        let Some(allocation) =
            self.allocations.get_mut(&start).filter(|allocation| !allocation.gone)
        else {
            return;
        };
        allocation.gone = true;
        if allocation.kind != Kind::Pinned {
            *self.in_use.entry(allocation.device).or_default() -= allocation.bytes as u64;
        }
        self.arena.open(start, allocation.bytes);
        // SAFETY: `bytes` long, and ours until `forget_oldest` gives it back.
        unsafe { (start as *mut u8).write_bytes(POISON, allocation.bytes) };
        self.aside.push_back(start);
        self.bytes_aside += allocation.bytes;
        while self.bytes_aside > KEPT_ASIDE {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(allocation) =
            self.aside.pop_front().and_then(|start| self.allocations.remove(&start))
        else {
            return;
        };
        let Allocation { start, bytes, kind, .. } = allocation;
        self.bytes_aside -= bytes;
        match Allocation::in_host_memory(kind) {
            true => give_back_to_host(start, bytes),
            false => self.arena.discard(start, bytes),
        }
    }

    /// All memory of a context goes with it.
    pub fn bury_context(&mut self, context: usize) {
        let of_context = |a: &&Allocation| a.context == context && a.kind != Kind::Pool && !a.gone;
        let starts: Vec<u64> =
            self.allocations.values().filter(of_context).map(|a| a.start).collect();
        for start in starts {
            self.bury(start);
        }
    }

    /// The allocation that holds the bytes, live or not, if it is of a kind and an owner that this place
    /// can reach.
    pub fn reach(&self, place: &Place, address: u64, bytes: usize) -> Result<&Allocation, String> {
        let range = format_args!("{address:#x} ({bytes} bytes)").to_string();
        let end = address.saturating_add(bytes as u64);
        let Some((_, allocation)) =
            self.allocations.range(..=address).next_back().filter(|(_, a)| a.is_near(address))
        else {
            return Err(format!("{range} is not device memory"));
        };
        if end > allocation.end() {
            let (beyond, length, start) =
                (end - allocation.end(), allocation.bytes, allocation.start);
            return Err(format!(
                "{range} ends {beyond} bytes past the end of the {length} bytes at {start:#x}"
            ));
        }
        let reached = match allocation.kind {
            Kind::Device => allocation.context == place.context,
            Kind::Pool => allocation.device == place.device,
            Kind::Managed | Kind::Pinned => true,
            Kind::Graph => {
                return Err(format!("{range} belongs to a graph that has not been launched"));
            }
        };
        match reached {
            true => Ok(allocation),
            false if allocation.device == place.device => {
                Err(format!("{range} belongs to another context"))
            }
            false => Err(format!(
                "{range} belongs to device {}, not to device {}",
                allocation.device, place.device
            )),
        }
    }

    /// Whether work at this stamp may touch the bytes; gives their allocation, which can be touched
    /// until the call is over.
    pub fn check(
        &self,
        place: &Place,
        stamp: &Stamp,
        address: u64,
        bytes: usize,
    ) -> Result<Range<u64>, String> {
        let allocation = self.reach(place, address, bytes)?;
        if allocation.gone {
            return Err(format!("{address:#x} ({bytes} bytes) was freed"));
        }
        check_order(allocation, stamp, address)?;
        self.arena.open(allocation.start, allocation.bytes);
        Ok(allocation.start..allocation.end())
    }

    /// Notes an access, and says if it races with an earlier one.
    pub fn remember(&mut self, start: u64, access: Use) -> Result<(), String> {
        let Some(allocation) = self.allocations.get_mut(&start) else { return Ok(()) };
        let rival = allocation.uses.iter().find(|earlier| earlier.races_with(&access));
        let fault = rival.map(|earlier| {
            format!(
                "data race on {start:#x}: {} and {} are on streams with no order between them",
                earlier.by, access.by
            )
        });
        allocation.uses.push_back(access);
        if allocation.uses.len() > REMEMBERED {
            allocation.uses.pop_front();
        }
        fault.map_or(Ok(()), Err)
    }
}

fn check_order(allocation: &Allocation, stamp: &Stamp, address: u64) -> Result<(), String> {
    if allocation.allocated.as_ref().is_some_and(|birth| !stamp.follows(birth)) {
        return Err(format!(
            "{address:#x} is used on a stream that is not ordered after its allocation"
        ));
    }
    if allocation.freed.as_ref().is_some_and(|free| !free.follows(stamp)) {
        return Err(format!(
            "{address:#x} is used on a stream that is not ordered before its free"
        ));
    }
    Ok(())
}

impl Use {
    fn races_with(&self, other: &Use) -> bool {
        let conflict = overlap(&self.write, &other.write)
            || overlap(&self.write, &other.read)
            || overlap(&self.read, &other.write);
        conflict && !self.stamp.follows(&other.stamp) && !other.stamp.follows(&self.stamp)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
}
