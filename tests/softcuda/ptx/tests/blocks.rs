//! Warps of a block: barriers, shared memory, and the races and deadlocks between them.

mod common;

use common::{BODY, Run, module};
use softcuda_ptx::{Kind, Launch, Module, run};

const REVERSE: &str = "
    .shared .align 4 .b8 s[1024]; mov.u32 %r0, s; shl.b32 %r1, %thread, 2; add.u32 %r2, %r0, %r1; st.shared.u32 [%r2], %thread;
    bar.sync 0;
    sub.u32 %r3, 255, %thread; shl.b32 %r3, %r3, 2; add.u32 %r3, %r3, %r0; ld.shared.u32 %r4, [%r3]; st.global.u32 [%own], %r4;";

#[test]
fn warps_exchange_values_over_a_barrier() {
    for seed in 0..5 {
        let data = Run { body: REVERSE, threads: 256, seed, blocks: 3, ..Run::default() }.data();
        assert!((0..256).all(|i| data[i] == 255 - i as u64));
    }
}

#[test]
fn a_missing_barrier_is_a_race() {
    for seed in 0..5 {
        let body = REVERSE.replace("bar.sync 0;", "");
        let fault = Run { body: &body, threads: 256, seed, ..Run::default() }.fault();
        assert_eq!(fault.kind, Kind::SharedRace, "{fault}");
        assert!(fault.what.contains("with no barrier between"), "{fault}");
    }
}

/// The values agree: only the order is missing.
#[test]
fn races_are_found_where_the_values_agree() {
    let body = ".shared .align 4 .u32 s; st.shared.u32 [s], 1; bar.sync 0;
        ld.shared.u32 %r0, [s];
        st.shared.u32 [s], 1;";
    let fault = Run { body, threads: 64, ..Run::default() }.fault();
    assert_eq!(
        (fault.kind, fault.line),
        (Kind::SharedRace, BODY),
        "both warps write before the barrier: {fault}"
    );

    let body = ".shared .align 4 .u32 s; setp.eq.u32 %p0, %thread, 0; @%p0 st.shared.u32 [s], 1; bar.sync 0;
        ld.shared.u32 %r0, [s];
        @%p0 st.shared.u32 [s], 1;
        bar.sync 0;";
    let fault = Run { body, threads: 64, ..Run::default() }.fault();
    assert_eq!((fault.kind, fault.warp), (Kind::SharedRace, 1), "{fault}");
    let what = format!("warp 1 reads shared address 0x0, which warp 0 wrote in line {}", BODY + 2);
    assert!(fault.what.contains(&what), "{fault}");
}

#[test]
fn a_read_before_a_write_of_another_warp_is_a_race() {
    let body = ".shared .align 4 .u32 s; setp.ge.u32 %p0, %thread, 32;
        @!%p0 ld.shared.u32 %r0, [s];
        @%p0 st.shared.u32 [s], 1;";
    let fault = Run { body, threads: 64, ..Run::default() }.fault();
    let what = format!("warp 1 writes shared address 0x0, which warp 0 read in line {}", BODY + 1);
    assert!(fault.what.contains(&what), "{fault}");
}

#[test]
fn atomics_do_not_race_with_each_other_but_with_plain_reads() {
    let sum = ".shared .align 4 .u32 s; setp.eq.u32 %p0, %thread, 0; @%p0 st.shared.u32 [s], 0; bar.sync 0; red.shared.add.u32 [s], 1;";
    let body = format!("{sum} bar.sync 0; ld.shared.u32 %r0, [s]; st.global.u32 [%own], %r0;");
    assert_eq!(Run { body: &body, threads: 128, ..Run::default() }.data()[127], 128);
    let body = format!("{sum} ld.shared.u32 %r0, [s];");
    assert_eq!(Run { body: &body, threads: 128, ..Run::default() }.fault().kind, Kind::SharedRace);
}

#[test]
fn the_next_block_does_not_race_with_the_last() {
    let body = ".shared .align 4 .u32 s; setp.eq.u32 %p0, %thread, 32; @%p0 st.shared.u32 [s], 1;";
    Run { body, threads: 64, blocks: 4, seed: 3, ..Run::default() }.data();
}

/// Two pairs of warps with a barrier each are ordered within the pair only.
#[test]
fn a_barrier_of_some_warps_orders_these() {
    let body = |reader: &str| {
        format!(
            ".shared .align 8 .b8 s[16]; mov.u32 %r0, %warpid; and.b32 %r1, %r0, 2; shl.b32 %r2, %r1, 1; mov.u32 %r3, s;
             add.u32 %r3, %r3, %r2; and.b32 %r4, %r0, 1; setp.eq.u32 %p0, %r4, 0; add.u32 %r5, %r1, 1;
             @%p0 st.shared.u32 [%r3], %r0; bar.sync %r5, 64; {reader} st.global.u32 [%own], %r6;"
        )
    };
    let data =
        Run { body: &body("ld.shared.u32 %r6, [%r3];"), threads: 128, ..Run::default() }.data();
    assert_eq!((data[0], data[63], data[64], data[127]), (0, 0, 2, 2));
    let fault =
        Run { body: &body("ld.shared.u32 %r6, [s];"), threads: 128, ..Run::default() }.fault();
    assert_eq!(fault.kind, Kind::SharedRace, "{fault}");
}

#[test]
fn warps_that_have_ended_are_not_waited_for() {
    let body = "setp.ge.u32 %p0, %thread, 64; @%p0 ret; bar.sync 0; st.global.u32 [%own], 1;";
    assert_eq!(Run { body, threads: 128, ..Run::default() }.data()[63], 1);
}

#[test]
fn a_barrier_in_a_divergent_branch_is_a_deadlock() {
    let cases = [
        "setp.lt.u32 %p0, %thread, 16; @%p0 bar.sync 0; bar.warp.sync -1;",
        "setp.lt.u32 %p0, %thread, 16; @%p0 bra A; bar.sync 0; bra B; A: bar.sync 0; B:",
    ];
    for body in cases {
        assert_eq!(Run { body, ..Run::default() }.fault().kind, Kind::Deadlock, "{body}");
    }
}

#[test]
fn warps_at_different_barriers_are_a_deadlock() {
    let body = "setp.lt.u32 %p0, %thread, 32; @%p0 bra ONE; bar.sync 0; ret; ONE: bar.sync 1;";
    let fault = Run { body, threads: 64, ..Run::default() }.fault();
    assert_eq!(fault.kind, Kind::Deadlock);
    let what = format!("warp 0 at barrier 1 in line {BODY}, warp 1 at barrier 0 in line {BODY}");
    assert!(fault.what.contains(&what), "{fault}");
    let body = "setp.lt.u32 %p0, %thread, 32; @%p0 bar.sync 0, 64;";
    assert_eq!(Run { body, threads: 64, ..Run::default() }.fault().kind, Kind::Deadlock);
}

#[test]
fn a_block_votes_at_a_barrier() {
    let body = "setp.lt.u32 %p0, %thread, 40; bar.red.popc.u32 %r0, 0, %p0; bar.red.or.pred %p1, 0, %p0; bar.red.and.pred %p2, 0, !%p0;
        selp.u32 %r1, 100, 0, %p1; selp.u32 %r2, 1000, 0, %p2; add.u32 %r0, %r0, %r1; add.u32 %r0, %r0, %r2; st.global.u32 [%own], %r0;";
    assert_eq!(Run { body, threads: 96, ..Run::default() }.data()[95], 140);
}

#[test]
fn dynamic_shared_memory_follows_the_static() {
    let declarations = ".extern .shared .align 16 .b8 dynamic[];";
    let body = ".shared .align 4 .b8 s[20]; mov.u32 %r0, dynamic; mov.u32 %r1, %dynamic_smem_size; st.shared.u32 [dynamic+28], %r1;
        ld.shared.u32 %r2, [%r0+28]; st.global.v2.u32 [%own], {%r0, %r2};";
    let run = |dynamic_shared| Run { declarations, body, dynamic_shared, ..Run::default() };
    assert_eq!(run(32).data()[0], 32 << 32 | 32);
    assert_eq!(run(31).fault().kind, Kind::SharedOutOfBounds);
    let module = Module::parse(&module(declarations, body)).unwrap();
    assert_eq!(module.function("test").unwrap().static_shared(), 32);
}

#[test]
fn every_block_runs_once_in_any_order() {
    let body = "mov.u32 %r0, %ctaid.x; mov.u32 %r1, %nctaid.x; setp.eq.u32 %p0, %thread, 0; @!%p0 bra DONE;
        mad.wide.u32 %q0, %r0, 4, %data; red.global.add.u32 [%q0], 1; atom.global.add.u32 %r2, [%data+512], 1;
        mad.wide.u32 %q1, %r2, 4, %data; st.global.u32 [%q1+520], %r0; DONE:";
    let mut orders = Vec::new();
    for seed in 0..4 {
        let data = Run { body, blocks: 100, seed, data: vec![0; 128], ..Run::default() }.data();
        assert!((0..50).all(|i| data[i] == 1 | 1 << 32), "seed {seed}");
        orders.push(data[65..].to_vec());
    }
    assert_eq!(orders[0][0], 1 << 32, "seed 0 is the order of the numbers");
    assert!((1..4).all(|seed| orders[seed] != orders[0]));
}

#[test]
fn threads_know_where_they_are() {
    let text = module("", "").replace("ret;", "
        mov.u32 %r0, %tid.x; mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z; mov.u32 %r3, %ntid.y; mov.u32 %r4, %nctaid.z; mov.u32 %r5, %ctaid.y;
        setp.eq.u32 %p0, %r0, 2; setp.eq.and.u32 %p0, %r1, 1, %p0; setp.eq.and.u32 %p0, %r2, 3, %p0; setp.eq.and.u32 %p0, %r5, 1, %p0;
        @!%p0 bra DONE; mov.u32 %r6, %laneid; mov.u32 %r7, %lanemask_lt; st.global.v4.u32 [%data], {%r3, %r4, %r6, %r7}; DONE: ret;");
    let module = Module::parse(&text).unwrap();
    let mut data = vec![0u64; 64];
    let mut device = common::Device::default();
    let address = device.add(&mut data);
    let launch = Launch {
        grid: [1, 2, 3],
        block: [3, 2, 4],
        dynamic_shared: 0,
        params: &address.to_le_bytes(),
        seed: 1,
    };
    run(module.function("test").unwrap(), &launch, &device).unwrap();
    assert_eq!((data[0], data[1]), (2 | 3 << 32, 23 | ((1 << 23) - 1) << 32));
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let text = module("", "").replace("{\n.reg", ".maxntid 64, 1, 1\n{\n.reg");
    let module = Module::parse(&text).unwrap();
    let launch = |block, params| {
        let launch = Launch { grid: [1, 1, 1], block, dynamic_shared: 0, params, seed: 0 };
        run(module.function("test").unwrap(), &launch, &common::Device::default()).unwrap_err().kind
    };
    assert_eq!(launch([65, 1, 1], &[0; 8]), Kind::InvalidLaunch);
    assert_eq!(launch([0, 1, 1], &[0; 8]), Kind::InvalidLaunch);
    assert_eq!(launch([32, 1, 1], &[0; 4]), Kind::InvalidLaunch);
}
