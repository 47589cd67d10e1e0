//! Skip the few steps that follow a listed timestep, and no others: PAB's MLP broadcast.
//!
//! Source: VideoSys `core/pab_mgr.py`, `if_skip_mlp`. There a step is listed if its timestep, as a
//! whole number of 0 to 1000, is a key of a table, which ties the table to one number of steps.
//! Here a mark is met by the first step at or below it, which is the same where the keys fit.
use super::*;
use std::sync::Arc;

/// Marks of one rule.
pub const MAX_MARKS: usize = 16;

#[derive(Clone, Debug)]
pub struct Broadcast {
    /// In thousandths of the timestep at pure noise.
    marks: Arc<[f64]>,
    /// Steps that reuse the value of a listed one.
    skips: u32,
    /// Where the last recorded step was.
    before: f64,
    left: u32,
}

impl Broadcast {
    /// `marks` are fractions of the timestep at pure noise.
    pub fn new(marks: &[f64], skips: u32) -> Self {
        let marks = marks.iter().map(|mark| (mark * 1000.0).round()).collect();
        Self { marks, skips, before: f64::INFINITY, left: 0 }
    }

    /// Is this the first step at or below a mark?
    fn meets(&self, place: f64) -> bool {
        self.marks.iter().any(|mark| place <= *mark && *mark < self.before)
    }
}

/// The timestep in whole thousandths, rounded down as the original does; a thousandth of one
/// forgives the rounding of f32.
fn place(pass: &Pass) -> Option<f64> {
    let fraction = f64::from(pass.timestep?) / f64::from(pass.timestep_max?);
    Some((fraction * 1000.0 + 1e-3).floor())
}

impl Rule for Broadcast {
    fn needs_timestep(&self) -> bool {
        true
    }

    fn decide(&self, pass: &Pass, _: Option<f64>) -> Verdict {
        match place(pass) {
            None => Verdict::Unknown(Reason::Timestep),
            Some(place) if self.left == 0 || self.meets(place) => {
                Verdict::Compute(Reason::Unlisted)
            }
            Some(_) => Verdict::Skip,
        }
    }

    fn record(&mut self, pass: &Pass, action: Action, _: Option<f64>) {
        let Some(place) = place(pass) else { return };
        self.left = match action {
            // A value that is newer than the listed one serves as well.
            Action::Compute if self.meets(place) => self.skips,
            _ => self.left.saturating_sub(1),
        };
        self.before = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(marks: &[f64], skips: u32, timesteps: &[f32], max: f32) -> String {
        let mut rule = Broadcast::new(marks, skips);
        let step = |(step, t): (u32, &f32)| {
            let pass = Pass { step, timestep: Some(*t), timestep_max: Some(max), ..Pass::START };
            let action = match rule.decide(&pass, None) {
                Verdict::Skip => Action::Skip,
                _ => Action::Compute,
            };
            rule.record(&pass, action, None);
            if action == Action::Skip { 's' } else { 'C' }
        };
        (0..).zip(timesteps).map(step).collect()
    }

    #[test]
    fn latte_in_its_fifty_steps() {
        // 980, 960, ..., 0: each mark is met exactly, and two steps follow it.
        let steps: Vec<_> = (0..50).map(|step| (980 - 20 * step) as f32).collect();
        let marks = [0.72, 0.64, 0.56, 0.48, 0.40];
        let expected = "CCCCCCCCCCCCCCssCCssCCssCCssCCssCCCCCCCCCCCCCCCCCC";
        assert_eq!(run(&marks, 2, &steps, 1000.0), expected);
        let flow: Vec<_> = steps.iter().map(|t| t / 1000.0).collect();
        assert_eq!(run(&marks, 2, &flow, 1.0), expected);
    }

    #[test]
    fn a_mark_between_two_steps_is_met_by_the_lower_one() {
        let steps = [900.0, 700.5, 500.0, 300.0, 100.0];
        assert_eq!(run(&[0.8], 2, &steps, 1000.0), "CCssC");
        assert_eq!(run(&[0.7], 2, &steps, 1000.0), "CCssC");
        assert_eq!(run(&[0.699], 2, &steps, 1000.0), "CCCss");
        // Two marks at once, and one met while the other still lasts.
        assert_eq!(run(&[0.8, 0.75], 1, &steps, 1000.0), "CCsCC");
        assert_eq!(run(&[0.8, 0.4], 3, &steps, 1000.0), "CCsCs");
    }
}
