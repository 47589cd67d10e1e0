//! Loads, stores, atomics. How something is cached or ordered makes no difference here: one lane
//! group runs at a time.

use super::{Form, unsupported};
use crate::function::width_of;
use crate::instruction::{Action, Address, Update};
use crate::parse::{Operand, Result, Space};
use crate::registers::{Register, Width};
use crate::types::Type;

/// Modifiers that say how to cache, and in which order others see it.
const HINTS: [&str; 26] = [
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "volatile",
    "weak",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "cta",
    "gpu",
    "sys",
    "cluster",
    "L1::evict_last",
    "L1::evict_first",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::no_allocate",
    "L2::64B",
    "L2::128B",
    "L2::256B",
];

fn take_hints(form: &mut Form) {
    form.modifiers.retain(|m| !HINTS.contains(m));
}

fn space(form: &mut Form) -> Space {
    const SPACES: [(&str, Space); 7] = [
        ("global", Space::Global),
        ("const", Space::Const),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("local", Space::Local),
        ("param", Space::Param),
        ("param::entry", Space::Param),
    ];
    SPACES.iter().find(|(name, _)| form.take(name)).map_or(Space::Generic, |(_, space)| *space)
}

/// `[register+8]`, `[variable+8]` or `[4096]`
fn address(form: &mut Form, operand: &Operand, space: Space) -> Result<Address> {
    let Operand::Address(inner) = operand else {
        return Err(format!("{operand:?} is not an address"));
    };
    match &**inner {
        Operand::Integer(value) => Ok(Address { space, base: None, offset: *value as i64 }),
        Operand::Name(name, offset) => {
            if let Some(register) = form.names.declared(name) {
                return match register.width {
                    Width::Word | Width::Double => {
                        Ok(Address { space, base: Some(register), offset: *offset })
                    }
                    _ => Err(format!("`{name}` is too narrow for an address")),
                };
            }
            let (found, place) =
                form.names.variable(name).ok_or_else(|| format!("unknown name `{name}`"))?;
            if found != space && space != Space::Generic {
                return Err(format!("`{name}` is {found:?}, not {space:?}"));
            }
            Ok(Address { space: found, base: None, offset: place as i64 + offset })
        }
        other => Err(format!("{other:?} is not an address")),
    }
}

/// The registers of `.v2` and `.v4`, or the only one.
fn elements<'a>(form: &mut Form, operand: &'a Operand) -> Result<&'a [Operand]> {
    let wanted = if form.take("v2") {
        2
    } else if form.take("v4") {
        4
    } else {
        1
    };
    let found = match operand {
        Operand::Vector(parts) => &parts[..],
        single => std::slice::from_ref(single),
    };
    if found.len() == wanted {
        Ok(found)
    } else {
        Err(format!("{} registers for {wanted} elements", found.len()))
    }
}

pub(super) fn load(form: &mut Form) -> Result<Action> {
    form.expect_operands(2)?;
    let ty = form.ty()?;
    if ty == Type::Pred {
        return unsupported(ty);
    }
    let space = space(form);
    take_hints(form);
    let into = elements(form, form.operand(0)?)?;
    let into =
        into.iter().map(|r| form.wide_destination(r, ty)).collect::<Result<Vec<Register>>>()?;
    let from = address(form, form.operand(1)?, space)?;
    Ok(Action::Load { from, ty, into })
}

pub(super) fn store(form: &mut Form) -> Result<Action> {
    form.expect_operands(2)?;
    let ty = form.ty()?;
    if ty == Type::Pred {
        return unsupported(ty);
    }
    let space = space(form);
    take_hints(form);
    let values = elements(form, form.operand(1)?)?;
    let values =
        values.iter().map(|r| form.wide_source(r, ty)).collect::<Result<Vec<Register>>>()?;
    let to = address(form, form.operand(0)?, space)?;
    if matches!(to.space, Space::Const | Space::Param) {
        return Err(format!("{:?} memory cannot be written", to.space));
    }
    Ok(Action::Store { to, ty, values })
}

pub(super) fn atomic(name: &str, form: &mut Form) -> Result<Action> {
    const UPDATES: [(&str, Update); 10] = [
        ("add", Update::Add),
        ("inc", Update::Increment),
        ("dec", Update::Decrement),
        ("min", Update::Minimum),
        ("max", Update::Maximum),
        ("and", Update::And),
        ("or", Update::Or),
        ("xor", Update::Xor),
        ("exch", Update::Exchange),
        ("cas", Update::CompareAndSwap),
    ];
    let ty = form.ty()?;
    let space = space(form);
    take_hints(form);
    let found = UPDATES.iter().find(|(name, _)| form.take(name));
    let (_, update) = *found.ok_or("the operation is not supported")?;
    if !is_atomic(update, ty) {
        return unsupported(ty);
    }
    let first = (name == "atom") as usize;
    form.expect_operands(first + if update == Update::CompareAndSwap { 3 } else { 2 })?;
    let old = match first {
        1 => Some(form.destination(form.operand(0)?, width_of(ty))?),
        _ => None,
    };
    let at = address(form, form.operand(first)?, space)?;
    if !matches!(at.space, Space::Generic | Space::Global | Space::Shared) {
        return Err(format!("{:?} memory has no atomics", at.space));
    }
    let operands = form.operands[first + 1..]
        .iter()
        .map(|o| form.source(o, ty))
        .collect::<Result<Vec<Register>>>()?;
    Ok(Action::Atomic { at, ty, update, old, operands })
}

fn is_atomic(update: Update, ty: Type) -> bool {
    use Type::*;
    match update {
        Update::Add => matches!(ty, U32 | S32 | U64 | S64 | F32 | F64),
        Update::Increment | Update::Decrement => ty == U32,
        Update::Minimum | Update::Maximum => matches!(ty, U32 | S32 | U64 | S64),
        _ => matches!(ty, B32 | B64),
    }
}

pub(super) fn fence(form: &mut Form) -> Result<Action> {
    form.expect_operands(0)?;
    for level in ["gl", "cta", "sys", "gpu", "sc", "acq_rel"] {
        form.take(level);
    }
    Ok(Action::Nothing)
}

pub(super) fn prefetch(form: &mut Form) -> Result<Action> {
    for modifier in ["global", "local", "L1", "L2"] {
        form.take(modifier);
    }
    Ok(Action::Nothing)
}
