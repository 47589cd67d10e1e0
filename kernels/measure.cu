// The sums |u - v|, |u| and |v| by which a tensor is compared with an earlier copy v of it, of up
// to four pairs together.
//
// u is x, or x - base as it would be stored, which may be kept on the way. A thread adds a few
// elements in f32 and goes on in f64; the block that finishes last adds the sums of all blocks. The
// order depends on the number of blocks alone.
#include "sums.cuh"

enum : u32 { MAX_COMPARISONS = 4 };
// Items, of at most eight elements, that a thread adds up in f32.
enum : u32 { ITEMS_IN_F32 = 4 };

// `keep` may be `base` itself.
struct ComparedRows {
    Rows x, base, earlier, keep;
    u64 rows, cols;
    u32 has_base, has_keep;
    u64 unused;
};

struct ComparedStrided {
    Strided x, base, earlier, keep;
    u64 elements;
    u32 has_base, has_keep;
};

// partials: three sums of each block. counter: blocks that have finished, 0 before and after.
// result: memory of the host.
template <class Compared> struct Measure {
    Compared compared[MAX_COMPARISONS];
    double *partials;
    u32 *counter;
    double *result;
    u32 n, rounded;
};

static_assert(sizeof(Measure<ComparedRows>) == 544 && sizeof(Measure<ComparedStrided>) == 1888,
              "as the host lays them out");

// What a thread has summed: |u - v|, |u| and |v|.
struct Sums {
    float recent[3] = {};
    u32 items = 0;
    double all[3] = {};

    __device__ __forceinline__ void add(float difference, float u, float v) {
        recent[0] += difference;
        recent[1] += u;
        recent[2] += v;
        if (++items == ITEMS_IN_F32) flush();
    }

    __device__ __forceinline__ void flush() {
#pragma unroll
        for (u32 k = 0; k < 3; k++) {
            all[k] += recent[k];
            recent[k] = 0;
        }
        items = 0;
    }
};

// By halves: eight in three steps.
template <u32 LANES>
__device__ __forceinline__ float sum_of_magnitudes(const float (&value)[LANES]) {
    float sum[LANES];
#pragma unroll
    for (u32 i = 0; i < LANES; i++) sum[i] = fabsf(value[i]);
#pragma unroll
    for (u32 half = LANES / 2; half > 0; half /= 2)
#pragma unroll
        for (u32 i = 0; i < half; i++) sum[i] += sum[i + half];
    return sum[0];
}

template <u32 LANES, class Compared, class Place>
__device__ __forceinline__ void compare(Sums &sums, const Compared &c, Place at, bool rounded) {
    const u32 dtype = c.earlier.dtype;
    Bits<LANES> base_bits;
    const Bits<LANES> x_bits = load<LANES>(c.x, at), earlier_bits = load<LANES>(c.earlier, at);
    if (c.has_base) base_bits = load<LANES>(c.base, at);
    float u[LANES], v[LANES], difference[LANES];
    widen(u, x_bits, c.x.dtype);
    widen(v, earlier_bits, dtype);
    if (c.has_base) {
        float base[LANES];
        widen(base, base_bits, c.base.dtype);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) u[i] = __fsub_rn(u[i], base[i]);
        round_to(u, dtype);
    }
    if (c.has_keep) store(u, c.keep, at);
#pragma unroll
    for (u32 i = 0; i < LANES; i++) difference[i] = __fsub_rn(u[i], v[i]);
    if (rounded) round_to(difference, dtype);
    sums.add(sum_of_magnitudes(difference), sum_of_magnitudes(u), sum_of_magnitudes(v));
}

__device__ __forceinline__ void compare_all(Sums &sums, const ComparedRows &c, bool rounded) {
    for_each_in_rows(c.rows, c.cols,
                     [&](auto lanes, RowPlace at) { compare<lanes.COUNT>(sums, c, at, rounded); });
}

__device__ __forceinline__ void compare_all(Sums &sums, const ComparedStrided &c, bool rounded) {
    for_each_strided(c.elements,
                     [&](auto lanes, u64 at) { compare<lanes.COUNT>(sums, c, at, rounded); });
}

// Adds the sums of all blocks, in the block that comes last.
__device__ __forceinline__ void finish(double (&sum)[3], double *partials, u32 *counter,
                                       double *result) {
    __shared__ bool is_last;
    sum_over_block(sum);
    if (threadIdx.x == 0) {
#pragma unroll
        for (u32 k = 0; k < 3; k++) partials[3 * blockIdx.x + k] = sum[k];
        __threadfence();
        is_last = atomicAdd(counter, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
#pragma unroll
    for (u32 k = 0; k < 3; k++) sum[k] = 0;
    for (u32 block = threadIdx.x; block < gridDim.x; block += THREADS)
#pragma unroll
        for (u32 k = 0; k < 3; k++) sum[k] += __ldcg(partials + 3 * block + k);
    sum_over_block(sum);
    if (threadIdx.x == 0) {
        *counter = 0;
#pragma unroll
        for (u32 k = 0; k < 3; k++) result[k] = sum[k];
        __threadfence_system();
    }
}

template <class Compared>
__device__ __forceinline__ void measure(const Measure<Compared> &parameters,
                                        Measure<Compared> &shared) {
    copy_to_shared(shared, parameters);
    Sums sums;
#pragma unroll 1
    for (u32 i = 0; i < shared.n; i++) compare_all(sums, shared.compared[i], shared.rounded);
    sums.flush();
    finish(sums.all, parameters.partials, parameters.counter, parameters.result);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    measure_rows(Measure<ComparedRows> parameters) {
    __shared__ Measure<ComparedRows> shared;
    measure(parameters, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    measure_strided(Measure<ComparedStrided> parameters) {
    __shared__ Measure<ComparedStrided> shared;
    measure(parameters, shared);
}

// What ranks add up to decide alike: the sums over `n` results, the elements they are of, whether a
// sum is not finite, and a veto against skipping. One warp.
extern "C" __global__ void __launch_bounds__(WARP)
    vote(const double *results, u32 n, double count, double veto, double *out) {
    const u32 lane = threadIdx.x;
    double sum = 0;
    if (lane < 3) {
        for (u32 i = 0; i < n; i++) sum += results[3 * i + lane];
        out[lane] = sum;
    }
    const bool broken = __any_sync(~0u, !isfinite(sum));
    if (lane == 0) {
        out[3] = count;
        out[4] = broken;
        out[5] = veto;
    }
}
