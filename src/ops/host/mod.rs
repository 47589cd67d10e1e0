//! The operations on host memory.
//!
//! Every operation walks its tensors in chunks that stay in the first-level cache: load into f32,
//! compute, store. Dtypes and strides are therefore a matter of `lanes` alone, and each formula
//! stands here once. Blocks of elements are spread over threads; the sums come out the same for any
//! number of them.
mod lanes;
mod low_pass;
mod pool;

use super::memory::{Memory, Storage};
use super::{BLOCK, Comparison, Dtype, LANES, MAX_RUNGS, Ops, Rounding, Shape, View};
use crate::error::Result;
use crate::rule::Change;
use lanes::{CHUNK, Lanes, load, store, transfer};
use std::ffi::c_void;
use std::sync::Arc;

pub struct Host {
    memory: Arc<Memory>,
    /// 0 = one per core, 1 = the calling thread only.
    threads: usize,
    /// Sums of each block, kept so that measuring allocates nothing.
    sums: Vec<[f64; 3]>,
}

impl Host {
    pub fn new(memory: Arc<Memory>, threads: usize) -> Self {
        Self { memory, threads, sums: Vec::new() }
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
        self.chunks(out.len(), |start, n| {
            let (mut x_, mut base_) = (Lanes::ZERO, Lanes::ZERO);
            load(&x, start, x_.first(n));
            load(&base, start, base_.first(n));
            x_.first(n).iter_mut().zip(base_.first(n)).for_each(|(x, base)| *x -= *base);
            store(&out, start, x_.first(n));
        });
    }

    fn combine(&mut self, out: View, x: Option<View>, terms: &[(f64, View)], rounding: Rounding) {
        if let (Some(x), []) = (&x, terms)
            && out.dtype() == x.dtype()
        {
            return self.chunks(out.len(), |start, n| transfer(&out, x, start, n));
        }
        if rounding == Rounding::EachTerm {
            return self.combine_rounding(out, x, terms);
        }
        self.chunks(out.len(), |start, n| {
            let (mut sum, mut term) = (Lanes::ZERO, Lanes::ZERO);
            // With neither x nor a term before it, a first term stands alone: no 0 + c*y, which
            // would turn -0 into 0.
            let mut first = true;
            if let Some(x) = &x {
                load(x, start, sum.first(n));
                first = false;
            }
            for (c, y) in terms {
                let c = *c as f32;
                load(y, start, term.first(n));
                let pairs = sum.first(n).iter_mut().zip(term.first(n));
                match std::mem::take(&mut first) {
                    true => pairs.for_each(|(sum, y)| *sum = c * *y),
                    false => pairs.for_each(|(sum, y)| *sum += c * *y),
                }
            }
            store(&out, start, sum.first(n));
        });
    }

    fn ladder(&mut self, y: View, rungs: &[View], held: usize, gap: f64) {
        assert!(held <= rungs.len() && rungs.len() <= MAX_RUNGS);
        let (dtype, gap) = (y.dtype(), gap as f32);
        self.chunks(y.len(), |start, n| {
            let (mut t, mut rung) = (Lanes::ZERO, Lanes::ZERO);
            load(&y, start, t.first(n));
            for (k, place) in rungs.iter().enumerate().take(held + 1) {
                if k < held {
                    load(place, start, rung.first(n));
                    rung.round(n, dtype);
                }
                store(place, start, t.first(n));
                if k + 1 < rungs.len() && k < held {
                    t.first(n).iter_mut().zip(rung.first(n)).for_each(|(t, rung)| *t -= *rung);
                    t.round(n, dtype);
                    t.first(n).iter_mut().for_each(|t| *t /= gap);
                    t.round(n, dtype);
                }
            }
        });
    }

    fn low_pass(&mut self, out: View, x: View, height: usize, width: usize) {
        low_pass::planes(self.threads, out, x, height, width);
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
    fn combine_rounding(&self, out: View, x: Option<View>, terms: &[(f64, View)]) {
        let dtype = out.dtype();
        self.chunks(out.len(), |start, n| {
            let (mut sum, mut term) = (Lanes::ZERO, Lanes::ZERO);
            if let Some(x) = &x {
                load(x, start, sum.first(n));
                sum.round(n, dtype);
            }
            for (c, y) in terms {
                let c = *c as f32;
                load(y, start, term.first(n));
                term.round(n, dtype);
                term.first(n).iter_mut().for_each(|y| *y *= c);
                term.round(n, dtype);
                sum.first(n).iter_mut().zip(term.first(n)).for_each(|(sum, y)| *sum += *y);
                sum.round(n, dtype);
            }
            store(&out, start, sum.first(n));
        });
    }

    /// Calls `f(start, n)` for chunks that cover `0 .. len`, on any thread.
    fn chunks(&self, len: usize, f: impl Fn(usize, usize) + Sync) {
        pool::for_each(self.threads, len.div_ceil(BLOCK), |block| {
            let end = len.min((block + 1) * BLOCK);
            for start in (block * BLOCK..end).step_by(CHUNK) {
                f(start, CHUNK.min(end - start));
            }
        });
    }

    fn compare(&mut self, comparison: &Comparison, rounded: bool) -> Change {
        let len = comparison.x.len();
        let n_blocks = len.div_ceil(BLOCK);
        self.sums.clear();
        self.sums.resize(n_blocks, [0.0; 3]);
        pool::fill(self.threads, &mut self.sums, |block| {
            let start = block * BLOCK;
            sum_block(comparison, start, BLOCK.min(len - start), rounded)
        });
        let [difference, value, reference] = self
            .sums
            .iter()
            .fold([0.0; 3], |sum, block| std::array::from_fn(|k| sum[k] + block[k]));
        let dtype = comparison.earlier.dtype();
        Change { difference, value, reference, count: len as f64, dtype }
    }
}

/// `[sum |u - v|, sum |u|, sum |v|]` over at most [`BLOCK`] elements from `start`.
fn sum_block(comparison: &Comparison, start: usize, len: usize, rounded: bool) -> [f64; 3] {
    let Comparison { x, base, earlier, keep } = comparison;
    let dtype = earlier.dtype();
    let (mut u, mut v, mut difference) = (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
    let mut sums = [[0f32; LANES]; 3];
    for offset in (0..len).step_by(CHUNK) {
        let (at, n) = (start + offset, CHUNK.min(len - offset));
        load(x, at, u.first(n));
        if let Some(base) = base {
            load(base, at, v.first(n));
            u.first(n).iter_mut().zip(v.first(n)).for_each(|(u, base)| *u -= *base);
            u.round(n, dtype);
        }
        if let Some(keep) = keep {
            store(keep, at, u.first(n));
        }
        load(earlier, at, v.first(n));
        let (u, v) = (u.first(n), v.first(n));
        let d = difference.first(n);
        d.iter_mut().zip(&*u).zip(&*v).for_each(|((d, u), v)| *d = *u - *v);
        if rounded {
            difference.round(n, dtype);
        }
        for (sum, terms) in sums.iter_mut().zip([difference.first(n), u, v]) {
            for row in terms.chunks(LANES) {
                sum.iter_mut().zip(row).for_each(|(sum, term)| *sum += term.abs());
            }
        }
    }
    sums.map(|lanes| add_by_halves(&mut lanes.map(f64::from)))
}

fn add_by_halves(lanes: &mut [f64]) -> f64 {
    match lanes {
        [sum] => *sum,
        _ => {
            let (low, high) = lanes.split_at_mut(lanes.len() / 2);
            low.iter_mut().zip(&*high).for_each(|(low, high)| *low += *high);
            add_by_halves(low)
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
        store(&buffer.view(), 0, values);
        buffer
    }

    fn values(buffer: &Storage) -> Vec<f32> {
        let mut values = vec![0.0; buffer.view().len()];
        load(&buffer.view(), 0, &mut values);
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
}
