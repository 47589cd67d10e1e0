//! Layers and guidance under random calls, in any order and with any mistake: whatever happens, a
//! layer that is answered SKIP holds what that very layer reported before for that very branch, in
//! this run and with this shape; one that is answered COMPUTE is left alone; nothing breaks.
mod support;

use diffcache::ops::Dtype;
use proptest::prelude::*;
use std::collections::HashMap;
use support::*;

const LAYERS: u32 = 4;
const KINDS: [dc_kind_t; 2] = [DC_KIND_SPATIAL, DC_KIND_MLP];

#[derive(Clone, Debug)]
enum Call {
    BeginRun,
    BeginPass {
        ahead: u32,
        members: &'static [u32],
        flags: u32,
    },
    /// `kind` is off by so much, and tensors have another length.
    BeforeLayer {
        layer: u32,
        kind: u32,
        long: bool,
    },
    AfterLayer {
        layer: u32,
        long: bool,
    },
    EndPass,
    /// The engine as it should be: all layers of a pass, and its end.
    Pass {
        members: &'static [u32],
    },
    Uncond {
        ahead: u32,
        after: bool,
        long: bool,
    },
    Decide(dc_action_t),
    Peek {
        ahead: u32,
        unit: u32,
    },
    Trim,
}

fn members() -> impl Strategy<Value = &'static [u32]> {
    prop_oneof![
        4 => Just(&[0][..]),
        2 => Just(&[1, 0][..]),
        1 => Just(&[1][..]),
        1 => Just(&[0, 0][..]),
        1 => Just(&[2][..]),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    let long = || prop::bool::weighted(0.05);
    prop_oneof![
        1 => Just(Call::BeginRun),
        3 => (0u32..3, members(), prop_oneof![4 => Just(0), 1 => 0u32..32])
            .prop_map(|(ahead, members, flags)| Call::BeginPass { ahead, members, flags }),
        6 => (0..LAYERS + 1, prop_oneof![9 => Just(0), 1 => 0u32..9], long())
            .prop_map(|(layer, kind, long)| Call::BeforeLayer { layer, kind, long }),
        6 => (0..LAYERS + 1, long()).prop_map(|(layer, long)| Call::AfterLayer { layer, long }),
        3 => Just(Call::EndPass),
        8 => members().prop_map(|members| Call::Pass { members }),
        4 => (0u32..3, any::<bool>(), long())
            .prop_map(|(ahead, after, long)| Call::Uncond { ahead, after, long }),
        1 => (0u32..4).prop_map(Call::Decide),
        2 => (0u32..4, prop_oneof![
            (0..LAYERS + 1).prop_map(|layer| 0x8000_0000 | layer),
            Just(DC_UNCOND), Just(DC_MODEL), Just(0),
        ]).prop_map(|(ahead, unit)| Call::Peek { ahead, unit }),
        1 => Just(Call::Trim),
    ]
}

const OPTIONS: [&str; 8] = [
    "pab,window=none",
    "pab,window=none,mlp.every=3,spatial.every=4,max_age=3",
    "pab,mlp.at=0.9:0.5,mlp.layers=1",
    "taylorseer,order=0,every=3",
    "taylorseer,order=0,every=3,compat=diffusers",
    "fastercache,weight=0,window=none,guidance.window=none",
    "fastercache,weight=0,window=none,guidance.window=none,compat=diffusers",
    "taylorseer,order=0,every=2,share=1,guidance.every=3,max_consecutive=2",
];

/// Whoever drives the cache, and what it may expect.
struct Driver {
    cache: Cache,
    /// The step that is next, and the members of the open pass.
    step: u32,
    open: Vec<u32>,
    /// A pass is open and was not refused.
    begun: bool,
    /// By layer and branch: values reported in this run, with their lengths.
    reported: HashMap<(u32, u32), Vec<(f32, usize)>>,
    /// Differences of guidance reported in this run.
    differences: Vec<(f32, usize)>,
    next_value: f32,
}

impl Driver {
    fn new(options: &str) -> Self {
        let cache = Setup::new(1, options)
            .branches(2, 2)
            .with(|engine| {
                (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS | DC_HOOK_GUIDE, LAYERS);
            })
            .create();
        Self {
            cache,
            step: 0,
            open: Vec::new(),
            begun: false,
            reported: HashMap::new(),
            differences: Vec::new(),
            next_value: 1.0,
        }
    }

    fn begin_run(&mut self) {
        static TIMESTEPS: [f32; 64] = [500.0; 64];
        ok(self.cache.begin_run_as(&dc_run_t {
            timesteps: TIMESTEPS.as_ptr(),
            timestep_max: 1000.0,
            ..run_of(64)
        }));
        (self.step, self.begun) = (0, false);
        self.reported.clear();
        self.differences.clear();
    }

    fn begin_pass(&mut self, step: u32, members: &[u32], flags: u32) {
        self.open = members.to_vec();
        self.begun = self.cache.begin_pass(&flagged(step, members, flags)) == DC_OK;
        if self.begun {
            self.step = step + 1;
        }
    }

    fn out(&self, long: bool) -> [Tensor; 1] {
        [Tensor::new(Dtype::F32, &[self.open.len().max(1), if long { 4 } else { 3 }])]
    }

    fn before_layer(&mut self, layer: u32, kind: u32, long: bool) -> dc_action_t {
        let out = self.out(long);
        let untouched = out[0].bytes();
        let action = self.cache.before_layer(layer, KINDS[layer as usize % 2] + kind, &out);
        if action == DC_SKIP {
            assert!(self.begun, "a pass that was refused computes");
            for (row, branch) in self.open.iter().enumerate() {
                let values = out[0].part(0, row, 1).values();
                let reported = &self.reported[&(layer, *branch)];
                let one = reported
                    .iter()
                    .any(|(value, len)| values.len() == *len && values.iter().all(|x| x == value));
                assert!(one, "layer {layer}, branch {branch}: {values:?} of {reported:?}");
            }
        } else {
            assert_eq!(out[0].bytes(), untouched);
        }
        action
    }

    fn after_layer(&mut self, layer: u32, long: bool) {
        let out = self.out(long);
        for (row, branch) in self.open.iter().enumerate() {
            self.next_value += 1.0;
            let part = out[0].part(0, row, 1);
            part.fill(self.next_value);
            let values = self.reported.entry((layer, *branch)).or_default();
            values.push((self.next_value, part.len()));
        }
        self.cache.after_layer(layer, &out);
    }

    fn uncond(&mut self, step: u32, after: bool, long: bool) {
        let len = if long { 6 } else { 5 };
        let (cond, uncond) =
            (Tensor::of(Dtype::F32, &vec![1.0; len]), Tensor::new(Dtype::F32, &[len]));
        let ask = pass_of(step, &[1]);
        if after {
            self.next_value += 1.0;
            uncond.fill(1.0 + self.next_value);
            if self.cache.after_uncond(&ask, &cond, &uncond) == DC_OK {
                self.differences.push((self.next_value, len));
            }
            return;
        }
        let untouched = uncond.bytes();
        if self.cache.before_uncond(&ask, &cond, &uncond) == DC_SKIP {
            // fastercache scales low frequencies by 1.1 and its powers in this window; the others
            // have factors of 1.
            let (newest, of) = *self.differences.last().expect("a skip has something to go by");
            let got = uncond.values()[0] - 1.0;
            let powers: Vec<_> = (0..=64).map(|power| newest * 1.1f32.powi(power)).collect();
            assert!(powers.iter().any(|x| (got / x - 1.0).abs() < 1e-3), "{got} of {newest}");
            assert_eq!(len, of);
        } else {
            assert_eq!(uncond.bytes(), untouched);
        }
        assert_eq!(cond.values(), vec![1.0; len]);
    }

    fn serve(&mut self, call: &Call) {
        match *call {
            Call::BeginRun => self.begin_run(),
            Call::BeginPass { ahead, members, flags } => {
                self.begin_pass((self.step + ahead).saturating_sub(1), members, flags);
            }
            Call::BeforeLayer { layer, kind, long } => {
                let _ = self.before_layer(layer, kind, long);
            }
            Call::AfterLayer { layer, long } => self.after_layer(layer, long),
            Call::EndPass => {
                let _ = self.cache.end_pass();
                self.begun = false;
            }
            Call::Pass { members } => {
                self.begin_pass(self.step, members, 0);
                for layer in 0..LAYERS {
                    if self.before_layer(layer, 0, false) == DC_COMPUTE {
                        self.after_layer(layer, false);
                    }
                }
                let begun = std::mem::take(&mut self.begun);
                let status = self.cache.end_pass();
                assert!(
                    !begun || status == DC_OK || status == DC_ERR_SHAPE || status == DC_ERR_ARG,
                    "{}",
                    last_error()
                );
            }
            Call::Uncond { ahead, after, long } => {
                self.uncond((self.step + ahead).saturating_sub(1), after, long);
            }
            Call::Decide(wish) => {
                let _ = self.cache.decide(wish);
            }
            Call::Peek { ahead, unit } => {
                let ask = pass_of(self.step + ahead, if unit == DC_UNCOND { &[1] } else { &[0] });
                let _ = self.cache.peek(Some(&ask), unit);
            }
            Call::Trim => {
                if self.cache.trim() == DC_OK {
                    self.reported.clear();
                    self.differences.clear();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(properties(400))]
    #[test]
    fn a_skip_is_what_its_layer_reported(
        options in 0..OPTIONS.len(), calls in prop::collection::vec(call(), 1..120),
    ) {
        let mut driver = Driver::new(OPTIONS[options]);
        driver.begin_run();
        for call in &calls {
            driver.serve(call);
        }
        let stats = driver.cache.stats();
        prop_assert_ne!(stats.first_error, DC_ERR_INTERNAL, "{}", OPTIONS[options]);
        // And whatever went before, a new run is a new run.
        driver.begin_run();
        let skipped = (0..12).any(|_| {
            let before = driver.cache.stats().layers_skipped;
            driver.serve(&Call::Pass { members: &[0] });
            driver.cache.stats().layers_skipped > before
        });
        // fastercache's layers wait for guidance, which nobody computes here.
        let waits = OPTIONS[options].starts_with("fastercache");
        let listed = OPTIONS[options].contains("mlp.at");
        prop_assert!(skipped || waits || listed, "{}", OPTIONS[options]);
    }
}
