//! The host's operations beside what memory can do: a plain integer loop that reads and writes the
//! same bytes, with as many threads, compiled for the same vectors. 1.00 is the memory's limit.
//!
//! Also beside the loops of a C++ engine that caches for itself: one element at a time, converted by a
//! function call each.
mod figures;

use diffcache::ops::host::Host;
use diffcache::ops::memory::Memory;
use diffcache::ops::{Comparison, Dtype, Ops, Rounding, View};
use figures::{Target, faster, report};
use half::{bf16, f16};
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// FLUX, 4096 image and 512 text tokens; and Wan 14B, 81 frames of 480p.
const SHAPES: [[usize; 2]; 2] = [[4608, 3072], [32760, 5120]];

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// A tensor, as words: what a plain loop works on.
struct Stream {
    /// With room before the first, so that it starts a line of the cache, as engines' tensors do.
    storage: Vec<u64>,
    first: usize,
    dtype: Dtype,
}

impl Stream {
    /// Values between -1 and 1 that repeat after a few thousand elements.
    fn noise(dtype: Dtype, len: usize, mut state: u64) -> Self {
        let mut element = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let x = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
            match dtype {
                Dtype::F32 => u64::from(x.to_bits()),
                Dtype::F16 => u64::from(f16::from_f32(x).to_bits()),
                Dtype::Bf16 => u64::from(bf16::from_f32(x).to_bits()),
            }
        };
        let bits = 8 * dtype.size();
        let mut word = || (0..64 / bits).map(|k| element() << (k * bits)).sum();
        let period: Vec<u64> = (0..8191).map(|_| word()).collect();
        let n = len * dtype.size() / 8;
        let mut storage = Vec::<u64>::with_capacity(n + 7);
        let first = storage.as_ptr().align_offset(64);
        storage.resize(first, 0);
        storage.extend(period.into_iter().cycle().take(n));
        Self { storage, first, dtype }
    }

    fn words(&self) -> &[u64] {
        &self.storage[self.first..]
    }

    fn view(&self) -> View {
        let len = self.words().len() * 8 / self.dtype.size();
        // The words outlive the measurement that uses the view; nobody else uses them meanwhile.
        unsafe { View::strided(self.words().as_ptr().cast_mut().cast(), self.dtype, &[len], &[1]) }
    }

    /// Of thread number `k` of `n`.
    fn share(&self, (k, n): (usize, usize)) -> &[u64] {
        let words = self.words();
        let share = words.len().div_ceil(n);
        &words[k * share..words.len().min((k + 1) * share)]
    }

    /// The same, to be written; shares of different threads are apart.
    #[allow(clippy::mut_from_ref)]
    unsafe fn share_mut(&self, of: (usize, usize)) -> &mut [u64] {
        let share = self.share(of);
        unsafe { std::slice::from_raw_parts_mut(share.as_ptr().cast_mut(), share.len()) }
    }
}

// ---- the rivals ----

/// Reads every word of every stream.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2"))]
fn plain_read<const K: usize>(streams: [&[u64]; K]) -> u64 {
    let n = streams[0].len();
    let streams = streams.map(|stream| &stream[..n]);
    let mut sum = 0u64;
    for i in 0..n {
        for stream in &streams {
            sum = sum.wrapping_add(stream[i]);
        }
    }
    sum
}

/// Reads every word of every stream and writes as many as one has.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2"))]
fn plain_into<const K: usize>(out: &mut [u64], streams: [&[u64]; K]) {
    let n = out.len();
    let streams = streams.map(|stream| &stream[..n]);
    for (i, out) in out.iter_mut().enumerate() {
        *out = streams.iter().fold(0, |sum, stream| sum ^ stream[i]);
    }
}

/// The same, over one of the streams.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2"))]
fn plain_over<const K: usize>(out: &mut [u64], streams: [&[u64]; K]) {
    let n = out.len();
    let streams = streams.map(|stream| &stream[..n]);
    for (i, out) in out.iter_mut().enumerate() {
        *out = streams.iter().fold(*out, |sum, stream| sum ^ stream[i]);
    }
}

/// Runs `measure` with a rival whose work is done by `threads` at once, each with its share.
fn with_threads<T>(
    threads: usize,
    rival: impl Fn((usize, usize)) + Sync,
    measure: impl FnOnce(&mut dyn FnMut()) -> T,
) -> T {
    let (start, done, over) =
        (Barrier::new(threads), Barrier::new(threads), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for k in 1..threads {
            let (start, done, over, rival) = (&start, &done, &over, &rival);
            scope.spawn(move || {
                loop {
                    start.wait();
                    if over.load(Relaxed) {
                        return;
                    }
                    rival((k, threads));
                    done.wait();
                }
            });
        }
        let result = measure(&mut || {
            start.wait();
            rival((0, threads));
            done.wait();
        });
        over.store(true, Relaxed);
        start.wait();
        result
    })
}

// ---- one shape, dtype and number of threads ----

struct Case {
    shape: [usize; 2],
    dtype: Dtype,
    threads: usize,
    repeats: usize,
    host: Host,
}

impl Case {
    fn compare(
        &mut self,
        what: &str,
        target: Target,
        rival_name: &str,
        mut own: impl FnMut(&mut Host),
        rival: impl Fn((usize, usize)) + Sync,
    ) {
        let Self { shape, dtype, threads, repeats, host } = self;
        let figure = format!("{what}, {dtype:?}, {}x{}, {threads} threads", shape[0], shape[1]);
        let ratio = with_threads(*threads, rival, |rival| faster(*repeats, || own(host), rival));
        report("host ops", &figure.to_lowercase(), ratio, "x", target, rival_name);
    }

    fn measure(&mut self, s: &[Stream]) {
        let limit = Target::AtLeast(0.9);
        let measured = |host: &mut Host, base: Option<View>, keep: Option<View>| {
            let comparison = Comparison { x: s[0].view(), base, earlier: s[1].view(), keep };
            let pending = host.measure(&[comparison], false);
            black_box(host.read(pending));
        };
        let base = s[2].view();
        self.compare(
            "measure u, v",
            limit,
            "plain read",
            |host| measured(host, None, None),
            |k| _ = black_box(unsafe { plain_read([s[0].share(k), s[1].share(k)]) }),
        );
        self.compare(
            "measure x - base, v",
            limit,
            "plain read",
            |host| measured(host, Some(base), None),
            |k| {
                let streams = [s[0].share(k), s[1].share(k), s[2].share(k)];
                _ = black_box(unsafe { plain_read(streams) });
            },
        );
        self.compare(
            "measure x - base, v, kept over base",
            limit,
            "plain loop",
            |host| measured(host, Some(base), Some(base)),
            |k| unsafe { plain_over(s[2].share_mut(k), [s[0].share(k), s[1].share(k)]) },
        );
    }

    fn combine<const K: usize>(&mut self, s: &[Stream]) {
        const WEIGHTS: [f64; 4] = [0.625, -0.79167, 0.16667, 0.5];
        let limit = Target::AtLeast(0.9);
        let (x, out) = (&s[0], &s[K + 1]);
        let terms: [_; K] = std::array::from_fn(|k| (WEIGHTS[k], s[k + 1].view()));
        let streams = |k| -> [&[u64]; K] { std::array::from_fn(|j| s[j + 1].share(k)) };
        self.compare(
            &format!("combine {K}, over x"),
            limit,
            "plain loop",
            |host| host.combine(x.view(), Some(x.view()), &terms, Rounding::Once),
            |k| unsafe { plain_over(x.share_mut(k), streams(k)) },
        );
        self.compare(
            &format!("combine {K}, into another"),
            limit,
            "plain loop",
            |host| host.combine(out.view(), None, &terms, Rounding::Once),
            |k| unsafe { plain_into(out.share_mut(k), streams(k)) },
        );
    }

    fn copy(&mut self, s: &[Stream]) {
        self.compare(
            "copy",
            Target::AtLeast(0.9),
            "memcpy",
            |host| host.copy(s[1].view(), s[0].view()),
            |k| unsafe { s[1].share_mut(k) }.copy_from_slice(s[0].share(k)),
        );
    }

    fn ladder(&mut self, s: &[Stream]) {
        self.compare(
            "ladder of 2",
            Target::AtLeast(0.9),
            "plain loops",
            |host| host.ladder(s[0].view(), &[s[1].view(), s[2].view()], 1, 2.0),
            |k| unsafe {
                let (first, second) = (s[1].share_mut(k), s[2].share_mut(k));
                plain_ladder(s[0].share(k), first, second);
            },
        );
    }
}

/// Reads two streams, writes one of them and a third.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2"))]
fn plain_ladder(y: &[u64], first: &mut [u64], second: &mut [u64]) {
    for ((y, first), second) in y.iter().zip(first).zip(second) {
        *second = *y ^ *first;
        *first = *y;
    }
}

// ---- the loops of an engine that caches for itself ----

/// One element at a time, as C++ compiles it: sums of f32 are added in the order they are written.
fn scalar_change(u: &[u64], v: &[u64], dtype: Dtype) -> [f32; 3] {
    fn sums<T: Copy>(u: &[u64], v: &[u64], value: impl Fn(T) -> f32) -> [f32; 3] {
        // Words are aligned for elements, of which any bits are a value.
        let [(_, u, _), (_, v, _)] = unsafe { [u.align_to::<T>(), v.align_to::<T>()] };
        let mut sums = [0f32; 3];
        for (u, v) in u.iter().zip(v) {
            let (u, v) = (value(*u), value(*v));
            sums[0] += (u - v).abs();
            sums[1] += u.abs();
            sums[2] += v.abs();
        }
        sums
    }
    match dtype {
        Dtype::F32 => sums(u, v, |x: f32| x),
        Dtype::F16 => sums(u, v, f16::to_f32),
        Dtype::Bf16 => sums(u, v, bf16::to_f32),
    }
}

/// `x += c * y`, the same way.
fn scalar_add(x: &mut [u64], y: &[u64], c: f32, dtype: Dtype) {
    fn add<T: Copy>(
        (x, y, c): (&mut [u64], &[u64], f32),
        value: impl Fn(T) -> f32,
        element: impl Fn(f32) -> T,
    ) {
        let ((_, x, _), (_, y, _)) = unsafe { (x.align_to_mut::<T>(), y.align_to::<T>()) };
        for (x, y) in x.iter_mut().zip(y) {
            *x = element(value(*x) + c * value(*y));
        }
    }
    match dtype {
        Dtype::F32 => add((x, y, c), |x: f32| x, |x| x),
        Dtype::F16 => add((x, y, c), f16::to_f32, f16::from_f32),
        Dtype::Bf16 => add((x, y, c), bf16::to_f32, bf16::from_f32),
    }
}

impl Case {
    fn scalar(&mut self, s: &[Stream]) {
        let (x, y, dtype) = (s[0].view(), s[1].view(), self.dtype);
        // In f32 the scalar loop gets half of what memory can do already, so nothing could be 4 times as
        // fast: the ratio to a plain read, above, says how near to the most this is.
        self.compare(
            "measure u, v",
            Target::AtLeast(4.0),
            "scalar loop",
            |host| {
                let comparison = Comparison { x, base: None, earlier: y, keep: None };
                let pending = host.measure(&[comparison], false);
                black_box(host.read(pending));
            },
            |k| _ = black_box(scalar_change(s[0].share(k), s[1].share(k), dtype)),
        );
        // But for f16 the compiler makes vectors of this loop too, and memory is what it waits for.
        self.compare(
            "combine 1, over x",
            Target::AtLeast(4.0),
            "scalar loop",
            |host| host.combine(x, Some(x), &[(0.625, y)], Rounding::Once),
            |k| unsafe { scalar_add(s[0].share_mut(k), s[1].share(k), 0.625, dtype) },
        );
    }
}

/// What a second thread is worth from where the pool uses it: `SHARE` in `pool` is set so that it
/// loses nothing, and can be made smaller to see where it would.
fn crossover() {
    for blocks in [256, 512, 1024, 2048] {
        let streams: Vec<_> =
            (0..2).map(|k| Stream::noise(Dtype::Bf16, blocks * 4096, k)).collect();
        let hosts = [1, 2].map(|threads| Host::new(Memory::new(None, 0), threads));
        let [mut one, mut two] = hosts;
        let measure = |host: &mut Host| {
            for _ in 0..20 {
                let (x, earlier) = (streams[0].view(), streams[1].view());
                let pending =
                    host.measure(&[Comparison { x, base: None, earlier, keep: None }], false);
                black_box(host.read(pending));
            }
        };
        let ratio = faster(21, || measure(&mut two), || measure(&mut one));
        let figure = format!("measure, bf16, {blocks} blocks of 4096, 2 threads");
        report("host ops", &figure, ratio, "x", Target::None, "1 thread");
    }
}

fn main() {
    crossover();
    // Words that name the figures wanted: dtypes and such. All, if there are none.
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |dtype: Dtype| {
        wanted.is_empty() || wanted.iter().any(|word| *word == format!("{dtype:?}").to_lowercase())
    };
    for (shape, repeats) in SHAPES.into_iter().zip([15, 3]) {
        for dtype in DTYPES.into_iter().filter(|dtype| is_wanted(*dtype)) {
            let len = shape.iter().product();
            let n = if shape == SHAPES[0] { 6 } else { 4 };
            let streams: Vec<_> = (0..n).map(|k| Stream::noise(dtype, len, k)).collect();
            for threads in [1, 2] {
                let host = Host::new(Memory::new(None, 0), threads);
                let mut case = Case { shape, dtype, threads, repeats, host };
                case.measure(&streams);
                case.combine::<2>(&streams);
                if shape == SHAPES[0] {
                    case.combine::<1>(&streams);
                    case.copy(&streams);
                    case.combine::<3>(&streams);
                    case.combine::<4>(&streams);
                    case.ladder(&streams);
                    case.scalar(&streams);
                }
            }
        }
    }
}
