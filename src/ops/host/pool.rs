//! Threads for work on large tensors: one pool for the process, which grows to the most threads that
//! were asked for.
//!
//! * The caller takes part, and alone does what is small: nothing is started or woken for it.
//! * Share `k` of a tensor is always the same elements, and worker `k`'s: what the library keeps is
//!   first touched, and thereby placed, by the thread that will use it.
//! * Who finds the pool at work for another cache works alone, and so does a process that was forked
//!   from the one whose threads they are.
//! * Nobody spins, and a job allocates nothing.
//!
//! Why not rayon: its shares go to whoever is free, and its idle threads spin before they sleep.
use super::BLOCK;
use once_cell::sync::Lazy;
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

/// Blocks of a share at least: for fewer, waking a thread costs more than it saves. `benches/ops.rs`
/// shows where that is.
const SHARE: usize = 128;

/// Threads at most, if none are asked for: a few fill most memories, and an engine's own want cores
/// too. This bound is a choice, not a measurement.
const ENOUGH: usize = 16;

/// The work on elements `0 .. len`, in as many shares as there are threads, each of whole blocks.
/// `threads` is 0 for as many as are of use, 1 for the caller alone.
pub fn shares(threads: usize, len: usize, f: impl Fn(Range<usize>) + Sync) {
    let n_blocks = len.div_ceil(BLOCK);
    divide(threads, n_blocks, SHARE, |blocks| {
        f(blocks.start * BLOCK..len.min(blocks.end * BLOCK));
    });
}

/// Calls `f` once for each of `0 .. n`, of which `least` are worth waking a thread for; `threads` as in
/// [`shares`].
pub fn for_each(threads: usize, n: usize, least: usize, f: impl Fn(usize) + Sync) {
    divide(threads, n, least, |units| units.for_each(&f));
}

/// As many threads as are meant: 0 is as many as are of use.
pub fn count(threads: usize) -> usize {
    static SENSIBLE: Lazy<usize> =
        Lazy::new(|| std::thread::available_parallelism().map_or(1, |n| n.get().min(ENOUGH)));
    if threads == 0 { *SENSIBLE } else { threads }
}

fn divide(threads: usize, n: usize, least: usize, f: impl Fn(Range<usize>) + Sync) {
    let most = n / least;
    if threads == 1 || most < 2 {
        return f(0..n);
    }
    let threads = count(threads).min(most);
    let share = n.div_ceil(threads);
    run(n.div_ceil(share), &|k| f(k * share..n.min((k + 1) * share)), || f(0..n));
}

// ---- the pool ----

type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// A job that waits for a worker. The caller does not return before it is done.
#[derive(Clone, Copy)]
struct Work(*const Job<'static>);

// A `Job` may be used from any thread.
unsafe impl Send for Work {}

#[derive(Default)]
struct Worker {
    work: Mutex<Option<Work>>,
    given: Condvar,
}

#[derive(Default)]
struct Pool {
    /// The process whose threads they are.
    process: u32,
    /// Number `k` does share `k + 1`.
    workers: Vec<Arc<Worker>>,
}

/// Held by who has a job in hand.
static POOL: Mutex<Pool> = Mutex::new(Pool { process: 0, workers: Vec::new() });

#[derive(Default)]
struct Progress {
    /// Shares that workers have not done yet.
    left: usize,
    panic: Option<Box<dyn Any + Send>>,
}

static PROGRESS: Mutex<Progress> = Mutex::new(Progress { left: 0, panic: None });
static DONE: Condvar = Condvar::new();

/// `job(0)`, ... `job(n - 1)`, each on a thread of its own; or `alone`, if the pool cannot be had.
fn run(n: usize, job: &Job<'_>, alone: impl Fn()) {
    let mut pool = match POOL.try_lock() {
        Ok(pool) => pool,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return alone(),
    };
    if n < 2 || !pool.grow(n - 1) {
        drop(pool);
        return alone();
    }
    lock(&PROGRESS).left = n - 1;
    // The workers are done with it when this function returns.
    let work = Work(unsafe { std::mem::transmute::<&Job<'_>, &Job<'static>>(job) });
    for worker in &pool.workers[..n - 1] {
        *lock(&worker.work) = Some(work);
        worker.given.notify_one();
    }
    let own = catch_unwind(AssertUnwindSafe(|| job(0)));
    let mut progress = lock(&PROGRESS);
    while progress.left > 0 {
        progress = DONE.wait(progress).unwrap_or_else(PoisonError::into_inner);
    }
    let panic = progress.panic.take();
    drop(progress);
    drop(pool);
    if let Some(panic) = own.err().or(panic) {
        resume_unwind(panic);
    }
}

impl Pool {
    /// Are there as many workers?
    fn grow(&mut self, n: usize) -> bool {
        let process = std::process::id();
        if self.workers.is_empty() {
            self.process = process;
        }
        if self.process != process {
            return false;
        }
        while self.workers.len() < n {
            let worker = Arc::<Worker>::default();
            let index = self.workers.len() + 1;
            let thread = std::thread::Builder::new().name(format!("diffcache-{index}"));
            let own = worker.clone();
            if thread.spawn(move || own.serve(index)).is_err() {
                return false;
            }
            self.workers.push(worker);
        }
        true
    }
}

impl Worker {
    fn serve(&self, share: usize) {
        loop {
            let mut work = lock(&self.work);
            let job = loop {
                match work.take() {
                    Some(Work(job)) => break job,
                    None => work = self.given.wait(work).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(work);
            // The caller waits until `left` is 0.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(share) }));
            let mut progress = lock(&PROGRESS);
            progress.left -= 1;
            if let Err(panic) = result {
                progress.panic = Some(panic);
            }
            if progress.left == 0 {
                DONE.notify_one();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn every_unit_is_done_once_whatever_the_threads() {
        for threads in [0, 1, 2, 3, 40] {
            for n in [0, 1, 2, 7, 100] {
                let done: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                for_each(threads, n, 1, |k| _ = done[k].fetch_add(1, Relaxed));
                assert!(done.iter().all(|done| done.load(Relaxed) == 1));
            }
        }
    }

    #[test]
    fn shares_are_whole_blocks() {
        let len = 100 * BLOCK + 7;
        let sum = AtomicUsize::new(0);
        shares(3, len, |range| {
            assert!(range.start.is_multiple_of(BLOCK));
            assert!(range.end == len || range.end.is_multiple_of(BLOCK));
            sum.fetch_add(range.len(), Relaxed);
        });
        assert_eq!(sum.load(Relaxed), len);
    }

    #[test]
    fn a_panic_in_any_share_reaches_the_caller_and_the_pool_lives_on() {
        for at in 0..4 {
            let work = || for_each(4, 4, 1, |k| assert_ne!(k, at));
            assert!(catch_unwind(work).is_err());
        }
        every_unit_is_done_once_whatever_the_threads();
    }

    #[test]
    fn work_within_work_is_done_by_who_asks_for_it() {
        let done = AtomicUsize::new(0);
        for_each(2, 2, 1, |_| for_each(2, 5, 1, |_| _ = done.fetch_add(1, Relaxed)));
        assert_eq!(done.load(Relaxed), 10);
    }

    #[cfg(unix)]
    #[test]
    fn a_forked_process_works_alone() {
        for_each(2, 2, 1, |_| {});
        let child = unsafe { libc::fork() };
        if child == 0 {
            let done = AtomicUsize::new(0);
            for_each(2, 6, 1, |_| _ = done.fetch_add(1, Relaxed));
            unsafe { libc::_exit(i32::from(done.load(Relaxed) != 6)) };
        }
        let mut status = -1;
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
    }
}
