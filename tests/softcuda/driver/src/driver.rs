//! The driver's whole state, behind one lock, and what every call goes through.

use crate::{
    capture::Captures,
    clock::{Clock, Stamp},
    context::{self, Contexts},
    event::Event,
    fault,
    injection::Injections,
    log::{Log, Stats},
    memory::{Heap, Place},
    module::Modules,
    settings::Settings,
    status::{self, Outcome, Status},
    stream::Stream,
    timeline::Timeline,
    work::Work,
};
use std::{
    collections::HashMap,
    ffi::c_int,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

pub struct Driver {
    pub settings: Settings,
    pub initialized: bool,
    pub contexts: Contexts,
    pub streams: HashMap<usize, Stream>,
    pub events: HashMap<usize, Event>,
    pub modules: Modules,
    pub heap: Heap,
    pub timeline: Timeline,
    pub captures: Captures,
    pub injections: Injections,
    pub log: Log,
    pub stats: Stats,
    /// Kernels that have begun.
    pub executed: u64,
    last_handle: usize,
    /// Of streams that are gone, to be used again.
    pub stream_handles: Vec<usize>,
}

/// The one driver of the process, made at the first call. It is never dropped: calls at exit find it whole.
pub fn lock() -> MutexGuard<'static, Driver> {
    static DRIVER: OnceLock<Mutex<Driver>> = OnceLock::new();
    DRIVER.get_or_init(|| Mutex::new(Driver::new())).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one call of the API: let in, done, logged.
pub fn call(function: &'static str, body: impl FnOnce(&mut Driver) -> Outcome) -> c_int {
    let mut driver = lock();
    let outcome = driver.admit(function).and_then(|()| body(&mut driver));
    driver.heap.close();
    let code = outcome.map_or_else(|status| status.0, |()| 0);
    let failed = (code != 0).then(|| {
        status::name(code).and_then(|name| name.to_str().ok()).unwrap_or("an unknown error")
    });
    driver.log.finish(function, failed);
    code
}

impl Driver {
    fn new() -> Driver {
        let settings = Settings::from_environment();
        let mut injections = Injections::default();
        for (what, nth, code) in &settings.failures {
            injections.order(what, *nth, *code);
        }
        Driver {
            initialized: false,
            contexts: Contexts::new(settings.devices),
            streams: HashMap::new(),
            events: HashMap::new(),
            modules: Modules::default(),
            heap: Heap::new(),
            timeline: Timeline::new(settings.seed),
            captures: Captures::default(),
            injections,
            log: Log::default(),
            stats: Stats::default(),
            executed: 0,
            last_handle: 0x50F7_0000_0000,
            stream_handles: Vec::new(),
            settings,
        }
    }

    fn admit(&mut self, function: &'static str) -> Outcome {
        if !self.initialized && !matches!(function, "cuInit" | "cuDriverGetVersion") {
            return Err(Status::NOT_INITIALIZED);
        }
        if !self.settings.has(function) {
            return Err(Status::NOT_FOUND);
        }
        let Some(status) = self.injections.strike(function) else { return Ok(()) };
        if let (true, Some(current)) = (status.is_sticky(), context::current()) {
            self.fail_context(current, status);
        }
        Err(status)
    }

    /// A value that is no address, and that no other object has or will have.
    pub fn new_handle(&mut self) -> usize {
        self.last_handle += 16;
        self.last_handle
    }

    pub fn place_of(&self, stamp: &Stamp) -> Place {
        self.place(self.timeline.context_of(stamp.lane))
    }

    pub fn place(&self, context: usize) -> Place {
        Place { context, device: self.contexts.device_of(context) }
    }

    /// Queues work in a lane. Some of it, or all, may run at once: see [`crate::timeline`].
    pub fn enqueue(&mut self, lane: usize, work: Work) -> Stamp {
        let stamp = self.timeline.push(lane, work);
        if self.settings.eager {
            self.run_until(&stamp.clock);
        } else if self.timeline.is_full(lane) {
            self.run_one_towards(&stamp.clock);
        } else if let Some((stamp, work)) = self.timeline.next_at_will() {
            self.run(&stamp, work);
        }
        stamp
    }

    /// The host waits until all of this is done.
    pub fn wait(&mut self, clock: &Clock) {
        self.run_until(clock);
        self.timeline.host_saw(clock);
    }

    fn run_until(&mut self, clock: &Clock) {
        while self.run_one_towards(clock) {}
    }

    /// Runs one piece of work; false if nothing was left to do.
    pub fn run_one_towards(&mut self, clock: &Clock) -> bool {
        let Some((stamp, work)) = self.timeline.next_towards(clock) else { return false };
        self.run(&stamp, work);
        true
    }

    fn run(&mut self, stamp: &Stamp, work: Work) {
        if let Err(failure) = self.perform(stamp, work) {
            self.tell(&failure.what);
            self.fail_context(self.timeline.context_of(stamp.lane), failure.status);
        }
    }

    /// From now on every call with this context has the same answer, and nothing of it runs any more.
    pub fn fail_context(&mut self, context: usize, status: Status) {
        self.contexts.fail(context, status);
        self.timeline.abandon(context);
    }

    pub fn tell(&self, what: &str) {
        fault::tell(what, self.settings.quiet);
    }
}
