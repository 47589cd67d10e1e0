//! One statement to one [`Action`]. A decoder takes the modifiers it knows from the [`Form`]; what
//! nobody has taken at the end is refused, so that nothing is silently ignored.

mod arithmetic;
mod bits;
mod compare;
mod convert;
mod flow;
mod lanes;
mod memory;
mod moves;

use crate::function::{Names, width_of};
use crate::instruction::Action;
use crate::parse::{Operand, Result, Statement};
use crate::registers::{Register, Width};
use crate::types::Type;

pub(crate) fn decode(statement: &Statement, names: &mut Names) -> Result<Action> {
    let mut parts = statement.opcode.split('.');
    let name = parts.next().expect("split yields at least one part");
    let (types, modifiers): (Vec<&str>, Vec<&str>) = parts.partition(|p| Type::named(p).is_some());
    let types = types.into_iter().filter_map(Type::named).collect();
    let mut form = Form { modifiers, types, operands: &statement.operands, names };
    let action = decode_named(name, &mut form)?;
    match form.modifiers.first() {
        Some(modifier) => Err(format!("`.{modifier}` is not supported")),
        None => Ok(action),
    }
}

fn decode_named(name: &str, form: &mut Form) -> Result<Action> {
    Ok(match name {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg"
        | "rcp" | "sqrt" | "sad" | "copysign" | "ex2" | "lg2" | "sin" | "cos" => {
            Action::Compute(arithmetic::decode(name, form)?)
        }
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "prmt" | "bfe"
        | "bfi" | "bfind" | "clz" | "popc" | "brev" => Action::Compute(bits::decode(name, form)?),
        "setp" | "set" | "selp" | "slct" | "testp" => Action::Compute(compare::decode(name, form)?),
        "cvt" => Action::Compute(convert::decode(form)?),
        "mov" | "cvta" | "isspacep" => Action::Compute(moves::decode(name, form)?),
        "ld" | "ldu" => memory::load(form)?,
        "st" => memory::store(form)?,
        "atom" | "red" => memory::atomic(name, form)?,
        "membar" | "fence" => memory::fence(form)?,
        "prefetch" | "prefetchu" => memory::prefetch(form)?,
        "shfl" | "vote" | "match" | "redux" | "activemask" => lanes::decode(name, form)?,
        "nanosleep" => {
            form.types.clear();
            Action::Nothing
        }
        "bar" | "barrier" | "bra" | "brx" | "ret" | "exit" | "trap" => flow::decode(name, form)?,
        _ => return Err("the opcode is not supported".into()),
    })
}

/// A statement while it is being decoded.
pub(super) struct Form<'a> {
    /// Those nobody has taken yet.
    pub modifiers: Vec<&'a str>,
    pub types: Vec<Type>,
    pub operands: &'a [Operand],
    pub names: &'a mut Names,
}

impl<'a> Form<'a> {
    /// Whether the modifier is there; it then counts as understood.
    pub fn take(&mut self, modifier: &str) -> bool {
        let position = self.modifiers.iter().position(|m| *m == modifier);
        position.map(|p| self.modifiers.remove(p)).is_some()
    }

    pub fn require(&mut self, modifier: &str) -> Result<()> {
        if self.take(modifier) {
            Ok(())
        } else {
            Err(format!("without `.{modifier}` it is not supported"))
        }
    }

    /// The modifier that is next, whatever it is.
    pub fn next_modifier(&mut self) -> Result<&'a str> {
        if self.modifiers.is_empty() {
            Err("a modifier is missing".into())
        } else {
            Ok(self.modifiers.remove(0))
        }
    }

    /// The only type.
    pub fn ty(&self) -> Result<Type> {
        match self.types[..] {
            [ty] => Ok(ty),
            _ => Err("one type was expected".into()),
        }
    }

    pub fn two_types(&self) -> Result<[Type; 2]> {
        self.types[..].try_into().map_err(|_| "two types were expected".into())
    }

    pub fn operand(&self, i: usize) -> Result<&'a Operand> {
        self.operands.get(i).ok_or_else(|| format!("operand {} is missing", i + 1))
    }

    pub fn expect_operands(&self, count: usize) -> Result<()> {
        let found = self.operands.len();
        if found == count {
            Ok(())
        } else {
            Err(format!("{found} operands where {count} were expected"))
        }
    }

    /// Row of the register that receives a value of the type.
    pub fn to(&mut self, i: usize, ty: Type) -> Result<u32> {
        let operand = self.operand(i)?;
        Ok(self.destination(operand, width_of(ty))?.index)
    }

    /// Row of a value of the type.
    pub fn from(&mut self, i: usize, ty: Type) -> Result<u32> {
        let operand = self.operand(i)?;
        Ok(self.source(operand, ty)?.index)
    }

    /// Operands 1 and 2: the usual two values of a type.
    pub fn pair(&mut self, ty: Type) -> Result<[u32; 2]> {
        Ok([self.from(1, ty)?, self.from(2, ty)?])
    }

    pub fn triple(&mut self, ty: Type) -> Result<[u32; 3]> {
        Ok([self.from(1, ty)?, self.from(2, ty)?, self.from(3, ty)?])
    }

    pub fn destination(&mut self, operand: &Operand, width: Width) -> Result<Register> {
        match operand {
            Operand::Name(name, 0) if name == "_" => Ok(self.names.fresh(width)),
            Operand::Name(name, 0) => self.names.register(name, width),
            other => Err(format!("{other:?} cannot be written")),
        }
    }

    /// A register of exactly the type's width, a special register, an address, or a constant.
    pub fn source(&mut self, operand: &Operand, ty: Type) -> Result<Register> {
        let width = width_of(ty);
        match operand {
            Operand::Name(name, 0) if self.names.declared(name).is_some() => {
                self.names.register(name, width)
            }
            _ => self.undeclared(operand, ty),
        }
    }

    /// As [`source`](Form::source), but a register may be wider than the type.
    pub fn wide_source(&mut self, operand: &Operand, ty: Type) -> Result<Register> {
        match operand {
            Operand::Name(name, 0) if self.names.declared(name).is_some() => {
                self.wide_register(name, ty)
            }
            _ => self.undeclared(operand, ty),
        }
    }

    /// The register that receives a value of the type, extended to its width.
    pub fn wide_destination(&mut self, operand: &Operand, ty: Type) -> Result<Register> {
        match operand {
            Operand::Name(name, 0) if name == "_" => Ok(self.names.fresh(width_of(ty))),
            Operand::Name(name, 0) => self.wide_register(name, ty),
            other => Err(format!("{other:?} cannot be written")),
        }
    }

    fn wide_register(&mut self, name: &str, ty: Type) -> Result<Register> {
        let register =
            self.names.declared(name).ok_or_else(|| format!("unknown register `{name}`"))?;
        let bytes = match register.width {
            Width::Predicate => 0,
            Width::Half => 2,
            Width::Word => 4,
            Width::Double => 8,
        };
        if bytes < ty.size() {
            Err(format!("`{name}` is too narrow for .{ty}"))
        } else {
            Ok(register)
        }
    }

    fn undeclared(&mut self, operand: &Operand, ty: Type) -> Result<Register> {
        let width = width_of(ty);
        if let Operand::Name(name, offset) = operand {
            if let Some(register) = self.names.special(name)
                && *offset == 0
            {
                return if width == Width::Word {
                    Ok(register)
                } else {
                    Err(format!("`{name}` has 32 bits"))
                };
            }
            let (_, address) =
                self.names.variable(name).ok_or_else(|| format!("unknown name `{name}`"))?;
            return Ok(self.names.constant(width, address.wrapping_add(*offset as u64)));
        }
        let value = constant(operand, ty)?;
        Ok(self.names.constant(width, value))
    }

    /// A predicate operand, and whether it is negated.
    pub fn predicate(&mut self, i: usize) -> Result<(Register, bool)> {
        match self.operand(i)? {
            Operand::Not(name) => Ok((self.names.register(name, Width::Predicate)?, true)),
            operand => Ok((self.source(operand, Type::Pred)?, false)),
        }
    }
}

fn constant(operand: &Operand, ty: Type) -> Result<u64> {
    match (operand, ty) {
        (Operand::Integer(value), _) if !ty.is_float() => Ok(*value),
        (Operand::Float32(bits), Type::F64) => Ok((f32::from_bits(*bits) as f64).to_bits()),
        (Operand::Float64(bits), Type::F32) => Ok((f64::from_bits(*bits) as f32).to_bits() as u64),
        (Operand::Float32(bits), _) if ty.size() == 4 => Ok(*bits as u64),
        (Operand::Float64(bits), _) if ty.size() == 8 => Ok(*bits),
        _ => Err(format!("{operand:?} is not a .{ty}")),
    }
}

pub(super) fn unsupported<T>(ty: Type) -> Result<T> {
    Err(format!("the type .{ty} is not supported"))
}

/// Evaluates the body with `$T` standing for the Rust integer of the type.
macro_rules! integers {
    ($ty:expr, $T:ident => $body:expr) => {
        match $ty {
            Type::U16 | Type::B16 => {
                type $T = u16;
                $body
            }
            Type::U32 | Type::B32 => {
                type $T = u32;
                $body
            }
            Type::U64 | Type::B64 => {
                type $T = u64;
                $body
            }
            Type::S16 => {
                type $T = i16;
                $body
            }
            Type::S32 => {
                type $T = i32;
                $body
            }
            Type::S64 => {
                type $T = i64;
                $body
            }
            other => return $crate::decode::unsupported(other),
        }
    };
}
/// The same for bits of any type of a width.
macro_rules! patterns {
    ($ty:expr, $T:ident => $body:expr) => {
        match $ty.size() {
            2 => {
                type $T = u16;
                $body
            }
            4 => {
                type $T = u32;
                $body
            }
            8 => {
                type $T = u64;
                $body
            }
            _ => return $crate::decode::unsupported($ty),
        }
    };
}
macro_rules! floats {
    ($ty:expr, $T:ident => $body:expr) => {
        match $ty {
            Type::F32 => {
                type $T = f32;
                $body
            }
            Type::F64 => {
                type $T = f64;
                $body
            }
            other => return $crate::decode::unsupported(other),
        }
    };
}
use {floats, integers, patterns};
