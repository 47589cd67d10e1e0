//! Logic, shifts and fields against plain definitions, over all pairs of edge values.

mod common;

use common::{Value, binary, binary_body, data_after, results, ternary, unary, unary_body};

#[test]
fn logic_works_on_every_width() {
    macro_rules! check {
        ($ty:ty, $name:literal) => {
            binary(concat!("and.", $name), |a: $ty, b: $ty| a & b);
            binary(concat!("or.", $name), |a: $ty, b: $ty| a | b);
            binary(concat!("xor.", $name), |a: $ty, b: $ty| a ^ b);
            unary(concat!("not.", $name), |a: $ty| !a);
            unary(concat!("cnot.", $name), |a: $ty| (a == 0) as $ty);
        };
    }
    check!(u16, "b16");
    check!(u32, "b32");
    check!(u64, "b64");
}

#[test]
fn shifts_beyond_the_width_leave_the_sign() {
    macro_rules! check {
        ($ty:ty, $name:literal, $bits:literal) => {
            binary(concat!("shl.", $bits), |a: $ty, n: u32| a.checked_shl(n).unwrap_or(0));
            binary(concat!("shr.", $name), |a: $ty, n: u32| {
                a.checked_shr(n).unwrap_or(if a < 0 as $ty { !0 } else { 0 })
            });
        };
    }
    check!(u16, "u16", "b16");
    check!(i16, "s16", "b16");
    check!(u32, "u32", "b32");
    check!(i32, "s32", "b32");
    check!(u64, "u64", "b64");
    check!(i64, "s64", "b64");
    check!(u64, "b64", "b64");
}

#[test]
fn funnel_shifts_take_bits_from_two_words() {
    let both = |a: u32, b: u32| (b as u64) << 32 | a as u64;
    ternary("shf.l.wrap.b32", |a: u32, b: u32, n: u32| (both(a, b) << (n % 32) >> 32) as u32);
    ternary("shf.l.clamp.b32", |a: u32, b: u32, n: u32| (both(a, b) << n.min(32) >> 32) as u32);
    ternary("shf.r.wrap.b32", |a: u32, b: u32, n: u32| (both(a, b) >> (n % 32)) as u32);
    ternary("shf.r.clamp.b32", |a: u32, b: u32, n: u32| (both(a, b) >> n.min(32)) as u32);
}

#[test]
fn lop3_follows_its_table() {
    type Logic = fn(u32, u32, u32) -> u32;
    let expected: [(u8, Logic); 4] = [
        (0x80, |a, b, c| a & b & c),
        (0xF8, |a, b, c| a | b & c),
        (0x96, |a, b, c| a ^ b ^ c),
        (0x1A, |a, b, c| (a & b | c) ^ a),
    ];
    for (table, function) in expected {
        let cases: Vec<[u32; 3]> = u32::edges()
            .into_iter()
            .flat_map(|a| {
                u32::edges().into_iter().flat_map(move |b| [[a, b, 0x1234_5678], [a, b, !a]])
            })
            .collect();
        let inputs: Vec<Vec<u64>> = cases.iter().map(|c| c.map(u64::from).to_vec()).collect();
        let body = format!("lop3.b32 %d, %a, %b, %c, {table:#x};");
        let found = results(&body, &["b32"; 3], "b32", &inputs);
        for ([a, b, c], found) in cases.into_iter().zip(found) {
            assert_eq!(found as u32, function(a, b, c), "{body} {a:#x} {b:#x} {c:#x}");
        }
    }
}

#[test]
fn prmt_picks_bytes_and_signs() {
    ternary("prmt.b32", |a: u32, b: u32, selector: u32| {
        let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
        u32::from_le_bytes(std::array::from_fn(|i| {
            let nibble = (selector >> (4 * i)) as usize & 15;
            let byte = bytes[nibble & 7];
            match (nibble & 8 != 0, byte >= 128) {
                (false, _) => byte,
                (true, negative) => {
                    if negative {
                        0xff
                    } else {
                        0
                    }
                }
            }
        }))
    });
    let picked = data_after(
        "mov.b32 %r0, 0x44332211; prmt.b32 %r1, %r0, 0x88776655, 0x7290; st.global.u32 [%own], %r1;",
    );
    assert_eq!(picked[0], 0x88330011, "byte 1 is the sign of byte 1, which is positive");
}

/// As the PTX manual writes it.
fn extracted(bits: u32, a: u64, position: u32, length: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let bit = |i: u32| a >> i & 1;
    let fill = if signed && length > 0 { bit((position + length - 1).min(bits - 1)) } else { 0 };
    (0..bits)
        .map(|i| if i < length && position + i < bits { bit(position + i) } else { fill } << i)
        .sum()
}

#[test]
fn bfe_extracts_a_field() {
    ternary("bfe.u32", |a: u32, p: u32, n: u32| extracted(32, a as u64, p, n, false) as u32);
    ternary("bfe.s32", |a: i32, p: u32, n: u32| extracted(32, a as u32 as u64, p, n, true) as i32);
    ternary("bfe.u64", |a: u64, p: u32, n: u32| extracted(64, a, p, n, false));
    ternary("bfe.s64", |a: i64, p: u32, n: u32| extracted(64, a as u64, p, n, true) as i64);
}

#[test]
fn bfi_inserts_a_field() {
    for (ty, bits) in [("b32", 32u32), ("b64", 64)] {
        for (position, length) in
            [(0u32, 0u32), (0, 8), (4, 8), (0, 32), (31, 1), (20, 40), (40, 20), (64, 3), (0, 64)]
        {
            let (a, b) = (0xdead_beef_1234_5678u64, 0x0f0f_3333_5555_aaaau64);
            let body = format!("bfi.{ty} %d, %a, %b, {position}, {length};");
            let found = results(&body, &[ty, ty], ty, &[vec![a, b]])[0];
            let pick = |i: u32| {
                if i >= position && i - position < length {
                    a >> (i - position) & 1
                } else {
                    b >> i & 1
                }
            };
            let expected: u64 = (0..bits).map(|i| pick(i) << i).sum();
            assert_eq!(found, expected, "{body}");
        }
    }
}

#[test]
fn bits_are_counted_and_found() {
    unary("clz.b32", |a: u32| a.leading_zeros());
    unary("clz.b64", |a: u64| a.leading_zeros());
    unary("popc.b32", |a: u32| a.count_ones());
    unary("popc.b64", |a: u64| a.count_ones());
    unary("brev.b32", |a: u32| a.reverse_bits());
    unary("brev.b64", |a: u64| a.reverse_bits());
    unary("bfind.u32", |a: u32| a.checked_ilog2().unwrap_or(!0));
    unary("bfind.u64", |a: u64| a.checked_ilog2().unwrap_or(!0));
    unary("bfind.s32", |a: i32| ((a ^ a >> 31) as u32).checked_ilog2().unwrap_or(!0));
    unary("bfind.s64", |a: i64| ((a ^ a >> 63) as u64).checked_ilog2().unwrap_or(!0));
    unary("bfind.shiftamt.u32", |a: u32| a.checked_ilog2().map_or(!0, |top| 31 - top));
}

#[test]
fn halves_are_joined_and_split() {
    binary_body("mov.b32 %d, {%a, %b};", |a: u16, b: u16| (b as u32) << 16 | a as u32);
    binary_body("mov.b64 %d, {%a, %b};", |a: u32, b: u32| (b as u64) << 32 | a as u64);
    unary_body("mov.b64 {%r0, %r1}, %a; mov.u32 %d, %r1;", |a: u64| (a >> 32) as u32);
    unary_body("mov.b32 {%h0, %h1}, %a; mov.u16 %d, %h1;", |a: u32| (a >> 16) as u16);
    unary_body("mov.b32 {_, %h1}, %a; mov.u16 %d, %h1;", |a: u32| (a >> 16) as u16);
    unary_body("mov.b64 {%h0, %h1, %h2, %h3}, %a; mov.u16 %d, %h2;", |a: u64| (a >> 32) as u16);
}

#[test]
fn predicates_have_logic() {
    let body = "
        setp.ne.u32 %p0, %a, 0; setp.ne.u32 %p1, %b, 0;
        and.pred %p2, %p0, %p1; or.pred %p3, %p0, %p1; xor.pred %p4, %p0, %p1; not.pred %p5, %p0; mov.pred %p6, -1;
        selp.u32 %d, 1, 0, %p2; selp.u32 %r0, 2, 0, %p3; selp.u32 %r1, 4, 0, %p4; selp.u32 %r2, 8, 0, %p5;
        selp.u32 %r3, 16, 0, %p6;
        or.b32 %d, %d, %r0; or.b32 %d, %d, %r1; or.b32 %d, %d, %r2; or.b32 %d, %d, %r3;";
    binary_body(body, |a: u32, b: u32| {
        let (a, b) = (a != 0, b != 0);
        (a && b) as u32 | ((a || b) as u32) << 1 | ((a != b) as u32) << 2 | (!a as u32) << 3 | 16
    });
}
