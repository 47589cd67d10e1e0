//! Views as the kernels take them.
//!
//! Most tensors are rows of contiguous elements that start at equal distances: dense ones, and parts
//! of joint buffers. Where all tensors of an operation can be cut into the same rows, and 16 bytes
//! can be loaded at a time, the fast kernels do it; the `strided` ones take anything else.
use super::kernels::VECTORS;
use crate::ops::{Dtype, MAX_DIMS, View};

/// Elements that a thread works on at a time where dtypes differ.
pub const ITEM: u64 = 8;

/// Bytes of the widest load.
const WIDE: u64 = 16;

/// As `kernels/elements.cuh` counts.
fn number(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    }
}

/// Rows of contiguous elements, `pitch` elements apart.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Rows {
    data: u64,
    pitch: u64,
    dtype: u32,
    unused: u32,
}

/// Any view.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Strided {
    data: u64,
    dtype: u32,
    n_axes: u32,
    extent: [u64; MAX_DIMS],
    stride: [u64; MAX_DIMS],
}

impl Strided {
    pub fn of(view: &View) -> Self {
        let mut strided = Self {
            data: view.address().addr() as u64,
            dtype: number(view.dtype()),
            ..Self::default()
        };
        for (k, (extent, stride)) in view.axes().enumerate() {
            (strided.extent[k], strided.stride[k]) = (extent as u64, stride as u64);
            strided.n_axes += 1;
        }
        strided
    }
}

/// How all tensors of an operation are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    pub rows: u64,
    pub cols: u64,
}

impl Cut {
    /// `None` if these views, of equal extents, have no rows in common that can be loaded wide.
    pub fn of<'a>(views: impl Iterator<Item = &'a View> + Clone) -> Option<Self> {
        let len = views.clone().next()?.len() as u64;
        let cols = views.clone().map(run).min()?;
        let cut = Self { rows: len / cols.max(1), cols };
        let narrow = cut.rows > 1 && cols < ITEM;
        (!narrow && views.into_iter().all(|view| cut.pitch(view).is_some())).then_some(cut)
    }

    /// Elements between the starts of two rows.
    fn pitch(&self, view: &View) -> Option<u64> {
        let len = view.len() as u64;
        let mut outer = view.axes();
        let pitch = match (outer.next(), outer.next(), outer.next()) {
            (Some(_), None, _) if run(view) == len && len.is_multiple_of(self.cols) => self.cols,
            (Some((_, pitch)), Some(_), None) if run(view) == self.cols => pitch as u64,
            _ => return None,
        };
        let bytes = pitch * view.dtype().size() as u64;
        let aligned = (view.address().addr() as u64).is_multiple_of(WIDE)
            && (self.rows == 1 || bytes.is_multiple_of(WIDE));
        aligned.then_some(pitch)
    }

    /// A view that this cut was made of.
    pub fn rows_of(&self, view: &View) -> Rows {
        let pitch = self.pitch(view).expect("a cut fits the views that it was made of");
        let (data, dtype) = (view.address().addr() as u64, number(view.dtype()));
        Rows { data, pitch, dtype, unused: 0 }
    }

    /// Threads to share this out to where dtypes may differ: each has one item.
    pub fn items(&self) -> u64 {
        self.vectors(ITEM)
    }

    /// ... and where all tensors have this dtype.
    pub fn threads(&self, dtype: Dtype) -> u64 {
        self.vectors(WIDE / dtype.size() as u64).div_ceil(VECTORS)
    }

    fn vectors(&self, elements: u64) -> u64 {
        self.rows * self.cols.div_ceil(elements)
    }
}

/// The dtype of all of these, if they have one.
pub fn common_dtype<'a>(mut views: impl Iterator<Item = &'a View>) -> Option<Dtype> {
    let first = views.next()?.dtype();
    views.all(|view| view.dtype() == first).then_some(first)
}

/// Contiguous elements from the first on.
fn run(view: &View) -> u64 {
    match view.axes().last() {
        Some((extent, 1)) => extent as u64,
        Some((1, _)) => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dtype: Dtype, offset: usize, extents: &[usize], strides: &[usize]) -> View {
        // Never dereferenced.
        let data = std::ptr::without_provenance_mut(4096 + offset);
        unsafe { View::strided(data, dtype, extents, strides) }
    }

    fn cut(views: &[View]) -> Option<(u64, u64)> {
        Cut::of(views.iter()).map(|cut| (cut.rows, cut.cols))
    }

    #[test]
    fn dense_tensors_are_one_row() {
        let x = view(Dtype::Bf16, 0, &[40, 30], &[30, 1]);
        assert_eq!(cut(&[x]), Some((1, 1200)));
        assert_eq!(cut(&[x, view(Dtype::F32, 512, &[1200], &[1])]), Some((1, 1200)));
        assert_eq!(cut(&[view(Dtype::F32, 0, &[3], &[1])]), Some((1, 3)));
        assert_eq!(cut(&[view(Dtype::F32, 0, &[1], &[1])]), Some((1, 1)));
    }

    #[test]
    fn rows_of_a_joint_buffer_are_cut_like_it() {
        let part = view(Dtype::F16, 64, &[2, 16, 8], &[40 * 8, 8, 1]);
        let dense = view(Dtype::F16, 0, &[2, 16, 8], &[128, 8, 1]);
        let cut = Cut::of([part, dense].iter()).expect("rows");
        assert_eq!((cut.rows, cut.cols, cut.items()), (2, 128, 32));
        assert_eq!((cut.threads(Dtype::F16), cut.threads(Dtype::F32)), (16, 32));
        assert_eq!((cut.rows_of(&part).pitch, cut.rows_of(&dense).pitch), (320, 128));
    }

    #[test]
    fn the_rest_is_strided() {
        let whole = [16, 30];
        for (why, other) in [
            ("not aligned to 16 bytes", view(Dtype::F32, 4, &whole, &[30, 1])),
            ("rows that are not", view(Dtype::F32, 0, &whole, &[33, 1])),
            ("columns", view(Dtype::F32, 0, &whole, &[1, 16])),
            ("every second element", view(Dtype::F32, 0, &whole, &[60, 2])),
            ("three axes", view(Dtype::F32, 0, &[2, 8, 30], &[4000, 100, 1])),
        ] {
            assert_eq!(cut(&[other]), None, "{why}");
        }
        assert_eq!(cut(&[view(Dtype::F32, 0, &[30, 4], &[8, 1])]), None, "narrow rows");
        // Repeated rows are rows.
        assert_eq!(cut(&[view(Dtype::F32, 0, &[16, 32], &[0, 1])]), Some((16, 32)));
    }

    #[test]
    fn any_view_is_strided() {
        let strided = Strided::of(&view(Dtype::Bf16, 2, &[2, 8, 30], &[4000, 100, 3]));
        assert_eq!((strided.data, strided.dtype, strided.n_axes), (4098, 2, 3));
        assert_eq!(strided.extent[..3], [2, 8, 30]);
        assert_eq!(strided.stride[..3], [4000, 100, 3]);
    }
}
