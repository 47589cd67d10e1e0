//! What calls cost that touch no tensor, or hardly any: an engine makes hundreds of them a step.
use criterion::{BenchmarkId, Criterion};
use std::hint::black_box;
use std::time::{Duration, Instant};

#[path = "../tests/support/mod.rs"]
mod support;
use support::*;

/// More blocks than any model has, so that the clock need not stop between them.
const BLOCKS: usize = 1 << 16;

/// A pass that has entered its span, and what it is shown: all blocks but two are still to come.
struct Open {
    cache: Cache,
    x: Vec<dc_tensor_t>,
    _owner: [Tensor; 1],
    step: u32,
    next: u32,
}

impl Open {
    fn new(options: &str) -> Self {
        let owner = [Tensor::of(Dtype::F32, &[1.0; 16])];
        let cache = Setup::new(BLOCKS, options).create();
        ok(cache.begin_run(0));
        let mut open = Self { cache, x: lent(&owner), _owner: owner, step: 0, next: 0 };
        open.begin();
        open
    }

    /// Up to the first block of the span.
    fn begin(&mut self) {
        ok(self.cache.begin_pass(&pass_of(self.step, &[0])));
        self.step += 1;
        (0..2).for_each(|block| _ = self.pair(block));
        self.next = 2;
    }

    /// The pass is done, the next one begins.
    fn renew(&mut self) {
        (self.next..BLOCKS as u32).for_each(|block| _ = self.pair(block));
        ok(self.cache.end_pass());
        self.begin();
    }

    fn pair(&self, block: u32) -> dc_action_t {
        // The tensor lives as long as `self`.
        unsafe {
            let action = self.cache.before_raw(block, &self.x, None);
            if action == DC_COMPUTE {
                self.cache.after_raw(block, &self.x);
            }
            action
        }
    }

    /// Asks about so many blocks inside the span.
    fn pairs(&mut self, mut n: u64, expected: dc_action_t) -> Duration {
        let mut time = Duration::ZERO;
        while n > 0 {
            if self.next as usize == BLOCKS - 1 {
                self.renew();
            }
            // The last block does touch its tensor.
            let some = n.min(BLOCKS as u64 - 1 - u64::from(self.next)) as u32;
            let blocks = self.next..self.next + some;
            let start = Instant::now();
            for block in blocks {
                assert_eq!(self.pair(black_box(block)), expected);
            }
            time += start.elapsed();
            self.next += some;
            n -= u64::from(some);
        }
        time
    }
}

fn pairs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("before and after a block");
    let owner = [Tensor::of(Dtype::F32, &[1.0; 16])];
    let x = lent(&owner);
    let off = Cache(std::ptr::null_mut());
    group.bench_function("of a null cache", |bencher| {
        // The tensor lives as long as the benchmark.
        bencher.iter(|| unsafe {
            assert_eq!(off.before_raw(black_box(3), &x, None), DC_COMPUTE);
            off.after_raw(black_box(3), &x);
        });
    });
    for (name, options, expected) in [
        ("inside a computed span", format!("fbcache,{NO_RAILS},threshold=1e-9"), DC_COMPUTE),
        ("inside a skipped span", "mask,mask=0".to_owned(), DC_SKIP),
        ("with preset none", "none".to_owned(), DC_COMPUTE),
    ] {
        let mut open = Open::new(&options);
        if expected == DC_SKIP {
            // The first pass computes.
            open.renew();
        }
        group.bench_function(name, |bencher| bencher.iter_custom(|n| open.pairs(n, expected)));
    }
}

fn passes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a pass of 4 blocks on 16 elements");
    for (name, options) in [
        ("preset none", "none".to_owned()),
        ("skipped by a mask", "mask,mask=10".to_owned()),
        ("computed by fbcache", format!("fbcache,{NO_RAILS},threshold=1e-9")),
        ("skipped by fbcache", format!("fbcache,{NO_RAILS},threshold=9")),
    ] {
        let cache = Setup::new(4, &options).create();
        let owner = [Tensor::of(Dtype::F32, &noise(1, 16))];
        let x = lent(&owner);
        ok(cache.begin_run(0));
        let mut step = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                ok(cache.begin_pass(&pass_of(step, &[0])));
                for block in 0..4 {
                    // The tensor lives as long as the benchmark.
                    unsafe {
                        if cache.before_raw(block, &x, None) == DC_COMPUTE {
                            cache.after_raw(block, &x);
                        }
                    }
                }
                ok(cache.end_pass());
                step += 1;
            });
        });
    }
}

/// An engine with a spatial and an MLP layer in each of 57 blocks.
fn layers(criterion: &mut Criterion) {
    const LAYERS: u32 = 2 * 57;
    let mut group = criterion.benchmark_group("a pass of 114 layers of 16 elements");
    for (name, options) in [
        ("preset none", "none"),
        ("not skipped by pab", "pab,spatial.every=1,temporal.every=2"),
        ("computed by taylorseer", "taylorseer,warmup_steps=4000000000"),
        ("skipped by taylorseer", "taylorseer,every=4000000000"),
    ] {
        let setup = Setup::new(57, options)
            .with(|engine| (engine.hooks, engine.n_layers) = (DC_HOOK_LAYERS, LAYERS));
        let cache = setup.create();
        ok(cache.begin_run_as(&dc_run_t { timestep_max: 1.0, ..run_of(0) }));
        let owner = [Tensor::of(Dtype::F32, &noise(1, 16))];
        let x = lent(&owner);
        let mut step = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let pass = dc_pass_t { timestep: 0.5, ..flagged(step, &[0], DC_PASS_TIMESTEP) };
                ok(cache.begin_pass(&pass));
                for layer in 0..LAYERS {
                    let kind = if layer % 2 == 0 { DC_KIND_SPATIAL } else { DC_KIND_MLP };
                    // The tensor lives as long as the benchmark.
                    unsafe {
                        if cache.before_layer_raw(layer, kind, &x) == DC_COMPUTE {
                            cache.after_layer_raw(layer, &x);
                        }
                    }
                }
                ok(cache.end_pass());
                step += 1;
            });
        });
    }
}

fn caches(criterion: &mut Criterion) {
    for branches in [1, 8] {
        let id = BenchmarkId::new("create and destroy, by branches", branches);
        let setup = Setup::new(57, "fbcache").branches(branches, 1);
        criterion.bench_with_input(id, &setup, |bencher, setup| bencher.iter(|| setup.create()));
    }
    let cache = Setup::new(57, "fbcache").create();
    criterion.bench_function("begin_run", |bencher| bencher.iter(|| ok(cache.begin_run(50))));
}

fn looks(criterion: &mut Criterion) {
    let toy = Toy::doubling(4);
    let cache = Setup::new(4, "fbcache").create();
    ok(cache.begin_run(100));
    let x = [Tensor::of(Dtype::F32, &[1.0; 16])];
    for step in 0..50 {
        x[0].fill(1.0);
        ok(toy.pass(&cache, &pass_of(step, &[0]), &x).status);
    }
    let mut group = criterion.benchmark_group("after 50 passes");
    for (name, ahead) in [("peek at the next pass", 50), ("peek 10 passes ahead", 59)] {
        let pass = pass_of(ahead, &[0]);
        group.bench_function(name, |bencher| bencher.iter(|| cache.peek(Some(&pass), 1)));
    }
    group.bench_function("stats", |bencher| bencher.iter(|| cache.stats()));
    group.bench_function("trace", |bencher| bencher.iter(|| cache.trace()));
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .nresamples(1000)
        .configure_from_args();
    pairs(&mut criterion);
    passes(&mut criterion);
    layers(&mut criterion);
    caches(&mut criterion);
    looks(&mut criterion);
    criterion.final_summary();
}
