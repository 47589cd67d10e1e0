//! Copies and fills: which ends are whose, and how they get into a stream.

use crate::{
    driver::Driver,
    memory::{Access, Kind},
    status::{Outcome, Status},
    work::{Side, Work},
};

impl Driver {
    /// `count` times the pattern.
    pub fn fill(&mut self, to: u64, pattern: &[u8], count: usize, stream: usize) -> Outcome {
        let bytes = pattern.len() * count;
        self.log.note(format_args!("memset {to:#x} {bytes} stream={stream:#x}"));
        let stream = self.find_stream(stream)?;
        if !to.is_multiple_of(pattern.len() as u64) {
            return Err(Status::INVALID_VALUE);
        }
        let to = self.device_side(stream, to, bytes, Access::Write)?.address();
        self.submit(stream, Work::Fill { to, pattern: pattern.to_vec(), count })
    }

    /// Queued on the legacy stream and waited for.
    pub fn do_now(&mut self, stream: usize, work: Work) -> Outcome {
        self.refuse_legacy_in_capture(stream)?;
        self.refuse_unsafe_in_capture()?;
        self.submit(stream, work)?;
        self.synchronise_stream(stream)
    }

    /// The device's end of a copy: like the driver, refused at the call if the range is not live
    /// memory that the stream's context can reach.
    pub fn device_side(
        &mut self,
        stream: usize,
        address: u64,
        bytes: usize,
        access: Access,
    ) -> Outcome<Side> {
        if bytes == 0 {
            return Ok(Side::Pageable(address));
        }
        let place = self.place(self.streams[&stream].context);
        let fault = match self.heap.reach(&place, address, bytes) {
            Ok(allocation) if allocation.is_live() => return Ok(Side::Cuda(address)),
            Ok(_) => format!("{address:#x} ({bytes} bytes) was freed"),
            Err(fault) => fault,
        };
        let what = match access {
            Access::Read => "the source",
            Access::Write => "the destination",
        };
        self.tell(&format!("{what} of a copy or memset: {fault}"));
        Err(Status::INVALID_VALUE)
    }

    /// The host's end of a copy: pinned, managed, or memory that CUDA knows nothing of.
    pub fn host_side(&mut self, address: u64, bytes: usize) -> Outcome<Side> {
        if address == 0 && bytes > 0 {
            return Err(Status::INVALID_VALUE);
        }
        let fault = match self.heap.live_around(address) {
            None if self.heap.knows(address) => "was freed",
            None => return Ok(Side::Pageable(address)),
            Some(allocation) if !matches!(allocation.kind, Kind::Pinned | Kind::Managed) => {
                "is device memory"
            }
            Some(allocation) if address + bytes as u64 > allocation.end() => {
                "ends beyond its allocation"
            }
            Some(_) => return Ok(Side::Cuda(address)),
        };
        self.tell(&format!("the host's end of a copy: {address:#x} ({bytes} bytes) {fault}"));
        Err(Status::INVALID_VALUE)
    }
}
