//! x86-64 with AVX-512F: two vectors of sixteen, so that three sums leave registers to spare.
//!
//! The instructions of AVX512-BF16 are of no use: they take numbers below the normal ones for zero.
use super::{LANES, Simd, Task};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx512;

/// # Safety
/// The processor has AVX-512F, and the task's contract is kept.
#[target_feature(enable = "avx512f")]
pub unsafe fn run<T: Task>(task: T) {
    unsafe { task.run::<Avx512>() }
}

/// One expression for each vector. No closure: it would not be compiled for the instruction set.
macro_rules! each {
    ($k:ident => $vector:expr) => {
        [
            {
                const $k: usize = 0;
                $vector
            },
            {
                const $k: usize = 1;
                $vector
            },
        ]
    };
}

const WIDTH: usize = LANES / 2;

impl Simd for Avx512 {
    type Lanes = [__m512; 2];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::Lanes {
        unsafe { [_mm512_set1_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self::Lanes {
        let from = from.cast::<f32>();
        unsafe { each!(K => _mm512_loadu_ps(from.add(K * WIDTH))) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::Lanes {
        let from = from.cast::<u16>();
        unsafe { each!(K => _mm512_cvtph_ps(_mm256_loadu_si256(from.add(K * WIDTH).cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::Lanes {
        let from = from.cast::<u16>();
        unsafe {
            each!(K => {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.add(K * WIDTH).cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            })
        }
    }

    #[inline(always)]
    unsafe fn store_f32(x: Self::Lanes, to: *mut u8) {
        let to = to.cast::<f32>();
        unsafe { each!(K => _mm512_storeu_ps(to.add(K * WIDTH), x[K])) };
    }

    #[inline(always)]
    unsafe fn store_f16(x: Self::Lanes, to: *mut u8) {
        let to = to.cast::<u16>();
        unsafe {
            each!(K => {
                let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[K]);
                _mm256_storeu_si256(to.add(K * WIDTH).cast(), half)
            })
        };
    }

    #[inline(always)]
    unsafe fn store_bf16(x: Self::Lanes, to: *mut u8) {
        let to = to.cast::<u16>();
        unsafe {
            each!(K => {
                let upper = _mm512_srli_epi32::<16>(rounded_to_bf16(x[K]));
                _mm256_storeu_si256(to.add(K * WIDTH).cast(), _mm512_cvtepi32_epi16(upper))
            })
        };
    }

    #[inline(always)]
    unsafe fn round_f16(x: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[K]))) }
    }

    #[inline(always)]
    unsafe fn round_bf16(x: Self::Lanes) -> Self::Lanes {
        unsafe {
            let upper = _mm512_set1_epi32(!0xffff);
            each!(K => _mm512_castsi512_ps(_mm512_and_si512(rounded_to_bf16(x[K]), upper)))
        }
    }

    #[inline(always)]
    unsafe fn add(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm512_add_ps(a[K], b[K])) }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm512_sub_ps(a[K], b[K])) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm512_mul_ps(a[K], b[K])) }
    }

    #[inline(always)]
    unsafe fn div(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm512_div_ps(a[K], b[K])) }
    }

    #[inline(always)]
    unsafe fn abs(x: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm512_abs_ps(x[K])) }
    }
}

/// The upper halves are bf16; what is in the lower ones does not count. A NaN stays one.
#[inline(always)]
unsafe fn rounded_to_bf16(x: __m512) -> __m512i {
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000))
    }
}
