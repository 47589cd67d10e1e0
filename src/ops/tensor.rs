//! Views of memory: where a tensor's elements are, and in which order they count.
use crate::error::{Result, bail};
use half::{bf16, f16};

pub const MAX_DIMS: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// To the nearest value of this dtype, ties to even.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// Every value of `other` is a value of this dtype.
    pub fn holds(self, other: Self) -> bool {
        self == Self::F32 || self == other
    }
}

/// Element type and extents of one branch's rows. Extents of 1 do not count: `[1, 4096, 3072]`,
/// `[4096, 3072]` and a strided view of such rows are the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    pub dtype: Dtype,
    /// In the host's memory, although others are on a device.
    on_host: bool,
    /// Right-aligned, padded with ones.
    extents: [usize; MAX_DIMS],
}

impl Shape {
    pub fn elements(&self) -> usize {
        self.extents.iter().product()
    }

    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    pub fn is_on_host(&self) -> bool {
        self.on_host
    }

    /// The same, in the host's memory or where tensors live.
    pub fn on_host(self, on_host: bool) -> Self {
        Self { on_host, ..self }
    }

    /// The same extents in another dtype.
    pub fn with_dtype(self, dtype: Dtype) -> Self {
        Self { dtype, ..self }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first = self.extents.iter().position(|n| *n != 1).unwrap_or(MAX_DIMS - 1);
        let place = if self.on_host { " on the host" } else { "" };
        write!(f, "{:?}{:?}{place}", self.dtype, &self.extents[first..])
    }
}

/// An axis of a view: elements along it, and how far apart they are, in elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Axis {
    extent: usize,
    stride: usize,
}

/// A borrowed view of a tensor; elements count in row-major order of its extents.
#[derive(Clone, Copy, Debug)]
pub struct View {
    data: *mut u8,
    shape: Shape,
    /// Outermost first; neighbours that can be walked as one are merged.
    axes: [Axis; MAX_DIMS],
    n_axes: usize,
}

// A view is an address and numbers; who dereferences it is bound by `View::new`'s contract.
unsafe impl Send for View {}
unsafe impl Sync for View {}

impl View {
    /// A view of `shape.elements()` elements from `data`, last dimension fastest.
    ///
    /// # Safety
    /// As [`strided`](Self::strided).
    pub unsafe fn dense(data: *mut u8, shape: Shape) -> Self {
        let mut axes = [Axis::default(); MAX_DIMS];
        axes[0] = Axis { extent: shape.elements(), stride: 1 };
        Self { data, shape, axes, n_axes: 1 }
    }

    /// `strides` are in elements and not negative. A stride of 0 repeats elements, which is legal
    /// for a view that is only read.
    ///
    /// # Safety
    /// While an operation that is given the view runs, every element must be valid for reads, and
    /// for writes if the operation writes it. The address need not be aligned.
    pub unsafe fn strided(
        data: *mut u8,
        dtype: Dtype,
        extents: &[usize],
        strides: &[usize],
    ) -> Self {
        let mut shape = Shape { dtype, on_host: false, extents: [1; MAX_DIMS] };
        let counting = extents.iter().zip(strides).filter(|(extent, _)| **extent != 1);
        let (mut axes, mut n_axes) = ([Axis::default(); MAX_DIMS], 0usize);
        let first = MAX_DIMS - counting.clone().count();
        for (at, (&extent, &stride)) in (first..).zip(counting) {
            shape.extents[at] = extent;
            match n_axes.checked_sub(1).map(|last| &mut axes[last]) {
                Some(outer) if outer.stride == extent * stride => {
                    *outer = Axis { extent: outer.extent * extent, stride };
                }
                _ => {
                    axes[n_axes] = Axis { extent, stride };
                    n_axes += 1;
                }
            }
        }
        if n_axes == 0 {
            (axes[0], n_axes) = (Axis { extent: 1, stride: 1 }, 1);
        }
        Self { data, shape, axes, n_axes }
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The same view, said to be in the host's memory or where tensors live.
    pub fn on_host(self, on_host: bool) -> Self {
        Self { shape: self.shape.on_host(on_host), ..self }
    }

    pub fn is_on_host(&self) -> bool {
        self.shape.on_host
    }

    /// Every element lies right behind the one before it.
    pub fn is_dense(&self) -> bool {
        self.n_axes == 1 && (self.axes[0].stride == 1 || self.axes[0].extent == 1)
    }

    /// Of the first element.
    pub fn address(&self) -> *mut u8 {
        self.data
    }

    /// Extent and stride of each axis, in elements, outermost first; neighbours that can be walked
    /// as one are merged.
    pub fn axes(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + Clone {
        self.axes[..self.n_axes].iter().map(|axis| (axis.extent, axis.stride))
    }

    pub fn dtype(&self) -> Dtype {
        self.shape.dtype
    }

    pub fn len(&self) -> usize {
        self.shape.elements()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Walks the elements `start .. start + len` in runs of equal stride: `run(offset, address of
    /// the first element, elements, stride)`, offsets counted from `start`.
    pub fn runs(
        &self,
        start: usize,
        len: usize,
        mut run: impl FnMut(usize, *mut u8, usize, usize),
    ) {
        let size = self.dtype().size();
        let (outer, inner) = (&self.axes[..self.n_axes - 1], self.axes[self.n_axes - 1]);
        let mut done = 0;
        while done < len {
            let index = start + done;
            let (mut rest, column) = (index / inner.extent, index % inner.extent);
            let mut offset = column * inner.stride;
            for axis in outer.iter().rev() {
                offset += rest % axis.extent * axis.stride;
                rest /= axis.extent;
            }
            let n = (inner.extent - column).min(len - done);
            run(done, self.data.wrapping_add(offset * size), n, inner.stride);
            done += n;
        }
    }

    /// The address of element `start`, if `len` elements from it lie side by side.
    pub fn contiguous(&self, start: usize, len: usize) -> Option<*mut u8> {
        if self.is_dense() {
            return Some(self.data.wrapping_add(start * self.dtype().size()));
        }
        let mut first = None;
        self.runs(start, len, |at, address, n, stride| {
            if at == 0 && n == len && stride == 1 {
                first = Some(address);
            }
        });
        first
    }

    /// The same elements at the same places.
    pub fn is_same(&self, other: &Self) -> bool {
        self.data == other.data
            && self.shape == other.shape
            && self.axes[..self.n_axes] == other.axes[..other.n_axes]
    }

    /// Some byte belongs to both. Exact up to a few thousand contiguous pieces, then pessimistic.
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.is_empty() || other.is_empty() {
            return false;
        }
        overlap(*self, *other, &mut 4096)
    }

    /// Every element has a place of its own, so the view can be written.
    pub fn is_injective(&self) -> bool {
        let mut axes = self.axes;
        let axes = &mut axes[..self.n_axes];
        axes.sort_by_key(|axis| axis.stride);
        let mut reach = 0;
        axes.iter().all(|axis| {
            let free = axis.extent <= 1 || axis.stride > reach;
            reach += axis.extent.saturating_sub(1) * axis.stride;
            free
        })
    }

    /// First byte and one past the last; the view is not empty.
    fn range(&self) -> (usize, usize) {
        let reach = self.axes[..self.n_axes].iter().map(|a| (a.extent - 1) * a.stride);
        let start = self.data as usize;
        (start, start + (reach.sum::<usize>() + 1) * self.dtype().size())
    }

    /// The axis along which the view is widest is cut off and walked.
    fn pieces(&self) -> Option<impl Iterator<Item = Self> + use<>> {
        let widest = (0..self.n_axes).max_by_key(|i| self.axes[*i].stride)?;
        let cut = self.axes[widest];
        if self.n_axes == 1 && cut.stride <= 1 {
            return None;
        }
        let (view, size) = (*self, self.dtype().size());
        Some((0..cut.extent).map(move |i| {
            let mut piece = view;
            piece.data = view.data.wrapping_add(i * cut.stride * size);
            piece.axes[widest] = Axis { extent: 1, stride: 1 };
            if view.n_axes > 1 {
                piece.axes.copy_within(widest + 1.., widest);
                piece.n_axes -= 1;
            }
            piece
        }))
    }
}

fn overlap(a: View, b: View, budget: &mut usize) -> bool {
    let ((a0, a1), (b0, b1)) = (a.range(), b.range());
    if a1 <= b0 || b1 <= a0 {
        return false;
    }
    if *budget == 0 {
        return true;
    }
    *budget -= 1;
    let width = |view: &View| view.range().1 - view.range().0;
    let (wide, narrow) = if width(&a) >= width(&b) { (a, b) } else { (b, a) };
    match (wide.pieces(), narrow.pieces()) {
        (Some(mut pieces), _) => pieces.any(|piece| overlap(piece, narrow, budget)),
        (None, Some(mut pieces)) => pieces.any(|piece| overlap(wide, piece, budget)),
        (None, None) => true,
    }
}

/// A tensor as an engine gave it, checked but not yet cut into branches.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    data: *mut u8,
    dtype: Dtype,
    ndim: usize,
    extents: [usize; MAX_DIMS],
    strides: [usize; MAX_DIMS],
    /// 0, or the engine's number for this stream.
    pub id: u32,
    /// The engine says that it is in the host's memory, although others are on a device.
    pub on_host: bool,
}

// As for `View`.
unsafe impl Send for Tensor {}

impl Tensor {
    /// Checks what can be checked without touching `data`. All strides zero is dense.
    pub fn new(
        data: *mut u8,
        dtype: Dtype,
        shape: &[i64],
        stride: &[i64],
        id: u32,
    ) -> Result<Self> {
        let ndim = shape.len();
        if ndim == 0 || ndim > MAX_DIMS {
            bail!(Arg, "ndim is {ndim}, allowed are 1 to {MAX_DIMS}");
        }
        let (mut extents, mut strides) = ([1; MAX_DIMS], [0; MAX_DIMS]);
        let mut len = 1usize;
        for (k, &extent) in shape.iter().enumerate() {
            let Ok(n) = usize::try_from(extent) else {
                bail!(Arg, "shape[{k}] is {extent}, allowed are 0 and above");
            };
            let bytes = len.checked_mul(n).and_then(|len| len.checked_mul(dtype.size()));
            if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
                bail!(Arg, "shape {shape:?} has more bytes than an address can count");
            }
            (len, extents[k]) = (len * n, n);
        }
        let mut reach = 0usize;
        for (k, &step) in stride.iter().enumerate() {
            let Ok(n) = usize::try_from(step) else {
                bail!(Arg, "stride[{k}] is {step}, allowed are 0 and above");
            };
            let far = n.checked_mul(extents[k].saturating_sub(1));
            let far = far.and_then(|far| far.checked_add(reach));
            match far.filter(|far| *far < isize::MAX as usize / dtype.size()) {
                Some(far) => (reach, strides[k]) = (far, n),
                None => bail!(Arg, "stride {stride:?} reaches further than an address can count"),
            }
        }
        if stride.iter().all(|step| *step == 0) {
            let mut step = 1;
            for k in (0..ndim).rev() {
                strides[k] = step;
                step *= extents[k].max(1);
            }
        }
        Ok(Self { data, dtype, ndim, extents, strides, id, on_host: false })
    }

    pub fn is_null(&self) -> bool {
        self.data.is_null()
    }

    pub fn is_empty(&self) -> bool {
        self.extents[..self.ndim].contains(&0)
    }

    /// Height and width of its planes, which are the last two dimensions.
    pub fn plane(&self) -> (usize, usize) {
        let extent = |back: usize| self.ndim.checked_sub(back).map_or(1, |at| self.extents[at]);
        (extent(2), extent(1))
    }

    /// Rows of branch number `index` of `stacked` along dimension 0, which divides evenly.
    ///
    /// # Safety
    /// As [`View::strided`].
    pub unsafe fn rows(&self, index: usize, stacked: usize) -> View {
        let rows = self.extents[0] / stacked;
        let mut extents = self.extents;
        extents[0] = rows;
        let data = self.data.wrapping_add(index * rows * self.strides[0] * self.dtype.size());
        let (extents, strides) = (&extents[..self.ndim], &self.strides[..self.ndim]);
        unsafe { View::strided(data, self.dtype, extents, strides) }.on_host(self.on_host)
    }

    /// Elements along dimension 0.
    pub fn height(&self) -> usize {
        self.extents[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(offset: usize, extents: &[usize], strides: &[usize]) -> View {
        // Never dereferenced.
        let data = std::ptr::without_provenance_mut(4096 + 4 * offset);
        unsafe { View::strided(data, Dtype::F32, extents, strides) }
    }

    #[test]
    fn extents_of_one_do_not_count() {
        let shapes = [
            view(0, &[1, 40, 30], &[1200, 30, 1]),
            view(0, &[40, 30], &[30, 1]),
            view(0, &[40, 1, 30], &[90, 7, 1]),
        ]
        .map(|view| view.shape());
        assert!(shapes.iter().all(|shape| *shape == shapes[0]));
        assert_ne!(shapes[0], view(0, &[1200], &[1]).shape());
        assert_eq!(view(0, &[1, 1], &[1, 1]).len(), 1);
    }

    #[test]
    fn runs_walk_a_strided_view_in_row_major_order() {
        let rows = view(0, &[2, 3, 4], &[100, 10, 1]);
        let mut seen = vec![0; 24];
        for start in 0..24 {
            rows.runs(start, 24 - start, |at, address, n, stride| {
                for i in 0..n {
                    seen[start + at + i] = (address as usize - 4096) / 4 + i * stride;
                }
            });
        }
        let expected = (0..24).map(|i| i / 12 * 100 + i / 4 % 3 * 10 + i % 4);
        assert!(expected.eq(seen));
    }

    #[test]
    fn elements_beyond_two_to_the_32_are_found() {
        let (rows, columns) = (5, (1 << 31) + 1);
        let large = view(0, &[rows, columns], &[columns + 64, 1]);
        assert_eq!(large.len(), rows * columns);
        let (row, column) = (3, columns - 2);
        let mut seen = Vec::new();
        large.runs(row * columns + column, 4, |at, address, n, _| {
            seen.push((at, (address as usize - 4096) / 4, n));
        });
        let place = |row: usize, column: usize| row * (columns + 64) + column;
        assert_eq!(seen, [(0, place(row, column), 2), (2, place(row + 1, 0), 2)]);
    }

    #[test]
    fn overlap_is_exact_between_interleaved_rows() {
        // Text rows 0..2 and image rows 2..5 of a joint buffer [2, 5, 4].
        let (text, image) = (view(0, &[2, 2, 4], &[20, 4, 1]), view(8, &[2, 3, 4], &[20, 4, 1]));
        assert!(!text.overlaps(&image) && !image.overlaps(&text));
        assert!(text.overlaps(&view(4, &[2, 3, 4], &[20, 4, 1])));
        // Even and odd columns.
        assert!(!view(0, &[8], &[2]).overlaps(&view(1, &[8], &[2])));
        assert!(view(0, &[8], &[2]).overlaps(&view(2, &[8], &[2])));
        assert!(!view(0, &[0], &[1]).overlaps(&view(0, &[5], &[1])));
    }

    #[test]
    fn a_view_that_repeats_elements_cannot_be_written() {
        for (extents, strides, injective) in [
            (&[3, 4][..], &[4, 1][..], true),
            (&[3, 4], &[1, 3], true),
            (&[3, 4], &[0, 1], false),
            (&[3, 4], &[2, 1], false),
            (&[1, 4], &[0, 1], true),
        ] {
            assert_eq!(view(0, extents, strides).is_injective(), injective, "{strides:?}");
        }
    }

    #[test]
    fn bad_tensors_are_refused_with_their_numbers() {
        let text = |shape: &[i64], stride: &[i64]| {
            let tensor = Tensor::new(std::ptr::null_mut(), Dtype::F16, shape, stride, 0);
            tensor.map_or_else(|error| error.to_string(), |_| "fine".to_owned())
        };
        for (shape, stride, expected) in [
            (&[3, 4][..], &[0, 0][..], "fine"),
            (&[0, 4], &[0, 0], "fine"),
            (&[], &[], "ndim is 0"),
            (&[1; 7], &[0; 7], "ndim is 7"),
            (&[3, -4], &[0, 0], "shape[1] is -4"),
            (&[3, 4], &[4, -1], "stride[1] is -1"),
            (&[i64::MAX, 4], &[0, 0], "more bytes"),
            (&[3, 4], &[i64::MAX, 1], "reaches further"),
        ] {
            assert!(text(shape, stride).contains(expected), "{}", text(shape, stride));
        }
    }
}
