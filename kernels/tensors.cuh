// Tensors as kernels are given them, and the walk of a grid over their elements.
//
// There are two kinds. Rows are what engines hand over nearly always: rows of elements side by
// side, on addresses that allow 16 bytes at a time. Where all tensors have one dtype, a thread
// takes some 16 bytes of each, all of which it loads before it looks at the first; where they have
// not, eight elements. Strided is everything else, an element a thread.
#pragma once

#include "elements.cuh"

// Of a block.
enum : u32 { THREADS = 256, WARP = 32, WARPS = THREADS / WARP };
enum : u32 { MAX_AXES = 6 };
// Of 16 bytes, that a thread takes of each tensor at a time: enough in flight for the latency of
// every GPU's memory, also where there is one tensor alone to read (kernels/sass.md).
enum : u32 { VECTORS = 2 };

// `data` and a pitch are multiples of 16 bytes; `pitch` counts elements.
struct Rows {
    u64 data, pitch;
    u32 dtype, unused;
};

// Axes outermost first; strides count elements, and are 0 where an axis is repeated. `data` may be
// any address.
struct Strided {
    u64 data;
    u32 dtype, n_axes;
    u64 extent[MAX_AXES], stride[MAX_AXES];
};

// The compiler's own division of 64 bits is a call, around which registers are spilled.
__device__ __forceinline__ u64 quotient(u64 value, u64 divisor) {
    if ((value | divisor) >> 32 == 0) return (u32)value / (u32)divisor;
    u64 result = 0, rest = 0;
#pragma unroll 1
    for (u32 bit = 64; bit-- > 0;) {
        rest = rest << 1 | (value >> bit & 1);
        if (rest < divisor) continue;
        rest -= divisor;
        result |= 1ull << bit;
    }
    return result;
}

struct RowPlace {
    u64 row, column;
};

__device__ __forceinline__ u64 address_of(const Rows &tensor, RowPlace at) {
    return tensor.data + (at.row * tensor.pitch + at.column) * size_of(tensor.dtype);
}

// Of element number `index` in row-major order.
__device__ __forceinline__ u64 address_of(const Strided &tensor, u64 index) {
    u64 offset = 0;
#pragma unroll 1
    for (u32 axis = tensor.n_axes; axis > 1; axis--) {
        const u64 extent = tensor.extent[axis - 1], outer = quotient(index, extent);
        offset += (index - outer * extent) * tensor.stride[axis - 1];
        index = outer;
    }
    return tensor.data + (offset + index * tensor.stride[0]) * size_of(tensor.dtype);
}

// Vector number `v` of those that are a block's width apart, of which `at` is the first: as the
// threads of a block take them.
template <u32 LANES>
__device__ __forceinline__ u64 address_of_vector(const Rows &tensor, RowPlace at, u32 v) {
    return address_of(tensor, at) + v * (THREADS * LANES * size_of(tensor.dtype));
}

template <u32 LANES>
__device__ __forceinline__ Bits<LANES> load(const Rows &tensor, RowPlace at, u32 v = 0) {
    return load_bits<LANES>(address_of_vector<LANES>(tensor, at, v), tensor.dtype);
}

template <u32 LANES>
__device__ __forceinline__ Bits<LANES> load(const Strided &tensor, u64 index, u32 = 0) {
    return load_bits_anywhere(address_of(tensor, index), tensor.dtype);
}

template <u32 LANES>
__device__ __forceinline__ void store(const Bits<LANES> &bits, const Rows &tensor, RowPlace at,
                                      u32 v = 0) {
    store_bits(bits, address_of_vector<LANES>(tensor, at, v), tensor.dtype);
}

template <u32 LANES>
__device__ __forceinline__ void store(const Bits<LANES> &bits, const Strided &tensor, u64 index,
                                      u32 = 0) {
    store_bits_anywhere(bits, address_of(tensor, index), tensor.dtype);
}

template <u32 LANES, class Tensor, class Place>
__device__ __forceinline__ void store(const float (&value)[LANES], const Tensor &tensor, Place at,
                                      u32 v = 0) {
    store(narrow(value, tensor.dtype), tensor, at, v);
}

// ---- dtypes that the compiler knows ----

// LANES elements are 16 bytes.
template <u32 DTYPE_> struct Of {
    enum : u32 { DTYPE = DTYPE_, LANES = 16 / size_of(DTYPE_) };
};

// Calls `work(of)`: each dtype has code of its own.
template <class Work> __device__ __forceinline__ void with_dtype(u32 dtype, Work work) {
    if (dtype == F32)
        work(Of<F32>());
    else if (dtype == F16)
        work(Of<F16>());
    else
        work(Of<BF16>());
}

// ---- the walk ----

// What a visit is to: N vectors of LANES elements, a block's width apart.
template <u32 LANES_, u32 N_> struct Vectors {
    enum : u32 { LANES = LANES_, N = N_ };
};

// This is block number `block` of the `blocks` that share some work.
struct Share {
    u32 block, blocks;

    template <u32 N> __device__ __forceinline__ u64 first() const {
        return (u64)block * N * THREADS + threadIdx.x;
    }

    template <u32 N> __device__ __forceinline__ u64 step() const {
        return (u64)blocks * N * THREADS;
    }
};

__device__ __forceinline__ Share share_of_grid() { return {blockIdx.x, gridDim.x}; }

// One of the `n` parts of a launch that have blocks of their own, side by side in the grid: that of
// this block. Read where they are, by an index that a whole block shares, parameters need no copy.
template <class Part, u32 MAX>
__device__ __forceinline__ const Part &part_of_block(const Part (&parts)[MAX], u32 n) {
    u32 k = 0;
#pragma unroll
    for (u32 next = 1; next < MAX; next++)
        if (next < n && blockIdx.x >= parts[next].first_block) k = next;
    return parts[k];
}

template <class Part> __device__ __forceinline__ Share share_of(const Part &part) {
    return {blockIdx.x - part.first_block, part.blocks};
}

// Calls `visit(vectors, place)` for N vectors of LANES elements at a time; for one vector where a
// row ends before the last of them, and for one element where it ends before the last lane.
template <u32 LANES, u32 N, class Visit>
__device__ __forceinline__ void for_each_in_rows(u64 rows, u64 cols, Share share, Visit visit) {
    const u64 per_row = (cols + LANES - 1) / LANES, vectors = rows * per_row;
    const auto place_of = [&](u64 vector) {
        const u64 row = rows == 1 ? 0 : quotient(vector, per_row);
        return RowPlace{row, (vector - row * per_row) * LANES};
    };
    const auto visit_one = [&](RowPlace at) {
        if (at.column + LANES <= cols) return visit(Vectors<LANES, 1>(), at);
#pragma unroll 1
        for (; at.column < cols; at.column++) visit(Vectors<1, 1>(), at);
    };
#pragma unroll 1
    for (u64 first = share.first<N>(); first < vectors; first += share.step<N>()) {
        const RowPlace at = place_of(first);
        if (N == 1) {
            visit_one(at);
        } else if (at.column + ((N - 1) * THREADS + 1) * LANES <= cols) {
            visit(Vectors<LANES, N>(), at);
        } else {
            const u64 end = min(first + N * THREADS, vectors);
#pragma unroll 1
            for (u64 vector = first; vector < end; vector += THREADS) visit_one(place_of(vector));
        }
    }
}

// Calls `visit(vectors, index)` for single elements.
template <class Visit> __device__ __forceinline__ void for_each_strided(u64 elements, Visit visit) {
    const Share share = share_of_grid();
#pragma unroll 1
    for (u64 index = share.first<1>(); index < elements; index += share.step<1>())
        visit(Vectors<1, 1>(), index);
}

// A copy of parameters for all threads of a block, to be indexed at run time. The warps share the
// work.
template <class T> __device__ __forceinline__ void copy_to_shared(T &shared, const T &parameters) {
    constexpr u32 WORDS = sizeof(T) / sizeof(u64), AT_ONCE = 8;
    static_assert(sizeof(T) % sizeof(u64) == 0, "copied by words");
#pragma unroll
    for (u32 start = 0; start < WORDS; start += AT_ONCE) {
        if (threadIdx.x != start / AT_ONCE % WARPS * WARP) continue;
#pragma unroll
        for (u32 i = start; i < start + AT_ONCE && i < WORDS; i++)
            ((u64 *)&shared)[i] = ((const u64 *)&parameters)[i];
    }
    __syncthreads();
}
