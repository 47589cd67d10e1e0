//! Layers: each kind decides for itself, and each layer keeps its own output.
use super::tensors::{check_out, cut};
use super::{Cache, OpenPass, Read, reason_of, reducer};
use crate::error::{Error, Result, bail};
use crate::ops::Ops;
use crate::rows::Stacked;
use crate::rule::Action;
use crate::scope::{Kind, Scope};

impl<O: Ops> Cache<O> {
    /// `read` gives what the layer writes.
    pub fn before_layer(&mut self, layer: u32, kind: Kind, read: Read) -> (Action, Result<()>) {
        let Some(mut pass) = self.pass.take() else {
            let text = format!("before_layer({layer}) outside begin_pass and end_pass");
            return (Action::Compute, Err(Error::State(text)));
        };
        let (action, result) = match self.check_layer(layer, kind) {
            Ok(()) => self.enter_layer(&pass, layer, kind, read),
            Err(error) => (Action::Compute, Err(error)),
        };
        let result = self.noted(&mut pass, action, result);
        self.pass = Some(pass);
        (action, result)
    }

    fn check_layer(&mut self, layer: u32, kind: Kind) -> Result<()> {
        let n = self.engine.n_layers;
        let Some(known) = self.kinds.get_mut(layer as usize) else {
            bail!(Arg, "layer is {layer}, allowed is below n_layers, {n}");
        };
        // After a mistake the last word counts, so that a layer once misnamed is not lost for ever.
        match known.replace(kind) {
            Some(known) if known != kind => {
                let (known, now) = (known.name(), kind.name());
                bail!(Arg, "kind of layer {layer} is {now}, it was {known}: numbers are unique")
            }
            _ => Ok(()),
        }
    }

    fn enter_layer(
        &mut self,
        pass: &OpenPass,
        layer: u32,
        kind: Kind,
        read: Read,
    ) -> (Action, Result<()>) {
        let Some(index) = self.group_of_kind(kind) else {
            return (Action::Compute, Ok(()));
        };
        let place = self.groups[index].place(layer);
        if !self.groups[index].takes(place) {
            return (Action::Compute, Ok(()));
        }
        if self.groups[index].is_reached_at(place) {
            let text = format!("before_layer({layer}) a second time in one pass");
            return (Action::Compute, Err(Error::State(text)));
        }
        let none = Stacked::default();
        let out = cut(&mut self.ops, read, pass.members.len(), &mut self.out)
            .and_then(|()| check_out(&none, &self.out, false));
        let settled = self.settle_layers(out.as_ref().err());
        let group = &mut self.groups[index];
        match out.and_then(|()| group.enter(&mut self.ops, place, &none, &self.out, None)) {
            Ok(action) => (action, settled),
            Err(error) => {
                // What is in `out` does not matter: the layer computes over it.
                let error = match error {
                    Error::Discard(text) => Error::Device(text),
                    error => error,
                };
                group.veto(reason_of(&error));
                group.pass_by(place);
                (Action::Compute, Err::<(), _>(error).and(settled))
            }
        }
    }

    /// The policies of all kinds decide at the first layer of a pass, whatever its kind, so that
    /// ranks vote in the same order.
    fn settle_layers(&mut self, error: Option<&Error>) -> Result<()> {
        let mut settled = Ok(());
        for group in &mut self.groups {
            if matches!(group.policy().scope, Scope::Layers { .. }) && !group.is_settled() {
                if let Some(error) = error {
                    group.veto(reason_of(error));
                }
                let mut reduce = reducer(&self.engine);
                let reduce = reduce.as_mut().map(|r| r as _);
                settled = settled.and(group.settle(&mut self.ops, reduce).map(drop));
            }
        }
        settled
    }

    pub fn after_layer(&mut self, layer: u32, read: Read) -> Result<()> {
        let Some(mut pass) = self.pass.take() else {
            bail!(State, "after_layer({layer}) outside begin_pass and end_pass");
        };
        let result = self.leave_layer(&pass, layer, read);
        let result = self.noted(&mut pass, Action::Compute, result);
        self.pass = Some(pass);
        result
    }

    fn leave_layer(&mut self, pass: &OpenPass, layer: u32, read: Read) -> Result<()> {
        let n = self.engine.n_layers;
        let Some(kind) = self.kinds.get(layer as usize) else {
            bail!(Arg, "layer is {layer}, allowed is below n_layers, {n}");
        };
        let Some(kind) = *kind else {
            bail!(State, "after_layer({layer}) before before_layer({layer})");
        };
        let Some(index) = self.group_of_kind(kind) else {
            return Ok(());
        };
        let group = &mut self.groups[index];
        let place = group.place(layer);
        if group.is_filled_at(place) {
            // Harmless: the layer wrote over what had been filled in.
            bail!(State, "layer {layer} was answered SKIP and ran");
        }
        if group.is_open_at(place) {
            cut(&mut self.ops, read, pass.members.len(), &mut self.out)?;
            return group.leave(&mut self.ops, place, &self.out);
        }
        if group.takes(place) && !group.is_reached_at(place) {
            group.pass_by(place);
            bail!(State, "after_layer({layer}) before before_layer({layer})");
        }
        Ok(())
    }
}
