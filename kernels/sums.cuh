// Sums over a block, in f64 and in a fixed order, so that the bits are the same on every GPU.
#pragma once

#include "tensors.cuh"

// `value` becomes the sum over all threads of the block in its first thread; the others' is of no
// use.
template <u32 N> __device__ __forceinline__ void sum_over_block(double (&value)[N]) {
    __shared__ double of_warp[WARPS][N];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (u32 offset = WARP / 2; offset > 0; offset /= 2)
#pragma unroll
        for (u32 k = 0; k < N; k++) value[k] += __shfl_down_sync(~0u, value[k], offset);
    // Those of an earlier call have been read.
    __syncthreads();
    if (lane == 0)
#pragma unroll
        for (u32 k = 0; k < N; k++) of_warp[warp][k] = value[k];
    __syncthreads();
    if (threadIdx.x == 0)
#pragma unroll
        for (u32 k = 0; k < N; k++)
#pragma unroll
            for (u32 w = 1; w < WARPS; w++) value[k] += of_warp[w][k];
}
