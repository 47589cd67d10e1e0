//! The unconditional branch, outside passes: what [`guidance`](crate::guidance) answers and learns.
use super::tensors::prediction;
use super::{Cache, PassInfo, Read, UNCOND, flag};
use crate::error::{Error, Result, bail};
use crate::guidance::Guidance;
use crate::log::{self, Level};
use crate::ops::Ops;
use crate::rule::{Action, Pass, Reason};
use crate::trace::Record;

impl<O: Ops> Cache<O> {
    /// Is the unconditional branch left out of this step? Then `uncond` holds its estimate.
    pub fn before_uncond(
        &mut self,
        info: Result<&PassInfo>,
        cond: Read,
        uncond: Read,
    ) -> (Action, Result<()>) {
        if self.guidance.is_none() {
            return (Action::Compute, Ok(()));
        }
        let asked = self.guided(info, "before_uncond").and_then(|(about, flags)| {
            let cond = prediction(&mut self.ops, cond).map_err(|e| e.within("cond"))?;
            let uncond = prediction(&mut self.ops, uncond).map_err(|e| e.within("uncond"))?;
            let Some(guidance) = &mut self.guidance else {
                return Ok((about, Action::Compute, Reason::None));
            };
            // A branch that ran in this step is not estimated.
            let last = self.run.as_ref().and_then(|run| run.last[self.engine.uncond]);
            let compute = flags & flag::COMPUTE != 0 || last == Some(about.step);
            let (action, reason) =
                guidance.before(&mut self.ops, &about, compute, &cond, &uncond)?;
            Ok((about, action, reason))
        });
        let finished = self.finish_uncond();
        match asked.and_then(|asked| finished.map(|()| asked)) {
            Ok((about, action, reason)) => {
                self.count_uncond(&about, action, reason);
                (action, Ok(()))
            }
            Err(error) => (Action::Compute, self.failed_outside(error)),
        }
    }

    /// Both predictions of a step in which the branch ran.
    pub fn after_uncond(
        &mut self,
        info: Result<&PassInfo>,
        cond: Read,
        uncond: Read,
    ) -> Result<()> {
        if self.guidance.is_none() {
            return Ok(());
        }
        let taken = self.guided(info, "after_uncond").and_then(|(about, _)| {
            let cond = prediction(&mut self.ops, cond).map_err(|e| e.within("cond"))?;
            let uncond = prediction(&mut self.ops, uncond).map_err(|e| e.within("uncond"))?;
            let Some(guidance) = &mut self.guidance else { return Ok(()) };
            if guidance.after(&mut self.ops, &about, &cond, &uncond)? {
                self.count_uncond(&about, Action::Compute, Reason::Engine);
            }
            Ok(())
        });
        let finished = self.finish_uncond();
        self.refresh_memory();
        taken.and(finished).or_else(|error| self.failed_outside(error))
    }

    /// Where the device fell short, what guidance holds may not be what it should.
    fn finish_uncond(&mut self) -> Result<()> {
        let finished = self.finish_call();
        if finished.is_err() {
            self.guidance.iter_mut().for_each(Guidance::forget);
        }
        self.resume_pass();
        finished
    }

    /// Guidance may have been on another stream than the pass that it stands in.
    fn resume_pass(&mut self) {
        let Some(stream) = self.pass.as_ref().and_then(|pass| pass.stream) else { return };
        let resumed = self.ops.begin(stream);
        let finished = self.finish_call();
        if let Err(error) = resumed.and(finished) {
            let _ = self.fail::<()>(error);
        }
    }

    /// The pass that guidance is asked about, checked; and its flags.
    fn guided(&mut self, info: Result<&PassInfo>, call: &str) -> Result<(Pass, u32)> {
        let info = info?;
        if info.flags & flag::FORGET != 0 {
            // The weights have changed, whatever else is wrong.
            self.guidance.iter_mut().for_each(Guidance::forget);
        }
        self.check_pass(info, call)?;
        let uncond = self.engine.uncond;
        if info.branches[..] != [uncond] {
            let branches = &info.branches;
            bail!(
                Arg,
                "pass->branches is {branches:?}, it names the branch that may be left out, [{uncond}]"
            );
        }
        let needs_timestep = self.guidance.as_ref().is_some_and(|g| g.policy().needs_timestep());
        let Some(run) = &self.run else {
            bail!(State, "{call} before begin_run");
        };
        run.failed.clone().map_or(Ok(()), Err)?;
        let about = run.pass_of(info);
        if needs_timestep && about.timestep.is_none() {
            let step = info.step;
            bail!(Arg, "pass->timestep: step {step} has none, which guidance's windows need");
        }
        self.ops.begin(info.stream)?;
        Ok((about, info.flags))
    }

    fn count_uncond(&self, about: &Pass, action: Action, reason: Reason) {
        let mut observed = self.observed();
        match action {
            Action::Compute => observed.stats.uncond_computed += 1,
            Action::Skip => observed.stats.uncond_skipped += 1,
        }
        observed.trace.push(Record {
            step: about.step,
            branch: self.engine.uncond as u32,
            unit: UNCOND,
            action,
            reason,
            timestep: about.timestep.unwrap_or(f32::NAN),
            change: f64::NAN,
            accumulated: f64::NAN,
            threshold: f64::NAN,
        });
    }

    /// An error that no end of a pass will report.
    fn failed_outside(&self, error: Error) -> Result<()> {
        log::log(Level::Debug, &self.engine.label, || format!("guidance: {error}"));
        let stats = &mut self.observed().stats;
        stats.errors += 1;
        stats.first_error.get_or_insert_with(|| error.clone());
        Err(error)
    }
}
