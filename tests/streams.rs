//! On which stream work is done, and what is waited for. On the CPU, where a call has done its work
//! when it returns, there is nothing to claim; what the driver is asked to do is known only where its
//! stand-in keeps a log.
mod support;

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device::Stream;
use support::*;

/// One test at a time, as the driver's log is the process's. `None` on the CPU.
fn alone() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    device::on_cuda().then(|| {
        let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        ok(dc_backend_prepare(DC_BACKEND_CUDA, 0));
        guard
    })
}

// ---- an engine that never waits ----

const STEPS: u32 = 12;
const LEN: usize = 3000;

/// The stream of each pass.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// The same for all.
    One,
    /// Two in turn, which nothing but the library orders.
    InTurn,
    /// A new one, destroyed after the pass.
    New,
    /// DC_STREAM_SYNC
    Hidden,
    /// The null stream.
    Null,
}

/// All that its blocks would work out is there beforehand: latents, what block 0 makes of them, and
/// what the last block leaves.
struct Engine {
    cache: Cache,
    steps: Vec<[Tensor; 3]>,
}

/// What came of a run.
#[derive(Debug, PartialEq)]
struct Seen {
    actions: String,
    records: Vec<[u64; 7]>,
    outputs: Vec<Vec<u8>>,
}

impl Engine {
    fn new(options: &str) -> Self {
        let step = |step: u32| {
            let mixed = |seed: u64, part: f32| {
                let (fixed, moving) = (noise(seed, LEN), noise(100 + u64::from(step), LEN));
                let mix = fixed.iter().zip(&moving).map(|(a, b)| a + part * b * step as f32);
                Tensor::of(Dtype::Bf16, &mix.collect::<Vec<_>>())
            };
            [mixed(1, 0.02), mixed(2, 0.04), mixed(3, 0.05)]
        };
        Self { cache: Setup::new(3, options).create(), steps: (0..STEPS).map(step).collect() }
    }

    /// One pass; the tensor with its result.
    fn pass(&self, step: u32, stream: *mut c_void) -> &Tensor {
        let [x, h, y] = &self.steps[step as usize];
        let [x, h] = [x, h].map(std::slice::from_ref);
        let context = device::current_context();
        ok(self.cache.begin_pass(&dc_pass_t { stream, ..pass_of(step, &[0]) }));
        assert_eq!(self.cache.before(0, x), DC_COMPUTE);
        self.cache.after(0, h);
        let mut result = y;
        for block in 1..3 {
            match self.cache.before(block, h) {
                DC_COMPUTE if block == 2 => self.cache.after(block, std::slice::from_ref(y)),
                DC_COMPUTE => self.cache.after(block, h),
                _ => result = &h[0],
            }
        }
        ok(self.cache.end_pass());
        assert_eq!(device::current_context(), context, "the thread's context is as it was");
        result
    }

    fn run(&self, way: Way) -> Seen {
        device::synchronise();
        let pair = [Stream::new(), Stream::new()];
        ok(self.cache.begin_run(STEPS));
        let pass = |step: u32| match way {
            Way::One => self.pass(step, pair[0].raw()),
            Way::InTurn => self.pass(step, pair[step as usize % 2].raw()),
            Way::New => self.pass(step, Stream::new().raw()),
            Way::Hidden => self.pass(step, device::HIDDEN_STREAM),
            Way::Null => self.pass(step, null_mut()),
        };
        let results: Vec<_> = (0..STEPS).map(pass).collect();
        // With DC_STREAM_SYNC all is done on return.
        if way != Way::Hidden {
            device::synchronise_all();
        }
        let outputs = results.into_iter().map(Tensor::bytes).collect();
        let trace = self.cache.trace();
        Seen { actions: trace.actions(), records: trace.bits(), outputs }
    }
}

const METHODS: [&str; 4] = [
    "fbcache,threshold=0.05",
    "fbcache,threshold=0.05,lagged=1",
    "dbcache,threshold=0.05,front_blocks=1,back_blocks=0,estimator=taylor,order=2",
    "mask,mask=110100100100,front_blocks=1,estimator=newton,order=2",
];

fn options(method: &str) -> String {
    format!("{method},{NO_RAILS}")
}

#[test]
fn a_run_is_the_same_on_whatever_stream_its_passes_are() {
    let Some(_alone) = alone() else { return };
    for method in METHODS {
        let expected = Engine::new(&options(method)).run(Way::One);
        let both = expected.actions.contains('s') && expected.actions[1..].contains('C');
        assert!(both, "{method}: {}", expected.actions);
        for way in [Way::InTurn, Way::New, Way::Hidden, Way::Null] {
            assert_eq!(Engine::new(&options(method)).run(way), expected, "{method}, {way:?}");
        }
    }
}

#[test]
fn a_cache_may_go_on_after_the_streams_of_its_last_run() {
    let Some(_alone) = alone() else { return };
    let engine = Engine::new(&options(METHODS[0]));
    let first = engine.run(Way::New).actions;
    for way in [Way::InTurn, Way::Hidden, Way::Null, Way::One] {
        assert_eq!(engine.run(way).actions.len(), first.len());
        ok(engine.cache.trim());
    }
}

/// As ggml's: it synchronises, calls, and finds all done on return.
#[test]
fn an_engine_may_hide_its_stream_and_work_between_the_calls() {
    let Some(_alone) = alone() else { return };
    let toy = Toy::new(&[0.5, 0.25, -0.125]);
    let inputs: Vec<_> = (0..STEPS).map(|step| 1.0 + 0.01 * (step * step) as f32).collect();
    for method in METHODS {
        let run = || {
            let (trace, outputs) = toy.run(&options(method), Dtype::Bf16, &inputs);
            (trace.bits(), outputs)
        };
        let expected = run();
        assert_eq!(device::hiding_the_stream(run), expected, "{method}");
    }
}

// ---- what the driver was asked ----

/// What a run asked of the driver, a line each. `None` where the driver keeps no log.
fn log_of(engine: &Engine, way: Way) -> Option<(Seen, Vec<String>)> {
    type Start = unsafe extern "C" fn();
    type Text = unsafe extern "C" fn(*mut c_char, usize, *mut usize) -> i32;
    let start = device::stand_in("softcuda_log_start")?;
    let text = device::stand_in("softcuda_log_text")?;
    // The stand-in's functions have these types; the buffer is as long as it says.
    unsafe {
        let start = std::mem::transmute::<*mut c_void, Start>(start);
        let text = std::mem::transmute::<*mut c_void, Text>(text);
        device::synchronise();
        start();
        let seen = engine.run(way);
        let mut length = 0;
        text(null_mut(), 0, &mut length);
        let mut bytes = vec![0u8; length + 1];
        text(bytes.as_mut_ptr().cast(), bytes.len(), null_mut());
        bytes.truncate(length);
        let log = String::from_utf8(bytes).expect("text");
        Some((seen, log.lines().map(str::to_owned).collect()))
    }
}

/// The part of a log between the first pass's work and the last's: before and after, tests copy.
fn of_passes(log: &[String]) -> &[String] {
    let launches = |line: &String| line.starts_with("launch") || line.starts_with("copy_dtod");
    let first = log.iter().position(launches).expect("work");
    let last = log.iter().rposition(launches).expect("work");
    &log[first..=last]
}

fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

#[test]
fn all_work_is_on_the_stream_of_its_pass() {
    let Some(_alone) = alone() else { return };
    for method in METHODS {
        let Some((_, log)) = log_of(&Engine::new(&options(method)), Way::One) else { return };
        let log = of_passes(&log);
        let stream = word(&log[0], "stream");
        for line in log {
            let streams = word(line, "stream");
            assert!(streams.is_none() || streams == stream, "{method}: {line}");
        }
    }
}

#[test]
fn a_method_that_measures_nothing_waits_for_nothing() {
    let Some(_alone) = alone() else { return };
    let engine = Engine::new(&options(METHODS[3]));
    let Some((_, log)) = log_of(&engine, Way::One) else { return };
    assert!(!of_passes(&log).iter().any(|line| line.contains("sync_")), "{log:#?}");
    assert_eq!(engine.cache.stats().wait_ns, 0);
}

/// With `lagged` there is work queued behind what is waited for, so the device does not run dry.
#[test]
fn only_the_event_of_a_measurement_is_waited_for_and_with_lagged_that_of_a_pass_before() {
    let Some(_alone) = alone() else { return };
    for (method, lagged) in [(METHODS[0], false), (METHODS[1], true)] {
        let engine = Engine::new(&options(method));
        let Some((seen, log)) = log_of(&engine, Way::One) else { return };
        let log = of_passes(&log);
        let waits: Vec<_> = (0..log.len()).filter(|at| log[*at].contains("sync_")).collect();
        assert!(waits.len() < STEPS as usize && !waits.is_empty(), "{method}: {}", seen.actions);
        let mut fresh = 0;
        for at in waits {
            let event = word(&log[at], "event").expect("nothing but events is waited for");
            let recorded = log[..at]
                .iter()
                .rposition(|line| {
                    line.starts_with("record_event") && word(line, "event") == Some(event)
                })
                .expect("recorded");
            // What was queued between the two: nothing, where the pass waits for its own.
            let between = log[recorded..at].iter().filter(|line| line.starts_with("launch"));
            fresh += usize::from(between.count() == 0);
        }
        assert_eq!(fresh == 0, lagged, "{method}: {log:#?}");
    }
}
