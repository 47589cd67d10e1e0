//! Comparisons and choices against Rust's, over all pairs of edge values.

mod common;

use common::{Value, binary, binary_body, ternary, unary_body};

fn compare<T: Value>(opcode: &str, expected: impl Fn(T, T) -> bool) {
    binary_body(&format!("{opcode} %p0, %a, %b; selp.u32 %d, 1, 0, %p0;"), |a: T, b: T| {
        expected(a, b) as u32
    });
}

#[test]
fn integers_compare_by_their_type() {
    macro_rules! check {
        ($ty:ty, $name:literal) => {
            compare(concat!("setp.eq.", $name), |a: $ty, b: $ty| a == b);
            compare(concat!("setp.ne.", $name), |a: $ty, b: $ty| a != b);
            compare(concat!("setp.lt.", $name), |a: $ty, b: $ty| a < b);
            compare(concat!("setp.le.", $name), |a: $ty, b: $ty| a <= b);
            compare(concat!("setp.gt.", $name), |a: $ty, b: $ty| a > b);
            compare(concat!("setp.ge.", $name), |a: $ty, b: $ty| a >= b);
        };
    }
    check!(u16, "u16");
    check!(i16, "s16");
    check!(u32, "u32");
    check!(i32, "s32");
    check!(u64, "u64");
    check!(i64, "s64");
    compare("setp.eq.b16", |a: u16, b: u16| a == b);
    compare("setp.ne.b64", |a: u64, b: u64| a != b);
    compare("setp.lo.u32", |a: u32, b: u32| a < b);
    compare("setp.hs.u32", |a: u32, b: u32| a >= b);
}

#[test]
fn nan_is_ordered_with_nothing() {
    macro_rules! check {
        ($ty:ty, $name:literal) => {
            let relations: [(&str, fn($ty, $ty) -> bool); 6] = [
                ("eq", |a, b| a == b),
                ("ne", |a, b| a != b && !a.is_nan() && !b.is_nan()),
                ("lt", |a, b| a < b),
                ("le", |a, b| a <= b),
                ("gt", |a, b| a > b),
                ("ge", |a, b| a >= b),
            ];
            for (relation, holds) in relations {
                let unordered = |a: $ty, b: $ty| a.is_nan() || b.is_nan();
                compare(&format!("setp.{relation}.{}", $name), holds);
                compare(&format!("setp.{relation}u.{}", $name), |a, b| {
                    holds(a, b) || unordered(a, b)
                });
                compare(&format!("setp.num.{}", $name), |a, b| !unordered(a, b));
                compare(&format!("setp.nan.{}", $name), unordered);
            }
        };
    }
    check!(f32, "f32");
    check!(f64, "f64");
}

#[test]
fn comparisons_meet_a_third_predicate() {
    type Combine = fn(bool, bool) -> bool;
    let cases: [(&str, &str, Combine); 4] = [
        ("and", "%p5", |holds, c| holds && c),
        ("or", "%p5", |holds, c| holds || c),
        ("xor", "%p5", |holds, c| holds != c),
        ("and", "!%p5", |holds, c| holds && !c),
    ];
    for (logic, third, expected) in cases {
        let body = format!(
            "setp.gt.s32 %p5, %a, 0; setp.lt.{logic}.s32 %p0|%p1, %a, %b, {third};
             selp.u32 %r0, 1, 0, %p0; selp.u32 %r1, 2, 0, %p1; or.b32 %d, %r0, %r1;"
        );
        binary_body(&body, |a: i32, b: i32| {
            expected(a < b, a > 0) as u32 | (expected(a >= b, a > 0) as u32) << 1
        });
    }
}

#[test]
fn choices_keep_bits() {
    binary_body("setp.lt.u32 %p0, %a, %b; selp.b32 %d, %a, %b, %p0;", |a: u32, b: u32| a.min(b));
    binary_body("setp.lt.u32 %p0, %a, %b; selp.b32 %d, %a, %b, !%p0;", |a: u32, b: u32| a.max(b));
    binary_body("setp.lt.u64 %p0, %a, %b; selp.b64 %d, %a, %b, %p0;", |a: u64, b: u64| a.min(b));
    binary_body("setp.lt.u16 %p0, %a, %b; selp.b16 %d, %a, %b, %p0;", |a: u16, b: u16| a.min(b));
    ternary("slct.b32.s32", |a: u32, b: u32, c: i32| if c >= 0 { a } else { b });
    ternary("slct.u64.f32", |a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b });
    binary("set.lt.u32.s32", |a: i32, b: i32| if a < b { !0u32 } else { 0 });
    binary("set.geu.f32.f32", |a: f32, b: f32| if a < b { 0f32 } else { 1.0 });
}

#[test]
fn kinds_of_numbers_are_told_apart() {
    type Test = fn(f32) -> bool;
    let kinds: [(&str, Test); 6] = [
        ("finite", f32::is_finite),
        ("infinite", f32::is_infinite),
        ("number", |a| !a.is_nan()),
        ("notanumber", f32::is_nan),
        ("normal", f32::is_normal),
        ("subnormal", f32::is_subnormal),
    ];
    for (kind, expected) in kinds {
        unary_body(&format!("testp.{kind}.f32 %p0, %a; selp.u32 %d, 1, 0, %p0;"), |a: f32| {
            expected(a) as u32
        });
    }
}
