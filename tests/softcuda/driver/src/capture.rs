//! Stream capture: what is queued on a capturing stream is counted as a node of a graph and never run.
//!
//! What a graph needs is not modelled (there is no launch); what breaks a capture is: a wait or query
//! of it, the legacy stream beside it, and the calls that CUDA calls potentially unsafe, which a
//! thread must not make while a capture of the wrong mode goes on, its own or, for mode GLOBAL,
//! anyone's, unless it has exchanged its mode for RELAXED.

use crate::{
    clock::Clock,
    driver::Driver,
    status::{Outcome, Status},
    stream::thread,
    timeline::Role,
};
use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    ffi::c_int,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Global = 0,
    ThreadLocal = 1,
    Relaxed = 2,
}

impl Mode {
    pub fn from_code(code: c_int) -> Outcome<Mode> {
        match code {
            0 => Ok(Mode::Global),
            1 => Ok(Mode::ThreadLocal),
            2 => Ok(Mode::Relaxed),
            _ => Err(Status::INVALID_VALUE),
        }
    }
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

/// Sets the calling thread's mode; gives the one before.
pub fn exchange_mode(mode: Mode) -> Mode {
    MODE.replace(mode)
}

struct Capture {
    /// The stream it began in and must end in.
    origin: usize,
    context: usize,
    mode: Mode,
    thread: u64,
    valid: bool,
    nodes: u64,
    /// By lane of each stream in it, the nodes that its next one comes after.
    clocks: HashMap<usize, Clock>,
}

/// A place in a capture, for an event.
#[derive(Clone)]
pub struct CapturedPoint {
    pub capture: usize,
    clock: Clock,
}

#[derive(Default)]
pub struct Captures {
    ongoing: BTreeMap<usize, Capture>,
    /// Nodes of each graph.
    graphs: HashMap<usize, u64>,
}

impl Captures {
    pub fn invalidate(&mut self, capture: usize) {
        if let Some(capture) = self.ongoing.get_mut(&capture) {
            capture.valid = false;
        }
    }

    pub fn is_valid(&self, capture: usize) -> bool {
        self.ongoing.get(&capture).is_some_and(|capture| capture.valid)
    }

    /// Invalidates the captures in a context; whether there was one.
    pub fn invalidate_of(&mut self, context: usize) -> bool {
        self.invalidate_where(|capture| capture.context == context)
    }

    /// Invalidates every capture for which this holds; whether there was one.
    fn invalidate_where(&mut self, condition: impl Fn(&Capture) -> bool) -> bool {
        let mut any = false;
        for capture in
            self.ongoing.values_mut().filter(|capture| capture.valid && condition(capture))
        {
            capture.valid = false;
            any = true;
        }
        any
    }

    pub fn forget_graph(&mut self, graph: usize) -> Outcome {
        self.graphs.remove(&graph).map(|_| ()).ok_or(Status::INVALID_VALUE)
    }

    pub fn nodes(&self, graph: usize) -> Outcome<u64> {
        self.graphs.get(&graph).copied().ok_or(Status::INVALID_VALUE)
    }
}

impl Driver {
    pub fn begin_capture(&mut self, stream: usize, mode: Mode) -> Outcome {
        let stream = self.find_stream(stream)?;
        let (role, context, lane) =
            (self.streams[&stream].role, self.streams[&stream].context, self.streams[&stream].lane);
        if role == Role::Legacy {
            return Err(Status::CAPTURE_UNSUPPORTED);
        }
        if self.streams[&stream].capture.is_some() {
            return Err(Status::ILLEGAL_STATE);
        }
        let capture = self.new_handle();
        let clocks = HashMap::from([(lane, Clock::default())]);
        let started = Capture {
            origin: stream,
            context,
            mode,
            thread: thread(),
            valid: true,
            nodes: 0,
            clocks,
        };
        self.captures.ongoing.insert(capture, started);
        self.stream_mut(stream).capture = Some(capture);
        Ok(())
    }

    /// Ends the capture; gives the graph.
    pub fn end_capture(&mut self, stream: usize) -> Outcome<usize> {
        let stream = self.find_stream(stream)?;
        let id = self.streams[&stream].capture.ok_or(Status::ILLEGAL_STATE)?;
        let lane = self.streams[&stream].lane;
        let capture = &self.captures.ongoing[&id];
        if capture.origin != stream {
            self.captures.invalidate(id);
            return Err(Status::CAPTURE_UNMATCHED);
        }
        if capture.mode != Mode::Relaxed && capture.thread != thread() {
            self.captures.invalidate(id);
            return Err(Status::CAPTURE_WRONG_THREAD);
        }
        let capture = self.captures.ongoing.remove(&id).expect("indexed above");
        for stream in self.streams.values_mut().filter(|stream| stream.capture == Some(id)) {
            stream.capture = None;
        }
        if !capture.valid {
            return Err(Status::CAPTURE_INVALIDATED);
        }
        let end = &capture.clocks[&lane];
        if capture.clocks.iter().any(|(&lane, clock)| clock.get(lane) > end.get(lane)) {
            return Err(Status::CAPTURE_UNJOINED);
        }
        let graph = self.new_handle();
        self.captures.graphs.insert(graph, capture.nodes);
        Ok(graph)
    }

    /// Records a node if the stream is being captured; false if work is to be queued as ever.
    pub fn record(&mut self, stream: usize) -> Outcome<bool> {
        self.refuse_legacy_in_capture(stream)?;
        let lane = self.streams[&stream].lane;
        let Some(id) = self.streams[&stream].capture else { return Ok(false) };
        let capture =
            self.captures.ongoing.get_mut(&id).expect("streams leave a capture when it ends");
        if !capture.valid {
            return Err(Status::CAPTURE_INVALIDATED);
        }
        capture.nodes += 1;
        let clock = capture.clocks.entry(lane).or_default();
        clock.set(lane, clock.get(lane) + 1);
        Ok(true)
    }

    /// Where a capturing stream is in its capture.
    pub fn captured_point(&self, stream: usize) -> CapturedPoint {
        let capture = self.streams[&stream].capture.expect("the caller has just recorded");
        CapturedPoint {
            capture,
            clock: self.captures.ongoing[&capture].clocks[&self.streams[&stream].lane].clone(),
        }
    }

    /// A stream that waits for a captured event takes part in the capture from there on.
    pub fn join_capture(&mut self, stream: usize, point: CapturedPoint) -> Outcome {
        let (lane, own) = (self.streams[&stream].lane, self.streams[&stream].capture);
        if !self.captures.is_valid(point.capture) {
            return Err(Status::CAPTURE_INVALIDATED);
        }
        if self.streams[&stream].role == Role::Legacy {
            self.captures.invalidate(point.capture);
            return Err(Status::CAPTURE_IMPLICIT);
        }
        if let Some(own) = own.filter(|&own| own != point.capture) {
            self.captures.invalidate(own);
            self.captures.invalidate(point.capture);
            return Err(Status::CAPTURE_MERGE);
        }
        let capture = self.captures.ongoing.get_mut(&point.capture).expect("valid");
        capture.clocks.entry(lane).or_default().join(&point.clock);
        self.stream_mut(stream).capture = Some(point.capture);
        Ok(())
    }

    /// A capturing stream cannot come after work that is no part of the capture.
    pub fn refuse_uncaptured_wait(&mut self, stream: usize) -> Outcome {
        let Some(capture) = self.streams[&stream].capture else { return Ok(()) };
        self.captures.invalidate(capture);
        Err(Status::CAPTURE_ISOLATION)
    }

    /// The legacy stream would have to be ordered with a blocking stream that is being captured.
    pub fn refuse_legacy_in_capture(&mut self, stream: usize) -> Outcome {
        if !self.is_legacy_in_capture(stream) {
            return Ok(());
        }
        let context = self.streams[&stream].context;
        for id in self.blocking_captures(context) {
            self.captures.invalidate(id);
        }
        Err(Status::CAPTURE_IMPLICIT)
    }

    /// The same as a question that does no harm.
    pub fn is_legacy_in_capture(&self, stream: usize) -> bool {
        let stream = &self.streams[&stream];
        stream.role == Role::Legacy && !self.blocking_captures(stream.context).is_empty()
    }

    fn blocking_captures(&self, context: usize) -> Vec<usize> {
        let blocking = self
            .streams
            .values()
            .filter(|stream| stream.context == context && stream.role == Role::Blocking);
        blocking.filter_map(|stream| stream.capture).collect()
    }

    /// A capturing stream can be neither waited for nor asked how far it is.
    pub fn refuse_wait_for_capture(&mut self, stream: usize) -> Outcome {
        self.refuse_legacy_in_capture(stream)?;
        let Some(capture) = self.streams[&stream].capture else { return Ok(()) };
        self.captures.invalidate(capture);
        Err(Status::CAPTURE_UNSUPPORTED)
    }

    /// Nor can a context with a capturing stream in it.
    pub fn refuse_context_wait_in_capture(&mut self, context: usize) -> Outcome {
        match self.captures.invalidate_of(context) {
            true => Err(Status::CAPTURE_UNSUPPORTED),
            false => Ok(()),
        }
    }

    /// A potentially unsafe call is about to be made by this thread.
    pub fn refuse_unsafe_in_capture(&mut self) -> Outcome {
        let mode = MODE.get();
        let thread = thread();
        let forbidden = |capture: &Capture| match mode {
            Mode::Relaxed => false,
            Mode::ThreadLocal => capture.thread == thread && capture.mode != Mode::Relaxed,
            Mode::Global => {
                capture.mode == Mode::Global
                    || capture.thread == thread && capture.mode == Mode::ThreadLocal
            }
        };
        if self.captures.invalidate_where(forbidden) {
            Err(Status::CAPTURE_UNSUPPORTED)
        } else {
            Ok(())
        }
    }

    fn stream_mut(&mut self, stream: usize) -> &mut crate::stream::Stream {
        self.streams.get_mut(&stream).expect("the caller has found it")
    }
}
