//! `cvt`: between any two of the integer types, and between those, f16, bf16, f32 and f64.

use half::{bf16, f16};

use super::{Form, unsupported};
use crate::parse::Result;
use crate::registers::{Compute, Lane, Register, Width, binary, unary};
use crate::types::Type;

pub(super) fn decode(form: &mut Form) -> Result<Compute> {
    let [to, from] = form.two_types()?;
    if matches!(to, Type::F16x2 | Type::Bf16x2) {
        return pack(form, to, from);
    }
    form.expect_operands(2)?;
    let rounding = Rounding::of(form);
    let saturates = form.take("sat");
    let (into, value) = (form.operand(0)?, form.operand(1)?);
    let value = form.wide_source(value, from)?;
    let into = form.wide_destination(into, to)?;
    let floats = (to.is_float(), from.is_float());
    if floats.0 && into.width != crate::function::width_of(to) {
        return Err("the register must have the type's width".into());
    }
    let places = Places { d: into, a: value.index };
    if value.width == Width::Double && from.size() < 8 {
        return if floats == (false, false) && !saturates {
            extend_in_place(places, to, from)
        } else {
            Err("the source is too wide".into())
        };
    }
    match floats {
        (false, false) if rounding.is_none() => integers(places, to, from, saturates),
        (false, true) => float_to_integer(places, to, from, rounding),
        (true, false) if rounding == Some(Rounding::Nearest) && !saturates => {
            integer_to_float(places.d.index, places.a, to, from)
        }
        (true, true) => float_to_float(places.d.index, places.a, to, from, rounding, saturates),
        _ => Err("this rounding is not supported".into()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounding {
    /// Of the significand.
    Nearest,
    Zero,
    Down,
    Up,
    /// To an integral value.
    IntegralNearest,
    IntegralZero,
    IntegralDown,
    IntegralUp,
}

impl Rounding {
    fn of(form: &mut Form) -> Option<Rounding> {
        const NAMES: [(&str, Rounding); 8] = [
            ("rn", Rounding::Nearest),
            ("rz", Rounding::Zero),
            ("rm", Rounding::Down),
            ("rp", Rounding::Up),
            ("rni", Rounding::IntegralNearest),
            ("rzi", Rounding::IntegralZero),
            ("rmi", Rounding::IntegralDown),
            ("rpi", Rounding::IntegralUp),
        ];
        NAMES.iter().find(|(name, _)| form.take(name)).map(|(_, rounding)| *rounding)
    }

    /// For the four that are integral.
    #[inline(always)]
    fn integral(self, x: f64) -> f64 {
        match self {
            Rounding::IntegralNearest => x.round_ties_even(),
            Rounding::IntegralDown => x.floor(),
            Rounding::IntegralUp => x.ceil(),
            _ => x.trunc(),
        }
    }
}

#[derive(Clone, Copy)]
struct Places {
    /// May be wider than the type: the value is then extended.
    d: Register,
    a: u32,
}

/// An integer type of PTX.
trait Integer: Lane {
    const MIN: i128;
    const MAX: i128;
    fn wide(self) -> i128;
}

macro_rules! integer {
    ($($ty:ty)+) => {$(
        impl Integer for $ty {
            const MIN: i128 = <$ty>::MIN as i128;
            const MAX: i128 = <$ty>::MAX as i128;
            #[inline(always)]
            fn wide(self) -> i128 {
                self as i128
            }
        }
    )+};
}
integer!(u8 i8 u16 i16 u32 i32 u64 i64);

macro_rules! with_integer {
    ($ty:expr, $T:ident => $body:expr) => {
        match $ty {
            Type::U8 | Type::B8 => {
                type $T = u8;
                $body
            }
            Type::S8 => {
                type $T = i8;
                $body
            }
            Type::U16 | Type::B16 => {
                type $T = u16;
                $body
            }
            Type::S16 => {
                type $T = i16;
                $body
            }
            Type::U32 | Type::B32 => {
                type $T = u32;
                $body
            }
            Type::S32 => {
                type $T = i32;
                $body
            }
            Type::U64 | Type::B64 => {
                type $T = u64;
                $body
            }
            Type::S64 => {
                type $T = i64;
                $body
            }
            other => return unsupported(other),
        }
    };
}

/// Stores what `f` makes of each value, extended from `to` to the register's width.
#[allow(clippy::unnecessary_cast)] // Where the type is the register's own.
fn store_integer<A: Lane>(
    places: Places,
    to: Type,
    f: impl Fn(A) -> i128 + Send + Sync + Copy + 'static,
) -> Result<Compute> {
    let Places { d, a } = places;
    Ok(with_integer!(to, T => match d.width {
        Width::Half => unary(d.index, a, move |x: A| f(x) as T as u16),
        Width::Word => unary(d.index, a, move |x: A| f(x) as T as u32),
        Width::Double => unary(d.index, a, move |x: A| f(x) as T as u64),
        Width::Predicate => return unsupported(Type::Pred),
    }))
}

fn integers(places: Places, to: Type, from: Type, saturates: bool) -> Result<Compute> {
    let (low, high) = with_integer!(to, T => (<T as Integer>::MIN, <T as Integer>::MAX));
    with_integer!(from, T => if saturates {
        store_integer(places, to, move |x: T| x.wide().clamp(low, high))
    } else {
        store_integer(places, to, |x: T| x.wide())
    })
}

/// The low bits of a 64-bit register.
fn extend_in_place(places: Places, to: Type, from: Type) -> Result<Compute> {
    with_integer!(from, T => store_integer(places, to, |x: u64| (x as T).wide()))
}

/// Out of range: the nearest end of it. NaN: 0, but the top bit where either side has 64 bits.
fn float_to_integer(
    places: Places,
    to: Type,
    from: Type,
    rounding: Option<Rounding>,
) -> Result<Compute> {
    let Some(
        rounding @ (Rounding::IntegralNearest
        | Rounding::IntegralZero
        | Rounding::IntegralDown
        | Rounding::IntegralUp),
    ) = rounding
    else {
        return Err("an integral rounding was expected".into());
    };
    let of_nan = if from == Type::F64 || to.size() == 8 { 1i128 << (8 * to.size() - 1) } else { 0 };
    let (low, high) = with_integer!(to, T => (<T as Integer>::MIN, <T as Integer>::MAX));
    let convert = move |x: f64| {
        if x.is_nan() { of_nan } else { (rounding.integral(x) as i128).clamp(low, high) }
    };
    match from {
        Type::F16 => store_integer(places, to, move |x: f16| convert(x.to_f64())),
        Type::F32 => store_integer(places, to, move |x: f32| convert(x as f64)),
        Type::F64 => store_integer(places, to, convert),
        _ => unsupported(from),
    }
}

fn integer_to_float(d: u32, a: u32, to: Type, from: Type) -> Result<Compute> {
    Ok(with_integer!(from, T => match to {
        // What f32 cannot hold exactly is beyond the range of f16.
        Type::F16 => unary(d, a, |x: T| f16::from_f32(x as f32)),
        Type::F32 => unary(d, a, |x: T| x as f32),
        Type::F64 => unary(d, a, |x: T| x as f64),
        _ => return unsupported(to),
    }))
}

fn float_to_float(
    d: u32,
    a: u32,
    to: Type,
    from: Type,
    rounding: Option<Rounding>,
    saturates: bool,
) -> Result<Compute> {
    use Rounding::*;
    let unit = |x: f32| if x > 0.0 { x.min(1.0) } else { 0.0 };
    Ok(match (to, from, rounding, saturates) {
        (Type::F32, Type::F32, None, true) => unary(d, a, unit),
        (_, _, _, true) => return Err("this saturation is not supported".into()),
        (
            Type::F32,
            Type::F32,
            Some(r @ (IntegralNearest | IntegralZero | IntegralDown | IntegralUp)),
            _,
        ) => match r {
            IntegralNearest => unary(d, a, f32::round_ties_even),
            IntegralDown => unary(d, a, f32::floor),
            IntegralUp => unary(d, a, f32::ceil),
            _ => unary(d, a, f32::trunc),
        },
        (
            Type::F64,
            Type::F64,
            Some(r @ (IntegralNearest | IntegralZero | IntegralDown | IntegralUp)),
            _,
        ) => unary(d, a, move |x: f64| r.integral(x)),
        (Type::F32, Type::F32, None, _) => unary(d, a, |x: f32| x),
        (Type::F64, Type::F64, None, _) => unary(d, a, |x: f64| x),
        (Type::F64, Type::F32, None, _) => unary(d, a, |x: f32| x as f64),
        (Type::F32, Type::F64, Some(Nearest), _) => unary(d, a, |x: f64| x as f32),
        (Type::F32, Type::F64, Some(r @ (Zero | Down | Up)), _) => {
            unary(d, a, move |x: f64| narrow(x, r))
        }
        (Type::F32, Type::F16, None, _) => unary(d, a, f16::to_f32),
        (Type::F64, Type::F16, None, _) => unary(d, a, f16::to_f64),
        (Type::F32, Type::Bf16, None, _) => unary(d, a, bf16::to_f32),
        (Type::F16, Type::F32, Some(Nearest), _) => unary(d, a, f16::from_f32),
        (Type::Bf16, Type::F32, Some(Nearest), _) => unary(d, a, bf16::from_f32),
        _ => return Err("this rounding or pair of types is not supported".into()),
    })
}

/// f64 to f32 by a directed rounding: one step from the nearest where that lies on the wrong side.
fn narrow(x: f64, rounding: Rounding) -> f32 {
    let nearest = x as f32;
    let back = nearest as f64;
    match rounding {
        Rounding::Down if back > x => nearest.next_down(),
        Rounding::Up if back < x => nearest.next_up(),
        Rounding::Zero if back.abs() > x.abs() => f32::from_bits(nearest.to_bits() - 1),
        _ => nearest,
    }
}

/// `cvt.rn.bf16x2.f32 d, high, low`
fn pack(form: &mut Form, to: Type, from: Type) -> Result<Compute> {
    form.expect_operands(3)?;
    form.require("rn")?;
    if from != Type::F32 {
        return unsupported(from);
    }
    let (d, ab) = (form.to(0, Type::B32)?, form.pair(from)?);
    Ok(if to == Type::F16x2 {
        binary(d, ab, |high: f32, low: f32| {
            f16::from_f32(high).to_row() << 16 | f16::from_f32(low).to_row()
        })
    } else {
        binary(d, ab, |high: f32, low: f32| {
            bf16::from_f32(high).to_row() << 16 | bf16::from_f32(low).to_row()
        })
    })
}
