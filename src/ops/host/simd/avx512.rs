//! x86-64 with AVX-512F: two vectors of sixteen, so that three sums leave registers to spare.
//!
//! The instructions of AVX512-BF16 are of no use: they take numbers below the normal ones for zero.
use super::{LANES, Simd, Task};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx512<const PAIRED: bool>;

/// # Safety
/// The processor has AVX-512F, and the task's contract is kept.
#[target_feature(enable = "avx512f")]
pub unsafe fn run<T: Task>(task: T) {
    unsafe { task.run::<Avx512<false>>() }
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

impl<const PAIRED: bool> Simd for Avx512<PAIRED> {
    type Lanes = [__m512; 2];
    type Paired = Avx512<true>;

    #[inline(always)]
    unsafe fn in_order(x: Self::Lanes) -> Self::Lanes {
        if !PAIRED {
            return x;
        }
        unsafe {
            // The first half of the even elements in turn with that of the odd ones; then the others.
            let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
            [_mm512_permutex2var_ps(x[0], first, x[1]), _mm512_permutex2var_ps(x[0], second, x[1])]
        }
    }

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
            if PAIRED {
                let pairs = _mm512_loadu_si512(from.cast());
                let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
                return [even, upper_half(pairs)];
            }
            each!(K => {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.add(K * WIDTH).cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            })
        }
    }

    #[inline(always)]
    unsafe fn store_f32(x: Self::Lanes, to: *mut u8) -> Self::Lanes {
        let to = to.cast::<f32>();
        unsafe { each!(K => _mm512_storeu_ps(to.add(K * WIDTH), x[K])) };
        x
    }

    #[inline(always)]
    unsafe fn store_f16(x: Self::Lanes, to: *mut u8) -> Self::Lanes {
        let to = to.cast::<u16>();
        unsafe {
            each!(K => {
                let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[K]);
                _mm256_storeu_si256(to.add(K * WIDTH).cast(), half);
                _mm512_cvtph_ps(half)
            })
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(x: Self::Lanes, to: *mut u8) -> Self::Lanes {
        let to = to.cast::<u16>();
        unsafe {
            let bits = each!(K => rounded_to_bf16::<PAIRED>(x[K]));
            if PAIRED {
                let [even, odd] = bits;
                // Of each word the upper half of `odd`, and below it that of `even`.
                let upper = _mm512_set1_epi32(!0xffff);
                let even = _mm512_srli_epi32::<16>(even);
                let pairs = _mm512_ternarylogic_epi32::<0xca>(upper, odd, even);
                _mm512_storeu_si512(to.cast(), pairs);
            } else {
                each!(K => {
                    let half = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits[K]));
                    _mm256_storeu_si256(to.add(K * WIDTH).cast(), half)
                });
            }
            each!(K => upper_half(bits[K]))
        }
    }

    #[inline(always)]
    unsafe fn round_f16(x: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[K]))) }
    }

    #[inline(always)]
    unsafe fn round_bf16(x: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => upper_half(rounded_to_bf16::<PAIRED>(x[K]))) }
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

#[inline(always)]
unsafe fn upper_half(bits: __m512i) -> __m512 {
    unsafe { _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(!0xffff))) }
}

/// The upper halves are bf16; what is in the lower ones does not count. A NaN stays one, also if it
/// is `PAIRED` with nothing in its lower half.
#[inline(always)]
unsafe fn rounded_to_bf16<const PAIRED: bool>(x: __m512) -> __m512i {
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        if PAIRED {
            return rounded;
        }
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000))
    }
}
