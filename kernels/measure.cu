// The sums |u - v|, |u| and |v| by which a tensor is compared with an earlier copy v of it, of up
// to four pairs together.
//
// u is x, or x - base as it would be stored, which may be kept on the way. A thread adds a few
// vectors in f32 and goes on in f64; the block that finishes last adds the sums of all blocks. The
// order depends on the shapes, the dtypes and the number of blocks, which is the same on every GPU.
#include "sums.cuh"

enum : u32 { MAX_COMPARISONS = 4 };
// Vectors, of at most eight elements, that a thread adds up in f32.
enum : u32 { VECTORS_IN_F32 = 4 };

// `keep` may be `base` itself.
struct ComparedRows {
    Rows x, base, earlier, keep;
    u64 rows, cols;
    u32 has_base, has_keep;
    // Those of the grid that work on it.
    u32 first_block, blocks;
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
    u32 vectors = 0;
    double all[3] = {};

    __device__ __forceinline__ void add(float difference, float u, float v) {
        recent[0] += difference;
        recent[1] += u;
        recent[2] += v;
    }

    // `n` vectors have been added.
    __device__ __forceinline__ void count(u32 n) {
        if ((vectors += n) >= VECTORS_IN_F32) flush();
    }

    __device__ __forceinline__ void flush() {
#pragma unroll
        for (u32 k = 0; k < 3; k++) {
            all[k] += recent[k];
            recent[k] = 0;
        }
        vectors = 0;
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

template <u32 LANES, u32 N, class Compared, class Place>
__device__ __forceinline__ void compare(Vectors<LANES, N>, Sums &sums, const Compared &c, Place at,
                                        bool rounded) {
    const u32 dtype = c.earlier.dtype;
    Bits<LANES> x_bits[N], earlier_bits[N], base_bits[N];
#pragma unroll
    for (u32 k = 0; k < N; k++) {
        x_bits[k] = load<LANES>(c.x, at, k);
        earlier_bits[k] = load<LANES>(c.earlier, at, k);
        if (c.has_base) base_bits[k] = load<LANES>(c.base, at, k);
    }
#pragma unroll
    for (u32 k = 0; k < N; k++) {
        float u[LANES], v[LANES], difference[LANES];
        widen(u, x_bits[k], c.x.dtype);
        widen(v, earlier_bits[k], dtype);
        if (c.has_base) {
            float base[LANES];
            widen(base, base_bits[k], c.base.dtype);
#pragma unroll
            for (u32 i = 0; i < LANES; i++) u[i] = __fsub_rn(u[i], base[i]);
            round_to(u, dtype);
        }
        if (c.has_keep) store(u, c.keep, at, k);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) difference[i] = __fsub_rn(u[i], v[i]);
        if (rounded) round_to(difference, dtype);
        sums.add(sum_of_magnitudes(difference), sum_of_magnitudes(u), sum_of_magnitudes(v));
    }
    sums.count(N);
}

__device__ __forceinline__ bool have_one_dtype(const ComparedRows &c) {
    const u32 dtype = c.earlier.dtype;
    return c.x.dtype == dtype && (!c.has_base || c.base.dtype == dtype) &&
           (!c.has_keep || c.keep.dtype == dtype);
}

__device__ __forceinline__ void compare_all(Sums &sums, const ComparedRows &c, bool rounded) {
    const Share share = share_of(c);
    if (!have_one_dtype(c))
        return for_each_in_rows<8, 1>(c.rows, c.cols, share, [&](auto vector, RowPlace at) {
            compare(vector, sums, c, at, rounded);
        });
    with_dtype(c.earlier.dtype, [&](auto of) {
        ComparedRows typed = c;
        typed.x.dtype = typed.base.dtype = typed.earlier.dtype = typed.keep.dtype = of.DTYPE;
        for_each_in_rows<of.LANES, VECTORS>(c.rows, c.cols, share, [&](auto vectors, RowPlace at) {
            compare(vectors, sums, typed, at, rounded);
        });
    });
}

__device__ __forceinline__ void compare_all(Sums &sums, const ComparedStrided &c, bool rounded) {
    for_each_strided(c.elements,
                     [&](auto vector, u64 at) { compare(vector, sums, c, at, rounded); });
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

// Three blocks a multiprocessor: left alone, an assembler keeps in registers what it could read
// again from the parameters, and there are two.
extern "C" __global__ void __launch_bounds__(THREADS, 3) measure_rows(Measure<ComparedRows> p) {
    Sums sums;
    compare_all(sums, part_of_block(p.compared, p.n), p.rounded);
    sums.flush();
    finish(sums.all, p.partials, p.counter, p.result);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    measure_strided(Measure<ComparedStrided> parameters) {
    __shared__ Measure<ComparedStrided> p;
    copy_to_shared(p, parameters);
    Sums sums;
#pragma unroll 1
    for (u32 i = 0; i < p.n; i++) compare_all(sums, p.compared[i], p.rounded);
    sums.flush();
    finish(sums.all, p.partials, p.counter, p.result);
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
