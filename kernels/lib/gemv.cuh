//! Matrix times vector for decoding: as fast as memory delivers the weights.
//!
//! A warp owns a pair of rows at a time. A lane keeps a step, DEPTH 16-byte pieces of both rows, in
//! registers and asks for the next while it uses it, across the ends of rows too: 2 DEPTH 32 lanes
//! 16 B = 8 KiB a warp, 64 KiB an SM with one block of 8 warps. 3.35 TB/s on 132 SMs with a latency
//! of 1 us need 25 KiB. A quarter of them is asked for again as soon as it is used: 48 KiB and more
//! are on their way at any time.
//!
//! Pairs of rows go round the blocks first and the warps second, so that whatever the number of
//! rows every SM gets the same share of them. Where there are too few to go round the warps, a pair
//! is cut into `parts` along its columns, which neighbouring warps take and add up
//! (src/ops/gemv.rs decides).
//!
//! Between kernels memory must not rest. 128 registers a thread leave room for a second block on
//! the SM, the next kernel's, which may begin when all blocks have come to their last steps. It
//! asks for its own first weights at once, one step into registers and PREFETCH more into the L2
//! cache - 192 KiB an SM, 8 us of the memory's time -, and only then waits for this kernel to end
//! and takes x.
//!
//! x lies in shared memory as float, 4 * round_up(K, 2048) bytes of it, zeros at its end.
//!
//! **Same bits.** A lane's sum runs in order of columns, then the lanes' are added in a tree, then
//! the parts' in order: the result depends on `parts`, and not on the grid.
#pragma once

#include "lib/convert.cuh"
#include "lib/math.cuh"
#include "lib/reduce.cuh"
#include "lib/shared.cuh"

constexpr int GEMV_WARPS = 8;
constexpr int GEMV_THREADS = 32 * GEMV_WARPS;
// Columns that a warp loads from a row at once, 16 bytes a lane.
constexpr uint32_t GEMV_CHUNK = 32 * 8;
// Chunks of each row that are on their way.
constexpr int GEMV_DEPTH = 8;
constexpr uint32_t GEMV_STEP = GEMV_CHUNK * GEMV_DEPTH;
// Steps of a warp that are brought into the L2 cache ahead of x, beyond the one in registers.
constexpr int GEMV_PREFETCH = 2;

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

// Columns of each of the parts of a row, of which the last may have fewer.
__device__ inline uint32_t gemv_share(uint32_t width, uint32_t parts) {
    const uint32_t steps = (width + GEMV_STEP - 1) / GEMV_STEP;
    return (steps + parts - 1) / parts * GEMV_STEP;
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

// A step of a warp: where a lane's pieces of it lie, and how many columns the pair has from there.
template <class W> struct Step {
    RowPair<W> at;
    uint32_t left;

    __device__ void fetch(int chunk, uint4& a, uint4& b) const {
        const bool valid = lane_id() * 8 + chunk * GEMV_CHUNK < left;
        a = load_stream(at.a + chunk * GEMV_CHUNK, valid);
        b = load_stream(at.b + chunk * GEMV_CHUNK, valid);
    }

    // Into the L2 cache: of each row a line of 128 bytes a lane.
    __device__ void prefetch() const {
        static_assert(GEMV_STEP == 32 * 64, "all of a step");
        const uint32_t line = lane_id() * 64, from_lane = line - lane_id() * 8;
        if (line >= left) return;
        prefetch_l2(at.a + from_lane);
        prefetch_l2(at.b + from_lane);
    }
};

// Multiplies `pairs` pairs of rows of `width` columns with one x. `parts`: of a pair's columns, a
// power of two up to GEMV_WARPS.
//
// `rows(pair)` names a pair's rows. `prepare(x)` is called by all threads once the first weights
// are on their way: it waits for earlier kernels, fills x and ends with a barrier. `finish(pair, a,
// b)` is called by all lanes of a warp with the two dot products.
template <class W, class Rows, class Prepare, class Finish>
__device__ inline void gemv(uint32_t pairs, uint32_t width, uint32_t parts, Rows rows,
                            Prepare prepare, Finish finish) {
    const uint32_t stride = gridDim.x * (GEMV_WARPS / parts);
    // The warp's columns.
    const uint32_t share = gemv_share(width, parts), begin = share * (warp_id() % parts);
    const uint32_t columns = begin >= width ? 0 : width - begin < share ? width - begin : share;
    uint32_t pair = blockIdx.x + gridDim.x * (warp_id() / parts);
    // A pair's first step, or one without columns.
    const auto enter = [&](uint32_t pair) -> Step<W> {
        if (pair >= pairs) return {rows(0), 0}; // an offset from no address is undefined
        const RowPair<W> row = rows(pair);
        const uint32_t lane = begin + lane_id() * 8;
        return {{row.a + lane, row.b + lane}, columns};
    };
    // The step after `step` of `pair`.
    const auto follow = [&](Step<W>& step, uint32_t pair) {
        if (step.left > GEMV_STEP) {
            step = {{step.at.a + GEMV_STEP, step.at.b + GEMV_STEP}, step.left - GEMV_STEP};
            return true;
        }
        step = enter(pair + stride);
        return false;
    };
    Step<W> step = enter(pair);
    uint4 a[GEMV_DEPTH], b[GEMV_DEPTH];
#pragma unroll
    for (int i = 0; i < GEMV_DEPTH; i++) step.fetch(i, a[i], b[i]);
    Step<W> ahead = step;
#pragma unroll 1
    for (uint32_t i = 0, of = pair; i < GEMV_PREFETCH; i++) {
        if (!follow(ahead, of)) of += stride;
        ahead.prefetch();
    }

    float* x = dynamic_shared<float>();
    prepare(x);

    SHARED(float2[GEMV_WARPS], sums);
    const uint32_t end = pairs + pair - blockIdx.x; // all warps of a block go as many rounds
    for (; pair < end; pair += stride) {
        float sum_a = 0, sum_b = 0;
        const float* at = x + begin + lane_id() * 4;
        for (bool more = step.left > 0; more; at += GEMV_STEP) {
            more = follow(step, pair);
            const bool last = step.left <= GEMV_STEP && pair + stride >= pairs;
#pragma unroll
            for (int i = 0; i < GEMV_DEPTH; i++) {
                const float4 low = load4(at + i * GEMV_CHUNK);
                const float4 high = load4(at + i * GEMV_CHUNK + GEMV_CHUNK / 2);
                dot8<W>(a[i], low, high, sum_a);
                dot8<W>(b[i], low, high, sum_b);
                step.fetch(i, a[i], b[i]);
                // Here so often because the compiler moves no loads across it: it would put those of
                // the whole step behind all arithmetic.
                if (i % 2 == 1 && last) grid_dependency_launch();
            }
        }
        sum_a = warp_sum(sum_a);
        sum_b = warp_sum(sum_b);
        if (parts > 1) {
            __syncthreads(); // the round before is added up
            if (lane_id() == 0) sums[warp_id()] = {sum_a, sum_b};
            __syncthreads();
            if (warp_id() % parts != 0) continue;
#pragma unroll 1
            for (uint32_t i = 1; i < parts; i++) {
                sum_a += sums[warp_id() + i].x;
                sum_b += sums[warp_id() + i].y;
            }
        }
        if (pair < pairs) finish(pair, sum_a, sum_b);
    }
}
