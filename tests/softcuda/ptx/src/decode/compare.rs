//! Comparisons, and choices that depend on them.

use super::{Form, floats, patterns, unsupported};
use crate::parse::{Operand, Result};
use crate::registers::{Compute, Mask, Registers, Width, compare, select, ternary};
use crate::types::Type;

pub(super) fn decode(name: &str, form: &mut Form) -> Result<Compute> {
    match name {
        "setp" => set_predicate(form),
        "set" => set(form),
        "selp" => {
            form.expect_operands(4)?;
            let ty = form.ty()?;
            let (d, mut ab, (p, negated)) = (form.to(0, ty)?, form.pair(ty)?, form.predicate(3)?);
            if negated {
                ab.swap(0, 1);
            }
            Ok(patterns!(ty, T => select::<T>(d, ab, p.index)))
        }
        "slct" => {
            form.expect_operands(4)?;
            let [ty, sign] = form.two_types()?;
            let (d, [a, b], c) = (form.to(0, ty)?, form.pair(ty)?, form.from(3, sign)?);
            Ok(patterns!(ty, T => match sign {
                Type::S32 => ternary(d, [a, b, c], |a: T, b: T, c: i32| if c >= 0 { a } else { b }),
                Type::F32 => ternary(d, [a, b, c], |a: T, b: T, c: f32| if c >= 0.0 { a } else { b }),
                _ => return unsupported(sign),
            }))
        }
        _ => test(form),
    }
}

/// How the bits of a comparison meet a further predicate.
#[derive(Clone, Copy)]
enum Logic {
    None,
    And,
    Or,
    Xor,
}

impl Logic {
    fn of(form: &mut Form) -> Logic {
        if form.take("and") {
            Logic::And
        } else if form.take("or") {
            Logic::Or
        } else if form.take("xor") {
            Logic::Xor
        } else {
            Logic::None
        }
    }

    fn apply(self, holds: Mask, other: Mask) -> Mask {
        match self {
            Logic::None => holds,
            Logic::And => holds & other,
            Logic::Or => holds | other,
            Logic::Xor => holds ^ other,
        }
    }
}

/// `setp.lt.and.f32 p|q, a, b, c`: p = (a < b) and c, q = not (a < b) and c.
fn set_predicate(form: &mut Form) -> Result<Compute> {
    let relation = form.next_modifier()?;
    let logic = Logic::of(form);
    let combined = !matches!(logic, Logic::None);
    form.expect_operands(if combined { 4 } else { 3 })?;
    let other = if combined { Some(form.predicate(3)?) } else { None };
    let (p, q) = match form.operand(0)? {
        Operand::Pair(p, q) => (
            form.destination(p, Width::Predicate)?,
            Some(form.destination(q, Width::Predicate)?.index),
        ),
        p => (form.destination(p, Width::Predicate)?, None),
    };
    let ty = form.ty()?;
    let store = move |registers: &mut Registers, lanes: Mask, holds: Mask| {
        let other = other.map_or(0, |(register, negated)| {
            registers.predicates[register.index as usize] ^ if negated { !0 } else { 0 }
        });
        registers.set_predicate(p.index, lanes, logic.apply(holds, other));
        if let Some(q) = q {
            registers.set_predicate(q, lanes, logic.apply(!holds, other));
        }
    };
    comparison(form, relation, ty, store)
}

/// `set.lt.u32.f32`: all ones, or 1.0, where the comparison holds.
fn set(form: &mut Form) -> Result<Compute> {
    form.expect_operands(3)?;
    let relation = form.next_modifier()?;
    let [result, ty] = form.two_types()?;
    let yes = match result {
        Type::U32 | Type::S32 => !0,
        Type::F32 => 1f32.to_bits(),
        _ => return unsupported(result),
    };
    let d = form.to(0, result)? as usize;
    let store = move |registers: &mut Registers, lanes: Mask, holds: Mask| {
        let d = &mut registers.words[d];
        crate::registers::for_lanes(lanes, |l| d[l] = if holds >> l & 1 != 0 { yes } else { 0 });
    };
    comparison(form, relation, ty, store)
}

fn comparison(
    form: &mut Form,
    relation: &str,
    ty: Type,
    store: impl Fn(&mut Registers, Mask, Mask) + Send + Sync + 'static,
) -> Result<Compute> {
    let ab = form.pair(ty)?;
    match ty {
        Type::U16 | Type::B16 => integers::<u16>(ab, relation, store),
        Type::U32 | Type::B32 => integers::<u32>(ab, relation, store),
        Type::U64 | Type::B64 => integers::<u64>(ab, relation, store),
        Type::S16 => integers::<i16>(ab, relation, store),
        Type::S32 => integers::<i32>(ab, relation, store),
        Type::S64 => integers::<i64>(ab, relation, store),
        _ => Ok(floats!(ty, T => match relation {
            // Unordered relations also hold where either side is NaN.
            "equ" => compare(ab, |a: T, b: T| a == b || a.is_nan() || b.is_nan(), store),
            "neu" => compare(ab, |a: T, b: T| a != b, store),
            "ltu" => compare(ab, |a: T, b: T| a < b || a.is_nan() || b.is_nan(), store),
            "leu" => compare(ab, |a: T, b: T| a <= b || a.is_nan() || b.is_nan(), store),
            "gtu" => compare(ab, |a: T, b: T| a > b || a.is_nan() || b.is_nan(), store),
            "geu" => compare(ab, |a: T, b: T| a >= b || a.is_nan() || b.is_nan(), store),
            "num" => compare(ab, |a: T, b: T| !a.is_nan() && !b.is_nan(), store),
            "nan" => compare(ab, |a: T, b: T| a.is_nan() || b.is_nan(), store),
            "ne" => compare(ab, |a: T, b: T| a != b && !a.is_nan() && !b.is_nan(), store),
            _ => return ordered::<T>(ab, relation, store),
        })),
    }
}

fn integers<T: crate::registers::Lane + PartialOrd>(
    ab: [u32; 2],
    relation: &str,
    store: impl Fn(&mut Registers, Mask, Mask) + Send + Sync + 'static,
) -> Result<Compute> {
    match relation {
        "ne" => Ok(compare(ab, |a: T, b: T| a != b, store)),
        "lo" => ordered::<T>(ab, "lt", store),
        "ls" => ordered::<T>(ab, "le", store),
        "hi" => ordered::<T>(ab, "gt", store),
        "hs" => ordered::<T>(ab, "ge", store),
        _ => ordered::<T>(ab, relation, store),
    }
}

fn ordered<T: crate::registers::Lane + PartialOrd>(
    ab: [u32; 2],
    relation: &str,
    store: impl Fn(&mut Registers, Mask, Mask) + Send + Sync + 'static,
) -> Result<Compute> {
    Ok(match relation {
        "eq" => compare(ab, |a: T, b: T| a == b, store),
        "lt" => compare(ab, |a: T, b: T| a < b, store),
        "le" => compare(ab, |a: T, b: T| a <= b, store),
        "gt" => compare(ab, |a: T, b: T| a > b, store),
        "ge" => compare(ab, |a: T, b: T| a >= b, store),
        _ => return Err(format!("`.{relation}` is not supported")),
    })
}

/// `testp`: what kind of number it is.
fn test(form: &mut Form) -> Result<Compute> {
    form.expect_operands(2)?;
    let kind = form.next_modifier()?;
    let ty = form.ty()?;
    let (p, a) = (form.to(0, Type::Pred)?, form.from(1, ty)?);
    let store = move |registers: &mut Registers, lanes: Mask, holds: Mask| {
        registers.set_predicate(p, lanes, holds)
    };
    Ok(floats!(ty, T => match kind {
        "finite" => compare([a, a], |a: T, _| a.is_finite(), store),
        "infinite" => compare([a, a], |a: T, _| a.is_infinite(), store),
        "number" => compare([a, a], |a: T, _| !a.is_nan(), store),
        "notanumber" => compare([a, a], |a: T, _| a.is_nan(), store),
        "normal" => compare([a, a], |a: T, _| a.is_normal(), store),
        "subnormal" => compare([a, a], |a: T, _| a.is_subnormal(), store),
        _ => return Err(format!("`.{kind}` is not supported")),
    }))
}
