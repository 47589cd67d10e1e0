//! WHEN: may this pass be skipped?
//!
//! A rule sees numbers, never tensors: the pass as the engine announced it and, if it asked for a
//! [`Probe`], what was measured. The *when* of a policy is a list of rules; a pass is skipped when
//! every rule in it agrees, so a mask, a limit and a measured change combine freely.
//!
//! `decide` changes nothing: `peek` may call it at any time, and a cancelled pass leaves no mark.
//! `record` is told at the end of the pass what really happened, which can differ from what the
//! rule wanted: another rule's veto, no history yet, no memory, the engine's own wish.
mod broadcast;
mod change;
mod cond_only;
mod interval;
mod limits;
mod mask;
mod window;

pub use broadcast::{Broadcast, MAX_MARKS};
pub use change::ResidualChange;
pub use cond_only::CondOnly;
pub use interval::Interval;
pub use limits::{Limits, Rails, WarmUp};
pub use mask::Mask;
pub use window::Window;

use crate::ops::Dtype;
use std::any::Any;
use std::fmt::Debug;

/// One evaluation of the model for one branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// Number of this evaluation in the full schedule; strictly rising within a branch.
    pub step: u32,
    /// Where this run enters the schedule: later than 0 for image-to-image or a second expert.
    pub first_step: u32,
    /// One past the run's last step, when the engine knows.
    pub end_step: Option<u32>,
    /// The engine announced this as the run's last step.
    pub last: bool,
    /// In the model's own units, when the engine tells.
    pub timestep: Option<f32>,
    /// What it is at pure noise.
    pub timestep_max: Option<f32>,
    /// Is the unconditional branch left out of this step? `None` while that is not certain.
    pub cond_only: Option<bool>,
}

impl Pass {
    /// The first pass of a run of which nothing is known.
    pub const START: Self = Self {
        step: 0,
        first_step: 0,
        end_step: None,
        last: false,
        timestep: None,
        timestep_max: None,
        cond_only: None,
    };

    /// Steps since the run's first.
    pub fn position(&self) -> u32 {
        self.step - self.first_step
    }

    /// How far the run has come: 0 at its first step, 1 at its last; when the engine knows.
    pub fn progress(&self) -> Option<f64> {
        let last = self.steps()?.saturating_sub(1).max(1);
        Some(f64::from(self.position()) / f64::from(last))
    }

    /// Evaluations of this run, when the engine knows.
    pub fn steps(&self) -> Option<u32> {
        self.end_step.map(|end| end - self.first_step)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Compute,
    Skip,
}

/// Why a pass was computed or skipped; every decision in the trace has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    None,
    WarmUp,
    Last,
    NoHistory,
    Rule,
    MaxConsecutive,
    MaxTotal,
    MaxError,
    NotFinite,
    Shape,
    Memory,
    Capture,
    Veto,
    Engine,
    Shared,
    Error,
    Age,
    Interval,
    Window,
    Unlisted,
    Guidance,
    Timestep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Compute(Reason),
    Skip,
    /// Cannot say before the probe was measured.
    Measure,
    /// Cannot say before the engine tells more; if it never does, the pass computes for this reason.
    Unknown(Reason),
}

/// Sums over a tensor `u` and an earlier one `v`, from one pass over both. Sums and a count, not
/// means, so that tensors, branches and shards on several devices can be added up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// `sum |u - v|`
    pub difference: f64,
    /// `sum |u|`
    pub value: f64,
    /// `sum |v|`
    pub reference: f64,
    /// Elements.
    pub count: f64,
    /// Of the tensors compared; compat modes round to it.
    pub dtype: Dtype,
}

impl Change {
    pub fn zero(dtype: Dtype) -> Self {
        Self { difference: 0.0, value: 0.0, reference: 0.0, count: 0.0, dtype }
    }

    /// Relative L1 change `sum |u - v| / sum |v|`: infinite for x/0, NaN for 0/0 and for x over a
    /// sum that is infinite.
    pub fn ratio(self) -> f64 {
        if self.reference.is_infinite() {
            return f64::NAN;
        }
        self.difference / self.reference
    }

    /// The same ratio as a chain of eager tensor operations gives it: two means and their quotient,
    /// each rounded to the tensors' dtype.
    pub fn rounded_ratio(self) -> f64 {
        let mean = |sum: f64| self.dtype.round((sum as f32) / (self.count as f32));
        f64::from(self.dtype.round(mean(self.difference) / mean(self.reference)))
    }
}

impl std::ops::Add for Change {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            difference: self.difference + other.difference,
            value: self.value + other.value,
            reference: self.reference + other.reference,
            count: self.count + other.count,
            dtype: self.dtype,
        }
    }
}

/// What a rule wants measured before it decides, against the last computed pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// What the front blocks added to the tensor that went in. With `rounded`, the difference of
    /// two residuals is rounded to the tensors' dtype before it is summed, as eager tensor
    /// operations do.
    FrontResidual { rounded: bool },
}

/// A policy holds rules that have recorded nothing; every branch of every run starts with clones.
pub trait Rule: Debug + Send + CloneRule {
    fn probe(&self) -> Option<Probe> {
        None
    }

    /// The scalar this rule judges a measurement by; shown in trace and statistics.
    fn metric(&self, measured: Change) -> f64 {
        measured.ratio()
    }

    /// What the metric is compared with.
    fn threshold(&self) -> Option<f64> {
        None
    }

    /// The metrics of the current streak of skips, added up.
    fn accumulated(&self) -> Option<f64> {
        None
    }

    /// Decides by the timestep, so every pass must have one.
    fn needs_timestep(&self) -> bool {
        false
    }

    /// Pure. Called with `None` first; a rule with a probe then answers [`Verdict::Measure`], or a
    /// veto that needs no measurement.
    fn decide(&self, pass: &Pass, metric: Option<f64>) -> Verdict;

    /// What the pass really did.
    fn record(&mut self, _pass: &Pass, _action: Action, _metric: Option<f64>) {}
}

/// Lets a boxed rule be cloned, also into the box of another of its type: `clone_from` then allocates
/// nothing, so rules are reset and looked ahead with for free.
pub trait CloneRule: Any {
    fn boxed(&self) -> Box<dyn Rule>;

    /// Becomes a clone of `source`, if that is of the same type; true if so.
    fn become_clone_of(&mut self, source: &dyn Rule) -> bool;
}

impl<R: Rule + Clone + 'static> CloneRule for R {
    fn boxed(&self) -> Box<dyn Rule> {
        Box::new(self.clone())
    }

    fn become_clone_of(&mut self, source: &dyn Rule) -> bool {
        let source: &dyn Any = source;
        source.downcast_ref::<R>().map(|source| self.clone_from(source)).is_some()
    }
}

impl Clone for Box<dyn Rule> {
    fn clone(&self) -> Self {
        (**self).boxed()
    }

    fn clone_from(&mut self, source: &Self) {
        if !self.become_clone_of(&**source) {
            *self = source.clone();
        }
    }
}

/// The verdict of all rules together, of one branch or of several; the first veto names the reason.
pub fn decide<'a>(
    rules: impl IntoIterator<Item = &'a Box<dyn Rule>>,
    pass: &Pass,
    metric: Option<f64>,
) -> Verdict {
    let mut verdict = Verdict::Skip;
    for rule in rules {
        match rule.decide(pass, metric) {
            veto @ Verdict::Compute(_) => return veto,
            unknown @ Verdict::Unknown(_) => verdict = unknown,
            Verdict::Measure if verdict == Verdict::Skip => verdict = Verdict::Measure,
            Verdict::Measure | Verdict::Skip => {}
        }
    }
    verdict
}
