//! What each method costs: passes over memory, counted where the operations are called, and bytes,
//! counted by the allocator. The header and the README state these numbers.
mod support;

use diffcache::cache::{Cache, Engine, Given, PassInfo, Run, flag};
use diffcache::error::Result;
use diffcache::group::{Layout, Unit};
use diffcache::ops::host::Host;
use diffcache::ops::memory::Memory;
use diffcache::ops::memory::Storage;
use diffcache::ops::{Comparison, Dtype, Ops, Rounding, Shape, Tensor, View};
use diffcache::options::Options;
use diffcache::preset::{Hooks, method};
use diffcache::rule::{Action, Change};
use diffcache::scope::Kind;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

/// Elements read and written, and what was called.
#[derive(Clone, Debug, Default, PartialEq)]
struct Traffic {
    read: usize,
    written: usize,
    low_passes: usize,
}

/// The host's operations, counted.
struct Counting {
    host: Host,
    traffic: Rc<RefCell<Traffic>>,
}

impl Counting {
    fn count(&self, reads: usize, writes: usize, elements: usize) {
        let mut traffic = self.traffic.borrow_mut();
        traffic.read += reads * elements;
        traffic.written += writes * elements;
    }
}

impl Ops for Counting {
    type Buffer = Storage;
    type Pending = Change;

    fn alloc(&mut self, shape: Shape) -> Result<Storage> {
        self.host.alloc(shape)
    }

    fn copy(&mut self, out: View, x: View) {
        self.count(1, 1, out.len());
        self.host.copy(out, x);
    }

    fn subtract(&mut self, out: View, x: View, base: View) {
        self.count(2, 1, out.len());
        self.host.subtract(out, x, base);
    }

    fn combine(&mut self, out: View, x: Option<View>, terms: &[(f64, View)], rounding: Rounding) {
        self.count(terms.len() + usize::from(x.is_some()), 1, out.len());
        self.host.combine(out, x, terms, rounding);
    }

    fn ladder(&mut self, y: View, rungs: &[View], held: usize, gap: f64) {
        // The last rung is written without being read.
        let written = rungs.len().min(held + 1);
        self.count(1 + held.min(written - 1), written, y.len());
        self.host.ladder(y, rungs, held, gap);
    }

    fn low_pass(&mut self, out: View, x: View, height: usize, width: usize) {
        self.traffic.borrow_mut().low_passes += 1;
        self.host.low_pass(out, x, height, width);
    }

    fn measure(&mut self, comparisons: &[Comparison], rounded: bool) -> Change {
        for comparison in comparisons {
            let reads = 2 + usize::from(comparison.base.is_some());
            self.count(reads, usize::from(comparison.keep.is_some()), comparison.x.len());
        }
        self.host.measure(comparisons, rounded)
    }

    fn read(&mut self, pending: Change) -> Change {
        self.host.read(pending)
    }
}

/// Elements of every tensor here.
const N: usize = 6 * 7;

/// An engine with three blocks, of three layers each, and guidance, on tensors of 6 x 7 elements.
struct Rig {
    cache: Cache<Counting>,
    traffic: Rc<RefCell<Traffic>>,
    memory: Arc<Memory>,
    step: u32,
}

const BRANCHES: usize = 2;
const BLOCKS: u32 = 3;
const KINDS: [Kind; 3] = [Kind::Spatial, Kind::Cross, Kind::Mlp];

impl Rig {
    fn new(text: &str) -> Self {
        Self::keeping(text, false)
    }

    fn keeping(text: &str, keeps_input: bool) -> Self {
        let mut options = Options::preset("none").expect("a preset");
        options.parse(text).expect(text);
        let hooks = Hooks {
            blocks: true,
            each_block: true,
            layers: true,
            model: true,
            guide: true,
            n_blocks: BLOCKS,
            n_branches: BRANCHES,
            uncond: 1,
        };
        let engine = Engine {
            n_blocks: BLOCKS,
            n_layers: BLOCKS * KINDS.len() as u32,
            n_branches: BRANCHES,
            uncond: 1,
            max_stacked: BRANCHES,
            measure: 1,
            keeps_input,
            reduce: None,
            label: String::new(),
        };
        let traffic = Rc::<RefCell<Traffic>>::default();
        let memory = Memory::new(None, 0);
        let ops = Counting { host: Host::new(memory.clone(), 1), traffic: traffic.clone() };
        let method = method(&options, &hooks).expect(text);
        let observed = Arc::new(Mutex::default());
        let cache = Cache::new(ops, memory.clone(), engine, method, false, observed);
        Self { cache, traffic, memory, step: 0 }
    }

    fn begin_run(&mut self, layouts: Option<Vec<Layout>>) {
        self.step = 0;
        let run = Run {
            n_steps: Some(30),
            first_step: 0,
            end_step: None,
            timesteps: (0..30).map(|step| 900.0 - 10.0 * step as f32).collect(),
            timestep_max: Some(1000.0),
            layouts,
            stream: std::ptr::null_mut(),
        };
        self.cache.begin_run(run).expect("a run");
    }

    fn info(&self, branches: &[usize]) -> PassInfo {
        PassInfo {
            step: self.step,
            branches: branches.iter().copied().collect(),
            flags: 0,
            timestep: 0.0,
            stream: std::ptr::null_mut(),
        }
    }

    /// What `act` reads and writes, in tensors.
    fn cost(&mut self, act: impl FnOnce(&mut Self)) -> (usize, usize) {
        *self.traffic.borrow_mut() = Traffic::default();
        act(self);
        let Traffic { read, written, .. } = *self.traffic.borrow();
        assert_eq!((read % N, written % N), (0, 0));
        (read / N, written / N)
    }

    /// One pass of the conditional branch through all blocks, by all hooks; what was skipped.
    fn pass(&mut self) -> usize {
        let x: Vec<_> = (0..N).map(|i| 1.0 + i as f32 + 0.01 * self.step as f32).collect();
        let (x, layer) = (
            support::Tensor::of(Dtype::F32, &x).on_host(),
            support::Tensor::new(Dtype::F32, &[N]).on_host(),
        );
        layer.fill(self.step as f32);
        let (given, out) = (given(&x), self::given(&layer));
        let mut skipped = 0;
        self.cache.begin_pass(Ok(&self.info(&[0]))).expect("a pass");
        for block in 0..BLOCKS {
            let (action, result) = self.cache.before_block(block, &given, None);
            result.expect("before_block");
            skipped += usize::from(action == Action::Skip);
            if action == Action::Skip {
                continue;
            }
            for (k, kind) in (0..).zip(KINDS) {
                let number = block * KINDS.len() as u32 + k;
                let (action, result) = self.cache.before_layer(number, kind, &out);
                result.expect("before_layer");
                skipped += usize::from(action == Action::Skip);
                if action == Action::Compute {
                    self.cache.after_layer(number, &out).expect("after_layer");
                }
            }
            x.map(|x| 1.1 * x);
            self.cache.after_block(block, &given).expect("after_block");
        }
        self.cache.end_pass().expect("end_pass");
        self.step += 1;
        skipped
    }

    /// One step of guidance alone.
    fn uncond(&mut self) -> Action {
        let [cond, uncond] = [1.0, 2.0].map(|x| {
            let tensor = support::Tensor::new(Dtype::F32, &[6, 7]).on_host();
            tensor.fill(x);
            tensor
        });
        let (cond, uncond) = (given(&cond), given(&uncond));
        let (action, result) = self.cache.before_uncond(Ok(&self.info(&[1])), &cond, &uncond);
        result.expect("before_uncond");
        if action == Action::Compute {
            self.cache.after_uncond(Ok(&self.info(&[1])), &cond, &uncond).expect("after_uncond");
        }
        self.step += 1;
        action
    }
}

fn given(tensor: &support::Tensor) -> impl Fn(&mut Given) -> Result<()> {
    let lent = tensor.lent();
    let shape: Vec<_> = tensor.shape.iter().map(|n| *n as i64).collect();
    let stride = vec![0; shape.len()];
    let tensor = Tensor::new(lent.data.cast(), tensor.dtype, &shape, &stride, 0).expect("legal");
    move |given| {
        given.push(tensor);
        Ok(())
    }
}

/// Reads and writes of the first computed pass, and of the first skipped one, for each value.
fn costs(text: &str, values: usize) -> [(usize, usize); 2] {
    let mut rig = Rig::new(text);
    rig.begin_run(None);
    let mut computed = (0, 0);
    for _ in 0..20 {
        let mut skipped = 0;
        let cost = rig.cost(|rig| skipped = rig.pass());
        if skipped > 0 {
            let each = |(read, written): (usize, usize)| (read / values, written / values);
            assert_eq!([cost, computed].map(|(r, w)| (r % values, w % values)), [(0, 0); 2]);
            return [each(computed), each(cost)];
        }
        computed = cost;
    }
    panic!("{text} never skips");
}

#[test]
fn a_pass_moves_what_the_header_says() {
    let layers = BLOCKS as usize;
    for (text, values, computed, skipped) in [
        // A push of an output is one read and one write.
        ("pab", layers, (1, 1), (1, 1)),
        ("pab,cross.every=3,mlp.every=2", 3 * layers, (1, 1), (1, 1)),
        ("taylorseer,warmup_steps=5", 3 * layers, (1, 1), (2, 1)),
        (
            "taylorseer,warmup_steps=5,order=3,temporal.every=1,cross.every=1,mlp.every=1",
            layers,
            (1, 1),
            (4, 1),
        ),
        ("hicache,warmup_steps=5", 3 * layers, (1, 1), (3, 1)),
        ("fastercache,guidance.every=none,window=none,warmup_steps=3", layers, (1, 1), (2, 1)),
        // A push of a residual is a copy in and a difference out.
        ("taylorseer,scope=block,on_residual=1,warmup_steps=5", layers, (3, 2), (3, 1)),
        ("taylorseer,scope=stack,on_residual=1,warmup_steps=5", 1, (3, 2), (3, 1)),
        ("taylorseer,scope=stack,warmup_steps=5", 1, (1, 1), (2, 1)),
        ("mask,mask=110", 1, (3, 2), (2, 1)),
        // A copy of the input, the measurement, and the residual on it.
        (
            "fbcache,warmup_steps=2,max_error=none,threshold=9",
            1,
            (1 + 2 + 3, 1 + 1 + 2),
            (1 + 3 + 2, 1 + 1 + 1),
        ),
        // Compat modes that keep ladders.
        ("taylorseer,compat=diffusers,warmup_steps=5", 3 * layers, (2, 2), (2, 1)),
        ("taylorseer,compat=diffusers,warmup_steps=5,order=3", 3 * layers, (4, 4), (4, 1)),
        (
            "fastercache,compat=diffusers,guidance.every=none,window=none,warmup_steps=3",
            layers,
            (2, 2),
            (2 + 2, 1 + 2),
        ),
        // A recursive estimator carries its last prediction at the next computed step.
        ("mask,mask=1110,estimator=foca,on_residual=0", 1, (1, 1), (2, 1)),
    ] {
        assert_eq!(costs(text, values), [computed, skipped], "{text}");
    }
}

#[test]
fn an_engine_that_keeps_its_input_saves_the_copy() {
    let text = "fbcache,warmup_steps=2,max_error=none,threshold=9";
    // A block in place would break the promise: what leaves block 0 must lie elsewhere.
    let mut rig = Rig::keeping(text, true);
    rig.begin_run(None);
    let step = |rig: &mut Rig| {
        let values: Vec<_> = (0..N).map(|i| 1.0 + i as f32).collect();
        let (x, h) = (
            support::Tensor::of(Dtype::F32, &values).on_host(),
            support::Tensor::of(Dtype::F32, &values).on_host(),
        );
        h.map(|x| 1.1 * x);
        let (x, h) = (given(&x), given(&h));
        rig.cache.begin_pass(Ok(&rig.info(&[0]))).expect("a pass");
        let _ = rig.cache.before_block(0, &x, Some(&h));
        rig.cache.after_block(0, &h).expect("after_block");
        let (action, result) = rig.cache.before_block(1, &h, None);
        result.expect("before_block");
        if action == Action::Compute {
            rig.cache.after_block(BLOCKS - 1, &h).expect("after_block");
        }
        rig.cache.end_pass().expect("end_pass");
        rig.step += 1;
        action
    };
    let mut actions = Vec::new();
    let costs: Vec<_> = (0..4).map(|_| rig.cost(|rig| actions.push(step(rig)))).collect();
    use Action::{Compute, Skip};
    assert_eq!(actions, [Compute, Compute, Skip, Skip]);
    // The measurement, and the residual on the new value; no copy, nothing written but the result. A
    // computed pass keeps what it measured, and the residual of the stack.
    assert_eq!(costs[2..], [(3 + 2, 1); 2]);
    assert_eq!(costs[0], (2 + 3, 1 + 2));
}

#[test]
fn guidance_moves_three_tensors_in_and_one_out_and_filters_once_a_computed_step() {
    // Low and high frequencies are scaled unlike: 0.9 and 1.1.
    let mut rig = Rig::new("none,guidance.every=4,guidance.low=0.9,guidance.high=1.1");
    rig.begin_run(None);
    let expected = [
        (Action::Compute, (2, 1), 0),
        (Action::Skip, (3, 1), 1),
        (Action::Skip, (3, 1), 0),
        (Action::Skip, (3, 1), 0),
    ];
    for (action, cost, low_passes) in expected.into_iter().cycle().take(8) {
        assert_eq!(rig.cost(|rig| assert_eq!(rig.uncond(), action)), cost);
        assert_eq!(rig.traffic.borrow().low_passes, low_passes);
    }
    // Scaled alike, no filter is needed.
    let mut rig = Rig::new("none,guidance.every=4,guidance.low=1.1,guidance.high=1.1");
    rig.begin_run(None);
    for (action, cost) in [(Action::Compute, (2, 1)), (Action::Skip, (2, 1))] {
        assert_eq!(rig.cost(|rig| assert_eq!(rig.uncond(), action)), cost);
        assert_eq!(rig.traffic.borrow().low_passes, 0);
    }
}

#[test]
fn foca_carries_one_prediction_per_computed_step() {
    let mut rig = Rig::new("mask,mask=11100101,estimator=foca,on_residual=0");
    rig.begin_run(None);
    let costs: Vec<_> = (0..8).map(|_| rig.cost(|rig| _ = rig.pass())).collect();
    // C C C s s C s C. The first skip knows two values, since nothing was skipped between them; the
    // next computed step stores a prediction of two terms.
    assert_eq!(costs[..5], [(1, 1), (1, 1), (1, 1), (2, 1), (2, 1)]);
    assert_eq!(costs[5..], [(1 + 2, 1 + 1), (3, 1), (1 + 3, 1 + 1)]);
}

// ---- memory ----

fn layouts(layers: u32) -> Vec<Layout> {
    // A shape cannot be made but from a tensor.
    let tensor = support::Tensor::new(Dtype::F16, &[6, 7]).on_host();
    let shape = tensor.view().shape();
    let of = |of, count| Layout { of, branch: None, count, tensors: vec![shape] };
    let kinds = KINDS.map(|kind| of(Unit::Layer(kind), layers));
    let mut rows = vec![of(Unit::Block, 1), of(Unit::Model, 1), of(Unit::Uncond, 1)];
    rows.extend(kinds);
    rows
}

#[test]
fn memory_is_what_the_header_says() {
    let (l, b) = (u64::from(BLOCKS), BRANCHES as u64);
    let a = 2 * N as u64; // bytes of a tensor
    for (text, expected) in [
        ("none", 0),
        ("pab", b * l * a),
        ("pab,mlp.at=0.5", 2 * b * l * a),
        ("pab,mlp.at=0.5,mlp.layers=2", b * (l + 2) * a),
        ("taylorseer", b * 3 * l * a * 2),
        ("taylorseer,order=4,cross.every=1,mlp.every=1", b * l * a * 5),
        ("taylorseer,compat=diffusers", b * 3 * l * a * 2),
        ("taylorseer,compat=diffusers,history_dtype=f32", 2 * b * 3 * l * a * 2),
        ("hicache", b * 3 * l * a * 3),
        ("taylorseer,scope=block,on_residual=1", b * l * a * 2),
        ("taylorseer,scope=block,on_residual=1,front_blocks=1", b * (l - 1) * a * 2),
        ("taylorseer,scope=stack,on_residual=1", b * a * 2),
        ("taylorseer,scope=model", b * a * 2),
        // Of the unconditional branch nothing is kept but the difference, and its low frequencies.
        ("fastercache", 2 * (b - 1) * l * a + 2 * 4 * N as u64),
        ("fastercache,guidance.every=none", 2 * b * l * a),
        ("none,guidance.every=5", 4 * N as u64),
        ("none,guidance.every=5,guidance.low=1.1", 2 * 4 * N as u64),
        ("fbcache,guidance.every=5", b * 2 * a + b * a + 4 * N as u64),
        ("mask,mask=10,estimator=foca", 3 * b * a),
    ] {
        let mut rig = Rig::new(text);
        let layouts = layouts(BLOCKS);
        assert_eq!(rig.cache.memory_needed(&layouts).expect("legal"), expected, "{text}");
        rig.begin_run(Some(layouts.clone()));
        assert_eq!(rig.memory.held(), expected, "{text}");
        let taken = rig.memory.allocations();
        // A second run like it takes nothing more, nor do the passes of either, which work on f32
        // here: so only what is not used by them stays as it was laid in.
        rig.begin_run(Some(layouts));
        assert_eq!((rig.memory.held(), rig.memory.allocations()), (expected, taken), "{text}");
    }
}

#[test]
fn runs_of_layers_take_nothing_after_their_begin() {
    for text in [
        "pab",
        "taylorseer,order=2",
        "hicache",
        "taylorseer,compat=diffusers",
        "taylorseer,scope=block,on_residual=1",
    ] {
        let mut rig = Rig::new(text);
        let mut layouts = layouts(BLOCKS);
        for row in &mut layouts {
            row.tensors.iter_mut().for_each(|shape| *shape = shape.with_dtype(Dtype::F32));
            // What flows through the layers here has one dimension.
            row.tensors = vec![support::Tensor::new(Dtype::F32, &[N]).view().shape()];
        }
        for _ in 0..2 {
            rig.begin_run(Some(layouts.clone()));
            let (held, taken) = (rig.memory.held(), rig.memory.allocations());
            let skipped: usize = (0..20).map(|_| rig.pass()).sum();
            assert!(skipped > 0, "{text}");
            assert_eq!((rig.memory.held(), rig.memory.allocations()), (held, taken), "{text}");
        }
        // Without shapes, nothing after the first computed pass.
        let mut rig = Rig::new(text);
        rig.begin_run(None);
        rig.pass();
        let taken = rig.memory.allocations();
        (0..20).for_each(|_| _ = rig.pass());
        assert_eq!(rig.memory.allocations(), taken, "{text}");
    }
}

#[test]
fn the_engine_may_compute_a_pass_of_layers_all_the_same() {
    let mut rig = Rig::new("pab,window=none");
    rig.begin_run(None);
    rig.pass();
    let mut info = rig.info(&[0]);
    info.flags = flag::COMPUTE;
    rig.cache.begin_pass(Ok(&info)).expect("a pass");
    let layer = support::Tensor::new(Dtype::F32, &[N]).on_host();
    let (action, result) = rig.cache.before_layer(0, Kind::Spatial, &given(&layer));
    result.expect("legal");
    assert_eq!(action, Action::Compute);
}
