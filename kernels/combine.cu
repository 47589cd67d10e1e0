// out := x + sum_j c_j * y_j: predictions, residuals, copies (no terms) and differences (the term
// -1 * base).
//
// `out` may be `x` or one of the `y` itself: a thread loads all that it needs of a place before it
// stores there.
//
// A few terms of one dtype, that of `out`, which are rounded once, have kernels of their own,
// combine_rows_0 to 4. The rest is combine_rows_n's: many terms, several dtypes, and `each_term`.
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

// One rounding, at the store. TERMS is the number of terms or ANY.
template <u32 TERMS, u32 LANES, u32 N, class Parameters, class Place>
__device__ __forceinline__ void combine(Vectors<LANES, N>, const Parameters &p, Place at) {
    const u32 n = TERMS == ANY ? p.n : TERMS;
    Bits<LANES> x[N], y[BATCH][N];
    float sum[N][LANES] = {}, value[LANES];
    // A copy has nothing else.
    const bool has_x = TERMS == 0 || p.has_x;
    if (has_x)
#pragma unroll
        for (u32 v = 0; v < N; v++) x[v] = load<LANES>(p.x, at, v);
    if (n == 0 && has_x && p.x.dtype == p.out.dtype) {
#pragma unroll
        for (u32 v = 0; v < N; v++) store(x[v], p.out, at, v);
        return;
    }
    u32 first = 0;
    do {
#pragma unroll
        for (u32 j = 0; j < BATCH; j++)
            if (first + j < n)
#pragma unroll
                for (u32 v = 0; v < N; v++) y[j][v] = load<LANES>(p.y[first + j], at, v);
        if (first == 0 && has_x)
#pragma unroll
            for (u32 v = 0; v < N; v++) widen(sum[v], x[v], p.x.dtype);
#pragma unroll
        for (u32 j = 0; j < BATCH; j++) {
            if (first + j >= n) break;
            // The first of all stands alone: -0 must not become 0 + -0.
            const bool alone = first + j == 0 && !has_x;
#pragma unroll
            for (u32 v = 0; v < N; v++) {
                widen(value, y[j][v], p.y[first + j].dtype);
#pragma unroll
                for (u32 i = 0; i < LANES; i++) {
                    const float product = __fmul_rn(p.c[first + j], value[i]);
                    sum[v][i] = alone ? product : __fadd_rn(sum[v][i], product);
                }
            }
        }
        first += BATCH;
    } while (first < n);
#pragma unroll
    for (u32 v = 0; v < N; v++) store(sum[v], p.out, at, v);
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

// All of one dtype.
template <u32 TERMS> __device__ __forceinline__ void combine_few(const SumOfRows &sum) {
    with_dtype(sum.out.dtype, [&](auto of) {
        SumOfRows typed = sum;
        typed.out.dtype = typed.x.dtype = of.DTYPE;
#pragma unroll
        for (u32 j = 0; j < TERMS; j++) typed.y[j].dtype = of.DTYPE;
        for_each_in_rows<of.LANES, VECTORS>(
            sum.rows, sum.cols, share_of(sum),
            [&](auto vectors, RowPlace at) { combine<TERMS>(vectors, typed, at); });
    });
}

#define COMBINE_ROWS(TERMS)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) combine_rows_##TERMS(CombineRows p) { \
        combine_few<TERMS>(part_of_block(p.sum, p.n));                                          \
    }

COMBINE_ROWS(0)
COMBINE_ROWS(1)
COMBINE_ROWS(2)
COMBINE_ROWS(3)
COMBINE_ROWS(4)

template <u32 LANES, class Parameters, class Place>
__device__ __forceinline__ void combine_any(Vectors<LANES, 1> vector, const Parameters &p,
                                            Place at) {
    if (p.each_term)
        combine_rounding<LANES>(p, at);
    else
        combine<ANY>(vector, p, at);
}

extern "C" __global__ void __launch_bounds__(THREADS) combine_rows_n(CombineRows p) {
    const SumOfRows &sum = part_of_block(p.sum, p.n);
    for_each_in_rows<8, 1>(sum.rows, sum.cols, share_of(sum),
                           [&](auto vector, RowPlace at) { combine_any(vector, sum, at); });
}

extern "C" __global__ void __launch_bounds__(THREADS) combine_strided(CombineStrided parameters) {
    __shared__ CombineStrided p;
    copy_to_shared(p, parameters);
    for_each_strided(p.elements, [&](auto vector, u64 at) { combine_any(vector, p, at); });
}
