//! Chunks of f32 in cache, and their way from and to memory of any dtype and stride.
use super::super::{Dtype, View};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Elements of a chunk: a few of them fit the first-level cache. Divides [`BLOCK`](super::BLOCK)
/// and is a multiple of [`LANES`](super::LANES).
pub const CHUNK: usize = 1024;

#[repr(align(64))]
pub struct Lanes([f32; CHUNK]);

impl Lanes {
    pub const ZERO: Self = Self([0.0; CHUNK]);

    pub fn first(&mut self, n: usize) -> &mut [f32] {
        &mut self.0[..n]
    }

    /// To the values of `dtype`.
    pub fn round(&mut self, n: usize, dtype: Dtype) {
        let x = self.first(n);
        match dtype {
            Dtype::F32 => {}
            Dtype::Bf16 => x.iter_mut().for_each(|x| *x = from_bf16(to_bf16(*x))),
            Dtype::F16 => {
                let mut half = [f16::ZERO; CHUNK];
                half[..n].convert_from_f32_slice(x);
                half[..n].convert_to_f32_slice(x);
            }
        }
    }
}

/// Elements `start .. start + out.len()` of `view`, as f32.
pub fn load(view: &View, start: usize, out: &mut [f32]) {
    let dtype = view.dtype();
    view.runs(start, out.len(), |at, address, n, stride| {
        let out = &mut out[at..at + n];
        // `View`'s contract makes these n elements readable.
        unsafe {
            match dtype {
                Dtype::F32 => gather(address, stride, out),
                Dtype::Bf16 => {
                    let mut bits = [0u16; CHUNK];
                    gather(address, stride, &mut bits[..n]);
                    out.iter_mut().zip(&bits).for_each(|(out, bits)| *out = from_bf16(*bits));
                }
                Dtype::F16 => {
                    let mut half = [f16::ZERO; CHUNK];
                    gather(address, stride, &mut half[..n]);
                    half[..n].convert_to_f32_slice(out);
                }
            }
        }
    });
}

/// Rounds `x` to elements `start .. start + x.len()` of `view`.
pub fn store(view: &View, start: usize, x: &[f32]) {
    let dtype = view.dtype();
    view.runs(start, x.len(), |at, address, n, stride| {
        let x = &x[at..at + n];
        // `View`'s contract makes these n elements writable.
        unsafe {
            match dtype {
                Dtype::F32 => scatter(x, address, stride),
                Dtype::Bf16 => {
                    let mut bits = [0u16; CHUNK];
                    bits.iter_mut().zip(x).for_each(|(bits, x)| *bits = to_bf16(*x));
                    scatter(&bits[..n], address, stride);
                }
                Dtype::F16 => {
                    let mut half = [f16::ZERO; CHUNK];
                    half[..n].convert_from_f32_slice(x);
                    scatter(&half[..n], address, stride);
                }
            }
        }
    });
}

/// Elements `start .. start + n` of `x` to those of `out`, which has the same dtype, untouched.
pub fn transfer(out: &View, x: &View, start: usize, n: usize) {
    match x.dtype().size() {
        4 => transfer_as::<u32>(out, x, start, n),
        _ => transfer_as::<u16>(out, x, start, n),
    }
}

fn transfer_as<T: Copy + Default>(out: &View, x: &View, start: usize, n: usize) {
    let mut bits = [T::default(); CHUNK];
    // `View`'s contract makes these elements readable, and those writable.
    x.runs(start, n, |at, address, n, stride| unsafe {
        gather(address, stride, &mut bits[at..at + n]);
    });
    out.runs(start, n, |at, address, n, stride| unsafe {
        scatter(&bits[at..at + n], address, stride);
    });
}

/// # Safety
/// `address` must be valid for reads of `out.len()` elements, `stride` elements apart. It need not
/// be aligned.
unsafe fn gather<T: Copy>(address: *const u8, stride: usize, out: &mut [T]) {
    if stride == 1 {
        let bytes = size_of_val(out);
        unsafe { out.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(address, bytes) };
        return;
    }
    let address = address.cast::<T>();
    for (i, out) in out.iter_mut().enumerate() {
        *out = unsafe { address.wrapping_add(i * stride).read_unaligned() };
    }
}

/// # Safety
/// As [`gather`], for writes.
unsafe fn scatter<T: Copy>(x: &[T], address: *mut u8, stride: usize) {
    if stride == 1 {
        unsafe { address.copy_from_nonoverlapping(x.as_ptr().cast(), size_of_val(x)) };
        return;
    }
    let address = address.cast::<T>();
    for (i, x) in x.iter().enumerate() {
        unsafe { address.wrapping_add(i * stride).write_unaligned(*x) };
    }
}

fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// To nearest even, without a branch so that it vectorises; a NaN stays one.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        let edges = [0.0, -0.0, 1.0, f32::MAX, f32::MIN_POSITIVE, 1e-42, f32::INFINITY, f32::NAN];
        let spread = (0..200_000u32).map(|i| f32::from_bits(i.wrapping_mul(21_473)));
        for x in edges.into_iter().chain(spread) {
            assert_eq!(to_bf16(x), bf16::from_f32(x).to_bits(), "{x:e}");
        }
    }
}
