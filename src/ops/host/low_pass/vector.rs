//! Sixteen f32 side by side, on the instruction set that was found.
//!
//! Here products are added without a rounding between, which `Ops::low_pass` allows and the other
//! operations do not; hence a trait of its own.

pub const COLUMNS: usize = 16;

/// Sixteen neighbours of a line, at an address that one load can fetch.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Row(pub [f32; COLUMNS]);

impl Row {
    pub const ZERO: Self = Self([0.0; COLUMNS]);

    pub fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr()
    }

    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr()
    }
}

/// # Safety
/// All functions may be called only where the processor has the instruction set, and are meant to
/// be inlined into code that is compiled for it. Addresses need not be aligned; they must be valid
/// for [`COLUMNS`] elements.
pub trait Vector: Copy {
    /// Sums that the registers hold at once.
    const SUMS: usize;

    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, y: Self) -> Self;
    unsafe fn sub(self, y: Self) -> Self;
    /// `self + a * y`
    unsafe fn add_product(self, a: f32, y: Self) -> Self;

    /// Four rows' columns `4 * at ..`, as columns `4 * to ..` of four rows.
    #[inline(always)]
    unsafe fn transpose(from: &[Row; 4], at: usize, out: &mut [Row; 4], to: usize) {
        for (i, from) in from.iter().enumerate() {
            for (k, out) in out.iter_mut().enumerate() {
                out.0[4 * to + i] = from.0[4 * at + k];
            }
        }
    }
}

/// Any processor: loops that the compiler makes vectors of.
#[derive(Clone, Copy)]
pub struct Portable([f32; COLUMNS]);

impl Vector for Portable {
    const SUMS: usize = 6;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; COLUMNS])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { from.cast::<[f32; COLUMNS]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; COLUMNS]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add(mut self, y: Self) -> Self {
        self.0.iter_mut().zip(y.0).for_each(|(x, y)| *x += y);
        self
    }

    #[inline(always)]
    unsafe fn sub(mut self, y: Self) -> Self {
        self.0.iter_mut().zip(y.0).for_each(|(x, y)| *x -= y);
        self
    }

    #[inline(always)]
    unsafe fn add_product(mut self, a: f32, y: Self) -> Self {
        // Elsewhere a fused multiply-add may be a call.
        let fused = cfg!(target_arch = "aarch64");
        self.0
            .iter_mut()
            .zip(y.0)
            .for_each(|(x, y)| *x = if fused { a.mul_add(y, *x) } else { *x + a * y });
        self
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Row, Vector};
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    impl Vector for Avx512 {
        const SUMS: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self {
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn add(self, y: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, y.0) })
        }

        #[inline(always)]
        unsafe fn sub(self, y: Self) -> Self {
            Self(unsafe { _mm512_sub_ps(self.0, y.0) })
        }

        #[inline(always)]
        unsafe fn add_product(self, a: f32, y: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(_mm512_set1_ps(a), y.0, self.0) })
        }

        #[inline(always)]
        unsafe fn transpose(from: &[Row; 4], at: usize, out: &mut [Row; 4], to: usize) {
            unsafe { transpose(from, at, out, to) }
        }
    }

    /// With FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    impl Vector for Avx2 {
        const SUMS: usize = 6;

        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn add(self, y: Self) -> Self {
            unsafe { Self(_mm256_add_ps(self.0, y.0), _mm256_add_ps(self.1, y.1)) }
        }

        #[inline(always)]
        unsafe fn sub(self, y: Self) -> Self {
            unsafe { Self(_mm256_sub_ps(self.0, y.0), _mm256_sub_ps(self.1, y.1)) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: f32, y: Self) -> Self {
            unsafe {
                let a = _mm256_set1_ps(a);
                Self(_mm256_fmadd_ps(a, y.0, self.0), _mm256_fmadd_ps(a, y.1, self.1))
            }
        }

        #[inline(always)]
        unsafe fn transpose(from: &[Row; 4], at: usize, out: &mut [Row; 4], to: usize) {
            unsafe { transpose(from, at, out, to) }
        }
    }

    /// With four shuffles a row; every x86-64 has them.
    #[inline(always)]
    unsafe fn transpose(from: &[Row; 4], at: usize, out: &mut [Row; 4], to: usize) {
        let [a, b, c, d] = from;
        unsafe {
            let mut a = _mm_loadu_ps(a.as_ptr().add(4 * at));
            let mut b = _mm_loadu_ps(b.as_ptr().add(4 * at));
            let mut c = _mm_loadu_ps(c.as_ptr().add(4 * at));
            let mut d = _mm_loadu_ps(d.as_ptr().add(4 * at));
            _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
            for (out, row) in out.iter_mut().zip([a, b, c, d]) {
                _mm_storeu_ps(out.as_mut_ptr().add(4 * to), row);
            }
        }
    }
}
