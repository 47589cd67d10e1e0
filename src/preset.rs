//! Methods as rows of *when x where x what*: the table of presets, and how options become a policy.
//!
//! | preset | when | where, base | what | source |
//! |---|---|---|---|---|
//! | `none` | never | | | |
//! | `fbcache` | limits, residual change < 0.05 | after block 1, residual | hold | ParaAttention, diffusers `FirstBlockCache` |
//! | `dbcache` | limits, residual change < 0.08 | after block 8, residual | hold | cache-dit `DBCache` |
//! | `mask` | step mask | the whole stack, residual | hold | cache-dit `SCM`, static policy |
use crate::error::{Result, bail};
use crate::estimator::{Basis, Estimator, Hold, Polynomial};
use crate::options::{
    Bound, Compat, FILL_ALL, Limit, MAX_ORDER, MAX_STEPS, MAX_TENSORS, Options, What, When, Where,
};
use crate::rule::{Change, Limits, Mask, Probe, Rails, ResidualChange, Rule, WarmUp};
use crate::scope::{Base, Keep, Scope};

type Preset = (&'static str, fn(&'static str) -> Options);

pub const PRESETS: &[Preset] = &[
    ("none", none),
    ("fbcache", |name| Options { rule: When::Change, front_blocks: 1, ..none(name) }),
    ("dbcache", |name| Options {
        rule: When::Change,
        front_blocks: 8,
        threshold: 0.08,
        ..none(name)
    }),
    ("mask", |name| Options { rule: When::Schedule, ..none(name) }),
];

fn none(preset: &'static str) -> Options {
    Options {
        preset,
        rule: When::None,
        scope: Where::Stack,
        estimator: What::Hold,
        on_residual: true,
        compat: Compat::None,
        lagged: false,
        share: false,
        fill: FILL_ALL,
        history_dtype: None,
        max_age: Limit::Auto,
        front_blocks: 0,
        back_blocks: 0,
        order: 1,
        warmup_steps: Limit::Auto,
        warmup_interval: 1,
        last_steps: Limit::Auto,
        max_consecutive: Limit::Auto,
        max_total: Limit::Auto,
        threshold: 0.05,
        max_error: Bound::Auto,
        max_run_error: Bound::Auto,
        max_gain: Bound::Auto,
        mask: Vec::new(),
    }
}

/// When, where and what.
#[derive(Debug)]
pub struct Policy {
    pub rules: Vec<Box<dyn Rule>>,
    pub scope: Scope,
    pub estimator: Box<dyn Estimator>,
    pub keep: Keep,
    /// The measurement of one step decides the next.
    pub lagged: bool,
}

impl Policy {
    pub fn probe(&self) -> Option<Probe> {
        self.rules.iter().find_map(|rule| rule.probe())
    }

    pub fn metric(&self, change: Change) -> f64 {
        let measuring = self.rules.iter().find(|rule| rule.probe().is_some());
        measuring.map_or(f64::NAN, |rule| rule.metric(change))
    }

    pub fn threshold(&self) -> Option<f64> {
        self.rules.iter().find_map(|rule| rule.threshold())
    }

    /// Blocks before the part that may be skipped.
    pub fn front(&self) -> u32 {
        match self.scope {
            Scope::Stack { front, .. } => front,
            Scope::Model => 0,
        }
    }
}

/// What the engine calls; a policy that needs another call is refused.
pub struct Hooks {
    pub blocks: bool,
    pub model: bool,
}

/// A method is a list of policies; an empty one never skips.
pub fn policies(options: &Options, n_blocks: u32, hooks: &Hooks) -> Result<Vec<Policy>> {
    check(options, n_blocks, hooks)?;
    if options.rule == When::None {
        return Ok(Vec::new());
    }
    let railed = options.rule == When::Change && options.compat == Compat::None;
    let mut rules: Vec<Box<dyn Rule>> = vec![Box::new(Limits::new(rails(options, railed)))];
    if !options.mask.is_empty() {
        rules.push(Box::new(Mask(options.mask.clone())));
    }
    if options.rule == When::Change {
        let diffusers = options.compat == Compat::Diffusers;
        rules.push(Box::new(ResidualChange { threshold: options.threshold, diffusers }));
    }
    let scope = match options.scope {
        Where::Stack => Scope::Stack { front: options.front_blocks, back: options.back_blocks },
        Where::Model => Scope::Model,
    };
    let polynomial = |basis| -> Box<dyn Estimator> {
        let max_gain = bound(options.max_gain, railed.then_some(4.0));
        Box::new(Polynomial { order: options.order as usize, basis, max_gain })
    };
    let estimator = match options.estimator {
        What::Hold => Box::new(Hold),
        What::Taylor => polynomial(Basis::Taylor),
        What::Newton => polynomial(Basis::Newton),
    };
    let keep = Keep {
        base: if options.on_residual { Base::Residual } else { Base::Output },
        fill: options.fill,
        dtype: options.history_dtype,
        max_age: limit(options.max_age, railed.then_some(8)),
    };
    Ok(vec![Policy { rules, scope, estimator, keep, lagged: options.lagged }])
}

/// `railed`: what is left to the library is on.
fn rails(options: &Options, railed: bool) -> Rails {
    let auto = |steps| railed.then_some(steps);
    Rails {
        warm_up: match options.warmup_steps {
            Limit::Auto if railed => WarmUp::Tenth,
            steps => WarmUp::Steps(limit(steps, None).unwrap_or(0)),
        },
        warm_up_interval: options.warmup_interval,
        last: limit(options.last_steps, auto(1)).unwrap_or(0),
        consecutive: limit(options.max_consecutive, auto(4)),
        total: limit(options.max_total, None),
        streak_error: bound(options.max_error, railed.then_some(4.0 * options.threshold)),
        run_error: bound(options.max_run_error, None),
    }
}

fn limit(limit: Limit, auto: Option<u32>) -> Option<u32> {
    match limit {
        Limit::Auto => auto,
        Limit::None => None,
        Limit::At(steps) => Some(steps),
    }
}

fn bound(bound: Bound, auto: Option<f64>) -> Option<f64> {
    match bound {
        Bound::Auto => auto,
        Bound::None => None,
        Bound::At(bound) => Some(bound),
    }
}

/// What makes no sense, or can never skip with this engine, is refused with the reason.
fn check(options: &Options, n_blocks: u32, hooks: &Hooks) -> Result<()> {
    let Options { preset, threshold, order, mask, .. } = options;
    if !(threshold.is_finite() && *threshold > 0.0) {
        bail!(Arg, "threshold is {threshold}, allowed is a number above 0");
    }
    if *order > MAX_ORDER {
        bail!(Arg, "order is {order}, allowed is 0 to {MAX_ORDER}");
    }
    if options.warmup_interval == 0 {
        bail!(Arg, "warmup_interval is 0, allowed is 1 and above");
    }
    if mask.len() > MAX_STEPS {
        bail!(Arg, "mask has {} steps, allowed is up to {MAX_STEPS}", mask.len());
    }
    for (name, bound) in [
        ("max_error", options.max_error),
        ("max_run_error", options.max_run_error),
        ("max_gain", options.max_gain),
    ] {
        if let Bound::At(x) = bound
            && !(x.is_finite() && x >= 0.0)
        {
            bail!(Arg, "{name} is {x}, allowed is 0 and above, 'auto' or 'none'");
        }
    }
    if options.fill & ((1 << MAX_TENSORS) - 1) == 0 {
        bail!(
            Arg,
            "fill is {:#x}: no tensor would be restored, allowed are bits 0 to 3",
            options.fill
        );
    }
    if options.rule == When::None {
        return Ok(());
    }
    let measures = options.rule == When::Change;
    if options.rule == When::Schedule && !mask.contains(&false) {
        bail!(Arg, "{preset}: rule=schedule skips where the mask has a 0; set mask=1100...");
    }
    if !measures && options.compat == Compat::Diffusers {
        bail!(Unsupported, "compat=diffusers is a behaviour of rule=change");
    }
    if !measures && options.lagged {
        bail!(Unsupported, "lagged=1 needs a rule that measures: rule=change");
    }
    match options.scope {
        Where::Model if measures => {
            bail!(Unsupported, "rule=change needs a block before the skipped part: scope=stack")
        }
        Where::Model if !hooks.model => {
            bail!(Unsupported, "{preset}: scope=model needs DC_HOOK_MODEL among the engine's hooks")
        }
        Where::Stack if !hooks.blocks => bail!(
            Unsupported,
            "{preset}: scope=stack needs DC_HOOK_BLOCKS or DC_HOOK_EACH among the engine's hooks"
        ),
        Where::Stack => check_stack(options, n_blocks),
        Where::Model => Ok(()),
    }
}

fn check_stack(options: &Options, n_blocks: u32) -> Result<()> {
    let (front, back) = (options.front_blocks, options.back_blocks);
    if options.rule == When::Change && front == 0 {
        bail!(Arg, "front_blocks is 0, rule=change needs 1 or more to measure");
    }
    if u64::from(front) + u64::from(back) >= u64::from(n_blocks) {
        bail!(
            Arg,
            "front_blocks is {front} and back_blocks is {back}: of {n_blocks} blocks none is left \
             to skip, together they may be at most {}",
            n_blocks.saturating_sub(1)
        );
    }
    Ok(())
}
