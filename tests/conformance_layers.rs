//! TaylorSeer, Pyramid Attention Broadcast and FasterCache held against diffusers' own: their
//! recorded runs (`conformance/README.md`) are replayed through the C ABI by an engine whose layers
//! and predictions are what was recorded.
//!
//! With `compat=diffusers` every decision must be that of diffusers, and every skipped output of a
//! layer must have the bits that diffusers returned. A guided prediction may not: diffusers
//! transforms it in f32, this library does not, and both stay as near to f64 as their dtype allows.
//! Without compat the same computed values must give what the corrected formulas give in f64, at
//! the steps that the corrected schedules leave out.
mod support;

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::fmt;
use std::sync::OnceLock;

use half::{bf16, f16};
use support::recording::{Recording, dtype};
use support::*;

const COND: u32 = 0;
const UNCOND: u32 = 1;

fn recordings() -> &'static [Recording] {
    static ALL: OnceLock<Vec<Recording>> = OnceLock::new();
    ALL.get_or_init(|| Recording::all("layers"))
}

fn of_method(method: &'static str) -> impl Iterator<Item = &'static Recording> {
    recordings().iter().filter(move |recording| recording.text("method") == method)
}

fn named(name: &str) -> &'static Recording {
    recordings().iter().find(|recording| recording.name() == name).expect(name)
}

// ---- what a recording asks for ----

/// A recording under some options.
struct Run<'a> {
    recording: &'a Recording,
    options: String,
}

impl fmt::Display for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} with \"{}\"", self.recording.name(), self.options)
    }
}

impl<'a> Run<'a> {
    /// As diffusers was told.
    fn diffusers(recording: &'a Recording) -> Self {
        Self::with(recording, "compat=diffusers")
    }

    /// The same parameters, and `more`.
    fn with(recording: &'a Recording, more: &str) -> Self {
        let mut options = match recording.text("method") {
            "taylorseer" => taylorseer(recording),
            "pab" => pab(recording),
            "fastercache" => fastercache(recording),
            method => panic!("{} is of {method}", recording.name()),
        };
        options.push(more.to_owned());
        options.retain(|option| !option.is_empty());
        Self { recording, options: options.join(",") }
    }

    fn steps(&self) -> usize {
        self.recording.count("steps")
    }

    fn is_guided(&self) -> bool {
        is_guided(self.recording)
    }

    /// Where the unconditional branch was left out it is in no pass.
    fn is_present(&self, branch: &str, step: usize) -> bool {
        let guide = || self.recording.text("decisions.guide").as_bytes()[step];
        branch != "uncond" || !self.is_guided() || guide() == b'C'
    }

    /// Which row of the branch's stacks is of this step.
    fn row(&self, branch: &str, step: usize) -> usize {
        (0..step).filter(|step| self.is_present(branch, *step)).count()
    }

    fn stacks(&self, build: Build) -> bool {
        self.recording.text("cfg") == "batched" && build != Build::Apart
    }

    /// The passes of a step: the branches in each, in the order of their rows.
    fn passes(&self, build: Build, step: usize) -> Vec<Vec<&'a str>> {
        let branches = self.recording.list("branches").into_iter();
        let mut present: Vec<_> = branches.filter(|one| self.is_present(one, step)).collect();
        if self.stacks(build) {
            return vec![present];
        }
        if self.is_guided() {
            // The unconditional branch comes last, to be left out.
            present.sort_by_key(|branch| number_of(branch));
        }
        present.into_iter().map(|branch| vec![branch]).collect()
    }

    fn sites(&self) -> Vec<Site> {
        let (kinds, members) = (self.recording.list("sites"), self.recording.list("members"));
        let site = |(number, (kind, members)): (u32, (&str, &str))| Site {
            number,
            kind: kind_of(kind),
            members: members.parse().unwrap(),
        };
        (0..).zip(kinds.into_iter().zip(members)).map(site).collect()
    }
}

fn is_guided(recording: &Recording) -> bool {
    !recording.section("decisions.guide").is_empty()
}

fn number_of(branch: &str) -> u32 {
    match branch {
        "cond" => COND,
        "uncond" => UNCOND,
        _ => panic!("no branch is named {branch}"),
    }
}

/// A module that was hooked.
struct Site {
    number: u32,
    /// `None`: the last projection, which stands for the model.
    kind: Option<dc_kind_t>,
    members: usize,
}

impl Site {
    fn unit(&self) -> u32 {
        self.kind.map_or(DC_MODEL, |_| layer_unit(self.number))
    }
}

fn kind_of(name: &str) -> Option<dc_kind_t> {
    match name {
        "spatial" => Some(dc_kind::DC_KIND_SPATIAL as u32),
        "temporal" => Some(dc_kind::DC_KIND_TEMPORAL as u32),
        "cross" => Some(dc_kind::DC_KIND_CROSS as u32),
        "mlp" => Some(dc_kind::DC_KIND_MLP as u32),
        "model" => None,
        _ => panic!("no kind is named {name}"),
    }
}

/// A range of timesteps as the options have it.
fn window(recording: &Recording, range: &str) -> String {
    let bounds = recording.numbers(&format!("config.{range}"));
    let max = recording.number("timestep_max").unwrap();
    format!("{}:{}", bounds[0] / max, bounds[1] / max)
}

fn taylorseer(recording: &Recording) -> Vec<String> {
    let number = |name: &str| recording.number(&format!("config.{name}")).map(|n| n as usize);
    let after = number("disable_cache_after_step");
    vec![
        "taylorseer".into(),
        format!("every={}", number("cache_interval").unwrap()),
        format!("warmup_steps={}", number("disable_cache_before_step").unwrap()),
        after.map_or(String::new(), |after| {
            format!("last_steps={}", recording.count("steps") - after)
        }),
        format!("order={}", number("max_order").unwrap()),
        format!("history_dtype={}", recording.text("factor_dtype")),
        match recording.text("config.use_lite_mode") {
            "True" => "scope=model".into(),
            _ => String::new(),
        },
    ]
}

/// Intervals and windows of kinds of attention.
fn attention(recording: &Recording, kinds: &[&str]) -> Vec<String> {
    let of_kind = |kind: &&str| {
        let skip_range = format!("config.{kind}_attention_block_skip_range");
        let every = recording.number(&skip_range).unwrap_or(1.0);
        let window = window(recording, &format!("{kind}_attention_timestep_skip_range"));
        format!("{kind}.every={every},{kind}.window={window}")
    };
    kinds.iter().map(of_kind).collect()
}

fn pab(recording: &Recording) -> Vec<String> {
    let mut options = attention(recording, &["spatial", "temporal", "cross"]);
    options.insert(0, "pab".into());
    options
}

fn fastercache(recording: &Recording) -> Vec<String> {
    let mut options = attention(recording, &["spatial", "temporal"]);
    options.insert(0, "fastercache".into());
    if let Some(weight) = recording.number("config.attention_weight") {
        options.push(format!("weight={weight}"));
    }
    if recording.list("sites").is_empty() {
        options.push("rule=none".into());
    }
    if is_guided(recording) {
        options.extend([
            format!("guidance.every={}", recording.text("config.unconditional_batch_skip_range")),
            format!("guidance.low={}", recording.text("config.alpha_low_frequency")),
            format!("guidance.high={}", recording.text("config.alpha_high_frequency")),
        ]);
        let windows = [
            ("window", "unconditional_batch_timestep_skip_range"),
            ("low_window", "low_frequency_weight_update_timestep_range"),
            ("high_window", "high_frequency_weight_update_timestep_range"),
        ];
        let windows = windows.map(|(key, range)| (key, window(recording, range)));
        options.extend(windows.map(|(key, window)| format!("guidance.{key}={window}")));
    } else {
        options.push("guidance.every=none".into());
    }
    options
}

// ---- the engine ----

#[derive(Clone, Copy, Debug, PartialEq)]
enum Build {
    /// Dense tensors; branches stacked as they were in the recording.
    Plain,
    /// Rows with room between them, off every boundary but the element's; their shapes are told
    /// when the run begins.
    Spaced,
    /// Dense tensors; one branch after the other where the recording stacks them.
    Apart,
}

impl Build {
    fn of(recording: &Recording) -> &'static [Self] {
        match recording.text("cfg") {
            "batched" => &[Self::Plain, Self::Spaced, Self::Apart],
            _ => &[Self::Plain, Self::Spaced],
        }
    }

    /// NaN in every dtype.
    fn tensor(self, dtype: Dtype, shape: &[usize]) -> Tensor {
        let mut roomy = shape.to_vec();
        let axis = shape.len() - 1;
        roomy[axis] += 3;
        match self {
            Self::Plain | Self::Apart => Tensor::new(dtype, shape),
            Self::Spaced => {
                Tensor::unaligned(dtype, &roomy, dtype.size()).part(axis, 2, shape[axis])
            }
        }
    }
}

/// A letter a step, by branch and site (`cond.0`), and of `guide`.
type Decisions = BTreeMap<String, String>;

/// What the library put in place of something that was left out.
#[derive(PartialEq)]
struct Skip {
    /// `cond.0.1`: the stack that holds what diffusers had there.
    stack: String,
    row: usize,
    step: usize,
    ours: Vec<u8>,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}, step {}", self.stack, self.step)
    }
}

/// What a replay showed.
struct Replay {
    build: Build,
    answers: Decisions,
    /// The same, as foretold at once before each pass, within it, and for all later steps after
    /// the first.
    before: Decisions,
    within: Decisions,
    early: Decisions,
    skips: Vec<Skip>,
    stats: dc_stats_t,
    trace: Trace,
    /// Bytes that dc_memory_needed foretold.
    needed: u64,
}

impl Replay {
    fn of_layers(&self) -> impl Iterator<Item = &Skip> {
        self.skips.iter().filter(|skip| skip.stack != "guide.uncond")
    }

    fn of_guidance(&self) -> impl Iterator<Item = &Skip> {
        self.skips.iter().filter(|skip| skip.stack == "guide.uncond")
    }
}

struct Engine<'a> {
    run: &'a Run<'a>,
    sites: Vec<Site>,
    build: Build,
    setup: Setup,
    cache: Cache,
}

fn note(decisions: &mut Decisions, key: impl Into<String>, letter: char) {
    decisions.entry(key.into()).or_default().push(letter);
}

fn is_spoilt(tensor: &Tensor) -> bool {
    tensor.bytes().iter().all(|byte| *byte == 0xff)
}

impl<'a> Engine<'a> {
    fn new(run: &'a Run<'a>, build: Build) -> Self {
        let sites = run.sites();
        let layers = sites.iter().filter(|site| site.kind.is_some()).count() as u32;
        let models = sites.len() as u32 - layers;
        let setup = Setup::new(1, &run.options).with(|engine| {
            engine.hooks = [
                (layers > 0, DC_HOOK_LAYERS),
                (models > 0, DC_HOOK_MODEL),
                (run.is_guided(), DC_HOOK_GUIDE),
            ]
            .into_iter()
            .fold(0, |hooks, (made, hook)| if made { hooks | hook } else { hooks });
            engine.n_blocks = 0;
            engine.n_layers = layers;
            engine.n_branches = run.recording.list("branches").len() as u32;
            engine.max_stacked = if run.stacks(build) { engine.n_branches } else { 1 };
        });
        Self { run, sites, build, setup, cache: setup.create() }
    }

    /// What a site hands to the cache in a pass of so many branches.
    fn tensors(&self, site: &Site, branches: usize) -> Vec<Tensor> {
        let recording = self.run.recording;
        let tensor = |member| {
            let stack = recording.stack(&format!("cond.{}.{member}", site.number));
            let mut shape = stack.shape.clone();
            shape[0] *= branches;
            self.build.tensor(recording.dtype, &shape)
        };
        (0..site.members).map(tensor).collect()
    }

    fn prediction(&self) -> Tensor {
        let recording = self.run.recording;
        self.build.tensor(recording.dtype, &recording.stack("guide.cond").shape)
    }

    fn shapes(&self) -> Vec<ShapeRow> {
        let of_site = |site: &Site| match site.kind {
            Some(kind) => ShapeRow::layers(kind, 1, &self.tensors(site, 1)),
            None => ShapeRow::model(&self.tensors(site, 1)),
        };
        let guide = self.run.is_guided().then(|| ShapeRow::guide(&self.prediction()));
        self.sites.iter().map(of_site).chain(guide).collect()
    }

    fn begin(&self) {
        let recording = self.run.recording;
        let timesteps: Vec<_> =
            recording.numbers("timesteps").into_iter().map(|t| t as f32).collect();
        let run = dc_run_t {
            timesteps: timesteps.as_ptr(),
            timestep_max: recording.number("timestep_max").unwrap() as f32,
            ..run_of(timesteps.len() as u32)
        };
        ok(match self.build {
            Build::Spaced => self.cache.begin_run_for(&run, &self.shapes()),
            Build::Plain | Build::Apart => self.cache.begin_run_as(&run),
        });
    }

    /// The pass of these branches, one after the other in every tensor.
    fn pass_of(&self, step: usize, branches: &[&str]) -> dc_pass_t {
        let numbers: Vec<_> = branches.iter().map(|branch| number_of(branch)).collect();
        pass_of(step as u32, &numbers)
    }

    fn peek_all(
        &self,
        pass: Option<&dc_pass_t>,
        sites: &[Site],
        branches: &[&str],
        decisions: &mut Decisions,
    ) {
        for site in sites {
            let letter = letter(self.cache.peek(pass, site.unit()));
            for branch in branches {
                note(decisions, format!("{branch}.{}", site.number), letter);
            }
        }
    }

    fn evaluate(&self, step: usize, branches: &[&str], replay: &mut Replay) {
        let pass = self.pass_of(step, branches);
        self.peek_all(Some(&pass), &self.sites, branches, &mut replay.before);
        ok(self.cache.begin_pass(&pass));
        if self.run.is_guided() && branches.contains(&"cond") {
            note(&mut replay.within, "guide", letter(self.cache.peek(None, DC_UNCOND)));
        }
        for site in &self.sites {
            self.peek_all(None, std::slice::from_ref(site), branches, &mut replay.within);
            self.site(step, site, branches, replay);
        }
        ok(self.cache.end_pass());
    }

    fn site(&self, step: usize, site: &Site, branches: &[&str], replay: &mut Replay) {
        let (run, recording) = (self.run, self.run.recording);
        let stack = |branch: &str, member| format!("{branch}.{}.{member}", site.number);
        let out = self.tensors(site, branches.len());
        let action = match site.kind {
            Some(kind) => self.cache.before_layer(site.number, kind, &out),
            None => {
                // What goes in looks otherwise, and is left alone.
                let latents = [self.build.tensor(recording.dtype, &[2, 5])];
                let action = self.cache.before_into(DC_MODEL, &latents, &out);
                assert!(is_spoilt(&latents[0]), "{run}: the latents were written to");
                action
            }
        };
        for branch in branches {
            note(&mut replay.answers, format!("{branch}.{}", site.number), letter(action));
        }
        if action == DC_COMPUTE {
            let recorded = |member| -> Vec<u8> {
                let row = |branch: &&str| {
                    &recording.stack(&stack(branch, member)).rows[run.row(branch, step)]
                };
                branches.iter().flat_map(row).copied().collect()
            };
            let recorded: Vec<_> = (0..site.members).map(recorded).collect();
            assert!(out.iter().all(is_spoilt), "{run}: COMPUTE leaves the tensors as they were");
            out.iter().zip(&recorded).for_each(|(out, recorded)| out.set_bytes(recorded));
            match site.kind {
                Some(_) => self.cache.after_layer(site.number, &out),
                None => self.cache.after(DC_MODEL, &out),
            }
            assert_eq!(bytes(&out), recorded, "{run}: what is reported is only read");
            return;
        }
        for (member, out) in out.iter().enumerate() {
            let bytes = out.bytes();
            for (branch, ours) in branches.iter().zip(bytes.chunks(bytes.len() / branches.len())) {
                let row = run.row(branch, step);
                let stack = stack(branch, member);
                replay.skips.push(Skip { stack, row, step, ours: ours.to_vec() });
            }
        }
    }

    /// The conditional prediction stands, and where it came in the same pass the other one, too.
    /// `evaluate` is what is left to do where it does not.
    fn guide(&self, step: usize, replay: &mut Replay, evaluate: impl FnOnce(&mut Replay)) {
        let (run, recording) = (self.run, self.run.recording);
        let (cond, uncond) = (self.prediction(), self.prediction());
        let recorded = |branch: &str| &recording.stack(&format!("guide.{branch}")).rows[step];
        cond.set_bytes(recorded("cond"));
        let computes = run.is_present("uncond", step);
        if computes && self.build != Build::Apart {
            uncond.set_bytes(recorded("uncond"));
        }
        let before = uncond.bytes();
        let pass = self.pass_of(step, &["uncond"]);
        let action = self.cache.before_uncond(&pass, &cond, &uncond);
        note(&mut replay.answers, "guide", letter(action));
        if action == DC_COMPUTE {
            assert_eq!(uncond.bytes(), before, "{run}: COMPUTE leaves the tensors as they were");
            evaluate(replay);
            uncond.set_bytes(recorded("uncond"));
            ok(self.cache.after_uncond(&pass, &cond, &uncond));
            assert_eq!(&uncond.bytes(), recorded("uncond"), "{run}: what is reported is only read");
        } else {
            let (stack, ours) = ("guide.uncond".to_owned(), uncond.bytes());
            replay.skips.push(Skip { stack, row: step, step, ours });
        }
        assert_eq!(&cond.bytes(), recorded("cond"), "{run}: the conditional one is only read");
    }

    fn replay(&self) -> Replay {
        self.begin();
        let mut replay = Replay {
            build: self.build,
            answers: Decisions::new(),
            before: Decisions::new(),
            within: Decisions::new(),
            early: Decisions::new(),
            skips: Vec::new(),
            stats: self.cache.stats(),
            trace: self.cache.trace(),
            needed: self.setup.memory_needed_for(&self.shapes()),
        };
        for step in 0..self.run.steps() {
            if self.run.is_guided() {
                let uncond = self.pass_of(step, &["uncond"]);
                let foretold = self.cache.peek(Some(&uncond), DC_UNCOND);
                note(&mut replay.before, "guide", letter(foretold));
            }
            let passes = self.run.passes(self.build, step);
            self.evaluate(step, &passes[0], &mut replay);
            let evaluate_others = |replay: &mut Replay| {
                passes[1..].iter().for_each(|branches| self.evaluate(step, branches, replay));
            };
            if self.run.is_guided() {
                self.guide(step, &mut replay, evaluate_others);
            } else {
                evaluate_others(&mut replay);
            }
            for decisions in [&mut replay.answers, &mut replay.before, &mut replay.within] {
                self.note_absent(step, decisions);
            }
            if step == 0 {
                replay.early = replay.answers.clone();
                self.peek_ahead(&mut replay.early);
            }
        }
        (replay.stats, replay.trace) = (self.cache.stats(), self.cache.trace());
        replay
    }

    fn peek_ahead(&self, early: &mut Decisions) {
        for step in 1..self.run.steps() {
            for branches in self.run.passes(self.build, step) {
                let pass = self.pass_of(step, &branches);
                self.peek_all(Some(&pass), &self.sites, &branches, early);
            }
            self.note_absent(step, early);
            if self.run.is_guided() {
                let uncond = self.pass_of(step, &["uncond"]);
                note(early, "guide", letter(self.cache.peek(Some(&uncond), DC_UNCOND)));
            }
        }
    }

    fn note_absent(&self, step: usize, decisions: &mut Decisions) {
        if !self.run.is_present("uncond", step) {
            for site in &self.sites {
                note(decisions, format!("uncond.{}", site.number), '-');
            }
        }
    }
}

/// Replays a run with one engine.
fn replay_once(run: &Run) -> Replay {
    println!("{run}");
    Engine::new(run, Build::Plain).replay()
}

/// Every recording as diffusers was told, by an engine of every build.
fn replay_all(mut check: impl FnMut(&Run, &Replay)) {
    static ALL: OnceLock<Vec<(Run, Vec<Replay>)>> = OnceLock::new();
    let replays = |recording| {
        let run = Run::diffusers(recording);
        let replay = |build: &Build| {
            println!("{run}, {build:?}");
            Engine::new(&run, *build).replay()
        };
        let replays = Build::of(recording).iter().map(replay).collect();
        (run, replays)
    };
    let all = ALL.get_or_init(|| recordings().iter().map(replays).collect());
    for (run, replay) in all.iter().flat_map(|(run, all)| all.iter().map(move |one| (run, one))) {
        println!("{run}, {:?}", replay.build);
        check(run, replay);
    }
}

// ---- numbers ----

fn mantissa_and_lowest(dtype: Dtype) -> (i32, i32) {
    match dtype {
        Dtype::F32 => (24, -126),
        Dtype::F16 => (11, -14),
        Dtype::Bf16 => (8, -126),
    }
}

/// The distance of the numbers of a dtype around `x`.
fn spacing(dtype: Dtype, x: f64) -> f64 {
    let (digits, lowest) = mantissa_and_lowest(dtype);
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    2f64.powi(exponent.max(lowest) - digits + 1)
}

/// Could it be `exact`, off by `slack` at most, rounded to the dtype?
fn is_rounded(dtype: Dtype, ours: f32, exact: f64, slack: f64) -> bool {
    let ours = f64::from(ours);
    if ours.is_infinite() {
        let largest = if dtype == Dtype::F16 { 65504.0 } else { f64::from(f32::MAX) };
        let overflows = exact.abs() + slack >= largest + spacing(dtype, largest) / 2.0;
        return overflows && ours.signum() == exact.signum();
    }
    (ours - exact).abs() <= slack + spacing(dtype, exact.abs().max(ours.abs())) / 2.0
}

/// To the nearest value of the dtype.
fn rounded(dtype: Dtype, mut values: Vec<f32>) -> Vec<f32> {
    let round = match dtype {
        Dtype::F32 => |x| x,
        Dtype::F16 => |x| f16::from_f32(x).to_f32(),
        Dtype::Bf16 => |x| bf16::from_f32(x).to_f32(),
    };
    values.iter_mut().for_each(|x| *x = round(*x));
    values
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

// ---- the corrected formulas, in f64 ----

#[derive(Clone, Copy, Debug, PartialEq)]
enum Formula {
    /// TaylorSeer's ladder and powers.
    Taylor,
    /// The polynomial through all values.
    Newton,
    /// The ladder and HiCache's polynomials, at its default scale.
    Hermite,
    /// FasterCache's attention, with this weight.
    Linear(f64),
}

impl Formula {
    /// What it makes of `values` at `steps`, oldest first, for the step `now`.
    fn forecast(self, steps: &[f64], values: &[f64], now: f64) -> f64 {
        let x = now - steps[steps.len() - 1];
        let along = |terms: &dyn Fn(usize) -> f64| -> f64 {
            let rungs = ladder(steps, values);
            rungs.iter().enumerate().map(|(k, rung)| terms(k) * rung).sum()
        };
        match self {
            Self::Taylor => along(&|k| x.powi(k as i32) / factorial(k)),
            Self::Hermite => {
                let (s, u) = (0.5f64, 0.5 * x);
                let h = [
                    1.0,
                    2.0 * u,
                    4.0 * u.powi(2) - 2.0,
                    8.0 * u.powi(3) - 12.0 * u,
                    16.0 * u.powi(4) - 48.0 * u.powi(2) + 12.0,
                ];
                along(&|k| s.powi(k as i32) * h[k] / factorial(k))
            }
            Self::Newton => neville(steps, values, now),
            Self::Linear(weight) => match (steps, values) {
                ([.., a_step, b_step], [.., a, b]) => b + weight * x * (b - a) / (b_step - a_step),
                _ => values[0],
            },
        }
    }

    /// It is linear in the values, each of which counts so much.
    fn weights(self, steps: &[f64], now: f64) -> Vec<f64> {
        let weight = |one: usize| {
            let impulse: Vec<_> =
                (0..steps.len()).map(|k| if k == one { 1.0 } else { 0.0 }).collect();
            self.forecast(steps, &impulse, now)
        };
        (0..steps.len()).map(weight).collect()
    }
}

fn factorial(n: usize) -> f64 {
    (1..=n).map(|k| k as f64).product()
}

/// TaylorSeer's ladder after the last of these values was taken in: each took the rungs' place, and
/// left them as quotients over the gap before it.
fn ladder(steps: &[f64], values: &[f64]) -> Vec<f64> {
    let mut rungs: Vec<f64> = Vec::new();
    for (k, value) in values.iter().enumerate() {
        let mut climbing = *value;
        for rung in &mut rungs {
            let change = climbing - *rung;
            *rung = std::mem::replace(&mut climbing, change / (steps[k] - steps[k - 1]));
        }
        rungs.push(climbing);
    }
    rungs
}

/// The polynomial through all values, by Neville's scheme.
fn neville(steps: &[f64], values: &[f64], now: f64) -> f64 {
    let mut p = values.to_vec();
    for width in 1..p.len() {
        for i in 0..p.len() - width {
            let (left, right) = (steps[i], steps[i + width]);
            p[i] = ((now - right) * p[i] + (left - now) * p[i + 1]) / (left - right);
        }
    }
    p[0]
}

/// What guidance makes of a recording's computed steps: the estimate where it is skipped.
fn estimates(recording: &Recording, max_growth: Option<u32>) -> Vec<Option<Vec<f64>>> {
    let part = |name: &str, t: f64| {
        let range = format!("config.{name}_frequency_weight_update_timestep_range");
        let bounds = recording.numbers(&range);
        let factor = recording.number(&format!("config.alpha_{name}_frequency")).unwrap();
        (bounds[0] < t && t < bounds[1]).then_some(factor)
    };
    let values = |branch: &str, step: usize| -> Vec<f64> {
        let row = &recording.stack(&format!("guide.{branch}")).rows[step];
        values_of(recording.dtype, row).into_iter().map(f64::from).collect()
    };
    let shape = &recording.stack("guide.cond").shape;
    let plane = (shape[shape.len() - 2], shape[shape.len() - 1]);
    // Of a band: its factor, and how often it has grown.
    let grow = |(weight, times): (f64, u32), factor: Option<f64>| match factor {
        Some(factor) if max_growth.is_none_or(|max| times < max) => (weight * factor, times + 1),
        _ => (weight, times),
    };

    let mut held = (Vec::new(), Vec::new());
    let (mut low, mut high) = ((1.0, 0), (1.0, 0));
    let letters = recording.text("decisions.guide").chars();
    let step = |(step, (letter, t)): (usize, (char, f64))| {
        let cond = values("cond", step);
        if letter == 'C' {
            let uncond = values("uncond", step);
            let change: Vec<_> = uncond.iter().zip(&cond).map(|(u, c)| u - c).collect();
            let smooth = change.chunks(plane.0 * plane.1).flat_map(|p| low_pass(p, plane));
            held = (smooth.collect(), change);
            (low, high) = ((1.0, 0), (1.0, 0));
            return None;
        }
        (low, high) = (grow(low, part("low", t)), grow(high, part("high", t)));
        let estimate = |((cond, smooth), change): ((&f64, &f64), &f64)| {
            cond + low.0 * smooth + high.0 * (change - smooth)
        };
        Some(cond.iter().zip(&held.0).zip(&held.1).map(estimate).collect())
    };
    letters.zip(recording.numbers("timesteps")).enumerate().map(step).collect()
}

/// The waves of a plane up to a fifth of its shorter side, one by one.
fn low_pass(plane: &[f64], (height, width): (usize, usize)) -> Vec<f64> {
    let r = (height.min(width) / 5) as isize;
    let waves = |period: usize| {
        move |frequency: isize, n: usize| {
            let turns = (frequency * n as isize).rem_euclid(period as isize);
            (TAU * turns as f64 / period as f64).sin_cos()
        }
    };
    let (rows, columns) = (waves(height), waves(width));
    let mut out = vec![0.0; plane.len()];
    for ky in -r..=r {
        for kx in (-r..=r).filter(|kx| kx * kx + ky * ky <= r * r) {
            let along: Vec<_> = (0..width).map(|x| columns(kx, x)).collect();
            let wave = |n: usize| {
                let ((sin_y, cos_y), (sin_x, cos_x)) = (rows(ky, n / width), along[n % width]);
                (cos_y * cos_x - sin_y * sin_x, sin_y * cos_x + cos_y * sin_x)
            };
            let wave: Vec<_> = (0..plane.len()).map(wave).collect();
            let sum = plane.iter().zip(&wave).fold((0.0, 0.0), |sum: (f64, f64), (p, wave)| {
                (sum.0 + p * wave.0, sum.1 + p * wave.1)
            });
            for (out, wave) in out.iter_mut().zip(&wave) {
                *out += (sum.0 * wave.0 + sum.1 * wave.1) / plane.len() as f64;
            }
        }
    }
    out
}

// ---- claims ----

#[test]
fn the_recordings_hold_what_a_comparison_needs() {
    for dtype in DTYPES {
        let of = |method| of_method(method).filter(move |recording| recording.dtype == dtype);
        for order in 0..=4 {
            let found = of("taylorseer").any(|one| one.count("config.max_order") == order);
            assert!(found, "{dtype:?}: TaylorSeer of order {order}");
        }
        for method in ["taylorseer", "pab", "fastercache"] {
            let decisions: Vec<_> =
                of(method).flat_map(|one| one.section("decisions.").into_values()).collect();
            let some = |part| decisions.iter().any(|letters| letters.contains(part));
            assert!(some("CsC"), "{dtype:?}, {method}: a skip alone");
            assert!(some("sss"), "{dtype:?}, {method}: skips in a row");
            for cfg in ["none", "batched"] {
                let found = of(method).any(|one| one.text("cfg") == cfg);
                assert!(found, "{dtype:?}, {method}: guidance {cfg}");
            }
            let found = of(method).any(|one| one.list("members").contains(&"2"));
            assert!(found, "{dtype:?}, {method}: several tensors at a site");
        }
        let found = of("taylorseer").any(|one| one.text("cfg") == "sequential");
        assert!(found, "{dtype:?}: guidance one branch after the other");
        for (method, kind) in [
            ("taylorseer", "spatial"),
            ("taylorseer", "temporal"),
            ("taylorseer", "cross"),
            ("taylorseer", "mlp"),
            ("taylorseer", "model"),
            ("pab", "spatial"),
            ("pab", "temporal"),
            ("pab", "cross"),
            ("fastercache", "spatial"),
            ("fastercache", "temporal"),
        ] {
            let found = of(method).any(|one| one.list("sites").contains(&kind));
            assert!(found, "{dtype:?}, {method}: {kind}");
        }
        let found = of("fastercache").any(|one| is_guided(one) && !one.list("sites").is_empty());
        assert!(found, "{dtype:?}: layers together with guidance");
    }
    for dtype in ["f32", "f16", "bf16"] {
        let found = of_method("taylorseer").any(|one| one.text("factor_dtype") == dtype);
        assert!(found, "factors in {dtype}");
    }

    let edges = named("edges-taylorseer-f16");
    let rows = edges.stack("cond.0.0").rows.iter();
    let values: Vec<_> = rows.flat_map(|row| values_of(edges.dtype, row)).collect();
    let some = |kind: fn(&f32) -> bool| values.iter().any(kind);
    assert!(some(|x| x.is_infinite()), "a difference that overflows");
    assert!(some(|x| *x == 0.0 && x.is_sign_negative()), "a negative zero");
    assert!(some(|x| *x != 0.0 && x.abs() < 6e-5), "a number that is subnormal in f16");
}

#[test]
fn every_decision_is_that_of_diffusers() {
    let mut decisions = 0;
    replay_all(|run, replay| {
        assert_eq!(replay.answers, run.recording.section("decisions."), "{run}");
        decisions += replay.answers.values().map(String::len).sum::<usize>();
    });
    println!("{decisions} decisions");
    assert!(decisions > 10_000, "{decisions} decisions");
}

#[test]
fn a_peek_foretells_the_answer() {
    replay_all(|run, replay| {
        assert_eq!(replay.before, replay.answers, "{run}: before each pass");
        assert_eq!(replay.early, replay.answers, "{run}: after the first step");
        assert_eq!(replay.within, replay.answers, "{run}: within each pass");
    });
}

#[test]
fn every_skipped_layer_has_the_bits_of_diffusers() {
    let mut elements = BTreeMap::new();
    replay_all(|run, replay| {
        let recording = run.recording;
        for skip in replay.of_layers() {
            let theirs = &recording.stack(&skip.stack).rows[skip.row];
            let [ours, theirs] = [&skip.ours, theirs].map(|row| values_of(recording.dtype, row));
            for (k, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                let same = ours.to_bits() == theirs.to_bits();
                assert!(same, "{run}, {skip}, {k}: {ours}, diffusers {theirs}");
            }
            *elements.entry(recording.text("method").to_owned()).or_insert(0) += ours.len();
        }
    });
    println!("{elements:?} elements");
    assert!(elements.len() == 3 && elements.values().all(|n| *n > 90_000), "{elements:?}");
}

#[test]
fn every_estimate_of_guidance_is_near_that_of_diffusers() {
    // Of the half formats.
    let (mut elements, mut same) = (0, 0);
    replay_all(|run, replay| {
        let (recording, dtype) = (run.recording, run.recording.dtype);
        if !run.is_guided() {
            return;
        }
        let exact = estimates(recording, None);
        // All of them, and pairs with the same bits: ours and those of diffusers, f64 rounded once
        // and those of diffusers, ours and f64.
        let (mut n, mut of_ours, mut of_exact, mut between) = (0, 0, 0, 0);
        for skip in replay.of_guidance() {
            let theirs = &recording.stack(&skip.stack).rows[skip.row];
            let [ours, theirs] = [&skip.ours, theirs].map(|row| values_of(dtype, row));
            let exact = exact[skip.step].as_ref().expect("a skipped step");
            let atol = 1e-6 * largest(exact);
            let exact = rounded(dtype, exact.iter().map(|x| *x as f32).collect());
            for (k, (&ours, &theirs)) in ours.iter().zip(&theirs).enumerate() {
                let (x, y) = (f64::from(ours), f64::from(theirs));
                // In half formats each may take another neighbour of what lies between two.
                let allowed = match dtype {
                    Dtype::F32 => 1e-5 * y.abs() + atol,
                    half => 2.0 * atol + spacing(half, x.abs().max(y.abs())),
                };
                let near = (x - y).abs() <= allowed;
                assert!(near, "{run}, {skip}, {k}: {ours}, diffusers {theirs}");
                n += 1;
                of_ours += usize::from(ours == theirs);
                of_exact += usize::from(exact[k] == theirs);
                between += usize::from(ours == exact[k]);
            }
        }
        assert!(n > 0, "{run}: nothing was estimated");
        println!("of {n}: {of_ours} as diffusers, {of_exact} of f64 are; {between} as f64");
        if dtype != Dtype::F32 {
            // What differs from diffusers does so by the noise of its FFT.
            assert!(1000 * between >= 999 * n, "{run}: {between} of {n} as f64");
            assert!(1000 * of_ours + n >= 1000 * of_exact, "{run}: {of_ours} of {n} as diffusers");
            (elements, same) = (elements + n, same + of_ours);
        }
    });
    println!("{same} of {elements} elements");
    assert!(elements > 100_000 && 1000 * same >= 995 * elements, "{same} of {elements}");
}

#[test]
fn guidance_is_f64_rounded_once() {
    let mut elements = 0;
    for recording in recordings().iter().filter(|recording| is_guided(recording)) {
        let dtype = recording.dtype;
        for (options, max_growth) in [
            ("compat=diffusers", None),
            ("", Some(4)),
            ("guidance.max_growth=none", None),
            ("guidance.max_growth=2", Some(2)),
            ("guidance.max_growth=0", Some(0)),
        ] {
            let run = Run::with(recording, options);
            let (replay, exact) = (replay_once(&run), estimates(recording, max_growth));
            assert_eq!(replay.answers["guide"], recording.text("decisions.guide"), "{run}");
            for skip in replay.of_guidance() {
                let exact = exact[skip.step].as_ref().expect("a skipped step");
                let slack = 1e-6 * largest(exact);
                let ours = values_of(dtype, &skip.ours);
                elements += ours.len();
                for (k, (ours, exact)) in ours.into_iter().zip(exact).enumerate() {
                    let good = is_rounded(dtype, ours, *exact, slack);
                    assert!(good, "{run}, {skip}, {k}: {ours}, exactly {exact}");
                }
            }
        }
    }
    println!("{elements} elements");
    assert!(elements > 500_000, "{elements} elements");
}

#[test]
fn holding_is_the_same_without_compat() {
    for recording in of_method("pab") {
        let run = Run::with(recording, "");
        let replay = replay_once(&run);
        assert_eq!(replay.answers, recording.section("decisions."), "{run}");
        assert!(!replay.skips.is_empty(), "{run}");
        for skip in &replay.skips {
            let theirs = &recording.stack(&skip.stack).rows[skip.row];
            assert_eq!(&skip.ours, theirs, "{run}, {skip}");
        }
    }
}

#[test]
fn the_formulas_give_the_published_weights() {
    let assert_near = |formula: Formula, steps: &[f64], now: f64, expected: &[f64]| {
        let weights = formula.weights(steps, now);
        assert_eq!(weights.len(), expected.len());
        let apart = weights.iter().zip(expected).map(|(ours, theirs)| (ours - theirs).abs());
        assert!(apart.fold(0.0, f64::max) < 1e-5, "{formula:?}: {weights:?}");
    };
    let steps = [5.0, 8.0, 12.0];
    assert_near(Formula::Taylor, &steps, 14.0, &[0.166667, -0.791667, 1.625]);
    assert_near(Formula::Newton, &steps, 14.0, &[0.571429, -1.5, 1.928571]);
    assert_near(Formula::Taylor, &steps[1..], 14.0, &[-0.5, 1.5]);
    assert_near(Formula::Hermite, &steps[1..], 14.0, &[-0.25, 1.25]);
    assert_near(Formula::Linear(0.5), &steps[1..], 14.0, &[-0.25, 1.25]);
    // With gaps of 1 the oldest value counts only in the highest quotient, with sign (-1)^n.
    for (n, x, expected) in
        [(1, 3.0, -1.5), (2, 1.0, -0.125), (2, 4.0, 1.75), (3, 2.0, 0.08333), (3, 5.0, -1.97917)]
    {
        let steps: Vec<_> = (0..=n).map(f64::from).collect();
        let weights = Formula::Hermite.weights(&steps, f64::from(n) + x);
        assert!((weights[0] - expected).abs() < 1e-5, "{n}, {x}: {}", weights[0]);
    }
}

/// Skipped layers against a formula in f64, over the last `order` + 1 computed values as they are
/// kept: how many elements there were.
fn check_layers(
    run: &Run,
    replay: &Replay,
    kept: Dtype,
    order: usize,
    formula: impl Fn(usize) -> Formula,
) -> usize {
    let (recording, dtype) = (run.recording, run.recording.dtype);
    let mut elements = 0;
    for skip in replay.of_layers() {
        let (site, _) = skip.stack.rsplit_once('.').unwrap();
        let (branch, _) = site.split_once('.').unwrap();
        let computed = replay.answers[site][..skip.step].match_indices('C').map(|(step, _)| step);
        let mut computed: Vec<_> = computed.collect();
        computed.drain(..computed.len().saturating_sub(order + 1));
        assert!(!computed.is_empty(), "{run}, {skip}: nothing is kept");

        let steps: Vec<_> = computed.iter().map(|step| *step as f64).collect();
        let weights = formula(skip.step).weights(&steps, skip.step as f64);
        let ours = values_of(dtype, &skip.ours);
        let (mut exact, mut terms) = (vec![0.0; ours.len()], vec![0.0; ours.len()]);
        for (step, weight) in computed.into_iter().zip(&weights) {
            let row = &recording.stack(&skip.stack).rows[run.row(branch, step)];
            for (k, value) in rounded(kept, values_of(dtype, row)).into_iter().enumerate() {
                let term = weight * f64::from(value);
                exact[k] += term;
                terms[k] += term.abs();
            }
        }
        // Products may be subnormal in f32.
        let least = weights.len() as f64 * spacing(Dtype::F32, 0.0);
        elements += ours.len();
        for (k, ours) in ours.into_iter().enumerate() {
            let good = is_rounded(dtype, ours, exact[k], 1e-6 * terms[k] + least);
            assert!(good, "{run}, {skip}, {k}: {ours}, exactly {}", exact[k]);
        }
    }
    elements
}

/// Compute until the warm-up ends, then every n-th step from its last one on, and the last steps.
fn corrected_schedule(recording: &Recording) -> String {
    let count = |name: &str| recording.number(&format!("config.{name}")).map(|n| n as usize);
    let every = count("cache_interval").unwrap();
    let before = count("disable_cache_before_step").unwrap();
    let after = count("disable_cache_after_step").unwrap_or(usize::MAX);
    let computes =
        |step: usize| step < before || step >= after || (step - (before - 1)).is_multiple_of(every);
    (0..recording.count("steps")).map(|step| if computes(step) { 'C' } else { 's' }).collect()
}

#[test]
fn the_corrected_schedules() {
    for (name, expected) in [
        ("flux-taylorseer-bf16", "CCCssssCssssCsss"),
        ("flux-taylorseer-order0-bf16", "CssCssCssCssC"),
        ("flux-taylorseer-order4-bf16", "CCCCCCssCssCssCssCCC"),
        ("wan-taylorseer-bf16", "CCCCCsssssCsssssCs"),
    ] {
        assert_eq!(corrected_schedule(named(name)), expected, "{name}");
    }
}

#[test]
fn the_corrected_taylorseer_newton_and_hicache_are_f64_rounded_once() {
    let mut elements = 0;
    for recording in of_method("taylorseer") {
        let schedule = corrected_schedule(recording);
        let kept = dtype(recording.text("factor_dtype"));
        for (estimator, formula, orders) in [
            ("taylor", Formula::Taylor, 0..=4),
            ("newton", Formula::Newton, 2..=4),
            ("hermite", Formula::Hermite, 1..=4),
        ] {
            for order in orders {
                let run = Run::with(recording, &format!("estimator={estimator},order={order}"));
                let replay = replay_once(&run);
                for (site, letters) in &replay.answers {
                    assert_eq!(letters, &schedule, "{run}, {site}");
                }
                assert_eq!(replay.before, replay.answers, "{run}: before each pass");
                assert_eq!(replay.early, replay.answers, "{run}: after the first step");
                elements += check_layers(&run, &replay, kept, order, |_| formula);
            }
        }
    }
    println!("{elements} elements");
    assert!(elements > 1_000_000, "{elements} elements");
}

#[test]
fn the_corrected_fastercache_is_f64_rounded_once() {
    let mut elements = 0;
    let with_sites =
        of_method("fastercache").filter(|recording| !recording.list("sites").is_empty());
    for recording in with_sites {
        let weight = recording.number("config.attention_weight").unwrap();
        for (options, start, end) in [("", weight, weight), ("weight=0.2:0.8", 0.2, 0.8)] {
            let run = Run::with(recording, options);
            let last = (run.steps() - 1) as f64;
            let at = |step: usize| Formula::Linear(start + (end - start) * step as f64 / last);
            let replay = replay_once(&run);
            assert_eq!(replay.answers, recording.section("decisions."), "{run}");
            elements += check_layers(&run, &replay, recording.dtype, 1, at);
        }
    }
    println!("{elements} elements");
    assert!(elements > 90_000, "{elements} elements");
}

/// diffusers' pair, of which the newer may be a prediction: what it hands out, by step.
fn chain(run: &Run, letters: &str, stack: &str, weight: f32) -> Vec<Vec<f32>> {
    let dtype = run.recording.dtype;
    let mut pair: Option<[Vec<f32>; 2]> = None;
    let step = |(step, letter): (usize, char)| {
        let newest = match (letter, &pair) {
            ('s', Some([older, newer])) => {
                let change = newer.iter().zip(older).map(|(b, a)| b - a);
                let change = rounded(dtype, change.collect()).into_iter().map(|d| d * weight);
                let change = rounded(dtype, change.collect());
                rounded(dtype, newer.iter().zip(change).map(|(b, d)| b + d).collect())
            }
            _ => values_of(dtype, &run.recording.stack(stack).rows[step]),
        };
        let older = pair.take().map_or(newest.clone(), |[_, newer]| newer);
        pair = Some([older, newest.clone()]);
        newest
    };
    letters.chars().enumerate().map(step).collect()
}

#[test]
fn a_pair_of_fastercache_begins_as_the_first_value_twice() {
    // No recording skips in the second step.
    let mut elements = 0;
    for recording in of_method("fastercache").filter(|one| one.text("family") == "edges") {
        let weight = recording.number("config.attention_weight").unwrap() as f32;
        for (options, expected) in [
            ("compat=diffusers", recording.text("decisions.cond.0")),
            ("compat=diffusers,spatial.every=4,spatial.window=-0.001:0.999", "CsssCsssCsssCsssCs"),
        ] {
            let run = Run::with(recording, options);
            let replay = replay_once(&run);
            assert_eq!(replay.answers["cond.0"], expected, "{run}");
            let theirs = chain(&run, expected, "cond.0.0", weight);
            for skip in replay.of_layers() {
                let ours = values_of(recording.dtype, &skip.ours);
                let pairs = ours.iter().zip(&theirs[skip.step]);
                for (k, (ours, theirs)) in pairs.enumerate() {
                    let same = ours.to_bits() == theirs.to_bits();
                    assert!(same, "{run}, {skip}, {k}: {ours}, expected {theirs}");
                }
                elements += ours.len();
            }
        }
    }
    assert!(elements > 4_000, "{elements} elements");
}

#[test]
fn a_second_run_is_like_the_first() {
    for recording in recordings() {
        let run = Run::diffusers(recording);
        let engine = Engine::new(&run, Build::Plain);
        let (first, second) = (engine.replay(), engine.replay());
        assert_eq!(first.answers, second.answers, "{run}");
        assert!(!first.skips.is_empty() && first.skips == second.skips, "{run}");
        assert_eq!(first.stats.allocations, second.stats.allocations, "{run}: the memory stays");
    }
}

#[test]
fn the_memory_is_as_foretold() {
    replay_all(|run, replay| {
        let (needed, most) = (replay.needed, replay.stats.bytes_peak);
        assert!(needed > 0 && most == needed, "{run}, {:?}: {most} of {needed}", replay.build);
    });
}

/// diffusers keeps as much of each output, in the same dtype. Of guidance it keeps two complex spectra,
/// 16 bytes for each element of a prediction, where we keep 8 or 4; and a view of the conditional
/// rows keeps the whole batch alive.
#[test]
fn no_more_memory_is_held_than_diffusers_holds() {
    let (mut equal, mut less) = (0, 0);
    for recording in recordings() {
        let run = Run::diffusers(recording);
        let engine = Engine::new(&run, Build::Plain);
        let (ours, theirs) = (engine.replay().needed, recording.count("held_bytes") as u64);
        if run.is_guided() {
            let saved = 8 * engine.prediction().len() as u64;
            assert!(ours + saved <= theirs, "{run}: {ours} of {theirs}");
            less += 1;
        } else {
            // Layers that a schedule never skips are hooked by diffusers, and not kept here.
            let all = recording.list("sites").iter().all(|kind| is_scheduled(&run, kind));
            assert!(ours == theirs || (ours < theirs && !all), "{run}: {ours} of {theirs}");
            equal += 1;
        }
    }
    assert!(equal > 0 && less > 0);
}

/// Does the schedule ever leave out layers of this kind?
fn is_scheduled(run: &Run, kind: &str) -> bool {
    !run.options.split(',').any(|option| option == format!("{kind}.every=1"))
}

#[test]
fn trace_and_statistics_tell_what_was_answered() {
    replay_all(|run, replay| {
        let (kinds, sites) = (run.recording.list("sites"), run.sites());
        let scheduled = |site: &&Site| is_scheduled(run, kinds[site.number as usize]);
        for site in &sites {
            let trace = replay.trace.of_unit(site.kind.map_or(DC_MODEL, kind_unit));
            for branch in run.recording.list("branches") {
                let answers = replay.answers[&format!("{branch}.{}", site.number)].replace('-', "");
                let told = if scheduled(&site) { answers } else { String::new() };
                assert_eq!(trace.of(number_of(branch)).actions(), told, "{run}, {branch}");
            }
        }
        let guide = replay.answers.get("guide").map_or("", String::as_str);
        let trace = replay.trace.of_unit(DC_UNCOND);
        assert_eq!(trace.of(UNCOND).actions(), guide, "{run}");
        assert_eq!(trace.0.len(), guide.len(), "{run}: of no other branch");

        let (mut passes, mut with_skip, mut layers, mut skipped) = (0, 0, 0, 0);
        for step in 0..run.steps() {
            for branches in run.passes(replay.build, step) {
                // Branches in one pass are answered alike.
                let is_skipped = |site: &&Site| {
                    let answers = &replay.answers[&format!("{}.{}", branches[0], site.number)];
                    answers.as_bytes()[step] == b's'
                };
                let scheduled = || sites.iter().filter(scheduled);
                let skips = scheduled().filter(is_skipped).count() as u64;
                (passes, with_skip) = (passes + 1, with_skip + u64::from(skips > 0));
                (layers, skipped) = (layers + scheduled().count() as u64, skipped + skips);
            }
        }
        let stats = &replay.stats;
        assert_eq!((stats.passes, stats.passes_skipped), (passes, with_skip), "{run}");
        if sites.iter().all(|site| site.kind.is_some()) {
            let expected = (layers - skipped, skipped);
            assert_eq!((stats.layers_computed, stats.layers_skipped), expected, "{run}");
        }
        let count = |letter| guide.matches(letter).count() as u64;
        let expected = (count('C'), count('s'));
        assert_eq!((stats.uncond_computed, stats.uncond_skipped), expected, "{run}");
        assert_eq!((stats.errors, stats.discarded), (0, 0), "{run}");
    });
}
