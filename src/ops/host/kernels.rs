//! The formulas. Each goes once over its tensors, [`LANES`] elements at a time, and is written once
//! for all dtypes and instruction sets: which dtype an operand has is asked at every load, where the
//! answer is foreseen by the processor and costs nothing beside memory.
use super::simd::{Simd, Task};
use crate::ops::{BLOCK, Dtype, LANES};
use std::ops::Range;

/// Bytes by which memory is asked for an operand before it is needed. What computes between its loads
/// has fewer of them under way than a plain loop. Of 0.25 to 4 KB, 320 to 448 bytes came out alike, and
/// best.
const AHEAD: usize = 384;

const PAGE: usize = 4096;

/// Elements of a page, of f32.
const STRETCH: usize = PAGE / 4;

/// Most tensors of which the next page is asked for: with three it is a gain or a loss, by their size.
const FEW: usize = 2;

/// Elements side by side. Kernels work on whole groups of [`LANES`].
#[derive(Clone, Copy)]
pub struct Elements {
    pub address: *mut u8,
    pub dtype: Dtype,
}

impl Elements {
    #[inline(always)]
    fn of(self, dtype: Dtype) -> Self {
        Self { dtype, ..self }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(self, at: usize) -> S::Lanes {
        let ahead = self.address.wrapping_add(self.dtype.size() * at + AHEAD);
        for line in 0..self.dtype.size() / 2 {
            S::prefetch(ahead.wrapping_add(64 * line));
        }
        unsafe {
            match self.dtype {
                Dtype::F32 => S::load_f32(self.address.add(4 * at)),
                Dtype::F16 => S::load_f16(self.address.add(2 * at)),
                Dtype::Bf16 => S::load_bf16(self.address.add(2 * at)),
            }
        }
    }

    /// Returns what was written.
    #[inline(always)]
    unsafe fn store<S: Simd>(self, at: usize, x: S::Lanes) -> S::Lanes {
        unsafe {
            match self.dtype {
                Dtype::F32 => S::store_f32(x, self.address.add(4 * at)),
                Dtype::F16 => S::store_f16(x, self.address.add(2 * at)),
                Dtype::Bf16 => S::store_bf16(x, self.address.add(2 * at)),
            }
        }
    }

    /// Rounds to `dtype` and returns that, which is also what is written, in the dtype that is here.
    #[inline(always)]
    unsafe fn keep<S: Simd>(self, dtype: Dtype, at: usize, x: S::Lanes) -> S::Lanes {
        unsafe {
            if self.dtype == dtype {
                return self.store::<S>(at, x);
            }
            let rounded = S::round(dtype, x);
            self.store::<S>(at, rounded);
            rounded
        }
    }
}

/// Asks for the page that follows, once for each. By the book its address takes time to translate, and
/// the processor's own prefetchers stop at the end of a page; measured, it is a gain for f32 alone.
#[inline(always)]
fn turn_pages<S: Simd>(read: impl Iterator<Item = Elements> + Clone, at: usize) {
    let mut kinds = read.clone().map(|elements| elements.dtype);
    if !at.is_multiple_of(STRETCH) || read.clone().count() > FEW || kinds.any(|d| d != Dtype::F32) {
        return;
    }
    for elements in read {
        let soon = elements.address.wrapping_add(4 * at + PAGE / 8);
        let next = soon.wrapping_add(PAGE - soon.addr() % PAGE);
        S::prefetch(next);
        S::prefetch(next.wrapping_add(64));
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
    fn dtype(&self) -> Option<Dtype> {
        common_dtype([self.out].into_iter().chain(self.x).chain(self.terms.iter().map(|t| t.1)))
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        unsafe {
            match self.dtype() {
                _ if self.each_term => self.rounding::<S>(),
                Some(Dtype::F32) => self.alike::<S>(Dtype::F32),
                Some(Dtype::F16) => self.alike::<S>(Dtype::F16),
                Some(Dtype::Bf16) => self.alike::<S::Paired>(Dtype::Bf16),
                None => exact::<S>(self.out, self.x, self.terms, self.n),
            }
        }
    }
}

impl Sum<'_> {
    /// All operands are of one dtype, which the compiler knows, as it knows how many terms there are.
    #[inline(always)]
    unsafe fn alike<S: Simd>(self, dtype: Dtype) {
        let (out, x, n) = (self.out.of(dtype), self.x.map(|x| x.of(dtype)), self.n);
        let term = |k: usize| (self.terms[k].0, self.terms[k].1.of(dtype));
        unsafe {
            match self.terms.len() {
                1 => exact::<S>(out, x, &[term(0)], n),
                2 => exact::<S>(out, x, &[term(0), term(1)], n),
                3 => exact::<S>(out, x, &[term(0), term(1), term(2)], n),
                4 => exact::<S>(out, x, &[term(0), term(1), term(2), term(3)], n),
                _ => exact::<S>(out, x, self.terms, n),
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

/// One rounding, at the store.
#[inline(always)]
unsafe fn exact<S: Simd>(
    out: Elements,
    x: Option<Elements>,
    mut terms: &[(f32, Elements)],
    n: usize,
) {
    let all = terms;
    // With neither x nor a term before it, a first term stands alone: no 0 + c*y, which would turn -0
    // into 0.
    let alone = x.map_or_else(|| terms.split_off_first(), |_| None);
    for at in (0..n).step_by(LANES) {
        turn_pages::<S>(x.into_iter().chain(all.iter().map(|y| y.1)), at);
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

/// Puts `y` on a ladder of backward quotients, of which all but the last are read. The operands are
/// valid for `n` elements, a multiple of [`LANES`], and apart.
pub struct Ladder<'a> {
    pub y: Elements,
    pub rungs: &'a [Elements],
    pub gap: f32,
    pub n: usize,
}

impl Task for Ladder<'_> {
    fn dtype(&self) -> Option<Dtype> {
        common_dtype([self.y].into_iter().chain(self.rungs.iter().copied()))
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        unsafe {
            match self.dtype() {
                Some(Dtype::F32) => self.alike::<S>(Dtype::F32),
                Some(Dtype::F16) => self.alike::<S>(Dtype::F16),
                Some(Dtype::Bf16) => self.alike::<S::Paired>(Dtype::Bf16),
                None => climb::<S>(self.y, self.rungs, self.gap, self.n),
            }
        }
    }
}

impl Ladder<'_> {
    #[inline(always)]
    unsafe fn alike<S: Simd>(self, dtype: Dtype) {
        let Self { y, rungs, gap, n } = self;
        let rung = |k: usize| rungs[k].of(dtype);
        unsafe {
            match rungs.len() {
                2 => climb::<S>(y.of(dtype), &[rung(0), rung(1)], gap, n),
                3 => climb::<S>(y.of(dtype), &[rung(0), rung(1), rung(2)], gap, n),
                _ => climb::<S>(y.of(dtype), rungs, gap, n),
            }
        }
    }
}

#[inline(always)]
unsafe fn climb<S: Simd>(y: Elements, rungs: &[Elements], gap: f32, n: usize) {
    let Some((last, held)) = rungs.split_last() else { return };
    let dtype = y.dtype;
    for at in (0..n).step_by(LANES) {
        turn_pages::<S>(held.iter().copied().chain([y]), at);
        unsafe {
            let mut t = y.load::<S>(at);
            for place in held {
                let rung = S::round(dtype, place.load::<S>(at));
                t = place.keep::<S>(dtype, at, t);
                let difference = S::round(dtype, S::sub(t, rung));
                t = S::div(difference, S::splat(gap));
            }
            last.keep::<S>(dtype, at, t);
        }
    }
}

/// Sums `|u - v|`, `|u|` and `|v|` over each block, `u` being `x` or `x - base`, rounded to the dtype
/// of `v`, which is `earlier`. The operands are valid for `n` elements, a multiple of [`LANES`];
/// `keep` receives `u` and is `base` or apart from the others.
pub struct Measure<'a> {
    pub x: Elements,
    pub base: Option<Elements>,
    pub earlier: Elements,
    pub keep: Option<Elements>,
    /// Round `u - v` too.
    pub rounded: bool,
    pub n: usize,
    /// A place for each block.
    pub sums: &'a mut [[f64; 3]],
}

impl Task for Measure<'_> {
    fn dtype(&self) -> Option<Dtype> {
        let all = [Some(self.x), self.base, Some(self.earlier), self.keep];
        common_dtype(all.into_iter().flatten())
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        unsafe {
            match self.dtype() {
                Some(Dtype::F32) => self.of(Dtype::F32).body::<S>(),
                Some(Dtype::F16) => self.of(Dtype::F16).body::<S>(),
                Some(Dtype::Bf16) => self.of(Dtype::Bf16).body::<S::Paired>(),
                None => self.body::<S>(),
            }
        }
    }
}

impl Measure<'_> {
    #[inline(always)]
    fn of(self, dtype: Dtype) -> Self {
        Self {
            x: self.x.of(dtype),
            base: self.base.map(|base| base.of(dtype)),
            earlier: self.earlier.of(dtype),
            keep: self.keep.map(|keep| keep.of(dtype)),
            ..self
        }
    }

    #[inline(always)]
    unsafe fn body<S: Simd>(self) {
        for (k, sum) in self.sums.iter_mut().enumerate() {
            let block = k * BLOCK..self.n.min((k + 1) * BLOCK);
            let Self { x, base, earlier, keep, rounded, .. } = self;
            *sum = unsafe { sum_block::<S>(x, base, earlier, keep, rounded, block) };
        }
    }
}

#[inline(always)]
unsafe fn sum_block<S: Simd>(
    x: Elements,
    base: Option<Elements>,
    earlier: Elements,
    keep: Option<Elements>,
    rounded: bool,
    block: Range<usize>,
) -> [f64; 3] {
    let dtype = earlier.dtype;
    unsafe {
        let mut lanes = [S::splat(0.0); 3];
        for at in block.step_by(LANES) {
            let read = [Some(x), base, Some(earlier)].into_iter().flatten();
            turn_pages::<S>(read, at);
            let mut u = x.load::<S>(at);
            if let Some(base) = base {
                let difference = S::sub(u, base.load::<S>(at));
                u = match keep {
                    Some(keep) => keep.keep::<S>(dtype, at, difference),
                    None => S::round(dtype, difference),
                };
            } else if let Some(keep) = keep {
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
        [add_by_halves::<S>(lanes[0]), add_by_halves::<S>(lanes[1]), add_by_halves::<S>(lanes[2])]
    }
}

#[inline(always)]
unsafe fn add_by_halves<S: Simd>(lanes: S::Lanes) -> f64 {
    let mut single = [0f32; LANES];
    unsafe { S::store_f32(S::in_order(lanes), single.as_mut_ptr().cast()) };
    let mut sums = [0f64; LANES / 2];
    for k in 0..LANES / 2 {
        sums[k] = f64::from(single[k]) + f64::from(single[k + LANES / 2]);
    }
    // Each width on its own, so that the compiler makes vectors of it.
    for k in 0..8 {
        sums[k] += sums[k + 8];
    }
    for k in 0..4 {
        sums[k] += sums[k + 4];
    }
    for k in 0..2 {
        sums[k] += sums[k + 2];
    }
    sums[0] + sums[1]
}

fn common_dtype(mut all: impl Iterator<Item = Elements>) -> Option<Dtype> {
    let dtype = all.next()?.dtype;
    all.all(|elements| elements.dtype == dtype).then_some(dtype)
}
