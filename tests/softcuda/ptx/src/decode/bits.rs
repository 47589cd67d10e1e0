//! Logic, shifts, and fields of bits.

use super::{Form, integers, patterns, unsupported};
use crate::parse::Result;
use crate::registers::{Compute, binary, ternary, unary};
use crate::types::Type;

pub(super) fn decode(name: &str, form: &mut Form) -> Result<Compute> {
    let ty = form.ty()?;
    match name {
        "and" | "or" | "xor" | "not" if ty == Type::Pred => predicate_logic(name, form),
        "and" | "or" | "xor" => {
            form.expect_operands(3)?;
            let (d, ab) = (form.to(0, ty)?, form.pair(ty)?);
            Ok(patterns!(ty, T => match name {
                "and" => binary(d, ab, |a: T, b: T| a & b),
                "or" => binary(d, ab, |a: T, b: T| a | b),
                _ => binary(d, ab, |a: T, b: T| a ^ b),
            }))
        }
        "not" | "cnot" => {
            form.expect_operands(2)?;
            let (d, a) = (form.to(0, ty)?, form.from(1, ty)?);
            Ok(patterns!(ty, T => if name == "not" {
                unary(d, a, |a: T| !a)
            } else {
                unary(d, a, |a: T| (a == 0) as T)
            }))
        }
        "shl" | "shr" => shift(name, form, ty),
        "shf" => funnel_shift(form, ty),
        "lop3" => any_logic(form, ty),
        "prmt" => permute(form, ty),
        "bfe" | "bfi" | "bfind" => field(name, form, ty),
        _ => count(name, form, ty),
    }
}

fn predicate_logic(name: &str, form: &mut Form) -> Result<Compute> {
    form.expect_operands(if name == "not" { 2 } else { 3 })?;
    let d = form.to(0, Type::Pred)?;
    let a = form.from(1, Type::Pred)? as usize;
    if name == "not" {
        return Ok(Box::new(move |r, lanes| r.set_predicate(d, lanes, !r.predicates[a])));
    }
    let b = form.from(2, Type::Pred)? as usize;
    Ok(match name {
        "and" => {
            Box::new(move |r, lanes| r.set_predicate(d, lanes, r.predicates[a] & r.predicates[b]))
        }
        "or" => {
            Box::new(move |r, lanes| r.set_predicate(d, lanes, r.predicates[a] | r.predicates[b]))
        }
        _ => Box::new(move |r, lanes| r.set_predicate(d, lanes, r.predicates[a] ^ r.predicates[b])),
    })
}

/// A shift by the width or more leaves nothing but the sign.
fn shift(name: &str, form: &mut Form, ty: Type) -> Result<Compute> {
    form.expect_operands(3)?;
    let (d, ab) = (form.to(0, ty)?, [form.from(1, ty)?, form.from(2, Type::U32)?]);
    Ok(integers!(ty, T => match name {
        "shl" => binary(d, ab, |a: T, n: u32| if n < T::BITS { a << n } else { 0 }),
        _ if ty.is_signed() => binary(d, ab, |a: T, n: u32| a >> n.min(T::BITS - 1)),
        _ => binary(d, ab, |a: T, n: u32| if n < T::BITS { a >> n } else { 0 }),
    }))
}

fn funnel_shift(form: &mut Form, ty: Type) -> Result<Compute> {
    form.expect_operands(4)?;
    let left = form.take("l");
    if !left {
        form.require("r")?;
    }
    let clamps = form.take("clamp");
    if !clamps {
        form.require("wrap")?;
    }
    if ty != Type::B32 {
        return unsupported(ty);
    }
    let (d, abc) = (form.to(0, ty)?, form.triple(ty)?);
    let both = |a: u32, b: u32| (b as u64) << 32 | a as u64;
    let amount = move |n: u32| if clamps { n.min(32) } else { n & 31 };
    Ok(if left {
        ternary(d, abc, move |a: u32, b: u32, n: u32| ((both(a, b) << amount(n)) >> 32) as u32)
    } else {
        ternary(d, abc, move |a: u32, b: u32, n: u32| (both(a, b) >> amount(n)) as u32)
    })
}

/// `lop3`: the table has a result for each of the eight combinations.
fn any_logic(form: &mut Form, ty: Type) -> Result<Compute> {
    form.expect_operands(5)?;
    if ty != Type::B32 {
        return unsupported(ty);
    }
    let table = match form.operand(4)? {
        super::Operand::Integer(table) => *table as u32,
        _ => return Err("the table must be a number".into()),
    };
    let (d, abc) = (form.to(0, ty)?, form.triple(ty)?);
    Ok(ternary(d, abc, move |a: u32, b: u32, c: u32| {
        let pick = |bits: u32, i: u32, bit: u32| if i & bit != 0 { bits } else { !bits };
        let term = |i: u32| {
            if table >> i & 1 != 0 { pick(a, i, 4) & pick(b, i, 2) & pick(c, i, 1) } else { 0 }
        };
        (0..8).fold(0, |result, i| result | term(i))
    }))
}

/// Each nibble of the selector picks a byte of `b:a`, or its sign over the whole byte.
fn permute(form: &mut Form, ty: Type) -> Result<Compute> {
    form.expect_operands(4)?;
    if ty != Type::B32 {
        return unsupported(ty);
    }
    let (d, abc) = (form.to(0, ty)?, form.triple(ty)?);
    Ok(ternary(d, abc, |a: u32, b: u32, selector: u32| {
        let bytes = (b as u64) << 32 | a as u64;
        let byte = |i: u32| {
            let nibble = selector >> (4 * i);
            let byte = (bytes >> (8 * (nibble & 7))) as u8;
            let byte = if nibble & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
            (byte as u32) << (8 * i)
        };
        byte(0) | byte(1) | byte(2) | byte(3)
    }))
}

fn field(name: &str, form: &mut Form, ty: Type) -> Result<Compute> {
    if ty.size() < 4 {
        return unsupported(ty);
    }
    if name == "bfind" {
        return find_highest(form, ty);
    }
    if name == "bfi" {
        form.expect_operands(5)?;
        let d = form.to(0, ty)?;
        let (ab, position, length) =
            (form.pair(ty)?, form.from(3, Type::U32)?, form.from(4, Type::U32)?);
        return Ok(insert(d, ab, [position, length], ty));
    }
    form.expect_operands(4)?;
    let (d, abc) =
        (form.to(0, ty)?, [form.from(1, ty)?, form.from(2, Type::U32)?, form.from(3, Type::U32)?]);
    Ok(integers!(ty, T => ternary(d, abc, |a: T, position: u32, length: u32| {
        extract(a as i128, T::BITS, position & 0xff, length & 0xff, T::MIN != 0) as T
    })))
}

/// `bfe`: beyond the top there are copies of the sign, or of zero.
#[inline(always)]
fn extract(a: i128, bits: u32, position: u32, length: u32, signed: bool) -> i128 {
    if length == 0 {
        return 0;
    }
    let shifted = a >> position.min(bits);
    let kept = length.min(bits);
    let field = shifted & ((1i128 << kept) - 1);
    let negative = signed && (a >> (position + length - 1).min(bits - 1)) & 1 != 0;
    if negative { field | -1i128 << kept } else { field }
}

fn insert(d: u32, [a, b]: [u32; 2], [position, length]: [u32; 2], ty: Type) -> Compute {
    let mask = |position: u32, length: u32| {
        let (position, length) = (position & 0xff, length & 0xff);
        let ones = if length >= 64 { !0u64 } else { (1 << length) - 1 };
        if position >= 64 { 0 } else { ones << position }
    };
    Box::new(move |registers, lanes| {
        let row = |row: u32| registers.words[row as usize];
        let (position, length) = (row(position), row(length));
        crate::registers::for_lanes(lanes, |l| {
            let mask = mask(position[l], length[l]);
            let shift = position[l] & 0xff;
            let place = |a: u64| a.checked_shl(shift).unwrap_or(0) & mask;
            if ty.size() == 8 {
                let (a, b) = (registers.doubles[a as usize][l], registers.doubles[b as usize][l]);
                registers.doubles[d as usize][l] = place(a) | b & !mask;
            } else {
                let (a, b) = (registers.words[a as usize][l], registers.words[b as usize][l]);
                registers.words[d as usize][l] = (place(a as u64) | b as u64 & !mask) as u32;
            }
        });
    })
}

/// `bfind`: the highest bit that differs from the sign; `.shiftamt`: the shift that brings it to the top.
fn find_highest(form: &mut Form, ty: Type) -> Result<Compute> {
    form.expect_operands(2)?;
    let shift = form.take("shiftamt");
    let (d, a) = (form.to(0, Type::U32)?, form.from(1, ty)?);
    Ok(integers!(ty, T => unary(d, a, move |a: T| {
        let magnitude = if T::MIN != 0 && (a >> (T::BITS - 1)) & 1 != 0 { !a } else { a };
        match (magnitude == 0, shift) {
            (true, _) => !0u32,
            (false, true) => magnitude.leading_zeros(),
            (false, false) => T::BITS - 1 - magnitude.leading_zeros(),
        }
    })))
}

fn count(name: &str, form: &mut Form, ty: Type) -> Result<Compute> {
    form.expect_operands(2)?;
    if ty.size() < 4 {
        return unsupported(ty);
    }
    let a = form.from(1, ty)?;
    let d = form.to(0, if name == "brev" { ty } else { Type::U32 })?;
    Ok(patterns!(ty, T => match name {
        "clz" => unary(d, a, T::leading_zeros),
        "popc" => unary(d, a, T::count_ones),
        _ => unary(d, a, T::reverse_bits),
    }))
}
