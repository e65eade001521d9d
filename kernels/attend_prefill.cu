//! attend_prefill: causal attention of T tokens over the cache, which holds their own rows already.
//!
//! Flash attention (Dao, 2023, arXiv:2307.08691): scores never leave registers. The query heads of
//! a KV head are packed: row r of a KV head's queries is token r / (H/G), head r % (H/G), so that
//! keys and values are fetched once for all heads that share them and short prompts fill their
//! tiles. An item of work is 128 such rows of one KV head; a block of 4 warps walks over items,
//! longest first, so that any grid will do. A warp owns 32 rows and all their sums: nothing passes
//! between warps.
//!
//! A turn takes the next 4096 / D positions of the cache, as many as registers hold scores for:
//!   wait for their K and V, barrier (so all have left the turn before), fetch the next turn's;
//!   S = Q K^T (f16 in, f32 sums);   softmax online;   O = O + P V (P rounded to f16)
//! so that a fetch has a whole turn of arithmetic, and a second block on the SM, to hide behind.
//!
//! exp(s / sqrt(D) - max) is exp2 of one fused multiply-add; the maximum and the sum are f32 and
//! the sum is of the unrounded weights. Position 0 is seen by every row and comes first, so the
//! running maximum is finite from the first turn on. Rows of the cache past the sequence are not
//! read: they are zeros in shared memory, and their weights are exactly 0. Warps take no part in
//! turns that none of their rows may see; only turns that cross the diagonal are masked. O is
//! divided by the sum in f32, rounded once to the weights' type - the output projection's input -
//! and leaves through the warp's own rows of Q's tile, as 16-byte stores.
//!
//! **Same bits everywhere.** Turns begin at multiples of 4096 / D from position 0, and a turn that
//! a row may not see changes none of its sums: a token's result depends neither on the grid nor on
//! the chunks in which a prompt is read.
//!
//! Grid: any; up to ceil(T H / G / 128) G blocks have work. Block: 128. Dynamic shared memory:
//! 256 D + 33 KB: 128 rows of Q, two turns of K and V (swizzled: lib/tile.cuh), what row is where.
#include "lib/convert.cuh"
#include "lib/math.cuh"
#include "lib/shared.cuh"
#include "lib/tile.cuh"
#include "lib/trace.cuh"

template <class W> struct AttendPrefill {
    const kv_t* queries;       // [T, H, D] rotated
    const kv_t* keys;          // [B, S, G, D] the layer's cache
    const kv_t* values;        // [B, S, G, D]
    const uint32_t* positions; // [1] of the first token
    const uint32_t* sequences; // [1] whose part of the cache they see
    Activation<W>* y;          // [T, H, D]
    uint32_t tokens;           // T
    uint32_t heads;            // H
    uint32_t kv_heads;         // G
    uint32_t context;          // S
    Trace trace;
};

constexpr int ATTEND_ROWS = 128, ATTEND_THREADS = 128;
template <int D> constexpr int KEYS = 4096 / D; // of a turn
constexpr float LOWEST = -3.402823466e38f; // so that masked weights are exactly 0
constexpr int WARP_ROWS = 32; // two fragments of 16, four rows a lane

// A packed row, found once an item: divisions are slow.
struct Row {
    uint32_t head;     // index of its head in [T, H]; NONE past the last row
    uint32_t position; // of its token; past the last row, that of the last row
};
constexpr uint32_t NONE = ~0u;

template <int D> struct Turn {
    Tile<kv_t, KEYS<D>, D> keys, values;
};
template <int D> struct AttendTiles {
    Tile<kv_t, ATTEND_ROWS, D> queries;
    Turn<D> turns[2];
    Row rows[ATTEND_ROWS];
};

// What a warp sums. A lane has rows g, g + 8 of both fragments, where g = lane / 4.
template <int D> struct State {
    float out[2][D / 8][4]; // fragments C: sums of weight times value
    float max[2][2];        // of the scores so far
    float sum[2][2];        // of the weights so far: this lane's columns only
};
template <int D> using Scores = float[2][KEYS<D> / 8][4];

template <class W>
__device__ Row find_row(const AttendPrefill<W>& args, uint32_t kv_head, uint32_t row,
                        uint32_t first) {
    const uint32_t group = args.heads / args.kv_heads, token = row / group;
    if (token >= args.tokens) return {NONE, first + args.tokens - 1};
    return {token * args.heads + kv_head * group + row % group, first + token};
}

// Begins to copy the item's queries; rows past the last one become zero.
template <int D> __device__ void fetch_queries(AttendTiles<D>& tiles, const kv_t* queries) {
    constexpr int CHUNKS = D / 8;
    const int column = threadIdx.x % CHUNKS;
#pragma unroll 2
    for (int row = threadIdx.x / CHUNKS; row < ATTEND_ROWS; row += ATTEND_THREADS / CHUNKS) {
        const uint32_t head = tiles.rows[row].head;
        const bool valid = head != NONE;
        const kv_t* source = valid ? queries + uint64_t(head) * D + column * 8 : queries;
        cp_async16(tiles.queries.chunk(row, column), source, valid);
    }
}

// S = Q K^T for the warp's rows.
template <int D>
__device__ void score(Scores<D>& scores, Tile<kv_t, ATTEND_ROWS, D>& queries,
                      Tile<kv_t, KEYS<D>, D>& keys) {
#pragma unroll
    for (auto& row : scores)
#pragma unroll
        for (auto& s : row) s[0] = s[1] = s[2] = s[3] = 0.0f;
#pragma unroll
    for (int column = 0; column < D / 8; column += 2) {
        uint32_t q[2][4];
        load_a(q[0], queries, warp_id() * WARP_ROWS, 0, column);
        load_a(q[1], queries, warp_id() * WARP_ROWS, 16, column);
#pragma unroll
        for (int n = 0; n < KEYS<D> / 8; n += 2) {
            uint32_t left[2], right[2];
            load_b(left, right, keys, 0, 8 * n, column);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                mma_m16n8k16<kv_t>(scores[i][n], q[i], left);
                mma_m16n8k16<kv_t>(scores[i][n + 1], q[i], right);
            }
        }
    }
}

// Hides the positions that come after a row's own; the keys begin at position `first`.
template <int D>
__device__ void mask(Scores<D>& scores, const Row (&rows)[ATTEND_ROWS], uint32_t first) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t row = warp_id() * WARP_ROWS + 16 * i + 8 * half + lane_id() / 4;
            const uint32_t last = rows[row].position;
#pragma unroll
            for (int n = 0; n < KEYS<D> / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++)
                    if (first + 8 * n + lane_id() % 4 * 2 + c > last)
                        scores[i][n][2 * half + c] = LOWEST;
        }
}

// Turns scores into weights relative to the new maximum and brings what was summed so far down to
// it. `scale`: log2(e) / sqrt(D).
template <int D> __device__ void soften(Scores<D>& scores, State<D>& state, float scale) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float max = state.max[i][half];
#pragma unroll
            for (int n = 0; n < KEYS<D> / 8; n++)
                max = fmaxf(max, fmaxf(scores[i][n][2 * half], scores[i][n][2 * half + 1]));
            max = fmaxf(max, shfl_xor(max, 1));
            max = fmaxf(max, shfl_xor(max, 2));
            const float shrink = exp2_approx((state.max[i][half] - max) * scale);
            const bool grown = vote_any(max > state.max[i][half]);
            state.max[i][half] = max;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS<D> / 8; n++)
#pragma unroll
                for (int c = 2 * half; c < 2 * half + 2; c++) {
                    scores[i][n][c] = exp2_approx(fmaf(scores[i][n][c], scale, -max * scale));
                    sum += scores[i][n][c];
                }
            state.sum[i][half] = state.sum[i][half] * shrink + sum;
            if (!grown) continue; // shrink is 1 in all lanes
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                state.out[i][n][2 * half] *= shrink;
                state.out[i][n][2 * half + 1] *= shrink;
            }
        }
}

// O = O + P V. Two fragments C of weights side by side are one fragment A.
template <int D>
__device__ void add_values(State<D>& state, const Scores<D>& weights,
                           Tile<kv_t, KEYS<D>, D>& values) {
#pragma unroll
    for (int k = 0; k < KEYS<D> / 16; k++) {
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
            load_b_trans(left, right, values, 16 * k, n);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                mma_m16n8k16<kv_t>(state.out[i][n], p[i], left);
                mma_m16n8k16<kv_t>(state.out[i][n + 1], p[i], right);
            }
        }
    }
}

// y = O / sum, through the warp's rows of Q's tile, which no other warp reads. A lane writes just
// the words that ldmatrix gave it, so there is no other lane to wait for either.
template <class W, int D>
__device__ void store_rows(Activation<W>* y, State<D>& state, AttendTiles<D>& tiles) {
    auto& staged = tiles.queries;
    const int lane = lane_id(), first = warp_id() * WARP_ROWS;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = state.sum[i][half];
            sum += shfl_xor(sum, 1);
            sum += shfl_xor(sum, 2);
            const float normalise = __fdividef(1.0f, sum); // the sum is 1 or more
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const float* pair = &state.out[i][n][2 * half];
                uint4* chunk = staged.chunk(first, 16 * i + 8 * half, lane / 4, n, 0);
                reinterpret_cast<uint32_t*>(chunk)[lane % 4] =
                    pack<W>(pair[0] * normalise, pair[1] * normalise);
            }
        }
    __syncwarp();
    constexpr int CHUNKS = D / 8;
#pragma unroll 2
    for (int i = lane; i < WARP_ROWS * CHUNKS; i += 32) {
        const int row = first + i / CHUNKS, column = i % CHUNKS;
        const uint32_t head = tiles.rows[row].head;
        if (head != NONE) store16(y + uint64_t(head) * D + column * 8, *staged.chunk(row, column));
    }
}

// Rows first_row.. + 128 of a KV head. All warps have left the item before this one.
template <class W, int D>
__device__ void attend_item(const AttendPrefill<W>& args, uint32_t kv_head, uint32_t first_row,
                            AttendTiles<D>& tiles) {
    const uint32_t position = args.positions[0], length = position + args.tokens;
    const uint32_t stride = args.kv_heads * D;
    const uint64_t cached = uint64_t(args.sequences[0]) * args.context;
    tiles.rows[threadIdx.x] = find_row(args, kv_head, first_row + threadIdx.x, position);
    __syncthreads();
    fetch_queries<D>(tiles, args.queries);
    const auto fetch_turn = [&](uint32_t first) {
        Turn<D>& turn = tiles.turns[first / KEYS<D> % 2];
        const uint64_t start = ((cached + first) * args.kv_heads + kv_head) * D;
        fetch<ATTEND_THREADS>(turn.keys, {args.keys + start}, stride, length - first, D);
        fetch<ATTEND_THREADS>(turn.values, {args.values + start}, stride, length - first, D);
        cp_async_commit();
    };
    fetch_turn(0);

    State<D> state = {};
#pragma unroll
    for (int i = 0; i < 4; i++) state.max[i / 2][i % 2] = LOWEST;
    const uint32_t last = tiles.rows[ATTEND_ROWS - 1].position;
    const float scale = LOG2_E / (D == 64 ? 8.0f : 11.313708498984761f);
#pragma unroll 1
    for (uint32_t first = 0; first <= last; first += KEYS<D>) {
        cp_async_wait<0>(); // this thread's part of the turn has come,
        __syncthreads();    // everyone's has, and all have left the turn before
        if (first + KEYS<D> <= last) fetch_turn(first + KEYS<D>);
        const Row top = tiles.rows[warp_id() * WARP_ROWS];
        const Row bottom = tiles.rows[warp_id() * WARP_ROWS + WARP_ROWS - 1];
        if (top.head == NONE || first > bottom.position) continue;
        Turn<D>& turn = tiles.turns[first / KEYS<D> % 2];
        Scores<D> scores;
        score<D>(scores, tiles.queries, turn.keys);
        if (first + KEYS<D> - 1 > top.position) mask<D>(scores, tiles.rows, first);
        soften<D>(scores, state, scale);
        add_values<D>(state, scores, turn.values);
    }
    store_rows<W, D>(args.y, state, tiles);
}

template <class W, int D> __device__ void attend_prefill(const AttendPrefill<W>& args) {
    auto& tiles = *dynamic_shared<AttendTiles<D>>();
    grid_dependency_wait();
    begun(args.trace);
    grid_dependency_launch();
    const uint32_t rows = args.tokens * (args.heads / args.kv_heads);
    const uint32_t strips = (rows + ATTEND_ROWS - 1) / ATTEND_ROWS;
    for (uint32_t i = blockIdx.x; i < strips * args.kv_heads; i += gridDim.x) {
        const uint32_t strip = strips - 1 - i / args.kv_heads;
        attend_item<W, D>(args, i % args.kv_heads, strip * ATTEND_ROWS, tiles);
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(128) attend_prefill_bf16_d64(AttendPrefill<bf16> args) { attend_prefill<bf16, 64>(args); }
extern "C" __global__ void __launch_bounds__(128) attend_prefill_bf16_d128(AttendPrefill<bf16> args) { attend_prefill<bf16, 128>(args); }
extern "C" __global__ void __launch_bounds__(128) attend_prefill_f16_d64(AttendPrefill<f16> args) { attend_prefill<f16, 64>(args); }
extern "C" __global__ void __launch_bounds__(128) attend_prefill_f16_d128(AttendPrefill<f16> args) { attend_prefill<f16, 128>(args); }
