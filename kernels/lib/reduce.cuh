//! Reductions over a warp or a block, always in the same order; every thread gets the result.
#pragma once

#include "lib/ptx.cuh"
#include "lib/shared.cuh"

__device__ inline float warp_sum(float v) {
#pragma unroll
    for (uint32_t mask = 16; mask > 0; mask /= 2) v += shfl_xor(v, mask);
    return v;
}

__device__ inline float warp_max(float v) {
#pragma unroll
    for (uint32_t mask = 16; mask > 0; mask /= 2) v = fmaxf(v, shfl_xor(v, mask));
    return v;
}

// The sum over all WARPS warps of the block. Called once in a kernel, or with a barrier between.
template <int WARPS> __device__ inline float block_sum(float v) {
    SHARED(float[WARPS], sums);
    v = warp_sum(v);
    if (lane_id() == 0) sums[warp_id()] = v;
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) total += sums[warp];
    return total;
}
