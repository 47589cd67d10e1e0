//! The tensors of a call: cut into branches, and checked against each other.
use super::Given;
use crate::error::{Result, bail};
use crate::guidance::Prediction;
use crate::history::Rows;
use crate::ops::{Ops, View};

/// Each branch's rows of the given tensors.
pub fn rows<O: Ops>(ops: &mut O, given: &Given, stacked: usize) -> Result<Vec<Rows>> {
    let stacked = stacked.max(1);
    for (k, tensor) in given.tensors[..given.n].iter().flatten().enumerate() {
        if tensor.height() % stacked != 0 {
            let height = tensor.height();
            bail!(
                Arg,
                "tensor {k}: shape[0] is {height}, which {stacked} stacked branches do not divide"
            );
        }
    }
    let mut all = vec![Rows::NONE; stacked];
    for (index, rows) in all.iter_mut().enumerate() {
        for (k, tensor) in given.tensors[..given.n].iter().flatten().enumerate() {
            // The engine's tensors are valid while the call lasts.
            let view = unsafe { tensor.rows(index, stacked) };
            let view = ops.admit(view).map_err(|error| error.within(&format!("tensor {k}")))?;
            rows.push(view, tensor.id);
        }
    }
    Ok(all)
}

/// May `out` receive what stands in for the blocks between `input` and it?
pub fn check_out(input: &[Rows], out: &[Rows], residual: bool) -> Result<()> {
    let views = |rows: &[Rows]| -> Vec<View> {
        rows.iter().flat_map(|rows| rows.iter().map(|(view, _)| view).collect::<Vec<_>>()).collect()
    };
    for (k, (written, _)) in out.iter().flat_map(|out| out.iter().enumerate()) {
        if !written.is_injective() {
            bail!(Arg, "out tensor {k} has elements that share a place (a stride of 0?)");
        }
    }
    for (input, out) in input.iter().zip(out) {
        for (k, (written, id)) in out.iter().enumerate() {
            let own = input.find(k, id);
            if residual && own.is_none() {
                bail!(Arg, "out tensor {k} (id {id}) has no counterpart among the input tensors");
            }
            if let Some(own) = own.filter(|own| residual && own.shape() != written.shape()) {
                let (was, is) = (own.shape(), written.shape());
                bail!(
                    Shape,
                    "tensor {k}: in is {was} and out is {is}, a residual needs them equal"
                );
            }
            // All of them are read and written at once.
            let lies_over = |(j, (other, id)): &(usize, (View, u32))| {
                let is_own = own.is_some_and(|own| own.is_same(other));
                other.is_same(&written) && !is_own && out.find(*j, *id).is_some()
            };
            if let Some((j, _)) = input.iter().enumerate().find(lies_over).filter(|_| residual) {
                bail!(Arg, "out tensor {k} lies where input tensor {j} is, which is another's");
            }
        }
    }
    // Stacked branches are written one after the other, so none may lie over another's rows.
    let (read, written) = (views(input), views(out));
    for (k, out) in written.iter().enumerate() {
        let n = out_tensor(k, written.len(), out.len());
        if let Some(j) = read.iter().position(|input| out.overlaps(input) && !out.is_same(input)) {
            let j = out_tensor(j, read.len(), input.len());
            bail!(Arg, "out tensor {n} overlaps input tensor {j} in part");
        }
        if let Some(j) = written[..k].iter().position(|other| out.overlaps(other)) {
            let j = out_tensor(j, written.len(), out.len());
            bail!(Arg, "out tensor {n} overlaps out tensor {j}");
        }
        // The same place is one tensor's, in and out.
        let same = read.iter().position(|input| out.is_same(input));
        if same.is_some_and(|j| read.len() == written.len() && j != k) {
            bail!(Arg, "out tensor {n} lies where another input tensor is");
        }
    }
    Ok(())
}

/// Position in the engine's array of one of `n` views of `members` branches.
fn out_tensor(view: usize, n: usize, members: usize) -> usize {
    view % (n / members.max(1)).max(1)
}

/// A branch's prediction: the one tensor given.
pub fn prediction<O: Ops>(ops: &mut O, given: &Given) -> Result<Prediction> {
    let Some(tensor) = &given.tensors[0] else {
        bail!(Arg, "no tensor is given");
    };
    // The engine's tensors are valid while the call lasts.
    let view = ops.admit(unsafe { tensor.rows(0, 1) })?;
    Ok(Prediction { view, plane: tensor.plane() })
}
