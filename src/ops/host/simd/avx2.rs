//! x86-64 with AVX2 and F16C: four vectors of eight.
use super::{LANES, Simd, Task};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx2<const PAIRED: bool>;

/// # Safety
/// The processor has AVX2 and F16C, and the task's contract is kept.
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn run<T: Task>(task: T) {
    unsafe { task.run::<Avx2<false>>() }
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
            {
                const $k: usize = 2;
                $vector
            },
            {
                const $k: usize = 3;
                $vector
            },
        ]
    };
}

const WIDTH: usize = LANES / 4;

impl<const PAIRED: bool> Simd for Avx2<PAIRED> {
    type Lanes = [__m256; 4];
    type Paired = Avx2<true>;

    #[inline(always)]
    unsafe fn in_order(x: Self::Lanes) -> Self::Lanes {
        if !PAIRED {
            return x;
        }
        unsafe {
            each!(K => {
                // Unpacking works within halves of a register: it has elements 0 to 3 and 8 to 11 of
                // sixteen, and the others.
                let (even, odd) = (x[K / 2 * 2], x[K / 2 * 2 + 1]);
                let (low, high) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
                match K % 2 {
                    0 => _mm256_permute2f128_ps::<0x20>(low, high),
                    _ => _mm256_permute2f128_ps::<0x31>(low, high),
                }
            })
        }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::Lanes {
        unsafe { [_mm256_set1_ps(x); 4] }
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self::Lanes {
        let from = from.cast::<f32>();
        unsafe { each!(K => _mm256_loadu_ps(from.add(K * WIDTH))) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::Lanes {
        let from = from.cast::<u16>();
        unsafe { each!(K => _mm256_cvtph_ps(_mm_loadu_si128(from.add(K * WIDTH).cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::Lanes {
        let from = from.cast::<u16>();
        unsafe {
            if PAIRED {
                return each!(K => {
                    let pairs = _mm256_loadu_si256(from.add(K / 2 * 2 * WIDTH).cast());
                    match K % 2 {
                        0 => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)),
                        _ => upper_half(pairs),
                    }
                });
            }
            each!(K => {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(K * WIDTH).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            })
        }
    }

    #[inline(always)]
    unsafe fn store_f32(x: Self::Lanes, to: *mut u8) -> Self::Lanes {
        let to = to.cast::<f32>();
        unsafe { each!(K => _mm256_storeu_ps(to.add(K * WIDTH), x[K])) };
        x
    }

    #[inline(always)]
    unsafe fn store_f16(x: Self::Lanes, to: *mut u8) -> Self::Lanes {
        let to = to.cast::<u16>();
        unsafe {
            each!(K => {
                let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[K]);
                _mm_storeu_si128(to.add(K * WIDTH).cast(), half);
                _mm256_cvtph_ps(half)
            })
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(x: Self::Lanes, to: *mut u8) -> Self::Lanes {
        let to = to.cast::<u16>();
        unsafe {
            let bits = each!(K => rounded_to_bf16::<PAIRED>(x[K]));
            let lower = each!(K => _mm256_srli_epi32::<16>(bits[K]));
            for k in [0, 2] {
                let packed = if PAIRED {
                    _mm256_blend_epi16::<0b1010_1010>(lower[k], bits[k + 1])
                } else {
                    // This works within halves of a register: the quarters are put in order after it.
                    let packed = _mm256_packus_epi32(lower[k], lower[k + 1]);
                    _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
                };
                _mm256_storeu_si256(to.add(k * WIDTH).cast(), packed);
            }
            each!(K => upper_half(bits[K]))
        }
    }

    #[inline(always)]
    unsafe fn round_f16(x: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[K]))) }
    }

    #[inline(always)]
    unsafe fn round_bf16(x: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => upper_half(rounded_to_bf16::<PAIRED>(x[K]))) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm256_add_ps(a[K], b[K])) }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm256_sub_ps(a[K], b[K])) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm256_mul_ps(a[K], b[K])) }
    }

    #[inline(always)]
    unsafe fn div(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm256_div_ps(a[K], b[K])) }
    }

    #[inline(always)]
    unsafe fn abs(x: Self::Lanes) -> Self::Lanes {
        unsafe { each!(K => _mm256_andnot_ps(_mm256_set1_ps(-0.0), x[K])) }
    }
}

#[inline(always)]
unsafe fn upper_half(bits: __m256i) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(!0xffff))) }
}

/// The upper halves are bf16; what is in the lower ones does not count. A NaN stays one, also if it
/// is `PAIRED` with nothing in its lower half.
#[inline(always)]
unsafe fn rounded_to_bf16<const PAIRED: bool>(x: __m256) -> __m256i {
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        if PAIRED {
            return rounded;
        }
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_blendv_epi8(rounded, quiet, nan)
    }
}
