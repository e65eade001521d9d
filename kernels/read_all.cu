//! read_all: every byte of a region once, and next to nothing else: the measured peak of memory bandwidth.
//!
//! A warp takes 4 KB at a time, eight loads of 16 bytes a lane before the first is used, and goes on by
//! the size of the grid: four blocks a multiprocessor then have 128 KB in flight in each. The sums are
//! what makes the loads necessary.
#include "lib/convert.cuh"
#include "lib/reduce.cuh"

// sums[b] = the sum of the 32-bit words that block b reads, modulo 2^32
struct ReadAll {
    const uint32_t* words; // [N]
    uint32_t* sums; // [blocks]
    uint32_t pieces; // N / 4
};

constexpr uint32_t AT_ONCE = 8; // loads of a lane

__device__ void read_words(const ReadAll& args) {
    SHARED(uint32_t[8], warps);
    grid_dependency_wait();
    grid_dependency_launch();
    uint32_t sum = 0;
    const uint64_t warp = uint64_t(blockIdx.x) * (blockDim.x / 32) + warp_id();
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x * AT_ONCE;
    for (uint64_t first = warp * 32 * AT_ONCE + lane_id(); first < args.pieces; first += stride) {
        uint4 v[AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint64_t piece = first + 32 * i;
            v[i] = load_stream(args.words + 4 * piece, piece < args.pieces);
        }
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) sum += v[i].x + v[i].y + v[i].z + v[i].w;
    }
#pragma unroll
    for (uint32_t mask = 16; mask > 0; mask /= 2) sum += shfl(sum, lane_id() ^ mask);
    if (lane_id() == 0) warps[warp_id()] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        sum = 0;
        for (const uint32_t& of_warp : warps) sum += of_warp;
        args.sums[blockIdx.x] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256) read_all(ReadAll args) { read_words(args); }
