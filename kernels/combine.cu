// out := x + sum_j c_j * y_j: predictions, residuals, copies (no terms) and differences (the term
// -1 * base).
//
// `out` may be `x` or one of the `y` itself: a thread loads all that it needs of a place before it
// stores there.
//
// A few terms that are rounded once have kernels of their own, combine_rows_0 to 4. The rest is
// combine_rows_n's: many terms, and `each_term`.
//
// A launch of these forms up to four sums that have nothing to do with each other: those of the
// tensors of a block. Each has its own blocks, side by side in the grid.
#include "tensors.cuh"

enum : u32 { MAX_TERMS = 16 };
// That one launch forms.
enum : u32 { MAX_SUMS = 4 };
// Terms whose loads are in flight together.
enum : u32 { BATCH = 4 };
// Instead of a number of terms that is known to the compiler.
enum : u32 { ANY = ~0u };

struct SumOfRows {
    Rows out, x, y[MAX_TERMS];
    float c[MAX_TERMS];
    u64 rows, cols;
    u32 n, has_x, each_term;
    // Those of the grid that work on it.
    u32 first_block, blocks;
    u32 unused;
};

struct CombineRows {
    SumOfRows sum[MAX_SUMS];
    u32 n, unused;
};

struct CombineStrided {
    Strided out, x, y[MAX_TERMS];
    float c[MAX_TERMS];
    u64 elements;
    u32 n, has_x, each_term, unused;
};

static_assert(sizeof(SumOfRows) == 536 && sizeof(CombineRows) == MAX_SUMS * 536 + 8 &&
                  sizeof(CombineStrided) == 2104,
              "as the host lays them out");

// Which sum this block works on. Read where they are, by an index that a whole block shares,
// parameters need no copy.
__device__ __forceinline__ const SumOfRows &sum_of_block(const CombineRows &p) {
    u32 k = 0;
#pragma unroll
    for (u32 next = 1; next < MAX_SUMS; next++)
        if (next < p.n && blockIdx.x >= p.sum[next].first_block) k = next;
    return p.sum[k];
}

// One rounding, at the store. TERMS is the number of terms or ANY.
template <u32 LANES, u32 TERMS, class Parameters, class Place>
__device__ __forceinline__ void combine(const Parameters &p, Place at) {
    const u32 n = TERMS == ANY ? p.n : TERMS;
    Bits<LANES> x, y[BATCH];
    float sum[LANES] = {}, value[LANES];
    if (p.has_x) x = load<LANES>(p.x, at);
    if (n == 0 && p.has_x && p.x.dtype == p.out.dtype) return store(x, p.out, at);
    u32 first = 0;
    do {
#pragma unroll
        for (u32 j = 0; j < BATCH; j++)
            if (first + j < n) y[j] = load<LANES>(p.y[first + j], at);
        if (first == 0 && p.has_x) widen(sum, x, p.x.dtype);
#pragma unroll
        for (u32 j = 0; j < BATCH; j++) {
            if (first + j >= n) break;
            widen(value, y[j], p.y[first + j].dtype);
            // The first of all stands alone: -0 must not become 0 + -0.
            const bool alone = first + j == 0 && !p.has_x;
#pragma unroll
            for (u32 i = 0; i < LANES; i++) {
                const float product = __fmul_rn(p.c[first + j], value[i]);
                sum[i] = alone ? product : __fadd_rn(sum[i], product);
            }
        }
        first += BATCH;
    } while (first < n);
    store(sum, p.out, at);
}

// Rounds after every operation, as eager tensor operations do, and adds to 0 what has no `x` before
// it.
template <u32 LANES, class Parameters, class Place>
__device__ __forceinline__ void combine_rounding(const Parameters &p, Place at) {
    const u32 dtype = p.out.dtype;
    float sum[LANES] = {}, value[LANES];
    if (p.has_x) {
        widen(sum, load<LANES>(p.x, at), p.x.dtype);
        round_to(sum, dtype);
    }
#pragma unroll 1
    for (u32 j = 0; j < p.n; j++) {
        widen(value, load<LANES>(p.y[j], at), p.y[j].dtype);
        round_to(value, dtype);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) value[i] = __fmul_rn(p.c[j], value[i]);
        round_to(value, dtype);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) sum[i] = __fadd_rn(sum[i], value[i]);
        round_to(sum, dtype);
    }
    store(sum, p.out, at);
}

template <class Visit>
__device__ __forceinline__ void for_each_in_sum(const SumOfRows &sum, Visit visit) {
    for_each_in_rows(sum.rows, sum.cols, blockIdx.x - sum.first_block, sum.blocks, visit);
}

#define COMBINE_ROWS(TERMS)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) combine_rows_##TERMS(CombineRows p) { \
        const SumOfRows &sum = sum_of_block(p);                                                 \
        for_each_in_sum(sum, [&](auto lanes, RowPlace at) {                                     \
            combine<lanes.COUNT, TERMS>(sum, at);                                               \
        });                                                                                     \
    }

COMBINE_ROWS(0)
COMBINE_ROWS(1)
COMBINE_ROWS(2)
COMBINE_ROWS(3)
COMBINE_ROWS(4)

template <u32 LANES, class Parameters, class Place>
__device__ __forceinline__ void combine_any(const Parameters &p, Place at) {
    if (p.each_term)
        combine_rounding<LANES>(p, at);
    else
        combine<LANES, ANY>(p, at);
}

extern "C" __global__ void __launch_bounds__(THREADS) combine_rows_n(CombineRows p) {
    const SumOfRows &sum = sum_of_block(p);
    for_each_in_sum(sum, [&](auto lanes, RowPlace at) { combine_any<lanes.COUNT>(sum, at); });
}

extern "C" __global__ void __launch_bounds__(THREADS) combine_strided(CombineStrided parameters) {
    __shared__ CombineStrided p;
    copy_to_shared(p, parameters);
    for_each_strided(p.elements, [&](auto lanes, u64 at) { combine_any<lanes.COUNT>(p, at); });
}
