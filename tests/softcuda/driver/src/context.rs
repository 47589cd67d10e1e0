//! Devices and contexts: one primary context a device, created ones besides, and each thread's stack
//! of current contexts. An error in a kernel stays with its context: every later call with it has that
//! answer. Contexts do not share memory, streams or errors.

use crate::{
    driver::Driver,
    status::{Outcome, Status},
    timeline::Role,
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    ffi::c_int,
};

thread_local! {
    static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

pub struct Context {
    pub device: usize,
    /// Of this life of the context: a primary context that is released and retained again has a new one.
    pub id: u64,
    /// How often a primary context is retained.
    pub retained: u64,
    pub flags: u32,
    alive: bool,
    failed: Option<Status>,
    legacy_stream: usize,
    per_thread_streams: HashMap<u64, usize>,
}

pub struct Contexts {
    all: BTreeMap<usize, Context>,
    /// Of each device, once it has been retained.
    primary: Vec<Option<usize>>,
    /// A device that is lost, and what its calls return.
    lost: Vec<Option<Status>>,
    last_id: u64,
}

/// The calling thread's current context.
pub fn current() -> Option<usize> {
    STACK.with_borrow(|stack| stack.last().copied())
}

pub fn push(context: usize) {
    STACK.with_borrow_mut(|stack| stack.push(context));
}

pub fn pop() -> Option<usize> {
    STACK.with_borrow_mut(Vec::pop)
}

impl Contexts {
    pub fn new(devices: usize) -> Contexts {
        Contexts {
            all: BTreeMap::new(),
            primary: vec![None; devices],
            lost: vec![None; devices],
            last_id: 0,
        }
    }

    /// The device of this ordinal.
    pub fn device(&self, ordinal: c_int) -> Outcome<usize> {
        usize::try_from(ordinal)
            .ok()
            .filter(|&device| device < self.primary.len())
            .ok_or(Status::INVALID_DEVICE)
    }

    pub fn device_of(&self, context: usize) -> usize {
        self.all[&context].device
    }

    pub fn primary(&self, device: usize) -> Option<&Context> {
        self.primary[device].map(|handle| &self.all[&handle]).filter(|context| context.alive)
    }

    pub fn retained(&self) -> u64 {
        self.all.values().filter(|context| context.alive).map(|context| context.retained).sum()
    }

    pub fn fail(&mut self, context: usize, status: Status) {
        let failed =
            &mut self.all.get_mut(&context).expect("a context once made is never forgotten").failed;
        failed.get_or_insert(status);
    }

    /// A context that can be worked with.
    pub fn usable(&self, context: usize) -> Outcome<&Context> {
        let context = self.existing(context)?;
        context.failed.map_or(Ok(context), Err)
    }

    /// A context that is there, though it may have failed.
    pub fn existing(&self, context: usize) -> Outcome<&Context> {
        let context = self.all.get(&context).ok_or(Status::INVALID_CONTEXT)?;
        if context.alive { Ok(context) } else { Err(Status::CONTEXT_IS_DESTROYED) }
    }
}

impl Driver {
    /// The current context, fit for work.
    pub fn current(&self) -> Outcome<usize> {
        let current = current().ok_or(Status::INVALID_CONTEXT)?;
        self.contexts.usable(current).map(|_| current)
    }

    pub fn create_context(&mut self, device: usize, flags: u32) -> Outcome<usize> {
        self.contexts.lost[device].map_or(Ok(()), Err)?;
        let handle = self.new_handle();
        self.start_context(handle, device, flags);
        Ok(handle)
    }

    fn start_context(&mut self, handle: usize, device: usize, flags: u32) {
        let legacy_stream = self.open_stream(handle, Role::Legacy);
        self.contexts.last_id += 1;
        // A context that has failed stays so: only a new process is known to heal it.
        let failed = self.contexts.all.get(&handle).and_then(|before| before.failed);
        let (id, per_thread_streams) = (self.contexts.last_id, HashMap::new());
        let context = Context {
            device,
            id,
            retained: 1,
            flags,
            alive: true,
            failed,
            legacy_stream,
            per_thread_streams,
        };
        self.contexts.all.insert(handle, context);
    }

    /// The context and all that belongs to it are gone. Work that is queued is finished first.
    pub fn end_context(&mut self, context: usize) {
        let all = self.timeline.all_of(context);
        self.wait(&all);
        self.heap.bury_context(context);
        self.events.retain(|_, event| event.context != context);
        self.modules.forget_context(context);
        self.captures.invalidate_of(context);
        for stream in self.streams.values().filter(|stream| stream.context == context) {
            self.timeline.retire(stream.lane);
        }
        self.streams.retain(|_, stream| stream.context != context);
        self.contexts.all.get_mut(&context).expect("the caller has found it").alive = false;
    }

    pub fn retain_primary(&mut self, device: usize) -> Outcome<usize> {
        self.contexts.lost[device].map_or(Ok(()), Err)?;
        let handle = match self.contexts.primary[device] {
            Some(handle) => handle,
            None => self.new_handle(),
        };
        self.contexts.primary[device] = Some(handle);
        match self.contexts.all.get_mut(&handle).filter(|context| context.alive) {
            Some(context) => context.retained += 1,
            None => self.start_context(handle, device, 0),
        }
        Ok(handle)
    }

    pub fn release_primary(&mut self, device: usize) -> Outcome {
        let handle = self.contexts.primary[device].ok_or(Status::INVALID_CONTEXT)?;
        let context = self.contexts.all.get_mut(&handle).filter(|context| context.alive);
        let context = context.ok_or(Status::INVALID_CONTEXT)?;
        context.retained -= 1;
        if context.retained == 0 {
            self.end_context(handle);
        }
        Ok(())
    }

    pub fn is_primary(&self, context: usize) -> bool {
        self.contexts.primary.contains(&Some(context))
    }

    /// The device is lost: all its contexts fail, and no new one can be had.
    pub fn lose_device(&mut self, device: usize, status: Status) {
        self.contexts.lost[device] = Some(status);
        let of_device = self.contexts.all.iter().filter(|(_, context)| context.device == device);
        let handles: Vec<usize> = of_device.map(|(&handle, _)| handle).collect();
        for context in handles {
            self.fail_context(context, status);
        }
    }

    pub fn legacy_stream(&self, context: usize) -> usize {
        self.contexts.all[&context].legacy_stream
    }

    pub fn per_thread_stream(&mut self, context: usize, thread: u64) -> usize {
        if let Some(&stream) = self.contexts.all[&context].per_thread_streams.get(&thread) {
            return stream;
        }
        let stream = self.open_stream(context, Role::Blocking);
        let context = self.contexts.all.get_mut(&context).expect("looked up above");
        context.per_thread_streams.insert(thread, stream);
        stream
    }
}
