//! The low frequencies of planes, without a fast Fourier transform.
//!
//! Only the waves of a small disc are wanted, so a truncated transform along each axis, there and
//! back, is four short matrix products: [`axis`]. For a plane of latents that is less time than a
//! fast transform takes (`benches/low_pass.rs`), and there are no lengths that it is slow for. In
//! f32: sums are short, and what is divided by the length is divided first.
//!
//! A plane is worked on in strips of [`COLUMNS`] lines, in three steps: each strip of columns along
//! y; of what that gives, transposed, each strip along x, there and back; and each strip of columns
//! back along y. Strips, like planes, are independent of each other, so no bit depends on how they
//! are spread over threads. A NaN or an infinity leaves no finite element in its plane, and does
//! not touch others.
mod axis;
mod vector;

use super::super::View;
use super::pool;
use super::simd::Level;
use axis::{Axis, Quad, ZERO};
use std::sync::{Mutex, PoisonError};
use vector::{COLUMNS, Portable, Row, Vector};

/// Multiply-adds that are worth waking a thread for, a tenth of a millisecond or so.
const WORTH: usize = 1 << 21;

/// What is kept between planes of the same size, so that a call allocates nothing.
#[derive(Default)]
pub struct LowPass {
    plan: Option<Box<Plan>>,
    /// One for each thread that has been at work at the same time.
    scratch: Mutex<Vec<Scratch>>,
    /// Transforms of a few planes, which threads share.
    spectra: Vec<Row>,
}

impl LowPass {
    /// Every plane of `x` by itself into `out`.
    pub fn planes(
        &mut self,
        (level, threads): (Level, usize),
        out: View,
        x: View,
        (height, width): (usize, usize),
    ) {
        let len = height * width;
        if len == 0 {
            return;
        }
        let fits = |plan: &Plan| (plan.level, plan.height, plan.width) == (level, height, width);
        if !self.plan.as_deref().is_some_and(fits) {
            let plan = Some(Box::new(Plan::new(level, height, width)));
            *self = Self { plan, ..Self::default() };
        }
        let Self { plan: Some(plan), scratch, spectra } = self else { return };
        let planes = x.len() / len;
        let (x, out) = (Shared(x.address().cast::<f32>()), Shared(out.address().cast::<f32>()));
        let plane = |k: usize, spectrum: *mut Row| Plane {
            plan,
            x: x.get().wrapping_add(k * len),
            out: out.get().wrapping_add(k * len),
            spectrum,
        };
        // Strips of a step have to wait for those of the step before: only if planes share out badly.
        let (n, work) = (pool::count(threads), plan.work());
        if planes >= 4 * n || planes.is_multiple_of(n) || planes * work < 8 * WORTH {
            return pool::for_each(threads, planes, WORTH.div_ceil(work), |k| {
                with(scratch, plan, |scratch| {
                    let spectrum = scratch.spectrum.as_mut_ptr();
                    let [plane, next] = [k, k + 1].map(|k| plane(k, spectrum));
                    for (strips, step) in plan.steps() {
                        for strip in 0..strips {
                            next.prefetch(step, strip, strips);
                            // Safety: nobody else works on this plane, nor has this scratch.
                            unsafe { plane.run(step, strip, scratch) };
                        }
                    }
                });
            });
        }
        spectra.resize(planes * plan.spectrum(), Row::ZERO);
        let spectra = Shared(spectra.as_mut_ptr());
        for (strips, step) in plan.steps() {
            let least = (3 * strips * WORTH).div_ceil(work);
            pool::for_each(threads, planes * strips, least, |k| {
                let (k, strip) = (k / strips, k % strips);
                let plane = plane(k, spectra.get().wrapping_add(k * plan.spectrum()));
                // Safety: strips of one step have no element in common.
                with(scratch, plan, |scratch| unsafe { plane.run(step, strip, scratch) });
            });
        }
    }
}

/// Calls `f` with a scratch that nobody else has.
fn with(kept: &Mutex<Vec<Scratch>>, plan: &Plan, f: impl FnOnce(&mut Scratch)) {
    let kept = || kept.lock().unwrap_or_else(PoisonError::into_inner);
    let own = kept().pop();
    let mut own = own.unwrap_or_else(|| Scratch::new(plan));
    f(&mut own);
    kept().push(own);
}

/// An address that threads share, each for its own part of what is there.
struct Shared<T>(*mut T);

unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

#[derive(Clone, Copy)]
enum Step {
    /// A strip of columns to waves along y.
    Down,
    /// A strip of those waves to waves along x, those in the disc, and back.
    Across,
    /// A strip of columns from waves along y.
    Up,
}

/// Sums that the registers of an instruction set hold.
fn sums(level: Level) -> usize {
    match level {
        Level::Portable => Portable::SUMS,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => vector::Avx2::SUMS,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => vector::Avx512::SUMS,
    }
}

/// What is the same for all planes of a size.
struct Plan {
    level: Level,
    height: usize,
    width: usize,
    /// The highest frequency.
    r: usize,
    along_y: Axis,
    along_x: Axis,
}

impl Plan {
    fn new(level: Level, height: usize, width: usize) -> Self {
        let (r, sums) = (height.min(width) / 5, sums(level));
        let (along_y, along_x) = (Axis::new(height, r, sums), Axis::new(width, r, sums));
        Self { level, height, width, r, along_y, along_x }
    }

    /// Multiply-adds of a plane, about.
    fn work(&self) -> usize {
        let (along_y, along_x) =
            (self.width * self.along_y.places, self.along_y.waves * self.along_x.places);
        2 * self.along_y.waves * (along_y + along_x)
    }

    /// In order, with the strips of each.
    fn steps(&self) -> [(usize, Step); 3] {
        let (columns, waves) = (self.width.div_ceil(COLUMNS), self.along_y.waves.div_ceil(COLUMNS));
        [(columns, Step::Down), (waves, Step::Across), (columns, Step::Up)]
    }

    /// Rows of a strip of waves, one for each column of the plane, and some that nobody reads.
    fn padded(&self) -> usize {
        self.width.next_multiple_of(COLUMNS)
    }

    /// Rows of all strips of waves.
    fn spectrum(&self) -> usize {
        self.along_y.waves.div_ceil(COLUMNS) * self.padded()
    }

    /// Waves along an axis that share the disc with wave `m` of the other.
    fn reach(&self, m: usize) -> usize {
        2 * (self.r * self.r - m.div_ceil(2).pow(2)).isqrt() + 1
    }
}

struct Scratch {
    folded: Vec<Quad>,
    waves: Vec<Quad>,
    spectrum: Vec<Row>,
}

impl Scratch {
    fn new(plan: &Plan) -> Self {
        let waves = plan.along_y.waves.next_multiple_of(COLUMNS) / 4;
        Self {
            folded: vec![ZERO; plan.along_y.places.max(plan.along_x.places)],
            waves: vec![ZERO; waves],
            spectrum: vec![Row::ZERO; plan.spectrum()],
        }
    }
}

/// Where one plane is.
struct Plane<'a> {
    plan: &'a Plan,
    x: *const f32,
    out: *mut f32,
    /// `[strip of waves along y][x][wave of the strip]`
    spectrum: *mut Row,
}

impl Plane<'_> {
    /// # Safety
    /// Nobody else works on this strip, or on another step of this plane.
    unsafe fn run(&self, step: Step, strip: usize, scratch: &mut Scratch) {
        unsafe {
            match self.plan.level {
                Level::Portable => self.step::<Portable>(step, strip, scratch),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => self.step_avx2(step, strip, scratch),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => self.step_avx512(step, strip, scratch),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn step_avx2(&self, step: Step, strip: usize, scratch: &mut Scratch) {
        unsafe { self.step::<vector::Avx2>(step, strip, scratch) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn step_avx512(&self, step: Step, strip: usize, scratch: &mut Scratch) {
        unsafe { self.step::<vector::Avx512>(step, strip, scratch) }
    }

    #[inline(always)]
    unsafe fn step<V: Vector>(&self, step: Step, strip: usize, scratch: &mut Scratch) {
        let Scratch { folded, waves, .. } = scratch;
        unsafe {
            match step {
                Step::Down => self.down::<V>(strip, folded, waves),
                Step::Across => self.across::<V>(strip, folded, waves),
                Step::Up => self.up::<V>(strip, folded, waves),
            }
        }
    }

    #[inline(always)]
    unsafe fn down<V: Vector>(&self, strip: usize, folded: &mut [Quad], waves: &mut [Quad]) {
        let Plan { height, width, ref along_y, .. } = *self.plan;
        let column = strip * COLUMNS;
        let readable = height * width - column;
        unsafe {
            along_y.fold::<V>(self.x.add(column), width, readable, folded);
            along_y.there::<V>(folded, along_y.waves, waves);
            for (k, waves) in waves.as_chunks::<4>().0.iter().enumerate() {
                let rows = &mut *self.rows(k, column).cast::<[Quad; 4]>();
                transpose::<V>(waves, rows);
            }
        }
    }

    #[inline(always)]
    unsafe fn across<V: Vector>(&self, strip: usize, folded: &mut [Quad], waves: &mut [Quad]) {
        let Plan { ref along_x, .. } = *self.plan;
        let first = strip * COLUMNS;
        let reach = self.plan.reach(first);
        let rows = self.rows(strip, 0).cast::<f32>();
        unsafe {
            along_x.fold::<V>(rows, COLUMNS, self.plan.padded() * COLUMNS, folded);
            along_x.there::<V>(folded, reach, waves);
            for (m, row) in waves.as_flattened_mut().iter_mut().enumerate().take(reach) {
                let inside = self.plan.reach(m).saturating_sub(first).min(COLUMNS);
                row.0[inside..].fill(0.0);
            }
            along_x.back::<V>(waves, reach, folded);
            along_x.unfold::<V>(folded, rows, COLUMNS, COLUMNS);
        }
    }

    #[inline(always)]
    unsafe fn up<V: Vector>(&self, strip: usize, folded: &mut [Quad], waves: &mut [Quad]) {
        let Plan { width, ref along_y, .. } = *self.plan;
        let column = strip * COLUMNS;
        unsafe {
            for (k, waves) in waves.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let rows = &*self.rows(k, column).cast::<[Quad; 4]>();
                transpose::<V>(rows, waves);
            }
            along_y.back::<V>(waves, along_y.waves, folded);
            let columns = COLUMNS.min(width - column);
            along_y.unfold::<V>(folded, self.out.add(column), width, columns);
        }
    }

    /// Has a share of the plane come nearer while another is worked on: strips jump from row to row,
    /// which memory does not foresee. Behind the last plane it comes to nothing.
    fn prefetch(&self, step: Step, strip: usize, strips: usize) {
        let plane = match step {
            Step::Down => self.x,
            Step::Across => return,
            Step::Up => self.out.cast_const(),
        };
        let bytes = (4 * self.plan.height * self.plan.width).div_ceil(strips);
        for at in (strip * bytes..(strip + 1) * bytes).step_by(64) {
            let address = plane.cast::<i8>().wrapping_add(at);
            #[cfg(target_arch = "x86_64")]
            // Safety: every x86-64 has it, and no address is wrong.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T1>(address);
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = address;
        }
    }

    /// Of a strip of waves, from column `x` of the plane on.
    fn rows(&self, strip: usize, x: usize) -> *mut Row {
        self.spectrum.wrapping_add(strip * self.plan.padded() + x)
    }
}

/// Sixteen rows to columns.
#[inline(always)]
unsafe fn transpose<V: Vector>(from: &[Quad; 4], out: &mut [Quad; 4]) {
    for (i, from) in from.iter().enumerate() {
        for (k, out) in out.iter_mut().enumerate() {
            unsafe { V::transpose(from, k, out, i) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Dtype;
    use super::*;
    use std::f64::consts::TAU;

    /// The whole transform, a disc cut out of it, and back, as diffusers does it: in f64, without
    /// haste, and only the waves of the disc, since the others come to nothing.
    fn reference(plane: &[f32], height: usize, width: usize) -> Vec<f64> {
        let r = (height.min(width) / 5) as isize;
        let turn = |k: isize, x: usize, n: usize| {
            (TAU * (k * x as isize % n as isize) as f64 / n as f64).sin_cos()
        };
        let mut out = vec![0.0; plane.len()];
        for kx in -r..=r {
            let along_x = |row: &[f32]| {
                row.iter().enumerate().fold((0.0, 0.0), |(re, im), (x, value)| {
                    let (sin, cos) = turn(kx, x, width);
                    (re + f64::from(*value) * cos, im - f64::from(*value) * sin)
                })
            };
            let lines: Vec<_> = plane.chunks(width).map(along_x).collect();
            let mut back = vec![(0.0, 0.0); height];
            for ky in (-r..=r).filter(|ky| ky * ky + kx * kx <= r * r) {
                let (mut re, mut im) = (0.0, 0.0);
                for (y, (a, b)) in lines.iter().enumerate() {
                    let (sin, cos) = turn(ky, y, height);
                    (re, im) = (re + a * cos + b * sin, im + b * cos - a * sin);
                }
                for (y, (a, b)) in back.iter_mut().enumerate() {
                    let (sin, cos) = turn(ky, y, height);
                    (*a, *b) = (*a + re * cos - im * sin, *b + im * cos + re * sin);
                }
            }
            for (row, (re, im)) in out.chunks_mut(width).zip(back) {
                for (x, out) in row.iter_mut().enumerate() {
                    let (sin, cos) = turn(kx, x, width);
                    *out += (re * cos - im * sin) / plane.len() as f64;
                }
            }
        }
        out
    }

    /// Planes, height, width.
    const SIZES: [(usize, usize, usize); 16] = [
        (3, 16, 16),
        (2, 7, 9),
        (1, 33, 47),
        (2, 10, 5),
        (3, 4, 4),
        (2, 1, 7),
        (2, 6, 1),
        (1, 1, 1),
        (2, 2, 2),
        (40, 8, 11),
        (33, 12, 18),
        (2, 15, 26),
        (2, 60, 90),
        (3, 61, 34),
        (1, 128, 40),
        (1, 240, 320),
    ];

    fn noise(planes: usize, height: usize, width: usize) -> Vec<f32> {
        let element = |i: usize| (i * 7919 % 1009) as f32 / 504.0 - 1.0;
        (0..planes * height * width).map(element).collect()
    }

    fn best() -> Level {
        Level::available().last().unwrap_or(Level::Portable)
    }

    fn low_pass(
        of: &mut LowPass,
        on: (Level, usize),
        x: &[f32],
        height: usize,
        width: usize,
    ) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len()];
        // Safety: both outlive the call, and `x` is only read.
        let view =
            |data: *mut f32| unsafe { View::strided(data.cast(), Dtype::F32, &[x.len()], &[1]) };
        of.planes(on, view(out.as_mut_ptr()), view(x.as_ptr().cast_mut()), (height, width));
        out
    }

    #[test]
    fn the_disc_of_low_frequencies_stays_on_every_instruction_set() {
        for (planes, height, width) in SIZES {
            let x = noise(planes, height, width);
            let expected: Vec<_> =
                x.chunks(height * width).flat_map(|x| reference(x, height, width)).collect();
            for level in Level::available() {
                let got = low_pass(&mut LowPass::default(), (level, 1), &x, height, width);
                for (got, expected) in got.iter().zip(&expected) {
                    // The largest element of `x` is 1.
                    let error = (f64::from(*got) - expected).abs();
                    assert!(
                        error < 5e-7,
                        "{level:?}, {planes} x {height} x {width}: {got} not {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn no_bit_depends_on_the_threads_or_on_what_was_done_before() {
        // The last two are worth more threads than one: plane by plane, and strip by strip.
        let sizes = SIZES.into_iter().chain([(101, 60, 90), (5, 240, 320)]);
        let mut kept = [LowPass::default(), LowPass::default(), LowPass::default()];
        for (planes, height, width) in sizes {
            let x = noise(planes, height, width);
            let fresh = low_pass(&mut LowPass::default(), (best(), 1), &x, height, width);
            for (kept, threads) in kept.iter_mut().zip([1, 2, 3]) {
                for _ in 0..2 {
                    let again = low_pass(kept, (best(), threads), &x, height, width);
                    assert!(again == fresh, "{planes} x {height} x {width}, {threads} threads");
                }
            }
        }
    }

    #[test]
    fn a_plane_that_is_not_finite_stays_so_and_touches_no_other() {
        let (planes, height, width) = (3, 12, 21);
        let len = height * width;
        let clean = noise(planes, height, width);
        let expected = low_pass(&mut LowPass::default(), (best(), 1), &clean, height, width);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (at, threads) in [(0, 1), (5 * width + 20, 1), (len - 1, 2)] {
                let mut x = clean.clone();
                x[len + at] = bad;
                let got = low_pass(&mut LowPass::default(), (best(), threads), &x, height, width);
                assert!(got[len..2 * len].iter().all(|x| !x.is_finite()), "{bad} at {at}");
                assert_eq!(got[..len], expected[..len], "{bad} at {at}");
                assert_eq!(got[2 * len..], expected[2 * len..], "{bad} at {at}");
            }
        }
    }
}
