//! What each thread knows of its own open passes.
//!
//! A pass can be taken from under the thread that runs it: another thread destroys the cache, or
//! begins a run or a pass on it, or is just inside a call. What this thread has been told must then
//! still hold: blocks that were answered SKIP stay skipped, everything else computes, and its
//! output is right.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A pass that this thread began, or took part in.
#[derive(Clone, Copy, Debug)]
pub struct Mine {
    /// Number of the pass within its cache; 0 if it was refused.
    pub serial: u64,
    /// This thread began it, and has not ended it.
    pub began: bool,
    /// Blocks answered SKIP, their result being in place: first, and one past the last.
    pub span: Option<(u32, u32)>,
    /// A call of the pass was turned away, and its answer may have been wrong.
    pub doubted: bool,
}

struct Passes {
    /// A record is found as fast among a thousand as among a few.
    by_handle: HashMap<usize, Mine, BuildHasherDefault<OfHandle>>,
    /// Records before those of dead caches are looked for.
    full: usize,
}

/// Handles count up, so a product spreads them well enough.
#[derive(Default)]
struct OfHandle(u64);

impl Hasher for OfHandle {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a handle is one number");
    }

    fn write_usize(&mut self, handle: usize) {
        self.0 = (handle as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

thread_local! {
    static PASSES: RefCell<Passes> = const {
        RefCell::new(Passes { by_handle: HashMap::with_hasher(BuildHasherDefault::new()), full: 0 })
    };
    static EDITS: Cell<u64> = const { Cell::new(0) };
    static HERE: Cell<u8> = const { Cell::new(0) };
}

/// Tells a thread from all others that live. `std::thread::current` would allocate.
pub fn me() -> usize {
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// Fewer records than this are not worth looking through.
const FEW: usize = 64;

/// How often this thread's records were changed: what was found holds as long as this stands still.
pub fn edits() -> u64 {
    EDITS.with(Cell::get)
}

fn edit<T>(f: impl FnOnce(&mut Passes) -> T) -> Option<T> {
    EDITS.with(|edits| edits.set(edits.get() + 1));
    with(f)
}

fn with<T>(f: impl FnOnce(&mut Passes) -> T) -> Option<T> {
    // A thread that is being torn down knows nothing.
    PASSES.try_with(|passes| passes.try_borrow_mut().ok().map(|mut passes| f(&mut passes))).ok()?
}

/// `serial` is 0 if the pass was refused. `is_live` tells of a handle whether its cache exists.
pub fn begin(handle: usize, serial: u64, is_live: impl Fn(usize) -> bool) {
    edit(|passes| {
        let mine = Mine { serial, began: true, span: None, doubted: false };
        passes.by_handle.insert(handle, mine);
        if passes.by_handle.len() > passes.full.max(FEW) {
            passes.by_handle.retain(|handle, _| is_live(*handle));
            passes.full = 2 * passes.by_handle.len();
        }
    });
}

pub fn find(handle: usize) -> Option<Mine> {
    with(|passes| passes.by_handle.get(&handle).copied())?
}

/// A call of the pass `serial` was served on this thread; `span` if a skip is in place.
pub fn join(handle: usize, serial: u64, span: Option<(u32, u32)>) {
    edit(|passes| {
        let fresh = Mine { serial, began: false, span: None, doubted: false };
        let mine = passes.by_handle.entry(handle).or_insert(fresh);
        if mine.serial != serial {
            *mine = fresh;
        }
        mine.span = mine.span.or(span);
    });
}

/// An answer that this thread was given may have been wrong.
pub fn doubt(handle: usize) {
    edit(|passes| passes.by_handle.get_mut(&handle).map(|mine| mine.doubted = true));
}

pub fn end(handle: usize) -> Option<Mine> {
    edit(|passes| passes.by_handle.remove(&handle))?
}

impl Mine {
    /// Was this unit answered SKIP?
    pub fn skips(&self, unit: u32) -> bool {
        self.span.is_some_and(|(first, end)| {
            if unit == u32::MAX { first == u32::MAX } else { (first..end).contains(&unit) }
        })
    }
}
