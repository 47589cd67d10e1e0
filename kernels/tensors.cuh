// Tensors as kernels are given them, and the walk of a grid over their elements.
//
// There are two kinds. Rows are what engines hand over nearly always: rows of elements side by
// side, on addresses that allow 16 bytes at a time; a thread takes eight elements of a row. Strided
// is everything else, an element a thread.
#pragma once

#include "elements.cuh"

// Of a block.
enum : u32 { THREADS = 256, WARP = 32, WARPS = THREADS / WARP };
enum : u32 { MAX_AXES = 6 };

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

template <u32 LANES> __device__ __forceinline__ Bits<LANES> load(const Rows &tensor, RowPlace at) {
    return load_bits<LANES>(address_of(tensor, at), tensor.dtype);
}

template <u32 LANES> __device__ __forceinline__ Bits<LANES> load(const Strided &tensor, u64 index) {
    return load_bits_anywhere(address_of(tensor, index), tensor.dtype);
}

template <u32 LANES>
__device__ __forceinline__ void store(const Bits<LANES> &bits, const Rows &tensor, RowPlace at) {
    store_bits(bits, address_of(tensor, at), tensor.dtype);
}

template <u32 LANES>
__device__ __forceinline__ void store(const Bits<LANES> &bits, const Strided &tensor, u64 index) {
    store_bits_anywhere(bits, address_of(tensor, index), tensor.dtype);
}

template <u32 LANES, class Tensor, class Place>
__device__ __forceinline__ void store(const float (&value)[LANES], const Tensor &tensor, Place at) {
    store(narrow(value, tensor.dtype), tensor, at);
}

// ---- the walk ----

template <u32 N> struct Lanes {
    enum : u32 { COUNT = N };
};

__device__ __forceinline__ u64 first_item(u32 block) { return (u64)block * THREADS + threadIdx.x; }
__device__ __forceinline__ u64 item_step(u32 blocks) { return (u64)blocks * THREADS; }

// Calls `visit(lanes, place)` for eight elements at a time, and for single ones where a row ends
// before the eighth. This is block number `block` of the `blocks` that share the work.
template <class Visit>
__device__ __forceinline__ void for_each_in_rows(u64 rows, u64 cols, u32 block, u32 blocks,
                                                 Visit visit) {
    const u64 per_row = (cols + 7) / 8, items = rows * per_row;
#pragma unroll 1
    for (u64 item = first_item(block); item < items; item += item_step(blocks)) {
        const u64 row = rows == 1 ? 0 : quotient(item, per_row);
        u64 column = (item - row * per_row) * 8;
        if (column + 8 <= cols) {
            visit(Lanes<8>(), RowPlace{row, column});
            continue;
        }
#pragma unroll 1
        for (; column < cols; column++) visit(Lanes<1>(), RowPlace{row, column});
    }
}

// The whole grid shares the work.
template <class Visit>
__device__ __forceinline__ void for_each_in_rows(u64 rows, u64 cols, Visit visit) {
    for_each_in_rows(rows, cols, blockIdx.x, gridDim.x, visit);
}

// Calls `visit(lanes, index)` for single elements.
template <class Visit> __device__ __forceinline__ void for_each_strided(u64 elements, Visit visit) {
    const u64 step = item_step(gridDim.x);
#pragma unroll 1
    for (u64 index = first_item(blockIdx.x); index < elements; index += step)
        visit(Lanes<1>(), index);
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
