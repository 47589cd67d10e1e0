//! Registers as rows of 32 lanes, and operations as closures over whole rows.
//!
//! There are three files: rows of 32 bits (16-bit registers live there too, zero-extended), rows of
//! 64 bits, and predicates, which are masks with a bit a lane. An operation is applied to its rows
//! in one loop without branches where all lanes take part, so the compiler vectorises it; the
//! closure is made once, when the module is loaded, with opcode and types already resolved.

use half::{bf16, f16};

pub(crate) const LANES: usize = 32;

/// A bit a lane.
pub(crate) type Mask = u32;

pub(crate) const ALL: Mask = !0;

pub(crate) struct Registers {
    pub words: Vec<[u32; LANES]>,
    pub doubles: Vec<[u64; LANES]>,
    pub predicates: Vec<Mask>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Width {
    Predicate,
    Half,
    Word,
    Double,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Register {
    pub width: Width,
    /// Within its file.
    pub index: u32,
}

impl Registers {
    pub fn get(&self, register: Register, lane: usize) -> u64 {
        let index = register.index as usize;
        match register.width {
            Width::Predicate => (self.predicates[index] >> lane & 1) as u64,
            Width::Half | Width::Word => self.words[index][lane] as u64,
            Width::Double => self.doubles[index][lane],
        }
    }

    /// Bits beyond the register are dropped.
    pub fn set(&mut self, register: Register, lane: usize, value: u64) {
        let index = register.index as usize;
        match register.width {
            Width::Predicate => {
                let bit = 1 << lane;
                let others = self.predicates[index] & !bit;
                self.predicates[index] = others | if value != 0 { bit } else { 0 };
            }
            Width::Half => self.words[index][lane] = value as u16 as u32,
            Width::Word => self.words[index][lane] = value as u32,
            Width::Double => self.doubles[index][lane] = value,
        }
    }

    pub fn set_predicate(&mut self, index: u32, lanes: Mask, value: Mask) {
        let predicate = &mut self.predicates[index as usize];
        *predicate = *predicate & !lanes | value & lanes;
    }
}

/// Calls `f` for each lane of the mask; all 32 in a loop that can be vectorised.
#[inline(always)]
pub(crate) fn for_lanes(lanes: Mask, mut f: impl FnMut(usize)) {
    if lanes == ALL {
        for lane in 0..LANES {
            f(lane);
        }
        return;
    }
    let mut rest = lanes;
    while rest != 0 {
        f(rest.trailing_zeros() as usize);
        rest &= rest - 1;
    }
}

/// What a lane of a row can hold.
pub(crate) trait Lane: Copy + 'static {
    type Bits: Copy;
    fn rows(registers: &mut Registers) -> &mut [[Self::Bits; LANES]];
    fn from_row(bits: Self::Bits) -> Self;
    fn to_row(self) -> Self::Bits;
}

macro_rules! lane {
    ($file:ident: $bits:ty; $($ty:ty: |$from:ident| $of:expr, |$to:ident| $into:expr;)+) => {$(
        impl Lane for $ty {
            type Bits = $bits;
            #[inline(always)]
            fn rows(registers: &mut Registers) -> &mut [[$bits; LANES]] {
                &mut registers.$file
            }
            #[inline(always)]
            fn from_row($from: $bits) -> $ty {
                $of
            }
            #[inline(always)]
            fn to_row(self) -> $bits {
                let $to = self;
                $into
            }
        }
    )+};
}

// Arithmetic below f64 returns one NaN, without sign or payload: what the hardware does.
lane! { words: u32;
    u8: |r| r as u8, |x| x as u32;
    i8: |r| r as i8, |x| x as u8 as u32;
    u16: |r| r as u16, |x| x as u32;
    i16: |r| r as i16, |x| x as u16 as u32;
    u32: |r| r, |x| x;
    i32: |r| r as i32, |x| x as u32;
    f32: |r| f32::from_bits(r), |x| if x.is_nan() { 0x7fff_ffff } else { x.to_bits() };
    f16: |r| f16::from_bits(r as u16), |x| if x.is_nan() { 0x7fff } else { x.to_bits() as u32 };
    bf16: |r| bf16::from_bits(r as u16), |x| if x.is_nan() { 0x7fff } else { x.to_bits() as u32 };
}
lane! { doubles: u64;
    u64: |r| r, |x| x;
    i64: |r| r as i64, |x| x as u64;
    f64: |r| f64::from_bits(r), |x| x.to_bits();
}

/// An instruction that only moves values between the registers of its own lane.
pub(crate) type Compute = Box<dyn Fn(&mut Registers, Mask) + Send + Sync>;

#[inline(always)]
fn row<A: Lane>(registers: &mut Registers, index: u32) -> [A::Bits; LANES] {
    A::rows(registers)[index as usize]
}

pub(crate) fn unary<A: Lane, D: Lane>(
    d: u32,
    a: u32,
    f: impl Fn(A) -> D + Send + Sync + 'static,
) -> Compute {
    Box::new(move |registers, lanes| {
        let a = row::<A>(registers, a);
        let d = &mut D::rows(registers)[d as usize];
        for_lanes(lanes, |l| d[l] = f(A::from_row(a[l])).to_row());
    })
}

pub(crate) fn binary<A: Lane, B: Lane, D: Lane>(
    d: u32,
    [a, b]: [u32; 2],
    f: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Compute {
    Box::new(move |registers, lanes| {
        let (a, b) = (row::<A>(registers, a), row::<B>(registers, b));
        let d = &mut D::rows(registers)[d as usize];
        for_lanes(lanes, |l| d[l] = f(A::from_row(a[l]), B::from_row(b[l])).to_row());
    })
}

pub(crate) fn ternary<A: Lane, B: Lane, C: Lane, D: Lane>(
    d: u32,
    [a, b, c]: [u32; 3],
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Compute {
    Box::new(move |registers, lanes| {
        let (a, b, c) = (row::<A>(registers, a), row::<B>(registers, b), row::<C>(registers, c));
        let d = &mut D::rows(registers)[d as usize];
        for_lanes(lanes, |l| {
            d[l] = f(A::from_row(a[l]), B::from_row(b[l]), C::from_row(c[l])).to_row()
        });
    })
}

/// The mask of the lanes for which `f` holds, handed to `store` together with the lanes that asked.
pub(crate) fn compare<A: Lane>(
    [a, b]: [u32; 2],
    f: impl Fn(A, A) -> bool + Send + Sync + 'static,
    store: impl Fn(&mut Registers, Mask, Mask) + Send + Sync + 'static,
) -> Compute {
    Box::new(move |registers, lanes| {
        let (a, b) = (row::<A>(registers, a), row::<A>(registers, b));
        let mut holds = [0u32; LANES];
        for l in 0..LANES {
            holds[l] = (f(A::from_row(a[l]), A::from_row(b[l])) as u32) << l;
        }
        store(registers, lanes, holds.iter().fold(0, |all, bit| all | bit));
    })
}

/// `d = p ? a : b`, bits unchanged.
pub(crate) fn select<T: Lane>(d: u32, [a, b]: [u32; 2], p: u32) -> Compute {
    Box::new(move |registers, lanes| {
        let predicate = registers.predicates[p as usize];
        let (a, b) = (row::<T>(registers, a), row::<T>(registers, b));
        let d = &mut T::rows(registers)[d as usize];
        for_lanes(lanes, |l| d[l] = if predicate & 1 << l != 0 { a[l] } else { b[l] });
    })
}
