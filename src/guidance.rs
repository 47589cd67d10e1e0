//! FasterCache's guidance: in a step in which the unconditional branch is left out, its prediction
//! is put together from the conditional one and what the two differed by when both were computed:
//!
//! ```text
//! uncond = cond + high * d + (low - high) * LP(d)          d = uncond - cond, last computed step
//! ```
//!
//! `LP` keeps the low frequencies of each plane, the last two axes of a prediction. It is worked
//! out once, at the first skipped step that needs it, so a skipped step transforms nothing. The two
//! factors may grow with every step that is skipped, and each works in a window of timesteps of its
//! own. Both tensors are f32, whatever the predictions are.
//!
//! Source: FasterCache (arXiv 2410.19355); diffusers `hooks/faster_cache.py`, which transforms three
//! planes a step to the same end. Cost of a skipped step: three reads, one write.
use crate::error::{Result, bail};
use crate::group::{FORESIGHT, Layout, Unit, rows_of};
use crate::ops::{Buffer, Dtype, Ops, Rounding, Shape, View};
use crate::pool::Pool;
use crate::rule::{self, Action, Pass, Reason, Rule, Verdict, Window};

/// When, and with which factors.
#[derive(Debug)]
pub struct Policy {
    pub rules: Vec<Box<dyn Rule>>,
    pub low: Boost,
    pub high: Boost,
    pub max_age: Option<u32>,
}

/// A factor on a band of frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Boost {
    pub factor: f64,
    /// Where it works; everywhere if `None`.
    pub window: Option<Window>,
    /// Skipped steps in a row over which it grows, as a power.
    pub growth: Option<u32>,
}

impl Boost {
    /// Its power after one more skipped step.
    fn grown(&self, power: u32, pass: &Pass) -> u32 {
        let inside = self.window.is_none_or(|window| window.contains(pass) == Some(true));
        let grown = power + u32::from(inside);
        self.growth.map_or(grown, |most| grown.min(most))
    }

    fn at(&self, power: u32) -> f64 {
        self.factor.powi(power.cast_signed())
    }
}

impl Policy {
    /// The two bands are always scaled alike, so that they need not be told apart.
    fn is_flat(&self) -> bool {
        self.low == self.high || (self.low.factor == 1.0 && self.high.factor == 1.0)
    }

    pub fn needs_timestep(&self) -> bool {
        let windowed = [self.low, self.high].iter().any(|boost| boost.window.is_some());
        windowed || self.rules.iter().any(|rule| rule.needs_timestep())
    }

    /// Shapes of what is kept, and how many of each.
    pub fn plan(&self, layouts: &[Layout], uncond: usize) -> Result<Vec<(Shape, usize)>> {
        let rows = rows_of(layouts, Unit::Uncond, uncond)?;
        let Some(shape) = rows.first().and_then(|row| row.tensors.first()) else {
            bail!(Arg, "the row of DC_HOOK_GUIDE has no tensor");
        };
        Ok(vec![self.kept(*shape)])
    }

    fn kept(&self, prediction: Shape) -> (Shape, usize) {
        let tensors = if self.is_flat() { 1 } else { 2 };
        (prediction.with_dtype(Dtype::F32), tensors)
    }
}

/// One branch's prediction.
#[derive(Clone, Copy)]
pub struct Prediction {
    pub view: View,
    /// Height and width of its planes.
    pub plane: (usize, usize),
}

/// What the last computed step left.
struct Difference<O: Ops> {
    prediction: Shape,
    plane: (usize, usize),
    /// `d`, and room for `LP(d)`.
    tensors: Vec<O::Buffer>,
    low_pass_is_current: bool,
    /// Powers of the factors, over the steps skipped since.
    low: u32,
    high: u32,
}

pub struct Guidance<O: Ops> {
    policy: Policy,
    clock: Clock,
    /// The one that is played ahead; kept for its memory.
    ahead: Clock,
    difference: Option<Difference<O>>,
    pool: Pool<O>,
}

/// What decides: the rules as they stand, and how old the difference is.
struct Clock {
    rules: Vec<Box<dyn Rule>>,
    /// Position of the newest computed step, if its difference is held.
    newest: Option<u32>,
    max_age: Option<u32>,
    /// The step answered last, and how.
    answered: Option<(u32, Action)>,
}

impl Clone for Clock {
    fn clone(&self) -> Self {
        Self { rules: self.rules.clone(), ..*self }
    }

    fn clone_from(&mut self, source: &Self) {
        self.rules.clone_from(&source.rules);
        let Self { newest, max_age, answered, .. } = *source;
        (self.newest, self.max_age, self.answered) = (newest, max_age, answered);
    }
}

impl Clock {
    /// `None` while the engine has to tell more.
    fn decide(&self, pass: &Pass) -> Option<(Action, Reason)> {
        let old = |step| self.max_age.is_some_and(|max| pass.position() - step > max);
        Some(match rule::decide(&self.rules, pass, None) {
            Verdict::Unknown(_) => return None,
            Verdict::Compute(reason) => (Action::Compute, reason),
            Verdict::Measure => (Action::Compute, Reason::NoHistory),
            Verdict::Skip => match self.newest {
                None => (Action::Compute, Reason::NoHistory),
                Some(step) if old(step) => (Action::Compute, Reason::Age),
                Some(_) => (Action::Skip, Reason::Rule),
            },
        })
    }

    fn record(&mut self, pass: &Pass, action: Action) {
        self.rules.iter_mut().for_each(|rule| rule.record(pass, action, None));
        self.answered = Some((pass.step, action));
    }

    /// The answer that was given for a step, or that would be given now.
    fn answer(&self, pass: &Pass) -> Option<Action> {
        match self.answered {
            Some((step, action)) if step == pass.step => Some(action),
            _ => self.decide(pass).map(|(action, _)| action),
        }
    }
}

impl<O: Ops> Guidance<O> {
    pub fn new(policy: Policy) -> Self {
        let (rules, max_age) = (policy.rules.clone(), policy.max_age);
        let clock = Clock { rules, newest: None, max_age, answered: None };
        Self { policy, ahead: clock.clone(), clock, difference: None, pool: Pool::default() }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    // ---- memory ----

    /// Takes all memory that will ever be needed, which is [`Policy::plan`]ned.
    pub fn reserve(&mut self, ops: &mut O, planned: &[(Shape, usize)]) -> Result<()> {
        self.forget();
        let held = self.difference.take().map_or(Vec::new(), |difference| difference.tensors);
        held.into_iter().for_each(|buffer| self.pool.give(buffer));
        self.pool.reserve(ops, planned)
    }

    pub fn free(&mut self) {
        self.forget();
        self.difference = None;
        self.pool.free();
    }

    /// Starts a run: forgets everything but the memory.
    pub fn clear(&mut self) {
        self.forget();
        self.clock.rules.clone_from(&self.policy.rules);
        self.clock.answered = None;
    }

    /// Forgets what the branches differed by.
    pub fn forget(&mut self) {
        self.clock.newest = None;
    }

    // ---- decisions ----

    /// Is the branch left out of this step, as things stand? `None` while that is not certain.
    pub fn leaves_out(&self, pass: &Pass) -> Option<bool> {
        self.clock.answer(pass).map(|action| action == Action::Skip)
    }

    /// Foresight over the steps that have not been answered; `first` is the run's first.
    pub fn forecast(&mut self, first: u32) -> Forecast<'_> {
        let next = self.clock.answered.map_or(first, |(step, _)| step.saturating_add(1));
        self.ahead.clone_from(&self.clock);
        Forecast { clock: &mut self.ahead, next, known: true }
    }

    /// Answers for a step, once; on a skip `uncond` receives the estimate.
    pub fn before(
        &mut self,
        ops: &mut O,
        pass: &Pass,
        compute: bool,
        cond: &Prediction,
        uncond: &Prediction,
    ) -> Result<(Action, Reason)> {
        if let Some((last, _)) = self.clock.answered.filter(|(last, _)| *last >= pass.step) {
            let step = pass.step;
            bail!(State, "before_uncond at step {step}, but step {last} was answered: steps rise");
        }
        check_pair(cond, uncond)?;
        let decided = self.clock.decide(pass).unwrap_or((Action::Compute, Reason::Timestep));
        let (action, reason) = if compute { (Action::Compute, Reason::Engine) } else { decided };
        if action == Action::Skip {
            self.fits(cond).inspect_err(|_| self.clock.newest = None)?;
            self.estimate(ops, pass, cond, uncond);
            ops.status()?;
        }
        self.clock.record(pass, action);
        Ok((action, reason))
    }

    fn fits(&self, cond: &Prediction) -> Result<()> {
        match &self.difference {
            Some(Difference { prediction: was, plane, .. })
                if *was != cond.view.shape() || *plane != cond.plane =>
            {
                bail!(Shape, "cond is {}, it was {was}", cond.view.shape())
            }
            _ => Ok(()),
        }
    }

    fn estimate(&mut self, ops: &mut O, pass: &Pass, cond: &Prediction, uncond: &Prediction) {
        let Some(held) = &mut self.difference else { return };
        let Policy { low, high, .. } = &self.policy;
        (held.low, held.high) = (low.grown(held.low, pass), high.grown(held.high, pass));
        let (low, high) = (low.at(held.low), high.at(held.high));
        let d = held.tensors[0].view();
        let mut terms = [(high, d), (low - high, d)];
        if low != high {
            let low_pass = held.tensors[1].view();
            if !std::mem::replace(&mut held.low_pass_is_current, true) {
                ops.low_pass(low_pass, d, held.plane.0, held.plane.1);
            }
            terms[1].1 = low_pass;
        }
        let mut terms = &terms[..if low == high { 1 } else { 2 }];
        if high == 0.0 {
            terms = &terms[1..];
        }
        ops.combine(uncond.view, Some(cond.view), terms, Rounding::Once);
    }

    /// Takes in what both branches predicted in a step that computed them; true if the step had not
    /// been asked about.
    pub fn after(
        &mut self,
        ops: &mut O,
        pass: &Pass,
        cond: &Prediction,
        uncond: &Prediction,
    ) -> Result<bool> {
        let first = match self.clock.answered {
            Some((step, Action::Skip)) if step == pass.step => {
                bail!(State, "step {step} was answered SKIP, and its branch ran")
            }
            Some((step, _)) if step > pass.step => {
                bail!(State, "after_uncond at step {}, but step {step} was answered", pass.step)
            }
            Some((step, _)) if step == pass.step => false,
            // An engine that looked ahead need not ask.
            _ => true,
        };
        if first {
            self.clock.record(pass, Action::Compute);
        }
        check_pair(cond, uncond)?;
        let held = self.take(ops, cond)?;
        ops.subtract(held.tensors[0].view(), uncond.view, cond.view);
        let tensors = std::mem::take(&mut held.tensors);
        *held = Difference { tensors, ..Difference::new(cond) };
        self.clock.newest = Some(pass.position());
        Ok(first)
    }

    /// Room for what predictions like this differ by.
    fn take(&mut self, ops: &mut O, like: &Prediction) -> Result<&mut Difference<O>> {
        let (shape, n) = self.policy.kept(like.view.shape());
        let old = self.difference.take_if(|held| held.prediction != like.view.shape());
        if old.is_some() {
            // Their memory may be needed.
            drop(old);
            self.pool.free();
            self.forget();
        }
        if self.difference.is_none() {
            let tensors = (0..n).map(|_| self.pool.take(ops, shape));
            let tensors = tensors.collect::<Result<_>>()?;
            self.difference = Some(Difference { tensors, ..Difference::new(like) });
        }
        Ok(self.difference.as_mut().expect("just made"))
    }
}

impl<O: Ops> Difference<O> {
    fn new(like: &Prediction) -> Self {
        Self {
            prediction: like.view.shape(),
            plane: like.plane,
            tensors: Vec::new(),
            low_pass_is_current: false,
            low: 0,
            high: 0,
        }
    }
}

fn check_pair(cond: &Prediction, uncond: &Prediction) -> Result<()> {
    let (is, other) = (cond.view.shape(), uncond.view.shape());
    if is.with_dtype(other.dtype) != other || cond.plane != uncond.plane {
        let ((h, w), (other_h, other_w)) = (cond.plane, uncond.plane);
        bail!(
            Shape,
            "cond is {is} in planes of {h} x {w} and uncond is {other} in planes of {other_h} x \
             {other_w}: they must be alike"
        );
    }
    if !uncond.view.is_injective() {
        bail!(Arg, "uncond has elements that share a place (a stride of 0?)");
    }
    if cond.view.overlaps(&uncond.view) {
        bail!(Arg, "cond and uncond overlap");
    }
    Ok(())
}

/// What coming steps will be answered, one after the other.
pub struct Forecast<'a> {
    clock: &'a mut Clock,
    next: u32,
    /// All steps before `next` are.
    known: bool,
}

impl Forecast<'_> {
    /// The answer of a step, if every step up to it is evaluated; `at` gives their passes. Asked in
    /// rising order.
    pub fn at(&mut self, step: u32, at: impl Fn(u32) -> Pass) -> Option<Action> {
        if step < self.next {
            return self.clock.answered.filter(|(last, _)| *last == step).map(|(_, action)| action);
        }
        if step - self.next > FORESIGHT {
            // Too far to be played to.
            (self.known, self.next) = (false, step);
        }
        let mut answer = None;
        for step in self.next..=step {
            answer = self.play(&at(step));
            self.known &= answer.is_some();
        }
        self.next = step.saturating_add(1);
        answer
    }

    fn play(&mut self, pass: &Pass) -> Option<Action> {
        let (action, reason) = self.clock.decide(pass)?;
        // What computes by its number alone is certain; what depends on those before is not.
        let by_number =
            matches!(reason, Reason::WarmUp | Reason::Last | Reason::Interval | Reason::Window);
        if !self.known && !by_number {
            return None;
        }
        self.clock.record(pass, action);
        if action == Action::Compute {
            self.clock.newest = Some(pass.position());
        }
        Some(action)
    }
}
