// Puts a value on a ladder of backward quotients, in place: with t := y, for each rung that is held
// in turn (t, rung) := ((t - rung) / gap, t); then the first free rung := t. What is divided rounds
// to the dtype of `y`, what is kept to that of its rung.
#include "tensors.cuh"

enum : u32 { MAX_RUNGS = 5 };

struct LadderRows {
    Rows y, rung[MAX_RUNGS];
    u64 rows, cols;
    u32 n_rungs, held;
    float gap;
    u32 unused;
};

struct LadderStrided {
    Strided y, rung[MAX_RUNGS];
    u64 elements;
    u32 n_rungs, held;
    float gap;
    u32 unused;
};

static_assert(sizeof(LadderRows) == 176 && sizeof(LadderStrided) == 696,
              "as the host lays them out");

template <u32 LANES, class Parameters, class Place>
__device__ __forceinline__ void climb(Vectors<LANES, 1>, const Parameters &p, Place at) {
    const u32 dtype = p.y.dtype;
    // The last rung has none above it that would need its value.
    const u32 needed = min(p.held, p.n_rungs - 1);
    const Bits<LANES> y = load<LANES>(p.y, at);
    Bits<LANES> rung[MAX_RUNGS];
#pragma unroll
    for (u32 k = 0; k < MAX_RUNGS - 1; k++)
        if (k < needed) rung[k] = load<LANES>(p.rung[k], at);
    float t[LANES];
    widen(t, y, dtype);
#pragma unroll
    for (u32 k = 0; k < MAX_RUNGS; k++) {
        if (k > needed) break;
        store(t, p.rung[k], at);
        if (k == needed || k + 1 == MAX_RUNGS) break;
        float below[LANES];
        widen(below, rung[k], p.rung[k].dtype);
        round_to(below, dtype);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) t[i] = __fsub_rn(t[i], below[i]);
        round_to(t, dtype);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) t[i] = __fdiv_rn(t[i], p.gap);
        round_to(t, dtype);
    }
}

// Two blocks a multiprocessor will do: to have more, an assembler would rather spill around the
// division than give a thread its registers.
extern "C" __global__ void __launch_bounds__(THREADS, 2) ladder_rows(LadderRows p) {
    if (p.n_rungs == 0) return;
    for_each_in_rows<8, 1>(p.rows, p.cols, share_of_grid(),
                           [&](auto vector, RowPlace at) { climb(vector, p, at); });
}

extern "C" __global__ void __launch_bounds__(THREADS) ladder_strided(LadderStrided parameters) {
    __shared__ LadderStrided p;
    copy_to_shared(p, parameters);
    if (p.n_rungs == 0) return;
    for_each_strided(p.elements, [&](auto vector, u64 at) { climb(vector, p, at); });
}
