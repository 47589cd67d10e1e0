//! Foresight: what dc_cache_peek promises of a whole run, before its first pass, is what the run then
//! does. For every schedule: intervals, windows, masks, listed MLPs, limits, ages, guidance.
mod support;

use proptest::prelude::*;
use support::*;

const KINDS: [dc_kind_t; 4] = [DC_KIND_SPATIAL, DC_KIND_TEMPORAL, DC_KIND_CROSS, DC_KIND_MLP];
const LAYERS: u32 = 8;
const BLOCKS: u32 = 3;

fn layer_unit(layer: u32) -> u32 {
    0x8000_0000 | layer
}

/// An engine with every hook. Layer `n` is of kind `n % 4`.
struct Engine {
    cache: Cache,
    timesteps: Vec<f32>,
    /// Guidance stacks both branches, or runs a pass for each.
    batched: bool,
    guides: bool,
}

/// What was answered, or foreseen: (step, branch, unit) and a letter.
type Answers = Vec<(u32, u32, u32, char)>;

impl Engine {
    fn new(options: &str, timesteps: &[f32], batched: bool, guides: bool) -> Self {
        let setup = Setup::new(BLOCKS as usize, options).branches(2, if batched { 2 } else { 1 });
        let cache = setup
            .with(|engine| {
                let all = DC_HOOK_LAYERS | DC_HOOK_EACH | DC_HOOK_MODEL | DC_HOOK_GUIDE;
                (engine.hooks, engine.n_layers) = (all, LAYERS);
            })
            .create();
        Self { cache, timesteps: timesteps.to_vec(), batched, guides }
    }

    fn begin_run(&self) {
        ok(self.cache.begin_run_as(&dc_run_t {
            timesteps: self.timesteps.as_ptr(),
            timestep_max: 1000.0,
            ..run_of(self.timesteps.len() as u32)
        }));
    }

    fn units() -> impl Iterator<Item = u32> {
        [DC_MODEL].into_iter().chain(0..BLOCKS).chain((0..LAYERS).map(layer_unit))
    }

    /// One pass: every unit is asked, whatever the answers; what was computed is reported.
    fn pass(&self, step: u32, members: &[u32], answers: &mut Answers) {
        let rows = members.len();
        let cache = &self.cache;
        ok(cache.begin_pass(&pass_of(step, members)));
        let mut note = |unit, action| {
            for branch in members {
                answers.push((step, *branch, unit, letter(action)));
            }
        };
        let x = [Tensor::of(Dtype::F32, &vec![step as f32; rows])];
        let action = cache.before(DC_MODEL, &x);
        note(DC_MODEL, action);
        if action == DC_COMPUTE {
            cache.after(DC_MODEL, &x);
        }
        for block in 0..BLOCKS {
            let action = cache.before(block, &x);
            note(block, action);
            if action == DC_COMPUTE {
                cache.after(block, &x);
            }
        }
        for layer in 0..LAYERS {
            let action = cache.before_layer(layer, KINDS[layer as usize % 4], &x);
            note(layer_unit(layer), action);
            if action == DC_COMPUTE {
                cache.after_layer(layer, &x);
            }
        }
        ok(cache.end_pass());
    }

    /// The passes of a step, given whether the unconditional branch is left out of it.
    fn passes(&self, reduced: bool) -> &'static [&'static [u32]] {
        match (reduced, self.batched) {
            (true, _) => &[&[0]],
            (false, true) => &[&[1, 0]],
            (false, false) => &[&[0], &[1]],
        }
    }

    /// A whole run.
    fn run(&self) -> Answers {
        let mut answers = Vec::new();
        for step in 0..self.timesteps.len() as u32 {
            let ask = pass_of(step, &[1]);
            let reduced = self.guides && self.cache.peek(Some(&ask), DC_UNCOND) == DC_SKIP;
            for members in self.passes(reduced) {
                self.pass(step, members, &mut answers);
            }
            if self.guides {
                let (cond, uncond) =
                    (Tensor::of(Dtype::F32, &[1.0; 4]), Tensor::of(Dtype::F32, &[2.0; 4]));
                let action = self.cache.before_uncond(&ask, &cond, &uncond);
                answers.push((step, 1, DC_UNCOND, letter(action)));
                assert_eq!(action == DC_SKIP, reduced, "step {step}");
                if action == DC_COMPUTE {
                    ok(self.cache.after_uncond(&ask, &cond, &uncond));
                }
            }
        }
        answers
    }

    /// The same, as it is foreseen before any of it.
    fn foreseen(&self) -> Answers {
        let mut answers = Vec::new();
        for step in 0..self.timesteps.len() as u32 {
            let ask = pass_of(step, &[1]);
            let uncond = self.cache.peek(Some(&ask), DC_UNCOND);
            for members in self.passes(self.guides && uncond == DC_SKIP) {
                let pass = pass_of(step, members);
                for unit in Self::units() {
                    let action = self.cache.peek(Some(&pass), unit);
                    for branch in *members {
                        answers.push((step, *branch, unit, letter(action)));
                    }
                }
            }
            if self.guides {
                answers.push((step, 1, DC_UNCOND, letter(uncond)));
            }
        }
        answers
    }
}

fn compare(engine: &Engine, name: &str) -> std::result::Result<String, TestCaseError> {
    // A run tells which layers there are, and of which kind.
    engine.begin_run();
    engine.run();
    engine.begin_run();
    let foreseen = engine.foreseen();
    let happened = engine.run();
    for (foreseen, happened) in foreseen.iter().zip(&happened) {
        prop_assert_eq!(foreseen, happened, "{}", name);
    }
    prop_assert_eq!(foreseen.len(), happened.len());
    Ok(happened.iter().map(|(.., letter)| letter).collect())
}

fn descending(n: usize) -> Vec<f32> {
    (0..n).map(|step| 1000.0 - 1000.0 * step as f32 / n as f32).collect()
}

#[test]
fn every_preset_that_follows_a_schedule_does_as_it_said() {
    for (text, guides) in [
        ("taylorseer", false),
        ("taylorseer,compat=diffusers,order=3", false),
        ("taylorseer,compat=paper,every=6,last_steps=4", false),
        ("taylorseer,scope=block,on_residual=1,front_blocks=1", false),
        ("taylorseer,scope=stack,on_residual=1", false),
        ("taylorseer,scope=model", false),
        ("hicache", false),
        ("pab", false),
        ("pab-cogvideox", false),
        ("pab-latte", false),
        ("pab-opensora", false),
        ("pab-opensoraplan", false),
        ("pab-vchitect", false),
        ("fastercache", true),
        ("fastercache,compat=diffusers", true),
        ("fastercache,guidance.every=none", false),
        ("none,guidance.every=4", true),
        ("mask,mask=1101001000100001000", false),
    ] {
        for batched in [true, false] {
            let engine = Engine::new(text, &descending(24), batched, guides);
            let seen = compare(&engine, text).expect(text);
            assert!(seen.contains('s') && !seen.contains('?'), "{text}: {seen}");
        }
    }
}

fn window() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        (0u32..60, 1u32..60)
            .prop_map(|(low, more)| { format!("0.{low:02}:{}", f64::from(low + more) / 100.0) }),
    ]
}

prop_compose! {
    fn schedule()(
        scope in prop_oneof![Just("layers"), Just("block"), Just("stack"), Just("model")],
        every in prop::option::of(2u32..7),
        mask in prop::option::of(prop::collection::vec(any::<bool>(), 1..30)),
        windows in [window(), window(), window()],
        kind_every in prop::option::of(1u32..5),
        warm_up in 0u32..6,
        last in 0u32..4,
        consecutive in prop::option::of(0u32..6),
        total in prop::option::of(0u32..20),
        age in prop::option::of(1u32..8),
        marks in prop::option::of((1u32..9, 1u32..4)),
        estimator in prop_oneof![Just("hold"), Just("taylor"), Just("hermite"), Just("linear"), Just("foca")],
        compat in prop_oneof![Just("none"), Just("diffusers"), Just("paper")],
        guidance in prop::option::of((2u32..6, any::<bool>())),
    ) -> (String, bool) {
        let layers = scope == "layers";
        let mut text = format!(
            "taylorseer,scope={scope},estimator={estimator},compat={compat},warmup_steps={warm_up},last_steps={last}"
        );
        let mut add = |key: &str, value: String| text += &format!(",{key}={value}");
        // Something must skip and compute in turn.
        add("every", every.or(layers.then_some(3)).unwrap_or(4).to_string());
        if let Some(mask) = mask {
            add("mask", mask.iter().map(|bit| if *bit { '1' } else { '0' }).collect());
        }
        let [all, temporal, guide] = windows;
        let keys = ["window", "temporal.window", "guidance.window"];
        for (key, window) in keys.into_iter().zip([all, temporal, guide]) {
            if !window.is_empty() {
                add(key, window);
            }
        }
        if let Some(every) = kind_every {
            add("temporal.every", every.to_string());
        }
        let limits = [("max_consecutive", consecutive), ("max_total", total), ("max_age", age)];
        for (key, limit) in limits {
            if let Some(limit) = limit {
                add(key, limit.to_string());
            }
        }
        if let Some((mark, skips)) = marks {
            add("mlp.at", format!("0.{mark}"));
            add("mlp.skips", skips.to_string());
        }
        if let Some((every, cond_only)) = guidance {
            add("guidance.every", every.to_string());
            add("cond_only", u8::from(cond_only).to_string());
        }
        (text, guidance.is_some())
    }
}

proptest! {
    #![proptest_config(properties(200))]
    #[test]
    fn any_schedule_does_as_it_said(
        (text, guides) in schedule(), steps in 1usize..28, batched in any::<bool>(),
    ) {
        let engine = Engine::new(&text, &descending(steps), batched, guides);
        let seen = compare(&engine, &text)?;
        prop_assert!(!seen.contains('?'), "{}: {}", text, seen);
    }
}

#[test]
fn what_is_not_certain_is_not_promised() {
    // A layer that nobody has asked about yet; a timestep that the engine tells with the pass.
    let engine = Engine::new("pab", &descending(10), true, false);
    engine.begin_run();
    let later = pass_of(4, &[0]);
    assert_eq!(engine.cache.peek(Some(&later), layer_unit(0)), DC_UNDECIDED);
    assert_eq!(engine.cache.peek(Some(&pass_of(0, &[0])), layer_unit(0)), DC_COMPUTE);
    engine.pass(0, &[0], &mut Vec::new());
    assert_ne!(engine.cache.peek(Some(&later), layer_unit(0)), DC_UNDECIDED);

    // Without a list, the coming pass alone may tell its timestep, and only the next step is certain.
    let told = |step, t| dc_pass_t { timestep: t, ..flagged(step, &[0], DC_PASS_TIMESTEP) };
    let run = dc_run_t { timestep_max: 1000.0, ..run_of(10) };
    ok(engine.cache.begin_run_as(&run));
    let out = [Tensor::of(Dtype::F32, &[1.0])];
    ok(engine.cache.begin_pass(&told(0, 600.0)));
    assert_eq!(engine.cache.before_layer(0, DC_KIND_SPATIAL, &out), DC_COMPUTE);
    engine.cache.after_layer(0, &out);
    ok(engine.cache.end_pass());
    let peek = |pass: dc_pass_t| engine.cache.peek(Some(&pass), layer_unit(0));
    assert_eq!(peek(told(1, 500.0)), DC_SKIP);
    assert_eq!(peek(told(1, 950.0)), DC_COMPUTE);
    assert_eq!(peek(pass_of(1, &[0])), DC_UNDECIDED);
    // By its interval step 2 computes whatever its timestep; of step 3 nothing is known.
    assert_eq!(peek(pass_of(2, &[0])), DC_COMPUTE);
    assert_eq!(peek(told(3, 400.0)), DC_UNDECIDED);
    // In the open pass a site that was entered tells what it was answered.
    ok(engine.cache.begin_pass(&told(1, 500.0)));
    assert_eq!(engine.cache.peek(None, layer_unit(0)), DC_SKIP);
    assert_eq!(engine.cache.peek(None, layer_unit(4)), DC_COMPUTE);
    assert_eq!(engine.cache.before_layer(0, DC_KIND_SPATIAL, &out), DC_SKIP);
    assert_eq!(engine.cache.before_layer(4, DC_KIND_SPATIAL, &out), DC_COMPUTE);
    assert_eq!(engine.cache.peek(None, layer_unit(0)), DC_SKIP);
    assert_eq!(engine.cache.peek(None, layer_unit(4)), DC_COMPUTE);
}

#[test]
fn a_pass_of_layers_may_be_settled_before_it_begins_to_work() {
    let engine = Engine::new("pab,temporal.every=3", &[500.0; 12], true, false);
    engine.begin_run();
    let decide = |step, wish| {
        ok(engine.cache.begin_pass(&pass_of(step, &[0])));
        let answer = engine.cache.decide(wish);
        let x = [Tensor::of(Dtype::F32, &[1.0])];
        let layer = |layer: u32| {
            let action = engine.cache.before_layer(layer, KINDS[layer as usize], &x);
            if action == DC_COMPUTE {
                engine.cache.after_layer(layer, &x);
            }
            letter(action)
        };
        let seen: String = [0, 1].into_iter().map(layer).collect();
        ok(engine.cache.end_pass());
        (answer, seen)
    };
    assert_eq!(decide(0, DC_UNDECIDED), (DC_COMPUTE, "CC".to_owned()));
    assert_eq!(decide(1, DC_UNDECIDED), (DC_SKIP, "ss".to_owned()));
    // Spatial computes, temporal skips: there is no one answer.
    assert_eq!(decide(2, DC_UNDECIDED), (DC_UNDECIDED, "Cs".to_owned()));
    assert_eq!(decide(3, DC_COMPUTE), (DC_COMPUTE, "CC".to_owned()));
    assert_eq!(decide(4, DC_SKIP), (DC_SKIP, "ss".to_owned()));
}
