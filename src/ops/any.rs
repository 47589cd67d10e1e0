//! The backend that an engine chose, behind one type.
use super::cuda::{Cuda, Pending};
use super::host::Host;
use super::memory::Storage;
use super::{Agreed, Comparison, Measured, Ops, Reduce, Rounding, Shape, Sum, View};
use crate::error::Result;
use crate::rule::Change;
use std::ffi::c_void;
use std::time::Duration;

pub enum Any {
    Host(Host),
    Cuda(Box<Cuda>),
}

/// The same call on whichever backend it is.
macro_rules! on {
    ($any:expr, $ops:ident => $call:expr) => {
        match $any {
            Any::Host($ops) => $call,
            Any::Cuda($ops) => $call,
        }
    };
}

impl Ops for Any {
    type Buffer = Storage;
    type Pending = Pending;

    fn alloc(&mut self, shape: Shape) -> Result<Storage> {
        on!(self, ops => ops.alloc(shape))
    }

    fn copy(&mut self, out: View, x: View) {
        on!(self, ops => ops.copy(out, x));
    }

    fn subtract(&mut self, out: View, x: View, base: View) {
        on!(self, ops => ops.subtract(out, x, base));
    }

    fn combine(&mut self, out: View, x: Option<View>, terms: &[(f64, View)], rounding: Rounding) {
        on!(self, ops => ops.combine(out, x, terms, rounding));
    }

    fn combine_all(&mut self, rounding: Rounding, sums: impl FnOnce(&mut dyn FnMut(Sum))) {
        on!(self, ops => ops.combine_all(rounding, sums));
    }

    fn ladder(&mut self, y: View, rungs: &[View], held: usize, gap: f64) {
        on!(self, ops => ops.ladder(y, rungs, held, gap));
    }

    fn low_pass(&mut self, out: View, x: View, height: usize, width: usize) {
        on!(self, ops => ops.low_pass(out, x, height, width));
    }

    fn measure(&mut self, comparisons: &[Comparison], rounded: bool) -> Pending {
        match self {
            Self::Host(ops) => Pending::known(ops.measure(comparisons, rounded)),
            Self::Cuda(ops) => ops.measure(comparisons, rounded),
        }
    }

    fn read(&mut self, pending: Pending) -> Change {
        match self {
            Self::Host(_) => pending.on_host(),
            Self::Cuda(ops) => ops.read(pending),
        }
    }

    fn agree(
        &mut self,
        own: Option<&mut Measured<Pending>>,
        veto: bool,
        reduce: Reduce,
    ) -> Result<Agreed> {
        match self {
            Self::Cuda(ops) => ops.agree(own, veto, reduce),
            Self::Host(_) => {
                let known = own.map(|own| own.read(self));
                let Self::Host(ops) = self else { unreachable!() };
                ops.agree(known.map(Measured::Known).as_mut(), veto, reduce)
            }
        }
    }

    fn stream(&self) -> *mut c_void {
        on!(self, ops => ops.stream())
    }

    fn begin_run(&mut self) {
        on!(self, ops => ops.begin_run());
    }

    fn begin(&mut self, stream: *mut c_void) -> Result<()> {
        on!(self, ops => ops.begin(stream))
    }

    fn placed(&self, shape: Shape) -> Shape {
        on!(self, ops => ops.placed(shape))
    }

    fn admit(&mut self, view: View) -> Result<View> {
        on!(self, ops => ops.admit(view))
    }

    fn before_drop(&mut self) {
        on!(self, ops => ops.before_drop());
    }

    fn status(&self) -> Result<()> {
        on!(self, ops => ops.status())
    }

    fn finish_call(&mut self) -> Result<()> {
        on!(self, ops => ops.finish_call())
    }

    fn retire(&mut self) {
        on!(self, ops => ops.retire());
    }

    fn waited(&self) -> Duration {
        on!(self, ops => ops.waited())
    }
}
