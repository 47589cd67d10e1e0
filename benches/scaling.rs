//! How costs grow: with the size of tensors, with branches, with the number of caches and of threads
//! that use them, with the passes of a run. What is measured is relative, to a plain read of the same
//! bytes or to the smallest number; a summary goes to the table, and all points to `scaling.tsv`
//! beside it, of which scripts/scaling_chart.py makes docs/scaling.svg.
mod figures;
#[path = "../tests/support/mod.rs"]
mod support;

use figures::{Spread, Target, report, timed};
use half::bf16;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Write;
use std::sync::Barrier;
use std::time::Instant;
use support::*;

const SECTION: &str = "scaling";

/// A point of the chart.
fn point(panel: &str, line: &str, x: usize, value: Spread) {
    println!("{panel}: {line}: {x}: {:.3} ({:.3} to {:.3})", value.median, value.low, value.high);
    let Some(rows) = std::env::var_os("DC_FIGURES") else { return };
    let path = std::path::PathBuf::from(rows).with_file_name("scaling.tsv");
    let file = OpenOptions::new().create(true).append(true).open(path);
    let line = format!("{panel}\t{line}\t{x}\t{}\t{}\t{}\n", value.median, value.low, value.high);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("it can be written");
}

// ---- size ----

/// One tensor of bf16 numbers, and what the C ABI is told of it.
struct Stream(Vec<u64>);

impl Stream {
    fn new(bytes: usize, value: f32) -> Self {
        let word = u64::from(bf16::from_f32(value).to_bits()) * 0x1_0001_0001_0001;
        Self(vec![word; bytes / 8])
    }

    fn lent(&self) -> [dc_tensor_t; 1] {
        let mut shape = [0; DC_MAX_DIMS];
        shape[0] = (self.0.len() * 4) as i64;
        let data = self.0.as_ptr().cast_mut().cast();
        let (dtype, ndim, stride) = (DC_BF16, 1, [0; DC_MAX_DIMS]);
        [dc_tensor_t { data, dtype, ndim, shape, stride, flags: 0, id: 0, reserved: 0 }]
    }
}

/// What a check reads.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2"))]
fn plain_read(a: &[u64], b: &[u64], c: &[u64]) -> u64 {
    a.iter().zip(b).zip(c).fold(0, |sum, ((a, b), c)| sum.wrapping_add(a ^ b ^ c))
}

/// What a skip reads and writes.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2"))]
fn plain_add(out: &mut [u64], x: &[u64]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out ^= x);
}

/// What an engine shows, and what the plain loops work on.
struct Streams {
    x: Stream,
    h: Stream,
    a: Stream,
    b: Stream,
}

/// The bandwidth of a check and of a skip, of that of a plain loop on one thread.
fn of_plain(Streams { x, h, a, b }: &mut Streams, threads: u32) -> [Spread; 2] {
    let setup = Setup::new(2, &format!("fbcache,threshold=1e9,{NO_RAILS}"));
    let cache = setup
        .with(|engine| (engine.n_threads, engine.flags) = (threads, DC_ENGINE_KEEPS_INPUT))
        .create();
    let (lent_x, lent_h) = (x.lent(), h.lent());
    let repeats = ((64 << 20) / (8 * x.0.len())).clamp(7, 500);
    let mut shares = [Vec::new(), Vec::new()];
    ok(cache.begin_run(0));
    for step in 0..=repeats as u32 {
        ok(cache.begin_pass(&pass_of(step, &[0])));
        let mut action = DC_COMPUTE;
        // The streams outlive the cache's use of them.
        let check = timed(|| unsafe {
            cache.before_raw(0, &lent_x, None);
            cache.after_raw(0, &lent_h);
            action = cache.decide(DC_UNDECIDED);
        });
        let skip = timed(|| unsafe { action = cache.before_raw(1, &lent_h, None) });
        assert_eq!(action, if step == 0 { DC_COMPUTE } else { DC_SKIP });
        if step == 0 {
            // As above.
            unsafe { cache.after_raw(1, &lent_h) };
        }
        ok(cache.end_pass());
        // This program is for CPUs that have what its loops are compiled for.
        let read = timed(|| _ = black_box(unsafe { plain_read(&x.0, &h.0, &b.0) }));
        let add = timed(|| unsafe { plain_add(black_box(&mut a.0), &b.0) });
        if step > 0 {
            shares[0].push(read / check);
            shares[1].push(add / skip);
        }
    }
    shares.map(Spread::of)
}

/// Bytes that can be had, as far as the system tells.
fn available() -> usize {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.map_or(4 << 30, |kib: usize| kib << 10)
}

/// Powers of two, and what they are called in the table.
const NAMED: [(u32, &str); 3] = [(10, "1 KiB"), (20, "1 MiB"), (30, "1 GiB")];

fn sizes() {
    for power in (10..=30).step_by(2) {
        let bytes = 1 << power;
        // The four streams, and two that are kept.
        if 8 * bytes > available() {
            println!("size: {bytes}: not measured, for want of memory");
            continue;
        }
        let [x, h, a, b] = [1.0, 1.5, 0.0, 0.0].map(|value| Stream::new(bytes, value));
        let mut streams = Streams { x, h, a, b };
        for (threads, name) in [(1, "1 thread"), (2, "2 threads")] {
            let shares = of_plain(&mut streams, threads);
            for (what, share) in ["check", "skip"].into_iter().zip(shares) {
                point("size", &format!("{what}, {name}"), bytes, share);
                if let Some((_, size)) = NAMED.iter().find(|(named, _)| *named == power) {
                    let figure = format!("{what}, bf16 {size}, {name}");
                    report(SECTION, &figure, share, "x", Target::None, "plain loop, 1 thread");
                }
            }
        }
    }
}

// ---- calls ----

const BLOCKS: usize = 57;
const REPEATS: usize = 25;

/// A cache in a run, with tensors so small that its calls are all that costs. Its measured change is
/// 0 / 0, so it computes.
struct Engine {
    cache: Cache,
    x: Vec<dc_tensor_t>,
    _owner: [Tensor; 1],
    step: u32,
}

impl Engine {
    fn new(branches: u32) -> Self {
        let owner = [Tensor::of(Dtype::F32, &[1.0; 16])];
        let cache = Setup::new(BLOCKS, "fbcache").branches(branches, 1).create();
        ok(cache.begin_run(0));
        let mut engine = Self { cache, x: lent(&owner), _owner: owner, step: 0 };
        engine.steps(5, branches);
        engine
    }

    fn steps(&mut self, n: usize, branches: u32) {
        for _ in 0..n {
            for branch in 0..branches {
                self.begin(branch);
                (0..BLOCKS).for_each(|block| self.block(block));
                self.end();
            }
            self.step += 1;
        }
    }

    fn begin(&self, branch: u32) {
        ok(self.cache.begin_pass(&pass_of(self.step, &[branch])));
    }

    fn block(&self, block: usize) {
        // The tensor lives as long as `self`.
        unsafe {
            assert_eq!(self.cache.before_raw(block as u32, &self.x, None), DC_COMPUTE);
            self.cache.after_raw(block as u32, &self.x);
        }
    }

    fn end(&self) {
        ok(self.cache.end_pass());
    }
}

/// How many times as long as `one` `many` takes, in turn.
fn growth(mut many: impl FnMut(), mut one: impl FnMut()) -> Spread {
    many();
    one();
    Spread::of((0..REPEATS).map(|_| timed(&mut many) / timed(&mut one)))
}

fn branches() {
    for n in 1..=8 {
        let (mut many, mut one) = (Engine::new(n as u32), Engine::new(1));
        let cost = growth(|| many.steps(200, n as u32), || one.steps(200 * n, 1));
        point("branches", "a pass", n, cost);
        if n == 8 {
            let figure = "cost of a pass, 8 branches over 1";
            report(SECTION, figure, cost, "x", Target::AtMost(1.1), "1 branch");
        }
    }
}

fn caches() {
    let mut one = Engine::new(1);
    for n in [1, 10, 100, 1000] {
        let mut many: Vec<_> = (0..n).map(|_| Engine::new(1)).collect();
        let (rounds, passes) = (1000 / n, 1000);
        let in_turn = growth(
            || (0..rounds).for_each(|_| many.iter_mut().for_each(|engine| engine.steps(1, 1))),
            || one.steps(passes, 1),
        );
        point("caches", "a pass after the other", n, in_turn);
        let all_open = growth(
            || {
                for _ in 0..rounds {
                    many.iter().for_each(|engine| engine.begin(0));
                    for block in 0..BLOCKS {
                        many.iter().for_each(|engine| engine.block(block));
                    }
                    for engine in &mut many {
                        engine.end();
                        engine.step += 1;
                    }
                }
            },
            || one.steps(passes, 1),
        );
        point("caches", "all passes open at once", n, all_open);
        if n == 1000 {
            let figure = "cost of a pass, 1000 caches over 1";
            report(SECTION, figure, in_turn, "x", Target::AtMost(1.1), "1 cache");
            let figure = "cost of a pass, 1000 passes open over 1";
            report(SECTION, figure, all_open, "x", Target::AtMost(1.1), "1 cache");
        }
    }
}

/// Work of a thread that shares nothing with any other.
fn arithmetic(n: u64) {
    let mut state = 1u64;
    for _ in 0..n {
        state = black_box(state).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
    }
    black_box(state);
}

/// Seconds from the first thread's start to the last one's end, each with its own work.
fn together<T: Send>(states: &mut [T], work: impl Fn(&mut T) + Sync) -> f64 {
    let start = Barrier::new(states.len());
    std::thread::scope(|scope| {
        let (start, work) = (&start, &work);
        let each = |state| {
            scope.spawn(move || {
                start.wait();
                let begun = Instant::now();
                work(state);
                (begun, Instant::now())
            })
        };
        let workers: Vec<_> = states.iter_mut().map(each).collect();
        let times = workers.into_iter().map(|worker| worker.join().expect("no panic"));
        let (begun, ended): (Vec<_>, Vec<_>) = times.unzip();
        let last = ended.into_iter().max().expect("at least one thread");
        last.duration_since(begun.into_iter().min().expect("at least one thread")).as_secs_f64()
    })
}

fn threads() {
    for n in [1, 2, 4, 8] {
        let mut engines: Vec<_> = (0..n).map(|_| Owned(Engine::new(1))).collect();
        let (mut idle, alone) = (vec![(); n], &mut [Owned(Engine::new(1))]);
        let ours = |engines: &mut [Owned]| together(engines, |engine| engine.0.steps(3000, 1));
        let theirs = |states: &mut [()]| together(states, |()| arithmetic(10_000_000));
        let share = (0..REPEATS).map(|_| {
            let own = ours(&mut engines) / ours(alone);
            theirs(&mut idle) / theirs(&mut [()]) / own
        });
        let share = Spread::of(share);
        point("threads", "passes", n, share);
        if n == 8 {
            let figure = "8 threads, a cache each, of what plain arithmetic gains by them";
            report(SECTION, figure, share, "x", Target::AtLeast(0.9), "multiplications");
        }
    }
}

/// To be moved to a thread: the views in it are of its own tensor.
struct Owned(Engine);
unsafe impl Send for Owned {}

fn passes() {
    let most = 100_000;
    let mut engine = Engine::new(1);
    let times: Vec<_> = (0..most).map(|_| timed(|| engine.steps(1, 1))).collect();
    // Before that the CPU is still learning.
    let base = Spread::of(times[100..1000].iter().copied()).median;
    for (from, until) in [(0, 10), (10, 100), (100, 1000), (1000, 10_000), (10_000, most)] {
        let cost = Spread::of(times[from..until].iter().map(|time| time / base));
        point("passes", "a pass", until, cost);
        if until == most {
            let figure = "cost of a pass, the 100000th over the 1000th";
            report(SECTION, figure, cost, "x", Target::AtMost(1.1), "earlier passes");
        }
    }
}

fn main() {
    let all: [(&str, fn()); 5] = [
        ("sizes", sizes),
        ("branches", branches),
        ("caches", caches),
        ("threads", threads),
        ("passes", passes),
    ];
    // As cargo bench hands them on: `--bench`, and names of what is to be measured.
    let chosen: Vec<_> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    all.iter().filter(|(name, _)| is_chosen(name)).for_each(|(_, measure)| measure());
}
