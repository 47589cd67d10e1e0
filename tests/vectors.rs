//! Runs whose every number can be worked out by hand, recorded from the originals of each method:
//! a toy model of blocks `h -> h (1 + k)` goes through the C ABI, and decisions and outputs must be
//! those of the original.
mod support;

use diffcache::ops::Dtype::F32;
use std::slice::from_ref;
use support::*;

/// cache-dit's toy: four blocks, the first and the last of which always run.
const TOY: [f32; 4] = [0.1, 0.2, 0.3, 0.4];
const F1B1: &str = "front_blocks=1,back_blocks=1";

fn toy() -> Toy {
    Toy::new(&TOY)
}

/// 1, 1.02, 1.04, ...
fn ramp(steps: usize) -> Vec<f32> {
    (0..steps).map(|s| 1.0 + 0.02 * s as f32).collect()
}

/// 1, 1.024, 1.056, ...
fn bent(steps: usize) -> Vec<f32> {
    (0..steps).map(|s| 1.0 + 0.02 * s as f32 + 0.004 * (s * s) as f32).collect()
}

/// A mask's steps as a trace writes them.
fn as_actions(mask: &str) -> String {
    mask.replace('1', "C").replace('0', "s")
}

// ---- FirstBlockCache ----

#[test]
fn fbcache_compares_with_the_last_computed_step() {
    let inputs = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5];
    // Three blocks that double: a computed pass gives 8x, and its residual after block 0 is 6x.
    let outputs = [8.0, 2.2 + 6.0, 2.4 + 6.0, 10.4, 2.8 + 7.8, 3.0 + 7.8];
    for dtype in DTYPES {
        for behaviour in ["compat=diffusers", NO_RAILS] {
            let options = format!("fbcache,threshold=0.25,{behaviour}");
            let (trace, got) = Toy::doubling(3).run(&options, dtype, &inputs);
            assert_eq!(trace.actions(), "CssCss", "{options} {dtype:?}");
            assert_eq!(trace.reasons(), "Hrrrrr");
            assert_close(&got, &outputs, dtype);
        }
    }
}

#[test]
fn fbcache_at_the_edges_of_the_threshold() {
    // Inputs, gain of the first block, decisions of diffusers, decisions and reasons of our own.
    let cases = [
        ("equal to the threshold", [1.0, 1.5], 1.0, "Cs", "CC", "Hr"),
        ("0/0", [1.0, 5.0], 0.0, "Cs", "CC", "HN"),
        ("0/0, all zero", [0.0, 0.0], 1.0, "Cs", "CC", "HN"),
        ("NaN", [1.0, f32::NAN], 1.0, "Cs", "CC", "HN"),
        ("after NaN", [f32::NAN, 1.0], 1.0, "Cs", "CC", "HN"),
        ("x/0", [0.0, 1.0], 1.0, "CC", "CC", "HN"),
        ("infinity", [1.0, f32::INFINITY], 1.0, "Cs", "CC", "HN"),
    ];
    for dtype in DTYPES {
        for (name, inputs, gain, theirs, ours, reasons) in cases {
            let toy = Toy::new(&[gain, 1.0, 1.0]);
            let (trace, _) = toy.run("fbcache,threshold=0.5,compat=diffusers", dtype, &inputs);
            assert_eq!(trace.actions(), theirs, "{name}, {dtype:?}, diffusers");
            let (trace, _) = toy.run(&format!("fbcache,threshold=0.5,{NO_RAILS}"), dtype, &inputs);
            assert_eq!(trace.actions(), ours, "{name}, {dtype:?}");
            assert_eq!(trace.reasons(), reasons, "{name}, {dtype:?}");
        }
    }
}

#[test]
fn one_bad_element_among_many_is_enough() {
    for (bad, dtype) in
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().zip(DTYPES.into_iter().cycle())
    {
        let (toy, cache) =
            (Toy::doubling(3), Setup::new(3, &format!("fbcache,{NO_RAILS}")).create());
        ok(cache.begin_run(4));
        for step in 0..4 {
            let x = [Tensor::of(dtype, &vec![1.0; 5000])];
            if step == 2 {
                x[0].part(0, 4999, 1).fill(bad);
            }
            ok(toy.pass(&cache, &pass_of(step, &[0]), &x).status);
        }
        // The bad step is measured against a good one, then a good one against the bad.
        assert_eq!(cache.trace().actions(), "CsCC", "{bad} {dtype:?}");
        assert_eq!(cache.trace().reasons(), "HrNN");
    }
}

/// A text stream goes along: it is restored by its own residual, and measured only if the engine
/// says so.
#[test]
fn fbcache_restores_every_stream_and_measures_the_named_ones() {
    // The image stands still and the text doubles: the second of two such steps skips by the image
    // alone, and computes by the text or by both (mean change 2/3).
    for (measure, expected) in [(0b01, "Cs"), (0b10, "CC"), (0b11, "CC")] {
        let toy = Toy::doubling(3);
        let setup = Setup::new(3, &format!("fbcache,threshold=0.3,{NO_RAILS}"));
        let cache = setup.with(|engine| engine.measure = measure).create();
        ok(cache.begin_run(2));
        for (step, text) in [(0, 2.0), (1, 4.0)] {
            let x = [Tensor::of(F32, &[1.0; 6]), Tensor::of(F32, &[text; 6])];
            ok(toy.pass(&cache, &pass_of(step, &[0]), &x).status);
            if expected == "Cs" && step == 1 {
                assert_eq!(x[0].values(), [8.0; 6]);
                // 2 * 4 after block 0, and 6 * 2 as the blocks added to the first text.
                assert_eq!(x[1].values(), [8.0 + 12.0; 6]);
            }
        }
        assert_eq!(cache.trace().actions(), expected, "measure {measure:#b}");
    }
}

#[test]
fn taylor_on_the_fbcache_preset_follows_a_line() {
    let inputs: Vec<_> = (0..8).map(|s| 1.0 + 0.125 * s as f32).collect();
    for dtype in DTYPES {
        for estimator in ["taylor", "newton"] {
            let options = format!(
                "fbcache,estimator={estimator},order=1,threshold=9,{NO_RAILS},warmup_steps=2"
            );
            let (trace, outputs) = Toy::doubling(3).run(&options, dtype, &inputs);
            assert_eq!(trace.actions(), "CCssssss");
            let full: Vec<_> = inputs.iter().map(|x| 8.0 * x).collect();
            assert_close(&outputs, &full, dtype);
        }
    }
}

// ---- DBCache ----

#[test]
fn dbcache_with_a_block_at_each_end() {
    let options = format!("dbcache,{F1B1},threshold=0.1,{NO_RAILS},warmup_steps=2");
    let (trace, outputs) = toy().run(&options, F32, &ramp(16));
    assert_eq!(trace.actions(), "CCsssssCsssssCss");
    let expected = [
        2.4024, 2.450448, 2.481248, 2.512048, 2.542848, 2.573648, 2.604448, 2.738736, 2.769536,
        2.800336, 2.831136, 2.861936, 2.892736, 3.027024, 3.057824, 3.088624,
    ];
    assert_close(&outputs, &expected, F32);
}

#[test]
fn dbcache_limits() {
    for (limit, actions, reasons) in [
        ("max_consecutive=2", "CCssCssCssCssCss", "WWrrcrrcrrcrrcrr"),
        ("max_total=3", "CCsssCCCCCCCCCCC", "WWrrrttttttttttt"),
        // The changes are 0.0196, 0.0392, 0.0588, ...: three of them pass 0.1 together.
        ("max_run_error=0.1", "CCsssCCCCCCCCCCC", "WWrrraaaaaaaaaaa"),
        ("last_steps=3", "CCsssssCsssssCCC", "WWrrrrrrrrrrrLLL"),
    ] {
        let options = format!("dbcache,{F1B1},threshold=0.1,{NO_RAILS},warmup_steps=2,{limit}");
        let (trace, _) = toy().run(&options, F32, &ramp(16));
        assert_eq!(trace.actions(), actions, "{limit}");
        assert_eq!(trace.reasons(), reasons, "{limit}");
    }
}

#[test]
fn within_the_warm_up_every_nth_step_computes() {
    for (warm_up, interval, expected) in [
        (8, 1, "CCCCCCCCssss"),
        (8, 2, "CsCsCsCsssss"),
        (8, 3, "CssCssCsssss"),
        (5, 4, "CsssCsssssss"),
        (1, 9, "Csssssssssss"),
    ] {
        let options =
            format!("dbcache,{F1B1},{NO_RAILS},warmup_steps={warm_up},warmup_interval={interval}");
        for dtype in DTYPES {
            let (trace, _) = toy().run(&options, dtype, &[1.0; 12]);
            assert_eq!(trace.actions(), expected, "{warm_up} {interval} {dtype:?}");
        }
    }
}

// ---- step masks ----

#[test]
fn masks_decide_alone_or_beside_the_change() {
    let expected = [
        2.4024, 2.450448, 2.498496, 2.529296, 2.560096, 2.64264, 2.67344, 2.70424, 2.73504,
        2.76584, 2.88288, 2.91368, 2.94448, 2.97528, 3.00608, 3.12312,
    ];
    let mask = "1110010000100001";
    let fixed = format!("mask,{F1B1},mask={mask}");
    let dynamic = format!("dbcache,{F1B1},mask={mask},threshold=0.1,{NO_RAILS}");
    for (options, dtypes) in [(fixed, &DTYPES[..]), (dynamic, &[F32])] {
        for dtype in dtypes {
            let (trace, outputs) = toy().run(&options, *dtype, &ramp(16));
            assert_eq!(trace.actions(), as_actions(mask), "{options}");
            assert_close(&outputs, &expected, *dtype);
        }
    }
}

#[test]
fn a_change_above_the_threshold_computes_where_the_mask_would_allow_a_skip() {
    let mask = "1000000000000000";
    let options = format!("dbcache,{F1B1},mask={mask},threshold=0.05,{NO_RAILS}");
    let (trace, _) = toy().run(&options, F32, &ramp(16));
    // Two skips at 0.02 and 0.04 beyond 1, 1.06, 1.12 and 1.18; beyond 1.24 0.06 is not yet 5 %.
    assert_eq!(trace.actions(), "CssCssCssCssCsss");
}

#[test]
fn published_masks_are_followed_and_steps_past_the_end_skip() {
    for mask in [
        "1101",
        "11111011",
        "111101101001",
        "1111111101110011",
        "11110000000000000001",
        "1111111101110011100110010001",
        "1111110110001100011000110001",
        "1111110100010000100000100001",
        "1111001000001000000100000001",
        "11111111111111110011100000111000001110000011100001",
    ] {
        let inputs = ramp(mask.len() + 3);
        let (trace, _) = toy().run(&format!("mask,mask={mask}"), F32, &inputs);
        assert_eq!(trace.actions(), as_actions(mask) + "sss");
        assert!(trace.reasons().bytes().all(|reason| reason == b'r'));
    }
}

#[test]
fn a_mask_that_begins_with_a_skip_computes_until_something_is_kept() {
    let (trace, outputs) = toy().run("mask,mask=0010", F32, &ramp(4));
    assert_eq!(trace.actions(), "CsCs");
    assert_eq!(trace.reasons(), "Hrrr");
    assert_close(&outputs[..2], &[2.4024, 1.02 + 1.4024], F32);
}

// ---- forecasts ----

#[test]
fn calibrators_of_cache_dit() {
    let run = |estimator: &str| {
        let options = format!("mask,{F1B1},mask=1111001000100001,estimator={estimator}");
        toy().run(&options, F32, &bent(16)).1
    };
    let order_1 = [
        2.4024, 2.460058, 2.536934, 2.63303, 2.741446, 2.862182, 3.036634, 3.195808, 3.367302,
        3.551117, 3.84384, 4.076442, 4.321363, 4.578605, 4.848166, 5.28528,
    ];
    assert_close(&run("taylor,order=1"), &order_1, F32);
    assert_close(&run("newton,order=1"), &order_1, F32);
    // At steps 4 and 5 cache-dit has not built order 2 yet, though three values are known.
    let order_2 =
        [3.036634, 3.198108, 3.376501, 3.571814, 3.84384, 4.07946, 4.333437, 4.60577, 4.896461];
    assert_close(&run("taylor,order=2")[6..15], &order_2, F32);
}

/// t^2, computed at 0, 1, 2, 4 and 9, and forecast with order 2: as the residual of the stack, as
/// its output, and as the output of the whole model.
#[test]
fn taylor_is_biased_on_uneven_gaps_and_newton_is_not() {
    let published =
        [(3, 8.0), (5, 22.75), (6, 31.0), (7, 40.75), (8, 52.0), (10, 94.7), (11, 109.8)];
    let exact = published.map(|(t, _)| (t, (t * t) as f32));
    let squares: Vec<_> = (0..12).map(|t| (t * t) as f32).collect();
    for (estimator, expected) in [("taylor", published), ("newton", exact)] {
        let options = format!("mask,mask=111010000100,estimator={estimator},order=2");

        // A block that doubles t^2 has t^2 as its residual and 2 t^2 as its output.
        let residual = Toy::doubling(1).run(&options, F32, &squares).1;
        let output = Toy::doubling(1).run(&format!("{options},on_residual=0"), F32, &squares).1;
        let model = model_outputs(&format!("{options},scope=model,on_residual=0"), &squares);
        for (t, value) in expected {
            let got = [residual[t], output[t], model[t]];
            assert_close(&got, &[squares[t] + value, 2.0 * value, value], F32);
        }
    }
}

/// What stands in a model's prediction after each step: `values`, where it is computed.
fn model_outputs(options: &str, values: &[f32]) -> Vec<f32> {
    let setup = Setup::new(1, options).with(|engine| engine.hooks = DC_HOOK_MODEL);
    let cache = setup.create();
    ok(cache.begin_run(values.len() as u32));
    let step = |(step, &value): (u32, &f32)| {
        let (latents, prediction) = ([Tensor::of(F32, &[7.0; 3])], [Tensor::new(F32, &[9])]);
        ok(cache.begin_pass(&pass_of(step, &[0])));
        if cache.before_into(DC_MODEL, &latents, &prediction) == DC_COMPUTE {
            prediction[0].fill(value);
            cache.after(DC_MODEL, &prediction);
        }
        ok(cache.end_pass());
        assert_eq!(latents[0].values(), [7.0; 3], "what goes in stays as it is");
        prediction[0].values()[8]
    };
    (0..).zip(values).map(step).collect()
}

#[test]
fn newton_of_any_order_is_exact_on_polynomials_of_that_order() {
    for order in 0..=4 {
        let value = |t: u32| (0..=order).map(|power| (f64::from(t) / 8.0).powi(power)).sum::<f64>();
        let inputs: Vec<_> = (0..12).map(|t| value(t) as f32).collect();
        let options = format!("mask,mask=110101100,estimator=newton,order={order}");
        let (trace, outputs) = Toy::doubling(1).run(&options, F32, &inputs);
        assert_eq!(trace.actions(), "CCsCsCCsssss");
        let known = if order < 2 { 2..12 } else { 7..12 };
        let full: Vec<_> = inputs[known.clone()].iter().map(|x| 2.0 * x).collect();
        assert_close(&outputs[known], &full, F32);
    }
}

// ---- guidance ----

#[test]
fn branches_in_passes_of_their_own_decide_apart() {
    let options = format!("dbcache,{F1B1},threshold=0.1,{NO_RAILS},warmup_steps=2");
    let alone = toy().run(&options, F32, &ramp(8)).1;
    let cache = Setup::new(4, &options).branches(2, 1).create();
    ok(cache.begin_run(8));
    for (step, input) in ramp(8).into_iter().enumerate() {
        for branch in 0..2 {
            let x = [Tensor::of(F32, &[scale(branch) * input; 5])];
            ok(toy().pass(&cache, &pass_of(step as u32, &[branch]), &x).status);
            assert_close(&x[0].values(), &[scale(branch) * alone[step]; 5], F32);
        }
    }
    // By calls.
    assert_eq!(cache.trace().actions(), "CCCCssssssssssCC");
}

/// The model is linear: a branch that goes in doubled comes out doubled.
fn scale(branch: u32) -> f32 {
    1.0 + branch as f32
}

#[test]
fn branches_stacked_in_a_batch_decide_together_and_keep_apart() {
    let options = format!("dbcache,{F1B1},threshold=0.1,{NO_RAILS},warmup_steps=2");
    let alone = toy().run(&options, F32, &ramp(16)).1;
    let cache = Setup::new(4, &options).branches(2, 2).create();
    ok(cache.begin_run(16));
    for (step, input) in (0..).zip(ramp(16)) {
        // [uncond; cond], and at some steps the other way round: rows belong to a branch.
        let members = if step % 3 == 0 { [0, 1] } else { [1, 0] };
        let x = Tensor::new(F32, &[2, 5]);
        let row = |branch| x.part(0, usize::from(members[0] != branch), 1);
        members.iter().for_each(|branch| row(*branch).fill(scale(*branch) * input));
        ok(toy().pass(&cache, &pass_of(step, &members), from_ref(&x)).status);
        for branch in members {
            let expected = scale(branch) * alone[step as usize];
            assert_close(&row(branch).values(), &[expected; 5], F32);
        }
    }
    for branch in 0..2 {
        assert_eq!(cache.trace().of(branch).actions(), "CCsssssCsssssCss");
    }
}

#[test]
fn a_branch_may_change_between_passes_of_its_own_and_a_batch() {
    let cache = Setup::new(4, &format!("mask,mask=1100,{F1B1}")).branches(2, 2).create();
    ok(cache.begin_run(4));
    // The passes of each step, by the branches stacked in them. Branch 1 goes in doubled.
    let steps: [&[&[u32]]; 4] = [&[&[0, 1]], &[&[1], &[0]], &[&[0], &[1]], &[&[1, 0]]];
    // Blocks 1 and 2 make 1.56 of 1.1 x, last of x = 2; block 3 adds four tenths.
    let kept = 0.56 * 1.1 * 2.0;
    let outputs = [2.4024, 4.8048, 1.4 * (3.3 + kept), 1.4 * (4.4 + kept)];
    for (step, passes) in steps.into_iter().enumerate() {
        for members in passes {
            let x = Tensor::new(F32, &[members.len(), 5]);
            let rows = (0..).zip(*members).map(|(row, branch)| (x.part(0, row, 1), scale(*branch)));
            rows.clone().for_each(|(row, scale)| row.fill(scale * (1.0 + step as f32)));
            ok(toy().pass(&cache, &pass_of(step as u32, members), from_ref(&x)).status);
            for (row, scale) in rows {
                assert_close(&row.values(), &[scale * outputs[step]; 5], F32);
            }
        }
    }
    for branch in 0..2 {
        assert_eq!(cache.trace().of(branch).actions(), "CCss");
    }
}

#[test]
fn the_first_branch_of_a_step_decides_for_all_if_they_share() {
    // Branch 1 stands still and branch 0 does not: it is branch 0 that is asked.
    let options = format!("fbcache,share=1,threshold=0.25,{NO_RAILS}");
    let cache = Setup::new(3, &options).branches(2, 1).create();
    ok(cache.begin_run(6));
    let toy = Toy::doubling(3);
    for (step, input) in (0..).zip([1.0, 1.1, 1.2, 1.3, 1.4, 1.5]) {
        for (branch, input) in [(0, input), (1, 1.0)] {
            let x = [Tensor::of(F32, &[input; 5])];
            ok(toy.pass(&cache, &pass_of(step, &[branch]), &x).status);
        }
    }
    assert_eq!(cache.trace().of(0).actions(), "CssCss");
    assert_eq!(cache.trace().of(1).actions(), "CssCss");
    assert_eq!(cache.trace().of(1).reasons(), "ssssss");
}

#[test]
fn a_lagged_decision_is_that_of_the_step_before() {
    let inputs = [1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0];
    let at_once = format!("fbcache,threshold=0.25,{NO_RAILS}");
    // Step 1 knows no measurement yet. The jump at step 2 is felt at step 3, which is still measured
    // against the value before the jump: that is felt at step 4.
    for (options, expected) in
        [(at_once.clone(), "CsCssss"), (format!("{at_once},lagged=1"), "CCsCCss")]
    {
        let (trace, _) = Toy::doubling(3).run(&options, F32, &inputs);
        assert_eq!(trace.actions(), expected, "{options}");
    }
}

// ---- runs ----

#[test]
fn every_method_lives_with_short_runs_and_with_runs_cut_short() {
    for method in [
        "none",
        "fbcache",
        "fbcache,compat=diffusers",
        "fbcache,estimator=taylor,order=2",
        "dbcache,front_blocks=1,back_blocks=1",
        "mask,mask=1001",
        "mask,mask=1001,estimator=newton,order=3",
    ] {
        let cache = Setup::new(4, method).create();
        let (one, short) = (&ramp(1)[..], &ramp(3)[..]);
        let first = toy().run_filled(&cache, F32, 5, one);
        assert_close(&first, &[2.4024], F32);
        let of_short = (toy().run_filled(&cache, F32, 5, short), cache.trace().bits());
        // A run that was announced longer, and never ended.
        ok(cache.begin_run(50));
        for step in 0..7 {
            let x = [Tensor::of(F32, &[9.0; 5])];
            ok(toy().pass(&cache, &pass_of(step, &[0]), &x).status);
        }
        let again = (toy().run_filled(&cache, F32, 5, short), cache.trace().bits());
        assert_eq!(again, of_short, "{method}");
    }
}
