//! mma_peak: mma.sync from registers alone: the measured peak of the tensor cores.
//!
//! A warp keeps eight independent sums of 16 x 8, of two matrices A and four B, and adds the same
//! products to them again and again: nothing waits for anything but the tensor cores. The numbers are
//! small integers, so that every sum is exact, and of all signs, so that the multipliers toggle as in
//! a model; equal numbers would draw less power and run at higher clocks.
#include "lib/convert.cuh"

// y[b, thread] = rounds * the sum of the thread's part of A_i B_j over i < 2, j < 4
struct MmaPeak {
    float* y; // [blocks, 256]
    uint32_t rounds;
};

// Element (row, column) of matrix `which`, in -3..3. (Twice src/ops/mma_peak.rs)
__device__ inline float element(uint32_t which, uint32_t row, uint32_t column) {
    return float(int32_t((37 * which + 11 * row + 5 * column + row * column) % 7) - 3);
}

// Rows `row` of A, columns 2t.. and 2t + 1: what one register of a fragment holds.
__device__ inline uint32_t row_pair(uint32_t which, uint32_t row, uint32_t column) {
    return pack_bf16(element(which, row, column), element(which, row, column + 1));
}

__device__ inline uint32_t column_pair(uint32_t which, uint32_t row, uint32_t column) {
    return pack_bf16(element(which, row, column), element(which, row + 1, column));
}

__device__ void multiply_all(const MmaPeak& args) {
    constexpr uint32_t AS = 2, BS = 4;
    const uint32_t g = lane_id() / 4, t = 2 * (lane_id() % 4);
    uint32_t a[AS][4], b[BS][2];
    float sums[AS][BS][4] = {};
#pragma unroll
    for (uint32_t i = 0; i < AS; i++)
#pragma unroll
        for (uint32_t r = 0; r < 4; r++) a[i][r] = row_pair(i, g + r % 2 * 8, t + r / 2 * 8);
#pragma unroll
    for (uint32_t j = 0; j < BS; j++)
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) b[j][r] = column_pair(AS + j, t + 8 * r, g);
    grid_dependency_wait();
    for (uint32_t round = 0; round < args.rounds; round++) {
#pragma unroll
        for (uint32_t i = 0; i < AS; i++)
#pragma unroll
            for (uint32_t j = 0; j < BS; j++) mma_m16n8k16<bf16>(sums[i][j], a[i], b[j]);
    }
    float sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < AS; i++)
#pragma unroll
        for (uint32_t j = 0; j < BS; j++)
#pragma unroll
            for (float part : sums[i][j]) sum += part;
    args.y[uint64_t(blockIdx.x) * blockDim.x + threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256) mma_peak(MmaPeak args) { multiply_all(args); }
