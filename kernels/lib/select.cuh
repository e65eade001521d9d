//! Selection by running sums of integers: exact, and the same in any order. Blocks of 512 threads
//! that work on one thing together.
#pragma once

#include "lib/ptx.cuh"
#include "lib/shared.cuh"

constexpr uint32_t THREADS = 512;
constexpr uint32_t BINS = 2048;

__device__ inline uint64_t shfl_wide(uint64_t v, uint32_t lane) {
    return uint64_t(shfl(uint32_t(v >> 32), lane)) << 32 | shfl(uint32_t(v), lane);
}

// Room for the threads of a block to tell each other.
struct Exchange {
    uint64_t warps[THREADS / 32];
    uint64_t before;
    uint32_t chosen;
    bool is_last;
};

// The least over the block.
__device__ inline uint64_t block_min(uint64_t v, Exchange& exchange) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        const uint64_t other = shfl_wide(v, lane_id() ^ mask);
        v = other < v ? other : v;
    }
    if (lane_id() == 0) exchange.warps[warp_id()] = v;
    __syncthreads();
    for (const uint64_t& warp : exchange.warps) v = warp < v ? warp : v;
    __syncthreads();
    return v;
}

// The sum over this thread and those before it; the last thread has that of the block.
__device__ inline uint64_t block_scan(uint64_t v, Exchange& exchange) {
    for (uint32_t delta = 1; delta < 32; delta *= 2) {
        const uint64_t lower = shfl_wide(v, (lane_id() - delta) % 32);
        if (lane_id() >= delta) v += lower;
    }
    if (lane_id() == 31) exchange.warps[warp_id()] = v;
    __syncthreads();
    for (uint32_t warp = 0; warp < warp_id(); warp++) v += exchange.warps[warp];
    return v;
}

// Where a running sum exceeds a target: in which bin, and how far the target lies into that.
struct Place {
    uint32_t bin;
    uint64_t left;
};

// The first bin up to and with which the sum exceeds `target(total)`, which is below the total.
// Each thread has the sums of N neighbouring bins.
template <uint32_t N, class Target>
__device__ Place locate(const uint64_t (&own)[N], Exchange& exchange, Target target) {
    uint64_t sum = 0;
    for (uint64_t bin : own) sum += bin;
    const uint64_t upto = block_scan(sum, exchange);
    if (threadIdx.x == THREADS - 1) exchange.before = upto;
    __syncthreads();
    const uint64_t goal = target(exchange.before);
    __syncthreads();
    uint64_t at = upto - sum;
#pragma unroll
    for (uint32_t i = 0; i < N; at += own[i++])
        if (at <= goal && goal < at + own[i]) {
            exchange.chosen = N * threadIdx.x + i;
            exchange.before = at;
        }
    __syncthreads();
    return {exchange.chosen, goal - exchange.before};
}

// Sums of integers below 2^41 by bin, in pieces of 14 bits: 2^18 of those fit 32 bits, for which
// shared memory has atomic additions.
struct Bins {
    uint32_t pieces[3][BINS];
    uint32_t kept; // candidates left

    __device__ void clear() {
        for (uint32_t i = threadIdx.x; i < 3 * BINS; i += THREADS) pieces[i / BINS][i % BINS] = 0;
        __syncthreads();
    }

    __device__ void add(uint32_t bin, uint64_t v) {
        for (uint32_t (&piece)[BINS] : pieces) {
            if (v % (1 << 14) != 0) atomic_add_shared(&piece[bin], uint32_t(v % (1 << 14)));
            v >>= 14;
        }
    }

    // The sums of the thread's bins, neighbours.
    __device__ void read(uint64_t (&own)[BINS / THREADS]) const {
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < BINS / THREADS; i++) {
            const uint32_t bin = BINS / THREADS * threadIdx.x + i;
            own[i] = pieces[0][bin] + (uint64_t(pieces[1][bin]) << 14) +
                     (uint64_t(pieces[2][bin]) << 28);
        }
    }

    template <class Target> __device__ Place find(Exchange& exchange, Target target) const {
        uint64_t own[BINS / THREADS];
        read(own);
        return locate(own, exchange, target);
    }
};

// Whether the block is the last to come here. What the others wrote before they came is visible.
__device__ inline bool is_last(uint32_t* ticket, Exchange& exchange) {
    __syncthreads();
    if (threadIdx.x == 0)
        exchange.is_last = atomic_add_acq_rel_gpu(ticket, 1) == gridDim.x - 1;
    __syncthreads();
    return exchange.is_last;
}
