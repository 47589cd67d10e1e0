//! Allocation and free: at once, and in stream order.

use crate::{
    driver::Driver,
    memory::Kind,
    status::{Outcome, Status},
    work::Work,
};

impl Driver {
    pub fn allocate_now(&mut self, bytes: usize, kind: Kind) -> Outcome<u64> {
        let context = self.current()?;
        self.refuse_unsafe_in_capture()?;
        self.allocate(bytes, kind, context)
    }

    fn allocate(&mut self, bytes: usize, kind: Kind, context: usize) -> Outcome<u64> {
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        let place = self.place(context);
        if self.heap.bytes_on(place.device).saturating_add(bytes as u64) > self.settings.memory {
            return Err(Status::OUT_OF_MEMORY);
        }
        self.heap.allocate(bytes, kind, place)
    }

    /// After all work of the context. `host`: the address is of pinned memory.
    pub fn free_now(&mut self, address: u64, host: bool) -> Outcome {
        let current = self.current()?;
        if address == 0 && !host {
            return Ok(());
        }
        let allocation =
            self.heap.live(address).filter(|allocation| (allocation.kind == Kind::Pinned) == host);
        let context = allocation.ok_or(Status::INVALID_VALUE)?.context;
        self.refuse_unsafe_in_capture()?;
        let mut all = self.timeline.all_of(context);
        all.join(&self.timeline.all_of(current));
        self.synchronise(context, &all)?;
        self.heap.bury(address);
        Ok(())
    }

    /// On a capturing stream the memory is the graph's.
    pub fn allocate_on(&mut self, bytes: usize, stream: usize) -> Outcome<u64> {
        let stream = self.find_stream(stream)?;
        if !self.settings.has_pools() {
            return Err(Status::NOT_SUPPORTED);
        }
        let (context, lane) = (self.streams[&stream].context, self.streams[&stream].lane);
        if self.record(stream)? {
            return self.allocate(bytes, Kind::Graph, context);
        }
        let address = self.allocate(bytes, Kind::Pool, context)?;
        let stamp = self.enqueue(lane, Work::Mark);
        self.heap.allocated_at(address, stamp);
        Ok(address)
    }

    /// The memory goes when the stream gets there; what uses it must be ordered before that.
    pub fn free_on(&mut self, address: u64, stream: usize) -> Outcome {
        let stream = self.find_stream(stream)?;
        let device = self.place(self.streams[&stream].context).device;
        let allocation =
            self.heap.live(address).filter(|allocation| allocation.kind != Kind::Pinned);
        let allocation = allocation
            .filter(|allocation| allocation.device == device)
            .ok_or(Status::INVALID_VALUE)?;
        let of_graph = allocation.kind == Kind::Graph;
        if self.record(stream)? {
            return Ok(());
        }
        if of_graph {
            return Err(Status::INVALID_VALUE);
        }
        // The stamp first: with work that runs at once, the free is reached within `enqueue`.
        let (context, lane) = (self.streams[&stream].context, self.streams[&stream].lane);
        let stamp = self.enqueue(lane, Work::Mark);
        if let Err(fault) = self.heap.free_at(address, stamp) {
            self.tell(&fault);
            self.fail_context(context, Status::ILLEGAL_ADDRESS);
            return Err(Status::ILLEGAL_ADDRESS);
        }
        self.enqueue(lane, Work::Free(address));
        self.contexts.usable(context).map(|_| ())
    }
}
