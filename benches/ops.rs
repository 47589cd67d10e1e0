//! The operations on host memory beside a plain read and a plain copy of the same bytes, with the
//! same number of threads, in the same run. Criterion prints times and bandwidths; the table after
//! them pairs each operation with its rival, run in turn, because the ratio is what holds when the
//! machine is shared.
use criterion::{Criterion, Throughput};
use diffcache::ops::host::Host;
use diffcache::ops::memory::Memory;
use diffcache::ops::{Comparison, Dtype, Ops, Shape, View};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Tokens and width of FLUX at 1024 x 1024 with its text.
const ROWS: usize = 4608;
const COLUMNS: usize = 3072;
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// A tensor of the benchmark's own, filled with ones and a half.
struct Stream(Vec<u64>, Dtype);

impl Stream {
    fn new(dtype: Dtype) -> Self {
        let word = match dtype {
            Dtype::F32 => 0x3fc0_0000_3f80_0000,
            Dtype::F16 => 0x3e00_3c00_3e00_3c00,
            Dtype::Bf16 => 0x3fc0_3f80_3fc0_3f80,
        };
        Self(vec![word; ROWS * COLUMNS * dtype.size() / 8], dtype)
    }

    fn view(&self) -> View {
        let data = self.0.as_ptr().cast_mut().cast();
        // Nothing else uses the memory while an operation runs.
        unsafe { View::strided(data, self.1, &[ROWS, COLUMNS], &[COLUMNS, 1]) }
    }
}

fn streams(n: usize, dtype: Dtype) -> Vec<Stream> {
    (0..n).map(|_| Stream::new(dtype)).collect()
}

/// Calls `f(part)` for each of `threads` equal parts of the words of a stream.
fn in_parts(threads: usize, words: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
    let share = words.div_ceil(threads);
    std::thread::scope(|scope| {
        for part in 1..threads {
            let f = &f;
            scope.spawn(move || f(part * share..words.min((part + 1) * share)));
        }
        f(0..share.min(words));
    });
}

/// Reads the streams, and does nothing else.
fn plain_read(threads: usize, streams: &[Stream]) {
    in_parts(threads, streams[0].0.len(), |range| {
        for stream in streams {
            let sum =
                stream.0[range.clone()].iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
            black_box(sum);
        }
    });
}

/// Reads all streams but the last together, and writes the last.
fn plain_copy(threads: usize, streams: &mut [Stream]) {
    let (out, read) = streams.split_last_mut().expect("a stream to write");
    let read = &*read;
    let words = out.0.len();
    let out = out.0.as_mut_ptr().expose_provenance();
    in_parts(threads, words, |range| {
        // The parts are disjoint, and `out` outlives them.
        let out = std::ptr::with_exposed_provenance_mut::<u64>(out);
        let out = unsafe { std::slice::from_raw_parts_mut(out.add(range.start), range.len()) };
        match read {
            [a] => out.copy_from_slice(&a.0[range]),
            [a, b] => add(out, [&a.0[range.clone()], &b.0[range]]),
            [a, b, c] => add(out, [&a.0[range.clone()], &b.0[range.clone()], &c.0[range]]),
            _ => unreachable!("one to three streams are read"),
        }
    });
}

fn add<const N: usize>(out: &mut [u64], read: [&[u64]; N]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = read.iter().fold(0, |sum, stream| sum.wrapping_add(stream[i]));
    }
}

/// One operation and its rival over the same bytes.
struct Pair {
    name: &'static str,
    /// Streams read and written.
    streams: usize,
    ours: fn(&mut Host, &[Stream]),
    rival: fn(usize, &mut [Stream]),
    rival_name: &'static str,
}

const PAIRS: [Pair; 5] = [
    Pair {
        name: "measure |u - v|",
        streams: 2,
        ours: |host, s| {
            let (x, earlier) = (s[0].view(), s[1].view());
            black_box(host.measure(&[Comparison { x, base: None, earlier, keep: None }], false));
        },
        rival: |threads, s| plain_read(threads, s),
        rival_name: "plain read",
    },
    Pair {
        name: "measure, FBCache's three streams",
        streams: 3,
        ours: |host, s| {
            let (x, base, earlier) = (s[0].view(), Some(s[1].view()), s[2].view());
            black_box(host.measure(&[Comparison { x, base, earlier, keep: None }], false));
        },
        rival: |threads, s| plain_read(threads, s),
        rival_name: "plain read",
    },
    Pair {
        name: "copy",
        streams: 2,
        ours: |host, s| host.copy(s[1].view(), s[0].view()),
        rival: plain_copy,
        rival_name: "plain copy",
    },
    Pair {
        name: "combine, K = 1 (a held residual)",
        streams: 3,
        ours: |host, s| host.combine(s[2].view(), Some(s[0].view()), &[(1.0, s[1].view())]),
        rival: plain_copy,
        rival_name: "plain sum",
    },
    Pair {
        name: "combine, K = 2 (Taylor 1)",
        streams: 4,
        ours: |host, s| {
            let terms = [(1.5, s[1].view()), (-0.5, s[2].view())];
            host.combine(s[3].view(), Some(s[0].view()), &terms);
        },
        rival: plain_copy,
        rival_name: "plain sum",
    },
];

fn host(threads: usize) -> Host {
    Host::new(Memory::new(None, 0), threads)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn absolute(criterion: &mut Criterion) {
    for dtype in DTYPES {
        for pair in &PAIRS {
            let mut group = criterion.benchmark_group(format!("{} {dtype:?}", pair.name));
            let mut streams = streams(pair.streams, dtype);
            let bytes = streams.iter().map(|s| 8 * s.0.len() as u64).sum();
            group.throughput(Throughput::Bytes(bytes));
            group.sample_size(10).warm_up_time(Duration::from_millis(100));
            group.measurement_time(Duration::from_millis(500));
            let mut host = host(1);
            group.bench_function("this library", |b| b.iter(|| (pair.ours)(&mut host, &streams)));
            group.bench_function(pair.rival_name, |b| b.iter(|| (pair.rival)(1, &mut streams)));
        }
    }
}

/// Rival's time over ours, in turns: 1 is as fast as the plain loop.
fn ratio(pair: &Pair, dtype: Dtype, threads: usize) -> [f64; 3] {
    let mut host = host(threads);
    let mut streams = streams(pair.streams, dtype);
    let mut ratios: Vec<f64> = (0..12)
        .map(|_| {
            let start = Instant::now();
            (pair.rival)(threads, &mut streams);
            let between = Instant::now();
            (pair.ours)(&mut host, &streams);
            (between - start).as_secs_f64() / between.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    ratios.sort_by(f64::total_cmp);
    [ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]]
}

fn table() {
    let shape: Shape = Stream::new(Dtype::F32).view().shape();
    println!(
        "\nSpeed beside the plain loop over the same bytes, {shape} and alike: median (min to max)"
    );
    for threads in [1, cores()] {
        for pair in &PAIRS {
            for dtype in DTYPES {
                let [min, median, max] = ratio(pair, dtype, threads);
                let (name, dtype) = (pair.name, format!("{dtype:?}"));
                let rival = pair.rival_name;
                println!(
                    "{threads} thread(s)  {name:32} {dtype:4}  {median:.2} of a {rival} \
                     ({min:.2} to {max:.2})"
                );
            }
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    absolute(&mut criterion);
    criterion.final_summary();
    // `cargo test --benches` only asks whether this runs.
    if std::env::args().any(|argument| argument == "--bench") {
        table();
    }
}
