//! Loads, stores and atomics of one warp: every lane's address is checked and becomes a pointer.

use crate::Memory;
use crate::fault::{Kind, Trouble};
use crate::instruction::{Address, Update};
use crate::parse::Space;
use crate::registers::{LANES, Lane, Mask, Register, Registers, Width, for_lanes};
use crate::shared::{Access, Shared, Site};
use crate::storage::Storage;
use crate::types::Type;

/// Where a lane's own memory, and the block's, are in the generic address space: far above any
/// address of this process.
pub(crate) const LOCAL_WINDOW: u64 = 0x7e00_0000_0000_0000;
pub(crate) const SHARED_WINDOW: u64 = 0x7f00_0000_0000_0000;
pub(crate) const WINDOW: u64 = 0x0100_0000_0000_0000;

/// The memories a warp can reach, but for its own.
pub(crate) struct Memories<'a> {
    pub global: &'a dyn Memory,
    pub storage: &'a Storage,
    pub params: &'a [u8],
    pub shared: Shared,
}

impl Memories<'_> {
    fn is_global(&self, space: Space, pointer: *const u8) -> bool {
        space == Space::Global || space == Space::Generic && !self.shared.contains(pointer)
    }
}

/// `.local`: a piece a lane.
pub(crate) struct Local {
    memory: Vec<u128>,
    /// Bytes a lane.
    bytes: usize,
}

impl Local {
    pub fn new(bytes: usize) -> Local {
        Local { memory: vec![!0; bytes.div_ceil(16) * LANES], bytes }
    }

    pub fn poison(&mut self) {
        self.memory.fill(!0);
    }

    fn pointer(&mut self, lane: usize, offset: u64, bytes: usize) -> Result<*mut u8, Trouble> {
        if offset.checked_add(bytes as u64).is_none_or(|end| end > self.bytes as u64) {
            let what =
                format!("{bytes} bytes at {offset:#x} of {:#x} bytes of local memory", self.bytes);
            return Err(Trouble::new(Kind::IllegalAddress, what));
        }
        let start = lane * self.bytes.div_ceil(16) * 16;
        Ok(self.memory.as_mut_ptr().cast::<u8>().wrapping_add(start + offset as usize))
    }
}

/// What a warp brings along to an access.
pub(crate) struct Visitor<'a> {
    pub registers: &'a mut Registers,
    pub local: &'a mut Local,
    pub lanes: Mask,
    pub site: Site,
}

impl Visitor<'_> {
    pub fn load(
        &mut self,
        memories: &mut Memories,
        from: Address,
        ty: Type,
        into: &[Register],
    ) -> Result<(), Trouble> {
        let size = ty.size();
        let pointers = self.pointers(memories, from, size * into.len(), Access::Read)?;
        for (i, register) in into.iter().enumerate() {
            let at = |lane: usize| pointers[lane].wrapping_add(i * size);
            let index = register.index as usize;
            // SAFETY: `pointers` has checked that `size * into.len()` bytes may be read there.
            unsafe {
                match (ty, size, register.width) {
                    // The usual widths in loops of their own.
                    (_, 4, Width::Word) => {
                        let row = &mut self.registers.words[index];
                        for_lanes(self.lanes, |l| row[l] = at(l).cast::<u32>().read_unaligned());
                    }
                    (_, 8, Width::Double) => {
                        let row = &mut self.registers.doubles[index];
                        for_lanes(self.lanes, |l| row[l] = at(l).cast::<u64>().read_unaligned());
                    }
                    _ => for_lanes(self.lanes, |l| {
                        self.registers.set(*register, l, extend(read(at(l), size), ty));
                    }),
                }
            }
        }
        Ok(())
    }

    /// Where lanes write the same place, the last one wins.
    pub fn store(
        &mut self,
        memories: &mut Memories,
        to: Address,
        ty: Type,
        from: &[Register],
    ) -> Result<(), Trouble> {
        let size = ty.size();
        let pointers = self.pointers(memories, to, size * from.len(), Access::Write)?;
        for (i, register) in from.iter().enumerate() {
            let at = |lane: usize| pointers[lane].wrapping_add(i * size);
            let index = register.index as usize;
            // SAFETY: as in `load`, for writing.
            unsafe {
                match (size, register.width) {
                    (4, Width::Word) => {
                        let row = &self.registers.words[index];
                        for_lanes(self.lanes, |l| at(l).cast::<u32>().write_unaligned(row[l]));
                    }
                    (8, Width::Double) => {
                        let row = &self.registers.doubles[index];
                        for_lanes(self.lanes, |l| at(l).cast::<u64>().write_unaligned(row[l]));
                    }
                    _ => for_lanes(self.lanes, |l| {
                        write(at(l), size, self.registers.get(*register, l))
                    }),
                }
            }
        }
        Ok(())
    }

    pub fn atomic(
        &mut self,
        memories: &mut Memories,
        at: Address,
        (ty, update): (Type, Update),
        old: Option<Register>,
        operands: &[Register],
    ) -> Result<(), Trouble> {
        let size = ty.size();
        let pointers = self.pointers(memories, at, size, Access::Atomic)?;
        for_lanes(self.lanes, |lane| {
            let a = self.registers.get(operands[0], lane);
            let b = operands.get(1).map_or(0, |b| self.registers.get(*b, lane));
            // SAFETY: as in `load`, for reading and writing.
            let before = unsafe { read(pointers[lane], size) };
            let after = match (update, ty) {
                // In global memory this one flushes subnormal numbers to zero, in shared it does not.
                (Update::Add, Type::F32) if memories.is_global(at.space, pointers[lane]) => {
                    flush(update.apply(ty, flush(before), flush(a), b))
                }
                _ => update.apply(ty, before, a, b),
            };
            // SAFETY: as above.
            unsafe { write(pointers[lane], size, after) };
            if let Some(old) = old {
                self.registers.set(old, lane, before);
            }
        });
        Ok(())
    }

    /// Where each lane of the mask reads or writes, checked.
    fn pointers(
        &mut self,
        memories: &mut Memories,
        at: Address,
        bytes: usize,
        access: Access,
    ) -> Result<[*mut u8; LANES], Trouble> {
        let addresses = self.addresses(at);
        let mut pointers = [std::ptr::null_mut(); LANES];
        let mut misaligned = 0;
        let (mut low, mut high) = (u64::MAX, 0);
        for_lanes(self.lanes, |l| {
            misaligned |= addresses[l] & (bytes as u64 - 1);
            low = low.min(addresses[l]);
            high = high.max(addresses[l]);
        });
        if misaligned != 0 {
            return Err(self.misaligned(&addresses, bytes));
        }
        let may_be_global = matches!(at.space, Space::Global | Space::Generic | Space::Const)
            && high < LOCAL_WINDOW;
        let span = (high - low) as usize + bytes;
        if may_be_global && memories.global.check(low, span, access != Access::Read).is_ok() {
            for_lanes(self.lanes, |l| pointers[l] = addresses[l] as *mut u8);
            return Ok(pointers);
        }
        let mut rest = self.lanes;
        while rest != 0 {
            let lane = rest.trailing_zeros() as usize;
            pointers[lane] =
                self.pointer(memories, at.space, lane, addresses[lane], bytes, access)?;
            rest &= rest - 1;
        }
        Ok(pointers)
    }

    fn addresses(&self, at: Address) -> [u64; LANES] {
        let offset = at.offset as u64;
        match at.base {
            None => [offset; LANES],
            Some(Register { width: Width::Double, index }) => {
                self.registers.doubles[index as usize].map(|base| base.wrapping_add(offset))
            }
            // 32-bit addresses, as shared memory may have.
            Some(Register { index, .. }) => self.registers.words[index as usize]
                .map(|base| base.wrapping_add(offset as u32) as u64),
        }
    }

    fn pointer(
        &mut self,
        memories: &mut Memories,
        space: Space,
        lane: usize,
        address: u64,
        bytes: usize,
        access: Access,
    ) -> Result<*mut u8, Trouble> {
        match space {
            Space::Shared => memories.shared.pointer(address, bytes, access, self.site),
            Space::Local => self.local.pointer(lane, address, bytes),
            Space::Param => param(memories.params, address, bytes),
            Space::Generic if address >= SHARED_WINDOW => {
                memories.shared.pointer(address - SHARED_WINDOW, bytes, access, self.site)
            }
            Space::Generic if address >= LOCAL_WINDOW => {
                self.local.pointer(lane, address - LOCAL_WINDOW, bytes)
            }
            Space::Global | Space::Generic | Space::Const => {
                let write = access != Access::Read;
                let own = memories.storage.check(address, bytes, write);
                own.unwrap_or_else(|| memories.global.check(address, bytes, write)).map_err(
                    |why| {
                        let does = if write { "writes" } else { "reads" };
                        let what =
                            format!("lane {lane} {does} {bytes} bytes at {address:#x}: {why}");
                        Trouble::new(Kind::IllegalAddress, what)
                    },
                )?;
                Ok(address as *mut u8)
            }
        }
    }

    #[cold]
    fn misaligned(&self, addresses: &[u64; LANES], bytes: usize) -> Trouble {
        let wrong =
            |l: &usize| self.lanes >> l & 1 != 0 && !addresses[*l].is_multiple_of(bytes as u64);
        let lane = (0..LANES).find(wrong).expect("one lane is misaligned");
        let what = format!(
            "lane {lane}: {bytes} bytes at {:#x}, which is no multiple of {bytes}",
            addresses[lane]
        );
        Trouble::new(Kind::Misaligned, what)
    }
}

/// f32: a subnormal number becomes the zero of its sign.
fn flush(bits: u64) -> u64 {
    if f32::from_bits(bits as u32).is_subnormal() { bits & 1 << 31 } else { bits }
}

fn param(params: &[u8], address: u64, bytes: usize) -> Result<*mut u8, Trouble> {
    if address.checked_add(bytes as u64).is_none_or(|end| end > params.len() as u64) {
        let what =
            format!("{bytes} bytes at {address:#x} of {:#x} bytes of parameters", params.len());
        return Err(Trouble::new(Kind::IllegalAddress, what));
    }
    // Only ever read through: a store to parameters is refused when the module is loaded.
    Ok(params.as_ptr().wrapping_add(address as usize).cast_mut())
}

/// # Safety
/// `size` bytes must be readable there. Parameters need not be aligned.
#[inline(always)]
unsafe fn read(pointer: *const u8, size: usize) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        match size {
            1 => pointer.read() as u64,
            2 => pointer.cast::<u16>().read_unaligned() as u64,
            4 => pointer.cast::<u32>().read_unaligned() as u64,
            _ => pointer.cast::<u64>().read_unaligned(),
        }
    }
}

/// # Safety
/// `size` bytes must be writable there.
#[inline(always)]
unsafe fn write(pointer: *mut u8, size: usize, value: u64) {
    // SAFETY: the caller's.
    unsafe {
        match size {
            1 => pointer.write(value as u8),
            2 => pointer.cast::<u16>().write_unaligned(value as u16),
            4 => pointer.cast::<u32>().write_unaligned(value as u32),
            _ => pointer.cast::<u64>().write_unaligned(value),
        }
    }
}

/// To 64 bits, by the sign where the type has one.
#[inline(always)]
fn extend(value: u64, ty: Type) -> u64 {
    match ty {
        Type::S8 => value as i8 as u64,
        Type::S16 => value as i16 as u64,
        Type::S32 => value as i32 as u64,
        _ => value,
    }
}

impl Update {
    /// The new value; `b` is what `cas` stores where the old value is `a`.
    pub fn apply(self, ty: Type, old: u64, a: u64, b: u64) -> u64 {
        match self {
            Update::Add => match ty {
                Type::F32 => {
                    (f32::from_bits(old as u32) + f32::from_bits(a as u32)).to_row() as u64
                }
                Type::F64 => (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
                _ => old.wrapping_add(a),
            },
            // They wrap at the operand.
            Update::Increment => {
                if old >= a {
                    0
                } else {
                    old + 1
                }
            }
            Update::Decrement => {
                if old == 0 || old > a {
                    a
                } else {
                    old - 1
                }
            }
            Update::Minimum => {
                if is_less(ty, a, old) {
                    a
                } else {
                    old
                }
            }
            Update::Maximum => {
                if is_less(ty, old, a) {
                    a
                } else {
                    old
                }
            }
            Update::And => old & a,
            Update::Or => old | a,
            Update::Xor => old ^ a,
            Update::Exchange => a,
            Update::CompareAndSwap => {
                if old == a {
                    b
                } else {
                    old
                }
            }
        }
    }
}

fn is_less(ty: Type, a: u64, b: u64) -> bool {
    if ty.is_signed() { (extend(a, ty) as i64) < extend(b, ty) as i64 } else { a < b }
}
