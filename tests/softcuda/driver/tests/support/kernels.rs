//! Kernels in PTX: some that are right, and edits that make them wrong.

/// `add_one(x, n)`: adds 1 to each of n numbers. `nothing()` takes no parameters.
pub const ADD_ONE: &str = "
.version 6.3
.target sm_75
.address_size 64

.visible .entry add_one(.param .u64 add_one_x, .param .u32 add_one_n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [add_one_x];
    ld.param.u32 %r1, [add_one_n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r2, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r2, %r1;
    @%p1 bra END;
    cvta.to.global.u64 %rd1, %rd1;
    mul.wide.u32 %rd2, %r2, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.u32 %r5, [%rd3];
    add.s32 %r5, %r5, 1;
    st.global.u32 [%rd3], %r5;
END:
    ret;
}

.visible .entry nothing()
{
    ret;
}
";

/// `sum(x, n, partials, counter, result)`: the sum of n floats as a double. Lanes, then a warp's lanes by
/// shuffles, then a block's warps through shared memory, then the blocks' partials by whichever block
/// is done last, which also puts the counter back to 0. 128 threads a block.
pub const SUM: &str = "
.version 6.3
.target sm_75
.address_size 64

.visible .entry sum(
    .param .u64 sum_x,
    .param .u32 sum_n,
    .param .u64 sum_partials,
    .param .u64 sum_counter,
    .param .u64 sum_result
)
.maxntid 128, 1, 1
{
    .reg .pred %p<8>;
    .reg .f32 %f<4>;
    .reg .f64 %fd<8>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<12>;
    .shared .align 8 .b8 warps[32];
    .shared .align 4 .b8 last[4];

    ld.param.u64 %rd1, [sum_x];
    ld.param.u32 %r1, [sum_n];
    ld.param.u64 %rd2, [sum_partials];
    ld.param.u64 %rd3, [sum_counter];
    ld.param.u64 %rd4, [sum_result];
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd2, %rd2;
    cvta.to.global.u64 %rd3, %rd3;
    cvta.to.global.u64 %rd4, %rd4;
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %nctaid.x;
    mad.lo.s32 %r6, %r3, %r4, %r2;
    mul.lo.s32 %r7, %r4, %r5;
    setp.ne.u32 %p4, %r2, 0;
    mov.f32 %f1, 0f00000000;
LOOP:
    setp.ge.u32 %p1, %r6, %r1;
    @%p1 bra ADDED;
    mul.wide.u32 %rd5, %r6, 4;
    add.s64 %rd6, %rd1, %rd5;
    ld.global.f32 %f2, [%rd6];
    add.f32 %f1, %f1, %f2;
    add.s32 %r6, %r6, %r7;
    bra LOOP;
ADDED:
    mov.b32 %r8, %f1;
    shfl.sync.bfly.b32 %r9|%p2, %r8, 16, 31, -1;
    mov.b32 %f2, %r9;
    add.f32 %f1, %f1, %f2;
    mov.b32 %r8, %f1;
    shfl.sync.bfly.b32 %r9|%p2, %r8, 8, 31, -1;
    mov.b32 %f2, %r9;
    add.f32 %f1, %f1, %f2;
    mov.b32 %r8, %f1;
    shfl.sync.bfly.b32 %r9|%p2, %r8, 4, 31, -1;
    mov.b32 %f2, %r9;
    add.f32 %f1, %f1, %f2;
    mov.b32 %r8, %f1;
    shfl.sync.bfly.b32 %r9|%p2, %r8, 2, 31, -1;
    mov.b32 %f2, %r9;
    add.f32 %f1, %f1, %f2;
    mov.b32 %r8, %f1;
    shfl.sync.bfly.b32 %r9|%p2, %r8, 1, 31, -1;
    mov.b32 %f2, %r9;
    add.f32 %f1, %f1, %f2;
    and.b32 %r10, %r2, 31;
    setp.ne.u32 %p3, %r10, 0;
    @%p3 bra STORED;
    shr.u32 %r11, %r2, 5;
    shl.b32 %r11, %r11, 3;
    mov.u32 %r12, warps;
    add.s32 %r12, %r12, %r11;
    cvt.f64.f32 %fd1, %f1;
    st.shared.f64 [%r12], %fd1;
STORED:
    bar.sync 0; // every warp has stored its sum
    @%p4 bra COUNTED;
    ld.shared.f64 %fd1, [warps];
    ld.shared.f64 %fd2, [warps+8];
    add.f64 %fd1, %fd1, %fd2;
    ld.shared.f64 %fd2, [warps+16];
    add.f64 %fd1, %fd1, %fd2;
    ld.shared.f64 %fd2, [warps+24];
    add.f64 %fd1, %fd1, %fd2;
    mul.wide.u32 %rd5, %r3, 8;
    add.s64 %rd6, %rd2, %rd5;
    st.global.f64 [%rd6], %fd1;
    membar.gl;
    atom.global.add.u32 %r13, [%rd3], 1;
    sub.s32 %r14, %r5, 1;
    setp.eq.u32 %p5, %r13, %r14;
    selp.u32 %r15, 1, 0, %p5;
    st.shared.u32 [last], %r15;
COUNTED:
    bar.sync 0; // every warp may know whether the block is the last
    ld.shared.u32 %r16, [last];
    setp.eq.u32 %p6, %r16, 0;
    @%p6 bra END;
    @%p4 bra END;
    mov.f64 %fd3, 0d0000000000000000;
    mov.u32 %r17, 0;
    mov.u64 %rd6, %rd2;
PARTIALS:
    ld.global.f64 %fd4, [%rd6];
    add.f64 %fd3, %fd3, %fd4;
    add.s64 %rd6, %rd6, 8;
    add.s32 %r17, %r17, 1;
    setp.lt.u32 %p7, %r17, %r5;
    @%p7 bra PARTIALS;
    st.global.f64 [%rd4], %fd3;
    mov.u32 %r18, 0;
    st.global.u32 [%rd3], %r18;
END:
    ret;
}
";

/// The text with one place changed.
pub fn changed(ptx: &str, from: &str, to: &str) -> String {
    assert_eq!(ptx.matches(from).count(), 1, "{from:?} is to be found once");
    ptx.replace(from, to)
}
