//! One algorithm, every instruction set: [`LANES`] numbers of f32 side by side, as the algorithms of
//! this backend see them, and the instruction sets that hold them.
//!
//! An algorithm is a [`Task`]: it is written once, over a [`Simd`], and [`Level::run`] compiles it
//! for each instruction set and picks one at run time. Conversions happen in registers. The trait has
//! no fused multiply-add and nothing that adds lanes to each other, so an algorithm cannot ask for
//! what would come out differently elsewhere.
//!
//! The portable set is loops over arrays, which the compiler makes vectors of: NEON on 64-bit Arm,
//! SSE2 on an old x86, plain code on anything.
//!
//! Why not a crate: those that vectorise a generic body (`pulp`, `wide`) know no half formats, which
//! are the point here; those that compile a plain body several times (`multiversion`) leave the
//! vectors to the compiler, and it has none for f16.
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::ops::{Dtype, LANES};

/// An instruction set.
///
/// # Safety
/// All functions but `prefetch` may be called only where the processor has the instruction set, and are meant to be
/// inlined into code that is compiled for it. Addresses need not be aligned; they must be valid for
/// [`LANES`] elements.
pub trait Simd: Copy {
    /// [`LANES`] values of f32.
    type Lanes: Copy;

    /// The same instructions for operands that are all of bf16. They are taken in pairs, of which one
    /// fills the upper half of a word already: that halves the work of loads and stores. What comes
    /// of bf16 and is no number has nothing in its lower half, so that rounding needs no care for it.
    type Paired: Simd;

    /// The lanes in the order of the elements, which they are not in while they are paired.
    unsafe fn in_order(x: Self::Lanes) -> Self::Lanes;

    unsafe fn splat(x: f32) -> Self::Lanes;

    /// Asks for a line of memory, which need not exist.
    #[inline(always)]
    fn prefetch(address: *const u8) {
        #[cfg(target_arch = "x86_64")]
        // SSE is part of x86-64.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(address.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = address;
    }

    unsafe fn load_f32(from: *const u8) -> Self::Lanes;
    unsafe fn load_f16(from: *const u8) -> Self::Lanes;
    unsafe fn load_bf16(from: *const u8) -> Self::Lanes;

    /// Stores return what was written.
    unsafe fn store_f32(x: Self::Lanes, to: *mut u8) -> Self::Lanes;
    unsafe fn store_f16(x: Self::Lanes, to: *mut u8) -> Self::Lanes;
    unsafe fn store_bf16(x: Self::Lanes, to: *mut u8) -> Self::Lanes;

    unsafe fn round_f16(x: Self::Lanes) -> Self::Lanes;
    unsafe fn round_bf16(x: Self::Lanes) -> Self::Lanes;

    unsafe fn add(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    unsafe fn sub(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    unsafe fn mul(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    unsafe fn div(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    unsafe fn abs(x: Self::Lanes) -> Self::Lanes;

    /// To the nearest values of `dtype`, ties to even.
    #[inline(always)]
    unsafe fn round(dtype: Dtype, x: Self::Lanes) -> Self::Lanes {
        unsafe {
            match dtype {
                Dtype::F32 => x,
                Dtype::F16 => Self::round_f16(x),
                Dtype::Bf16 => Self::round_bf16(x),
            }
        }
    }
}

/// Work that is the same on every instruction set.
pub trait Task {
    /// Must be `#[inline(always)]`.
    ///
    /// # Safety
    /// As [`Simd`]; and the task's own contract.
    unsafe fn run<S: Simd>(self);

    /// Of all operands, if they have one.
    fn dtype(&self) -> Option<Dtype>;
}

/// The instruction sets there is code for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// Those of this processor, best last.
    pub fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma");
        #[cfg(target_arch = "x86_64")]
        let avx512 = avx2 && is_x86_feature_detected!("avx512f");
        let all = [
            Some(Self::Portable),
            #[cfg(target_arch = "x86_64")]
            avx2.then_some(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            avx512.then_some(Self::Avx512),
        ];
        all.into_iter().flatten()
    }

    /// # Safety
    /// The level is [`available`](Self::available), and the task's contract is kept.
    pub unsafe fn run<T: Task>(self, task: T) {
        unsafe {
            match self {
                Self::Portable => task.run::<portable::Portable>(),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2::run(task),
                // Measured: what only moves f32 is faster by loads of 32 bytes than of 64.
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 if task.dtype() == Some(Dtype::F32) => avx2::run(task),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::run(task),
            }
        }
    }
}
