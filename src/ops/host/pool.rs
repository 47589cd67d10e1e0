//! Work on blocks of elements, spread over threads: one pool for the process, started when a
//! tensor is first large enough to need it.
use once_cell::sync::Lazy;
use rayon::prelude::*;

/// Fewer blocks than this stay on the calling thread: waking a worker costs more than the work.
const SMALL: usize = 32;

/// `None` if no thread could be started, as in a process at its limit.
static POOL: Lazy<Option<rayon::ThreadPool>> = Lazy::new(|| {
    let builder = rayon::ThreadPoolBuilder::new();
    builder.thread_name(|index| format!("diffcache-{index}")).build().ok()
});

/// `f(0)`, `f(1)`, ... into `out`. `threads` is 0 for one per core, 1 for the caller alone.
pub fn fill<T: Send>(threads: usize, out: &mut [T], f: impl Fn(usize) -> T + Sync) {
    let n = out.len();
    let fill = |first: usize, part: &mut [T]| {
        part.iter_mut().zip(first..).for_each(|(out, index)| *out = f(index));
    };
    let pool = if threads == 1 || n < SMALL { None } else { POOL.as_ref() };
    let Some(pool) = pool.filter(|pool| pool.current_num_threads() > 1) else {
        return fill(0, out);
    };
    let threads = if threads == 0 { pool.current_num_threads() } else { threads };
    let share = n.div_ceil(threads);
    pool.install(|| {
        let parts = out.par_chunks_mut(share).enumerate();
        parts.for_each(|(part, out)| fill(part * share, out));
    });
}

/// Calls `f` once for each of `0 .. n`; `threads` as in [`fill`].
pub fn for_each(threads: usize, n: usize, f: impl Fn(usize) + Sync) {
    // A slice of units occupies no memory, whatever its length.
    fill(threads, &mut vec![(); n], f);
}
