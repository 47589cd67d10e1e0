//! Lanes that go different ways, and instructions by which they meet.

mod common;

use common::{BODY, Run, data_after};
use softcuda_ptx::Kind;

#[test]
fn lanes_diverge_and_meet_again() {
    let body = "
        and.b32 %r0, %thread, 1; setp.eq.u32 %p0, %r0, 0; mov.u32 %r1, 100;
        @%p0 bra EVEN;
        add.u32 %r1, %r1, 1; bra.uni JOIN;
        EVEN: add.u32 %r1, %r1, 2;
        JOIN: vote.sync.ballot.b32 %r2, %p0, -1; st.global.v2.u32 [%own], {%r1, %r2};";
    let data = data_after(body);
    for (lane, value) in data.into_iter().enumerate() {
        let expected = if lane % 2 == 0 { 102 } else { 101 };
        assert_eq!(value, 0x5555_5555 << 32 | expected, "lane {lane}");
    }
}

#[test]
fn each_lane_runs_its_own_number_of_rounds() {
    let body = "
        mov.u32 %r0, 0; mov.u32 %r1, 0;
        LOOP: setp.ge.u32 %p0, %r0, %thread; @%p0 bra DONE;
        add.u32 %r0, %r0, 1; add.u32 %r1, %r1, %r0; bra LOOP;
        DONE: st.global.u32 [%own], %r1;";
    for (lane, sum) in data_after(body).into_iter().enumerate() {
        assert_eq!(sum, (lane * (lane + 1) / 2) as u64);
    }
}

#[test]
fn a_guard_chooses_the_lanes_that_act() {
    let data = data_after(
        "setp.lt.u32 %p0, %thread, 3; @%p0 st.global.u32 [%own], 7; @!%p0 ret; st.global.u32 [%own+4], 1;",
    );
    assert_eq!(data[..4], [7 | 1 << 32, 7 | 1 << 32, 7 | 1 << 32, 0]);
}

#[test]
fn indexed_branches_go_to_their_target() {
    let body = "
        and.b32 %r0, %thread, 3; mov.u32 %r1, 0;
        TABLE: .branchtargets A, B, C, A;
        brx.idx %r0, TABLE;
        A: add.u32 %r1, %r1, 1;
        B: add.u32 %r1, %r1, 10;
        C: add.u32 %r1, %r1, 100; st.global.u32 [%own], %r1;";
    assert_eq!(data_after(body)[..4], [111, 110, 100, 111]);
}

#[test]
fn registers_of_an_inner_scope_hide_the_outer_ones() {
    let body = "mov.u32 %r0, 1; { .reg .b32 %r0; mov.u32 %r0, 2; } { .reg .pred p; setp.eq.u32 p, %r0, 1; @p st.global.u32 [%own], 5; }";
    assert_eq!(data_after(body)[0], 5);
}

/// Straight from the manual's pseudo-code.
fn shuffled(mode: &str, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, segment, clamp) = (b & 31, c >> 8 & 31, c & 31);
    let maximum = lane & segment | clamp & !segment;
    let minimum = lane & segment;
    let (j, valid) = match mode {
        "up" => (lane as i32 - b as i32, lane as i32 - b as i32 >= maximum as i32),
        "down" => ((lane + b) as i32, lane + b <= maximum),
        "bfly" => ((lane ^ b) as i32, (lane ^ b) <= maximum),
        _ => {
            let j = minimum | b & !segment;
            (j as i32, j <= maximum)
        }
    };
    if valid { (j as u32, true) } else { (lane, false) }
}

#[test]
fn shuffles_read_the_lane_the_manual_says() {
    for mode in ["up", "down", "bfly", "idx"] {
        for width in [32u32, 16, 8] {
            let c = (32 - width) << 8 | if mode == "up" { 0 } else { 31 };
            for b in [0u32, 1, 3, 7, 16, 31] {
                let body = format!(
                    "mul.lo.u32 %r0, %thread, 11; shfl.sync.{mode}.b32 %r1|%p0, %r0, {b}, {c}, -1;
                     selp.u32 %r2, 1, 0, %p0; st.global.v2.u32 [%own], {{%r1, %r2}};"
                );
                for (lane, value) in data_after(&body).into_iter().enumerate() {
                    let (source, valid) = shuffled(mode, lane as u32, b, c);
                    let expected = (valid as u64) << 32 | (source * 11) as u64;
                    assert_eq!(value, expected, "{mode} by {b} in {width}, lane {lane}");
                }
            }
        }
    }
}

#[test]
fn votes_count_the_members_only() {
    let body = "
        setp.lt.u32 %p0, %thread, 8; setp.lt.u32 %p1, %thread, 20; @!%p1 bra DONE;
        vote.sync.ballot.b32 %r0, %p0, 0x000fffff; vote.sync.any.pred %p2, %p0, 0x000fffff;
        vote.sync.all.pred %p3, %p1, 0x000fffff; vote.sync.uni.pred %p4, !%p0, 0x000fffff;
        selp.u32 %r1, 1, 0, %p2; selp.u32 %r2, 2, 0, %p3; selp.u32 %r3, 4, 0, %p4; or.b32 %r1, %r1, %r2; or.b32 %r1, %r1, %r3;
        st.global.v2.u32 [%own], {%r0, %r1}; DONE:";
    let data = data_after(body);
    assert_eq!((data[0], data[19], data[20]), (0xff | 3 << 32, 0xff | 3 << 32, 0));
}

#[test]
fn lanes_match_and_reduce() {
    let body = "
        and.b32 %r0, %thread, 3; match.any.sync.b32 %r1, %r0, -1; match.all.sync.b32 %r2|%p0, 5, -1;
        redux.sync.add.u32 %r3, %thread, -1; redux.sync.max.s32 %r4, %thread, -1; add.u32 %r3, %r3, %r4;
        selp.u32 %r2, %r2, 0, %p0; and.b32 %r1, %r1, %r2; st.global.v2.u32 [%own], {%r1, %r3};";
    let data = data_after(body);
    assert_eq!(data[2], (496 + 31) << 32 | 0x4444_4444);
}

#[test]
fn the_active_mask_is_the_group() {
    let data = data_after(
        "setp.lt.u32 %p0, %thread, 4; @!%p0 bra DONE; activemask.b32 %r0; st.global.u32 [%own], %r0; DONE:",
    );
    assert_eq!((data[0], data[4]), (0xf, 0));
}

#[test]
fn groups_with_different_members_act_apart() {
    let body = "
        setp.lt.u32 %p0, %thread, 16; selp.b32 %r0, 0x0000ffff, 0xffff0000, %p0;
        shfl.sync.bfly.b32 %r1, %thread, 1, 31, %r0; bar.warp.sync %r0; st.global.u32 [%own], %r1;";
    for (lane, value) in data_after(body).into_iter().enumerate() {
        assert_eq!(value as usize, lane ^ 1);
    }
}

#[test]
fn lanes_that_have_ended_are_not_waited_for() {
    let body = "setp.ge.u32 %p0, %thread, 24; @%p0 exit; setp.lt.u32 %p1, %thread, 9;
        vote.sync.ballot.b32 %r0, %p1, -1; st.global.u32 [%own], %r0;";
    assert_eq!(data_after(body)[0], 0x1ff);
}

#[test]
fn a_shuffle_in_a_divergent_branch_is_a_deadlock() {
    let body = "setp.lt.u32 %p0, %thread, 16; @!%p0 bra DONE;
        shfl.sync.bfly.b32 %r0, %thread, 1, 31, -1;
        DONE: bar.sync 0;";
    let fault = Run { body, ..Run::default() }.fault();
    assert_eq!((fault.kind, fault.line), (Kind::Deadlock, BODY + 1), "{fault}");
    let waiting = [
        format!("lanes 0x0000ffff in line {}", BODY + 1),
        format!("lanes 0xffff0000 in line {}", BODY + 2),
    ];
    assert!(waiting.iter().all(|w| fault.what.contains(w)), "{fault}");
}

#[test]
fn a_shuffle_from_a_lane_that_is_not_there_is_a_fault() {
    let cases = [
        "setp.ge.u32 %p0, %thread, 24; @%p0 exit; shfl.sync.down.b32 %r0, %thread, 8, 31, -1;",
        "setp.lt.u32 %p0, %thread, 16; @%p0 shfl.sync.idx.b32 %r0, %thread, 20, 31, 0x0000ffff;",
        "shfl.sync.idx.b32 %r0, %thread, 0, 31, 0x0000ffff;",
    ];
    for body in cases {
        assert_eq!(Run { body, ..Run::default() }.fault().kind, Kind::InactiveLane, "{body}");
    }
}

#[test]
fn part_of_a_warp_has_its_own_mask() {
    let body = "vote.sync.ballot.b32 %r0, 1, -1; st.global.u32 [%own], %r0;";
    let data = Run { body, threads: 40, ..Run::default() }.data();
    assert_eq!((data[31], data[32], data[39]), (0xffff_ffff, 0xff, 0xff));
}

#[test]
fn a_trap_is_a_fault() {
    let fault =
        Run { body: "setp.eq.u32 %p0, %thread, 40; @%p0 trap;", threads: 64, ..Run::default() }
            .fault();
    assert_eq!((fault.kind, fault.warp), (Kind::Trap, 1));
}

#[test]
fn a_kernel_that_never_ends_is_a_fault() {
    let fault = Run {
        body: "WAIT: ld.global.u32 %r0, [%data]; setp.eq.u32 %p0, %r0, 0; @%p0 bra WAIT;",
        ..Run::default()
    }
    .fault();
    assert_eq!(fault.kind, Kind::Endless);
}
