//! attend_prefill: causal attention of T tokens over the cache, which holds their own keys and values.
//!
//! Flash attention (Dao, 2023, arXiv:2307.08691): scores never leave registers. The query heads of a
//! KV head are packed: row r of a KV head's queries is token r / (H/G), head r % (H/G), so that keys
//! and values are fetched once for all heads that share them and short prompts fill their tiles.
//! An item of work is 128 such rows of one KV head; a block of 4 warps walks over items, longest first,
//! so that any grid will do. A warp owns 32 rows and all their sums: nothing passes between warps.
//!
//! For each 64 positions of the cache:
//!   wait for K, barrier; fetch V;   S = Q K^T   (f16 in, f32 sums)
//!   wait for V, barrier; fetch K of the next 64;   softmax online;   O = O + P V   (P rounded to f16)
//! so each fetch has half a turn of arithmetic to hide behind, and a second block on the SM the rest.
//! Dynamic shared memory: 512 D bytes (Q 128 rows, K and V 64 each, swizzled; lib/tile.cuh).
//!
//! exp(s / sqrt(D) - max) is exp2 of one fused multiply-add; the maximum and the sum are f32 and the
//! sum is of the unrounded weights. Position 0 is seen by every row and comes first, so the running
//! maximum is finite from the first turn on. Rows of the cache past the sequence are not read: they
//! are zeros in shared memory, and their weights are exactly 0. Warps take no part in turns that none
//! of their rows may see; only turns that cross the diagonal are masked.
//! O is divided by the sum in f32, rounded once to the weights' type - the output projection's input -
//! and leaves through the warp's own rows of Q's tile, as 16-byte stores.
#include "lib/convert.cuh"
#include "lib/math.cuh"
#include "lib/shared.cuh"
#include "lib/tile.cuh"

template <class W> struct AttendPrefill {
    const kv_t* queries;    // [T, H, D] rotated
    const kv_t* keys;       // [S, G, D] the layer's cache
    const kv_t* values;     // [S, G, D]
    const uint32_t* cursor; // [1] position of the first token
    Activation<W>* y;       // [T, H, D]
    uint32_t tokens;        // T
    uint32_t heads;         // H
    uint32_t kv_heads;      // G
};

constexpr int ATTEND_ROWS = 128, ATTEND_KEYS = 64, ATTEND_THREADS = 128;
constexpr float LOWEST = -3.402823466e38f; // so that masked weights are exactly 0
constexpr int WARP_ROWS = 32; // two fragments of 16, four rows a lane

template <int D> struct AttendTiles {
    Tile<kv_t, ATTEND_ROWS, D> queries;
    Tile<kv_t, ATTEND_KEYS, D> keys, values;
};

// What a warp knows of its rows. A lane has rows g, g + 8 of both fragments, where g = lane / 4.
template <int D> struct Rows {
    float out[2][D / 8][4]; // fragments C: sums of weight times value
    float max[2][2];        // of the scores so far
    float sum[2][2];        // of the weights so far: this lane's columns only
    uint32_t position[2][2];
};
using Scores = float[2][ATTEND_KEYS / 8][4];

// One item: 128 rows of one KV head.
struct Item {
    uint32_t kv_head, first_row, rows; // rows of the whole KV head: T H / G
    uint32_t group;                    // H / G
};

// S = Q K^T for the warp's rows.
template <int D> __device__ void score(Scores& scores, AttendTiles<D>& tiles) {
#pragma unroll
    for (auto& row : scores)
#pragma unroll
        for (auto& s : row) s[0] = s[1] = s[2] = s[3] = 0.0f;
#pragma unroll
    for (int column = 0; column < D / 8; column += 2) {
        uint32_t q[2][4];
        load_a(q[0], tiles.queries, warp_id() * WARP_ROWS, column);
        load_a(q[1], tiles.queries, warp_id() * WARP_ROWS + 16, column);
#pragma unroll
        for (int n = 0; n < ATTEND_KEYS / 8; n += 2) {
            uint32_t left[2], right[2];
            load_b(left, right, tiles.keys, 8 * n, column);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                mma_m16n8k16<kv_t>(scores[i][n], q[i], left);
                mma_m16n8k16<kv_t>(scores[i][n + 1], q[i], right);
            }
        }
    }
}

// Hides the positions that come after a row's own; the tile begins at `first`.
template <int D> __device__ void mask(Scores& scores, const Rows<D>& rows, uint32_t first) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < ATTEND_KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const uint32_t key = first + 8 * n + lane_id() % 4 * 2 + c % 2;
                if (key > rows.position[i][c / 2]) scores[i][n][c] = LOWEST;
            }
}

// Turns scores into weights relative to the new maximum and brings what was summed so far down to it.
// `scale`: log2(e) / sqrt(D).
template <int D> __device__ void soften(Scores& scores, Rows<D>& rows, float scale) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float max = rows.max[i][half];
#pragma unroll
            for (int n = 0; n < ATTEND_KEYS / 8; n++)
                max = fmaxf(max, fmaxf(scores[i][n][2 * half], scores[i][n][2 * half + 1]));
            max = fmaxf(max, shfl_xor(max, 1));
            max = fmaxf(max, shfl_xor(max, 2));
            const float shrink = exp2_approx((rows.max[i][half] - max) * scale);
            rows.max[i][half] = max;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < ATTEND_KEYS / 8; n++)
#pragma unroll
                for (int c = 2 * half; c < 2 * half + 2; c++) {
                    scores[i][n][c] = exp2_approx(fmaf(scores[i][n][c], scale, -max * scale));
                    sum += scores[i][n][c];
                }
            rows.sum[i][half] = rows.sum[i][half] * shrink + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                rows.out[i][n][2 * half] *= shrink;
                rows.out[i][n][2 * half + 1] *= shrink;
            }
        }
}

// O = O + P V. Two fragments C of weights side by side are one fragment A.
template <int D> __device__ void add_values(Rows<D>& rows, const Scores& weights, AttendTiles<D>& tiles) {
#pragma unroll
    for (int k = 0; k < ATTEND_KEYS / 16; k++) {
        uint32_t p[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float* pair = &weights[i][2 * k + r / 2][r % 2 * 2];
                p[i][r] = pack<kv_t>(pair[0], pair[1]);
            }
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t left[2], right[2];
            load_b_trans(left, right, tiles.values, 16 * k, n);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                mma_m16n8k16<kv_t>(rows.out[i][n], p[i], left);
                mma_m16n8k16<kv_t>(rows.out[i][n + 1], p[i], right);
            }
        }
    }
}

// The element of [T, H, D] at which a row's head begins.
template <int D> __device__ uint64_t row_start(const Item& item, uint32_t heads, uint32_t row) {
    const uint32_t token = row / item.group, head = item.kv_head * item.group + row % item.group;
    return (uint64_t(token) * heads + head) * D;
}

// y = O / sum, through the warp's rows of Q's tile, which no other warp reads.
template <class W, int D>
__device__ void store_rows(const AttendPrefill<W>& args, const Item& item, Rows<D>& rows, AttendTiles<D>& tiles) {
    auto& staged = tiles.queries;
    const int lane = lane_id(), first = warp_id() * WARP_ROWS;
    __syncwarp(); // all lanes have read their queries
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = rows.sum[i][half];
            sum += shfl_xor(sum, 1);
            sum += shfl_xor(sum, 2);
            const float normalise = 1.0f / sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const float* pair = &rows.out[i][n][2 * half];
                uint4* chunk = staged.chunk(first + 16 * i + 8 * half + lane / 4, n);
                reinterpret_cast<uint32_t*>(chunk)[lane % 4] =
                    pack<W>(pair[0] * normalise, pair[1] * normalise);
            }
        }
    __syncwarp();
    constexpr int CHUNKS = D / 8;
    for (int i = lane; i < WARP_ROWS * CHUNKS; i += 32) {
        const uint32_t row = item.first_row + first + i / CHUNKS;
        if (row < item.rows)
            store16(args.y + row_start<D>(item, args.heads, row) + i % CHUNKS * 8,
                    *staged.chunk(first + i / CHUNKS, i % CHUNKS));
    }
}

template <class W, int D>
__device__ void attend_item(const AttendPrefill<W>& args, const Item& item, AttendTiles<D>& tiles) {
    const uint32_t cursor = args.cursor[0], length = cursor + args.tokens;
    const auto cache_row = [&](const kv_t* cache, uint32_t position) -> const kv_t* {
        if (position >= length) return nullptr;
        return cache + (uint64_t(position) * args.kv_heads + item.kv_head) * D;
    };
    const auto fetch_cache = [&](Tile<kv_t, ATTEND_KEYS, D>& tile, const kv_t* cache, uint32_t first) {
        fetch<ATTEND_THREADS>(tile, D, [&](int r) { return cache_row(cache, first + r); });
        cp_async_commit();
    };
    const auto position_of = [&](uint32_t row) { // rows past the end see what the last row sees
        return cursor + (row < item.rows ? row : item.rows - 1) / item.group;
    };
    __syncthreads(); // all warps have left the item before this one
    fetch<ATTEND_THREADS>(tiles.queries, D, [&](int r) -> const kv_t* {
        const uint32_t row = item.first_row + r;
        return row < item.rows ? args.queries + row_start<D>(item, args.heads, row) : nullptr;
    });
    fetch_cache(tiles.keys, args.keys, 0);

    Rows<D> rows = {};
    const uint32_t warp_row = item.first_row + warp_id() * WARP_ROWS;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        rows.max[i / 2][i % 2] = LOWEST;
        rows.position[i / 2][i % 2] = position_of(warp_row + 8 * i + lane_id() / 4);
    }
    const uint32_t seen_first = position_of(warp_row), seen_last = position_of(warp_row + WARP_ROWS - 1);
    const uint32_t last = position_of(item.first_row + ATTEND_ROWS - 1);
    const float scale = LOG2_E / (D == 64 ? 8.0f : 11.313708498984761f);
    for (uint32_t first = 0; first <= last; first += ATTEND_KEYS) {
        const bool active = warp_row < item.rows && first <= seen_last;
        Scores scores;
        cp_async_wait<0>();
        __syncthreads(); // K is here, V is no longer read
        fetch_cache(tiles.values, args.values, first);
        if (active) score(scores, tiles);
        cp_async_wait<0>();
        __syncthreads(); // V is here, K is no longer read
        if (first + ATTEND_KEYS <= last) fetch_cache(tiles.keys, args.keys, first + ATTEND_KEYS);
        if (!active) continue;
        if (first + ATTEND_KEYS > seen_first + 1) mask(scores, rows, first);
        soften(scores, rows, scale);
        add_values(rows, scores, tiles);
    }
    store_rows(args, item, rows, tiles);
}

template <class W, int D> __device__ void attend_prefill(const AttendPrefill<W>& args) {
    auto& tiles = *dynamic_shared<AttendTiles<D>>();
    grid_dependency_wait();
    grid_dependency_launch();
    Item item;
    item.group = args.heads / args.kv_heads;
    item.rows = args.tokens * item.group;
    const uint32_t strips = (item.rows + ATTEND_ROWS - 1) / ATTEND_ROWS;
    for (uint32_t i = blockIdx.x; i < strips * args.kv_heads; i += gridDim.x) {
        item.kv_head = i % args.kv_heads;
        item.first_row = (strips - 1 - i / args.kv_heads) * ATTEND_ROWS;
        attend_item<W, D>(args, item, tiles);
    }
}

extern "C" __global__ void __launch_bounds__(128) attend_prefill_bf16_d64(AttendPrefill<bf16> args) { attend_prefill<bf16, 64>(args); }
extern "C" __global__ void __launch_bounds__(128) attend_prefill_bf16_d128(AttendPrefill<bf16> args) { attend_prefill<bf16, 128>(args); }
extern "C" __global__ void __launch_bounds__(128) attend_prefill_f16_d64(AttendPrefill<f16> args) { attend_prefill<f16, 64>(args); }
extern "C" __global__ void __launch_bounds__(128) attend_prefill_f16_d128(AttendPrefill<f16> args) { attend_prefill<f16, 128>(args); }
