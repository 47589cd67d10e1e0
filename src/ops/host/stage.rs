//! Elements side by side, whatever the strides of their view: in place where they lie so, else by way
//! of a buffer that stays in the first-level cache. A last few elements that are no whole group of
//! lanes take the same way, so that the formulas have no tails.
use super::kernels::Elements;
use crate::ops::{Dtype, LANES, View};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Cuts a range into parts, each a start and a length: whole groups of `unit`, as many as there are or
/// `in_place`, if that is given because the elements are in place; else what a [`Stage`] of `room` can
/// hold.
pub fn parts(
    range: Range<usize>,
    in_place: Option<usize>,
    unit: usize,
    room: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let left = range.end - start;
        let whole = left.min(in_place.unwrap_or(0));
        let whole = whole - whole % unit;
        let n = if whole > 0 { whole } else { left.min(room) };
        start += n;
        (n > 0).then_some((start - n, n))
    })
}

/// A buffer for so many elements, a multiple of [`LANES`].
#[repr(align(64))]
pub struct Stage<const ROOM: usize>(MaybeUninit<[f32; ROOM]>);

impl<const ROOM: usize> Stage<ROOM> {
    pub const NEW: Self = Self(MaybeUninit::uninit());

    /// Elements `start .. start + n` of `view`, and zeros up to a whole group.
    pub fn read(&mut self, view: &View, start: usize, n: usize) -> Elements {
        let elements = self.room(view, start, n);
        let buffer = self.0.as_mut_ptr().cast::<u8>();
        if elements.address == buffer {
            let size = view.dtype().size();
            // `View`'s contract makes the elements readable, and the buffer has room for them.
            unsafe {
                gather(view, start, n, buffer);
                let padding = n.next_multiple_of(LANES) - n;
                buffer.add(n * size).write_bytes(0, padding * size);
            }
        }
        elements
    }

    /// The buffer, to be filled whatever the view and [`stream`]ed.
    pub fn apart(&mut self, dtype: Dtype) -> Elements {
        Elements { address: self.0.as_mut_ptr().cast(), dtype }
    }

    /// Where they are to be written, before [`write_back`](Self::write_back).
    pub fn room(&mut self, view: &View, start: usize, n: usize) -> Elements {
        let place = view.contiguous(start, n).filter(|_| n.is_multiple_of(LANES));
        debug_assert!(place.is_some() || n <= ROOM);
        Elements { address: place.unwrap_or(self.0.as_mut_ptr().cast()), dtype: view.dtype() }
    }

    /// Brings what was written at `from` to where it belongs, unless it is there.
    pub fn write_back(&self, from: Elements, view: &View, start: usize, n: usize) {
        if from.address.cast_const() == self.0.as_ptr().cast() {
            // `View`'s contract makes the elements writable; they were written to the buffer.
            unsafe { scatter(from.address, view, start, n) };
        }
    }
}

/// Copies past the caches, which need neither hold what is written nor read it first. Before anybody
/// else reads it, [`settle`].
///
/// # Safety
/// The bytes can be read and written, and are apart.
pub unsafe fn stream(from: *const u8, to: *mut u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        const LINE: usize = 64;
        let head = to.align_offset(LINE).min(bytes);
        let lines = (bytes - head) / LINE * LINE;
        to.copy_from_nonoverlapping(from, head);
        for at in (head..head + lines).step_by(LINE) {
            let (from, to) = (from.add(at).cast::<__m128i>(), to.add(at).cast::<__m128i>());
            // SSE2 is part of x86-64.
            for k in 0..LINE / size_of::<__m128i>() {
                _mm_stream_si128(to.add(k), _mm_loadu_si128(from.add(k)));
            }
        }
        let done = head + lines;
        to.add(done).copy_from_nonoverlapping(from.add(done), bytes - done);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unsafe {
        to.copy_from_nonoverlapping(from, bytes);
    }
}

/// What was [`stream`]ed by this thread is written before what it writes from here on.
pub fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// # Safety
/// `to` has room for the elements.
unsafe fn gather(view: &View, start: usize, n: usize, to: *mut u8) {
    let size = view.dtype().size();
    view.runs(start, n, |at, address, n, stride| unsafe {
        let to = to.add(at * size);
        match (stride, view.dtype()) {
            (1, _) => to.copy_from_nonoverlapping(address, n * size),
            (_, Dtype::F32) => step::<u32>(address, stride, to, 1, n),
            (_, Dtype::F16 | Dtype::Bf16) => step::<u16>(address, stride, to, 1, n),
        }
    });
}

/// # Safety
/// The elements can be read at `from`, which is the very place of those of the view or apart from it.
pub unsafe fn scatter(from: *const u8, view: &View, start: usize, n: usize) {
    let size = view.dtype().size();
    view.runs(start, n, |at, address, n, stride| unsafe {
        let from = from.add(at * size);
        match (stride, view.dtype()) {
            (1, _) => address.copy_from(from, n * size),
            (_, Dtype::F32) => step::<u32>(from, 1, address, stride, n),
            (_, Dtype::F16 | Dtype::Bf16) => step::<u16>(from, 1, address, stride, n),
        }
    });
}

/// # Safety
/// The elements, so many apart, can be read and written. Addresses need not be aligned.
unsafe fn step<T>(from: *const u8, from_stride: usize, to: *mut u8, to_stride: usize, n: usize) {
    let (from, to) = (from.cast::<T>(), to.cast::<T>());
    for i in 0..n {
        unsafe {
            to.add(i * to_stride).write_unaligned(from.add(i * from_stride).read_unaligned())
        };
    }
}
