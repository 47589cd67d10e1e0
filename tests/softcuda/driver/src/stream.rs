//! Streams: handles, whose they are, and how work gets into them.

use crate::{
    clock::Clock,
    driver::Driver,
    status::{Outcome, Status},
    timeline::Role,
    work::Work,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// Stands for the legacy stream, as 0 does.
const LEGACY: usize = 1;
/// Stands for the calling thread's own default stream.
const PER_THREAD: usize = 2;

pub struct Stream {
    pub context: usize,
    pub lane: usize,
    pub role: Role,
    /// The capture in progress that the stream takes part in.
    pub capture: Option<usize>,
    /// Made by `cuStreamCreate`, not the context's own.
    pub created: bool,
}

pub fn thread() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    thread_local!(static THREAD: u64 = LAST.fetch_add(1, Ordering::Relaxed));
    THREAD.with(|thread| *thread)
}

pub fn is_default(handle: usize) -> bool {
    handle <= PER_THREAD
}

impl Driver {
    pub fn open_stream(&mut self, context: usize, role: Role) -> usize {
        let handle = self.stream_handles.pop().unwrap_or_else(|| self.new_handle());
        let lane = self.timeline.open(context, role);
        self.streams.insert(handle, Stream { context, lane, role, capture: None, created: false });
        handle
    }

    /// The stream a caller means: the current context's own for the handles that have a meaning, else
    /// the one of that handle. A thread must have a current context either way, if not the stream's.
    pub fn find_stream(&mut self, handle: usize) -> Outcome<usize> {
        let current = self.current()?;
        match handle {
            0 | LEGACY => Ok(self.legacy_stream(current)),
            PER_THREAD => Ok(self.per_thread_stream(current, thread())),
            _ => {
                let stream = self
                    .streams
                    .get(&handle)
                    .filter(|stream| stream.created)
                    .ok_or(Status::INVALID_HANDLE)?;
                self.contexts.usable(stream.context).map(|_| handle)
            }
        }
    }

    /// Queues work on a stream that has been found, or records it if the stream is being captured.
    pub fn submit(&mut self, stream: usize, work: Work) -> Outcome {
        if self.record(stream)? {
            return Ok(());
        }
        let Stream { context, lane, .. } = self.streams[&stream];
        self.enqueue(lane, work);
        self.contexts.usable(context).map(|_| ())
    }

    /// Waits for the stream; says how that went.
    pub fn synchronise_stream(&mut self, stream: usize) -> Outcome {
        let Stream { lane, context, .. } = self.streams[&stream];
        let extent = self.timeline.extent(lane);
        self.synchronise(context, &extent)
    }

    pub fn synchronise(&mut self, context: usize, clock: &Clock) -> Outcome {
        self.stats.synchronises += 1;
        self.wait(clock);
        self.contexts.usable(context).map(|_| ())
    }
}
