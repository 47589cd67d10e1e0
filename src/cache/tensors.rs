//! The tensors of a call: cut into branches, and checked against each other.
use super::{Given, Read};
use crate::error::{Result, bail};
use crate::guidance::Prediction;
use crate::ops::{Ops, View};
use crate::rows::{Part, Stacked};

/// Cuts the tensors of a call into each branch's rows.
pub fn cut<O: Ops>(ops: &mut O, read: Read, stacked: usize, into: &mut Stacked) -> Result<()> {
    let mut given = Given::new();
    read(&mut given)?;
    let stacked = stacked.max(1);
    for (k, tensor) in given.iter().enumerate() {
        if tensor.height() % stacked != 0 {
            let height = tensor.height();
            bail!(
                Arg,
                "tensor {k}: shape[0] is {height}, which {stacked} stacked branches do not divide"
            );
        }
    }
    into.start(given.len());
    for index in 0..stacked {
        for (k, tensor) in given.iter().enumerate() {
            // The engine's tensors are valid while the call lasts.
            let view = unsafe { tensor.rows(index, stacked) };
            let view = ops.admit(view).map_err(|error| error.within(&format!("tensor {k}")))?;
            into.push(Part { view, id: tensor.id });
        }
    }
    Ok(())
}

/// May `out` receive what stands in for the blocks between `input` and it?
pub fn check_out(input: &Stacked, out: &Stacked, residual: bool) -> Result<()> {
    for (k, part) in out.parts().iter().enumerate() {
        if !part.view.is_injective() {
            let k = k % out.tensors();
            bail!(Arg, "out tensor {k} has elements that share a place (a stride of 0?)");
        }
    }
    if residual {
        check_residual(input, out)?;
    }
    // Stacked branches are written one after the other, so none may lie over another's rows.
    let (read, written) = (input.parts(), out.parts());
    let at = |parts: &[Part], is: &dyn Fn(&View) -> bool| parts.iter().position(|p| is(&p.view));
    for (k, Part { view, .. }) in written.iter().enumerate() {
        let n = k % out.tensors();
        if let Some(j) = at(read, &|input| view.overlaps(input) && !view.is_same(input)) {
            let j = j % input.tensors();
            bail!(Arg, "out tensor {n} overlaps input tensor {j} in part");
        }
        if let Some(j) = at(&written[..k], &|other| view.overlaps(other)) {
            let j = j % out.tensors();
            bail!(Arg, "out tensor {n} overlaps out tensor {j}");
        }
        // The same place is one tensor's, in and out.
        let same = at(read, &|input| view.is_same(input));
        if same.is_some_and(|j| read.len() == written.len() && j != k) {
            bail!(Arg, "out tensor {n} lies where another input tensor is");
        }
    }
    Ok(())
}

/// What is added to `input` needs a counterpart of each tensor of `out` there.
fn check_residual(input: &Stacked, out: &Stacked) -> Result<()> {
    for (input, out) in input.each().zip(out.each()) {
        for (k, Part { view: written, id }) in out.iter().enumerate() {
            let Some(own) = input.find(k, *id) else {
                bail!(Arg, "out tensor {k} (id {id}) has no counterpart among the input tensors");
            };
            if own.shape() != written.shape() {
                let (was, is) = (own.shape(), written.shape());
                bail!(
                    Shape,
                    "tensor {k}: in is {was} and out is {is}, a residual needs them equal"
                );
            }
            // All of them are read and written at once.
            let lies_over = |(j, other): (usize, &Part)| {
                let is_own = own.is_same(&other.view);
                other.view.is_same(written) && !is_own && out.find(j, other.id).is_some()
            };
            if let Some(j) = input.iter().enumerate().position(lies_over) {
                bail!(Arg, "out tensor {k} lies where input tensor {j} is, which is another's");
            }
        }
    }
    Ok(())
}

/// A branch's prediction: the one tensor given.
pub fn prediction<O: Ops>(ops: &mut O, read: Read) -> Result<Prediction> {
    let mut given = Given::new();
    read(&mut given)?;
    let Some(tensor) = given.first() else {
        bail!(Arg, "no tensor is given");
    };
    // The engine's tensors are valid while the call lasts.
    let view = ops.admit(unsafe { tensor.rows(0, 1) })?;
    Ok(Prediction { view, plane: tensor.plane() })
}
