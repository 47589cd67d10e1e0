//! `measure` and `combine` on tensors of 4608 x 3072 (FLUX: 4096 image and 512 text tokens), beside
//! a plain loop that reads and writes as many bytes with as many threads. Both are timed in turn, so
//! that a noisy machine is noisy for both. The last lines give the ratios: 1.00 is what memory can do.
use criterion::{Criterion, SamplingMode, Throughput};
use diffcache::ops::host::Host;
use diffcache::ops::memory::Memory;
use diffcache::ops::{Comparison, Dtype, Ops, Rounding, View};
use half::{bf16, f16};
use rayon::ThreadPool;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

const SHAPE: [usize; 2] = [4608, 3072];

/// A tensor, as words: what a plain loop works on.
struct Stream(Vec<u64>);

impl Stream {
    fn noise(dtype: Dtype, mut state: u64) -> Self {
        let mut element = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let per_word = 8 / dtype.size();
        let mut word = || {
            let shift = |k: usize| k * 8 * dtype.size();
            let bits = |x: f32| match dtype {
                Dtype::F32 => u64::from(x.to_bits()),
                Dtype::F16 => u64::from(f16::from_f32(x).to_bits()),
                Dtype::Bf16 => u64::from(bf16::from_f32(x).to_bits()),
            };
            (0..per_word).map(|k| bits(element()) << shift(k)).sum()
        };
        let words = SHAPE.iter().product::<usize>() / per_word;
        Self((0..words).map(|_| word()).collect())
    }

    fn view(&mut self, dtype: Dtype) -> View {
        // The words are as many bytes as the shape, and outlive the benchmark that uses the view.
        unsafe { View::strided(self.0.as_mut_ptr().cast(), dtype, &SHAPE, &[SHAPE[1], 1]) }
    }
}

// ---- the rivals ----

/// Words of a chunk: small enough to stay in the first-level cache.
const CHUNK: usize = 512;

/// The work of `f` on equal shares of `out` and its inputs, on one thread or on all of the pool's.
fn share<T: Send>(pool: Option<&ThreadPool>, out: &mut [T], f: impl Fn(usize, &mut [T]) + Sync) {
    match pool {
        None => f(0, out),
        Some(pool) => {
            let part = out.len().div_ceil(pool.current_num_threads());
            let parts =
                || out.par_chunks_mut(part).enumerate().for_each(|(k, out)| f(k * part, out));
            pool.install(parts);
        }
    }
}

/// Reads every word of every stream.
fn plain_read(pool: Option<&ThreadPool>, streams: &[&Stream]) {
    // One place for each chunk, so that reading is shared as writing is.
    let mut sums = vec![0u64; streams[0].0.len().div_ceil(CHUNK)];
    share(pool, &mut sums, |first, sums| {
        for (k, sum) in (first..).zip(sums) {
            for stream in streams {
                let words = &stream.0[k * CHUNK..(k + 1) * CHUNK];
                *sum = words.iter().fold(*sum, |sum, word| sum.wrapping_add(*word));
            }
        }
    });
    black_box(sums);
}

/// Reads every word of `streams` and writes as many words as one of them has.
fn plain_loop(pool: Option<&ThreadPool>, out: &mut Stream, streams: &[&Stream]) {
    let (first, rest) = streams.split_first().expect("at least one stream");
    share(pool, &mut out.0, |start, out| {
        let source = &first.0[start..start + out.len()];
        if rest.is_empty() {
            return out.copy_from_slice(source);
        }
        for (k, out) in out.chunks_mut(CHUNK).enumerate() {
            let at = start + k * CHUNK;
            out.copy_from_slice(&first.0[at..at + out.len()]);
            for stream in rest {
                let words = &stream.0[at..at + out.len()];
                out.iter_mut().zip(words).for_each(|(out, word)| *out ^= word);
            }
        }
    });
}

// ---- side by side ----

fn timed(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

struct Bench {
    criterion: Criterion,
    pool: ThreadPool,
    ratios: Vec<String>,
}

impl Bench {
    /// `ours` beside `plain`, each of which touches the bytes of so many streams.
    fn compare(
        &mut self,
        name: &str,
        (dtype, streams): (Dtype, usize),
        rival: &str,
        mut ours: impl FnMut(&mut Host),
        mut plain: impl FnMut(Option<&ThreadPool>),
    ) {
        let bytes = streams * SHAPE.iter().product::<usize>() * dtype.size();
        let mut group = self.criterion.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Bytes(bytes as u64));
        for (threads, pool) in [(1, None), (0, Some(&self.pool))] {
            let count = pool.map_or(1, ThreadPool::current_num_threads);
            let mut host = Host::new(Memory::new(None, 0), threads);
            let mut pairs = Vec::new();
            group.bench_function(format!("{count} threads"), |bencher| {
                bencher.iter_custom(|iterations| {
                    let pair = |_| (timed(|| ours(&mut host)), timed(|| plain(pool)));
                    let new: Vec<_> = (0..iterations).map(pair).collect();
                    pairs.extend_from_slice(&new);
                    Duration::from_secs_f64(new.iter().map(|(ours, _)| ours).sum())
                });
            });
            // None if the command line asks for other benchmarks only.
            if pairs.is_empty() {
                continue;
            }
            let ratio = median(pairs.iter().map(|(ours, plain)| plain / ours));
            let [ours, plain] = [
                median(pairs.iter().map(|(ours, _)| *ours)),
                median(pairs.iter().map(|(_, plain)| *plain)),
            ]
            .map(|seconds| bytes as f64 / seconds / 1e9);
            let threads =
                if count == 1 { "1 thread ".to_owned() } else { format!("{count} threads") };
            self.ratios.push(format!(
                "{name:<38} {threads}  {ratio:.2} of {rival} ({ours:.1} of {plain:.1} GB/s)"
            ));
        }
    }

    fn measure(&mut self, dtype: Dtype) {
        let [mut x, mut base, mut earlier] = [1, 2, 3].map(|seed| Stream::noise(dtype, seed));
        let [u, b, v] = [&mut x, &mut base, &mut earlier].map(|stream| stream.view(dtype));
        let name = |form: &str| format!("measure {dtype:?} {form}").to_lowercase();
        let measured = |host: &mut Host, base: Option<View>, keep: Option<View>| {
            let comparison = Comparison { x: u, base, earlier: v, keep };
            let pending = host.measure(&[comparison], false);
            black_box(host.read(pending));
        };
        self.compare(
            &name("2-stream, |u - v|"),
            (dtype, 2),
            "plain read",
            |host| measured(host, None, None),
            |pool| plain_read(pool, &[&x, &earlier]),
        );
        self.compare(
            &name("3-stream, |h - x - r|"),
            (dtype, 3),
            "plain read",
            |host| measured(host, Some(b), None),
            |pool| plain_read(pool, &[&x, &base, &earlier]),
        );
        // What FBCache does by default: the residual takes the place of the copied input.
        let mut out = Stream::noise(dtype, 4);
        self.compare(
            &name("3-stream, kept over x"),
            (dtype, 4),
            "plain loop",
            |host| measured(host, Some(b), Some(b)),
            |pool| plain_loop(pool, &mut out, &[&x, &base, &earlier]),
        );
    }

    fn combine(&mut self, dtype: Dtype) {
        let weights = [1.625, -0.79167, 0.16667, 0.5];
        let mut streams: Vec<_> = (0..6).map(|seed| Stream::noise(dtype, seed)).collect();
        let views: Vec<_> = streams.iter_mut().map(|stream| stream.view(dtype)).collect();
        let mut out = Stream::noise(dtype, 7);
        for k in 0..=weights.len() {
            let terms: Vec<_> = weights.into_iter().zip(views[1..=k].iter().copied()).collect();
            let sources: Vec<_> = streams[..=k].iter().collect();
            self.compare(
                &format!("combine {dtype:?} k={k}").to_lowercase(),
                (dtype, k + 2),
                if k == 0 { "plain copy" } else { "plain loop" },
                |host| host.combine(views[5], Some(views[0]), &terms, Rounding::Once),
                |pool| plain_loop(pool, &mut out, &sources),
            );
        }
    }
}

fn main() {
    let criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700))
        .nresamples(1000)
        .configure_from_args();
    let pool = rayon::ThreadPoolBuilder::new().build().expect("threads can be started");
    let mut bench = Bench { criterion, pool, ratios: Vec::new() };
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        bench.measure(dtype);
        bench.combine(dtype);
    }
    bench.criterion.final_summary();
    println!("\nmedians of {} x {} elements:", SHAPE[0], SHAPE[1]);
    bench.ratios.iter().for_each(|line| println!("{line}"));
}
