//! attend_prefill_hopper: causal attention of many tokens on Hopper's tensor cores.
//!
//! What attend_prefill.cu computes, in the structure of FlashAttention-3 (Shah et al., 2024,
//! arXiv:2407.08608). An item of work is 128 tokens of one query head. One thread of the first
//! warpgroup loads by TMA the item's queries and, through a ring of four stages, tiles of 128
//! positions of keys and values in the order in which they are used: K0, K1, V0, K2, V1, and so on.
//! Each of the other two warpgroups has 64 tokens and all their sums: nothing passes between them.
//!
//! A step begins S = Q K^T of the next tile and O = O + P V of this one, both by wgmma, P from the
//! registers where the scores were; softmax of S comes while O is still in flight. The warpgroups
//! alternate in issuing their wgmma (barriers 1 and 2: ping-pong), so that while one is at its
//! softmax the tensor cores work for the other. Registers go where the sums are.
//!
//! The query heads of a KV head are not packed into the rows of a tile: 128 tokens of one head see
//! as many positions, and read as many tiles, as 32 tokens of four. They are neighbours in the
//! order of items, so that their tiles come from the L2 cache. A box is then rows and columns of a
//! matrix [T, H D] or [B S, G D], whatever the number of heads. Items go longest first, forwards and
//! backwards over the blocks in turn: what the first block had more of in one round it has less of
//! in the next.
//!
//! Whole tiles are brought: zeros from past the cache's end, and from past the sequence
//! whatever lies there. Scores of such positions are hidden as those of all that come after a token.
//! Their values are overwritten with zeros: a weight of 0 times NaN would not be 0.
//!
//! **Same bits everywhere.** Tiles begin at multiples of 128 from position 0, which every token
//! sees, and a tile that a token may not see changes none of its sums (attend_prefill.cu): neither
//! the grid nor the chunks of a prompt change a bit of a token's result.
//!
//! Architectures: sm_90a
//! Grid: any; one block an SM. Block: 384. Dynamic shared memory: five tiles of 256 D bytes, and
//! 1024 bytes to align them.
#include "lib/convert.cuh"
#include "lib/math.cuh"
#include "lib/ring.cuh"
#include "lib/shared.cuh"
#include "lib/trace.cuh"

template <class W> struct AttendPrefillHopper {
    TensorMap queries;         // [T, H D] rotated: boxes of 128 rows
    TensorMap keys;            // [B S, G D] the layer's cache: boxes of 128 rows
    TensorMap values;          // [B S, G D] boxes of 128 rows
    const uint32_t* positions; // [1] of the first token
    const uint32_t* sequences; // [1] whose part of the cache they see
    Activation<W>* y;          // [T, H, D]
    uint32_t tokens;           // T
    uint32_t heads;            // H
    uint32_t kv_heads;         // G
    uint32_t context;          // S
    Trace trace;
};

constexpr uint32_t ROWS = 128;  // of a tile: tokens of an item, or positions
constexpr uint32_t CLEARED = 3; // a barrier of both warpgroups of consumers
constexpr float LOWEST = -3.402823466e38f; // so that masked weights are exactly 0

// A tile as boxes of 64 columns (copy_box), one after the other.
template <int D> struct Panels {
    kv_t columns[D / SLICE][ROWS * SLICE];
};
template <int D> struct AttendTiles {
    Panels<D> queries, ring[HOPPER_STAGES];
};
struct AttendBarriers {
    Barriers ring;
    uint64_t queries_full, queries_empty;
};

struct Item {
    uint32_t token, head; // first of the 128 tokens
    uint32_t tiles;       // that any of them sees
};

// What a warp sums for its 16 tokens. A lane has rows g and g + 8, where g = lane / 4.
template <int D> struct State {
    float out[D / 8][4]; // fragments C: sums of weight times value
    float max[2];        // of the scores so far
    float sum[2];        // of the weights so far: this lane's columns only
    float shrink[2];     // what this tile's maximum makes of what was summed before
};
using Scores = float[ROWS / 8][4];      // fragments C
using Weights = uint32_t[ROWS / 16][4]; // fragments A

template <class W, class Each>
__device__ void for_each_item(const AttendPrefillHopper<W>& args, Each each) {
    const uint32_t position = args.positions[0], strips = (args.tokens + ROWS - 1) / ROWS;
    bool backwards = false;
    for (uint32_t first = 0; first < strips * args.heads; first += gridDim.x) {
        const uint32_t i = first + (backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        backwards = !backwards;
        if (i >= strips * args.heads) continue;
        const uint32_t token = (strips - 1 - i / args.heads) * ROWS;
        const uint32_t end = position + min(token + ROWS, args.tokens);
        each(Item{token, i % args.heads, (end + ROWS - 1) / ROWS});
    }
}

// Has all tiles of all of the block's items brought. By one thread.
template <class W, int D>
__device__ void fill_ring(const AttendPrefillHopper<W>& args, AttendTiles<D>& tiles,
                          AttendBarriers& barriers) {
    const auto bring = [](Panels<D>& to, const TensorMap& from, uint32_t row, uint32_t head,
                          uint64_t* full) {
        mbarrier_arrive_expect(full, sizeof(Panels<D>));
        for (uint32_t i = 0; i < D / SLICE; i++)
            copy_box(to.columns[i], from, row, head * D + i * SLICE, full);
    };
    Turn turn = {0, 0};
    const uint32_t cached = args.sequences[0] * args.context;
    const auto bring_next = [&](const TensorMap& from, uint32_t tile, uint32_t kv_head) {
        mbarrier_wait(&barriers.ring.empty[turn.stage], turn.round ^ 1);
        bring(tiles.ring[turn.stage], from, cached + tile * ROWS, kv_head,
              &barriers.ring.full[turn.stage]);
        turn.next();
    };
    uint32_t round = 0;
    for_each_item(args, [&](const Item& item) {
        const uint32_t kv_head = item.head / (args.heads / args.kv_heads);
        bring_next(args.keys, 0, kv_head);
        mbarrier_wait(&barriers.queries_empty, round ^ 1);
        bring(tiles.queries, args.queries, item.token, item.head, &barriers.queries_full);
        round ^= 1;
#pragma unroll 1
        for (uint32_t tile = 1; tile < item.tiles; tile++) {
            bring_next(args.keys, tile, kv_head);
            bring_next(args.values, tile - 1, kv_head);
        }
        bring_next(args.values, item.tiles - 1, kv_head);
    });
}

// Between these two a warpgroup issues its wgmma; the other one then may.
__device__ inline void begin_turn() { named_barrier_sync(warp_id() / 4, CONSUMERS); }
__device__ inline void end_turn() { named_barrier_arrive(3 - warp_id() / 4, CONSUMERS); }

// Begins S = Q K^T for the warpgroup's tokens.
template <int D>
__device__ void begin_scores(Scores& scores, const Panels<D>& queries, const Panels<D>& keys) {
    const uint32_t first = (warp_id() / 4 - 1) * 64;
#pragma unroll
    for (uint32_t k = 0; k < D; k += 16) {
        const kv_t* q = queries.columns[k / SLICE] + first * SLICE + k % SLICE;
        const kv_t* key = keys.columns[k / SLICE] + k % SLICE;
        wgmma_m64n128k16<f16>(scores, matrix_descriptor(q), matrix_descriptor(key), k > 0);
    }
    wgmma_commit();
}

// Begins O = O + P V.
template <int D>
__device__ void begin_values(State<D>& state, const Weights& weights, const Panels<D>& values) {
#pragma unroll
    for (uint32_t k = 0; k < ROWS; k += 16)
        wgmma_rs_m64k16(state.out, weights[k / 16],
                        transposed_descriptor(values.columns[0] + k * SLICE,
                                              sizeof values.columns[0]));
    wgmma_commit();
}

// Hides the positions that come after a token's own. `seen`: how many of the tile's first row sees.
__device__ inline void mask(Scores& scores, int32_t seen) {
    seen += int32_t(lane_id() / 4) - int32_t(lane_id() % 4 * 2);
#pragma unroll
    for (int n = 0; n < int(ROWS / 8); n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (8 * (n - i / 2) + i % 2 >= seen) scores[n][i] = LOWEST;
}

// Turns scores into weights relative to the new maximum. `scale`: log2(e) / sqrt(D).
template <int D> __device__ void soften(Scores& scores, State<D>& state, float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = state.max[half];
#pragma unroll
        for (int n = 0; n < int(ROWS / 8); n++)
            max = fmaxf(max, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        max = fmaxf(max, shfl_xor(max, 1));
        max = fmaxf(max, shfl_xor(max, 2));
        state.shrink[half] = exp2_approx((state.max[half] - max) * scale);
        state.max[half] = max;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < int(ROWS / 8); n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                scores[n][i] = exp2_approx(fmaf(scores[n][i], scale, -max * scale));
                sum += scores[n][i];
            }
        state.sum[half] = state.sum[half] * state.shrink[half] + sum;
    }
}

// Two fragments C of scores side by side are one fragment A.
__device__ inline void round_weights(Weights& weights, const Scores& scores) {
#pragma unroll
    for (int k = 0; k < int(ROWS / 16); k++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float* pair = &scores[2 * k + r / 2][r % 2 * 2];
            weights[k][r] = pack<kv_t>(pair[0], pair[1]);
        }
}

// Zeros in the rows from `first` on, for the tensor cores to see. By both warpgroups.
template <int D> __device__ void clear_rows(Panels<D>& values, uint32_t first) {
    constexpr uint32_t CHUNKS = SLICE / 8;
    const uint32_t mine = threadIdx.x % CONSUMERS;
    for (auto& columns : values.columns)
        for (uint32_t i = first * CHUNKS + mine; i < ROWS * CHUNKS; i += CONSUMERS)
            reinterpret_cast<uint4*>(columns)[i] = {};
    fence_async_proxy();
    named_barrier_sync(CLEARED, CONSUMERS);
}

// Of each of four fragments lane t of four has two neighbours of a row's eight; afterwards it has
// all eight of fragment t.
__device__ inline void gather_fragment(uint32_t (&words)[4]) {
#pragma unroll
    for (int apart = 1; apart < 4; apart *= 2) {
        const bool upper = lane_id() & apart;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & apart) continue;
            uint32_t &low = words[i], &high = words[i + apart];
            const uint32_t other = shfl_xor(upper ? low : high, apart);
            (upper ? low : high) = other;
        }
    }
}

// y = O / sum for the warp's tokens, of which the first is given.
template <class W, int D>
__device__ void store_rows(const AttendPrefillHopper<W>& args, State<D>& state, uint32_t token,
                           uint32_t head) {
    token += lane_id() / 4;
#pragma unroll
    for (int half = 0; half < 2; half++, token += 8) {
        float sum = state.sum[half];
        sum += shfl_xor(sum, 1);
        sum += shfl_xor(sum, 2);
        const float normalise = __fdividef(1.0f, sum); // the sum is 1 or more
        Activation<W>* const row = args.y + (uint64_t(token) * args.heads + head) * D;
#pragma unroll
        for (int n = 0; n < D / 8; n += 4) {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* pair = &state.out[n + i][2 * half];
                words[i] = pack<W>(pair[0] * normalise, pair[1] * normalise);
            }
            gather_fragment(words);
            if (token < args.tokens)
                store16(row + (n + lane_id() % 4) * 8, {words[0], words[1], words[2], words[3]});
        }
    }
}

// One item in one of the last two warpgroups. `turn`, `round`: where in the ring it begins, and the
// parity of its queries.
template <class W, int D>
__device__ void attend_item(const AttendPrefillHopper<W>& args, const Item& item,
                            AttendTiles<D>& tiles, AttendBarriers& barriers, Turn& turn,
                            uint32_t round) {
    const auto next = [&] {
        const uint32_t stage = turn.stage;
        mbarrier_wait(&barriers.ring.full[stage], turn.round);
        turn.next();
        return stage;
    };
    const auto release = [](uint64_t* empty) {
        if (lane_id() == 0) mbarrier_arrive(empty);
    };
    const uint32_t position = args.positions[0], token = item.token + (warp_id() - 4) * 16;
    State<D> state = {};
    state.max[0] = state.max[1] = LOWEST;
    Scores scores;
    Weights weights;
    const auto weigh = [&](uint32_t first) {
        hold(scores);
        const int32_t seen = int32_t(position + token - first) + 1;
        if (seen < int32_t(ROWS)) mask(scores, seen);
        soften<D>(scores, state, LOG2_E / (D == 64 ? 8.0f : 11.313708498984761f));
        hold(scores);
    };
    // Products with V that are under way end here, not before the softmax that hides them, and what
    // they have used is free.
    uint64_t* used = nullptr;
    const auto settle = [&] {
        wgmma_wait<0>();
        hold(state.out);
        if (used) release(used);
#pragma unroll
        for (auto& sums : state.out)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i] *= state.shrink[i / 2];
        round_weights(weights, scores);
        hold(state.out);
        hold(weights);
    };

    mbarrier_wait(&barriers.queries_full, round);
    const uint32_t keys = next();
    begin_turn();
    wgmma_fence();
    begin_scores<D>(scores, tiles.queries, tiles.ring[keys]);
    end_turn();
    wgmma_wait<0>();
    release(&barriers.ring.empty[keys]);
    weigh(0);
#pragma unroll 1
    for (uint32_t tile = 1; tile < item.tiles; tile++) {
        const uint32_t keys = next(), values = next();
        settle();
        begin_turn();
        wgmma_fence();
        begin_scores<D>(scores, tiles.queries, tiles.ring[keys]);
        begin_values<D>(state, weights, tiles.ring[values]);
        end_turn();
        wgmma_wait<1>();
        release(&barriers.ring.empty[keys]);
        used = &barriers.ring.empty[values];
        weigh(tile * ROWS);
    }
    release(&barriers.queries_empty);
    const uint32_t values = next(), left = position + args.tokens - (item.tiles - 1) * ROWS;
    if (left < ROWS) clear_rows(tiles.ring[values], left);
    settle();
    begin_turn();
    wgmma_fence();
    begin_values<D>(state, weights, tiles.ring[values]);
    end_turn();
    wgmma_wait<0>();
    hold(state.out);
    release(&barriers.ring.empty[values]);
    store_rows<W, D>(args, state, token, item.head);
}

template <class W, int D>
__device__ void attend_prefill_hopper(const AttendPrefillHopper<W>& args) {
    SHARED(AttendBarriers, barriers);
    // The swizzle goes by address: tiles begin at multiples of 1024.
    uint8_t* const shared = dynamic_shared<uint8_t>();
    auto& tiles = *reinterpret_cast<AttendTiles<D>*>(shared + -uint64_t(shared) % 1024);
    if (threadIdx.x == 0) {
        init(barriers.ring);
        mbarrier_init(&barriers.queries_full, 1);
        mbarrier_init(&barriers.queries_empty, CONSUMERS / 32);
        fence_mbarrier_init();
    }
    __syncthreads();
    grid_dependency_wait();
    begun(args.trace);
    grid_dependency_launch();
    if (warp_id() < 4) {
        give_up_registers<24>();
        if (threadIdx.x == 0) fill_ring<W, D>(args, tiles, barriers);
    } else {
        take_registers<240>();
        const bool first = warp_id() < 8;
        if (!first) end_turn(); // the first warpgroup begins
        Turn turn = {0, 0};
        uint32_t round = 0;
        for_each_item(args, [&](const Item& item) {
            attend_item<W, D>(args, item, tiles, barriers, turn, round);
            round ^= 1;
        });
        if (first) begin_turn(); // as many as the other has ended
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) attend_prefill_hopper_bf16_d64(const __grid_constant__ AttendPrefillHopper<bf16> args) { attend_prefill_hopper<bf16, 64>(args); }
extern "C" __global__ void __launch_bounds__(384, 1) attend_prefill_hopper_bf16_d128(const __grid_constant__ AttendPrefillHopper<bf16> args) { attend_prefill_hopper<bf16, 128>(args); }
extern "C" __global__ void __launch_bounds__(384, 1) attend_prefill_hopper_f16_d64(const __grid_constant__ AttendPrefillHopper<f16> args) { attend_prefill_hopper<f16, 64>(args); }
extern "C" __global__ void __launch_bounds__(384, 1) attend_prefill_hopper_f16_d128(const __grid_constant__ AttendPrefillHopper<f16> args) { attend_prefill_hopper<f16, 128>(args); }
