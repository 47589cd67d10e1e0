//! Sums as the kernels take them: those of several tensors in one launch, each with its own blocks.
//! A launch costs microseconds, as much as a small tensor's whole sum.
use super::blocks_for;
use super::kernels::{CombineRows, CombineStrided, Kernel, MAX_SUMS, SumOfRows};
use super::layout::{Cut, Rows, Strided, common_dtype};
use crate::ops::{Rounding, Sum, View};

/// Sums for one launch.
#[derive(Default)]
pub struct Batch {
    pub parameters: CombineRows,
    pub blocks: u32,
    /// Of all of them.
    kernel: Option<Kernel>,
    /// The last one, if it is a plain copy.
    copy: Option<(View, View)>,
}

impl Batch {
    /// What forms them; `None` if there are none.
    pub fn kernel(&self) -> Option<Kernel> {
        self.kernel
    }

    /// Another sum that this kernel forms can be among them.
    pub fn takes(&self, kernel: Kernel) -> bool {
        self.kernel.is_none_or(|own| own == kernel) && self.len() < MAX_SUMS
    }

    /// [`takes`](Self::takes) has said so.
    pub fn push(&mut self, kernel: Kernel, sum: &Sum, cut: &Cut, rounding: Rounding) {
        let blocks = blocks_for(match kernel {
            Kernel::CombineRows(_) => cut.threads(sum.out.dtype()),
            _ => cut.items(),
        });
        let parameters = &mut self.parameters;
        parameters.sum[parameters.n as usize] =
            SumOfRows { first_block: self.blocks, blocks, ..sum_of_rows(sum, cut, rounding) };
        parameters.n += 1;
        self.blocks += blocks;
        (self.kernel, self.copy) = (Some(kernel), plain_copy(sum));
    }

    /// `(out, x)`, if that is all there is to do and the driver's own copy can do it.
    pub fn lone_copy(&self) -> Option<(View, View)> {
        self.copy.filter(|_| self.len() == 1)
    }

    fn len(&self) -> usize {
        self.parameters.n as usize
    }
}

/// The kernel for a sum that can be cut into rows.
pub fn kernel_for(sum: &Sum, rounding: Rounding) -> Kernel {
    match (sum.terms.len(), rounding, common_dtype(sum.views())) {
        // A copy is not rounded at all.
        (0, _, Some(_)) if sum.x.is_some() => Kernel::CombineRows(0),
        (n @ 1..=4, Rounding::Once, Some(_)) => Kernel::CombineRows(n),
        _ => Kernel::CombineRowsAny,
    }
}

/// `(out, x)`, if the bytes of one are to become those of the other.
pub fn plain_copy(sum: &Sum) -> Option<(View, View)> {
    let x = sum.x.filter(|x| sum.terms.is_empty() && x.dtype() == sum.out.dtype())?;
    (sum.out.is_dense() && x.is_dense()).then_some((sum.out, x))
}

fn sum_of_rows(sum: &Sum, cut: &Cut, rounding: Rounding) -> SumOfRows {
    let mut rows = SumOfRows {
        out: cut.rows_of(&sum.out),
        x: sum.x.as_ref().map_or(Rows::default(), |x| cut.rows_of(x)),
        rows: cut.rows,
        cols: cut.cols,
        n: sum.terms.len() as u32,
        has_x: u32::from(sum.x.is_some()),
        each_term: u32::from(rounding == Rounding::EachTerm),
        ..Default::default()
    };
    for (k, (c, y)) in sum.terms.iter().enumerate() {
        (rows.c[k], rows.y[k]) = (*c as f32, cut.rows_of(y));
    }
    rows
}

pub fn combine_strided(sum: &Sum, rounding: Rounding) -> CombineStrided {
    let mut strided = CombineStrided {
        out: Strided::of(&sum.out),
        x: sum.x.as_ref().map_or(Strided::default(), Strided::of),
        elements: sum.out.len() as u64,
        n: sum.terms.len() as u32,
        has_x: u32::from(sum.x.is_some()),
        each_term: u32::from(rounding == Rounding::EachTerm),
        ..Default::default()
    };
    for (k, (c, y)) in sum.terms.iter().enumerate() {
        (strided.c[k], strided.y[k]) = (*c as f32, Strided::of(y));
    }
    strided
}
