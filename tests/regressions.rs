//! What a hostile reading of layers, blocks and guidance once broke, silently for the most part.
mod support;

use diffcache::ops::Dtype::F32;
use std::ffi::{CStr, c_void};
use support::*;

fn layered(options: &str, n_layers: u32) -> Setup {
    Setup::new(4, options)
        .with(|engine| (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS | DC_HOOK_EACH, n_layers))
}

fn guided(options: &str, stacked: u32) -> Setup {
    Setup::new(1, options).branches(2, stacked).with(|engine| {
        (engine.hooks, engine.n_layers) = (DC_HOOK_GUIDE | DC_HOOK_LAYERS, 1);
    })
}

/// One pass over some blocks of a model; one of them may run in spite of SKIP.
fn pass(
    cache: &Cache,
    toy: &Toy,
    pass: &dc_pass_t,
    blocks: &[u32],
    forced: Option<u32>,
    x: &[Tensor],
) -> (String, dc_status_t) {
    let _ = cache.begin_pass(pass);
    let mut letters = String::new();
    for &block in blocks {
        let action = cache.before(block, x);
        letters.push(letter(action));
        if action == DC_COMPUTE || forced == Some(block) {
            toy.block(block as usize, x);
            cache.after(block, x);
        }
    }
    (letters, cache.end_pass())
}

/// Block 2 is new in step 2 and computes by itself; the pass is thrown away and done again. What it
/// kept must go, or two of its values belong to one step and forecasts divide by nothing.
#[test]
fn a_pass_that_is_done_again_leaves_no_value_of_its_first_time() {
    for estimator in ["hold", "taylor", "newton", "hermite,order=1", "linear", "foca"] {
        let text = format!("mask,mask=11000000,scope=block,estimator={estimator}");
        let (cache, toy) = (Setup::new(4, &text).create(), Toy::new(&[0.1, 0.2, 0.3, 0.4]));
        ok(cache.begin_run(8));
        let run = |step: u32, flags: u32, blocks: &[u32], forced| {
            let x = [Tensor::of(F32, &[1.0 + step as f32; 4])];
            let (letters, status) =
                pass(&cache, &toy, &flagged(step, &[0], flags), blocks, forced, &x);
            (letters, status, x[0].values()[0])
        };
        assert_eq!(run(0, 0, &[0, 1, 3], None).0, "CCC");
        assert_eq!(run(1, 0, &[0, 1, 3], None).0, "CCC");
        let first = run(2, 0, &[0, 1, 2, 3], Some(3));
        assert_eq!((first.0, first.1), ("ssCs".to_owned(), DC_ERR_DISCARD));
        let again = run(2, DC_PASS_COMPUTE, &[0, 1, 2, 3], None);
        assert_eq!((again.0, again.1), ("CCCC".to_owned(), DC_OK));
        assert_close(&[again.2], &[3.0 * 1.1 * 1.2 * 1.3 * 1.4], F32);
        let next = run(3, 0, &[0, 1, 2, 3], None);
        assert_eq!((next.0, next.1), ("ssss".to_owned(), DC_OK));
        assert!(next.2.is_finite(), "{estimator}: {}", next.2);
    }
}

/// Staged copies wait in the order of the tracks, not of the call.
#[test]
fn tensors_with_ids_may_change_their_order_while_they_are_staged() {
    let cache = Setup::new(2, "mask,mask=110,history_dtype=bf16").create();
    ok(cache.begin_run(3));
    for (step, swapped) in [(0, false), (1, true), (2, false)] {
        let short = Tensor::of(F32, &[1.0 + step as f32; 2]).with_id(1);
        let values: Vec<_> = (0..3000).map(|i| i as f32 + 10.0 * step as f32).collect();
        let long = Tensor::of(F32, &values).with_id(2);
        let x = if swapped { [long.clone(), short.clone()] } else { [short.clone(), long.clone()] };
        ok(cache.begin_pass(&pass_of(step, &[0])));
        for block in 0..2 {
            if cache.before(block, &x) == DC_COMPUTE {
                x.iter().for_each(|x| x.map(|h| h + 1.0));
                cache.after(block, &x);
            }
        }
        ok(cache.end_pass());
        assert_eq!(short.values(), [3.0 + step as f32; 2]);
        let expected: Vec<_> = values.iter().map(|x| x + 2.0).collect();
        assert_eq!(long.values(), expected);
    }
    assert_eq!(cache.trace().actions(), "CCs");
}

/// Either would be written before the other was read.
#[test]
fn tensors_cannot_change_places_in_a_skip() {
    let cache = Setup::new(2, "mask,mask=10").create();
    ok(cache.begin_run(4));
    let x = [1, 2].map(|id| Tensor::of(F32, &[id as f32; 3]).with_id(id));
    let crossed = [x[0].clone().with_id(2), x[1].clone().with_id(1)];
    ok(cache.begin_pass(&pass_of(0, &[0])));
    assert_eq!(cache.before(0, &x), DC_COMPUTE);
    cache.after(1, &x);
    ok(cache.end_pass());
    ok(cache.begin_pass(&pass_of(1, &[0])));
    assert_eq!(cache.before_into(0, &x, &crossed), DC_COMPUTE);
    cache.after(1, &x);
    assert_eq!(cache.end_pass(), DC_ERR_ARG);
    assert!(last_error().contains("which is another's"), "{}", last_error());
}

#[test]
fn a_tensor_that_is_not_restored_passes_through() {
    // On outputs there is nothing to pass.
    let mut handle = std::ptr::null_mut();
    let setup = layered("pab,fill=1", 1);
    let status = unsafe { dc_cache_create(&setup.engine, &setup.options, &mut handle) };
    assert_eq!(status, DC_ERR_UNSUPPORTED);
    assert!(last_error().contains("fill is 0b10"), "{}", last_error());

    let cache = Setup::new(3, "mask,mask=10,fill=0").create();
    ok(cache.begin_run(4));
    for step in 0..2 {
        let x = [Tensor::of(F32, &[1.0; 3]), Tensor::of(F32, &[2.0; 3])];
        let y = [Tensor::new(F32, &[3]), Tensor::new(F32, &[3])];
        ok(cache.begin_pass(&pass_of(step, &[0])));
        if cache.before_into(0, &x, &y) == DC_COMPUTE {
            y[0].fill(3.0);
            y[1].fill(4.0);
            cache.after(2, &y);
        } else {
            assert_eq!(y[0].values(), [3.0; 3]);
            assert_eq!(y[1].values(), [2.0; 3]);
        }
        ok(cache.end_pass());
    }
    // Where none of the tensors would be restored, nothing is skipped, and it is said.
    let cache = Setup::new(3, "mask,mask=10,fill=1").create();
    ok(cache.begin_run(4));
    let x = [Tensor::of(F32, &[1.0; 3])];
    let answers = Toy::doubling(3).pass(&cache, &pass_of(0, &[0]), &x);
    assert_eq!(answers, Answers { blocks: "CCC".to_owned(), status: DC_ERR_ARG });
    assert_eq!(Toy::doubling(3).pass(&cache, &pass_of(1, &[0]), &x).blocks, "CCC");
}

unsafe extern "C-unwind" fn alone(_: *mut c_void, _: *mut f64, _: usize, _: *mut c_void) -> i32 {
    0
}

/// A layer that a branch never asks about has no value on any rank: that is no reason to stop.
#[test]
fn ranks_go_on_without_values_that_none_of_them_has() {
    for (text, blocks) in
        [("pab,window=none,spatial.every=4", false), ("mask,mask=100010001000,scope=block", true)]
    {
        let setup = layered(text, 4).branches(2, 1);
        let cache = setup.with(|engine| engine.reduce = Some(alone)).create();
        // In the second run layer 3 is not asked about at all.
        for layers in [4, 3] {
            ok(cache.begin_run(12));
            let mut seen = [String::new(), String::new()];
            for (step, branch) in (0..12).flat_map(|step| [(step, 0), (step, 1)]) {
                let x = [Tensor::of(F32, &[1.0; 3])];
                ok(cache.begin_pass(&pass_of(step, &[branch])));
                for layer in 0..layers {
                    // Skip-layer guidance.
                    if branch == 1 && layer == 2 {
                        continue;
                    }
                    let unit = if blocks { layer } else { layer_unit(layer) };
                    let promised = cache.peek(None, unit);
                    let action = match blocks {
                        true => cache.before(layer, &x),
                        false => cache.before_layer(layer, DC_KIND_SPATIAL, &x),
                    };
                    assert!(promised == DC_UNDECIDED || promised == action);
                    match action {
                        DC_COMPUTE if blocks => cache.after(layer, &x),
                        DC_COMPUTE => cache.after_layer(layer, &x),
                        _ => {}
                    }
                    if layer == 0 {
                        seen[branch as usize].push(letter(action));
                    }
                }
                ok(cache.end_pass());
            }
            assert_eq!(seen, ["CsssCsssCsss", "CsssCsssCsss"], "{text}");
        }
    }
}

#[test]
fn a_block_that_computes_by_itself_takes_no_more_memory_than_was_planned() {
    let ledger = Ledger::default();
    let text = "fbcache,scope=block,history_dtype=bf16,threshold=1e9,warmup_steps=0,last_steps=0";
    let setup = Setup::new(4, text).with(|engine| ledger.serve(engine));
    let (cache, toy) = (setup.create(), Toy::new(&[0.1, 0.2, 0.3, 0.4]));
    let shapes = [(EACH, vec![Tensor::new(F32, &[8, 8])])];
    ok(cache.begin_run_on(8, &shapes));
    let needed = setup.memory_needed(&shapes);
    for step in 0..5 {
        let x = [Tensor::new(F32, &[8, 8])];
        x[0].fill(1.0);
        let blocks: &[u32] = if step == 0 { &[0, 2, 3] } else { &[0, 1, 2, 3] };
        let (letters, status) = pass(&cache, &toy, &pass_of(step, &[0]), blocks, None, &x);
        assert_eq!((&letters[..], status), (["CCC", "CCss", "Csss"][step.min(2) as usize], DC_OK));
        let books = ledger.books().clone();
        assert_eq!((books.held, books.calls), (needed, 5));
    }
}

#[test]
fn what_a_planned_run_laid_in_gives_way_to_a_run_without_a_plan() {
    let ledger = Ledger::default();
    let setup = Setup::new(4, "fbcache").with(|engine| ledger.serve(engine));
    let cache = setup.create();
    ok(cache.begin_run_on(4, &[(EACH, vec![Tensor::new(F32, &[1024])])]));
    ok(cache.begin_run(4));
    for step in 0..3 {
        let x = [Tensor::of(F32, &[1.0; 64])];
        ok(Toy::doubling(4).pass(&cache, &pass_of(step, &[0]), &x).status);
    }
    let needed = setup.memory_needed(&[(EACH, vec![Tensor::new(F32, &[64])])]);
    assert_eq!(ledger.books().held, needed);
}

#[test]
fn blocks_of_two_sorts_are_counted_in_rows() {
    let ledger = Ledger::default();
    let setup = Setup::new(4, "mask,mask=10,scope=block").with(|engine| ledger.serve(engine));
    let cache = setup.create();
    let (two, one) = ([64, 16].map(|n| Tensor::new(F32, &[n])), [Tensor::new(F32, &[80])]);
    let row = |tensors: &[Tensor], count| {
        let (branch, tensors) = (EACH, tensors.to_vec());
        ShapeRow { hook: DC_HOOK_EACH, kind: 0, branch, count, tensors }
    };
    let rows = [row(&two, 2), row(&one, 2)];
    ok(cache.begin_run_for(&run_of(4), &rows));
    let needed = setup.memory_needed_for(&rows);
    assert_eq!(needed, 4 * 4 * 80);
    for step in 0..2 {
        ok(cache.begin_pass(&pass_of(step, &[0])));
        for block in 0..4 {
            let x = if block < 2 { &two[..] } else { &one[..] };
            x.iter().for_each(|x| x.fill(1.0));
            if cache.before(block, x) == DC_COMPUTE {
                cache.after(block, x);
            }
        }
        ok(cache.end_pass());
        let books = ledger.books().clone();
        assert_eq!((books.held, books.calls), (needed, 6));
    }
    assert_eq!(cache.trace().actions(), "Cs");
}

#[test]
fn a_block_that_was_filled_stays_filled_when_it_is_asked_about_again() {
    for text in ["mask,mask=10,scope=block", "mask,mask=10"] {
        let (cache, toy) = (Setup::new(3, text).create(), Toy::doubling(3));
        ok(cache.begin_run(4));
        let x = [Tensor::of(F32, &[1.0; 2])];
        ok(toy.pass(&cache, &pass_of(0, &[0]), &x).status);
        let x = [Tensor::of(F32, &[1.0; 2])];
        ok(cache.begin_pass(&pass_of(1, &[0])));
        for block in [0, 1, 1, 2] {
            assert_eq!(cache.before(block, &x), DC_SKIP, "{text}");
        }
        assert_eq!(cache.end_pass(), DC_ERR_STATE);
        assert_eq!(x[0].values(), [8.0; 2]);
    }
}

#[test]
fn the_open_pass_tells_foresight_that_it_is_the_last() {
    let cache = guided("none,guidance.every=5,last_steps=1", 2).create();
    ok(cache.begin_run(0));
    for step in 0..3 {
        let flags = if step == 2 { DC_PASS_LAST } else { 0 };
        ok(cache.begin_pass(&flagged(step, &[0], flags)));
        let ask = flagged(step, &[1], flags);
        let promised = [cache.peek(None, DC_UNCOND), cache.peek(Some(&ask), DC_UNCOND)];
        ok(cache.end_pass());
        let (cond, uncond) = (Tensor::of(F32, &[1.0; 4]), Tensor::of(F32, &[2.0; 4]));
        let action = cache.before_uncond(&ask, &cond, &uncond);
        if action == DC_COMPUTE {
            ok(cache.after_uncond(&ask, &cond, &uncond));
        }
        assert_eq!(promised, [action; 2], "step {step}");
        assert_eq!(action == DC_SKIP, step == 1);
    }
}

#[test]
fn layers_wait_for_what_guidance_does_and_not_for_what_it_might_have_done() {
    let text = "fastercache,window=none,guidance.window=none,guidance.low_window=none,\
                guidance.high_window=none";
    let cache = guided(text, 1).create();
    ok(cache.begin_run_as(&dc_run_t { timestep_max: 1.0, ..run_of(14) }));
    let (mut layers, mut branch) = (String::new(), String::new());
    for step in 0..14 {
        let x = [Tensor::of(F32, &[1.0; 4])];
        ok(cache.begin_pass(&pass_of(step, &[0])));
        layers.push(letter(cache.before_layer(0, DC_KIND_SPATIAL, &x)));
        if layers.ends_with('C') {
            cache.after_layer(0, &x);
        }
        ok(cache.end_pass());
        // The engine turns guidance on in step 7.
        if step < 7 {
            branch.push('-');
            continue;
        }
        let (cond, uncond) = (Tensor::of(F32, &[1.0; 4]), Tensor::of(F32, &[2.0; 4]));
        let ask = pass_of(step, &[1]);
        branch.push(letter(cache.before_uncond(&ask, &cond, &uncond)));
        if branch.ends_with('C') {
            ok(cache.after_uncond(&ask, &cond, &uncond));
        }
    }
    assert_eq!([&layers[..], &branch], ["CCCCCCCCCsCsCs", "-------CssCsss"]);
}

/// An engine whose steps have gaps was promised COMPUTE and ran the branch: its prediction stands.
#[test]
fn a_branch_that_ran_in_a_step_is_not_estimated() {
    let cache = guided("none,guidance.every=3,max_total=3", 2).create();
    ok(cache.begin_run(40));
    for step in [0, 1, 5, 7, 10, 13, 14, 17] {
        let ask = pass_of(step, &[1]);
        let stacked = cache.peek(Some(&ask), DC_UNCOND) != DC_SKIP;
        let members: &[u32] = if stacked { &[1, 0] } else { &[0] };
        ok(cache.begin_pass(&pass_of(step, members)));
        ok(cache.end_pass());
        let (cond, uncond) = (Tensor::of(F32, &[1.0; 4]), Tensor::of(F32, &[7.0; 4]));
        let action = cache.before_uncond(&ask, &cond, &uncond);
        assert!(!stacked || action == DC_COMPUTE, "step {step}");
        if action == DC_COMPUTE {
            ok(cache.after_uncond(&ask, &cond, &uncond));
        }
    }
}

#[test]
fn fill_reads_back_what_it_printed() {
    let mut setup = Setup::new(4, "mask,mask=10");
    for (fill, text) in
        [(0x11, "fill=0"), (0xffff_fffe, "fill=1:2:3"), (0xffff_ffef, "mask=10"), (0xf, "mask=10")]
    {
        setup.options.fill = fill;
        let (mut buffer, mut len) = ([0; 256], 0);
        // There is room for all of it.
        let printed = unsafe {
            ok(dc_options_format(&setup.options, buffer.as_mut_ptr(), buffer.len(), &mut len));
            CStr::from_ptr(buffer.as_ptr())
        };
        assert!(printed.to_str().expect("text").ends_with(text), "{printed:?}");
        ok(unsafe { dc_options_parse(&mut setup.options, printed.as_ptr()) });
    }
}

#[test]
fn windows_that_no_timestep_is_in_are_refused() {
    for text in
        ["window=100:800", "spatial.window=1:2", "guidance.window=-1:0", "every=1,scope=block"]
    {
        let setup = Setup::new(4, &format!("mask,mask=10,{text}"));
        let mut handle = std::ptr::null_mut();
        let status = unsafe { dc_cache_create(&setup.engine, &setup.options, &mut handle) };
        assert_eq!(status, DC_ERR_ARG, "{text}");
        let name = text.split('=').next().expect("a key");
        assert!(last_error().contains(name), "{text}: {}", last_error());
    }
}

#[test]
fn idle_guidance_is_said() {
    listen();
    for (label, calls) in [("never asked", false), ("never allowed", true)] {
        let cache =
            guided("none,guidance.every=5,guidance.window=0.1:0.2", 1).label(label).create();
        let timesteps = [500.0; 4];
        let run = dc_run_t { timesteps: timesteps.as_ptr(), timestep_max: 1000.0, ..run_of(4) };
        ok(cache.begin_run_as(&run));
        for step in 0..4 {
            ok(cache.begin_pass(&pass_of(step, &[0])));
            ok(cache.end_pass());
            let (cond, uncond) = (Tensor::of(F32, &[1.0; 4]), Tensor::of(F32, &[2.0; 4]));
            if calls {
                let action = cache.before_uncond(&pass_of(step, &[1]), &cond, &uncond);
                assert_eq!(action, DC_COMPUTE);
            }
        }
        ok(cache.end_run());
        let warned = said(label)
            .into_iter()
            .any(|(level, text)| level == DC_LOG_WARN && text.contains("never skipped"));
        assert!(warned, "{label}: {:?}", said(label));
    }
}
