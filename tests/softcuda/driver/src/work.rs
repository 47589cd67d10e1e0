//! What a stream holds: work, and how each piece of it is done.

use crate::{
    clock::Stamp,
    driver::Driver,
    memory::{Access, Use},
    status::Status,
    view::View,
};
use softcuda_ptx::{Kind, Launch};
use std::{sync::Arc, time::Instant};

pub enum Work {
    Kernel(Kernel),
    /// The source was copied when the call was made.
    Write {
        to: u64,
        data: Vec<u8>,
    },
    Copy {
        to: Side,
        from: Side,
        bytes: usize,
    },
    /// `pattern` again and again.
    Fill {
        to: u64,
        pattern: Vec<u8>,
        count: usize,
    },
    Free(u64),
    /// An event that is recorded here.
    Event(usize),
    /// Nothing but its place in the order: memory that comes into being, or is about to go.
    Mark,
}

/// One end of a copy.
#[derive(Clone, Copy)]
pub enum Side {
    Cuda(u64),
    /// Host memory that CUDA knows nothing of: the caller's affair.
    Pageable(u64),
}

pub struct Kernel {
    pub image: Arc<softcuda_ptx::Module>,
    pub name: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: usize,
    pub params: Vec<u8>,
}

/// Why work could not be done, as code for the caller and as a sentence for people.
pub struct Failure {
    pub status: Status,
    pub what: String,
}

impl Failure {
    fn address(what: String) -> Failure {
        Failure { status: Status::ILLEGAL_ADDRESS, what }
    }
}

impl Side {
    pub fn address(self) -> u64 {
        let (Side::Cuda(address) | Side::Pageable(address)) = self;
        address
    }
}

impl Driver {
    pub fn perform(&mut self, stamp: &Stamp, work: Work) -> Result<(), Failure> {
        match work {
            Work::Kernel(kernel) => self.run_kernel(stamp, &kernel),
            Work::Write { to, data } => self.write(stamp, to, &data, "copy to the device"),
            Work::Copy { to, from, bytes } => {
                let from = self.copy_side(stamp, from, bytes, Access::Read)?;
                let to = self.copy_side(stamp, to, bytes, Access::Write)?;
                // SAFETY: each side is live memory of this library's, or the caller has promised it.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
                Ok(())
            }
            Work::Fill { to, pattern, count } => {
                self.write(stamp, to, &pattern.repeat(count), "memset")
            }
            Work::Free(address) => {
                self.heap.bury(address);
                Ok(())
            }
            Work::Event(event) => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.happened = Some(Instant::now());
                }
                Ok(())
            }
            Work::Mark => Ok(()),
        }
    }

    fn write(&mut self, stamp: &Stamp, to: u64, data: &[u8], by: &str) -> Result<(), Failure> {
        self.touch(stamp, to, data.len(), Access::Write, by)?;
        // SAFETY: `touch` has found the range in live memory of this library's.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to as *mut u8, data.len()) };
        Ok(())
    }

    fn copy_side(
        &mut self,
        stamp: &Stamp,
        side: Side,
        bytes: usize,
        access: Access,
    ) -> Result<u64, Failure> {
        match side {
            Side::Cuda(address) => {
                self.touch(stamp, address, bytes, access, "copy").map(|()| address)
            }
            Side::Pageable(address) => Ok(address),
        }
    }

    /// Checks and remembers an access whose range is known.
    fn touch(
        &mut self,
        stamp: &Stamp,
        address: u64,
        bytes: usize,
        access: Access,
        by: &str,
    ) -> Result<(), Failure> {
        if bytes == 0 {
            return Ok(());
        }
        let place = self.place_of(stamp);
        let allocation = self.heap.check(&place, stamp, address, bytes);
        let allocation = allocation.map_err(|what| Failure::address(format!("{by}: {what}")))?;
        let range = address..address + bytes as u64;
        let (read, write) = match access {
            Access::Read => (range, 0..0),
            Access::Write => (0..0, range),
        };
        self.heap
            .remember(allocation.start, Use { stamp: stamp.clone(), by: by.into(), read, write })
            .map_err(Failure::address)
    }

    fn run_kernel(&mut self, stamp: &Stamp, kernel: &Kernel) -> Result<(), Failure> {
        self.executed += 1;
        if let Some(status) = self.injections.strike("execute") {
            return Err(Failure {
                status,
                what: format!("kernel {}: failed because the test asked for it", kernel.name),
            });
        }
        let place = self.place_of(stamp);
        let function =
            kernel.image.function(&kernel.name).expect("looked up when its handle was made");
        let launch = Launch {
            grid: kernel.grid,
            block: kernel.block,
            dynamic_shared: kernel.dynamic_shared,
            params: &kernel.params,
            seed: self.settings.seed.wrapping_add(self.executed),
        };
        let view = View::new(&self.heap, place, stamp);
        softcuda_ptx::run(function, &launch, &view)
            .map_err(|fault| Failure { status: status_of(fault.kind), what: fault.to_string() })?;
        for (start, read, write) in view.touched() {
            let access = Use { stamp: stamp.clone(), by: kernel.name.as_str().into(), read, write };
            self.heap.remember(start, access).map_err(Failure::address)?;
        }
        Ok(())
    }
}

fn status_of(kind: Kind) -> Status {
    match kind {
        Kind::IllegalAddress => Status::ILLEGAL_ADDRESS,
        Kind::Misaligned => Status::MISALIGNED_ADDRESS,
        Kind::Endless => Status::LAUNCH_TIMEOUT,
        _ => Status::LAUNCH_FAILED,
    }
}
