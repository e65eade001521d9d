//! Matrix times vector for decoding: as fast as memory delivers the weights.
//!
//! A warp owns a pair of rows at a time and takes it in steps of 2048 columns, half of one in
//! registers and half in flight: 2 rows, 4 pieces of 16 bytes a lane, 4 KiB a warp and half,
//! 32 KiB an SM with one block of 8 warps. The two halves alternate:
//!
//!   ask for the second half of this step; use the first
//!   ask for the first half of the next step, across the ends of rows too; use the second
//!
//! A warp waits for a half only when the other has been asked for, so 32 to 64 KiB an SM are in
//! flight at any time; 4.8 TB/s on 132 SMs with a latency of 0.9 us need 32. It has to be written
//! like this: the hardware counts loads by six scoreboards a warp, and waits until a count is zero. The
//! compiler gives all loads that cross the end of a loop's body the same one, so halves that both
//! did would be waited for together (tests/machine_code.rs reads what it has done). Before Hopper it
//! also asks for the second half only when the first is there, so these GPUs fall to nothing in between.
//!
//! Load balance: pairs of rows are dealt to the blocks first and the warps second, so that whatever
//! the number of rows every SM gets the same share of them. Where there are fewer pairs than warps, a pair
//! is cut into `parts` along its columns, which neighbouring warps take and add up
//! (src/ops/gemv.rs decides).
//!
//! Between kernels DRAM must not idle. 128 registers a thread leave room for a second block on
//! the SM, the next kernel's, which may begin when all blocks have come to their last steps. It
//! asks for its own first weights at once, half a step into registers and some halves more into the
//! L2 cache (lib/flow.cuh; 5 are 192 KiB an SM in all, 6 us of the memory's time), and only then
//! waits for this kernel to end and takes x.
//!
//! x lies in shared memory as float, 4 * round_up(K, 2048) bytes of it, zeros at its end; after it,
//! where there is a norm, the norm's weights in the same form. They are state that was written once: they
//! are fetched before the wait, as weights are.
//!
//! **Same bits.** A lane's sum runs in order of columns, then the lanes' are added in a tree, then
//! the parts' in order: the result depends on `parts`, and not on the grid.
#pragma once

#include "lib/convert.cuh"
#include "lib/flow.cuh"
#include "lib/math.cuh"
#include "lib/reduce.cuh"
#include "lib/shared.cuh"

constexpr int GEMV_WARPS = 8;
constexpr int GEMV_THREADS = 32 * GEMV_WARPS;
// Columns that a warp loads from a row at once, 16 bytes a lane.
constexpr uint32_t GEMV_CHUNK = 32 * 8;
// Chunks of a step: the first half of them, then the second.
constexpr int GEMV_DEPTH = 8;
constexpr int GEMV_HALF = GEMV_DEPTH / 2;
constexpr uint32_t GEMV_STEP = GEMV_CHUNK * GEMV_DEPTH;

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

// Columns that x has in shared memory.
__device__ inline uint32_t gemv_columns(uint32_t width) {
    return (width + GEMV_STEP - 1) / GEMV_STEP * GEMV_STEP;
}

// Begins to bring x into shared memory, eight columns a thread; zeros beyond the width. All at once:
// it takes one trip to the L2 cache, and passes by the L1 cache. x: [K]
__device__ inline void fetch_columns(const float* x, uint32_t width, float* to) {
#pragma unroll 1
    for (uint32_t k = threadIdx.x * 8; k < gemv_columns(width); k += GEMV_THREADS * 8) {
        const bool inside = k < width;
        const float* from = inside ? x + k : x;
        cp_async16(to + staged(k), from, inside);
        cp_async16(to + staged(k + 4), inside ? from + 4 : from, inside);
    }
    cp_async_commit();
}

// Puts x into shared memory. x: [K]
__device__ inline void stage(const float* x, uint32_t width, float* to) {
    fetch_columns(x, width, to);
    cp_async_wait<0>();
    __syncthreads();
}

// Before the wait: begins to bring the norm's weights to where x will end. norm: [K]
__device__ inline void fetch_norm(const float* norm, uint32_t width) {
    fetch_columns(norm, width, dynamic_shared<float>() + gemv_columns(width));
}

// Makes x in shared memory, which fetch_columns has begun to bring, x * norm, and returns what the
// dot products with it still lack: 1 / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019,
// arXiv:1910.07467). A thread changes what it has brought itself.
__device__ inline float stage_normed(float* x, uint32_t width, float eps) {
    const float* const norm = x + gemv_columns(width);
    float squares = 0;
    cp_async_wait<0>();
#pragma unroll 1
    for (uint32_t k = threadIdx.x * 8; k < width; k += GEMV_THREADS * 8) {
        const float4 low = load4(x + staged(k)), high = load4(x + staged(k + 4));
        const float4 w = load4(norm + staged(k)), v = load4(norm + staged(k + 4));
        squares += low.x * low.x + low.y * low.y + low.z * low.z + low.w * low.w +
                   high.x * high.x + high.y * high.y + high.z * high.z + high.w * high.w;
        store4(x + staged(k), {low.x * w.x, low.y * w.y, low.z * w.z, low.w * w.w});
        store4(x + staged(k + 4), {high.x * v.x, high.y * v.y, high.z * v.z, high.w * v.w});
    }
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

// Half a step's weights of a lane.
struct Half {
    uint4 a[GEMV_HALF], b[GEMV_HALF];
};

// A step of a warp: where a lane's pieces of it lie, and how many columns the pair has from there.
template <class W> struct Step {
    RowPair<W> at;
    uint32_t left;

    __device__ void fetch(int half, Half& to) const {
#pragma unroll
        for (int i = 0; i < GEMV_HALF; i++) {
            const uint32_t column = (half * GEMV_HALF + i) * GEMV_CHUNK;
            const bool valid = lane_id() * 8 + column < left;
            to.a[i] = load_stream(at.a + column, valid);
            to.b[i] = load_stream(at.b + column, valid);
        }
    }

    // Into the L2 cache: 2 KiB of each row.
    __device__ void prefetch(int half, Prefetch by) const {
        constexpr uint32_t COLUMNS = GEMV_HALF * GEMV_CHUNK;
        static_assert(COLUMNS * sizeof(W) == 16 * 128, "a line for half of the lanes");
        const uint32_t begin = half * COLUMNS;
        if (begin >= left) return;
        const W* const a = at.a + begin - lane_id() * 8;
        const W* const b = at.b + begin - lane_id() * 8;
        if (by == Prefetch::Bulk) {
            const uint32_t rest = left - begin, columns = rest < COLUMNS ? rest : COLUMNS;
            if (lane_id() < 2) prefetch_l2_bulk(lane_id() == 0 ? a : b, columns * sizeof(W));
            return;
        }
        const uint32_t line = lane_id() % 16 * 64;
        if (begin + line >= left) return;
        const W* const from = (lane_id() < 16 ? a : b) + line;
        prefetch_l2(from);
        if (by == Prefetch::Paced) await_line(from);
    }
};

// Multiplies `pairs` pairs of rows of `width` columns with one x. `parts`: of a pair's columns, a
// power of two up to GEMV_WARPS.
//
// `rows(pair)` names a pair's rows. `prepare(x)` is called by all threads once the first weights
// are in flight: it waits for earlier kernels, fills x and ends with a barrier. `finish(pair, a,
// b)` is called by all lanes of a warp with the two dot products.
template <class W, class Rows, class Prepare, class Finish>
__device__ inline void gemv(uint32_t pairs, uint32_t width, uint32_t parts, Flow flow, Rows rows,
                            Prepare prepare, Finish finish) {
    stamp(Moment::Begins);
    if (flow.at_once()) let_next_begin();
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
    // The step after `step`; `next` is the pair's after it. Without branches, as is all of the loop
    // below: they would part a half's loads from its use.
    const auto follow = [&](Step<W>& step, const Step<W>& next) {
        const bool more = step.left > GEMV_STEP;
        step.at.a = more ? step.at.a + GEMV_STEP : next.at.a;
        step.at.b = more ? step.at.b + GEMV_STEP : next.at.b;
        step.left = more ? step.left - GEMV_STEP : next.left;
        return more;
    };
    Step<W> step = enter(pair);
    Half first, second;
    step.fetch(0, first);
    Step<W> ahead = step;
#pragma unroll 1
    for (uint32_t i = 1, of = pair; i <= flow.depth(); i++) {
        if (i % 2 == 0 && !follow(ahead, enter(of + stride))) of += stride;
        ahead.prefetch(i % 2, flow.prefetch());
    }

    float* x = dynamic_shared<float>();
    prepare(x);
    stamp(Moment::Staged);

    SHARED(float2[GEMV_WARPS], sums);
    const uint32_t end = pairs + pair - blockIdx.x; // all warps of a block do as many rounds
    for (; pair < end; pair += stride) {
        float sum_a = 0, sum_b = 0;
        const Step<W> next = enter(pair + stride);
        const float* at = x + begin + lane_id() * 4;
        bool last = false;
        const auto add = [&](const Half& half, int number) {
#pragma unroll
            for (int i = 0; i < GEMV_HALF; i++) {
                const float* columns = at + (number * GEMV_HALF + i) * GEMV_CHUNK;
                const float4 low = load4(columns), high = load4(columns + GEMV_CHUNK / 2);
                dot8<W>(half.a[i], low, high, sum_a);
                dot8<W>(half.b[i], low, high, sum_b);
                if (i == 1 && last) let_next_begin();
            }
        };
        for (bool more = step.left > 0; more; at += GEMV_STEP) {
            step.fetch(1, second);
            // The block's last weights have been asked for: its first warps have a pair in every
            // round.
            last = step.left <= GEMV_STEP && pair + stride >= pairs && warp_id() < parts;
            if (last) let_next_begin();
            add(first, 0);
            more = follow(step, next);
            step.fetch(0, first);
            if (last) let_next_begin();
            add(second, 1);
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
