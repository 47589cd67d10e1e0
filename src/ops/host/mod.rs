//! The operations on host memory.
//!
//! Every operation is one pass over memory, and memory is what it waits for. `simd` knows the
//! instruction sets, `kernels` has each formula once, for elements side by side; `stage` brings
//! elements side by side where strides keep them apart; `pool` has the threads. The sums come out the
//! same for any instruction set and any number of threads.
mod kernels;
mod low_pass;
mod pool;
mod simd;
mod stage;

use super::memory::{Memory, Storage};
use super::{BLOCK, Comparison, Dtype, LANES, MAX_RUNGS, MAX_TERMS, Ops, Rounding, Shape, View};
use crate::error::Result;
use crate::rule::Change;
use arrayvec::ArrayVec;
use kernels::{Ladder, Measure, Sum};
use low_pass::LowPass;
pub use simd::Level;
use stage::{Stage, parts};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

pub struct Host {
    memory: Arc<Memory>,
    /// 0 = as many as are of use, 1 = the calling thread only.
    threads: usize,
    level: Level,
    /// Sums of each block, kept so that measuring allocates nothing.
    sums: Vec<[f64; 3]>,
    low_pass: LowPass,
}

impl Host {
    pub fn new(memory: Arc<Memory>, threads: usize) -> Self {
        let level = Level::available().last().unwrap_or(Level::Portable);
        Self { memory, threads, level, sums: Vec::new(), low_pass: LowPass::default() }
    }

    /// With an instruction set other than the best one.
    pub fn with_level(self, level: Level) -> Self {
        assert!(Level::available().any(|available| available == level));
        Self { level, ..self }
    }
}

impl Ops for Host {
    type Buffer = Storage;
    type Pending = Change;

    fn alloc(&mut self, shape: Shape) -> Result<Storage> {
        let block = match shape.is_on_host() {
            // The engine's allocator is for tensors that live elsewhere.
            true => self.memory.take_on_host(shape.bytes())?,
            false => self.memory.take(shape.bytes())?,
        };
        Ok(Storage::new(block, shape))
    }

    fn copy(&mut self, out: View, x: View) {
        self.combine(out, Some(x), &[], Rounding::Once);
    }

    fn subtract(&mut self, out: View, x: View, base: View) {
        self.combine(out, Some(x), &[(-1.0, base)], Rounding::Once);
    }

    fn combine(&mut self, out: View, x: Option<View>, terms: &[(f64, View)], rounding: Rounding) {
        match (&x, terms) {
            (Some(x), []) if x.dtype() == out.dtype() => {
                pool::shares(self.threads, out.len(), |range| transfer(&out, x, range));
            }
            _ => pool::shares(self.threads, out.len(), |range| {
                combine(self.level, &out, x.as_ref(), terms, rounding, range);
            }),
        }
    }

    fn ladder(&mut self, y: View, rungs: &[View], held: usize, gap: f64) {
        assert!(held <= rungs.len() && rungs.len() <= MAX_RUNGS);
        let rungs = &rungs[..rungs.len().min(held + 1)];
        pool::shares(self.threads, y.len(), |range| {
            ladder(self.level, &y, rungs, held, gap as f32, range);
        });
    }

    fn low_pass(&mut self, out: View, x: View, height: usize, width: usize) {
        self.low_pass.planes((self.level, self.threads), out, x, (height, width));
    }

    fn measure(&mut self, comparisons: &[Comparison], rounded: bool) -> Change {
        let dtype = comparisons.first().map_or(Dtype::F32, |c| c.earlier.dtype());
        comparisons.iter().fold(Change::zero(dtype), |sum, c| sum + self.compare(c, rounded))
    }

    fn read(&mut self, pending: Change) -> Change {
        pending
    }

    fn stream(&self) -> *mut c_void {
        self.memory.stream()
    }

    fn begin(&mut self, stream: *mut c_void) -> Result<()> {
        self.memory.set_stream(stream);
        Ok(())
    }

    fn retire(&mut self) {
        self.memory.set_stream(std::ptr::null_mut());
    }
}

impl Host {
    fn compare(&mut self, comparison: &Comparison, rounded: bool) -> Change {
        let len = comparison.x.len();
        self.sums.clear();
        self.sums.resize(len.div_ceil(BLOCK), [0.0; 3]);
        let sums = Shared(self.sums.as_mut_ptr());
        pool::shares(self.threads, len, |range| {
            // A share is of whole blocks, so these places are this thread's alone.
            let sums = unsafe { sums.part(range.start / BLOCK, range.len().div_ceil(BLOCK)) };
            measure(self.level, comparison, rounded, range, sums);
        });
        let [difference, value, reference] = self
            .sums
            .iter()
            .fold([0.0; 3], |sum, block| std::array::from_fn(|k| sum[k] + block[k]));
        let dtype = comparison.earlier.dtype();
        Change { difference, value, reference, count: len as f64, dtype }
    }
}

/// Places of which each is written by one thread.
struct Shared<T>(*mut T);

unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    /// The places exist, and nobody else uses them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, first: usize, n: usize) -> &mut [T] {
        unsafe { std::slice::from_raw_parts_mut(self.0.add(first), n) }
    }
}

/// Elements of a stage where there may be many: those of all operands fit the first-level cache.
const ROOM: usize = 512;

/// Elements of a stage for what is written past the caches.
const STRETCH: usize = 2048;

/// Bytes of a tensor that is written past the caches. It is more than a core has of them for itself, so
/// most of it would be gone before it is read.
const FAR: usize = 8 << 20;

// What follows is the work of one thread on its share of the elements. All views have the elements,
// so each that a stage names is valid, as the kernels ask for, and `level` is that of a `Host`.

/// `out := x`, both of one dtype: bits travel untouched.
fn transfer(out: &View, x: &View, range: Range<usize>) {
    let dense = out.is_dense() && x.is_dense();
    if let (true, Some(to), Some(from)) =
        (dense, out.contiguous(range.start, range.len()), x.contiguous(range.start, range.len()))
    {
        let bytes = range.len() * x.dtype().size();
        // A tensor may be copied onto itself.
        if !is_far(out, [x].into_iter()) {
            return unsafe { to.copy_from(from, bytes) };
        }
        unsafe { stage::stream(from, to, bytes) };
        return stage::settle();
    }
    let mut stage = Stage::<ROOM>::NEW;
    for (start, n) in parts(range, None, LANES, ROOM) {
        let from = stage.read(x, start, n);
        unsafe { stage::scatter(from.address, out, start, n) };
    }
}

fn combine(
    level: Level,
    out: &View,
    x: Option<&View>,
    terms: &[(f64, View)],
    rounding: Rounding,
    range: Range<usize>,
) {
    let read = || x.into_iter().chain(terms.iter().map(|(_, y)| y));
    let dense = read().chain([out]).all(View::is_dense);
    let far = dense && is_far(out, read());
    let mut out_stage = Stage::<STRETCH>::NEW;
    let mut stages = [Stage::<ROOM>::NEW; MAX_TERMS + 1];
    let [x_stage, term_stages @ ..] = &mut stages;
    let in_place = dense.then_some(if far { STRETCH } else { usize::MAX });
    for (start, n) in parts(range, in_place, LANES, ROOM) {
        let place = match far {
            true => out_stage.apart(out.dtype()),
            false => out_stage.room(out, start, n),
        };
        let x = x.map(|x| x_stage.read(x, start, n));
        let terms: ArrayVec<_, MAX_TERMS> = term_stages
            .iter_mut()
            .zip(terms)
            .map(|(stage, (c, y))| (*c as f32, stage.read(y, start, n)))
            .collect();
        let each_term = rounding == Rounding::EachTerm;
        let sum = Sum { out: place, x, terms: &terms, each_term, n };
        unsafe { level.run(sum) };
        match out.contiguous(start, n).filter(|_| far) {
            Some(to) => unsafe { stage::stream(place.address, to, n * out.dtype().size()) },
            None => out_stage.write_back(place, out, start, n),
        }
    }
    if far {
        stage::settle();
    }
}

/// Is a tensor so large, and apart from what is read, that what is written to it is better not kept in
/// the caches?
fn is_far<'a>(out: &View, mut read: impl Iterator<Item = &'a View>) -> bool {
    out.len() * out.dtype().size() >= FAR && !read.any(|view| view.is_same(out))
}

fn ladder(level: Level, y: &View, rungs: &[View], held: usize, gap: f32, range: Range<usize>) {
    let mut stages = [Stage::<ROOM>::NEW; MAX_RUNGS + 1];
    let [y_stage, rung_stages @ ..] = &mut stages;
    let dense = rungs.iter().chain([y]).all(View::is_dense);
    for (start, n) in parts(range, dense.then_some(usize::MAX), LANES, ROOM) {
        let y = y_stage.read(y, start, n);
        let read = |(k, (stage, rung)): (usize, (&mut Stage<ROOM>, &View))| match k < held {
            true => stage.read(rung, start, n),
            false => stage.room(rung, start, n),
        };
        let places: ArrayVec<_, MAX_RUNGS> =
            rung_stages.iter_mut().zip(rungs).enumerate().map(read).collect();
        unsafe { level.run(Ladder { y, rungs: &places, gap, n }) };
        for ((stage, rung), place) in rung_stages.iter().zip(rungs).zip(places) {
            stage.write_back(place, rung, start, n);
        }
    }
}

/// The sums of each block of the range.
fn measure(
    level: Level,
    comparison: &Comparison,
    rounded: bool,
    range: Range<usize>,
    sums: &mut [[f64; 3]],
) {
    let Comparison { x, base, earlier, keep } = comparison;
    let views = [Some(x), base.as_ref(), Some(earlier), keep.as_ref()];
    let dense = views.into_iter().flatten().all(View::is_dense);
    let mut stages = [Stage::<BLOCK>::NEW; 4];
    let [x_stage, base_stage, earlier_stage, keep_stage] = &mut stages;
    let first = range.start;
    for (start, n) in parts(range, dense.then_some(usize::MAX), BLOCK, BLOCK) {
        let place = keep.as_ref().map(|keep| keep_stage.room(keep, start, n));
        let measure = Measure {
            x: x_stage.read(x, start, n),
            base: base.as_ref().map(|base| base_stage.read(base, start, n)),
            earlier: earlier_stage.read(earlier, start, n),
            keep: place,
            rounded,
            n,
            sums: &mut sums[(start - first) / BLOCK..][..n.div_ceil(BLOCK)],
        };
        unsafe { level.run(measure) };
        if let (Some(place), Some(keep)) = (place, keep) {
            keep_stage.write_back(place, keep, start, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Buffer;
    use half::{bf16, f16};

    fn host() -> Host {
        Host::new(Memory::new(None, 0), 1)
    }

    fn buffer(host: &mut Host, dtype: Dtype, values: &[f32]) -> Storage {
        let view = unsafe { View::strided(std::ptr::null_mut(), dtype, &[values.len()], &[1]) };
        let buffer = host.alloc(view.shape()).expect("memory");
        let f32s = unsafe {
            View::strided(values.as_ptr().cast_mut().cast(), Dtype::F32, &[values.len()], &[1])
        };
        host.copy(buffer.view(), f32s);
        buffer
    }

    fn values(buffer: &Storage) -> Vec<f32> {
        let mut values = vec![0f32; buffer.view().len()];
        let f32s =
            unsafe { View::strided(values.as_mut_ptr().cast(), Dtype::F32, &[values.len()], &[1]) };
        host().copy(f32s, buffer.view());
        values
    }

    #[test]
    fn a_sum_may_round_after_every_operation() {
        // In bf16 256 + 1 is 256, so one rounding at the end makes another sum than three.
        let mut host = host();
        let y: Vec<_> =
            [256.0, 1.0, 1.0].iter().map(|y| buffer(&mut host, Dtype::Bf16, &[*y])).collect();
        let terms: Vec<_> = y.iter().map(|y| (1.0, y.view())).collect();
        let out = buffer(&mut host, Dtype::Bf16, &[0.0]);
        host.combine(out.view(), None, &terms, Rounding::Once);
        assert_eq!(values(&out), [258.0]);
        host.combine(out.view(), None, &terms, Rounding::EachTerm);
        assert_eq!(values(&out), [256.0]);
        host.combine(out.view(), Some(y[0].view()), &terms[1..], Rounding::EachTerm);
        assert_eq!(values(&out), [256.0]);
        // From nothing a sum of eager operations starts at +0.
        let zero = buffer(&mut host, Dtype::Bf16, &[-0.0]);
        host.combine(out.view(), None, &[(1.0, zero.view())], Rounding::EachTerm);
        assert!(values(&out)[0].is_sign_positive());
        host.combine(out.view(), None, &[(1.0, zero.view())], Rounding::Once);
        assert!(values(&out)[0].is_sign_negative());
    }

    #[test]
    fn a_ladder_rounds_each_rung_where_it_is_kept_and_goes_on_unrounded() {
        let mut host = host();
        for (dtype, kept) in [
            (Dtype::F32, Dtype::F32),
            (Dtype::F32, Dtype::Bf16),
            (Dtype::F16, Dtype::Bf16),
            (Dtype::Bf16, Dtype::F32),
        ] {
            let rungs: Vec<_> = (0..3).map(|_| buffer(&mut host, kept, &[f32::NAN])).collect();
            let views: Vec<_> = rungs.iter().map(Buffer::view).collect();
            let (mut held, mut expected) = (0, [0f32; 3]);
            // The largest f16 is infinite once it was a bf16.
            for (y, gap) in [
                (1.2345f32, 1.0f32),
                (1.3456, 1.0),
                (1.5678, 3.0),
                (1.1111, 14.0),
                (65504.0, 1.0),
                (65408.0, 1.0),
            ] {
                let y = dtype.round(y);
                let value = buffer(&mut host, dtype, &[y]);
                host.ladder(value.view(), &views, held, f64::from(gap));
                let mut t = y;
                let mut next = expected;
                for k in 0..=held.min(2) {
                    next[k] = kept.round(t);
                    if k < held {
                        t = dtype.round(dtype.round(t - dtype.round(expected[k])) / gap);
                    }
                }
                (expected, held) = (next, (held + 1).min(3));
                let got: Vec<_> = rungs[..held].iter().map(|rung| values(rung)[0]).collect();
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got), bits(&expected[..held]), "{dtype:?} {kept:?} {y}");
            }
        }
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut host = host();
        for x in [1.0 + 2f32.powi(-9), 65519.0, 65520.0, 3e-8, -2f32.powi(-25), f32::MIN_POSITIVE] {
            let y = buffer(&mut host, Dtype::F32, &[x]);
            for (dtype, expected) in
                [(Dtype::F16, f16::from_f32(x).to_f32()), (Dtype::Bf16, bf16::from_f32(x).to_f32())]
            {
                let out = buffer(&mut host, dtype, &[7.0]);
                host.combine(out.view(), None, &[(1.0, y.view())], Rounding::EachTerm);
                assert_eq!(values(&out), [expected], "{x} {dtype:?}");
            }
        }
    }

    #[test]
    fn what_is_written_past_the_caches_is_what_is_written_through_them() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let size = dtype.size();
            let len = FAR / size + 12_345;
            // Not on a line of the cache, and not on a large page.
            let words = |k: u32| -> Vec<u32> {
                let word = |i: u32| (i.wrapping_mul(2_654_435_761) ^ k) & 0x3bff_3bff;
                (0..(len * size).div_ceil(4) as u32 + 1).map(word).collect()
            };
            let mut tensors: Vec<_> = (1..5).map(words).collect();
            let [x, y, far, near] = [0, 1, 2, 3].map(|k| tensors[k].as_mut_ptr().cast::<u8>());
            // The words outlive the views, which have fewer bytes.
            let view = |data: *mut u8, at: usize, n: usize| unsafe {
                View::strided(data.wrapping_add((at + 1) * size), dtype, &[n], &[1])
            };
            let form = |host: &mut Host, out: *mut u8, at: usize, n: usize, terms: usize| {
                let (x, term) = (view(x, at, n), (0.3, view(y, at, n)));
                host.combine(view(out, at, n), Some(x), &[term][..terms], Rounding::Once);
            };
            for (terms, threads) in [(0, 1), (0, 3), (1, 1), (1, 3)] {
                let mut host = Host::new(Memory::new(None, 0), threads);
                form(&mut host, far, 0, len, terms);
                for at in (0..len).step_by(100_000) {
                    form(&mut host, near, at, (len - at).min(100_000), terms);
                }
                let bytes = |data: *mut u8| unsafe {
                    std::slice::from_raw_parts(data.wrapping_add(size), len * size)
                };
                assert!(bytes(far) == bytes(near), "{dtype:?}, {terms} terms, {threads} threads");
            }
        }
    }
}
