//! `cvt` between all pairs of types, over the edge values of each.

mod common;

use common::{binary_body, results, unary};
use half::{bf16, f16};

/// Through i128: what fits is kept, the rest loses its high bits.
#[test]
fn integers_are_cut_or_extended() {
    macro_rules! check {
        ($to:ty, $to_name:literal: $($from:ty, $from_name:literal;)+) => {$(
            unary(concat!("cvt.", $to_name, ".", $from_name), |a: $from| a as $to);
            unary(concat!("cvt.sat.", $to_name, ".", $from_name), |a: $from| {
                (a as i128).clamp(<$to>::MIN as i128, <$to>::MAX as i128) as $to
            });
        )+};
    }
    macro_rules! from_all {
        ($($to:ty, $to_name:literal;)+) => {$(
            check!($to, $to_name: u16, "u16"; i16, "s16"; u32, "u32"; i32, "s32"; u64, "u64"; i64, "s64";);
        )+};
    }
    from_all! { u16, "u16"; i16, "s16"; u32, "u32"; i32, "s32"; u64, "u64"; i64, "s64"; }
}

#[test]
fn bytes_live_in_wider_registers() {
    unary("cvt.u32.u8", |a: u16| a as u8 as u32);
    unary("cvt.s32.s8", |a: u32| a as i8 as i32);
    unary("cvt.u16.u8", |a: u16| a as u8 as u16);
    unary("cvt.s16.s8", |a: u16| a as i8 as i16);
    unary("cvt.s8.s32", |a: i32| a as i8 as i32);
    unary("cvt.u8.u32", |a: u32| a as u8 as u16);
    unary("cvt.sat.u8.s32", |a: i32| a.clamp(0, 255) as u32);
    unary("cvt.sat.s8.s32", |a: i32| a.clamp(-128, 127));
    unary("cvt.s64.s8", |a: u64| a as i8 as i64);
    unary("cvt.s64.s32", |a: u64| a as i32 as i64);
}

#[test]
fn integers_become_the_nearest_float() {
    macro_rules! check {
        ($($from:ty, $name:literal;)+) => {$(
            unary(concat!("cvt.rn.f32.", $name), |a: $from| a as f32);
            unary(concat!("cvt.rn.f64.", $name), |a: $from| a as f64);
        )+};
    }
    check! { u16, "u16"; i16, "s16"; u32, "u32"; i32, "s32"; u64, "u64"; i64, "s64"; }
    unary("cvt.rn.f16.s32", |a: i32| f16::from_f64(a as f64).to_bits());
}

/// Out of range: the end of the range. NaN: 0, but the top bit where either side has 64 bits.
#[test]
fn floats_become_integers_by_every_rounding() {
    type Round = fn(f64) -> f64;
    let roundings: [(&str, Round); 4] = [
        ("rni", f64::round_ties_even),
        ("rzi", f64::trunc),
        ("rmi", f64::floor),
        ("rpi", f64::ceil),
    ];
    for (name, round) in roundings {
        macro_rules! check {
            ($($to:ty, $to_name:literal;)+) => {$(
                let top = 1u64 << (<$to>::BITS - 1);
                let of_nan = if <$to>::BITS == 64 { top as $to } else { 0 };
                let expected = |x: f64, nan: $to| if x.is_nan() { nan } else { round(x) as $to };
                unary(&format!("cvt.{name}.{}.f32", $to_name), |a: f32| expected(a as f64, of_nan));
                unary(&format!("cvt.{name}.{}.f64", $to_name), |a: f64| expected(a, top as $to));
            )+};
        }
        check! { u16, "u16"; i16, "s16"; u32, "u32"; i32, "s32"; u64, "u64"; i64, "s64"; }
        unary(&format!("cvt.{name}.f32.f32"), |a: f32| round(a as f64) as f32);
        unary(&format!("cvt.{name}.f64.f64"), round);
    }
}

#[test]
fn floats_change_their_width() {
    unary("cvt.f64.f32", |a: f32| a as f64);
    unary("cvt.rn.f32.f64", |a: f64| a as f32);
    unary("cvt.sat.f32.f32", |a: f32| if a.is_nan() { 0.0 } else { a.clamp(0.0, 1.0) + 0.0 });
    unary("cvt.rn.f16.f32", |a: f32| if a.is_nan() { 0x7fff } else { f16::from_f32(a).to_bits() });
    unary(
        "cvt.rn.bf16.f32",
        |a: f32| if a.is_nan() { 0x7fff } else { bf16::from_f32(a).to_bits() },
    );
    unary("cvt.f32.f16", |a: u16| f16::from_bits(a).to_f32());
    unary("cvt.f64.f16", |a: u16| f16::from_bits(a).to_f64());
    unary("cvt.f32.bf16", |a: u16| bf16::from_bits(a).to_f32());
}

/// The neighbour on the right side.
#[test]
fn doubles_are_narrowed_towards_a_side() {
    fn neighbours(a: f64) -> (f32, f32) {
        let nearest = a as f32;
        let back = nearest as f64;
        let below = if back > a { nearest.next_down() } else { nearest };
        let above = if back < a { nearest.next_up() } else { nearest };
        (below, above)
    }
    unary("cvt.rm.f32.f64", |a: f64| neighbours(a).0);
    unary("cvt.rp.f32.f64", |a: f64| neighbours(a).1);
    unary("cvt.rz.f32.f64", |a: f64| if a > 0.0 { neighbours(a).0 } else { neighbours(a).1 });
}

#[test]
fn pairs_are_packed_high_first() {
    let f16_bits = |x: f32| if x.is_nan() { 0x7fff } else { f16::from_f32(x).to_bits() as u32 };
    let bf16_bits = |x: f32| if x.is_nan() { 0x7fff } else { bf16::from_f32(x).to_bits() as u32 };
    binary_body("cvt.rn.f16x2.f32 %d, %a, %b;", |high: f32, low: f32| {
        f16_bits(high) << 16 | f16_bits(low)
    });
    binary_body("cvt.rn.bf16x2.f32 %d, %a, %b;", |high: f32, low: f32| {
        bf16_bits(high) << 16 | bf16_bits(low)
    });
}

/// Every one, and for f16 each halfway case between two of them with its neighbours.
#[test]
fn every_half_is_converted() {
    let all: Vec<Vec<u64>> = (0..=u16::MAX).map(|bits| vec![bits as u64]).collect();
    let as_f32 = |nan: bool, x: f32| if nan { 0x7fff_ffff } else { x.to_bits() as u64 };
    for (bits, found) in
        results("cvt.f32.f16 %d, %a;", &["b16"], "f32", &all).into_iter().enumerate()
    {
        let x = f16::from_bits(bits as u16);
        assert_eq!(found, as_f32(x.is_nan(), x.to_f32()), "{bits:#x}");
    }
    for (bits, found) in
        results("cvt.f32.bf16 %d, %a;", &["b16"], "f32", &all).into_iter().enumerate()
    {
        let x = bf16::from_bits(bits as u16);
        assert_eq!(found, as_f32(x.is_nan(), x.to_f32()), "{bits:#x}");
    }
    let finite = 0..f16::MAX.to_bits();
    let cases: Vec<(f32, u16)> = finite
        .flat_map(|bits| {
            let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
            let middle = (low + high) / 2.0;
            [(middle.next_down(), bits), (middle, bits + bits % 2), (middle.next_up(), bits + 1)]
        })
        .collect();
    let inputs: Vec<Vec<u64>> = cases.iter().map(|(x, _)| vec![x.to_bits() as u64]).collect();
    for ((x, expected), found) in
        cases.iter().zip(results("cvt.rn.f16.f32 %d, %a;", &["f32"], "b16", &inputs))
    {
        assert_eq!(found as u16, *expected, "{x:e}");
    }
}
