//! What each thread knows of its own open passes.
//!
//! A pass can be taken from under the thread that runs it: another thread destroys the cache, or
//! begins a run or a pass on it, or is just inside a call. What this thread has been told must then
//! still hold: blocks that were answered SKIP stay skipped, everything else computes, and its
//! output is right.
use std::cell::RefCell;

/// A pass that this thread began, or took part in.
#[derive(Clone, Copy, Debug)]
pub struct Mine {
    handle: usize,
    /// Number of the pass within its cache; 0 if it was refused.
    pub serial: u64,
    /// Blocks answered SKIP, their result being in place: first, and one past the last.
    pub span: Option<(u32, u32)>,
    /// Some call of the pass was turned away.
    pub refused: bool,
}

thread_local! {
    static PASSES: RefCell<Vec<Mine>> = const { RefCell::new(Vec::new()) };
}

/// More than one thread serves at once; what is older belongs to passes that were never ended.
const MOST: usize = 1 << 16;

fn with<T>(f: impl FnOnce(&mut Vec<Mine>) -> T) -> Option<T> {
    // A thread that is being torn down knows nothing.
    PASSES.try_with(|passes| passes.try_borrow_mut().ok().map(|mut passes| f(&mut passes))).ok()?
}

pub fn begin(handle: usize, serial: u64) {
    with(|passes| {
        passes.retain(|mine| mine.handle != handle);
        if passes.len() >= MOST {
            passes.remove(0);
        }
        passes.push(Mine { handle, serial, span: None, refused: serial == 0 });
    });
}

/// The newest passes are the likeliest to be asked for.
pub fn find(handle: usize) -> Option<Mine> {
    with(|passes| passes.iter().rev().find(|mine| mine.handle == handle).copied())?
}

/// A skip of the pass `serial` has been carried out on this thread.
pub fn filled(handle: usize, serial: u64, span: (u32, u32)) {
    with(|passes| match passes.iter_mut().rev().find(|mine| mine.handle == handle) {
        Some(mine) => (mine.serial, mine.span) = (serial, Some(span)),
        None => passes.push(Mine { handle, serial, span: Some(span), refused: false }),
    });
}

pub fn refuse(handle: usize) {
    with(|passes| {
        let mine = passes.iter_mut().rev().find(|mine| mine.handle == handle);
        mine.into_iter().for_each(|mine| mine.refused = true);
    });
}

pub fn end(handle: usize) -> Option<Mine> {
    with(|passes| {
        let at = passes.iter().rposition(|mine| mine.handle == handle);
        at.map(|at| passes.remove(at))
    })?
}

impl Mine {
    /// Was this unit answered SKIP?
    pub fn skips(&self, unit: u32) -> bool {
        self.span.is_some_and(|(first, end)| {
            if unit == u32::MAX { first == u32::MAX } else { (first..end).contains(&unit) }
        })
    }
}
