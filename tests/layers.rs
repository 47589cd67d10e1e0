//! The methods that work on layers and on guidance, on values whose every number can be worked out
//! by hand: decisions and outputs recorded from the originals, and each quirk of theirs beside what
//! this library does instead.
mod support;

use diffcache::ops::Dtype::{self, Bf16, F16, F32};
use support::ranks::Collective;
use support::*;

/// One layer of one branch, and the model's timesteps.
struct Run<'a> {
    options: &'a str,
    kind: dc_kind_t,
    timesteps: &'a [f32],
    dtype: Dtype,
}

/// Timesteps that no window minds.
fn steps(n: usize) -> Vec<f32> {
    (0..n).map(|step| 500.0 - step as f32).collect()
}

impl<'a> Run<'a> {
    fn new(options: &'a str, timesteps: &'a [f32]) -> Self {
        Self { options, kind: DC_KIND_SPATIAL, timesteps, dtype: F32 }
    }

    fn of_kind(self, kind: dc_kind_t) -> Self {
        Self { kind, ..self }
    }

    fn of_dtype(self, dtype: Dtype) -> Self {
        Self { dtype, ..self }
    }

    fn cache(&self) -> Cache {
        let setup = Setup::new(1, self.options).with(|engine| {
            (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS | DC_HOOK_GUIDE, 8);
            engine.n_branches = 2;
        });
        let cache = setup.create();
        ok(cache.begin_run_as(&dc_run_t {
            timesteps: self.timesteps.as_ptr(),
            timestep_max: 1000.0,
            ..run_of(self.timesteps.len() as u32)
        }));
        cache
    }

    /// Decisions as letters, and what stands in the layer's output after each step.
    fn outputs(&self, value: impl Fn(usize) -> f32) -> (String, Vec<f32>) {
        let cache = self.cache();
        let mut decisions = String::new();
        let step = |step: usize| {
            let out = [Tensor::new(self.dtype, &[5])];
            ok(cache.begin_pass(&pass_of(step as u32, &[0])));
            let action = cache.before_layer(3, self.kind, &out);
            decisions.push(letter(action));
            if action == DC_COMPUTE {
                out[0].fill(value(step));
                cache.after_layer(3, &out);
            }
            ok(cache.end_pass());
            out[0].values()[4]
        };
        let outputs = (0..self.timesteps.len()).map(step).collect();
        (decisions, outputs)
    }

    fn decisions(&self) -> String {
        self.outputs(|_| 1.0).0
    }
}

// ---- Pyramid Attention Broadcast ----

#[test]
fn pab_skips_inside_its_window_by_its_range() {
    let steps: Vec<_> = (0..20).map(|step| 1000.0 - 50.0 * step as f32).collect();
    for (every, expected) in [
        (1, "CCCCCCCCCCCCCCCCCCCC"),
        (2, "CCCCCsCsCsCsCsCsCsCC"),
        (3, "CCCCCsCssCssCssCssCC"),
        (6, "CCCCCsCsssssCsssssCC"),
    ] {
        for compat in ["none", "diffusers", "paper"] {
            // An engine of one kind, so that an interval of 1 has another kind to be legal beside.
            let text = format!("pab,spatial.every={every},temporal.every=2,compat={compat}");
            let run = Run::new(&text, &steps);
            let (decisions, outputs) = run.outputs(|step| step as f32);
            assert_eq!(decisions, expected, "{text}");
            let mut newest = 0;
            for (step, letter) in decisions.chars().enumerate() {
                newest = if letter == 'C' { step } else { newest };
                assert_eq!(outputs[step], newest as f32, "{text}");
            }
        }
    }
}

#[test]
fn the_bounds_of_a_window_are_outside_it() {
    let steps = [900.0, 800.0, 799.0, 101.0, 100.0, 99.0];
    assert_eq!(Run::new("pab", &steps).decisions(), "CCCsCC");
}

#[test]
fn each_kind_has_its_own_range_and_window() {
    let steps: Vec<_> = (0..20).map(|step| 1000.0 - 50.0 * step as f32).collect();
    let text = "pab,temporal.every=4,cross.every=6,cross.window=0.3:0.7";
    for (kind, expected) in [
        (DC_KIND_SPATIAL, "CCCCCsCsCsCsCsCsCsCC"),
        (DC_KIND_TEMPORAL, "CCCCCsssCsssCsssCsCC"),
        (DC_KIND_CROSS, "CCCCCCCsssssCsCCCCCC"),
        (DC_KIND_MLP, "CCCCCCCCCCCCCCCCCCCC"),
    ] {
        assert_eq!(Run::new(text, &steps).of_kind(kind).decisions(), expected, "{kind}");
    }
}

/// The numbers of VideoSys, in the steps that they were chosen for.
#[test]
fn the_presets_of_pab_have_the_originals_numbers() {
    let ddim = |n: usize| (0..n).map(move |k| (1000 - (k + 1) * (1000 / n)) as f32);
    let latte: Vec<_> = ddim(50).collect();
    for (preset, spatial, temporal, cross) in [
        ("pab-latte", (2, 0.1, 0.8), Some(3), Some(6)),
        ("pab-opensora", (2, 0.45, 0.93), Some(4), Some(6)),
        ("pab-opensoraplan", (2, 0.1, 0.85), Some(4), Some(6)),
        ("pab-vchitect", (2, 0.1, 0.8), Some(4), Some(6)),
        ("pab-cogvideox", (2, 0.1, 0.85), None, None),
        ("pab", (2, 0.1, 0.8), None, None),
    ] {
        let (every, low, high) = spatial;
        for (kind, every) in
            [(DC_KIND_SPATIAL, Some(every)), (DC_KIND_TEMPORAL, temporal), (DC_KIND_CROSS, cross)]
        {
            let decisions = Run::new(preset, &latte).of_kind(kind).decisions();
            let expected = latte.iter().enumerate().map(|(step, t)| {
                let inside = 1000.0 * low < *t && *t < 1000.0 * high;
                let skips = every.is_some_and(|every| step % every != 0);
                if inside && skips { 's' } else { 'C' }
            });
            assert_eq!(decisions, expected.collect::<String>(), "{preset} {kind}");
        }
    }
    // MLPs: two steps after 720, 640, 560, 480 and 400; none where nothing is listed.
    let mlp = |preset| Run::new(preset, &latte).of_kind(DC_KIND_MLP).decisions();
    let listed = |marks: &[u32]| -> String {
        let mut left = 0;
        let letter = |t: &f32| {
            let listed = marks.contains(&(*t as u32));
            let skips = !listed && left > 0;
            left = if listed { 2 } else { left - i32::from(skips) };
            if skips { 's' } else { 'C' }
        };
        latte.iter().map(letter).collect()
    };
    assert_eq!(mlp("pab-latte"), listed(&[720, 640, 560, 480, 400]));
    assert_eq!(mlp("pab-vchitect"), "C".repeat(50));
    // Open-Sora's own timesteps, as whole numbers: 676, 788 and 864 are among them.
    let opensora = [1000.0, 960.0, 915.0, 864.7, 830.0, 788.2, 740.0, 720.0, 676.9, 600.0, 550.0];
    let decisions = Run::new("pab-opensora", &opensora).of_kind(DC_KIND_MLP).decisions();
    assert_eq!(decisions, "CCCCsCssCss");
}

#[test]
fn listed_mlps_are_the_first_that_the_engine_asks_about() {
    let steps: Vec<_> = (0..4).map(|step| 900.0 - 100.0 * step as f32).collect();
    let text = "pab,mlp.at=0.8,mlp.skips=1,mlp.layers=2";
    let cache = Run::new(text, &steps).cache();
    let mut decisions = [const { String::new() }; 8];
    for step in 0..4 {
        ok(cache.begin_pass(&pass_of(step, &[0])));
        // Layers come in another order than their numbers.
        for layer in [5, 2, 7] {
            let out = [Tensor::of(F32, &[1.0; 3])];
            let action = cache.before_layer(layer, DC_KIND_MLP, &out);
            decisions[layer as usize].push(letter(action));
            if action == DC_COMPUTE {
                cache.after_layer(layer, &out);
            }
        }
        ok(cache.end_pass());
    }
    assert_eq!([&decisions[5], &decisions[2], &decisions[7]], ["CCsC", "CCsC", "CCCC"]);
    let stats = cache.stats();
    assert_eq!((stats.layers_computed, stats.layers_skipped), (6, 2));
}

/// A gate may stand inside what is reused, as in Open-Sora and Latte, or after it, as in diffusers:
/// it is the engine that chooses, by what it shows.
#[test]
fn outputs_are_reused_with_or_without_their_gate() {
    let gate = |step: usize| 1.0 + step as f32;
    let attention = 3.0;
    for (gated, expected) in [(true, [3.0, 3.0, 9.0, 9.0]), (false, [3.0, 6.0, 9.0, 12.0])] {
        let steps = steps(4);
        let shown = |step| if gated { gate(step) * attention } else { attention };
        let (decisions, outputs) = Run::new("pab", &steps).outputs(shown);
        assert_eq!(decisions, "CsCs");
        let added = outputs.iter().enumerate();
        let added: Vec<_> =
            added.map(|(s, out)| if gated { *out } else { gate(s) * out }).collect();
        assert_eq!(added, expected);
    }
}

#[test]
fn windows_and_intervals_go_with_any_estimator() {
    let steps: Vec<_> = (0..12).map(|step| 850.0 - 50.0 * step as f32).collect();
    let text = "pab,spatial.every=3,estimator=taylor";
    let (decisions, outputs) = Run::new(text, &steps).outputs(|step| 2.0 * step as f32);
    assert_eq!(decisions, "CCsCssCssCss");
    let line: Vec<_> = (0..12).map(|step| 2.0 * step as f32).collect();
    assert_close(&outputs, &line, F32);
}

// ---- TaylorSeer ----

#[test]
fn taylorseer_schedules() {
    // Steps before which all compute, interval; our own, and diffusers'.
    for (before, every, ours, theirs) in [
        (3, 5, "CCCssssCssssCssssCssssCs", "CCCsCssssCssssCssssCssss"),
        (1, 3, "CssCssCssCssCssCssCssCss", "CsCssCssCssCssCssCssCssC"),
        (10, 5, "CCCCCCCCCCssssCssssCssss", "CCCCCCCCCCsCssssCssssCss"),
        (3, 1, "CCCCCCCCCCCCCCCCCCCCCCCC", "CCCCCCCCCCCCCCCCCCCCCCCC"),
    ] {
        let steps = steps(24);
        for (compat, expected) in [("none", ours), ("paper", ours), ("diffusers", theirs)] {
            let text =
                format!("taylorseer,compat={compat},warmup_steps={before},spatial.every={every}");
            assert_eq!(Run::new(&text, &steps).decisions(), expected, "{text}");
        }
    }
    // The original's FLUX settings.
    let paper = "taylorseer,compat=paper,every=6,warmup_steps=3";
    assert_eq!(Run::new(paper, &steps(28)).decisions(), "CCCsssssCsssssCsssssCsssssCs");
    // From disable_cache_after_step on all compute: step 18 of 24 are the last 6.
    let after = "taylorseer,compat=diffusers,last_steps=6";
    assert_eq!(Run::new(after, &steps(24)).decisions(), "CCCsCssssCssssCsssCCCCCC");
}

#[test]
fn a_run_that_enters_the_schedule_later_counts_from_there() {
    for (scope, hook, unit) in [("layers", DC_HOOK_LAYERS, 0), ("model", DC_HOOK_MODEL, DC_MODEL)] {
        let text = format!("taylorseer,scope={scope},every=3,warmup_steps=2");
        let setup = Setup::new(1, &text)
            .with(|engine| (engine.hooks, engine.n_layers) = (hook, u32::from(unit == 0)));
        let cache = setup.create();
        ok(cache.begin_run_as(&dc_run_t { first_step: 8, ..run_of(20) }));
        let step = |step| {
            let out = [Tensor::of(F32, &[1.0; 3])];
            ok(cache.begin_pass(&pass_of(step, &[0])));
            let action = match unit {
                DC_MODEL => cache.before(unit, &out),
                _ => cache.before_layer(unit, DC_KIND_MLP, &out),
            };
            match (action, unit) {
                (DC_COMPUTE, DC_MODEL) => cache.after(unit, &out),
                (DC_COMPUTE, _) => cache.after_layer(unit, &out),
                _ => {}
            }
            ok(cache.end_pass());
            letter(action)
        };
        assert_eq!((8..20).map(step).collect::<String>(), "CCssCssCssCs", "{scope}");
    }
}

/// `t^2`, computed at 0, 1, 2, 4 and 9.
#[test]
fn taylorseer_of_order_two_on_uneven_gaps() {
    let published =
        [(3, 8.0), (5, 22.75), (6, 31.0), (7, 40.75), (8, 52.0), (10, 94.7), (11, 109.8)];
    let steps = steps(12);
    let square = |t: usize| (t * t) as f32;
    for (estimator, expected) in [
        ("taylor", published),
        ("taylor,compat=diffusers", published),
        ("newton", published.map(|(t, _)| (t, square(t)))),
    ] {
        let text = format!(
            "mask,scope=layers,on_residual=0,mask=111010000100,estimator={estimator},order=2"
        );
        let (_, outputs) = Run::new(&text, &steps).outputs(square);
        for (t, value) in expected {
            assert_close(&outputs[t..=t], &[value], F32);
        }
    }
}

#[test]
fn any_order_follows_a_polynomial_of_its_degree() {
    let steps = steps(20);
    for order in 0..=4 {
        let value = |t: usize| (t as f32 / 10.0).powi(order);
        // Gaps are one through the warm-up, so the ladder is exact until the first gap.
        for estimator in ["taylor", "newton"] {
            let text =
                format!("taylorseer,warmup_steps=8,every=6,order={order},estimator={estimator}");
            let (decisions, outputs) = Run::new(&text, &steps).outputs(value);
            assert_eq!(decisions, "CCCCCCCCsssssCsssssC");
            let known = if estimator == "newton" { 8..20 } else { 8..9 };
            for t in known {
                // A Taylor step along backward differences leaves out what is of second order.
                if estimator == "newton" || order < 2 {
                    assert_close(&outputs[t..=t], &[value(t)], F32);
                }
            }
        }
    }
}

#[test]
fn nothing_is_predicted_without_data() {
    // diffusers with disable_cache_before_step = 0 fails at step 0; here it computes.
    let text = "taylorseer,compat=diffusers,warmup_steps=0";
    let steps = steps(8);
    assert_eq!(Run::new(text, &steps).decisions(), "CCssssCs");
    let cache = Run::new(text, &steps).cache();
    ok(cache.begin_pass(&pass_of(0, &[0])));
    let out = [Tensor::of(F32, &[1.0])];
    assert_eq!(cache.before_layer(0, DC_KIND_MLP, &out), DC_COMPUTE);
    cache.after_layer(0, &out);
    ok(cache.end_pass());
    assert_eq!(cache.trace().reasons(), "H");
}

/// The original builds no differences before the last step but one of its warm-up.
#[test]
fn the_papers_ladder_begins_late() {
    let steps = steps(10);
    // 0, 1, 4 and 9 at steps 0 to 3, then 3^2 and on: t^2, computed in the warm-up of 3.
    let square = |t: usize| (t * t) as f32;
    let value = |compat| {
        let text = format!("taylorseer,compat={compat},order=2,every=4,warmup_steps=3");
        let (decisions, outputs) = Run::new(&text, &steps).outputs(square);
        assert_eq!(decisions, "CCCsssCsss");
        outputs[3]
    };
    // From 0, 1, 4: 4 + 3 + 2/2. From 1 and 4 alone: 4 + 3.
    assert_eq!(value("none"), 8.0);
    assert_eq!(value("paper"), 7.0);
}

#[test]
fn factors_are_kept_in_their_own_dtype() {
    // 1 + 2^-9 is not a bf16; as a factor it is 1.
    let fine = 1.0 + 2f32.powi(-9);
    let steps = steps(6);
    for (dtype, expected) in [("f32", fine), ("bf16", 1.0), ("tensor", fine)] {
        let text = format!("taylorseer,compat=diffusers,order=0,history_dtype={dtype}");
        let (decisions, outputs) = Run::new(&text, &steps).outputs(|_| fine);
        assert_eq!(decisions, "CCCsCs");
        assert_eq!(outputs[3], expected, "{dtype}");
    }
}

// ---- HiCache and FoCa ----

#[test]
fn hermite_steps_are_damped_taylor_steps() {
    let steps = steps(6);
    let line = |t: usize| 1.0 + t as f32;
    for (scale, step) in [(0.5, 0.5), (1.0, 2.0), (0.25, 0.125)] {
        let text = format!("hicache,order=1,scale={scale},every=9");
        let (decisions, outputs) = Run::new(&text, &steps).outputs(line);
        assert_eq!(decisions, "CCCsss");
        let expected: Vec<_> = (1..=3).map(|x| 3.0 + step * x as f32).collect();
        assert_close(&outputs[3..], &expected, F32);
    }
    // Order 2 on t^2: D = 4, 3, 1 (the ladder's), H2 = (0.5 x^2 - 1) / 4.
    let (_, outputs) = Run::new("hicache,every=9", &steps).outputs(|t| (t * t) as f32);
    let expected: Vec<_> = [1.0, 2.0, 3.0]
        .map(|x: f32| 4.0 + 3.0 * 0.5 * x + 2.0 * (0.5 * x * x - 1.0) / 4.0)
        .to_vec();
    assert_close(&outputs[3..], &expected, F32);
}

/// cache-dit's toy and its recorded outputs; and the same slopes over true gaps.
#[test]
fn foca_builds_on_its_own_predictions() {
    let toy = Toy::new(&[0.1, 0.2, 0.3, 0.4]);
    let inputs: Vec<_> = (0..16).map(|s| 1.0 + 0.02 * s as f32 + 0.004 * (s * s) as f32).collect();
    let text = "mask,front_blocks=1,back_blocks=1,mask=1111001000100001,estimator=foca";
    let recorded = [
        2.741446, 2.862182, 3.036634, 3.257901, 3.525984, 3.840883, 3.84384, 4.076442, 4.538688,
        5.230579, 5.454865,
    ];
    // Without a way to say compat for a mask, an interval that always skips lets it be said.
    let compat = format!("{text},every=1000,compat=paper");
    let (trace, outputs) = toy.run(&compat, F32, &inputs);
    assert_eq!(trace.actions().replace('C', "1").replace('s', "0"), "1111001000100001");
    assert_close(&outputs[4..15], &recorded, F32);

    // On a line, computed at 0, 1, 2, 6 and 10, the original overshoots and true gaps do not.
    let steps = steps(12);
    let line = |compat| {
        let text = format!(
            "mask,scope=layers,on_residual=0,mask=111000100010,estimator=foca,compat={compat}"
        );
        Run::new(&text, &steps).outputs(|t| t as f32).1
    };
    assert_close(&line("paper")[7..10], &[8.5, 12.5, 18.0], F32);
    assert_close(&line("none")[7..8], &[7.0], F32);
}

// ---- FasterCache: attention ----

/// Options without guidance, so that attention is skipped as in distilled models.
fn attention(compat: &str, every: u32) -> String {
    format!("fastercache,guidance.every=none,spatial.every={every},compat={compat}")
}

const RECORDED_STEPS: [f32; 8] = [1000.0, 900.0, 600.0, 500.0, 400.0, 300.0, 200.0, 100.0];

#[test]
fn fastercache_of_diffusers_feeds_on_its_own_predictions() {
    for (every, expected) in [
        (2, [0.0, 1.0, 2.0, 2.5, 4.0, 4.75, 6.0, 6.625]),
        (4, [0.0, 1.0, 1.5, 1.75, 4.0, 5.125, 5.6875, 5.96875]),
    ] {
        let text = attention("diffusers", every);
        for dtype in DTYPES {
            let run = Run::new(&text, &RECORDED_STEPS).of_dtype(dtype);
            let (decisions, outputs) = run.outputs(|t| t as f32);
            assert_eq!(decisions, if every == 2 { "CCCsCsCs" } else { "CCssCsss" });
            assert_close(&outputs, &expected, dtype);
        }
    }
}

#[test]
fn fastercache_keeps_computed_values_only_and_counts_gaps() {
    // With weight 1 a line is followed exactly, however far the values lie apart.
    let text = format!("{},weight=1", attention("none", 4));
    let (_, outputs) = Run::new(&text, &RECORDED_STEPS).outputs(|t| t as f32);
    assert_close(&outputs, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], F32);
    // The original keeps computed values too, and takes each skip for one step.
    let text = format!("{},weight=0.5", attention("paper", 2));
    let (_, outputs) = Run::new(&text, &RECORDED_STEPS).outputs(|t| t as f32);
    assert_close(&outputs, &[0.0, 1.0, 2.0, 2.5, 4.0, 5.0, 6.0, 7.0], F32);
}

#[test]
fn the_weight_may_change_over_the_run() {
    // Open-Sora's ramp: (counter - 7) / 20 * 0.9 for counter 1 to 30.
    let text = format!("{},weight=-0.27:1.035,window=none", attention("paper", 2));
    let steps = steps(30);
    let (decisions, outputs) = Run::new(&text, &steps).outputs(|t| t as f32);
    assert_eq!(decisions, "Cs".repeat(15));
    for t in (3..30).step_by(2) {
        // From t - 3 and t - 1, two apart.
        let weight = (t as f32 + 1.0 - 7.0) / 20.0 * 0.9;
        assert_close(&outputs[t..=t], &[(t - 1) as f32 + 2.0 * weight], F32);
    }
    // A ramp needs to know where it ends.
    let setup = Setup::new(1, "fastercache,guidance.every=none,weight=0:1")
        .with(|engine| (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS, 1));
    let cache = setup.create();
    let run = dc_run_t { timestep_max: 1.0, ..run_of(0) };
    assert_eq!(cache.begin_run_as(&run), DC_ERR_ARG);
    assert!(last_error().contains("n_steps is 0"), "{}", last_error());
}

// ---- FasterCache: guidance ----

/// Batched guidance: the unconditional branch is 1, and comes first in a full batch.
struct Guided<'a> {
    cache: Cache,
    timesteps: &'a [f32],
    /// One stack for both branches, or a pass for each.
    batched: bool,
}

impl<'a> Guided<'a> {
    fn new(text: &str, timesteps: &'a [f32], batched: bool) -> Self {
        let setup = Setup::new(1, text).branches(2, if batched { 2 } else { 1 });
        let cache = setup
            .with(|engine| {
                (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS | DC_HOOK_GUIDE, 2);
            })
            .create();
        ok(cache.begin_run_as(&dc_run_t {
            timesteps: timesteps.as_ptr(),
            timestep_max: 1000.0,
            ..run_of(timesteps.len() as u32)
        }));
        Self { cache, timesteps, batched }
    }

    /// One pass; what the layer did, and its rows.
    fn pass(&self, step: u32, members: &[u32], value: f32) -> (char, Vec<f32>) {
        let out = [Tensor::new(F32, &[members.len(), 3])];
        ok(self.cache.begin_pass(&pass_of(step, members)));
        let action = self.cache.before_layer(0, DC_KIND_SPATIAL, &out);
        if action == DC_COMPUTE {
            // The unconditional rows are far off, so that mixing would show.
            for (row, branch) in members.iter().enumerate() {
                out[0].part(0, row, 1).fill(value + 1000.0 * *branch as f32);
            }
            self.cache.after_layer(0, &out);
        }
        ok(self.cache.end_pass());
        (letter(action), out[0].values())
    }

    /// All steps: what guidance and the conditional branch's attention did, and its output.
    fn run(&self) -> (String, String, Vec<f32>) {
        let (mut guide, mut attention, mut outputs) = (String::new(), String::new(), vec![]);
        for step in 0..self.timesteps.len() as u32 {
            let ask = pass_of(step, &[1]);
            let (cond, uncond) = (Tensor::of(F32, &[step as f32; 6]), Tensor::of(F32, &[7.0; 6]));
            if self.batched {
                let reduced = self.cache.peek(Some(&ask), DC_UNCOND) == DC_SKIP;
                let members: &[u32] = if reduced { &[0] } else { &[1, 0] };
                let (action, rows) = self.pass(step, members, step as f32);
                attention.push(action);
                outputs.push(*rows.last().expect("a row"));
                let action = self.cache.before_uncond(&ask, &cond, &uncond);
                assert_eq!(action == DC_SKIP, reduced);
                guide.push(letter(action));
            } else {
                let (action, rows) = self.pass(step, &[0], step as f32);
                attention.push(action);
                outputs.push(rows[0]);
                guide.push(letter(self.cache.before_uncond(&ask, &cond, &uncond)));
                if guide.ends_with('C') {
                    assert_eq!(self.pass(step, &[1], step as f32).0, 'C');
                }
            }
            if guide.ends_with('C') {
                ok(self.cache.after_uncond(&ask, &cond, &uncond));
            }
        }
        (guide, attention, outputs)
    }
}

#[test]
fn guidance_by_its_schedule_and_attention_only_where_it_skips() {
    // diffusers' defaults in 50 steps from 1000 down.
    let steps: Vec<_> = (0..50).map(|step| 1000.0 - 20.0 * step as f32).collect();
    let guide = "CCCCCCCCCCCCCCCCCCssCssssCssssCssssCssssCssssCssss";
    let attention: String = steps
        .iter()
        .enumerate()
        .map(|(step, t)| {
            let skips = *t < 681.0 && step % 2 != 0 && guide.as_bytes()[step] == b's';
            if skips { 's' } else { 'C' }
        })
        .collect();
    let mut seen = Vec::new();
    for compat in ["none", "diffusers", "paper"] {
        for batched in [true, false] {
            let guided = Guided::new(&format!("fastercache,compat={compat}"), &steps, batched);
            let (got, layers, outputs) = guided.run();
            assert_eq!(got, guide, "{compat}, batched {batched}");
            assert_eq!(layers, attention, "{compat}, batched {batched}");
            let stats = guided.cache.stats();
            let skipped = |letters: &str| letters.matches('s').count() as u64;
            assert_eq!(stats.uncond_skipped, skipped(guide));
            assert_eq!(stats.uncond_computed, 50 - skipped(guide));
            assert_eq!(stats.layers_skipped, skipped(&attention));
            seen.push(outputs);
        }
        // One batch or two passes: the same outputs.
        assert_eq!(seen[seen.len() - 1], seen[seen.len() - 2], "{compat}");
    }
}

/// Batches 2, 2, 1, 1, 1, 2, 1 as diffusers recorded them, attention alone deciding by its own range.
#[test]
fn attention_is_skipped_in_reduced_batches_only() {
    // Guidance computes at steps 0, 1 and 5; the window lets it skip from step 2 on.
    let steps = [700.0, 690.0, 600.0, 590.0, 580.0, 570.0, 560.0];
    let text = "fastercache,compat=diffusers,guidance.every=5";
    let guided = Guided::new(text, &steps, true);
    let (guide, attention, outputs) = guided.run();
    assert_eq!(guide, "CCsssCs");
    assert_eq!(attention, "CCCsCCC");
    assert_close(&outputs, &[0.0, 1.0, 2.0, 2.5, 4.0, 5.0, 6.0], F32);
}

/// The plane, its constant part, and what is left of it.
fn plane() -> (Vec<f32>, f32) {
    let values: Vec<_> = (0..16).map(|i| ((i * 7) % 5) as f32).collect();
    let mean = values.iter().sum::<f32>() / 16.0;
    (values, mean)
}

#[test]
fn small_planes_keep_only_their_mean_as_low_frequencies() {
    // Sides below 5: the disc has radius 0.
    let (d, mean) = plane();
    for shape in [&[4, 4][..], &[1, 4, 4], &[16, 1], &[1, 16], &[16]] {
        for (low, high) in [(2.0, 1.0), (1.0, 3.0), (0.5, 0.0), (0.0, 0.0), (1.0, 1.0)] {
            let text = format!("none,guidance.every=2,guidance.low={low},guidance.high={high}");
            let guided = Guided::new(&text, &[500.0, 499.0], true);
            let tensor = |values: &[f32]| {
                let tensor = Tensor::new(F32, shape);
                tensor.set(values);
                tensor
            };
            let cond = tensor(&[10.0; 16]);
            let uncond = tensor(&d.iter().map(|d| 10.0 + d).collect::<Vec<_>>());
            let at = |step| pass_of(step, &[1]);
            assert_eq!(guided.cache.before_uncond(&at(0), &cond, &uncond), DC_COMPUTE);
            ok(guided.cache.after_uncond(&at(0), &cond, &uncond));
            cond.fill(20.0);
            assert_eq!(guided.cache.before_uncond(&at(1), &cond, &uncond), DC_SKIP);
            // Mean by `low`, the rest by `high`; planes of [1, 16] and the like have one row.
            let expected: Vec<_> =
                d.iter().map(|d| 20.0 + low * mean + high * (d - mean)).collect();
            assert_close(&uncond.values(), &expected, F32);
            assert_eq!(cond.values(), [20.0; 16]);
        }
    }
}

/// The factors of each skipped step, read off a constant difference of 1.
fn growth(text: &str, timesteps: &[f32]) -> Vec<f32> {
    let guided = Guided::new(text, timesteps, true);
    let step = |step: usize| {
        let (cond, uncond) = (Tensor::of(F32, &[0.0; 25]), Tensor::of(F32, &[1.0; 25]));
        let at = pass_of(step as u32, &[1]);
        if guided.cache.before_uncond(&at, &cond, &uncond) == DC_COMPUTE {
            ok(guided.cache.after_uncond(&at, &cond, &uncond));
        }
        uncond.values()[12]
    };
    (0..timesteps.len()).map(step).collect()
}

#[test]
fn factors_grow_with_each_skipped_step_and_have_windows() {
    let steps: Vec<_> = (0..8).map(|step| 80.0 - 10.0 * step as f32).collect();
    // A constant is all low frequency.
    let text = "none,guidance.every=8,guidance.low=2,guidance.low_window=0.015:0.065";
    // Timesteps 80, 70, ..., 10: inside are 60 to 20.
    for (compat, cap, expected) in [
        ("none", "auto", [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0]),
        ("none", "none", [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0]),
        ("none", "1", [1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
        ("diffusers", "auto", [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0]),
    ] {
        let text = format!("{text},guidance.max_growth={cap},compat={compat}");
        assert_close(&growth(&text, &steps), &expected, F32);
    }
    // A computed step starts them again.
    let text = "none,guidance.every=3,guidance.low=2";
    assert_close(&growth(text, &steps), &[1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0, 2.0], F32);
}

#[test]
fn a_prediction_may_be_a_strided_view_of_any_dtype() {
    for dtype in DTYPES {
        let guided = Guided::new("none,guidance.every=2", &[500.0, 499.0], true);
        // Channels last in memory, as tokens are packed: the plane is a view of it.
        let both = Tensor::new(dtype, &[2, 8, 9]);
        let (uncond, cond) = (both.part(0, 0, 1).part(2, 0, 7), both.part(0, 1, 1).part(2, 1, 7));
        let values: Vec<_> = (0..56).map(|i| (i % 11) as f32).collect();
        let apart: Vec<_> = values.iter().map(|x| 2.0 * x - 3.0).collect();
        cond.set(&values);
        uncond.set(&apart);
        ok(guided.cache.after_uncond(&pass_of(0, &[1]), &cond, &uncond));
        cond.map(|x| x + 5.0);
        uncond.fill(f32::NAN);
        assert_eq!(guided.cache.before_uncond(&pass_of(1, &[1]), &cond, &uncond), DC_SKIP);
        let expected: Vec<_> = apart.iter().map(|x| x + 5.0).collect();
        assert_close(&uncond.values(), &expected, dtype);
    }
}

// ---- branches ----

/// diffusers keeps one state for all branches, so that with an interval of 2 the second of two
/// passes is always answered with the first one's values. Here each has its own.
#[test]
fn branches_of_layers_never_mix() {
    let steps = steps(12);
    for preset in ["pab", "taylorseer,every=2,warmup_steps=1", "pab,estimator=linear,weight=1"] {
        for compat in ["none", "diffusers"] {
            let setup = Setup::new(1, &format!("{preset},compat={compat}")).branches(2, 1);
            let setup = setup.with(|engine| (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS, 1));
            let cache = setup.create();
            let run = dc_run_t { timesteps: steps.as_ptr(), timestep_max: 1000.0, ..run_of(12) };
            ok(cache.begin_run_as(&run));
            let mut decisions = [String::new(), String::new()];
            for step in 0..12 {
                for branch in [0, 1] {
                    let out = [Tensor::new(F32, &[3])];
                    ok(cache.begin_pass(&pass_of(step, &[branch])));
                    let action = cache.before_layer(0, DC_KIND_SPATIAL, &out);
                    decisions[branch as usize].push(letter(action));
                    if action == DC_COMPUTE {
                        out[0].fill(100.0 + 1000.0 * branch as f32);
                        cache.after_layer(0, &out);
                    }
                    ok(cache.end_pass());
                    assert_eq!(out[0].values(), [100.0 + 1000.0 * branch as f32; 3]);
                }
            }
            assert_eq!(decisions[0], decisions[1]);
            assert!(decisions[0].contains("Cs"), "{decisions:?}");
        }
    }
}

/// A branch that is left out of some passes keeps what it has, with its true step numbers.
#[test]
fn an_absent_branch_only_ages() {
    let text = "taylorseer,warmup_steps=3,every=9";
    for (age, expected) in [("none", 's'), ("2", 'C')] {
        let setup = Setup::new(1, &format!("{text},max_age={age}")).branches(2, 2);
        let cache =
            setup.with(|engine| (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS, 1)).create();
        ok(cache.begin_run(12));
        let value = |branch: u32, step: u32| (1.0 + branch as f32) * (10.0 + step as f32);
        let pass = |step: u32, members: &[u32]| {
            let out = [Tensor::new(F32, &[members.len(), 3])];
            ok(cache.begin_pass(&pass_of(step, members)));
            let action = cache.before_layer(0, DC_KIND_CROSS, &out);
            for (row, branch) in members.iter().enumerate() {
                let row = out[0].part(0, row, 1);
                match action {
                    DC_COMPUTE => row.fill(value(*branch, step)),
                    // A line is followed over any gap.
                    _ => assert_close(&row.values(), &[value(*branch, step); 3], F32),
                }
            }
            if action == DC_COMPUTE {
                cache.after_layer(0, &out);
            }
            ok(cache.end_pass());
            letter(action)
        };
        let full: String = (0..3).map(|step| pass(step, &[1, 0])).collect();
        assert_eq!(full, "CCC");
        assert_eq!(pass(3, &[0]), 's');
        assert_eq!(pass(4, &[0]), 's');
        // Branch 1 was last seen four steps ago, at step 2.
        assert_eq!(pass(6, &[1, 0]), expected, "max_age={age}");
        assert_eq!(pass(7, &[1]), 's');
    }
}

// ---- scopes ----

#[test]
fn a_block_may_be_forecast_by_itself_as_residual_or_output() {
    let inputs: Vec<_> = (0..12).map(|s| 1.0 + 0.25 * s as f32).collect();
    for options in ["on_residual=1", "on_residual=0"] {
        let text = format!("taylorseer,scope=block,every=4,{options}");
        for dtype in [F32, F16, Bf16] {
            let (trace, outputs) = Toy::doubling(3).run(&text, dtype, &inputs);
            assert_eq!(trace.actions(), "CCCsssCsssCs");
            let full: Vec<_> = inputs.iter().map(|x| 8.0 * x).collect();
            assert_close(&outputs, &full, dtype);
        }
    }
}

#[test]
fn a_measured_change_may_decide_for_blocks_one_by_one() {
    let inputs = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5];
    for estimator in ["hold", "newton,order=2"] {
        let text = format!("fbcache,scope=block,threshold=0.25,estimator={estimator},{NO_RAILS}");
        let (trace, outputs) = Toy::doubling(3).run(&text, F32, &inputs);
        assert_eq!(trace.actions(), "CssCss");
        assert_eq!(trace.reasons(), "Hrrrrr");
        if estimator == "hold" {
            // Residuals of blocks 1 and 2 after the last computed step: 2 x and 4 x of it.
            let expected = [8.0, 2.2 + 6.0, 2.4 + 6.0, 10.4, 2.8 + 7.8, 3.0 + 7.8];
            assert_close(&outputs, &expected, F32);
        }
    }
}

#[test]
fn a_block_that_was_left_out_of_a_computed_pass_computes_by_itself() {
    // Skip-layer guidance leaves out block 1 in step 2, whose value is then older than the change is
    // measured from.
    let cache = Setup::new(3, &format!("fbcache,scope=block,threshold=9,{NO_RAILS}")).create();
    ok(cache.begin_run(6));
    let toy = Toy::doubling(3);
    let pass = |step: u32, leave_out: bool| {
        let x = [Tensor::of(F32, &[1.0; 4])];
        let flags = if step == 2 { DC_PASS_COMPUTE } else { 0 };
        ok(cache.begin_pass(&flagged(step, &[0], flags)));
        let mut answers = String::new();
        for block in 0..3 {
            if block == 1 && leave_out {
                continue;
            }
            let action = cache.before(block, &x);
            answers.push(letter(action));
            if action == DC_COMPUTE {
                toy.block(block as usize, &x);
                cache.after(block, &x);
            }
        }
        ok(cache.end_pass());
        answers
    };
    assert_eq!(pass(0, false), "CCC");
    assert_eq!(pass(1, false), "Css");
    assert_eq!(pass(2, true), "CC");
    assert_eq!(pass(3, false), "CCs");
    assert_eq!(pass(4, false), "Css");
}

#[test]
fn a_layer_that_comes_late_computes_by_itself_while_others_skip() {
    let steps = steps(8);
    let cache = Run::new("pab", &steps).cache();
    let mut decisions = [String::new(), String::new()];
    for step in 0..8 {
        ok(cache.begin_pass(&pass_of(step, &[0])));
        for layer in [0, 1] {
            // Layer 1 is asked about from step 3 on.
            if layer == 1 && step < 3 {
                continue;
            }
            let out = [Tensor::of(F32, &[layer as f32; 2])];
            let action = cache.before_layer(layer, DC_KIND_SPATIAL, &out);
            decisions[layer as usize].push(letter(action));
            if action == DC_COMPUTE {
                cache.after_layer(layer, &out);
            }
        }
        ok(cache.end_pass());
    }
    assert_eq!(decisions, ["CsCsCsCs", "CCsCs"]);
    assert_eq!(cache.trace().actions(), "CsCsCsCs");
    // What the trace tells of is a kind.
    assert!(cache.trace().0.iter().all(|record| record.unit == 0xffff_ff00 | DC_KIND_SPATIAL));
}

#[test]
fn several_tensors_of_a_layer_go_together() {
    let steps = steps(4);
    let cache = Run::new("pab", &steps).cache();
    for step in 0..4 {
        // A joint attention's picture and text.
        let out = [Tensor::new(F32, &[4]), Tensor::new(Bf16, &[2, 3])];
        ok(cache.begin_pass(&pass_of(step, &[0])));
        if cache.before_layer(0, DC_KIND_SPATIAL, &out) == DC_COMPUTE {
            out[0].fill(step as f32);
            out[1].fill(-(step as f32));
            cache.after_layer(0, &out);
        }
        ok(cache.end_pass());
        let newest = (step / 2 * 2) as f32;
        assert_eq!((out[0].values(), out[1].values()), (vec![newest; 4], vec![-newest; 6]));
    }
}

#[test]
fn a_cancelled_or_discarded_pass_leaves_no_prediction_behind() {
    // Chains and FoCa learn from what they predict: a pass that was cancelled must not count.
    let steps = [500.0; 12].map(|t| t);
    for text in [
        attention("diffusers", 4),
        "mask,scope=layers,on_residual=0,mask=111000100010,estimator=foca".to_owned(),
    ] {
        let run = Run::new(&text, &steps);
        let cache = run.cache();
        let pass = |step: u32, end: bool| {
            let out = [Tensor::new(F32, &[3])];
            let _ = cache.begin_pass(&pass_of(step, &[0]));
            let action = cache.before_layer(3, DC_KIND_SPATIAL, &out);
            if action == DC_COMPUTE {
                out[0].fill(step as f32);
                cache.after_layer(3, &out);
            }
            if end {
                ok(cache.end_pass());
            }
            letter(action)
        };
        let warm: String = (0..3).map(|step| pass(step, true)).collect();
        let first = if text.starts_with("mask") { "CCC" } else { "Css" };
        assert_eq!(warm, first);
        // Skipped, and never ended: the pass that comes instead says so.
        assert_eq!(pass(3, false), 's');
        let out = [Tensor::of(F32, &[4.0; 3])];
        assert_eq!(cache.begin_pass(&pass_of(5, &[0])), DC_ERR_STATE);
        assert_eq!(cache.before_layer(3, DC_KIND_SPATIAL, &out), DC_COMPUTE);
        assert_eq!(cache.end_pass(), DC_ERR_STATE);
        // Step 7 would be skipped by its number, but nothing is left to go on from.
        assert_eq!(pass(7, true), 'C', "{text}");
        assert_eq!(cache.trace().reasons().pop(), Some('H'), "{text}");
    }
}

// ---- ranks ----

/// A layer that one rank computes and another leaves out would wait for ever in its own collective.
/// So where ranks must agree, no layer computes by itself: the rank that lacks a value votes, and
/// all compute.
#[test]
fn ranks_skip_layers_together_or_not_at_all() {
    const RANKS: usize = 2;
    let collective = Collective::new(RANKS);
    let rank = |rank: usize| {
        let ledger = Ledger::default();
        let cache = Setup::new(1, "pab,window=none,temporal.every=3")
            .with(|engine| {
                (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS, 4);
                collective.serve(engine);
                ledger.serve(engine);
            })
            .create();
        ok(cache.begin_run(12));
        // On rank 1 the third allocation of the run fails: one layer of four has no memory at first.
        ledger.books().fails_from = (rank == 1).then_some(2);
        let mut seen = Vec::new();
        for step in 0..12 {
            if step == 4 {
                ledger.books().fails_from = None;
            }
            let _ = cache.begin_pass(&pass_of(step, &[0]));
            let mut letters = String::new();
            for layer in 0..4 {
                let kind = [DC_KIND_SPATIAL, DC_KIND_TEMPORAL][layer as usize % 2];
                let out = [Tensor::of(F32, &[1.0; 4])];
                let action = cache.before_layer(layer, kind, &out);
                letters.push(letter(action));
                if action == DC_COMPUTE {
                    cache.after_layer(layer, &out);
                }
            }
            let _ = cache.end_pass();
            seen.push(letters);
        }
        seen
    };
    let seen = std::thread::scope(|scope| {
        let ranks = [0, 1].map(|number| scope.spawn(move || rank(number)));
        ranks.map(|rank| rank.join().expect("a rank"))
    });
    assert_eq!(seen[0], seen[1]);
    let skips = |step: usize| seen[0][step].contains('s');
    assert!((0..4).all(|step| !skips(step)), "{seen:?}");
    assert!((4..12).any(skips), "{seen:?}");
    // Every rank votes once for each kind in each pass that its schedule would skip.
    let votes =
        (0..12).filter(|step| step % 2 != 0).count() + (0..12).filter(|s| s % 3 != 0).count();
    assert_eq!(collective.calls(), RANKS * votes);
}

// ---- every method, whatever happens ----

const METHODS: [&str; 12] = [
    "pab",
    "pab,estimator=taylor",
    "taylorseer",
    "taylorseer,order=4",
    "taylorseer,compat=diffusers,order=2",
    "taylorseer,compat=paper,order=2",
    "taylorseer,estimator=newton,order=3",
    "hicache",
    "fastercache,guidance.every=none",
    "fastercache,guidance.every=none,compat=diffusers",
    "fastercache,guidance.every=none,compat=paper",
    "pab,estimator=foca,spatial.every=3",
];

/// One run of one layer: letters, the bytes in its output, and how each pass ended.
fn run_layer(
    cache: &Cache,
    steps: std::ops::Range<u32>,
    len: impl Fn(u32) -> usize,
) -> Vec<(char, Vec<f32>, dc_status_t)> {
    let step = |step| {
        let out = [Tensor::new(F32, &[len(step)])];
        let _ = cache.begin_pass(&pass_of(step, &[0]));
        let action = cache.before_layer(3, DC_KIND_SPATIAL, &out);
        if action == DC_COMPUTE {
            out[0].fill(1.0 + (step * step) as f32);
            cache.after_layer(3, &out);
        }
        let status = cache.end_pass();
        (letter(action), out[0].values(), status)
    };
    steps.map(step).collect()
}

fn begin(cache: &Cache, steps: &[f32]) {
    let run = run_of(steps.len() as u32);
    ok(cache.begin_run_as(&dc_run_t { timesteps: steps.as_ptr(), timestep_max: 1000.0, ..run }));
}

#[test]
fn every_method_lives_with_short_runs_and_with_runs_cut_short() {
    for text in METHODS {
        let (long, short, one) = (steps(20), steps(9), steps(1));
        let cache = Run::new(text, &one).cache();
        let first = run_layer(&cache, 0..1, |_| 5);
        assert_eq!(first, [('C', vec![1.0; 5], DC_OK)], "{text}");
        begin(&cache, &short);
        let once = run_layer(&cache, 0..9, |_| 5);
        assert!(once.iter().any(|(letter, ..)| *letter == 's'), "{text}");
        // A run that was announced longer, broken off in the middle of a pass.
        begin(&cache, &long);
        run_layer(&cache, 0..7, |_| 5);
        ok(cache.begin_pass(&pass_of(7, &[0])));
        let out = [Tensor::new(F32, &[5])];
        let _ = cache.before_layer(3, DC_KIND_SPATIAL, &out);
        begin(&cache, &short);
        assert_eq!(run_layer(&cache, 0..9, |_| 5), once, "{text}");
    }
}

#[test]
fn a_first_step_inside_the_window_computes() {
    // diffusers' FasterCache fails there: it has nothing to extrapolate.
    for text in METHODS {
        let inside = [600.0; 6];
        let (decisions, outputs) = Run::new(text, &inside).outputs(|t| 1.0 + t as f32);
        assert!(decisions.starts_with('C'), "{text}: {decisions}");
        assert!(outputs.iter().all(|y| y.is_finite()), "{text}: {outputs:?}");
    }
}

#[test]
fn a_layer_of_another_shape_starts_again() {
    for text in METHODS {
        let all = steps(16);
        let cache = Run::new(text, &all).cache();
        let seen = run_layer(&cache, 0..16, |step| if step < 8 { 5 } else { 7 });
        // The first pass of the new shape computes; it says so if something was kept of the old one.
        let (letter, values, status) = &seen[8];
        assert_eq!((*letter, values), ('C', &vec![65.0; 7]), "{text}");
        assert_eq!(*status, DC_ERR_SHAPE, "{text}");
        assert!(seen[9..].iter().all(|(.., status)| *status == DC_OK), "{text}");
        assert!(seen[9..].iter().any(|(letter, ..)| *letter == 's'), "{text}");
        assert!(
            seen[9..].iter().flat_map(|(_, values, _)| values).all(|y| y.is_finite()),
            "{text}"
        );
    }
}

#[test]
fn a_schedule_passes_on_what_is_not_a_number() {
    for text in METHODS {
        let all = steps(10);
        for bad in [f32::NAN, f32::INFINITY] {
            let (decisions, outputs) =
                Run::new(text, &all).outputs(|t| if t == 2 { bad } else { 1.0 });
            // The value that stands in next builds on the bad one, and shows it.
            let next = decisions[2..].find('s').map(|at| at + 2).expect(text);
            let newest = decisions[..next].rfind('C').expect(text);
            if newest == 2 {
                assert!(!outputs[next].is_finite(), "{text}: {outputs:?}");
            }
        }
    }
}

#[test]
fn elements_are_the_same_for_any_number_of_threads() {
    // More elements than stay on one thread, and an odd number of them.
    let len = 40 * 4096 + 77;
    for text in METHODS {
        let all = steps(9);
        let outputs = [1, 2, 3].map(|threads| {
            let setup = Setup::new(1, text).with(|engine| {
                (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS, 1);
                engine.n_threads = threads;
            });
            let cache = setup.create();
            begin(&cache, &all);
            let step = |step: u32| {
                let out = [Tensor::new(Bf16, &[len])];
                ok(cache.begin_pass(&pass_of(step, &[0])));
                if cache.before_layer(0, DC_KIND_SPATIAL, &out) == DC_COMPUTE {
                    out[0].set(&noise(u64::from(step), len));
                    cache.after_layer(0, &out);
                }
                ok(cache.end_pass());
                out[0].bytes()
            };
            (0..9).map(step).collect::<Vec<_>>()
        });
        assert!(outputs[0] == outputs[1] && outputs[0] == outputs[2], "{text}");
    }
}

// ---- what once went wrong ----

#[test]
fn shapes_of_more_layers_than_there_are_are_refused_at_once() {
    let setup = Setup::new(1, "taylorseer,order=4")
        .branches(8, 8)
        .with(|engine| (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS, 4));
    let row = |kind, count| ShapeRow::layers(kind, count, &[Tensor::new(F32, &[2])]);
    // Five rungs of eight bytes for each of four layers and eight branches.
    let rows = [row(DC_KIND_SPATIAL, 1), row(DC_KIND_MLP, 3)];
    assert_eq!(setup.memory_needed_for(&rows), 5 * 8 * 4 * 8);
    let rows = [row(DC_KIND_SPATIAL, 1 << 20), row(DC_KIND_MLP, 3)];
    let cache = setup.create();
    assert_eq!(cache.begin_run_for(&run_of(9), &rows), DC_ERR_ARG);
    assert!(last_error().contains("1048579 layers") && last_error().contains("n_layers is 4"));
}

#[test]
fn steps_may_lie_far_apart() {
    let text = "fastercache,window=none,guidance.window=none,guidance.low_window=none,\
                guidance.high_window=none";
    let cache = Run::new(text, &[500.0]).cache();
    ok(cache.begin_run_as(&dc_run_t { timestep_max: 1.0, ..run_of(0) }));
    let out = [Tensor::of(F32, &[1.0])];
    // Each step played forward one by one would take minutes.
    for step in [0, 1_000_000_001, 3_000_000_000, 4_000_000_001, u32::MAX - 1] {
        let ask = pass_of(step, &[1]);
        // What computes by its number alone is known however far it is.
        let expected = if step % 5 == 0 { DC_COMPUTE } else { DC_UNDECIDED };
        assert_eq!(cache.peek(Some(&ask), DC_UNCOND), expected);
        ok(cache.begin_pass(&pass_of(step, &[0])));
        assert_eq!(cache.before_layer(0, DC_KIND_SPATIAL, &out), DC_COMPUTE);
        cache.after_layer(0, &out);
        ok(cache.end_pass());
    }
    // What is far away is decided when it comes.
    let (cond, uncond) = (Tensor::of(F32, &[1.0]), Tensor::of(F32, &[2.0]));
    let ask = pass_of(4_000_000_000, &[1]);
    ok(cache.after_uncond(&ask, &cond, &uncond));
    let ask = pass_of(4_000_000_001, &[1]);
    assert_eq!(cache.peek(Some(&ask), DC_UNCOND), DC_SKIP);
    assert_eq!(cache.before_uncond(&ask, &cond, &uncond), DC_SKIP);
}

#[test]
fn new_weights_are_not_overlooked_in_a_call_that_is_refused() {
    let guided = Guided::new("none,guidance.every=9", &[500.0; 8], true);
    let (cond, uncond) = (Tensor::of(F32, &[1.0]), Tensor::of(F32, &[2.0]));
    ok(guided.cache.after_uncond(&pass_of(0, &[1]), &cond, &uncond));
    assert_eq!(guided.cache.peek(Some(&pass_of(1, &[1])), DC_UNCOND), DC_SKIP);
    let wrong = flagged(1, &[0], DC_PASS_FORGET);
    assert_eq!(guided.cache.before_uncond(&wrong, &cond, &uncond), DC_COMPUTE);
    assert!(last_error().contains("branches"), "{}", last_error());
    assert_eq!(guided.cache.before_uncond(&pass_of(1, &[1]), &cond, &uncond), DC_COMPUTE);
    assert_eq!(guided.cache.trace().reasons(), "EH");
}
