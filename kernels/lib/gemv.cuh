//! Matrix times vector for decoding: as fast as memory delivers the weights.
//!
//! A warp owns two rows at a time. A lane keeps the next step, DEPTH 16-byte pieces of both rows,
//! in registers and asks for the one after while it uses them, across the ends of rows too: 2 DEPTH
//! 32 lanes 16 B = 4 KiB a warp, 64 KiB an SM with one block of 16 warps. 3.35 TB/s on 132 SMs with
//! a latency of 1 us need 25 KiB; a step's arithmetic takes about a third of that latency, so that
//! on average 48 KiB are on their way. At most 64 registers a thread leave room for a second block,
//! which may be the next kernel's: it asks for its first weights before it waits for this one to
//! end.
//!
//! Pairs of rows go round the blocks first and the warps second, so that whatever the number of
//! rows every SM gets the same share of them, give or take one pair a warp.
//!
//! x lies in shared memory as float, 4 * round_up(K, 1024) bytes of it, zeros at its end. Sums are
//! in a fixed order: a lane's in order of columns, then the lanes' in a tree.
#pragma once

#include "lib/convert.cuh"
#include "lib/math.cuh"
#include "lib/reduce.cuh"
#include "lib/shared.cuh"

constexpr int GEMV_WARPS = 16;
constexpr int GEMV_THREADS = 32 * GEMV_WARPS;
// Columns that a warp loads from a row at once, 16 bytes a lane.
constexpr uint32_t GEMV_CHUNK = 32 * 8;
// Chunks of each row that are on their way.
constexpr int GEMV_DEPTH = 4;
constexpr uint32_t GEMV_STEP = GEMV_CHUNK * GEMV_DEPTH;
// Steps of a warp's first rows that are brought into the L2 cache, beyond the one in registers.
constexpr uint32_t GEMV_PREFETCH = 2;

// What a warp multiplies at once. a, b: [K]
template <class W> struct RowPair {
    const W* a;
    const W* b;
};

template <class W>
__device__ inline const W* row_of(const W* matrix, uint32_t row, uint32_t width) {
    return matrix + uint64_t(row) * width;
}

// Where column `k` of x lies in shared memory: the lanes' eight columns of a chunk as two blocks of
// four each, so that 16-byte reads by neighbouring lanes meet no bank twice. k: a multiple of 4
__device__ inline uint32_t staged(uint32_t k) {
    return k / GEMV_CHUNK * GEMV_CHUNK + k % 8 / 4 * (GEMV_CHUNK / 2) + k % GEMV_CHUNK / 8 * 4;
}

// Stores x in shared memory, eight columns at a time, after `change`; zeros beyond the width.
template <class Change>
__device__ inline void stage_columns(const float* x, uint32_t width, float* to, Change change) {
    for (uint32_t k = threadIdx.x * 8; k < (width + GEMV_STEP - 1) / GEMV_STEP * GEMV_STEP;
         k += GEMV_THREADS * 8) {
        float4 low = {}, high = {};
        if (k < width) {
            low = load4(x + k);
            high = load4(x + k + 4);
            change(k, low, high);
        }
        store4(to + staged(k), low);
        store4(to + staged(k + 4), high);
    }
}

// Puts x into shared memory. x: [K]
__device__ inline void stage(const float* x, uint32_t width, float* to) {
    stage_columns(x, width, to, [](uint32_t, float4&, float4&) {});
    __syncthreads();
}

// Before the wait: the norm's weights into the L2 cache.
template <class W> __device__ inline void prefetch_norm(const W* norm, uint32_t width) {
    for (uint32_t k = threadIdx.x * 64; k < width; k += GEMV_THREADS * 64) prefetch_l2(norm + k);
}

// Puts x * norm into shared memory and returns what the dot products with it still lack:
// 1 / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019, arXiv:1910.07467). x, norm: [K]
template <class W>
__device__ inline float stage_normed(const float* x, const W* norm, uint32_t width, float eps,
                                     float* to) {
    float squares = 0;
    stage_columns(x, width, to, [&](uint32_t k, float4& low, float4& high) {
        float w[8];
        unpack8<W>(load16(norm + k), w);
        squares += low.x * low.x + low.y * low.y + low.z * low.z + low.w * low.w +
                   high.x * high.x + high.y * high.y + high.z * high.z + high.w * high.w;
        low = {low.x * w[0], low.y * w[1], low.z * w[2], low.w * w[3]};
        high = {high.x * w[4], high.y * w[5], high.z * w[6], high.w * w[7]};
    });
    return reciprocal_sqrt(block_sum<GEMV_WARPS>(squares) / float(width) + eps);
}

// sum += w . x, eight columns
template <class W>
__device__ inline void dot8(const uint4& stored, const float4& low, const float4& high,
                            float& sum) {
    float w[8];
    unpack8<W>(stored, w);
    sum = fmaf(w[0], low.x, sum);
    sum = fmaf(w[1], low.y, sum);
    sum = fmaf(w[2], low.z, sum);
    sum = fmaf(w[3], low.w, sum);
    sum = fmaf(w[4], high.x, sum);
    sum = fmaf(w[5], high.y, sum);
    sum = fmaf(w[6], high.z, sum);
    sum = fmaf(w[7], high.w, sum);
}

// Multiplies `pairs` pairs of rows of `width` columns with one x.
//
// `rows(pair)` names a pair's rows. `prepare(x)` is called by all threads once the first weights
// are on their way: it waits for earlier kernels, fills x and ends with a barrier. `finish(pair, a,
// b)` is called by all lanes of a warp with the two dot products.
template <class W, class Rows, class Prepare, class Finish>
__device__ inline void gemv(uint32_t pairs, uint32_t width, Rows rows, Prepare prepare,
                            Finish finish) {
    const uint32_t stride = gridDim.x * GEMV_WARPS, column = lane_id() * 8;
    uint32_t pair = blockIdx.x + gridDim.x * warp_id();
    uint4 a[GEMV_DEPTH], b[GEMV_DEPTH];
    // What is asked for next: from the lane's columns of `from`, of whose rows `left` columns are
    // to come.
    RowPair<W> from = rows(pair < pairs ? pair : 0);
    uint32_t left = pair < pairs ? width : 0, upcoming = pair + stride;
    // A lane's line of 128 bytes in the step after: of row a in one half of the warp, of b in the
    // other.
    const uint32_t line = GEMV_STEP + lane_id() % 16 * 64;
    const W* const ahead = (lane_id() < 16 ? from.a : from.b) + line;
    from.a += column;
    from.b += column;
    const auto fetch = [&](int i) {
        const bool valid = column + i * GEMV_CHUNK < left;
        a[i] = load_stream(from.a + i * GEMV_CHUNK, valid);
        b[i] = load_stream(from.b + i * GEMV_CHUNK, valid);
    };
    const auto advance = [&] {
        from.a += GEMV_STEP;
        from.b += GEMV_STEP;
        if (left > GEMV_STEP) {
            left -= GEMV_STEP;
            return;
        }
        left = 0;
        if (upcoming < pairs) {
            from = rows(upcoming);
            from.a += column;
            from.b += column;
            left = width;
            upcoming += stride;
        }
    };
#pragma unroll
    for (int i = 0; i < GEMV_DEPTH; i++) fetch(i);
#pragma unroll
    for (uint32_t step = 0; step < GEMV_PREFETCH; step++)
        if (line + step * GEMV_STEP < left) prefetch_l2(ahead + step * GEMV_STEP);
    advance();

    float* x = dynamic_shared<float>();
    prepare(x);

    for (; pair < pairs; pair += stride) {
        float sum_a = 0, sum_b = 0;
        for (uint32_t k = 0; k < width; k += GEMV_STEP) {
#pragma unroll
            for (int i = 0; i < GEMV_DEPTH; i++) {
                const float* at = x + k + i * GEMV_CHUNK + lane_id() * 4;
                const float4 low = load4(at), high = load4(at + GEMV_CHUNK / 2);
                dot8<W>(a[i], low, high, sum_a);
                dot8<W>(b[i], low, high, sum_b);
                fetch(i);
            }
            advance();
        }
        finish(pair, warp_sum(sum_a), warp_sum(sum_b));
    }
}
