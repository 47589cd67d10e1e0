//! The formulas. Each goes once over its tensors, [`LANES`] elements at a time, and is written once
//! for all dtypes and instruction sets: which dtype an operand has is asked at every load, where the
//! answer is foreseen by the processor and costs nothing beside memory.
use super::simd::{Simd, Task};
use crate::ops::{Dtype, LANES};

/// Elements side by side. Kernels work on whole groups of [`LANES`].
#[derive(Clone, Copy)]
pub struct Elements {
    pub address: *mut u8,
    pub dtype: Dtype,
}

impl Elements {
    #[inline(always)]
    unsafe fn load<S: Simd>(self, at: usize) -> S::Lanes {
        unsafe {
            match self.dtype {
                Dtype::F32 => S::load_f32(self.address.add(4 * at)),
                Dtype::F16 => S::load_f16(self.address.add(2 * at)),
                Dtype::Bf16 => S::load_bf16(self.address.add(2 * at)),
            }
        }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(self, at: usize, x: S::Lanes) {
        unsafe {
            match self.dtype {
                Dtype::F32 => S::store_f32(x, self.address.add(4 * at)),
                Dtype::F16 => S::store_f16(x, self.address.add(2 * at)),
                Dtype::Bf16 => S::store_bf16(x, self.address.add(2 * at)),
            }
        }
    }
}

/// `out := x + sum_j c_j Y_j`. The operands are valid for `n` elements, a multiple of [`LANES`];
/// `out` is one of the others, or apart from them.
pub struct Sum<'a> {
    pub out: Elements,
    pub x: Option<Elements>,
    pub terms: &'a [(f32, Elements)],
    /// Round to the dtype of `out` after every operation.
    pub each_term: bool,
    pub n: usize,
}

impl Task for Sum<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        match self.each_term {
            true => unsafe { self.rounding::<S>() },
            false => unsafe { self.exact::<S>() },
        }
    }
}

impl Sum<'_> {
    #[inline(always)]
    unsafe fn exact<S: Simd>(self) {
        let Self { out, x, mut terms, n, .. } = self;
        // With neither x nor a term before it, a first term stands alone: no 0 + c*y, which would
        // turn -0 into 0.
        let alone = x.map_or_else(|| terms.split_off_first(), |_| None);
        for at in (0..n).step_by(LANES) {
            unsafe {
                let mut sum = match (x, alone) {
                    (Some(x), _) => x.load::<S>(at),
                    (None, Some((c, y))) => S::mul(S::splat(*c), y.load::<S>(at)),
                    (None, None) => S::splat(0.0),
                };
                for (c, y) in terms {
                    sum = S::add(sum, S::mul(S::splat(*c), y.load::<S>(at)));
                }
                out.store::<S>(at, sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn rounding<S: Simd>(self) {
        let Self { out, x, terms, n, .. } = self;
        let dtype = out.dtype;
        for at in (0..n).step_by(LANES) {
            unsafe {
                let mut sum = match x {
                    Some(x) => S::round(dtype, x.load::<S>(at)),
                    None => S::splat(0.0),
                };
                for (c, y) in terms {
                    let term = S::round(dtype, y.load::<S>(at));
                    let term = S::round(dtype, S::mul(S::splat(*c), term));
                    sum = S::round(dtype, S::add(sum, term));
                }
                out.store::<S>(at, sum);
            }
        }
    }
}

/// Puts `y` on a ladder of backward quotients, of which all but the last are read. The operands are
/// valid for `n` elements, a multiple of [`LANES`], and apart.
pub struct Ladder<'a> {
    pub y: Elements,
    pub rungs: &'a [Elements],
    pub gap: f32,
    pub n: usize,
}

impl Task for Ladder<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { y, rungs, gap, n } = self;
        let dtype = y.dtype;
        let Some((last, held)) = rungs.split_last() else { return };
        for at in (0..n).step_by(LANES) {
            unsafe {
                let mut t = y.load::<S>(at);
                for place in held {
                    let rung = S::round(dtype, place.load::<S>(at));
                    place.store::<S>(at, t);
                    let difference = S::round(dtype, S::sub(t, rung));
                    t = S::round(dtype, S::div(difference, S::splat(gap)));
                }
                last.store::<S>(at, t);
            }
        }
    }
}

/// Adds `|u - v|`, `|u|` and `|v|` to three rows of lanes, `u` being `x` or `x - base`, rounded to
/// the dtype of `v`, which is `earlier`. The operands are valid for `n` elements, a multiple of
/// [`LANES`]; `keep` receives `u` and is `base` or apart from the others.
pub struct Measure<'a> {
    pub x: Elements,
    pub base: Option<Elements>,
    pub earlier: Elements,
    pub keep: Option<Elements>,
    /// Round `u - v` too.
    pub rounded: bool,
    pub n: usize,
    pub sums: &'a mut [[f32; LANES]; 3],
}

impl Task for Measure<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, base, earlier, keep, rounded, n, sums } = self;
        let dtype = earlier.dtype;
        unsafe {
            let mut lanes = [
                S::load_f32(sums[0].as_ptr().cast()),
                S::load_f32(sums[1].as_ptr().cast()),
                S::load_f32(sums[2].as_ptr().cast()),
            ];
            for at in (0..n).step_by(LANES) {
                let mut u = x.load::<S>(at);
                if let Some(base) = base {
                    u = S::round(dtype, S::sub(u, base.load::<S>(at)));
                }
                if let Some(keep) = keep {
                    keep.store::<S>(at, u);
                }
                let v = earlier.load::<S>(at);
                let mut difference = S::sub(u, v);
                if rounded {
                    difference = S::round(dtype, difference);
                }
                lanes[0] = S::add(lanes[0], S::abs(difference));
                lanes[1] = S::add(lanes[1], S::abs(u));
                lanes[2] = S::add(lanes[2], S::abs(v));
            }
            for (sum, lanes) in sums.iter_mut().zip(lanes) {
                S::store_f32(lanes, sum.as_mut_ptr().cast());
            }
        }
    }
}
