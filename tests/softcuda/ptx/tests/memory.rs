//! Loads, stores and atomics in every space, and what is wrong with the wrong ones.

mod common;

use common::{BODY, Run, data_after};
use softcuda_ptx::{Kind, Module};

#[test]
fn loads_extend_by_their_type() {
    let cases: [(&str, &str, u64); 10] = [
        ("u8", "b32", 0xf7),
        ("s8", "b32", 0xffff_fff7),
        ("s8", "b16", 0xfff7),
        ("b8", "b64", 0xf7),
        ("s8", "b64", 0xffff_ffff_ffff_fff7),
        ("u16", "b32", 0x86f7),
        ("s16", "b32", 0xffff_86f7),
        ("s16", "b64", 0xffff_ffff_ffff_86f7),
        ("u32", "b64", 0x8281_86f7),
        ("s32", "b64", 0xffff_ffff_8281_86f7),
    ];
    for (ty, register, expected) in cases {
        let body = format!(
            ".reg .{register} %x; ld.global.{ty} %x, [%data]; st.global.b64 [%own], 0; st.global.{register} [%own], %x;"
        );
        let body = format!("setp.ne.u32 %p0, %thread, 1; @%p0 bra DONE; {body} DONE:");
        let data = Run { body: &body, data: vec![0x1122_3344_8281_86f7], ..Run::default() }.data();
        assert_eq!(data[1], expected, "ld.{ty} into .{register}");
    }
}

#[test]
fn stores_write_the_low_bytes_only() {
    for (ty, expected) in [
        ("u8", 0x1111_1111_1111_1188),
        ("u16", 0x1111_1111_1111_7788),
        ("u32", 0x1111_1111_5566_7788),
    ] {
        let body = format!(
            "mov.b64 %q0, 0x1122334455667788; setp.eq.u32 %p0, %thread, 0; @%p0 st.global.{ty} [%own], %q0;"
        );
        let data = Run { body: &body, data: vec![0x1111_1111_1111_1111], ..Run::default() }.data();
        assert_eq!(data[0], expected, "st.{ty}");
    }
}

#[test]
fn vectors_move_whole() {
    let body = "
        setp.ne.u32 %p0, %thread, 0; @%p0 bra DONE;
        ld.global.nc.v4.u32 {%r0, %r1, %r2, %r3}, [%data]; st.global.cs.v2.b32 [%data+16], {%r3, %r2};
        ld.global.L1::no_allocate.L2::128B.v2.u64 {%q0, %q1}, [%data]; st.volatile.global.v2.u64 [%data+32], {%q1, %q0};
        ld.global.v2.u8 {%h0, %h1}, [%data]; st.global.v2.u8 [%data+24], {%h1, %h0};
        ld.global.v4.u16 {%h0, _, _, %h3}, [%data]; st.global.v2.u16 [%data+28], {%h3, %h0};
        DONE:";
    let data =
        Run { body, data: vec![0x0807_0605_0403_0201, 0x1817_1615_1413_1211], ..Run::default() }
            .data();
    assert_eq!(data[2], 0x1413_1211_1817_1615);
    assert_eq!(data[3], 0x0201_0807_0000_0102);
    assert_eq!((data[4], data[5]), (data[1], data[0]));
}

#[test]
fn module_variables_hold_their_initial_values() {
    let declarations = "
        .const .align 4 .f32 table[3] = {0f3F800000, 0f40000000, 0f40400000};
        .global .align 1 .b8 bytes[4] = {1, 2, 0xff, 4};
        .visible .global .align 8 .u64 counter;";
    let body = "
        ld.const.f32 %f0, [table+4]; st.global.f32 [%own], %f0;
        mov.u64 %q0, table; cvta.const.u64 %q1, %q0; ld.f32 %f1, [%q1+8]; st.global.f32 [%own+4], %f1;
        setp.eq.u32 %p0, %thread, 1; @!%p0 bra DONE;
        ld.global.s8 %r0, [bytes+2]; st.global.u64 [%own], 0; st.global.s32 [%own], %r0;
        DONE:
        red.global.add.u64 [counter], 1;";
    let data = Run { declarations, body, ..Run::default() }.data();
    assert_eq!(data[0], 0x4040_0000_4000_0000);
    assert_eq!(data[1], 0xffff_ffff);
    let module = Module::parse(&common::module(declarations, body)).unwrap();
    assert_eq!(module.global("counter").unwrap().1, 8);
}

#[test]
fn local_memory_belongs_to_a_lane() {
    let body = "
        .local .align 16 .b8 depot[32];
        mov.u64 %q0, depot; cvta.local.u64 %q1, %q0;
        st.u32 [%q1+4], %thread; st.local.u32 [%q0+8], 7;
        cvta.to.local.u64 %q2, %q1; ld.local.u32 %r0, [%q2+4]; ld.local.u32 %r1, [depot+8];
        add.u32 %r0, %r0, %r1; st.global.u32 [%own], %r0;";
    let data = data_after(body);
    assert!((0..32).all(|lane| data[lane] == lane as u64 + 7));
}

#[test]
fn parameters_are_read_by_offset_or_register() {
    let body = "mov.b64 %q0, test_data; add.s64 %q0, %q0, 2; ld.param.u16 %h0, [%q0]; ld.param.u16 %h1, [test_data+2];
        sub.u16 %h0, %h0, %h1; st.global.u16 [%own], %h0;";
    assert_eq!(data_after(body)[0], 0);
}

#[test]
fn parameters_are_laid_out_as_in_c() {
    let text = ".version 6.3\n.target sm_75\n.address_size 64
        .visible .entry f(.param .u32 a, .param .u64 b, .param .align 8 .b8 c[20], .param .f32 d, .param .u8 e, .param .u64 .ptr .global .align 16 g)
        .maxntid 128, 2, 1 .minnctapersm 2 { ret; }";
    let module = Module::parse(text).unwrap();
    assert_eq!((module.version(), module.target()), ((6, 3), 75));
    let function = module.function("f").unwrap();
    assert_eq!(function.params(), [(0, 4), (8, 8), (16, 20), (36, 4), (40, 1), (48, 8)]);
    assert_eq!((function.max_threads(), function.static_shared()), (256, 0));
    assert_eq!(module.functions().count(), 1);
}

/// What the update of a lane returns, all lanes in order.
type OldValue = fn(u64) -> u64;

#[test]
fn atomics_return_the_old_value() {
    for space in ["global", "shared"] {
        let declare = ".shared .align 8 .b8 place[8];";
        let (place, initialise) = match space {
            "shared" => {
                ("place", "setp.eq.u32 %p0, %thread, 0; @%p0 st.shared.u64 [place], 5; bar.sync 0;")
            }
            _ => (
                "%data+256",
                "setp.eq.u32 %p0, %thread, 0; @%p0 st.global.u64 [%data+256], 5; bar.sync 0;",
            ),
        };
        let cases: [(&str, &str, OldValue, u64); 10] = [
            ("add.u32 %r0", "1", |lane| 5 + lane, 37),
            ("inc.u32 %r0", "9", |lane| (5 + lane) % 10, 7),
            ("dec.u32 %r0", "9", |lane| (15 + 90 - lane) % 10, 3),
            ("min.s32 %r0", "-1", |lane| if lane == 0 { 5 } else { 0xffff_ffff }, 0xffff_ffff),
            ("max.u32 %r0", "9", |lane| if lane == 0 { 5 } else { 9 }, 9),
            ("and.b32 %r0", "4", |lane| if lane == 0 { 5 } else { 4 }, 4),
            ("or.b32 %r0", "8", |lane| if lane == 0 { 5 } else { 13 }, 13),
            ("xor.b32 %r0", "1", |lane| if lane % 2 == 0 { 5 } else { 4 }, 5),
            ("exch.b32 %r0", "%thread", |lane| if lane == 0 { 5 } else { lane - 1 }, 31),
            ("cas.b32 %r0", "5, 6", |lane| if lane == 0 { 5 } else { 6 }, 6),
        ];
        for (operation, operands, expected, last) in cases {
            let (opcode, register) = operation.split_once(' ').unwrap();
            let body = format!(
                "{declare} {initialise} atom.{space}.{opcode} {register}, [{place}], {operands};
                 st.global.u32 [%own], %r0; bar.sync 0; ld.{space}.u32 %r1, [{place}]; st.global.u32 [%own+4], %r1;"
            );
            let data = Run { body: &body, data: vec![0; 40], ..Run::default() }.data();
            for lane in 0..32u64 {
                assert_eq!(
                    data[lane as usize],
                    last << 32 | expected(lane),
                    "atom.{space}.{opcode} lane {lane}"
                );
            }
        }
    }
}

#[test]
fn floating_sums_are_atomic_too() {
    let body = "cvt.rn.f64.u32 %g0, %thread; red.global.add.f64 [%data], %g0; mov.f32 %f0, 0f3F000000;
        atom.global.add.f32 %f1, [%data+8], %f0; atom.global.gpu.acq_rel.add.u64 %q0, [%data+16], 3;";
    let data = data_after(body);
    assert_eq!(f64::from_bits(data[0]), 496.0);
    assert_eq!(f32::from_bits(data[1] as u32), 16.0);
    assert_eq!(data[2], 96);
}

#[test]
fn an_atomic_sum_in_global_memory_flushes_subnormal_numbers() {
    let body = ".shared .align 4 .f32 s; mov.b32 %f0, 0x00000001; setp.eq.u32 %p0, %thread, 0; @!%p0 bra DONE;
        red.global.add.f32 [%data], %f0; st.shared.u32 [s], 0; red.shared.add.f32 [s], %f0;
        ld.shared.f32 %f1, [s]; st.global.f32 [%data+8], %f1; DONE:";
    let data = data_after(body);
    assert_eq!((data[0], data[1]), (0, 1));
}

#[test]
fn wrong_addresses_are_faults_that_name_their_place() {
    let cases: [(&str, Kind, &str); 8] = [
        ("ld.global.u32 %r0, [%data+256];", Kind::IllegalAddress, "lane 0 reads 4 bytes"),
        ("st.global.u64 [%own+8], 1;", Kind::IllegalAddress, "lane 31 writes 8 bytes"),
        ("ld.u32 %r0, [64];", Kind::IllegalAddress, "lane 0 reads 4 bytes at 0x40: not allocated"),
        ("ld.global.u32 %r0, [%own+2];", Kind::Misaligned, "no multiple of 4"),
        ("ld.global.v2.u64 {%q0, %q1}, [%own];", Kind::Misaligned, "no multiple of 16"),
        ("ld.shared.u32 %r0, [16];", Kind::SharedOutOfBounds, "of 0x0 bytes"),
        (".local .b8 x[4]; ld.local.u64 %q0, [x];", Kind::IllegalAddress, "local memory"),
        ("mov.b64 %q0, test_data; ld.param.u64 %q1, [%q0+8];", Kind::IllegalAddress, "parameters"),
    ];
    for (body, kind, what) in cases {
        let fault = Run { body, ..Run::default() }.fault();
        assert_eq!(fault.kind, kind, "{body}: {fault}");
        assert!(fault.what.contains(what), "{body}: {fault}");
        let place = format!("kernel test, block (0,0,0), warp 0, PTX line {BODY}: ");
        assert!(fault.to_string().starts_with(&place), "{fault}");
    }
}

#[test]
fn modules_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Module>();
}

#[test]
fn a_constant_cannot_be_written() {
    let declarations = ".const .u32 c = 3;";
    let body = "mov.u64 %q0, c; cvta.const.u64 %q0, %q0; st.u32 [%q0], 4;";
    let fault = Run { declarations, body, ..Run::default() }.fault();
    assert_eq!(fault.kind, Kind::IllegalAddress);
    assert!(fault.what.contains("constant `c`"), "{fault}");
}

#[test]
fn uninitialised_memory_is_nan() {
    let body = ".shared .align 8 .b8 s[8]; .local .align 8 .b8 l[8];
        ld.shared.f64 %g0, [s]; ld.local.f32 %f0, [l]; cvt.f64.f32 %g1, %f0; add.f64 %g0, %g0, %g1; st.global.f64 [%own], %g0;";
    assert!(f64::from_bits(data_after(body)[0]).is_nan());
}
