//! Handles: an index and a generation, looked up in a table that only grows by the number of caches
//! alive at once. A stale, doubled or wild handle is an error for ever; nothing is freed that a
//! handle could still reach.
//!
//! A slot's state is one atomic: `generation << 3 | LIVE | DOOMED | BUSY`. Who sets BUSY owns the
//! cache until it clears it; a destroy that comes meanwhile leaves DOOMED, and the owner carries it
//! out on its way out.
use super::guard::caught;
use crate::error::{Error, Result};
use crate::stats::Observed;
use once_cell::sync::OnceCell;
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard};

const BUSY: u64 = 1;
const DOOMED: u64 = 2;
const LIVE: u64 = 4;
const GENERATION: u32 = 3;

/// Bits of the index in a handle; above them the generation, below them a 1 that no aligned address
/// has.
const INDEX_BITS: u32 = if usize::BITS == 64 { 23 } else { 16 };
/// Slots of the first segment; each further one doubles the table.
const FIRST: usize = 64;

/// A table of `T`, each with what other threads may observe of it.
pub struct Table<T: 'static> {
    segments: [OnceCell<Box<[Slot<T>]>>; 18],
    free: Mutex<Free>,
}

struct Free {
    /// Oldest first, so that a slot rests as long as it can.
    slots: VecDeque<usize>,
    fresh: usize,
}

#[repr(align(128))]
struct Slot<T> {
    state: AtomicU64,
    value: UnsafeCell<Option<Box<T>>>,
    notes: Notes,
    observed: Mutex<Option<Arc<Mutex<Observed>>>>,
}

/// What an owner and other threads leave for each other.
#[derive(Default)]
pub struct Notes {
    /// A number of the owner's that anyone may read.
    announced: AtomicU64,
    /// Somebody was turned away, or could not be sure of an answer, since the owner last asked.
    refused: AtomicBool,
    doubted: AtomicBool,
}

impl Notes {
    /// For the owner only.
    pub fn announce(&self, number: u64) {
        self.announced.store(number, Release);
    }

    /// For the owner only: since this was last asked, was a call turned away, and was an answer in
    /// doubt?
    pub fn take_refused(&self) -> (bool, bool) {
        let take = |flag: &AtomicBool| flag.load(Relaxed) && flag.swap(false, AcqRel);
        (take(&self.refused), take(&self.doubted))
    }
}

// `value` is touched only by the thread that set BUSY.
unsafe impl<T: Send> Sync for Slot<T> {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn segment_of(index: usize) -> (usize, usize) {
    let segment = (index / FIRST + 1).ilog2() as usize;
    (segment, index - FIRST * ((1 << segment) - 1))
}

impl<T: Send> Table<T> {
    pub const fn new() -> Self {
        let free = Mutex::new(Free { slots: VecDeque::new(), fresh: 0 });
        Self { segments: [const { OnceCell::new() }; 18], free }
    }

    fn slot(&self, index: usize) -> Option<&Slot<T>> {
        let (segment, offset) = segment_of(index);
        self.segments.get(segment)?.get()?.get(offset)
    }

    pub fn insert(&self, value: Box<T>, observed: Arc<Mutex<Observed>>) -> Result<usize> {
        let mut free = lock(&self.free);
        let index = match free.slots.pop_front() {
            Some(index) => index,
            None => {
                let index = free.fresh;
                let (segment, _) = segment_of(index);
                if segment >= self.segments.len() || index >> INDEX_BITS != 0 {
                    let text = format!("{index} caches exist, more cannot be told apart");
                    return Err(Error::Memory(text));
                }
                self.segments[segment].get_or_init(|| {
                    let slots = (0..FIRST << segment).map(|_| Slot {
                        state: AtomicU64::new(1 << GENERATION),
                        value: UnsafeCell::new(None),
                        notes: Notes::default(),
                        observed: Mutex::new(None),
                    });
                    slots.collect()
                });
                free.fresh += 1;
                index
            }
        };
        drop(free);
        let slot = self.slot(index).expect("its segment is made");
        *lock(&slot.observed) = Some(observed);
        slot.notes.announce(0);
        slot.notes.take_refused();
        // The slot is free, so nobody else touches its value.
        unsafe { *slot.value.get() = Some(value) };
        let generation = slot.state.load(Relaxed) >> GENERATION;
        slot.state.store(generation << GENERATION | LIVE, Release);
        Ok((generation as usize) << (INDEX_BITS + 1) | index << 1 | 1)
    }

    /// The slot and the generation that a handle names.
    fn find(&self, handle: usize) -> Result<(usize, &Slot<T>, u64)> {
        let index = handle >> 1 & ((1 << INDEX_BITS) - 1);
        let slot = self.slot(index).filter(|_| handle & 1 == 1);
        let slot = slot.ok_or_else(|| Error::Handle("not a dc_cache_t".to_owned()))?;
        Ok((index, slot, (handle >> (INDEX_BITS + 1)) as u64))
    }

    /// Exclusive use of a live value.
    #[inline(always)]
    pub fn enter(&self, handle: usize) -> Result<Entered<'_, T>> {
        let (index, slot, generation) = self.find(handle)?;
        let idle = generation << GENERATION | LIVE;
        match slot.state.compare_exchange(idle, idle | BUSY, Acquire, Relaxed) {
            Ok(_) => Ok(Entered { table: self, index, slot }),
            Err(state) if state == idle | BUSY => {
                Err(Error::Busy("another thread is in a call on this cache".to_owned()))
            }
            Err(_) => Err(destroyed()),
        }
    }

    /// Ends a value, now or when the call that uses it returns.
    pub fn destroy(&self, handle: usize) -> Result<()> {
        let (index, slot, generation) = self.find(handle)?;
        let idle = generation << GENERATION | LIVE;
        loop {
            match slot.state.compare_exchange(idle, idle | BUSY | DOOMED, Acquire, Relaxed) {
                Ok(_) => {
                    self.retire(index, slot);
                    return Ok(());
                }
                Err(state) if state == idle | BUSY => {
                    let doomed = state | DOOMED;
                    if slot.state.compare_exchange(state, doomed, AcqRel, Relaxed).is_ok() {
                        return Ok(());
                    }
                }
                Err(state) if state == idle => {}
                Err(_) => return Err(destroyed()),
            }
        }
    }

    /// The caller has set BUSY and DOOMED, or found DOOMED with its own BUSY.
    fn retire(&self, index: usize, slot: &Slot<T>) {
        // BUSY is ours.
        let value = unsafe { (*slot.value.get()).take() };
        *lock(&slot.observed) = None;
        let generation = (slot.state.load(Relaxed) >> GENERATION) + 1;
        slot.state.store(generation << GENERATION, Release);
        lock(&self.free).slots.push_back(index);
        // Last: it calls the engine's allocator and log, which may use other caches.
        drop(value);
    }

    /// The number announced last by the owner of a live value.
    pub fn announced(&self, handle: usize) -> Result<u64> {
        let (_, slot, generation) = self.find(handle)?;
        let announced = slot.notes.announced.load(Acquire);
        let state = slot.state.load(Acquire);
        let live = state >> GENERATION == generation && state & (LIVE | DOOMED) == LIVE;
        if live { Ok(announced) } else { Err(destroyed()) }
    }

    /// Lets the owner know that a call was turned away; and, in `doubt`, that its answer may have
    /// been wrong.
    pub fn refuse(&self, handle: usize, doubt: bool) {
        if let Ok((_, slot, generation)) = self.find(handle)
            && slot.state.load(Acquire) >> GENERATION == generation
        {
            slot.notes.refused.store(true, Release);
            slot.notes.doubted.fetch_or(doubt, Release);
        }
    }

    /// What may be seen of a live value at any time.
    pub fn observe(&self, handle: usize) -> Result<Arc<Mutex<Observed>>> {
        let (_, slot, generation) = self.find(handle)?;
        let observed = lock(&slot.observed).clone();
        let state = slot.state.load(Acquire);
        let live = state >> GENERATION == generation && state & LIVE != 0;
        observed.filter(|_| live).ok_or_else(destroyed)
    }
}

fn destroyed() -> Error {
    Error::Handle("the cache was destroyed".to_owned())
}

pub struct Entered<'a, T: Send + 'static> {
    table: &'a Table<T>,
    index: usize,
    slot: &'a Slot<T>,
}

impl<T: Send> Entered<'_, T> {
    pub fn value(&mut self) -> &mut T {
        self.parts().0
    }

    pub fn parts(&mut self) -> (&mut T, &Notes) {
        // BUSY is ours until drop, and a live slot has a value.
        let value = unsafe { (*self.slot.value.get()).as_mut() };
        (value.expect("a live slot has a value"), &self.slot.notes)
    }
}

impl<T: Send> Drop for Entered<'_, T> {
    fn drop(&mut self) {
        let state = self.slot.state.load(Acquire);
        if state & DOOMED != 0
            || self.slot.state.compare_exchange(state, state & !BUSY, Release, Relaxed).is_err()
        {
            // What it calls of the engine's may panic, and no guard is round this.
            let _ = caught(|| {
                self.table.retire(self.index, self.slot);
                Ok(())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> Arc<Mutex<Observed>> {
        Arc::new(Mutex::new(Observed::default()))
    }

    fn text<T>(result: Result<T>) -> String {
        result.map_or_else(|error| error.to_string(), |_| "fine".to_owned())
    }

    #[test]
    fn a_handle_dies_for_ever_though_its_slot_is_used_again() {
        static TABLE: Table<u32> = Table::new();
        let first = TABLE.insert(Box::new(1), observed()).expect("room");
        assert_eq!(*TABLE.enter(first).expect("live").value(), 1);
        TABLE.destroy(first).expect("live");
        for k in 0..1000 {
            let next = TABLE.insert(Box::new(k), observed()).expect("room");
            assert_ne!(next, first);
            assert_eq!(text(TABLE.enter(first)), "the cache was destroyed");
            assert_eq!(text(TABLE.destroy(first)), "the cache was destroyed");
            assert_eq!(text(TABLE.observe(first)), "the cache was destroyed");
            TABLE.destroy(next).expect("live");
        }
    }

    #[test]
    fn wild_handles_are_told_from_live_ones() {
        static TABLE: Table<u32> = Table::new();
        let live = TABLE.insert(Box::new(1), observed()).expect("room");
        for wild in [2, 8, 0x7fff_dead_beef_0008, usize::MAX, live ^ 2, live & !1] {
            assert!(TABLE.enter(wild).is_err(), "{wild:#x}");
        }
        assert!(TABLE.enter(live).is_ok());
    }

    #[test]
    fn a_busy_value_is_destroyed_by_the_call_that_uses_it() {
        static TABLE: Table<Arc<()>> = Table::new();
        let alive = Arc::new(());
        let handle = TABLE.insert(Box::new(alive.clone()), observed()).expect("room");
        let entered = TABLE.enter(handle).expect("live");
        assert!(text(TABLE.enter(handle)).contains("another thread"));
        TABLE.destroy(handle).expect("live");
        assert_eq!(text(TABLE.destroy(handle)), "the cache was destroyed");
        assert_eq!(Arc::strong_count(&alive), 2);
        drop(entered);
        assert_eq!(Arc::strong_count(&alive), 1);
        assert_eq!(text(TABLE.enter(handle)), "the cache was destroyed");
    }

    #[test]
    fn thousands_live_at_once() {
        static TABLE: Table<usize> = Table::new();
        let handles: Vec<_> =
            (0..5000).map(|k| TABLE.insert(Box::new(k), observed()).expect("room")).collect();
        for (k, handle) in handles.iter().enumerate() {
            assert_eq!(*TABLE.enter(*handle).expect("live").value(), k);
        }
    }
}
