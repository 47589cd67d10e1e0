//! Each arithmetic opcode against Rust's own arithmetic, over all pairs of edge values.

mod common;

use common::{binary, ternary, unary, unary_body};

macro_rules! for_integers {
    ($($ty:ty, $name:literal;)+ => $check:ident) => {$($check!($ty, $name);)+};
}

#[test]
fn integers_wrap() {
    macro_rules! check {
        ($ty:ty, $name:literal) => {
            binary(concat!("add.", $name), <$ty>::wrapping_add);
            binary(concat!("sub.", $name), <$ty>::wrapping_sub);
            binary(concat!("mul.lo.", $name), <$ty>::wrapping_mul);
            binary(concat!("min.", $name), |a: $ty, b: $ty| a.min(b));
            binary(concat!("max.", $name), |a: $ty, b: $ty| a.max(b));
            binary(
                concat!("div.", $name),
                |a: $ty, b: $ty| if b == 0 { !0 } else { a.wrapping_div(b) },
            );
            binary(
                concat!("rem.", $name),
                |a: $ty, b: $ty| if b == 0 { a } else { a.wrapping_rem(b) },
            );
            binary(concat!("mul.hi.", $name), |a: $ty, b: $ty| {
                ((a as i128).wrapping_mul(b as i128) >> <$ty>::BITS) as $ty
            });
            ternary(concat!("mad.lo.", $name), |a: $ty, b: $ty, c: $ty| {
                a.wrapping_mul(b).wrapping_add(c)
            });
            ternary(concat!("sad.", $name), |a: $ty, b: $ty, c: $ty| {
                c.wrapping_add(a.abs_diff(b) as $ty)
            });
        };
    }
    for_integers! { u16, "u16"; i16, "s16"; u32, "u32"; i32, "s32"; u64, "u64"; i64, "s64"; => check }
}

#[test]
fn signed_integers_have_signs() {
    unary("abs.s16", i16::wrapping_abs);
    unary("abs.s32", i32::wrapping_abs);
    unary("abs.s64", i64::wrapping_abs);
    unary("neg.s16", i16::wrapping_neg);
    unary("neg.s32", i32::wrapping_neg);
    unary("neg.s64", i64::wrapping_neg);
    binary("add.sat.s32", i32::saturating_add);
    binary("sub.sat.s32", i32::saturating_sub);
}

#[test]
fn wide_products_are_exact() {
    binary("mul.wide.u16", |a: u16, b: u16| a as u32 * b as u32);
    binary("mul.wide.s16", |a: i16, b: i16| a as i32 * b as i32);
    binary("mul.wide.u32", |a: u32, b: u32| a as u64 * b as u64);
    binary("mul.wide.s32", |a: i32, b: i32| a as i64 * b as i64);
    ternary("mad.wide.u32", |a: u32, b: u32, c: u64| (a as u64 * b as u64).wrapping_add(c));
    ternary("mad.wide.s32", |a: i32, b: i32, c: i64| (a as i64 * b as i64).wrapping_add(c));
    ternary("mad.hi.u32", |a: u32, b: u32, c: u32| {
        (((a as u64 * b as u64) >> 32) as u32).wrapping_add(c)
    });
}

#[test]
fn floats_are_ieee() {
    macro_rules! check {
        ($ty:ty, $name:literal) => {
            for rounding in ["", ".rn"] {
                binary(&format!("add{rounding}.{}", $name), |a: $ty, b: $ty| a + b);
                binary(&format!("sub{rounding}.{}", $name), |a: $ty, b: $ty| a - b);
                binary(&format!("mul{rounding}.{}", $name), |a: $ty, b: $ty| a * b);
            }
            binary(concat!("div.rn.", $name), |a: $ty, b: $ty| a / b);
            unary(concat!("rcp.rn.", $name), |a: $ty| 1.0 / a);
            unary(concat!("sqrt.rn.", $name), <$ty>::sqrt);
            ternary(concat!("fma.rn.", $name), <$ty>::mul_add);
            ternary(concat!("mad.rn.", $name), <$ty>::mul_add);
            binary(concat!("copysign.", $name), |a: $ty, b: $ty| b.copysign(a));
        };
    }
    for_integers! { f32, "f32"; f64, "f64"; => check }
}

/// A NaN loses, and -0 is below +0.
#[test]
fn minima_prefer_numbers_to_nan() {
    fn lesser<T: Copy + PartialOrd + Into<f64>>(a: T, b: T) -> T {
        let (x, y): (f64, f64) = (a.into(), b.into());
        let order = |x: f64| (x, if x.is_sign_negative() { -1 } else { 1 });
        match (x.is_nan(), y.is_nan()) {
            (true, _) => b,
            (_, true) => a,
            _ if order(x) < order(y) => a,
            _ => b,
        }
    }
    fn greater<T: Copy + PartialOrd + Into<f64>>(a: T, b: T) -> T {
        let (x, y): (f64, f64) = (a.into(), b.into());
        let order = |x: f64| (x, if x.is_sign_negative() { -1 } else { 1 });
        match (x.is_nan(), y.is_nan()) {
            (true, _) => b,
            (_, true) => a,
            _ if order(x) > order(y) => a,
            _ => b,
        }
    }
    binary("min.f32", lesser::<f32>);
    binary("max.f32", greater::<f32>);
    binary("min.f64", lesser::<f64>);
    binary("max.f64", greater::<f64>);
    let or_nan = |a: f32, b: f32, x: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { x };
    binary("min.NaN.f32", |a: f32, b: f32| or_nan(a, b, lesser(a, b)));
    binary("max.NaN.f32", |a: f32, b: f32| or_nan(a, b, greater(a, b)));
}

/// Bits, so that payloads of NaNs are seen to stay.
#[test]
fn signs_of_floats_are_bits() {
    let bits32 = |body: &str, expected: fn(u32) -> u32| {
        unary_body(
            &format!("mov.b32 %f0, %a; {body} %f1, %f0; mov.b32 %r1, %f1; mov.u32 %d, %r1;"),
            expected,
        );
    };
    bits32("abs.f32", |a| a & 0x7fff_ffff);
    bits32("neg.f32", |a| a ^ 0x8000_0000);
    let bits64 = |body: &str, expected: fn(u64) -> u64| {
        unary_body(&format!("mov.b64 %g0, %a; {body} %g1, %g0; mov.b64 %d, %g1;"), expected);
    };
    bits64("abs.f64", |a| a & !(1 << 63));
    bits64("neg.f64", |a| a ^ 1 << 63);
}

/// Approximate on a GPU; here the nearest f32.
#[test]
fn transcendental_functions_are_close() {
    unary("ex2.approx.f32", |a: f32| (a as f64).exp2() as f32);
    unary("lg2.approx.f32", |a: f32| (a as f64).log2() as f32);
    unary("sin.approx.f32", |a: f32| (a as f64).sin() as f32);
    unary("cos.approx.f32", |a: f32| (a as f64).cos() as f32);
}
