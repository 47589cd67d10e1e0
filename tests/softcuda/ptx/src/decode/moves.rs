//! Values from one register to another, whole, in halves, or as addresses.

use super::{Form, patterns, unsupported};
use crate::access::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW};
use crate::parse::{Operand, Result};
use crate::registers::{Compute, Register, Width, for_lanes, unary};
use crate::types::Type;

pub(super) fn decode(name: &str, form: &mut Form) -> Result<Compute> {
    form.expect_operands(2)?;
    match name {
        "mov" => move_(form),
        "cvta" => convert_address(form),
        _ => is_space(form),
    }
}

fn move_(form: &mut Form) -> Result<Compute> {
    let ty = form.ty()?;
    match (form.operand(0)?, form.operand(1)?) {
        (Operand::Vector(parts), _) => {
            let whole = form.from(1, ty)?;
            let part = part_type(ty, parts.len())?;
            let parts = parts
                .iter()
                .map(|p| form.destination(p, super::width_of(part)))
                .collect::<Result<Vec<Register>>>()?;
            Ok(split(super::width_of(ty), whole, parts, 8 * part.size() as u32))
        }
        (_, Operand::Vector(parts)) => {
            let whole = form.to(0, ty)?;
            let part = part_type(ty, parts.len())?;
            let parts =
                parts.iter().map(|p| form.source(p, part)).collect::<Result<Vec<Register>>>()?;
            Ok(join(super::width_of(ty), whole, parts, 8 * part.size() as u32))
        }
        _ if ty == Type::Pred => {
            let (d, (a, negated)) = (form.to(0, ty)?, form.predicate(1)?);
            let flip = if negated { !0 } else { 0 };
            Ok(Box::new(move |r, lanes| {
                r.set_predicate(d, lanes, r.predicates[a.index as usize] ^ flip)
            }))
        }
        _ => {
            let (d, a) = (form.to(0, ty)?, form.from(1, ty)?);
            Ok(patterns!(ty, T => unary(d, a, |x: T| x)))
        }
    }
}

fn part_type(whole: Type, parts: usize) -> Result<Type> {
    match (whole.size(), parts) {
        (4, 2) | (8, 4) => Ok(Type::B16),
        (8, 2) => Ok(Type::B32),
        _ => Err(format!("{parts} parts of a .{whole} are not supported")),
    }
}

/// Lowest part first.
fn split(width: Width, whole: u32, parts: Vec<Register>, bits: u32) -> Compute {
    Box::new(move |registers, lanes| {
        for_lanes(lanes, |l| {
            let value = registers.get(Register { width, index: whole }, l);
            for (i, part) in parts.iter().enumerate() {
                registers.set(*part, l, value >> (i as u32 * bits));
            }
        });
    })
}

fn join(width: Width, whole: u32, parts: Vec<Register>, bits: u32) -> Compute {
    Box::new(move |registers, lanes| {
        for_lanes(lanes, |l| {
            let value =
                parts.iter().rev().fold(0, |value, part| value << bits | registers.get(*part, l));
            registers.set(Register { width, index: whole }, l, value);
        });
    })
}

/// Shared and local memory are windows in the generic address space; all else has one address.
fn convert_address(form: &mut Form) -> Result<Compute> {
    let from_generic = form.take("to");
    let window = match form.next_modifier()? {
        "shared" => SHARED_WINDOW,
        "local" => LOCAL_WINDOW,
        "global" | "const" => 0,
        other => return Err(format!("`.{other}` is not supported")),
    };
    let ty = form.ty()?;
    if ty.size() != 8 {
        return unsupported(ty);
    }
    let (d, a) = (form.to(0, ty)?, form.from(1, ty)?);
    Ok(if from_generic {
        unary(d, a, move |address: u64| address.wrapping_sub(window))
    } else {
        unary(d, a, move |address: u64| address.wrapping_add(window))
    })
}

fn is_space(form: &mut Form) -> Result<Compute> {
    let space = form.next_modifier()?;
    let (p, a) = (form.to(0, Type::Pred)?, form.from(1, Type::U64)? as usize);
    let windows = match space {
        "shared" => SHARED_WINDOW..SHARED_WINDOW + WINDOW,
        "local" => LOCAL_WINDOW..LOCAL_WINDOW + WINDOW,
        "global" => 0..LOCAL_WINDOW,
        _ => return Err(format!("`.{space}` is not supported")),
    };
    Ok(Box::new(move |registers, lanes| {
        let mut holds = 0;
        for_lanes(lanes, |l| holds |= (windows.contains(&registers.doubles[a][l]) as u32) << l);
        registers.set_predicate(p, lanes, holds);
    }))
}
