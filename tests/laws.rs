//! What never breaks, a module for each law: shown through the C ABI.
mod support;

use diffcache::ops::Dtype::{Bf16, F16, F32};
use diffcache::ops::host::Host;
use diffcache::ops::memory::Memory;
use diffcache::ops::{BLOCK, Comparison, LANES, Ops, Rounding};
use half::{bf16, f16};
use std::process::Command;
use std::slice::from_ref;
use support::*;

/// What a run shows: everything.
#[derive(PartialEq)]
struct Seen {
    /// Bytes of each pass and tensor.
    outputs: Vec<Vec<Vec<u8>>>,
    answers: Vec<Answers>,
    trace: Vec<[u64; 7]>,
}

impl Seen {
    fn actions(&self) -> String {
        self.trace.iter().map(|record| letter(record[2] as u32)).collect()
    }
}

/// What goes into a model: noise that drifts by 4 % a step.
struct Inputs(Vec<Drifting>);

struct Drifting {
    dtype: Dtype,
    shape: Vec<usize>,
    start: Vec<f32>,
    drift: Vec<f32>,
}

impl Drifting {
    fn new(dtype: Dtype, shape: &[usize], seed: u64) -> Self {
        let len = shape.iter().product();
        let (start, drift) = (noise(2 * seed, len), noise(2 * seed + 1, len));
        Self { dtype, shape: shape.to_vec(), start, drift }
    }

    fn at(&self, step: u32) -> Tensor {
        let tensor = Tensor::new(self.dtype, &self.shape);
        let values = self.start.iter().zip(&self.drift).map(|(a, b)| a + 0.04 * step as f32 * b);
        tensor.set(&values.collect::<Vec<_>>());
        tensor
    }
}

impl Inputs {
    fn new(dtype: Dtype, shapes: &[&[usize]]) -> Self {
        Self((1..).zip(shapes).map(|(seed, shape)| Drifting::new(dtype, shape, seed)).collect())
    }

    fn at(&self, step: u32) -> Vec<Tensor> {
        self.0.iter().map(|stream| stream.at(step)).collect()
    }

    /// Shapes of one branch's rows, of `stacked` that a tensor holds.
    fn shapes(&self, stacked: usize) -> Vec<(u32, Vec<Tensor>)> {
        let rows = |x: &Tensor| x.part(0, 0, x.shape[0] / stacked);
        vec![(EACH, self.at(0).iter().map(rows).collect())]
    }

    /// A run of one pass a step that stacks `members`.
    fn run(&self, toy: &Toy, cache: &Cache, members: &[u32], steps: u32) -> Seen {
        ok(cache.begin_run(steps));
        let pass = |step| {
            let x = self.at(step);
            let answers = toy.pass(cache, &pass_of(step, members), &x);
            (bytes(&x), answers)
        };
        let (outputs, answers) = (0..steps).map(pass).unzip();
        Seen { outputs, answers, trace: cache.trace().bits() }
    }
}

fn fbcache(threshold: f64) -> String {
    format!("fbcache,threshold={threshold},{NO_RAILS}")
}

mod law_1_never_silently_wrong_never_silently_idle {
    use super::*;

    #[test]
    fn what_cannot_be_compared_computes_and_is_counted() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        // A bad step is bad twice: as it comes in, and as what the next one is compared with.
        for (name, inputs, gain, actions, reasons, count) in [
            ("NaN", [1.0, 1.0, nan, 1.0, 1.0], 1.0, "CsCCs", "HrNNr", 2),
            ("infinity", [1.0, 1.0, inf, 1.0, 1.0], 1.0, "CsCCs", "HrNNr", 2),
            ("x/0", [0.0, 1.0, 1.0, 0.0, 0.0], 1.0, "CCsCC", "HNrrN", 2),
            ("0/0", [1.0, 1.0, 2.0, 3.0, 4.0], 0.0, "CCCCC", "HNNNN", 4),
        ] {
            for dtype in DTYPES {
                let toy = Toy::new(&[gain, 1.0, 1.0]);
                let cache = Setup::new(3, &fbcache(0.5)).create();
                toy.run_filled(&cache, dtype, 100, &inputs);
                assert_eq!(cache.trace().actions(), actions, "{name} {dtype:?}");
                assert_eq!(cache.trace().reasons(), reasons, "{name} {dtype:?}");
                assert_eq!(cache.stats().not_finite, count, "{name} {dtype:?}");
            }
        }
    }

    #[test]
    fn a_schedule_measures_nothing_and_passes_bad_values_on() {
        for dtype in DTYPES {
            let inputs = [1.0, f32::NAN, 1.0, 1.0];
            let (trace, outputs) = Toy::doubling(2).run("mask,mask=1100", dtype, &inputs);
            assert_eq!(trace.actions(), "CCss");
            assert_eq!(outputs[0], 4.0);
            assert!(outputs[1..].iter().all(|y| y.is_nan()), "{outputs:?}");
        }
    }

    /// Reasons that come from the engine and its tensors; those of the rails are law 4's.
    #[test]
    fn every_decision_has_a_reason() {
        let toy = Toy::doubling(3);
        let x = |len| [Tensor::of(F32, &vec![1.0; len])];
        let run = |setup: Setup, act: &dyn Fn(&Cache)| {
            let cache = setup.create();
            ok(cache.begin_run(10));
            act(&cache);
            let trace = cache.trace();
            format!("{} {}", trace.actions(), trace.reasons())
        };
        let plain = Setup::new(3, &fbcache(0.1));
        let steps = |cache: &Cache, steps: std::ops::Range<u32>| {
            steps.for_each(|step| drop(toy.pass(cache, &pass_of(step, &[0]), &x(5))));
        };

        let shape = run(plain, &|cache| {
            steps(cache, 0..2);
            let status = toy.pass(cache, &pass_of(2, &[0]), &x(6)).status;
            assert_eq!(status, DC_ERR_SHAPE, "{}", last_error());
            ok(toy.pass(cache, &pass_of(3, &[0]), &x(6)).status);
        });
        assert_eq!(shape, "CsCs HrSr");

        let memory =
            run(plain.with(|engine| engine.memory_budget = 1), &|cache| steps(cache, 0..3));
        assert_eq!(memory, "CCC MMM");

        let engine = run(plain, &|cache| {
            steps(cache, 0..2);
            ok(toy.pass(cache, &flagged(2, &[0], DC_PASS_COMPUTE), &x(5)).status);
            for (step, wish) in [(3, DC_COMPUTE), (4, DC_SKIP)] {
                ok(cache.begin_pass(&pass_of(step, &[0])));
                assert_eq!(cache.decide(wish), wish);
                let x = x(5);
                for block in 0..3 {
                    if cache.before(block, &x) == DC_COMPUTE {
                        cache.after(block, &x);
                    }
                }
                ok(cache.end_pass());
            }
        });
        assert_eq!(engine, "CsCCs HrEEE");

        let forgotten = run(plain, &|cache| {
            steps(cache, 0..2);
            ok(toy.pass(cache, &flagged(2, &[0], DC_PASS_FORGET), &x(5)).status);
        });
        assert_eq!(forgotten, "CsC HrH");

        let repeated = run(plain, &|cache| {
            steps(cache, 0..2);
            assert_eq!(toy.pass(cache, &pass_of(1, &[0]), &x(5)).status, DC_ERR_STATE);
            steps(cache, 2..3);
        });
        assert_eq!(repeated, "CsCs HrXr");
    }

    #[test]
    fn a_run_says_how_it_went() {
        listen();
        // The changes rise by 0.02 or a little less, and begin anew where they pass 0.05.
        let changing: Vec<_> = (0..10).map(|s| 1.0 + 0.02 * s as f32).collect();
        let (unlike, alike) = ([1.0, 2.0, 4.0, 8.0, 16.0], [1.0; 5]);
        for (label, options, inputs, expected) in [
            (
                "mixed",
                fbcache(0.05),
                &changing[..],
                &[(
                    DC_LOG_INFO,
                    &["10 passes, 6 skipped", "p5 0.0", "p50 0.0", "threshold 0.05"][..],
                )][..],
            ),
            (
                "idle",
                fbcache(0.05),
                &unlike,
                &[
                    (DC_LOG_INFO, &["5 passes, 0 skipped", "p5 1.0000, p50 1.0000"]),
                    (DC_LOG_WARN, &["nothing was skipped", "1.0000", "0.05"]),
                ],
            ),
            (
                "greedy",
                "fbcache".to_owned(),
                &alike,
                &[
                    (DC_LOG_INFO, &["5 passes, 2 skipped", "p95 0.0000"]),
                    (DC_LOG_WARN, &["everything that could be skipped was"]),
                ],
            ),
            (
                "masked",
                "mask,mask=10101".to_owned(),
                &alike,
                &[(DC_LOG_INFO, &["5 passes, 2 skipped"])],
            ),
        ] {
            let cache = Setup::new(3, &options).label(label).create();
            Toy::doubling(3).run_filled(&cache, F32, 5, inputs);
            assert_eq!(said(label), [], "nothing is said before the end");
            ok(cache.end_run());
            let said = said(label);
            assert_eq!(said.len(), expected.len(), "{label}: {said:?}");
            for ((level, text), (expected, parts)) in said.iter().zip(expected) {
                assert_eq!(level, expected, "{label}: {text}");
                for part in *parts {
                    assert!(text.contains(part), "{label}: '{text}' has no '{part}'");
                }
            }
        }
    }

    #[test]
    fn begin_run_and_destroy_end_a_run_aloud_too() {
        listen();
        let cache = Setup::new(3, "fbcache").label("twice").create();
        for _ in 0..2 {
            Toy::doubling(3).run_filled(&cache, F32, 5, &[1.0; 6]);
        }
        let info = || said("twice").iter().filter(|(level, _)| *level == DC_LOG_INFO).count();
        assert_eq!(info(), 1);
        drop(cache);
        assert_eq!(info(), 2);
    }

    #[test]
    fn stats_show_the_change_beside_the_threshold() {
        let cache = Setup::new(3, &fbcache(0.05)).create();
        let inputs: Vec<_> = (0..10).map(|s| 1.0 + 0.02 * s as f32).collect();
        Toy::doubling(3).run_filled(&cache, F32, 5, &inputs);
        let stats = cache.stats();
        assert_eq!(cache.trace().actions(), "CssCssCssC");
        assert_eq!((stats.passes, stats.passes_skipped), (10, 6));
        assert_eq!((stats.blocks_computed, stats.blocks_skipped), (10 + 4 * 2, 6 * 2));
        assert_eq!(stats.threshold, 0.05);
        let mut changes: Vec<_> =
            cache.trace().0.iter().map(|r| r.change).filter(|change| change.is_finite()).collect();
        changes.sort_by(f64::total_cmp);
        assert_eq!(changes.len(), 9);
        assert_eq!(
            [stats.change_p5, stats.change_p50, stats.change_p95],
            [changes[0], changes[4], changes[8]]
        );
        assert!((stats.change_p5 - 0.02 / 1.12).abs() < 1e-3, "{}", stats.change_p5);
    }
}

mod law_2_a_decision_is_a_function_of_data {
    use super::*;

    #[test]
    fn any_number_of_threads_gives_the_same_bytes_and_decisions() {
        // Large enough to be shared out, and no multiple of anything.
        let toy = Toy::new(&[0.5, 0.25, -0.125]);
        for (dtype, len, estimator) in
            [(F32, 300_007, "hold"), (F16, 140_001, "taylor"), (Bf16, 140_003, "newton")]
        {
            let inputs = Inputs::new(dtype, &[&[len], &[777]]);
            let options = format!("{},estimator={estimator}", fbcache(0.1));
            let seen = |threads| {
                let setup = Setup::new(3, &options);
                let cache = setup.with(|e| (e.n_threads, e.measure) = (threads, 0b11)).create();
                inputs.run(&toy, &cache, &[0], 4)
            };
            let one = seen(1);
            assert_eq!(one.actions(), "CssC", "{dtype:?}");
            for threads in [2, 0] {
                assert!(seen(threads) == one, "{threads} threads, {dtype:?}");
            }
        }
    }

    #[test]
    fn the_same_run_again_gives_the_same_bytes_and_decisions() {
        let toy = Toy::new(&[0.5, 0.25, -0.125]);
        for dtype in DTYPES {
            let inputs = Inputs::new(dtype, &[&[2, 61, 64]]);
            for options in [
                fbcache(0.1),
                "fbcache,threshold=0.1,compat=diffusers,history_dtype=f32".to_owned(),
                format!("{},lagged=1,share=1", fbcache(0.1)),
                "mask,mask=110100,estimator=taylor,order=2".to_owned(),
            ] {
                let setup = Setup::new(3, &options).branches(2, 2);
                let (one, other) = (setup.create(), setup.create());
                let first = inputs.run(&toy, &one, &[1, 0], 9);
                assert!(first.actions().contains('s'), "{options}");
                for cache in [&one, &one, &other] {
                    assert!(inputs.run(&toy, cache, &[1, 0], 9) == first, "{options} {dtype:?}");
                }
            }
        }
    }
}

mod law_3_the_library_keeps_copies_never_pointers {
    use super::*;

    /// What an engine does with its buffers.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Habit {
        /// Every block works in place.
        InPlace,
        /// Every block writes to new memory, and what it read is overwritten at once.
        Scribbles,
        /// The same, once before_block(1) has returned: what DC_ENGINE_KEEPS_INPUT promises.
        KeepsInput,
    }

    /// A run whose every tensor is spoilt as soon as its promise allows.
    fn run(habit: Habit, out_apart: bool, dtype: Dtype, estimator: &str) -> Seen {
        let toy = Toy::new(&[0.5, 0.25, -0.125, 0.5]);
        let inputs = Inputs::new(dtype, &[&[5, 31], &[3, 31]]);
        let options = format!("{},back_blocks=1,estimator={estimator}", fbcache(0.1));
        let keeps = u32::from(habit == Habit::KeepsInput) * DC_ENGINE_KEEPS_INPUT;
        let cache = Setup::new(4, &options).with(|engine| engine.flags = keeps).create();
        ok(cache.begin_run(12));
        let (mut outputs, mut answers) = (Vec::new(), Vec::new());
        for step in 0..12 {
            ok(cache.begin_pass(&pass_of(step, &[0])));
            let mut x = inputs.at(step);
            let mut kept = Vec::new();
            let mut blocks = String::new();
            for block in 0..4 {
                let action = if out_apart {
                    let out: Vec<_> = x.iter().map(|x| Tensor::new(dtype, &x.shape)).collect();
                    let before = bytes(&x);
                    let action = cache.before_into(block, &x, &out);
                    assert_eq!(bytes(&x), before, "`in` is not written");
                    // Only the first block of the span receives its result.
                    if action == DC_SKIP && !blocks.contains('s') {
                        x = out;
                    }
                    action
                } else {
                    cache.before(block, &x)
                };
                blocks.push(letter(action));
                if block == 1 {
                    kept.drain(..).for_each(|x: Tensor| x.fill(f32::NAN));
                }
                if action == DC_SKIP {
                    continue;
                }
                let out: Vec<_> = x.iter().map(Tensor::copy).collect();
                toy.block(block as usize, &out);
                match habit {
                    Habit::InPlace => {
                        x.iter().zip(&out).for_each(|(x, out)| x.set(&out.values()));
                        cache.after(block, &x);
                    }
                    Habit::Scribbles => {
                        x.iter().for_each(|x| x.fill(f32::NAN));
                        cache.after(block, &out);
                        x = out.iter().map(Tensor::copy).collect();
                        out.iter().for_each(|out| out.fill(f32::NAN));
                    }
                    Habit::KeepsInput => {
                        cache.after(block, &out);
                        kept.extend(std::mem::replace(&mut x, out));
                    }
                }
            }
            answers.push(Answers { blocks, status: cache.end_pass() });
            outputs.push(bytes(&x));
            x.iter().for_each(|x| x.fill(f32::NAN));
        }
        Seen { outputs, answers, trace: cache.trace().bits() }
    }

    #[test]
    fn an_engine_may_overwrite_whatever_it_showed() {
        for dtype in DTYPES {
            for estimator in ["hold", "taylor"] {
                let plain = run(Habit::InPlace, false, dtype, estimator);
                assert_eq!(plain.actions(), "CssCssCssCss", "{dtype:?}");
                assert_eq!(plain.answers[1], Answers { blocks: "CssC".to_owned(), status: DC_OK });
                for habit in [Habit::InPlace, Habit::Scribbles, Habit::KeepsInput] {
                    for out_apart in [false, true] {
                        let seen = run(habit, out_apart, dtype, estimator);
                        assert!(seen == plain, "{habit:?} {out_apart} {dtype:?} {estimator}");
                    }
                }
            }
        }
    }
}

mod law_4_rails_are_on_by_default {
    use super::*;

    /// Decisions and reasons of a run whose inputs hardly change, or change as they are told.
    fn run(options: &str, n_steps: u32, steps: &[(u32, f32, u32)]) -> String {
        let toy = Toy::doubling(3);
        let cache = Setup::new(3, options).create();
        ok(cache.begin_run(n_steps));
        for (step, input, flags) in steps {
            let x = [Tensor::of(F32, &[*input; 4])];
            ok(toy.pass(&cache, &flagged(*step, &[0], *flags), &x).status);
        }
        format!("{} {}", cache.trace().actions(), cache.trace().reasons())
    }

    fn alike(steps: u32) -> Vec<(u32, f32, u32)> {
        (0..steps).map(|step| (step, 1.0, 0)).collect()
    }

    #[test]
    fn warm_up_last_step_and_streaks() {
        for (n_steps, expected) in [
            // Two steps, or a tenth of the run; then at most four skips in a row.
            (12, "CCssssCssssC WWrrrrcrrrrL"),
            (30, "CCCssssCssssCssssCssssCssssCsC WWWrrrrcrrrrcrrrrcrrrrcrrrrcrL"),
            (3, "CCC WWL"),
            (2, "CC WW"),
            (1, "C W"),
        ] {
            assert_eq!(run("fbcache", n_steps, &alike(n_steps)), expected);
            assert_eq!(run("dbcache,front_blocks=1", n_steps, &alike(n_steps)), expected);
        }
    }

    /// Image-to-image, or the second of two experts: a part of the schedule is a run of its own.
    #[test]
    fn rails_count_from_the_first_step_of_the_run_and_masks_from_that_of_the_schedule() {
        for (options, first_step, end_step, expected) in [
            ("fbcache", 12, 0, "CCssssCC WWrrrrcL"),
            ("fbcache", 12, 17, "CCssC WWrrL"),
            ("fbcache,warmup_steps=3", 0, 5, "CCCsC WWWrL"),
            ("mask,mask=11111111111111010010", 12, 0, "CCsCssCs rrrrrrrr"),
        ] {
            let cache = Setup::new(3, options).create();
            ok(cache.begin_run_as(&dc_run_t { first_step, end_step, ..run_of(20) }));
            for step in first_step..if end_step == 0 { 20 } else { end_step } {
                let x = [Tensor::of(F32, &[1.0; 4])];
                ok(Toy::doubling(3).pass(&cache, &pass_of(step, &[0]), &x).status);
            }
            let seen = format!("{} {}", cache.trace().actions(), cache.trace().reasons());
            assert_eq!(seen, expected, "{options} from {first_step} to {end_step}");
        }
    }

    #[test]
    fn without_a_number_of_steps_the_last_one_is_announced() {
        let mut steps = alike(5);
        assert_eq!(run("fbcache", 0, &steps), "CCsss WWrrr");
        steps[4].2 = DC_PASS_LAST;
        assert_eq!(run("fbcache", 0, &steps), "CCssC WWrrL");
    }

    #[test]
    fn the_changes_of_a_streak_add_up_to_four_thresholds_at_most() {
        // Each computed step is followed by steps that are 0.09 away from it; the threshold is 0.1.
        let input = |step: u32| 1.09f32.powi((step + 3) as i32 / 5);
        let steps: Vec<_> = (0..13).map(|step| (step, input(step), 0)).collect();
        let free = "fbcache,threshold=0.1,max_consecutive=none";
        // 4 * 0.09 is below 0.4, and a fifth skip would pass it: in every streak.
        assert_eq!(run(free, 14, &steps), "CCssssCssssCs WWrrrrarrrrar");
        assert_eq!(
            run(&format!("{free},max_error=0.2"), 14, &steps),
            "CCssCssssCsss WWrrarrrrarrr"
        );
        assert_eq!(run(&format!("{free},max_error=none"), 14, &steps[..6]), "CCssss WWrrrr");
    }

    #[test]
    fn what_is_older_than_eight_steps_is_not_used() {
        let free = "fbcache,max_consecutive=none,max_error=none";
        let expected = "CCssssssssCssssssss WWrrrrrrrrArrrrrrrr";
        assert_eq!(run(free, 0, &alike(19)), expected);
        // Ages are steps, not passes.
        let gap = [(0, 1.0, 0), (1, 1.0, 0), (9, 1.0, 0), (10, 1.0, 0), (11, 1.0, 0)];
        assert_eq!(run("fbcache", 0, &gap), "CCsCs WWrAr");
    }

    #[test]
    fn weights_that_amplify_give_way_to_a_lower_order() {
        let inputs = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let toy = Toy::doubling(3);
        let outputs = |options: &str| {
            let options =
                format!("fbcache,estimator=taylor,order=1,threshold=99,last_steps=0,{options}");
            toy.run(&options, F32, &inputs).1
        };
        // Block 0 makes 2x, the rest adds 6x. One step ahead 2 Y0 - Y1 has a gain of 3; two steps
        // ahead 3 Y0 - 2 Y1 would have 5: what is kept from step 1 is held.
        assert_eq!(
            outputs("max_gain=auto"),
            [8.0, 16.0, 24.0, 8.0 + 12.0, 10.0 + 12.0, 12.0 + 12.0]
        );
        assert_eq!(outputs("max_gain=none"), [8.0, 16.0, 24.0, 32.0, 40.0, 48.0]);
        assert_eq!(outputs("max_gain=5"), [8.0, 16.0, 24.0, 32.0, 10.0 + 12.0, 12.0 + 12.0]);
    }

    #[test]
    fn diffusers_and_schedules_have_none() {
        let all = "Csssssssssssssss Hrrrrrrrrrrrrrrr";
        assert_eq!(run("fbcache,compat=diffusers", 16, &alike(16)), all);
        assert_eq!(run("mask,mask=1000000000000000", 16, &alike(16)).split(' ').next(), {
            all.split(' ').next()
        });
        // What is asked for by name is there all the same.
        let asked = "fbcache,compat=diffusers,max_consecutive=4,last_steps=1";
        assert_eq!(run(asked, 8, &alike(8)), "CssssCsC HrrrrcrL");
    }
}

mod law_6_memory_is_exact {
    use super::*;

    struct Case {
        options: &'static str,
        branches: u32,
        stacked: usize,
        flags: u32,
        measure: u32,
    }

    const PLAIN: Case = Case { options: "fbcache", branches: 1, stacked: 1, flags: 0, measure: 1 };
    const KEEPS: u32 = DC_ENGINE_KEEPS_INPUT;

    fn cases() -> Vec<Case> {
        vec![
            PLAIN,
            Case { flags: KEEPS, ..PLAIN },
            Case { branches: 3, ..PLAIN },
            Case { branches: 2, stacked: 2, ..PLAIN },
            Case { branches: 4, stacked: 2, ..PLAIN },
            Case { branches: 2, stacked: 2, flags: KEEPS, ..PLAIN },
            Case { measure: 0b11, ..PLAIN },
            Case { measure: 0b10, branches: 2, ..PLAIN },
            Case { options: "none", ..PLAIN },
            Case { options: "fbcache,share=1", branches: 3, ..PLAIN },
            Case { options: "fbcache,share=1", branches: 2, stacked: 2, ..PLAIN },
            Case { options: "fbcache,lagged=1", branches: 2, ..PLAIN },
            Case { options: "fbcache,fill=0", ..PLAIN },
            Case { options: "fbcache,compat=diffusers", branches: 2, ..PLAIN },
            Case { options: "fbcache,history_dtype=f32", ..PLAIN },
            Case { options: "fbcache,history_dtype=bf16", branches: 2, ..PLAIN },
            Case { options: "fbcache,history_dtype=f16", branches: 2, stacked: 2, ..PLAIN },
            Case { options: "fbcache,history_dtype=bf16", flags: KEEPS, ..PLAIN },
            Case { options: "fbcache,on_residual=0,history_dtype=bf16", ..PLAIN },
            Case { options: "fbcache,estimator=taylor,order=2", branches: 2, ..PLAIN },
            Case { options: "dbcache,front_blocks=2,back_blocks=1,estimator=newton", ..PLAIN },
            Case { options: "dbcache,front_blocks=2,flags", flags: KEEPS, ..PLAIN },
            Case { options: "mask,mask=1010", branches: 2, ..PLAIN },
            Case { options: "mask,mask=1010,history_dtype=bf16,estimator=taylor,order=4", ..PLAIN },
        ]
    }

    impl Case {
        fn setup(&self) -> Setup {
            let options = self.options.replace(",flags", "");
            let setup = Setup::new(4, &options).branches(self.branches, self.stacked as u32);
            setup.with(|e| (e.flags, e.measure) = (self.flags, self.measure))
        }

        fn toy(&self) -> Toy {
            let keeps_input = self.flags & KEEPS != 0;
            Toy { keeps_input, ..Toy::new(&[0.5, 0.25, -0.125, 0.5]) }
        }

        /// Passes that cover every branch.
        fn passes(&self) -> Vec<Vec<u32>> {
            let all: Vec<_> = (0..self.branches).collect();
            all.chunks(self.stacked).map(<[_]>::to_vec).collect()
        }

        fn inputs(&self, dtype: Dtype) -> Inputs {
            Inputs::new(dtype, &[&[self.stacked, 37, 8], &[self.stacked, 11, 8]])
        }

        fn name(&self, dtype: Dtype) -> String {
            let Case { options, branches, stacked, flags, measure } = self;
            format!("{options}, {branches} by {stacked}, flags {flags}, {measure:#b}, {dtype:?}")
        }

        /// Steps of every branch; answers that nothing failed.
        fn steps(&self, cache: &Cache, inputs: &Inputs, steps: std::ops::Range<u32>) {
            for step in steps {
                for members in self.passes() {
                    let x: Vec<_> =
                        inputs.at(step).iter().map(|x| x.part(0, 0, members.len())).collect();
                    ok(self.toy().pass(cache, &pass_of(step, &members), &x).status);
                }
            }
        }
    }

    /// Every case in every dtype; a stand-in for a GPU gets the dtypes in turn.
    fn each(mut check: impl FnMut(&Case, Dtype, &str)) {
        for (number, case) in cases().iter().enumerate() {
            let dtypes = match device::on_cuda() {
                true => &DTYPES[number % 3..=number % 3],
                false => &DTYPES[..],
            };
            dtypes.iter().for_each(|dtype| check(case, *dtype, &case.name(*dtype)));
        }
    }

    #[test]
    fn with_shapes_all_of_it_is_taken_in_begin_run_to_the_byte() {
        each(|case, dtype, name| {
            let (ledger, inputs) = (Ledger::default(), case.inputs(dtype));
            let setup = case.setup().with(|engine| ledger.serve(engine));
            let shapes = inputs.shapes(case.stacked);
            let needed = setup.memory_needed(&shapes);
            assert_eq!(ledger.books().calls, 0, "{name}: asking takes nothing");

            let cache = setup.create();
            assert_eq!(ledger.books().calls, 0, "{name}: a new cache holds nothing");
            ok(cache.begin_run_on(20, &shapes));
            let taken = ledger.books().clone();
            assert_eq!((taken.asked, taken.held), (needed, needed), "{name}");
            let stats = cache.stats();
            assert_eq!((stats.bytes_held, stats.bytes_peak), (needed, needed), "{name}");
            assert_eq!(stats.allocations, taken.calls as u64, "{name}");

            case.steps(&cache, &inputs, 0..20);
            ok(cache.begin_run_on(20, &shapes));
            case.steps(&cache, &inputs, 0..4);
            ok(cache.begin_run(20));
            case.steps(&cache, &inputs, 0..4);
            let after = ledger.books().clone();
            assert_eq!(
                (after.calls, after.frees),
                (taken.calls, 0),
                "{name}: nothing after begin_run"
            );

            ok(cache.trim());
            assert_eq!((ledger.books().held, cache.stats().bytes_held), (0, 0), "{name}: trimmed");
            case.steps(&cache, &inputs, 4..20);
            assert!(ledger.books().held <= needed, "{name}: {} of {needed}", ledger.books().held);
            drop(cache);
            assert_eq!(ledger.books().held, 0, "{name}: destroyed");
        });
    }

    #[test]
    fn without_shapes_nothing_is_taken_after_the_first_computed_pass_of_each_branch() {
        each(|case, dtype, name| {
            let (ledger, inputs) = (Ledger::default(), case.inputs(dtype));
            let setup = case.setup().with(|engine| ledger.serve(engine));
            let cache = setup.create();
            ok(cache.begin_run(20));
            case.steps(&cache, &inputs, 0..1);
            let taken = ledger.books().clone();
            case.steps(&cache, &inputs, 1..20);
            let after = ledger.books().clone();
            assert_eq!((after.calls, after.frees), (taken.calls, 0), "{name}");
            let needed = setup.memory_needed(&inputs.shapes(case.stacked));
            assert!(after.held <= needed, "{name}: {} of {needed}", after.held);
            assert_eq!(cache.stats().bytes_held, after.held, "{name}");
        });
    }

    #[test]
    fn fbcache_holds_two_image_streams_and_a_text_stream_a_branch_and_a_copy() {
        for (branches, stacked) in [(1, 1), (2, 1), (2, 2), (4, 2), (5, 3), (3, 8)] {
            for dtype in DTYPES {
                let case = Case { branches, stacked, ..PLAIN };
                let shapes = case.inputs(dtype).shapes(stacked);
                let bytes = |k: usize| (shapes[0].1[k].len() * dtype.size()) as u64;
                let (image, text, b) = (bytes(0), bytes(1), u64::from(branches));
                let kept = b * (2 * image + text);
                let copies = image * b.min(stacked as u64);
                assert_eq!(case.setup().memory_needed(&shapes), kept + copies);
                let keeps = Case { flags: KEEPS, ..case };
                assert_eq!(keeps.setup().memory_needed(&shapes), kept);
            }
        }
    }

    #[test]
    fn stats_tell_what_is_held_also_after_a_pass_that_was_cancelled() {
        let (ledger, inputs) = (Ledger::default(), PLAIN.inputs(F32));
        let cache = PLAIN.setup().with(|engine| ledger.serve(engine)).create();
        for end in [Cache::end_run, |cache: &Cache| cache.begin_run(20)] {
            ok(cache.begin_run(20));
            PLAIN.toy().pass_until(usize::MAX, &cache, &pass_of(0, &[0]), &inputs.at(0));
            ok(end(&cache));
            let held = ledger.books().held;
            assert_eq!((held > 0, cache.stats().bytes_held), (true, held));
            ok(cache.trim());
        }
    }

    #[test]
    fn branches_may_have_shapes_of_their_own() {
        let lengths = [40, 12, 40];
        let of = |branch: u32| vec![Tensor::new(F32, &[1, lengths[branch as usize], 8])];
        let shapes = [(1, of(1)), (EACH, of(0))];
        let ledger = Ledger::default();
        let setup = Setup::new(4, "fbcache").branches(3, 1).with(|engine| ledger.serve(engine));
        // Two of a kept value and a reference each, and a copy of either shape in flight.
        let bytes = |len: u64| len * 8 * 4;
        assert_eq!(setup.memory_needed(&shapes), 2 * bytes(40 + 12 + 40) + bytes(40 + 12));
        let cache = setup.create();
        ok(cache.begin_run_on(12, &shapes));
        let taken = ledger.books().clone();
        assert_eq!(taken.held, setup.memory_needed(&shapes));
        for step in 0..12 {
            for branch in 0..3 {
                let x = of(branch);
                x[0].fill(1.0);
                ok(Toy::doubling(4).pass(&cache, &pass_of(step, &[branch]), &x).status);
            }
        }
        assert_eq!(ledger.books().calls, taken.calls);
        assert!((0..3).all(|branch| cache.trace().of(branch).actions() == "CCssssCssssC"));
    }

    #[test]
    fn a_budget_is_a_hard_limit_that_says_both_numbers() {
        each(|case, dtype, name| {
            let inputs = case.inputs(dtype);
            let shapes = inputs.shapes(case.stacked);
            let needed = case.setup().memory_needed(&shapes);
            if needed == 0 {
                return;
            }
            let limited =
                |budget| case.setup().with(|engine| engine.memory_budget = budget).create();
            let enough = limited(needed);
            ok(enough.begin_run_on(6, &shapes));
            case.steps(&enough, &inputs, 0..6);

            let cache = limited(needed - 1);
            assert_eq!(cache.begin_run_on(6, &shapes), DC_ERR_MEMORY, "{name}");
            let text = last_error();
            for number in [needed, needed - 1] {
                assert!(text.contains(&number.to_string()), "{name}: {text}");
            }
            assert_eq!(cache.stats().bytes_held, 0, "{name}");
            let toy = case.toy();
            for step in 0..6 {
                let members = &case.passes()[0];
                let (x, full) = (inputs.at(step), inputs.at(step));
                let answers = toy.pass(&cache, &pass_of(step, members), &x);
                assert_eq!(
                    answers,
                    Answers { blocks: "CCCC".into(), status: DC_ERR_MEMORY },
                    "{name}"
                );
                toy.forward(&full);
                assert_eq!(bytes(&x), bytes(&full), "{name}");
            }
            assert!(cache.trace().reasons().bytes().all(|reason| reason == b'M'), "{name}");
            // Smaller tensors fit.
            let small: Vec<_> = shapes[0].1.iter().map(|x| x.part(1, 0, 1)).collect();
            ok(cache.begin_run_on(6, &[(EACH, small)]));
        });
    }

    #[test]
    fn a_budget_holds_without_shapes_too() {
        each(|case, dtype, name| {
            let inputs = case.inputs(dtype);
            let run = |budget| {
                let ledger = Ledger::default();
                let setup = case.setup().with(|engine| {
                    ledger.serve(engine);
                    engine.memory_budget = budget;
                });
                let cache = setup.create();
                ok(cache.begin_run(6));
                let steps =
                    (0..3).flat_map(|step| case.passes().into_iter().map(move |m| (step, m)));
                let statuses = steps.map(|(step, members)| {
                    let rows = |x: &Tensor| x.part(0, 0, members.len());
                    let x: Vec<_> = inputs.at(step).iter().map(rows).collect();
                    case.toy().pass(&cache, &pass_of(step, &members), &x).status
                });
                let statuses: Vec<_> = statuses.collect();
                let peak = ledger.books().peak;
                (statuses, peak)
            };
            let (statuses, peak) = run(0);
            assert!(statuses.iter().all(|status| *status == DC_OK), "{name}");
            assert_eq!(run(peak), (statuses, peak), "{name}: just enough");
            if peak > 0 {
                let (statuses, less) = run(peak - 1);
                assert!(statuses.contains(&DC_ERR_MEMORY) && less < peak, "{name}: a byte too few");
            }
        });
    }

    /// A run in which every allocation from number `from` on fails, and one after the allocator has
    /// recovered. Did anything fail?
    fn starves(case: &Case, dtype: Dtype, with_shapes: bool, from: usize) -> bool {
        let name = format!("{}, from allocation {from} on", case.name(dtype));
        let (ledger, inputs) = (Ledger::default(), case.inputs(dtype));
        let shapes = inputs.shapes(case.stacked);
        let cache = case.setup().with(|engine| ledger.serve(engine)).create();
        ledger.books().fails_from = Some(from);
        let begun = if with_shapes { cache.begin_run_on(6, &shapes) } else { cache.begin_run(6) };
        let mut starved = begun == DC_ERR_MEMORY;
        assert!(begun == DC_OK || starved && ledger.books().held == 0, "{name}");
        for (step, members) in
            (0..3).flat_map(|step| case.passes().into_iter().map(move |m| (step, m)))
        {
            let rows = |x: &Tensor| x.part(0, 0, members.len());
            let x: Vec<_> = inputs.at(step).iter().map(rows).collect();
            let full: Vec<_> = x.iter().map(Tensor::copy).collect();
            let answers = case.toy().pass(&cache, &pass_of(step, &members), &x);
            if answers.status == DC_OK && begun == DC_OK {
                continue;
            }
            starved = true;
            case.toy().forward(&full);
            let expected = Answers { blocks: "CCCC".into(), status: DC_ERR_MEMORY };
            assert_eq!(answers, expected, "{name}: {}", last_error());
            assert_eq!(bytes(&x), bytes(&full), "{name}");
        }
        ledger.books().fails_from = None;
        ok(cache.begin_run_on(6, &shapes));
        case.steps(&cache, &inputs, 0..6);
        drop(cache);
        assert_eq!(ledger.books().held, 0, "{name}");
        starved
    }

    #[test]
    fn whichever_allocation_fails_the_pass_computes_and_the_cache_stays_usable() {
        for (case, dtype) in cases().iter().zip(DTYPES.into_iter().cycle()) {
            for with_shapes in [true, false] {
                // Each of them; on a stand-in for a GPU, each third.
                let mut from = (0..).step_by(if device::on_cuda() { 3 } else { 1 });
                let fed = from.find(|from| !starves(case, dtype, with_shapes, *from));
                assert_eq!(fed > Some(0), case.options != "none");
            }
        }
    }

    #[test]
    fn other_shapes_in_the_next_run_replace_the_old_memory() {
        let ledger = Ledger::default();
        let setup = Setup::new(4, "fbcache").with(|engine| ledger.serve(engine));
        let cache = setup.create();
        for len in [100, 3, 50, 50, 1] {
            let shapes = [(EACH, vec![Tensor::new(F32, &[len])])];
            ok(cache.begin_run_on(6, &shapes));
            assert_eq!(ledger.books().held, setup.memory_needed(&shapes));
            assert_eq!(ledger.books().peak, 3 * 4 * 100, "never more than the largest needs");
        }
    }
}

mod law_7_nothing_is_process_global {
    use super::*;

    fn setups() -> Vec<(Setup, Dtype)> {
        vec![
            (Setup::new(3, &fbcache(0.1)), F32),
            (Setup::new(3, &fbcache(0.07)), F32),
            (Setup::new(3, "mask,mask=110100,estimator=taylor"), Bf16),
            (Setup::new(3, "fbcache,threshold=0.1,compat=diffusers"), F16),
        ]
    }

    fn toy() -> Toy {
        Toy::new(&[0.5, 0.25, -0.125])
    }

    /// One after the other: what each shows by itself.
    fn apart() -> Vec<Seen> {
        let run = |(setup, dtype): (Setup, Dtype)| {
            Inputs::new(dtype, &[&[200]]).run(&toy(), &setup.create(), &[0], 8)
        };
        setups().into_iter().map(run).collect()
    }

    #[test]
    fn caches_used_in_turn_on_one_thread_do_not_touch_each_other() {
        let apart = apart();
        let caches: Vec<_> = setups()
            .into_iter()
            .map(|(setup, dtype)| (setup.create(), Inputs::new(dtype, &[&[200]])))
            .collect();
        caches.iter().for_each(|(cache, _)| ok(cache.begin_run(8)));
        for step in 0..8 {
            // All passes are open at once: a block is served for each cache before the next one.
            let x: Vec<_> = caches.iter().map(|(_, inputs)| inputs.at(step)).collect();
            caches.iter().for_each(|(cache, _)| ok(cache.begin_pass(&pass_of(step, &[0]))));
            for block in 0..3 {
                for ((cache, _), x) in caches.iter().zip(&x) {
                    if cache.before(block, x) == DC_COMPUTE {
                        toy().block(block as usize, x);
                        cache.after(block, x);
                    }
                }
            }
            for (((cache, _), x), apart) in caches.iter().zip(&x).zip(&apart) {
                ok(cache.end_pass());
                assert!(bytes(x) == apart.outputs[step as usize], "step {step}");
            }
        }
        for ((cache, _), apart) in caches.iter().zip(&apart) {
            assert_eq!(cache.trace().bits(), apart.trace);
        }
    }

    #[test]
    fn caches_used_at_once_by_many_threads_do_not_touch_each_other() {
        let apart = apart();
        std::thread::scope(|scope| {
            for (seen, (setup, dtype)) in apart.iter().zip(setups()) {
                for _ in 0..2 {
                    let cache = setup.create();
                    scope.spawn(move || {
                        for _ in 0..5 {
                            let again = Inputs::new(dtype, &[&[200]]).run(&toy(), &cache, &[0], 8);
                            assert!(again == *seen);
                        }
                    });
                }
            }
        });
    }

    #[test]
    fn any_number_of_caches_costs_no_tensor_memory() {
        let ledger = Ledger::default();
        let setup = Setup::new(57, "fbcache,estimator=taylor,order=4").branches(8, 8);
        let setup = setup.with(|engine| ledger.serve(engine));
        let caches: Vec<_> = (0..1000).map(|_| setup.create()).collect();
        caches.iter().for_each(|cache| ok(cache.begin_run(20)));
        assert!(caches.iter().all(|cache| cache.stats().bytes_peak == 0));
        drop(caches);
        assert_eq!(ledger.books().calls, 0);
    }

    #[test]
    fn errors_are_of_the_thread_that_made_them() {
        let cache = Setup::new(3, "fbcache").create();
        assert_eq!(cache.end_pass(), DC_ERR_STATE);
        let mine = last_error();
        assert!(mine.contains("begin_pass"), "{mine}");
        let theirs = std::thread::spawn(last_error).join().expect("no panic");
        assert_eq!((theirs.as_str(), last_error()), ("", mine));
    }
}

mod law_8_state_never_leaks_between_runs {
    use super::*;

    const METHODS: [&str; 5] = [
        "fbcache,threshold=0.1,warmup_steps=0",
        "fbcache,threshold=0.1,warmup_steps=1,lagged=1,estimator=taylor,order=2",
        "dbcache,front_blocks=1,back_blocks=1,max_total=4",
        "mask,mask=11010010,estimator=newton,order=2",
        "fbcache,threshold=0.1,share=1,on_residual=0",
    ];

    fn toy() -> Toy {
        Toy::new(&[0.5, 0.25, -0.125, 0.5])
    }

    fn inputs() -> Inputs {
        Inputs::new(F32, &[&[2, 40], &[2, 8]])
    }

    /// Calls of a pass that computes everything, without end_pass.
    const CALLS: usize = 1 + 2 * 4;

    #[test]
    fn begin_run_cancels_at_any_point_and_what_follows_is_as_on_a_new_cache() {
        for method in METHODS {
            let setup = Setup::new(4, method).branches(2, 2);
            let fresh = inputs().run(&toy(), &setup.create(), &[0, 1], 8);
            assert!(fresh.actions().contains('s'), "{method}: {}", fresh.actions());
            for calls in 0..=CALLS {
                for (steps, before) in [(0, &[1][..]), (1, &[0, 1]), (8, &[1]), (8, &[0, 1])] {
                    let cache = setup.create();
                    // Another run with other values, and perhaps other shapes and branches.
                    ok(cache.begin_run(20));
                    let n = before.len();
                    let others = Inputs::new(F32, &[&[n, 40], &[n, 8 * n]]);
                    for step in 0..steps {
                        ok(toy().pass(&cache, &pass_of(step, before), &others.at(step + 5)).status);
                    }
                    toy().pass_until(calls, &cache, &pass_of(steps, before), &others.at(steps + 5));
                    let seen = inputs().run(&toy(), &cache, &[0, 1], 8);
                    assert!(seen == fresh, "{method}, {steps} steps and {calls} calls before");
                }
            }
        }
    }

    #[test]
    fn begin_run_forgets_what_the_cancelled_pass_was_answered() {
        for method in [&fbcache(9.0), "mask,mask=10"] {
            let cache = Setup::new(4, method).create();
            ok(cache.begin_run(20));
            ok(toy().pass(&cache, &pass_of(0, &[0]), &inputs().at(0)).status);
            toy().pass_until(CALLS, &cache, &pass_of(1, &[0]), &inputs().at(1));
            assert_eq!(cache.decide(DC_UNDECIDED), DC_SKIP);
            ok(cache.begin_run(20));
            // An engine that forgets begin_pass: no result is in place anywhere.
            assert_eq!(cache.decide(DC_UNDECIDED), DC_COMPUTE, "{method}");
            let x = inputs().at(2);
            assert!((0..4).all(|block| cache.before(block, &x) == DC_COMPUTE), "{method}");
            assert_eq!(cache.end_pass(), DC_ERR_STATE);
        }
    }

    #[test]
    fn a_pass_cancelled_at_any_point_leaves_nothing_half_done() {
        for method in METHODS {
            for calls in 1..=CALLS {
                let cache = Setup::new(4, method).create();
                ok(cache.begin_run(20));
                for step in 0..2 {
                    ok(toy().pass(&cache, &pass_of(step, &[0]), &inputs().at(step)).status);
                }
                // An engine that gives up, and does not say so.
                let garbage = inputs().at(15);
                toy().pass_until(calls, &cache, &flagged(2, &[0], DC_PASS_COMPUTE), &garbage);

                let (x, full) = (inputs().at(3), inputs().at(3));
                let answers = toy().pass(&cache, &pass_of(3, &[0]), &x);
                toy().forward(&full);
                let expected = Answers { blocks: "CCCC".into(), status: DC_ERR_STATE };
                assert_eq!(answers, expected, "{method} {calls}");
                assert_eq!(bytes(&x), bytes(&full), "{method} {calls}");

                // From here on it is as if the step had not been.
                for step in 4..9 {
                    let (x, full) = (inputs().at(step), inputs().at(step));
                    ok(toy().pass(&cache, &pass_of(step, &[0]), &x).status);
                    toy().forward(&full);
                    for (x, full) in x.iter().zip(&full) {
                        for (x, full) in x.values().iter().zip(full.values()) {
                            assert!((x - full).abs() < 1.0, "{method} {calls}: {x} for {full}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_cancelled_pass_tells_the_rules_nothing() {
        let toy = Toy::doubling(3);
        let cache = Setup::new(3, &format!("{},max_total=3", fbcache(0.1))).create();
        let x = || [Tensor::of(F32, &[1.0; 5])];
        ok(cache.begin_run(20));
        ok(toy.pass(&cache, &pass_of(0, &[0]), &x()).status);
        for step in 1..8 {
            // A skip that was answered and never ended does not count.
            let answers = toy.pass_until(usize::MAX, &cache, &pass_of(step, &[0]), &x());
            assert_eq!(answers, if step == 1 { "Css" } else { "CCC" });
        }
        assert_eq!(cache.end_pass(), DC_ERR_STATE);
        let steps: Vec<_> =
            (8..13).map(|step| toy.pass(&cache, &pass_of(step, &[0]), &x()).blocks).collect();
        assert_eq!(steps, ["Css", "Css", "Css", "CCC", "CCC"], "{}", cache.trace().reasons());
    }

    #[test]
    fn other_shapes_or_dtypes_start_a_branch_again_and_no_other() {
        for method in ["fbcache", "mask", "taylor"] {
            let options = match method {
                "fbcache" => fbcache(0.5),
                "mask" => "mask,mask=1000000".to_owned(),
                _ => format!("{},estimator=taylor,history_dtype=f32", fbcache(0.5)),
            };
            for (name, other) in [
                ("longer", Tensor::new(F32, &[41])),
                ("shorter", Tensor::new(F32, &[39])),
                ("turned", Tensor::new(F32, &[8, 5])),
                ("half", Tensor::new(F16, &[40])),
                ("empty", Tensor::new(F32, &[0])),
            ] {
                let (toy, cache) = (toy(), Setup::new(4, &options).branches(2, 1).create());
                ok(cache.begin_run(9));
                for step in 0..7 {
                    for branch in 0..2 {
                        let changed = branch == 0 && step >= 3;
                        let x = if changed { other.copy() } else { Tensor::new(F32, &[40]) };
                        x.fill(1.0);
                        let full = [x.copy()];
                        toy.forward(&full);
                        let status =
                            toy.pass(&cache, &pass_of(step, &[branch]), from_ref(&x)).status;
                        let expected = if changed && step == 3 { DC_ERR_SHAPE } else { DC_OK };
                        assert_eq!(status, expected, "{method} {name}: {}", last_error());
                        assert_close(&x.values(), &full[0].values(), x.dtype);
                    }
                }
                let (changed, other) = (cache.trace().of(0), cache.trace().of(1));
                assert_eq!(other.actions(), "Cssssss", "{method} {name}");
                // Nothing at all has no change to measure: 0/0 computes.
                let (actions, reasons) = match (name, method) {
                    ("empty", "fbcache" | "taylor") => ("CssCCCC", "HrrSNNN"),
                    _ => ("CssCsss", "HrrSrrr"),
                };
                assert_eq!(changed.actions(), actions, "{method} {name}");
                if method != "mask" {
                    assert_eq!(changed.reasons(), reasons, "{method} {name}");
                }
            }
        }
    }

    #[test]
    fn extents_of_one_are_no_change_of_shape() {
        let (toy, cache) = (toy(), Setup::new(4, &fbcache(0.5)).create());
        ok(cache.begin_run(9));
        for (step, shape) in
            (0..).zip([&[8, 5][..], &[1, 8, 5], &[8, 1, 5, 1], &[1, 1, 1, 1, 8, 5]])
        {
            let x = [Tensor::new(F32, shape)];
            x[0].fill(1.0);
            ok(toy.pass(&cache, &pass_of(step, &[0]), &x).status);
        }
        assert_eq!(cache.trace().actions(), "Csss");
    }

    #[test]
    fn forget_drops_what_its_branches_hold_and_no_more() {
        for (method, expected) in [(fbcache(0.5), "CsCss"), ("mask,mask=10000".into(), "CsCss")] {
            let cache = Setup::new(4, &method).branches(2, 1).create();
            ok(cache.begin_run(9));
            for step in 0..5 {
                for branch in 0..2 {
                    let forgets = branch == 0 && step == 2;
                    let flags = if forgets { DC_PASS_FORGET } else { 0 };
                    // Other weights: what block 2 adds has changed sides.
                    let toy = Toy::new(&[0.5, 0.25, if step < 2 { -0.125 } else { 0.125 }, 0.5]);
                    let (x, full) = (inputs().at(0), inputs().at(0));
                    ok(toy.pass(&cache, &flagged(step, &[branch], flags), &x).status);
                    toy.forward(&full);
                    if branch == 0 {
                        assert_close(&x[0].values(), &full[0].values(), F32);
                    }
                }
            }
            assert_eq!(cache.trace().of(0).actions(), expected, "{method}");
            assert_eq!(cache.trace().of(1).actions(), "Cssss", "{method}");
        }
    }

    #[test]
    fn a_late_branch_computes_first_and_disturbs_no_other() {
        let setup = Setup::new(4, &fbcache(0.1)).branches(3, 1);
        let alone = inputs().run(&toy(), &setup.create(), &[0], 9);
        let cache = setup.create();
        ok(cache.begin_run(9));
        for step in 0..9 {
            let x = inputs().at(step);
            ok(toy().pass(&cache, &pass_of(step, &[0]), &x).status);
            assert!(bytes(&x) == alone.outputs[step as usize]);
            for (branch, from) in [(1, 4), (2, 7)] {
                if step >= from {
                    let x = inputs().at(step);
                    ok(toy().pass(&cache, &pass_of(step, &[branch]), &x).status);
                }
            }
        }
        assert_eq!(cache.trace().of(0).bits(), alone.trace);
        assert_eq!(cache.trace().of(0).actions(), "CssCssCss");
        let late = |branch| {
            let trace = cache.trace().of(branch);
            format!("{} {}", trace.actions(), trace.reasons())
        };
        assert_eq!((late(1).as_str(), late(2).as_str()), ("CssCs Hrrrr", "Cs Hr"));
    }

    #[test]
    fn an_absent_branch_ages() {
        let cache = Setup::new(4, "fbcache,max_age=3").branches(2, 1).create();
        ok(cache.begin_run(0));
        for step in 0..9 {
            for branch in 0..2 {
                // Branch 1 is away for steps 3 to 6.
                if branch == 0 || !(3..7).contains(&step) {
                    ok(toy().pass(&cache, &pass_of(step, &[branch]), &inputs().at(0)).status);
                }
            }
        }
        assert_eq!(cache.trace().of(0).reasons(), "WWrrrArrr");
        assert_eq!(cache.trace().of(1).reasons(), "WWrAr");
    }
}

mod law_9_the_cpu_backend_defines_the_numbers {
    use super::*;

    // The specification in `ops/mod.rs`, one element at a time.

    fn rounded(dtype: Dtype, x: f32) -> f32 {
        match dtype {
            F32 => x,
            F16 => f16::from_f32(x).to_f32(),
            Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// `x + sum_j c_j y_j`
    fn combined(x: Option<&[f32]>, terms: &[(f64, Vec<f32>)], out: Dtype, len: usize) -> Vec<f32> {
        let element = |i: usize| {
            let mut sum = x.map(|x| x[i]);
            for (c, y) in terms {
                let product = *c as f32 * y[i];
                sum = Some(sum.map_or(product, |sum| sum + product));
            }
            rounded(out, sum.expect("an x or a term"))
        };
        (0..len).map(element).collect()
    }

    fn subtracted(x: &[f32], base: &[f32], out: Dtype) -> Vec<f32> {
        x.iter().zip(base).map(|(x, base)| rounded(out, x - base)).collect()
    }

    /// `[sum |u - v|, sum |u|, sum |v|]`
    fn sums(u: &[f32], v: &[f32], rounded_to: Option<Dtype>) -> [f64; 3] {
        let mut sums = [0f64; 3];
        for (u, v) in u.chunks(BLOCK).zip(v.chunks(BLOCK)) {
            let mut lanes = [[0f32; LANES]; 3];
            for (i, (u, v)) in u.iter().zip(v).enumerate() {
                let d = rounded_to.map_or(u - v, |dtype| rounded(dtype, u - v));
                for (lanes, term) in lanes.iter_mut().zip([d, *u, *v]) {
                    lanes[i % LANES] += term.abs();
                }
            }
            for (sum, lanes) in sums.iter_mut().zip(lanes) {
                let mut lanes = lanes.map(f64::from);
                let mut half = LANES / 2;
                while half > 0 {
                    (0..half).for_each(|k| lanes[k] += lanes[k + half]);
                    half /= 2;
                }
                *sum += lanes[0];
            }
        }
        sums
    }

    /// Bit for bit, but any NaN is as good as another.
    fn same(got: &[f32], expected: &[f32]) -> bool {
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        got.len() == expected.len() && got.iter().zip(expected).all(same)
    }

    /// 1 to 70, and around the edges of blocks.
    fn lengths() -> impl Iterator<Item = usize> {
        (1..=70).chain([1023, 1024, 1025, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 33])
    }

    /// A tensor of `len` elements: by turns dense, unaligned, with gaps between its elements, and
    /// with gaps between its rows.
    fn scattered(dtype: Dtype, len: usize, turn: usize) -> Tensor {
        let rows = if len.is_multiple_of(2) { 2 } else { 1 };
        let columns = len / rows;
        match turn % 4 {
            0 => Tensor::new(dtype, &[rows, columns]),
            1 => Tensor::unaligned(dtype, &[rows, columns], 2 * turn + 1),
            2 => Tensor::unaligned(dtype, &[rows, columns, 3], turn).part(2, turn % 3, 1),
            _ => Tensor::unaligned(dtype, &[rows, columns + 5], turn).part(1, 2, columns),
        }
    }

    /// Noise with everything in it that is hard to round or to add.
    fn hard(seed: u64, len: usize) -> Vec<f32> {
        let special = [
            0.0,
            -0.0,
            1e-42,
            -3e-5,
            65504.0,
            65520.0,
            7e4,
            1.003_906_3,
            3.3e38,
            1.0 + f32::EPSILON,
        ];
        let value = |(i, x): (usize, f32)| match i as u64 % 7 == seed % 7 {
            true => special[(i as u64 + seed) as usize % special.len()],
            false => x * (1 << (i % 9)) as f32,
        };
        noise(seed, len).into_iter().enumerate().map(value).collect()
    }

    fn filled(dtype: Dtype, len: usize, turn: usize) -> Tensor {
        let tensor = scattered(dtype, len, turn);
        tensor.set(&hard(turn as u64, len));
        tensor
    }

    /// `None` where tensors are out of its reach: `ops.rs` holds the other backend against it.
    fn host() -> Option<Host> {
        (!device::on_cuda()).then(|| Host::new(Memory::new(None, 0), 1))
    }

    #[test]
    fn copy_subtract_and_combine_equal_the_plain_loop_bit_for_bit() {
        let weights = [1.0, -0.79167, 1.625, 0.16667];
        let Some(mut host) = host() else { return };
        for (turn, len) in lengths().enumerate() {
            for to in DTYPES {
                for from in DTYPES {
                    let out = scattered(to, len, turn + 1);
                    let x = filled(from, len, turn);
                    host.copy(out.view(), x.view());
                    let name = format!("{len} elements, {from:?} to {to:?}");
                    assert!(
                        same(&out.values(), &combined(Some(&x.values()), &[], to, len)),
                        "{name}"
                    );

                    let base = filled(to, len, turn + 2);
                    host.subtract(out.view(), x.view(), base.view());
                    let expected = subtracted(&x.values(), &base.values(), to);
                    assert!(same(&out.values(), &expected), "{name}");
                    host.subtract(base.view(), x.view(), base.view());
                    assert!(same(&base.values(), &expected), "{name}, in place");

                    for k in 0..=4 {
                        let kept: Vec<_> =
                            (0..k).map(|j| filled(from, len, turn + j + 3)).collect();
                        let terms: Vec<_> =
                            weights.into_iter().zip(kept.iter().map(Tensor::view)).collect();
                        let values: Vec<_> =
                            weights.into_iter().zip(kept.iter().map(Tensor::values)).collect();
                        let base = filled(to, len, turn + 2);
                        let expected = combined(Some(&base.values()), &values, to, len);
                        host.combine(out.view(), Some(base.view()), &terms, Rounding::Once);
                        assert!(same(&out.values(), &expected), "{name}, {k} terms");
                        host.combine(base.view(), Some(base.view()), &terms, Rounding::Once);
                        assert!(same(&base.values(), &expected), "{name}, {k} terms in place");
                        if k > 0 {
                            host.combine(out.view(), None, &terms, Rounding::Once);
                            let expected = combined(None, &values, to, len);
                            assert!(same(&out.values(), &expected), "{name}, {k} terms alone");
                        }
                    }
                }
            }
        }
    }

    /// How much larger a lane may be than its neighbour: all of them fit the dtype.
    fn octaves(dtype: Dtype) -> i32 {
        if dtype == F16 { 1 } else { 4 }
    }

    #[test]
    fn measure_equals_the_plain_loop_bit_for_bit() {
        let Some(mut host) = host() else { return };
        for (turn, len) in lengths().enumerate() {
            for dtype in DTYPES {
                for rounds in [false, true] {
                    let name = format!("{len} elements, {dtype:?}, rounded {rounds}");
                    // Of magnitudes so far apart that the order of the sums shows.
                    let magnitude = |i: usize| 2f32.powi((i * 7 % 32) as i32 * octaves(dtype) - 24);
                    let tensor = |k| {
                        let tensor = scattered(dtype, len, turn + k);
                        let values = noise((turn + k) as u64, len).into_iter().enumerate();
                        tensor.set(&values.map(|(i, x)| x * magnitude(i)).collect::<Vec<_>>());
                        tensor
                    };
                    let (x, base, earlier) = (tensor(0), tensor(1), tensor(2));
                    let mut measured = |base: Option<&Tensor>, keep: Option<&Tensor>| {
                        let base = base.map(Tensor::view);
                        let keep = keep.map(Tensor::view);
                        let (x, earlier) = (x.view(), earlier.view());
                        let pending =
                            host.measure(&[Comparison { x, base, earlier, keep }], rounds);
                        let change = host.read(pending);
                        assert_eq!(change.count, len as f64, "{name}");
                        [change.difference, change.value, change.reference]
                    };
                    let rounded_to = rounds.then_some(dtype);
                    let expected = sums(&x.values(), &earlier.values(), rounded_to);
                    assert_eq!(measured(None, None), expected, "{name}");

                    let u = subtracted(&x.values(), &base.values(), dtype);
                    let expected = sums(&u, &earlier.values(), rounded_to);
                    assert_eq!(measured(Some(&base), None), expected, "{name}, a residual");
                    assert_eq!(measured(Some(&base), Some(&base)), expected, "{name}, kept");
                    assert!(same(&base.values(), &u), "{name}");
                }
            }
        }
    }

    #[test]
    fn an_unchanged_value_measures_exactly_nothing() {
        let Some(mut host) = host() else { return };
        for dtype in DTYPES {
            for len in [70, 2 * BLOCK + 33] {
                let (x, base) = (filled(dtype, len, 1), filled(dtype, len, 2));
                x.map(|x| x.clamp(-100.0, 100.0));
                base.map(|x| x.clamp(-100.0, 100.0));
                let earlier = Tensor::new(dtype, &[len]);
                host.subtract(earlier.view(), x.view(), base.view());
                let comparison = Comparison {
                    x: x.view(),
                    base: Some(base.view()),
                    earlier: earlier.view(),
                    keep: None,
                };
                let pending = host.measure(&[comparison], false);
                let change = host.read(pending);
                assert_eq!((change.difference, change.ratio()), (0.0, 0.0), "{dtype:?}");
            }
        }
    }

    /// FBCache end to end: block 0 and the rest of the model are noise.
    fn fbcache_on_noise(dtype: Dtype, kept: Option<Dtype>, len: usize, turn: usize) {
        let name = format!("{dtype:?} kept in {kept:?}, {len} elements");
        let history = match kept {
            None => "tensor",
            Some(F32) => "f32",
            Some(F16) => "f16",
            Some(Bf16) => "bf16",
        };
        let cache = Setup::new(3, &format!("{},history_dtype={history}", fbcache(0.1))).create();
        ok(cache.begin_run(6));
        let (mut reference, mut residual) = (None::<Vec<f32>>, Vec::new());
        let mut changes = Vec::new();
        for step in 0..6 {
            let tensor = |seed: u64, drift: f32| {
                let tensor = scattered(dtype, len, turn + seed as usize);
                let drifted = noise(seed, len).into_iter().zip(noise(seed + 9, len));
                tensor.set(&drifted.map(|(a, b)| a + drift * step as f32 * b).collect::<Vec<_>>());
                tensor
            };
            let (x, h, y) = (tensor(1, 0.3), tensor(2, 0.04), tensor(3, 0.5));
            // Block 0 adds a little noise that drifts.
            h.set(&h.values().iter().zip(x.values()).map(|(h, x)| h + x).collect::<Vec<_>>());
            let front = subtracted(&h.values(), &x.values(), dtype);
            let change = reference.as_ref().map(|reference| {
                let [difference, _, value] = sums(&front, reference, None);
                difference / value
            });
            changes.push(change.unwrap_or(f64::NAN));

            ok(cache.begin_pass(&pass_of(step, &[0])));
            assert_eq!(cache.before(0, from_ref(&x)), DC_COMPUTE);
            cache.after(0, from_ref(&h));
            let out = scattered(dtype, len, turn + 7);
            let entered = [h.clone()];
            let action = cache.before_into(1, &entered, from_ref(&out));
            assert_eq!(action == DC_SKIP, change.is_some_and(|change| change < 0.1), "{name}");
            if action == DC_SKIP {
                let expected = combined(Some(&h.values()), &[(1.0, residual.clone())], dtype, len);
                assert!(same(&out.values(), &expected), "{name}, step {step}");
            } else {
                cache.after(2, from_ref(&y));
                residual = subtracted(&y.values(), &h.values(), kept.unwrap_or(dtype));
                reference = Some(front);
            }
            ok(cache.end_pass());
        }
        let traced: Vec<_> = cache.trace().0.iter().map(|record| record.change).collect();
        let agree = traced.iter().zip(&changes).all(|(ours, exact)| is_sum(*ours, *exact));
        assert!(agree, "{name}: {traced:?}, {changes:?}");
    }

    #[test]
    fn fbcache_equals_the_plain_loop_at_every_length_dtype_and_alignment() {
        for (turn, len) in lengths().enumerate() {
            for dtype in DTYPES {
                fbcache_on_noise(dtype, None, len, turn);
                fbcache_on_noise(dtype, Some(DTYPES[turn % 3]), len, turn);
            }
        }
    }

    #[test]
    fn a_history_in_another_dtype_costs_one_rounding_to_it() {
        let toy = Toy::new(&[0.5, 0.25, -0.125]);
        for (dtype, kept, bytes) in
            [(F32, "bf16", 2), (F32, "f16", 2), (Bf16, "f32", 4), (F16, "f32", 4), (F16, "bf16", 2)]
        {
            let inputs = Inputs::new(dtype, &[&[1000]]);
            let options = format!("fbcache,threshold=9,warmup_steps=1,history_dtype={kept}");
            let setup = Setup::new(3, &options);
            // The reference and the copy of the input stay in the tensors' own dtype.
            let needed = setup.memory_needed(&inputs.shapes(1));
            assert_eq!(needed, 1000 * (bytes + 2 * dtype.size() as u64), "{dtype:?} {kept}");
            let cache = setup.create();
            ok(cache.begin_run(5));
            let mut residual = Vec::new();
            for step in 0..4 {
                let (x, h) = (inputs.at(step), inputs.at(step));
                toy.block(0, &h);
                let answers = toy.pass(&cache, &pass_of(step, &[0]), &x);
                let h = h[0].values();
                if step == 0 {
                    residual = x[0].values().iter().zip(&h).map(|(y, h)| y - h).collect();
                    continue;
                }
                assert_eq!(answers.blocks, "Css");
                let allowed =
                    tolerance(if kept == "bf16" { Bf16 } else { F16 }).max(tolerance(dtype));
                for ((got, h), residual) in x[0].values().iter().zip(&h).zip(&residual) {
                    let error = (got - (h + residual)).abs();
                    let scale = h.abs() + residual.abs();
                    assert!(error <= allowed * scale, "{dtype:?} {kept}: {error} of {scale}");
                }
            }
        }
    }

    #[test]
    fn views_of_a_joint_buffer_give_the_bytes_of_dense_tensors() {
        // Text rows 0..3 and image rows 3..10 of each of two stacked branches.
        let (text, image, width) = (3, 7, 24);
        let toy = Toy::new(&[0.5, 0.25, -0.125]);
        for dtype in DTYPES {
            for options in [
                fbcache(0.1),
                format!("{},estimator=taylor,history_dtype=f32", fbcache(0.1)),
                "mask,mask=1100".to_owned(),
            ] {
                let setup = Setup::new(3, &options).branches(2, 2).with(|e| e.measure = 0b11);
                let inputs = Inputs::new(dtype, &[&[2, text, width], &[2, image, width]]);
                let dense = inputs.run(&toy, &setup.create(), &[1, 0], 6);
                assert!(dense.actions().contains('s'), "{options}");

                let cache = setup.create();
                ok(cache.begin_run(6));
                for step in 0..6 {
                    let joint = Tensor::unaligned(dtype, &[2, text + image, width + 1], 2);
                    let joint = joint.part(2, 0, width);
                    let parts = [joint.part(1, 0, text), joint.part(1, text, image)];
                    parts.iter().zip(inputs.at(step)).for_each(|(to, from)| to.set(&from.values()));
                    let answers = toy.pass(&cache, &pass_of(step, &[1, 0]), &parts);
                    let (step, name) = (step as usize, format!("{dtype:?} {options} {step}"));
                    assert_eq!(answers, dense.answers[step], "{name}");
                    assert!(bytes(&parts) == dense.outputs[step], "{name}");
                }
                let numbers = |record: [u64; 7]| record.map(f64::from_bits);
                for (ours, dense) in cache.trace().bits().into_iter().zip(dense.trace) {
                    assert_eq!(ours[..4], dense[..4], "{dtype:?} {options}");
                    let pairs = numbers(ours).into_iter().zip(numbers(dense)).skip(4);
                    let agree = pairs.into_iter().all(|(ours, dense)| is_sum(ours, dense));
                    assert!(agree, "{dtype:?} {options}: {ours:?}, {dense:?}");
                }
            }
        }
    }
}

mod a_callback_that_panics {
    use super::*;

    fn x() -> [Tensor; 1] {
        [Tensor::of(F32, &[1.0; 9])]
    }

    /// The cache is broken: everything computes, nothing is skipped, and every call says why.
    fn assert_only_computes(cache: &Cache) {
        let toy = Toy::doubling(3);
        assert_eq!(cache.begin_run(5), DC_ERR_INTERNAL);
        for step in 0..3 {
            let (x, full) = (x(), x());
            let answers = toy.pass(cache, &pass_of(step, &[0]), &x);
            assert_eq!(answers, Answers { blocks: "CCC".into(), status: DC_ERR_INTERNAL });
            toy.forward(&full);
            assert_eq!(bytes(&x), bytes(&full));
        }
        assert!(last_error().contains("the allocator panics"), "{}", last_error());
        assert_eq!(cache.peek(Some(&pass_of(9, &[0])), 1), DC_COMPUTE);
        assert_eq!(cache.stats().first_error, DC_ERR_INTERNAL);
    }

    #[test]
    fn is_an_error_code_in_begin_run() {
        for call in 0..3 {
            let ledger = Ledger::default();
            let cache = Setup::new(3, "fbcache").with(|engine| ledger.serve(engine)).create();
            ledger.books().panics_at = Some(call);
            assert_eq!(cache.begin_run_on(5, &[(EACH, x().to_vec())]), DC_ERR_INTERNAL);
            assert_only_computes(&cache);
            drop(cache);
            assert_eq!(ledger.books().held, 0, "what was held has been given back");
        }
    }

    #[test]
    fn discards_the_pass_it_broke() {
        let toy = Toy::doubling(3);
        for call in 0.. {
            let ledger = Ledger::default();
            let cache = Setup::new(3, &fbcache(0.1)).with(|engine| ledger.serve(engine)).create();
            ledger.books().panics_at = Some(call);
            ok(cache.begin_run(5));
            let statuses: Vec<_> =
                (0..3).map(|step| toy.pass(&cache, &pass_of(step, &[0]), &x()).status).collect();
            let panicked = ledger.books().calls > call;
            if !panicked {
                assert_eq!(statuses, [DC_OK; 3]);
                assert!(call >= 3, "an input, a reference and a history");
                break;
            }
            let broke =
                statuses.iter().position(|status| *status != DC_OK).expect("one pass broke");
            assert_eq!(statuses[broke], DC_ERR_DISCARD);
            assert!(statuses[broke + 1..].iter().all(|status| *status == DC_ERR_INTERNAL));
            assert_only_computes(&cache);
            drop(cache);
            assert_eq!(ledger.books().held, 0, "what was held has been given back");
        }
    }

    #[test]
    fn in_reduce_is_no_different() {
        unsafe extern "C-unwind" fn reduce(
            _: *mut std::ffi::c_void,
            _: *mut f64,
            _: usize,
            _: *mut std::ffi::c_void,
        ) -> i32 {
            panic!("the allocator panics, says reduce")
        }
        let setup = Setup::new(3, &fbcache(0.1)).with(|engine| engine.reduce = Some(reduce));
        let cache = setup.create();
        ok(cache.begin_run(5));
        assert_eq!(Toy::doubling(3).pass(&cache, &pass_of(0, &[0]), &x()).status, DC_ERR_DISCARD);
        assert_only_computes(&cache);
    }

    /// The other tests of this module once more, by themselves.
    #[test]
    fn says_nothing_on_stderr() {
        let own = std::env::current_exe().expect("this test has a path");
        for test in [
            "is_an_error_code_in_begin_run",
            "discards_the_pass_it_broke",
            "in_reduce_is_no_different",
        ] {
            let name = format!("a_callback_that_panics::{test}");
            let mut command = Command::new(&own);
            command.args(["--exact", &name, "--nocapture"]).env_remove("DIFFCACHE_LOG");
            let output = command.output().expect("it starts");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert!(text(&output.stdout).contains("1 passed"), "{}", text(&output.stdout));
            assert_eq!(text(&output.stderr), "", "{test}");
        }
    }
}
