//! Sums, products, quotients, minima: integers wrap, floats are IEEE, rounded to nearest even.

use super::{Form, floats, integers, unsupported};
use crate::parse::Result;
use crate::registers::{Compute, binary, ternary, unary};
use crate::types::Type;

pub(super) fn decode(name: &str, form: &mut Form) -> Result<Compute> {
    match name {
        "mul" | "mad" if !form.ty()?.is_float() => return product(name, form),
        "ex2" | "lg2" | "sin" | "cos" => return transcendental(name, form),
        _ => {}
    }
    form.expect_operands(match name {
        "abs" | "neg" | "rcp" | "sqrt" => 2,
        "fma" | "mad" | "sad" => 4,
        _ => 3,
    })?;
    if form.ty()?.is_float() { float(name, form) } else { integer(name, form) }
}

fn integer(name: &str, form: &mut Form) -> Result<Compute> {
    let ty = form.ty()?;
    let d = form.to(0, ty)?;
    if matches!(name, "abs" | "neg") {
        let a = form.from(1, ty)?;
        return match (name, ty) {
            ("abs", Type::S16) => Ok(unary(d, a, i16::wrapping_abs)),
            ("abs", Type::S32) => Ok(unary(d, a, i32::wrapping_abs)),
            ("abs", Type::S64) => Ok(unary(d, a, i64::wrapping_abs)),
            ("neg", Type::S16) => Ok(unary(d, a, i16::wrapping_neg)),
            ("neg", Type::S32) => Ok(unary(d, a, i32::wrapping_neg)),
            ("neg", Type::S64) => Ok(unary(d, a, i64::wrapping_neg)),
            _ => unsupported(ty),
        };
    }
    if name == "sad" {
        let abc = form.triple(ty)?;
        return Ok(integers!(ty, T => ternary(d, abc, |a: T, b: T, c: T| {
            c.wrapping_add(if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) })
        })));
    }
    let ab = form.pair(ty)?;
    let saturated = ty == Type::S32 && matches!(name, "add" | "sub") && form.take("sat");
    Ok(integers!(ty, T => match name {
        "add" if saturated => binary(d, ab, T::saturating_add),
        "sub" if saturated => binary(d, ab, T::saturating_sub),
        "add" => binary(d, ab, T::wrapping_add),
        "sub" => binary(d, ab, T::wrapping_sub),
        // By zero: unspecified in PTX; all ones, and the dividend, is what GPUs return.
        "div" => binary(d, ab, |a: T, b: T| if b == 0 { !0 } else { a.wrapping_div(b) }),
        "rem" => binary(d, ab, |a: T, b: T| if b == 0 { a } else { a.wrapping_rem(b) }),
        "min" => binary(d, ab, |a: T, b: T| a.min(b)),
        "max" => binary(d, ab, |a: T, b: T| a.max(b)),
        _ => return unsupported(ty),
    }))
}

/// `mul` and `mad`: the low half, the high half, or all of the product.
fn product(name: &str, form: &mut Form) -> Result<Compute> {
    let ty = form.ty()?;
    let adds = name == "mad";
    form.expect_operands(if adds { 4 } else { 3 })?;
    if form.take("wide") {
        return wide_product(form, ty, adds);
    }
    let high = form.take("hi");
    if !high {
        form.require("lo")?;
    }
    let d = form.to(0, ty)?;
    let [a, b] = form.pair(ty)?;
    let c = if adds { form.from(3, ty)? } else { 0 };
    Ok(integers!(ty, T => {
        let top = |a: T, b: T| ((a as i128).wrapping_mul(b as i128) >> T::BITS) as T;
        match (adds, high) {
            (false, false) => binary(d, [a, b], T::wrapping_mul),
            (false, true) => binary(d, [a, b], top),
            (true, false) => ternary(d, [a, b, c], |a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c)),
            (true, true) => ternary(d, [a, b, c], move |a: T, b: T, c: T| top(a, b).wrapping_add(c)),
        }
    }))
}

fn wide_product(form: &mut Form, ty: Type, adds: bool) -> Result<Compute> {
    macro_rules! wide {
        ($narrow:ty, $wide:ty, $result:expr) => {{
            let d = form.to(0, $result)?;
            let [a, b] = form.pair(ty)?;
            let times = |a: $narrow, b: $narrow| a as $wide * b as $wide;
            if adds {
                let c = form.from(3, $result)?;
                ternary(d, [a, b, c], move |a: $narrow, b: $narrow, c: $wide| {
                    times(a, b).wrapping_add(c)
                })
            } else {
                binary(d, [a, b], times)
            }
        }};
    }
    Ok(match ty {
        Type::U16 => wide!(u16, u32, Type::U32),
        Type::S16 => wide!(i16, i32, Type::S32),
        Type::U32 => wide!(u32, u64, Type::U64),
        Type::S32 => wide!(i32, i64, Type::S64),
        _ => return unsupported(ty),
    })
}

fn float(name: &str, form: &mut Form) -> Result<Compute> {
    let ty = form.ty()?;
    match name {
        "div" | "rcp" | "sqrt" | "fma" | "mad" => form.require("rn")?,
        "add" | "sub" | "mul" => _ = form.take("rn"),
        _ => {}
    }
    let propagates = matches!(name, "min" | "max") && ty == Type::F32 && form.take("NaN");
    let d = form.to(0, ty)?;
    if matches!(name, "fma" | "mad") {
        let abc = form.triple(ty)?;
        return match ty {
            Type::F32 => Ok(crate::fused::multiply_add_f32(d, abc)),
            Type::F64 => Ok(crate::fused::multiply_add_f64(d, abc)),
            _ => unsupported(ty),
        };
    }
    match (name, ty) {
        // Signs are bits: a NaN keeps its payload.
        ("abs", Type::F32) => return Ok(unary(d, form.from(1, ty)?, |a: u32| a & !(1 << 31))),
        ("abs", Type::F64) => return Ok(unary(d, form.from(1, ty)?, |a: u64| a & !(1 << 63))),
        ("neg", Type::F32) => return Ok(unary(d, form.from(1, ty)?, |a: u32| a ^ 1 << 31)),
        ("neg", Type::F64) => return Ok(unary(d, form.from(1, ty)?, |a: u64| a ^ 1 << 63)),
        _ => {}
    }
    Ok(floats!(ty, T => {
        if matches!(name, "rcp" | "sqrt") {
            let a = form.from(1, ty)?;
            return Ok(if name == "rcp" { unary(d, a, |a: T| 1.0 / a) } else { unary(d, a, T::sqrt) });
        }
        let ab = form.pair(ty)?;
        match name {
            "add" => binary(d, ab, |a: T, b: T| a + b),
            "sub" => binary(d, ab, |a: T, b: T| a - b),
            "mul" => binary(d, ab, |a: T, b: T| a * b),
            "div" => binary(d, ab, |a: T, b: T| a / b),
            "min" if propagates => binary(d, ab, |a: T, b: T| if a.is_nan() || b.is_nan() { T::NAN } else { minimum!(T, a, b) }),
            "max" if propagates => binary(d, ab, |a: T, b: T| if a.is_nan() || b.is_nan() { T::NAN } else { maximum!(T, a, b) }),
            "min" => binary(d, ab, |a: T, b: T| minimum!(T, a, b)),
            "max" => binary(d, ab, |a: T, b: T| maximum!(T, a, b)),
            "copysign" => binary(d, ab, |a: T, b: T| b.copysign(a)),
            _ => return unsupported(ty),
        }
    }))
}

/// -0 is below +0, and a NaN loses against a number.
macro_rules! minimum {
    ($T:ty, $a:expr, $b:expr) => {
        if $a.is_nan() {
            $b
        } else if $b.is_nan() || $a < $b || ($a == $b && $a.is_sign_negative()) {
            $a
        } else {
            $b
        }
    };
}
macro_rules! maximum {
    ($T:ty, $a:expr, $b:expr) => {
        if $a.is_nan() {
            $b
        } else if $b.is_nan() || $a > $b || ($a == $b && $a.is_sign_positive()) {
            $a
        } else {
            $b
        }
    };
}
use {maximum, minimum};

/// A GPU's are approximate, within 2 ulp; here they are rounded from f64. The only instructions
/// whose bits differ from a GPU's.
fn transcendental(name: &str, form: &mut Form) -> Result<Compute> {
    form.expect_operands(2)?;
    form.require("approx")?;
    let ty = form.ty()?;
    if ty != Type::F32 {
        return unsupported(ty);
    }
    let (d, a) = (form.to(0, ty)?, form.from(1, ty)?);
    Ok(match name {
        "ex2" => unary(d, a, |a: f32| (a as f64).exp2() as f32),
        "lg2" => unary(d, a, |a: f32| (a as f64).log2() as f32),
        "sin" => unary(d, a, |a: f32| (a as f64).sin() as f32),
        _ => unary(d, a, |a: f32| (a as f64).cos() as f32),
    })
}
