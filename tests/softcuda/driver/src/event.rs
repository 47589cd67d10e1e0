//! Events: a place in a stream's order. Recording again moves the event; who waited for the earlier
//! place keeps that.

use crate::{
    capture::CapturedPoint,
    clock::Stamp,
    driver::Driver,
    status::{Outcome, Status},
    work::Work,
};
use std::time::Instant;

pub struct Event {
    pub context: usize,
    pub timed: bool,
    pub recorded: Recorded,
    /// The time on this machine's clock, which says nothing of a GPU's.
    pub happened: Option<Instant>,
}

pub enum Recorded {
    Never,
    InStream(Stamp),
    InCapture(CapturedPoint),
}

impl Driver {
    pub fn find_event(&self, handle: usize) -> Outcome<&Event> {
        let event = self.events.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        self.contexts.usable(event.context).map(|_| event)
    }

    pub fn record_event(&mut self, event: usize, stream: usize) -> Outcome {
        let stream = self.find_stream(stream)?;
        if self.find_event(event)?.context != self.streams[&stream].context {
            return Err(Status::INVALID_HANDLE);
        }
        let recorded = if self.record(stream)? {
            Recorded::InCapture(self.captured_point(stream))
        } else {
            Recorded::InStream(self.enqueue(self.streams[&stream].lane, Work::Event(event)))
        };
        self.events.get_mut(&event).expect("found above").recorded = recorded;
        Ok(())
    }

    /// Later work in the stream comes after the event, whatever device or context that is of.
    pub fn stream_wait_event(&mut self, stream: usize, event: usize) -> Outcome {
        let stream = self.find_stream(stream)?;
        match &self.find_event(event)?.recorded {
            Recorded::InCapture(point) => self.join_capture(stream, point.clone()),
            Recorded::Never => self.refuse_legacy_in_capture(stream),
            Recorded::InStream(stamp) => {
                let clock = stamp.clock.clone();
                self.refuse_legacy_in_capture(stream)?;
                self.refuse_uncaptured_wait(stream)?;
                self.timeline.order_after(self.streams[&stream].lane, &clock);
                Ok(())
            }
        }
    }

    /// From one event to another; both must have happened.
    pub fn milliseconds_between(&self, start: usize, end: usize) -> Outcome<f32> {
        let (start, end) = (self.happened_at(start)?, self.happened_at(end)?);
        Ok(1e3 * end.saturating_duration_since(start).as_secs_f32())
    }

    fn happened_at(&self, event: usize) -> Outcome<Instant> {
        let event = self.find_event(event)?;
        match &event.recorded {
            Recorded::InCapture(_) => Err(Status::CAPTURED_EVENT),
            Recorded::InStream(stamp) if event.timed && !self.timeline.is_done(&stamp.clock) => {
                Err(Status::NOT_READY)
            }
            Recorded::InStream(_) if event.timed => event.happened.ok_or(Status::INVALID_HANDLE),
            _ => Err(Status::INVALID_HANDLE),
        }
    }

    /// Success if the event has happened. If it has not, one piece of work runs, so that a loop that
    /// polls ends.
    pub fn query_event(&mut self, event: usize) -> Outcome {
        let Some(stamp) = self.happening(event)? else { return Ok(()) };
        if self.timeline.is_done(&stamp.clock) {
            self.timeline.host_saw(&stamp.clock);
            return Ok(());
        }
        self.run_one_towards(&stamp.clock);
        self.find_event(event)?;
        Err(Status::NOT_READY)
    }

    pub fn synchronise_event(&mut self, event: usize) -> Outcome {
        let context = self.find_event(event)?.context;
        let Some(stamp) = self.happening(event)? else { return Ok(()) };
        self.synchronise(context, &stamp.clock)
    }

    /// Where the event is recorded, if it is: not to be asked of one that is recorded in a capture.
    fn happening(&mut self, event: usize) -> Outcome<Option<Stamp>> {
        match &self.find_event(event)?.recorded {
            Recorded::Never => Ok(None),
            Recorded::InStream(stamp) => Ok(Some(stamp.clone())),
            Recorded::InCapture(point) => {
                let capture = point.capture;
                self.captures.invalidate(capture);
                Err(Status::CAPTURED_EVENT)
            }
        }
    }
}
