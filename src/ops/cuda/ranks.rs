//! What ranks that share a model add up, so that all decide alike: on the device, in the order of the
//! stream.
use super::Cuda;
use super::context::Context;
use super::kernels::{Kernel, WARP};
use super::measure::Pending;
use super::slot::{N_VOTES, Slot};
use crate::error::Result;
use crate::ops::{Agreed, Dtype, Measured, Reduce};
use crate::rule::Change;
use std::sync::Arc;

impl Cuda {
    pub(super) fn agree_with_others(
        &mut self,
        own: Option<&mut Measured<Pending>>,
        veto: bool,
        reduce: Reduce,
    ) -> Result<Agreed> {
        let dtype = match &own {
            Some(Measured::Queued(pending)) => Some(pending.known.dtype),
            Some(Measured::Known(change)) => Some(change.dtype),
            None => None,
        };
        let own = match own {
            // What the kernels have summed need not come to the host and go back.
            Some(Measured::Queued(Pending { queued: Some(queued), known })) if !has_sums(known) => {
                let slot = queued.slot.as_ref().expect("a queued measurement has its slot");
                let votes = self.agree_on(slot, queued.launches, known.count, veto, reduce)?;
                return Ok(Agreed::new(votes, dtype));
            }
            own => own.map(|own| own.read(self)),
        };
        let context = self.reach_to_vote()?;
        let mut slot = context.take_slot()?;
        if std::mem::take(&mut slot.unread) {
            // Its results are about to be written here.
            self.wait(&context, slot.event)?;
        }
        slot.put_sums(own.unwrap_or(Change::zero(Dtype::F32)));
        let count = own.map_or(0.0, |own| own.count);
        let votes = self.agree_on(&slot, 1, count, veto, reduce);
        slot.unread = votes.is_err();
        context.give_slot(slot);
        Ok(Agreed::new(votes?, dtype))
    }

    /// Lays this rank's sums and its vote out on the device, has them added up, and waits for what
    /// comes back. Whatever fails here, the other ranks get this one's vote: against.
    fn agree_on(
        &mut self,
        slot: &Slot,
        launches: usize,
        count: f64,
        veto: bool,
        reduce: Reduce,
    ) -> Result<[f64; N_VOTES]> {
        let context = self.reach_to_vote()?;
        let veto = veto || self.failed.is_some();
        self.dirty = true;
        let laid_out = self.lay_out_votes(&context, slot, launches, count, veto);
        if laid_out.is_err() {
            slot.put_veto(&context, self.stream)?;
        }
        let sums = std::ptr::with_exposed_provenance_mut(slot.votes() as usize);
        let reduced = {
            // The engine may make a context of its own the current one.
            let _entered = context.enter()?;
            reduce(sums, N_VOTES, self.stream.cast())
        };
        let copied = slot.fetch_votes(&context, self.stream);
        let recorded = context.record(slot.event, self.stream);
        let done =
            laid_out.and(copied).and(recorded).and_then(|()| self.wait(&context, slot.event));
        done.inspect_err(|error| self.fail(error.clone()))?;
        reduced.map(|()| slot.agreed())
    }

    /// A stream that takes work: the engine's, else the library's own.
    fn reach_to_vote(&mut self) -> Result<Arc<Context>> {
        // A stream that was refused has been left.
        self.reach().or_else(|_| self.reach())
    }

    fn lay_out_votes(
        &self,
        context: &Context,
        slot: &Slot,
        launches: usize,
        mut count: f64,
        veto: bool,
    ) -> Result<()> {
        let (mut results, mut n, mut votes) = (slot.result(0), launches as u32, slot.votes());
        let mut veto = f64::from(u8::from(veto));
        let mut parameters = [
            (&raw mut results).cast(),
            (&raw mut n).cast(),
            (&raw mut count).cast(),
            (&raw mut veto).cast(),
            (&raw mut votes).cast(),
        ];
        self.launch(context, Kernel::Vote, (1, WARP, 0), &mut parameters)
    }
}

/// Some of it was worked out on the host.
fn has_sums(known: &Change) -> bool {
    [known.difference, known.value, known.reference].iter().any(|sum| *sum != 0.0)
}
