//! Any processor: arrays, and loops without branches that the compiler makes vectors of.
use super::{LANES, Simd};

#[derive(Clone, Copy)]
pub struct Portable;

type Lanes = [f32; LANES];

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (k, lane) in lanes.iter_mut().enumerate() {
        *lane = f(k);
    }
    lanes
}

impl Simd for Portable {
    type Lanes = Lanes;
    type Paired = Self;

    #[inline(always)]
    unsafe fn in_order(x: Lanes) -> Lanes {
        x
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Lanes {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Lanes {
        unsafe { from.cast::<Lanes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Lanes {
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|k| from_f16(bits[k]))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Lanes {
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|k| from_bf16(bits[k]))
    }

    #[inline(always)]
    unsafe fn store_f32(x: Lanes, to: *mut u8) -> Lanes {
        unsafe { to.cast::<Lanes>().write_unaligned(x) };
        x
    }

    #[inline(always)]
    unsafe fn store_f16(x: Lanes, to: *mut u8) -> Lanes {
        let bits = x.map(to_f16);
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) };
        each(|k| from_f16(bits[k]))
    }

    #[inline(always)]
    unsafe fn store_bf16(x: Lanes, to: *mut u8) -> Lanes {
        let bits = x.map(to_bf16);
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) };
        each(|k| from_bf16(bits[k]))
    }

    #[inline(always)]
    unsafe fn round_f16(x: Lanes) -> Lanes {
        each(|k| from_f16(to_f16(x[k])))
    }

    #[inline(always)]
    unsafe fn round_bf16(x: Lanes) -> Lanes {
        each(|k| from_bf16(to_bf16(x[k])))
    }

    #[inline(always)]
    unsafe fn add(a: Lanes, b: Lanes) -> Lanes {
        each(|k| a[k] + b[k])
    }

    #[inline(always)]
    unsafe fn sub(a: Lanes, b: Lanes) -> Lanes {
        each(|k| a[k] - b[k])
    }

    #[inline(always)]
    unsafe fn mul(a: Lanes, b: Lanes) -> Lanes {
        each(|k| a[k] * b[k])
    }

    #[inline(always)]
    unsafe fn div(a: Lanes, b: Lanes) -> Lanes {
        each(|k| a[k] / b[k])
    }

    #[inline(always)]
    unsafe fn abs(x: Lanes) -> Lanes {
        each(|k| x[k].abs())
    }
}

fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// To nearest even; a NaN stays one.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// What an f32 counts its exponent from, and an f16.
const REBIAS: u32 = (127 - 15) << 23;

/// A NaN becomes a quiet one, as the processors' own instructions have it.
fn from_f16(half: u16) -> f32 {
    let half = u32::from(half);
    let (sign, magnitude) = (half << 16 & 0x8000_0000, half << 13 & 0x0fff_e000);
    let normal = magnitude + REBIAS;
    let special = (magnitude + 2 * REBIAS) | if magnitude > 0x0f80_0000 { 0x40_0000 } else { 0 };
    // Below the normal numbers: one with exponent -14 is exact, and its leading 1 is taken off again.
    let smallest = REBIAS + (1 << 23);
    let small = (f32::from_bits(magnitude + smallest) - f32::from_bits(smallest)).to_bits();
    let finite = if magnitude < 1 << 23 { small } else { normal };
    f32::from_bits(sign | if magnitude < 0x0f80_0000 { finite } else { special })
}

/// To nearest even; a NaN stays one.
fn to_f16(x: f32) -> u16 {
    let (sign, magnitude) = (x.to_bits() >> 16 & 0x8000, x.to_bits() & 0x7fff_ffff);
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(REBIAS).wrapping_add(0xfff + odd) >> 13;
    // Below the normal numbers: the sum with 1/2 has its last bit where those have theirs.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < REBIAS + (1 << 23) { small } else { normal };
    // From 65520 on the rounding has carried into infinity; beyond 65536 it would overshoot.
    let finite = finite.min(0x7c00);
    let quiet = 0x7e00 | magnitude >> 13 & 0x3ff;
    (sign | if x.is_nan() { quiet } else { finite }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn halves_are_those_of_the_half_crate() {
        for bits in 0..=u16::MAX {
            assert_eq!(from_f16(bits).to_bits(), f16::from_bits(bits).to_f32().to_bits());
            // Its own conversion of bf16 makes a NaN quiet; here it keeps its bits.
            assert_eq!(from_bf16(bits).to_bits(), u32::from(bits) << 16);
        }
        // Every value of the upper bits, with the lower ones around each tie.
        for upper in 0..=u16::MAX {
            for lower in
                [0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff]
            {
                let x = f32::from_bits(u32::from(upper) << 16 | lower);
                assert_eq!(to_f16(x), f16::from_f32(x).to_bits(), "{x:e}");
                assert_eq!(to_bf16(x), bf16::from_f32(x).to_bits(), "{x:e}");
            }
        }
    }
}
