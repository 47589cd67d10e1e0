//! Methods as rows of *when x where x what*: the table of presets, and how options become policies.
//!
//! | preset | when | where, base | what | source |
//! |---|---|---|---|---|
//! | `none` | never | | | |
//! | `fbcache` | limits, residual change < 0.05 | after block 1, residual | hold | ParaAttention, diffusers `FirstBlockCache` |
//! | `dbcache` | limits, residual change < 0.08 | after block 8, residual | hold | cache-dit `DBCache` |
//! | `mask` | step mask | the whole stack, residual | hold | cache-dit `SCM`, static policy |
//! | `taylorseer` | warm-up 3, every 5th | each layer, output | Taylor 1 | TaylorSeer, diffusers `TaylorSeerCache` |
//! | `hicache` | warm-up 3, every 6th | each layer, output | Hermite 2 | HiCache |
//! | `pab` | window, spatial every 2nd | each layer of a kind, output | hold | diffusers `PyramidAttentionBroadcast` |
//! | `pab-...` | window, an interval a kind, listed MLPs | the same | hold | VideoSys, a row a model |
//! | `fastercache` | window, every 2nd, conditional steps | attention, output | linear 0.5 | FasterCache, diffusers `FasterCache` |
//! | | window, every 5th | the unconditional branch | two weights | |
use crate::error::{Result, bail};
use crate::estimator::{
    Basis, Chain, Estimator, FoCa, Hermite, Hold, Ladder, Linear, Polynomial, Ramp,
};
use crate::guidance::{self, Boost};
use crate::options::{
    Bound, Compat, FILL_ALL, Limit, MAX_ORDER, MAX_STEPS, MAX_TENSORS, OfGuidance, OfKind, Options,
    Span, What, When, Where,
};
use crate::rule::{
    Broadcast, Change, CondOnly, Interval, Limits, MAX_MARKS, Mask, Probe, Rails, ResidualChange,
    Rule, WarmUp, Window,
};
use crate::scope::{Base, Keep, Kind, Scope};

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
    ("taylorseer", |name| Options {
        every: Some(5),
        warmup_steps: Limit::At(3),
        estimator: What::Taylor,
        ..layers(name)
    }),
    ("hicache", |name| Options {
        every: Some(6),
        warmup_steps: Limit::At(3),
        estimator: What::Hermite,
        order: 2,
        ..layers(name)
    }),
    ("pab", |name| pab(name, (0.1, 0.8), [2, 1, 1], (&[], 1))),
    ("pab-cogvideox", |name| pab(name, (0.1, 0.85), [2, 1, 1], (&[], 1))),
    ("pab-latte", |name| pab(name, (0.1, 0.8), [2, 3, 6], (&[0.72, 0.64, 0.56, 0.48, 0.4], 10))),
    ("pab-opensora", |name| pab(name, (0.45, 0.93), [2, 4, 6], (&[0.864, 0.788, 0.676], 10))),
    ("pab-opensoraplan", |name| {
        const MARKS: [f64; 14] = [
            0.738, 0.714, 0.69, 0.666, 0.642, 0.618, 0.594, 0.57, 0.546, 0.522, 0.498, 0.474, 0.45,
            0.426,
        ];
        pab(name, (0.1, 0.85), [2, 4, 6], (&MARKS, 14))
    }),
    ("pab-vchitect", |name| pab(name, (0.1, 0.8), [2, 4, 6], (&[], 1))),
    ("fastercache", |name| Options {
        estimator: What::Linear,
        window: Some(Span(-0.001, 0.681)),
        cond_only: true,
        guidance: OfGuidance {
            every: Some(5),
            window: Some(Span(-0.001, 0.641)),
            low: 1.1,
            low_window: Some(Span(0.099, 0.901)),
            high: 1.1,
            high_window: Some(Span(-0.001, 0.301)),
            max_growth: Limit::Auto,
        },
        ..kinds(name, [2, 1, 1])
    }),
];

/// What layers show is kept, by a schedule.
fn layers(preset: &'static str) -> Options {
    Options { rule: When::Schedule, scope: Where::Layers, on_residual: false, ..none(preset) }
}

/// The same, with an interval for spatial, temporal and cross attention each.
fn kinds(preset: &'static str, every: [u32; 3]) -> Options {
    let of_kind = |every| OfKind { every: Some(every), ..OfKind::default() };
    let [spatial, temporal, cross] = every.map(of_kind);
    let kinds = [spatial, temporal, cross, OfKind::default()];
    Options { every: Some(1), kinds, ..layers(preset) }
}

/// PAB in a window; at some marks the outputs of the first so many MLPs serve two steps more. The
/// originals name blocks of both kinds, whose MLPs are the first in running order.
fn pab(
    preset: &'static str,
    (low, high): (f64, f64),
    every: [u32; 3],
    (marks, mlps): (&[f64], u32),
) -> Options {
    let mut options = kinds(preset, every);
    options.kinds[Kind::Mlp as usize].layers = (!marks.is_empty()).then_some(mlps);
    Options { window: Some(Span(low, high)), mlp_at: marks.to_vec(), ..options }
}

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
        every: None,
        window: None,
        kinds: [OfKind::default(); 4],
        mlp_at: Vec::new(),
        mlp_skips: 2,
        cond_only: false,
        weight: Span(0.5, 0.5),
        scale: 0.5,
        guidance: OfGuidance {
            every: None,
            window: None,
            low: 1.0,
            low_window: None,
            high: 1.0,
            high_window: None,
            max_growth: Limit::Auto,
        },
    }
}

/// A method: what its layers or blocks do, and its unconditional branch.
#[derive(Debug)]
pub struct Method {
    /// One for blocks or the model, or one for each kind of layer; none never skips.
    pub policies: Vec<Policy>,
    pub guidance: Option<guidance::Policy>,
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
    /// Steps with the unconditional branch compute, so of that branch nothing is kept.
    pub cond_only: bool,
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

    pub fn needs_timestep(&self) -> bool {
        self.rules.iter().any(|rule| rule.needs_timestep())
    }
}

/// What the engine is and calls; a method that needs more is refused.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// Boundary blocks.
    pub blocks: bool,
    pub each_block: bool,
    pub layers: bool,
    pub model: bool,
    pub guide: bool,
    pub n_blocks: u32,
    pub n_branches: usize,
    pub uncond: usize,
}

pub fn method(options: &Options, hooks: &Hooks) -> Result<Method> {
    check(options, hooks)?;
    let guidance = options.guides().then(|| guidance(options));
    let policies = match options.scope {
        _ if options.rule == When::None => Vec::new(),
        Where::Stack => {
            let (front, back) = (options.front_blocks, options.back_blocks);
            vec![policy(options, Scope::Stack { front, back }, options.every, options.window)]
        }
        Where::Block => {
            let (front, back) = (options.front_blocks, options.back_blocks);
            vec![policy(options, Scope::Blocks { front, back }, options.every, options.window)]
        }
        Where::Model => vec![policy(options, Scope::Model, options.every, options.window)],
        Where::Layers => {
            let of_kind = |(kind, of): (Kind, &OfKind)| {
                let (every, window) = (options.every_of(kind), of.window.or(options.window));
                let scope = Scope::Layers { kind, first: of.layers };
                options.schedules(kind).then(|| policy(options, scope, every, window))
            };
            Kind::ALL.into_iter().zip(&options.kinds).filter_map(of_kind).collect()
        }
    };
    Ok(Method { policies, guidance })
}

impl Options {
    /// The unconditional branch is ever left out.
    fn guides(&self) -> bool {
        self.guidance.every.is_some_and(|every| every > 1)
    }

    /// The interval of a kind of layer.
    fn every_of(&self, kind: Kind) -> Option<u32> {
        let own = self.kinds[kind as usize].every;
        // Listed outputs are reused at their own times.
        let common = self.every.filter(|_| kind != Kind::Mlp || self.mlp_at.is_empty());
        own.or(common)
    }

    /// Some schedule both skips layers of this kind and computes them again.
    fn schedules(&self, kind: Kind) -> bool {
        let every = self.every_of(kind);
        let listed = kind == Kind::Mlp && !self.mlp_at.is_empty();
        every != Some(1) && (every.is_some() || listed || self.mask.contains(&false))
    }

    /// What is left to the library is on.
    fn is_railed(&self) -> bool {
        self.rule == When::Change && self.compat == Compat::None
    }
}

fn policy(options: &Options, scope: Scope, every: Option<u32>, window: Option<Span>) -> Policy {
    let railed = options.is_railed();
    let rails = rails(options, railed);
    let ladder = options.estimator == What::Taylor
        && options.compat == Compat::Diffusers
        && options.rule == When::Schedule;
    let mlp = matches!(scope, Scope::Layers { kind: Kind::Mlp, .. });
    let cond_only = options.cond_only && options.guides();

    let mut rules: Vec<Box<dyn Rule>> = vec![Box::new(Limits::new(rails))];
    if !options.mask.is_empty() {
        rules.push(Box::new(Mask(options.mask.clone().into())));
    }
    if let Some(Span(low, high)) = window {
        rules.push(Box::new(Window { low, high }));
    }
    if let Some(every) = every {
        let phase = if ladder { 2 } else { 0 };
        rules.push(Box::new(Interval { every, warm_up: rails.warm_up, phase }));
    }
    if mlp && !options.mlp_at.is_empty() {
        rules.push(Box::new(Broadcast::new(&options.mlp_at, options.mlp_skips)));
    }
    if cond_only {
        rules.push(Box::new(CondOnly));
    }
    if options.rule == When::Change {
        let diffusers = options.compat == Compat::Diffusers;
        rules.push(Box::new(ResidualChange { threshold: options.threshold, diffusers }));
    }
    let keep = Keep {
        base: if options.on_residual { Base::Residual } else { Base::Output },
        fill: options.fill,
        dtype: options.history_dtype,
        max_age: limit(options.max_age, railed.then_some(8)),
    };
    let estimator = estimator(options, ladder, rails.warm_up);
    Policy { rules, scope, estimator, keep, lagged: options.lagged, cond_only }
}

fn estimator(options: &Options, ladder: bool, warm_up: WarmUp) -> Box<dyn Estimator> {
    let order = options.order as usize;
    let paper = options.compat == Compat::Paper;
    let ladder_since = match warm_up {
        WarmUp::Steps(steps) if paper => steps.saturating_sub(2),
        _ => 0,
    };
    let polynomial = |basis| -> Box<dyn Estimator> {
        let max_gain = bound(options.max_gain, options.is_railed().then_some(4.0));
        let since = if basis == Basis::Taylor { ladder_since } else { 0 };
        Box::new(Polynomial { order, basis, max_gain, since })
    };
    let Span(start, end) = options.weight;
    let weight = Ramp { start, end };
    match options.estimator {
        What::Hold => Box::new(Hold),
        What::Taylor if ladder => Box::new(Ladder { order }),
        What::Taylor => polynomial(Basis::Taylor),
        What::Newton => polynomial(Basis::Newton),
        What::Hermite => Box::new(Hermite { order, scale: options.scale, since: ladder_since }),
        What::Linear if options.compat == Compat::Diffusers => Box::new(Chain { weight }),
        What::Linear => Box::new(Linear { weight, true_gaps: !paper }),
        What::FoCa => Box::new(FoCa { true_gaps: !paper }),
    }
}

fn guidance(options: &Options) -> guidance::Policy {
    let OfGuidance { every, window, low, low_window, high, high_window, max_growth } =
        options.guidance;
    let span = |span: Option<Span>| span.map(|Span(low, high)| Window { low, high });
    let growth = limit(max_growth, (options.compat == Compat::None).then_some(4));
    let rails = Rails {
        // What is measured elsewhere says nothing here.
        consecutive: None,
        streak_error: None,
        run_error: None,
        ..rails(options, false)
    };
    let mut rules: Vec<Box<dyn Rule>> = vec![Box::new(Limits::new(rails))];
    if let Some(window) = span(window) {
        rules.push(Box::new(window));
    }
    if let Some(every) = every {
        rules.push(Box::new(Interval { every, warm_up: rails.warm_up, phase: 0 }));
    }
    guidance::Policy {
        rules,
        low: Boost { factor: low, window: span(low_window), growth },
        high: Boost { factor: high, window: span(high_window), growth },
        max_age: limit(options.max_age, None),
    }
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
fn check(options: &Options, hooks: &Hooks) -> Result<()> {
    check_numbers(options)?;
    check_guidance(options, hooks)?;
    if options.rule == When::None {
        return Ok(());
    }
    check_rule(options)?;
    check_estimator(options)?;
    check_scope(options, hooks)
}

fn check_numbers(options: &Options) -> Result<()> {
    let Options { threshold, order, mask, scale, .. } = options;
    for (name, number) in [("threshold", *threshold), ("scale", *scale)] {
        if !(number.is_finite() && number > 0.0) {
            bail!(Arg, "{name} is {number}, allowed is a number above 0");
        }
    }
    for (name, number) in [
        ("weight", options.weight.0),
        ("weight", options.weight.1),
        ("guidance.low", options.guidance.low),
        ("guidance.high", options.guidance.high),
    ] {
        if !number.is_finite() {
            bail!(Arg, "{name} is {number}, it must be finite");
        }
    }
    if *order > MAX_ORDER {
        bail!(Arg, "order is {order}, allowed is 0 to {MAX_ORDER}");
    }
    if options.warmup_interval == 0 {
        bail!(Arg, "warmup_interval is 0, allowed is 1 and above");
    }
    if options.mlp_skips == 0 {
        bail!(Arg, "mlp.skips is 0, allowed is 1 and above");
    }
    if mask.len() > MAX_STEPS {
        bail!(Arg, "mask has {} steps, allowed is up to {MAX_STEPS}", mask.len());
    }
    if options.mlp_at.len() > MAX_MARKS {
        bail!(Arg, "mlp.at has {} marks, allowed is up to {MAX_MARKS}", options.mlp_at.len());
    }
    if let Some(mark) = options.mlp_at.iter().find(|mark| !(mark.is_finite() && **mark > 0.0)) {
        bail!(Arg, "mlp.at has {mark}, allowed are fractions of the timestep at noise, above 0");
    }
    let windows = [
        ("window".to_owned(), options.window),
        ("guidance.window".to_owned(), options.guidance.window),
        ("guidance.low_window".to_owned(), options.guidance.low_window),
        ("guidance.high_window".to_owned(), options.guidance.high_window),
    ];
    let kinds = Kind::ALL.into_iter().zip(&options.kinds);
    let kinds = kinds.map(|(kind, of)| (format!("{}.window", kind.name()), of.window));
    for (name, window) in windows.into_iter().chain(kinds) {
        if let Some(Span(low, high)) = window
            && !(low.is_finite() && high.is_finite() && low < high)
        {
            bail!(Arg, "{name} is {low}:{high}, allowed is low:high with low < high");
        }
        if let Some(Span(low, high)) = window
            && (low >= 1.0 || high <= 0.0)
        {
            bail!(
                Arg,
                "{name} is {low}:{high}, and no timestep is in it: its bounds are fractions of \
                 timestep_max, low below 1 and high above 0"
            );
        }
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
    Ok(())
}

fn check_guidance(options: &Options, hooks: &Hooks) -> Result<()> {
    if !options.guides() {
        return Ok(());
    }
    let Options { preset, .. } = options;
    if !hooks.guide {
        bail!(
            Unsupported,
            "{preset}: guidance.every needs DC_HOOK_GUIDE among the engine's hooks; \
             guidance.every=none leaves guidance alone"
        );
    }
    if hooks.uncond >= hooks.n_branches {
        bail!(
            Unsupported,
            "{preset}: guidance.every needs the branch that may be left out: uncond_branch is {}, \
             n_branches is {}; guidance.every=none leaves guidance alone",
            hooks.uncond,
            hooks.n_branches
        );
    }
    Ok(())
}

fn check_rule(options: &Options) -> Result<()> {
    let Options { preset, mask, .. } = options;
    let measures = options.rule == When::Change;
    let interval = match options.scope {
        Where::Layers => Kind::ALL.iter().any(|kind| options.schedules(*kind)),
        _ => options.every.is_some() || mask.contains(&false),
    };
    if options.every == Some(1) && options.scope != Where::Layers {
        bail!(Arg, "{preset}: every is 1, so that every step computes: allowed is 2 and above");
    }
    if !measures && !interval {
        bail!(
            Arg,
            "{preset}: rule=schedule never skips so: set every=2 or more, a mask with a 0 in it \
             (mask=1100...), or for layers an interval of some kind (spatial.every=2) or mlp.at"
        );
    }
    if !measures && options.lagged {
        bail!(Unsupported, "lagged=1 needs a rule that measures: rule=change");
    }
    let plain = options.every.is_none() && options.scope != Where::Layers;
    if !measures && options.compat != Compat::None && plain {
        bail!(
            Unsupported,
            "compat={} is a behaviour of rule=change, of intervals and of layers, not of a mask",
            if options.compat == Compat::Paper { "paper" } else { "diffusers" }
        );
    }
    Ok(())
}

fn check_estimator(options: &Options) -> Result<()> {
    let all = (1 << MAX_TENSORS) - 1;
    if !options.on_residual && options.fill & all != all {
        bail!(
            Unsupported,
            "fill is {:#b}: a tensor that is not restored keeps its input, and outputs \
             (on_residual=0) have none",
            options.fill
        );
    }
    let rounds = options.compat == Compat::Diffusers
        && (options.estimator == What::Linear
            || options.estimator == What::Taylor && options.rule == When::Schedule);
    if rounds && options.on_residual {
        bail!(
            Unsupported,
            "compat=diffusers with estimator=taylor or linear is for outputs: on_residual=0"
        );
    }
    Ok(())
}

fn check_scope(options: &Options, hooks: &Hooks) -> Result<()> {
    let Options { preset, .. } = options;
    let measures = options.rule == When::Change;
    let (scope, hook, made) = match options.scope {
        Where::Stack => ("stack", "DC_HOOK_BLOCKS or DC_HOOK_EACH", hooks.blocks),
        Where::Block => ("block", "DC_HOOK_EACH", hooks.each_block),
        Where::Layers => ("layers", "DC_HOOK_LAYERS", hooks.layers),
        Where::Model => ("model", "DC_HOOK_MODEL", hooks.model),
    };
    if !made {
        bail!(Unsupported, "{preset}: scope={scope} needs {hook} among the engine's hooks");
    }
    match options.scope {
        Where::Layers | Where::Model if measures => bail!(
            Unsupported,
            "rule=change needs blocks before what is skipped: scope=stack or block, not {scope}"
        ),
        Where::Layers if options.on_residual => {
            bail!(
                Unsupported,
                "scope=layers keeps outputs, for a layer shows no input: on_residual=0"
            )
        }
        Where::Stack | Where::Block => check_stack(options, hooks.n_blocks),
        Where::Layers | Where::Model => Ok(()),
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
