//! FirstBlockCache held against diffusers' own: its recorded runs (`conformance/README.md`) are
//! replayed through the C ABI by an engine whose blocks return what was recorded.
//!
//! Each run is replayed twice over. With `compat=diffusers`, decisions, metrics and tensors must be
//! those of diffusers. Without it, and without rails, they must be those of the corrected rule in
//! f64. No recorded decision is so near its threshold that the order of a sum could turn it (the
//! script sees to that), so decisions are compared without exception.

mod support;

use std::sync::OnceLock;
use std::{fmt, mem};

use half::{bf16, f16};
use support::recording::Recording;
use support::*;

// ---- the recordings ----

fn recordings() -> &'static [Recording] {
    static ALL: OnceLock<Vec<Recording>> = OnceLock::new();
    ALL.get_or_init(|| Recording::all("fbcache"))
}

/// One row of `value`: the bytes of each stream.
fn streams<'a>(recording: &'a Recording, value: &str, row: usize) -> Vec<&'a [u8]> {
    let of = |stream| recording.stack(&format!("{value}.{stream}"));
    recording.list("streams").into_iter().map(|stream| of(stream).rows[row].as_slice()).collect()
}

fn shapes(recording: &Recording) -> Vec<Vec<usize>> {
    let of = |stream| recording.stack(&format!("x.cond.{stream}")).shape.clone();
    recording.list("streams").into_iter().map(of).collect()
}

#[derive(Clone, Copy)]
enum Rule {
    Diffusers,
    Corrected,
}

/// One threshold of a recording, under one rule.
struct Run<'a> {
    recording: &'a Recording,
    rule: Rule,
    index: usize,
}

impl Run<'_> {
    fn key(&self, value: &str, branch: &str) -> String {
        let rule = match self.rule {
            Rule::Diffusers => "diffusers",
            Rule::Corrected => "corrected",
        };
        format!("{}.{rule}.{value}.{branch}", self.index)
    }

    fn options(&self) -> String {
        let rails = match self.rule {
            Rule::Diffusers => "compat=diffusers",
            Rule::Corrected => {
                "warmup_steps=0,last_steps=0,max_consecutive=none,max_error=none,max_age=none"
            }
        };
        format!("fbcache,{rails},threshold={}", self.recording.list("thresholds")[self.index])
    }

    fn decisions(&self, branch: &str) -> &str {
        self.recording.text(&self.key("decisions", branch))
    }

    /// NaN where nothing was measured.
    fn metrics(&self, branch: &str) -> Vec<f64> {
        let number = |word: &str| if word == "-" { f64::NAN } else { word.parse().unwrap() };
        self.recording.list(&self.key("metrics", branch)).into_iter().map(number).collect()
    }

    /// The recorded output of the `row`-th reused pass.
    fn reused(&self, branch: &str, row: usize) -> Vec<&[u8]> {
        streams(self.recording, &self.key("reused", branch), row)
    }
}

impl fmt::Display for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} with \"{}\"", self.recording.text("name"), self.options())
    }
}

// ---- the engine ----

/// The ways in which an engine may hold what flows through its blocks.
#[derive(Clone, Copy, Debug)]
enum Buffers {
    /// Every block works in place.
    One,
    /// Block 0 leaves its input alone, and the engine says so.
    InputKept,
    /// The result of a skipped span goes into buffers of its own.
    ResultApart,
}

impl Buffers {
    /// Those of run number `n`: all, but a stand-in for a GPU gets them in turn.
    fn of(n: usize) -> Vec<Self> {
        let all = [Self::One, Self::InputKept, Self::ResultApart];
        if device::on_cuda() { vec![all[n % all.len()]] } else { all.to_vec() }
    }
}

/// NaN in every dtype.
fn spoil(tensors: &[Tensor]) {
    tensors.iter().for_each(|tensor| tensor.set_bytes(&vec![0xff; tensor.bytes().len()]));
}

fn set(tensors: &[Tensor], streams: &[&[u8]]) {
    tensors.iter().zip(streams).for_each(|(tensor, bytes)| tensor.set_bytes(bytes));
}

/// What a replay showed of one branch.
#[derive(Default)]
struct Branch {
    decisions: String,
    metrics: Vec<f64>,
    /// Per reused pass and stream.
    reused: Vec<Vec<Vec<u8>>>,
}

struct Replay {
    branches: Vec<Branch>,
    stats: dc_stats_t,
}

struct Engine<'a> {
    run: &'a Run<'a>,
    buffers: Buffers,
    cache: Cache,
}

impl Engine<'_> {
    fn new<'a>(run: &'a Run, buffers: Buffers) -> Engine<'a> {
        let setup = Setup::new(run.recording.count("n_blocks"), &run.options()).with(|engine| {
            engine.n_branches = run.recording.list("branches").len() as u32;
            if matches!(buffers, Buffers::InputKept) {
                engine.flags |= DC_ENGINE_KEEPS_INPUT;
            }
        });
        Engine { run, buffers, cache: setup.create() }
    }

    fn tensors(&self, streams: &[&[u8]]) -> Vec<Tensor> {
        let dtype = self.run.recording.dtype;
        let tensors: Vec<_> =
            shapes(self.run.recording).iter().map(|shape| Tensor::new(dtype, shape)).collect();
        set(&tensors, streams);
        tensors
    }

    /// One evaluation of the model: whether the blocks after the first were skipped, and the output.
    fn pass(&self, step: usize, branch: usize) -> (bool, Vec<Tensor>) {
        let recording = self.run.recording;
        let n_blocks = recording.count("n_blocks") as u32;
        let name = recording.list("branches")[branch];
        let recorded = |value| streams(recording, &format!("{value}.{name}"), step);
        ok(self.cache.begin_pass(&pass_of(step as u32, &[branch as u32])));

        let mut x = self.tensors(&recorded("x"));
        assert_eq!(self.cache.before(0, &x), DC_COMPUTE, "block 0 always runs");
        let mut spare = self.tensors(&recorded("h1"));
        if matches!(self.buffers, Buffers::One) {
            set(&x, &recorded("h1"));
        } else {
            mem::swap(&mut x, &mut spare); // the input stands in `spare`
        }
        self.cache.after(0, &x);

        let result = self.tensors(&recorded("h1"));
        spoil(&result);
        let apart = matches!(self.buffers, Buffers::ResultApart);
        let first = match apart {
            true => self.cache.before_into(1, &x, &result),
            false => self.cache.before(1, &x),
        };
        if first == DC_SKIP && apart {
            assert_eq!(bytes(&x), recorded("h1"), "`in` stands where `out` is given");
            x = result;
        }
        for block in 1..n_blocks {
            let answer = if block == 1 { first } else { self.cache.before(block, &x) };
            assert_eq!(answer, first, "one answer for all blocks of the span");
            if answer == DC_SKIP {
                continue;
            }
            if block == n_blocks - 1 {
                set(&x, &recorded("y"));
            } else {
                spoil(&x); // what flows inside the span is none of the cache's business
            }
            self.cache.after(block, &x);
        }
        ok(self.cache.end_pass());
        if first == DC_COMPUTE {
            assert_eq!(bytes(&x), recorded("y"), "a computed pass is the engine's own");
        }
        (first == DC_SKIP, x)
    }

    fn replay(&self) -> Replay {
        let recording = self.run.recording;
        let mut branches: Vec<Branch> = Vec::new();
        branches.resize_with(recording.list("branches").len(), Branch::default);

        ok(self.cache.begin_run(recording.count("steps") as u32));
        for step in 0..recording.count("steps") {
            for (number, branch) in branches.iter_mut().enumerate() {
                let (skipped, output) = self.pass(step, number);
                branch.decisions.push(if skipped { 's' } else { 'C' });
                if skipped {
                    branch.reused.push(bytes(&output));
                }
            }
        }

        for record in self.cache.trace().0 {
            let branch = &mut branches[record.branch as usize];
            assert_eq!(record.step as usize, branch.metrics.len(), "one record a pass");
            let skipped = branch.decisions.as_bytes()[record.step as usize] == b's';
            assert_eq!(record.action == DC_SKIP, skipped, "the trace tells what was answered");
            branch.metrics.push(record.change);
        }
        Replay { branches, stats: self.cache.stats() }
    }
}

/// Every run under a rule, replayed by engines of every build, once for all tests.
fn replays(rule: Rule) -> &'static [(Run<'static>, Buffers, Replay)] {
    static DIFFUSERS: OnceLock<Vec<(Run, Buffers, Replay)>> = OnceLock::new();
    static CORRECTED: OnceLock<Vec<(Run, Buffers, Replay)>> = OnceLock::new();
    let all = match rule {
        Rule::Diffusers => &DIFFUSERS,
        Rule::Corrected => &CORRECTED,
    };
    all.get_or_init(|| {
        let mut replays = Vec::new();
        for recording in recordings() {
            for index in 0..recording.list("thresholds").len() {
                for buffers in Buffers::of(replays.len()) {
                    let run = Run { recording, rule, index };
                    println!("{run}, buffers {buffers:?}");
                    let replay = Engine::new(&run, buffers).replay();
                    replays.push((run, buffers, replay));
                }
            }
        }
        replays
    })
}

fn replay_all(rule: Rule, mut check: impl FnMut(&Run, &Replay)) {
    for (run, buffers, replay) in replays(rule) {
        println!("{run}, buffers {buffers:?}");
        check(run, replay);
    }
}

/// As `replay_all`, a branch at a time.
fn replay_branches(rule: Rule, mut check: impl FnMut(&Run, &str, &Branch)) {
    replay_all(rule, |run, replay| {
        for (name, branch) in run.recording.list("branches").into_iter().zip(&replay.branches) {
            check(run, name, branch);
        }
    });
}

// ---- numbers ----

fn largest(values: &[f32]) -> f32 {
    values.iter().map(|value| value.abs()).filter(|value| value.is_finite()).fold(0.0, f32::max)
}

/// NaN is near NaN, and an infinity only near itself.
fn near(ours: f64, theirs: f64, tolerance: f64) -> bool {
    ours == theirs || (ours.is_nan() && theirs.is_nan()) || (ours - theirs).abs() <= tolerance
}

/// Steps of the dtype's grid between two of its values; 0 between any two NaN.
fn ulps(dtype: Dtype, ours: f32, theirs: f32) -> u32 {
    if ours.is_nan() || theirs.is_nan() {
        return if ours.is_nan() && theirs.is_nan() { 0 } else { u32::MAX };
    }
    // The bits of a float, without its sign, count the grid from zero.
    let place = |value: f32| {
        let magnitude = match dtype {
            Dtype::F16 => f16::from_f32(value.abs()).to_bits().into(),
            Dtype::Bf16 => bf16::from_f32(value.abs()).to_bits().into(),
            _ => value.abs().to_bits(),
        };
        if value < 0.0 { -i64::from(magnitude) } else { i64::from(magnitude) }
    };
    place(ours).abs_diff(place(theirs)) as u32
}

// ---- claims ----

#[test]
fn the_recordings_hold_what_a_comparison_needs() {
    let all = recordings();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let of_dtype = || all.iter().filter(|recording| recording.dtype == dtype);
        for (branches, streams) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let decisions: Vec<_> = of_dtype()
                .filter(|one| one.list("branches").len() == branches)
                .filter(|one| one.list("streams").len() == streams)
                .flat_map(|one| one.section(""))
                .filter(|(key, _)| key.contains(".diffusers.decisions."))
                .map(|(_, decisions)| decisions)
                .collect();
            let what = format!("{dtype:?}, {branches} branches, {streams} streams");
            let some = |kind: fn(&str) -> bool| decisions.iter().any(|one| kind(one));
            assert!(some(|one| !one.contains('s')), "{what}: a run that never skips");
            assert!(some(|one| !one[1..].contains('C')), "{what}: a run that always skips");
            assert!(some(|one| one.matches("Cs").count() > 2), "{what}: a run that does both");
        }
        for edge in ["equal", "zero-residual", "nan", "nan-first", "infinite-residual"] {
            let found = of_dtype().any(|one| one.text("name").rsplit_once('-').unwrap().0 == edge);
            assert!(found, "{dtype:?}: {edge}");
        }
    }
}

#[test]
fn compat_decides_as_diffusers_does() {
    replay_branches(Rule::Diffusers, |run, name, branch| {
        assert_eq!(branch.decisions, run.decisions(name), "{run}, {name}");
    });
}

#[test]
fn compat_measures_what_diffusers_measures() {
    replay_branches(Rule::Diffusers, |run, name, branch| {
        let dtype = run.recording.dtype;
        // Sums in another order differ by some ulp of f32; on the grid of a half format nothing
        // of that is left.
        let allowed = if dtype == Dtype::F32 { 4 } else { 0 };
        for (step, (ours, theirs)) in branch.metrics.iter().zip(run.metrics(name)).enumerate() {
            let apart = ulps(dtype, *ours as f32, theirs as f32);
            assert!(apart <= allowed, "{run}, {name}, step {step}: {ours}, diffusers {theirs}");
        }
    });
}

#[test]
fn compat_reuses_what_diffusers_reuses() {
    replay_branches(Rule::Diffusers, |run, name, branch| {
        let dtype = run.recording.dtype;
        let (mut elements, mut unequal) = (0, 0);
        for (row, ours) in branch.reused.iter().enumerate() {
            for (ours, theirs) in ours.iter().zip(run.reused(name, row)) {
                let (ours, theirs) = (values_of(dtype, ours), values_of(dtype, theirs));
                let atol = 1e-6 * f64::from(largest(&theirs));
                for (&ours, &theirs) in ours.iter().zip(&theirs) {
                    let apart = ulps(dtype, ours, theirs);
                    let good = if dtype == Dtype::F32 {
                        near(ours.into(), theirs.into(), 1e-5 * f64::from(theirs.abs()) + atol)
                    } else {
                        apart <= 1
                    };
                    assert!(good, "{run}, {name}, skip {row}: {ours}, diffusers {theirs}");
                    elements += 1;
                    unequal += u32::from(apart > 0);
                }
            }
        }
        let rare = f64::from(unequal) <= 0.001 * f64::from(elements);
        assert!(rare || dtype == Dtype::F32, "{run}, {name}: {unequal} of {elements} differ");
    });
}

#[test]
fn corrected_decides_as_the_rule_in_f64() {
    replay_branches(Rule::Corrected, |run, name, branch| {
        assert_eq!(branch.decisions, run.decisions(name), "{run}, {name}");
    });
}

#[test]
fn corrected_measures_what_the_rule_measures_in_f64() {
    replay_branches(Rule::Corrected, |run, name, branch| {
        for (step, (&ours, exact)) in branch.metrics.iter().zip(run.metrics(name)).enumerate() {
            let good = near(ours, exact, 1e-5 * exact);
            assert!(good, "{run}, {name}, step {step}: {ours}, exactly {exact}");
        }
    });
}

#[test]
fn corrected_reuses_what_f64_gives() {
    replay_branches(Rule::Corrected, |run, name, branch| {
        let dtype = run.recording.dtype;
        let skips = run.decisions(name).match_indices('s');
        for (row, (ours, (step, _))) in branch.reused.iter().zip(skips).enumerate() {
            let h1 = streams(run.recording, &format!("h1.{name}"), step);
            for ((ours, exact), h1) in ours.iter().zip(run.reused(name, row)).zip(h1) {
                let (ours, h1) = (values_of(dtype, ours), values_of(dtype, h1));
                let exact = values_of(Dtype::F32, exact);
                let largest = f64::from(largest(&exact));
                for ((&ours, &exact), &h1) in ours.iter().zip(&exact).zip(&h1) {
                    // A half format rounds twice, the kept residual (exact - h1) and the sum.
                    let both = f64::from(exact.abs() + h1.abs());
                    let tolerance = match dtype {
                        Dtype::F16 => 2e-3 * both,
                        Dtype::Bf16 => 1.6e-2 * both,
                        _ => 1e-5 * f64::from(exact.abs()) + 1e-6 * largest,
                    };
                    let good = near(ours.into(), exact.into(), tolerance);
                    assert!(good, "{run}, {name}, step {step}: {ours}, exactly {exact}");
                }
            }
        }
    });
}

#[test]
fn corrected_counts_every_measurement_that_is_not_finite() {
    replay_all(Rule::Corrected, |run, replay| {
        let not_finite = |name: &&str| {
            let words = run.recording.list(&run.key("metrics", name));
            words.into_iter().filter(|word| matches!(*word, "nan" | "inf")).count()
        };
        let expected: usize = run.recording.list("branches").iter().map(not_finite).sum();
        assert_eq!(replay.stats.not_finite as usize, expected, "{run}");
    });
}

#[test]
fn the_statistics_add_up() {
    for rule in [Rule::Diffusers, Rule::Corrected] {
        replay_all(rule, |run, replay| {
            let n_blocks = run.recording.count("n_blocks") as u64;
            let passes: usize = replay.branches.iter().map(|branch| branch.decisions.len()).sum();
            let skipped: usize = replay.branches.iter().map(|branch| branch.reused.len()).sum();
            let (passes, skipped) = (passes as u64, skipped as u64);
            let stats = &replay.stats;
            assert_eq!((stats.passes, stats.passes_skipped), (passes, skipped), "{run}");
            assert_eq!(stats.blocks_skipped, skipped * (n_blocks - 1), "{run}");
            assert_eq!(stats.blocks_computed, passes * n_blocks - stats.blocks_skipped, "{run}");
            assert_eq!((stats.errors, stats.discarded), (0, 0), "{run}");
        });
    }
}
