//! The low frequencies of planes, beside what their multiply-adds need at least, and beside a fast
//! Fourier transform of the whole plane and back (`realfft`, in f32).
//!
//! The limit is the arithmetic of the algorithm in `ops/host/low_pass`, additions of the folds
//! included, at the rate that a loop over registers reaches in the same run: as many threads, the
//! same instruction set. Tensors are those of video and image latents. Those of videos are larger than
//! the caches, and there memory is a limit too: hence a plain copy of the same bytes is shown.
mod figures;

use diffcache::ops::host::Host;
use diffcache::ops::memory::Memory;
use diffcache::ops::{Dtype, Ops, View};
use figures::{Spread, Target, faster, report, timed};
use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use std::hint::black_box;
use std::sync::{Arc, Barrier};

const SECTION: &str = "host ops";

/// Planes, height and width: one frame of CogVideoX at 480p, all of them, Wan at 480p and at 720p,
/// an image of 1024 pixels.
const SIZES: [(usize, usize, usize); 5] =
    [(16, 60, 90), (16 * 13, 60, 90), (16 * 21, 60, 104), (16 * 21, 90, 160), (16, 128, 128)];

// ---- the limit ----

/// Multiply-adds and additions of one plane. An axis of even length has a quarter of its places
/// left when it is folded, which takes 8 additions for each of them; so does unfolding.
fn arithmetic(height: usize, width: usize) -> f64 {
    let r = height.min(width) / 5;
    let waves = 2 * r + 1;
    let places = |n: usize| if n.is_multiple_of(2) { n / 4 + 1 } else { n / 2 + 1 };
    let disc: usize = (0..waves).map(|m| 2 * (r * r - m.div_ceil(2).pow(2)).isqrt() + 1).sum();
    let along_y = width * places(height) * (waves + 8);
    let along_x = places(width) * (disc + 8 * waves);
    2.0 * (along_y + along_x) as f64
}

/// Long enough that threads run at the same time.
const ROUNDS: usize = 300_000;
const SUMS: usize = 12;

/// Multiply-adds a second of one thread, in registers.
#[cfg(target_arch = "x86_64")]
mod registers {
    use super::{ROUNDS, SUMS};
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx512f")]
    fn avx512() -> usize {
        let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        let mut sums = [a; SUMS];
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
        }
        black_box(sums);
        16
    }

    #[target_feature(enable = "avx2,fma")]
    fn avx2() -> usize {
        let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
        let mut sums = [a; SUMS];
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
        }
        black_box(sums);
        8
    }

    /// `ROUNDS` of `SUMS` vectors; how many elements a vector has.
    pub fn run() -> usize {
        if is_x86_feature_detected!("avx512f") {
            unsafe { avx512() }
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            unsafe { avx2() }
        } else {
            super::portable()
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod registers {
    pub fn run() -> usize {
        super::portable()
    }
}

fn portable() -> usize {
    let (a, b) = (black_box(0.5f32), black_box(0.25));
    let mut sums = [a; 4 * SUMS];
    for _ in 0..ROUNDS {
        sums.iter_mut().for_each(|sum| *sum = *sum * a + b);
    }
    black_box(sums);
    4
}

/// Multiply-adds a second of so many threads.
fn peak(threads: usize) -> f64 {
    let start = Barrier::new(threads);
    let one = || {
        let mut width = 0;
        start.wait();
        let seconds = timed(|| width = registers::run());
        (width * ROUNDS * SUMS) as f64 / seconds
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(one)).collect();
        one() + others.into_iter().map(|other| other.join().expect("no panic")).sum::<f64>()
    })
}

// ---- the rival ----

/// Along x and along y, everything outside the disc cut out, and back.
struct FastFourier {
    size: (usize, usize),
    along_x: Arc<dyn RealToComplex<f32>>,
    back: Arc<dyn ComplexToReal<f32>>,
    along_y: [Arc<dyn rustfft::Fft<f32>>; 2],
    row: Vec<f32>,
    spectrum: Vec<Complex<f32>>,
    /// `[kx][y]`
    columns: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
}

impl FastFourier {
    fn new(height: usize, width: usize) -> Self {
        let (mut real, mut complex) = (RealFftPlanner::new(), rustfft::FftPlanner::new());
        let (along_x, back) = (real.plan_fft_forward(width), real.plan_fft_inverse(width));
        let along_y = [complex.plan_fft_forward(height), complex.plan_fft_inverse(height)];
        let needed = along_y.iter().map(|fft| fft.get_inplace_scratch_len());
        let needed = needed.chain([along_x.get_scratch_len(), back.get_scratch_len()]).max();
        Self {
            size: (height, width),
            row: along_x.make_input_vec(),
            spectrum: along_x.make_output_vec(),
            columns: vec![Complex::ZERO; height * (width / 2 + 1)],
            scratch: vec![Complex::ZERO; needed.unwrap_or(0)],
            along_x,
            back,
            along_y,
        }
    }

    fn low_pass(&mut self, x: &[f32], out: &mut [f32]) {
        let Self { size: (height, width), row, spectrum, columns, scratch, .. } = self;
        let (height, width) = (*height, *width);
        let r = height.min(width) / 5;
        for (y, x) in x.chunks(width).enumerate() {
            row.copy_from_slice(x);
            self.along_x.process_with_scratch(row, spectrum, scratch).expect("lengths fit");
            spectrum.iter().enumerate().for_each(|(kx, value)| columns[kx * height + y] = *value);
        }
        self.along_y[0].process_with_scratch(columns, scratch);
        for (kx, column) in columns.chunks_mut(height).enumerate() {
            for (y, value) in column.iter_mut().enumerate() {
                if kx * kx + y.min(height - y).pow(2) > r * r {
                    *value = Complex::ZERO;
                }
            }
        }
        self.along_y[1].process_with_scratch(columns, scratch);
        let scale = 1.0 / (height * width) as f32;
        for (y, out) in out.chunks_mut(width).enumerate() {
            for (kx, value) in spectrum.iter_mut().enumerate() {
                *value = columns[kx * height + y] * scale;
            }
            // What is left of rounding, where a real line has nothing.
            spectrum[0].im = 0.0;
            if width.is_multiple_of(2) {
                spectrum[width / 2].im = 0.0;
            }
            self.back.process_with_scratch(spectrum, out, scratch).expect("lengths fit");
        }
    }
}

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    for (planes, height, width) in SIZES {
        let len = height * width;
        let element = |i: usize| (i * 7919 % 100_003) as f32 / 50_001.0 - 1.0;
        let mut x: Vec<_> = (0..planes * len).map(element).collect();
        let mut out = vec![0f32; x.len()];
        // Safety: both outlive the views, and nothing else touches them meanwhile.
        let [x_view, out_view] = [&mut x, &mut out].map(|data| unsafe {
            View::strided(data.as_mut_ptr().cast(), Dtype::F32, &[planes * len], &[1])
        });
        let size = format!("low pass {planes}x{height}x{width}");
        // What is less than a tenth of a millisecond is left to one thread.
        let most = if planes * len < 1 << 18 { 1 } else { cores.min(2) };
        for threads in 1..=most {
            let mut host = Host::new(Memory::new(None, 0), threads);
            let mut own = || host.low_pass(out_view, x_view, height, width);
            own();
            // As long as the loop over registers takes, so that both see the same machine.
            let calls = (4e6 / (planes * len) as f64).ceil();
            let needed = calls * planes as f64 * arithmetic(height, width);
            let share = Spread::of((0..15).map(|_| {
                let limit = needed / peak(threads);
                limit / timed(|| (0..calls as usize).for_each(|_| own()))
            }));
            let s = if threads == 1 { "" } else { "s" };
            report(
                SECTION,
                &format!("{size}, {threads} thread{s}"),
                share,
                "x",
                Target::AtLeast(0.5),
                "its arithmetic at the peak rate",
            );
        }
        let mut host = Host::new(Memory::new(None, 0), 1);
        let mut copy = vec![0f32; x.len()];
        let ratio = faster(
            31,
            || host.low_pass(out_view, x_view, height, width),
            || black_box(&mut copy).copy_from_slice(black_box(&x)),
        );
        report(SECTION, &format!("{size}, 1 thread"), ratio, "x", Target::None, "plain copy");
        let (mut fast, mut other) = (FastFourier::new(height, width), vec![0f32; x.len()]);
        let ratio = faster(
            7,
            || host.low_pass(out_view, x_view, height, width),
            || {
                let planes = x.chunks(len).zip(other.chunks_mut(len));
                planes.for_each(|(x, out)| fast.low_pass(x, out));
            },
        );
        let worst = out.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst < 5e-6, "the rival computes something else: {worst}");
        report(SECTION, &format!("{size}, 1 thread"), ratio, "x", Target::None, "realfft");
    }
}
