//! attend_decode: one token's attention over the cache.
//!
//! A block is one team of query heads on one split of the cache. A team is up to eight query heads
//! that share a KV head, so that keys and values are read once for all of them; split s of the
//! grid's takes every gridDim.y-th tile of 64 positions (128 where D = 64) from s on. The grid is sized by the
//! capacity of the cache and never changes: how far the cache is filled is read on the device, and
//! a split without tiles leaves at once. Long and short caches alike spread over all splits there
//! are.
//!
//! The products run on the tensor cores, which lets a few warps keep up with the memory and needs
//! no shuffles: a warp's tile of scores is [16, 16], queries by positions. Rows 0-7 are the queries
//! rounded to f16, rows 8-15 what the rounding left over (22 bits in all); the weights of the
//! second product are split alike. The order of an inner dimension is free as long as both factors
//! keep it, which is how fragments come straight from 16-byte loads of rows of the cache, without
//! going through shared memory: see the two products below.
//!
//! A warp asks for its next keys once the present ones are used, and then for the values, and has
//! the tile after those brought into the L2 cache: 16 KiB (D = 128) a warp, 64 KiB an SM with one
//! block of four warps; as much with eight warps where D = 64. One block is enough, and leaves registers for a block of the output
//! projection, which begins as soon as no more than a tile is to be asked for - at once, where the
//! cache is short - and fetches its weights while this kernel is busy with itself.
//!
//! Before it waits for the kernel that appends the newest position, a block has its first tiles
//! brought into the L2 cache. It may be wrong about how far the cache is filled: no result depends
//! on that.
//!
//! Each warp carries a softmax of its own over what it has seen: maximum, sum and weighted values.
//! They are merged in a fixed order, first over the warps, then over the splits by the block that
//! finishes last, as a ticket tells it. More than 16 splits are merged in groups of 16 first, by the
//! last block of each group. Either takes one trip to memory.
//!
//! Grid: (G * ceil(H / G / 8), splits), up to 256 splits. Good: as many as give a block an SM, no more
//! than ceil(S / 64), or 128 where D = 64.
#include "lib/convert.cuh"
#include "lib/flow.cuh"
#include "lib/math.cuh"
#include "lib/reduce.cuh"
#include "lib/shared.cuh"
#include "lib/trace.cuh"

// y = softmax(q . keys / sqrt(D)) values, over the sequence's positions up to the token's
struct AttendDecode {
    const float* q; // [1, H, D]
    const kv_t* keys; // [B, S, G, D]
    const kv_t* values; // [B, S, G, D]
    const uint32_t* positions; // [R] of the tokens, R = 1
    const uint32_t* sequences; // [R] whose part of the cache they see
    float* y; // [1, H, D]
    float* partial; // [splits, H, D] weighted values of each split, not normalised
    float* statistics; // [splits, H, 2] maximum and sum of each split's softmax
    uint32_t* tickets; // [teams, 17] zeros before and after
    uint32_t heads; // H
    uint32_t kv_heads; // G
    uint32_t context; // S
    uint32_t flow; // lib/flow.cuh
    Trace trace;
};

constexpr uint32_t WARP_TILE = 16; // positions a warp takes at once
constexpr uint32_t TEAM = 8; // query heads
constexpr uint32_t GROUP = 16; // splits that are merged at once

// Of a block: as many as have 32 KiB in flight.
template <int D> constexpr uint32_t WARPS = D == 64 ? 8 : 4;

// The queries of one team as the first factor of the scores, in units of log2. Lane (g, t) holds
// head g; in step k of 16 its "columns" 2t, 2t+1, 2t+8, 2t+9 are the four dimensions from 32 (k /
// 2) + 8 t + 4 (k % 2) on: the half of a 16-byte piece.
template <int D> struct Queries {
    uint32_t a[D / 16][4];

    __device__ Queries(const float* q, bool valid) {
        const float scale = LOG2_E / sqrtf(float(D));
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            float4 v = {};
            if (valid) v = load4(q + 32 * (k / 2) + 8 * (lane_id() % 4) + 4 * (k % 2));
            split(v.x * scale, v.y * scale, a[k][0], a[k][1]);
            split(v.z * scale, v.w * scale, a[k][2], a[k][3]);
        }
    }

    // Two numbers as f16, and what the rounding left over.
    __device__ static void split(float low, float high, uint32_t& rounded, uint32_t& rest) {
        rounded = pack<f16>(low, high);
        const float2 kept = unpack<f16>(rounded);
        rest = pack<f16>(low - kept.x, high - kept.y);
    }
};

// A warp's softmax in the making. Lane (g, t) holds head g: `sum` over the lane's own positions,
// and in values[n] the dimensions of output tile n, columns 2t and 2t+1, twice: for the weights as
// rounded and for what the rounding left over.
template <int D> struct Softmax {
    float maximum = -infinity();
    float sum = 0;
    float values[D / 8][4] = {};
};

// A warp's keys of one tile: positions g and 8 + g, 16 bytes at dimensions 32 i + 8 t.
template <int D> struct Keys {
    uint4 rows[2][D / 32];

    __device__ void load(const kv_t* keys, uint32_t first, uint32_t end, uint32_t row) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const uint32_t position = first + 8 * n + lane_id() / 4;
            const kv_t* from = keys + uint64_t(position) * row + 8 * (lane_id() % 4);
#pragma unroll
            for (int i = 0; i < D / 32; i++) rows[n][i] = load_once(from + 32 * i, position < end);
        }
    }
};

// A warp's values of one tile: positions 2t, 2t+1, 2t+8, 2t+9, 16 bytes at dimensions 64 i + 8 g.
template <int D> struct Values {
    uint4 rows[4][D / 64];

    __device__ void load(const kv_t* values, uint32_t first, uint32_t end, uint32_t row) {
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const uint32_t position = first + 2 * (lane_id() % 4) + p % 2 + p / 2 * 8;
            const kv_t* from = values + uint64_t(position) * row + lane_id() / 4 * 8;
#pragma unroll
            for (int i = 0; i < D / 64; i++) rows[p][i] = load_once(from + 64 * i, position < end);
        }
    }
};

// Brings a warp's keys and values of one tile into the L2 cache, a line of 128 bytes at a time.
template <int D>
__device__ inline void prefetch_tile(const kv_t* keys, const kv_t* values, uint32_t first,
                                     uint32_t end, uint32_t row) {
    constexpr uint32_t PIECES = D / 64, LINES = WARP_TILE * PIECES; // of a row, of the keys
#pragma unroll
    for (uint32_t i = 0; i < 2 * LINES; i += 32) {
        const uint32_t line = (i + lane_id()) % LINES, position = first + line / PIECES;
        const kv_t* from = i + lane_id() < LINES ? keys : values;
        if (position < end) prefetch_l2(from + uint64_t(position) * row + line % PIECES * 64);
    }
}

// The weights of a tile's positions, 2^(score - maximum), as the first factor of the second
// product; the state is brought to the new maximum. Two score tiles of 8 positions: the lane's are
// 2t and 2t+1.
template <int D>
__device__ inline void weigh(const Queries<D>& queries, const Keys<D>& keys, uint32_t first,
                             uint32_t end, Softmax<D>& state, uint32_t (&weights)[4]) {
    float scores[4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        float d[4] = {};
#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            const uint4& piece = keys.rows[n][i];
            mma_m16n8k16<f16>(d, queries.a[2 * i], {piece.x, piece.y});
            mma_m16n8k16<f16>(d, queries.a[2 * i + 1], {piece.z, piece.w});
        }
        const uint32_t position = first + 8 * n + 2 * (lane_id() % 4);
        scores[2 * n] = position < end ? d[0] + d[2] : -infinity();
        scores[2 * n + 1] = position + 1 < end ? d[1] + d[3] : -infinity();
    }
    float maximum = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
    maximum = fmaxf(maximum, shfl_xor(maximum, 1));
    maximum = fmaxf(fmaxf(maximum, shfl_xor(maximum, 2)), state.maximum);
    const float shrink = exp2_approx(state.maximum - maximum);
    state.maximum = maximum;
    state.sum *= shrink;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        for (float& v : state.values[n]) v *= shrink;
#pragma unroll
    for (float& score : scores) {
        score = exp2_approx(score - maximum);
        state.sum += score;
    }
    Queries<D>::split(scores[0], scores[1], weights[0], weights[1]);
    Queries<D>::split(scores[2], scores[3], weights[2], weights[3]);
}

__device__ inline uint32_t word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// values += weights . rows. Lane (g, t) has eight neighbouring dimensions of its positions; in
// output tile n = 8 i + j column g is dimension 64 i + 8 g + j.
template <int D>
__device__ inline void add_values(const uint32_t (&weights)[4], const Values<D>& values,
                                  Softmax<D>& state) {
#pragma unroll
    for (int i = 0; i < D / 64; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const auto pair = [&](int p) {
                const uint32_t low = word(values.rows[p][i], j / 2);
                const uint32_t high = word(values.rows[p + 1][i], j / 2);
                return byte_permute(low, high, j % 2 ? 0x7632 : 0x5410);
            };
            mma_m16n8k16<f16>(state.values[8 * i + j], weights, {pair(0), pair(2)});
        }
    }
}

// Several softmaxes over different positions as one. values: four dimensions of one head
struct Merged {
    float maximum = -infinity();
    float sum = 0;
    float4 values = {};

    __device__ void add(float shrink, const float4& part) {
        values.x = fmaf(shrink, part.x, values.x);
        values.y = fmaf(shrink, part.y, values.y);
        values.z = fmaf(shrink, part.z, values.z);
        values.w = fmaf(shrink, part.w, values.w);
    }

    __device__ void store_normalised(float* y) const {
        store4(y, {values.x / sum, values.y / sum, values.z / sum, values.w / sum});
    }
};

// What the block's warps have found, in shared memory.
template <int D> struct Found {
    float values[WARPS<D>][TEAM][D];
    float statistics[WARPS<D>][TEAM][2];

    // Where a head has dimensions d to d + 3. Swizzled: eight lanes that store at once have two heads
    // and d in steps of 16; in order, they would meet in 8 of the 32 banks.
    __device__ static uint32_t place(uint32_t head, uint32_t d) {
        return d ^ 4 * head ^ (d / 4 & 8);
    }

    __device__ void store(const Softmax<D>& state) {
        const uint32_t head = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int n = 0; n < D / 8; n += 4) {
            float* const to = values[warp_id()][head];
            const uint32_t d = 64 * (n / 8) + 16 * t + n % 8;
#pragma unroll
            for (int half = 0; half < 2; half++) { // columns 2t, then 2t + 1
                const auto sum = [&](int i) {
                    const float(&v)[4] = state.values[n + i];
                    return v[half] + v[half + 2];
                };
                store4(to + place(head, d + 8 * half), {sum(0), sum(1), sum(2), sum(3)});
            }
        }
        if (t == 0) {
            statistics[warp_id()][head][0] = state.maximum;
            statistics[warp_id()][head][1] = state.sum;
        }
    }

    // All warps' for four dimensions of a head.
    __device__ Merged merged(uint32_t head, uint32_t d) const {
        Merged all;
#pragma unroll
        for (uint32_t warp = 0; warp < WARPS<D>; warp++)
            all.maximum = fmaxf(all.maximum, statistics[warp][head][0]);
#pragma unroll
        for (uint32_t warp = 0; warp < WARPS<D>; warp++) {
            const float shrink = exp2_approx(statistics[warp][head][0] - all.maximum);
            all.sum = fmaf(shrink, statistics[warp][head][1], all.sum);
            all.add(shrink, load4(&values[warp][head][place(head, d)]));
        }
        return all;
    }
};

// The heads of a block, and where its splits leave what they have found.
template <int D> struct Team {
    const AttendDecode& args;
    uint32_t first_head, heads;

    // Four dimensions of a head each: `find(h, d)` by whole warps, and `store(h, d, merged)` of what it
    // found, which no lane does before all have read.
    template <class Find, class Store> __device__ void each_piece(Find find, Store store) const {
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < (heads * (D / 4) + 31) / 32 * 32; i += 32 * WARPS<D>) {
            const uint32_t h = i / (D / 4), d = i % (D / 4) * 4;
            const Merged merged = find(h < heads ? h : heads - 1, d);
            __syncwarp();
            if (h < heads) store(h, d, merged);
        }
    }

    __device__ uint64_t slot(uint32_t split, uint32_t h) const {
        return uint64_t(split) * args.heads + first_head + h;
    }

    __device__ void store(uint32_t split, uint32_t h, uint32_t d, const Merged& merged) const {
        store4(args.partial + slot(split, h) * D + d, merged.values);
        if (d != 0) return;
        args.statistics[slot(split, h) * 2] = merged.maximum;
        args.statistics[slot(split, h) * 2 + 1] = merged.sum;
    }

    // `count` splits, `step` apart from `first` on, as one. A trip to memory brings all: of 16 lanes
    // each takes one split's statistics, of which the others hear by shuffles.
    __device__ Merged merged(uint32_t first, uint32_t step, uint32_t count, uint32_t h,
                             uint32_t d) const {
        const uint32_t own = lane_id() % GROUP, others = lane_id() - own;
        Merged all;
        float sum = 0;
        if (own < count) {
            const float* statistics = args.statistics + slot(first + own * step, h) * 2;
            all.maximum = statistics[0], sum = statistics[1];
        }
        float4 parts[GROUP] = {};
#pragma unroll
        for (uint32_t i = 0; i < GROUP; i++)
            if (i < count) parts[i] = load4(args.partial + slot(first + i * step, h) * D + d);
        const float maximum = all.maximum;
#pragma unroll
        for (uint32_t mask = GROUP / 2; mask > 0; mask /= 2)
            all.maximum = fmaxf(all.maximum, shfl_xor(all.maximum, mask));
        const float shrink = exp2_approx(maximum - all.maximum);
        all.sum = shrink * sum;
#pragma unroll
        for (uint32_t mask = GROUP / 2; mask > 0; mask /= 2) all.sum += shfl_xor(all.sum, mask);
#pragma unroll
        for (uint32_t i = 0; i < GROUP; i++) all.add(shfl(shrink, others + i), parts[i]);
        return all;
    }
};

// Whether the block is the last one of `count` to come here. It then sees what the others have written,
// and puts the ticket back to 0.
__device__ inline bool is_last(uint32_t* ticket, uint32_t count) {
    SHARED(bool, last);
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomic_add_acq_rel_gpu(ticket, 1) == count - 1;
        if (last) *ticket = 0;
    }
    __syncthreads();
    return last;
}

template <int D> __device__ inline void attend(const AttendDecode& args) {
    const uint32_t group = args.heads / args.kv_heads, teams = (group + TEAM - 1) / TEAM;
    const uint32_t kv_head = blockIdx.x / teams, from = blockIdx.x % teams * TEAM;
    const uint32_t first_head = kv_head * group + from;
    const uint32_t row = args.kv_heads * D;
    const uint64_t cached = uint64_t(*args.sequences) * args.context * row + kv_head * D;
    const kv_t* const cached_keys = args.keys + cached;
    const kv_t* const cached_values = args.values + cached;
    constexpr uint32_t TILE = WARPS<D> * WARP_TILE;
    const uint32_t split = blockIdx.y, stride = gridDim.y * TILE;
    uint32_t first = split * TILE + warp_id() * WARP_TILE;
    const uint32_t known = *args.positions; // or what it was a token ago
    prefetch_tile<D>(cached_keys, cached_values, first, known, row);
    prefetch_tile<D>(cached_keys, cached_values, first + stride, known, row);
    if (first + 2 * stride > known || Flow{args.flow}.at_once()) let_next_begin();
    grid_dependency_wait();
    begun(args.trace);
    stamp(Moment::Waited);
    const uint32_t end = *args.positions + 1, tiles = (end + TILE - 1) / TILE;
    const uint32_t splits = tiles < gridDim.y ? tiles : gridDim.y;
    if (blockIdx.y >= splits) return;

    Keys<D> keys;
    Values<D> values;
    keys.load(cached_keys, first, end, row);
    values.load(cached_values, first, end, row);
    const uint32_t head = lane_id() / 4;
    const Queries<D> queries(args.q + (first_head + head) * D, from + head < group);
    stamp(Moment::Staged);
    Softmax<D> state;
    while (first < end) {
        const uint32_t next = first + stride;
        if (next + stride >= end) let_next_begin();
        prefetch_tile<D>(cached_keys, cached_values, next + stride, end, row);
        uint32_t weights[4];
        weigh(queries, keys, first, end, state, weights);
        keys.load(cached_keys, next, end, row);
        add_values(weights, values, state);
        values.load(cached_values, next, end, row);
        first = next;
    }
    state.sum += shfl_xor(state.sum, 1);
    state.sum += shfl_xor(state.sum, 2);
    SHARED(Found<D>, found);
    found.store(state);
    __syncthreads();

    // Counted here: over the loop it would take a register too many.
    const uint32_t rest = group - first_head % group, team_heads = rest < TEAM ? rest : TEAM;
    const Team<D> team = {args, first_head, team_heads};
    const auto finish = [&](uint32_t h, uint32_t d, const Merged& merged) {
        merged.store_normalised(args.y + (first_head + h) * D + d);
    };
    const auto of_warps = [&](uint32_t h, uint32_t d) { return found.merged(h, d); };
    if (splits == 1) return team.each_piece(of_warps, finish);
    team.each_piece(of_warps, [&](uint32_t h, uint32_t d, const Merged& merged) {
        team.store(split, h, d, merged);
    });

    uint32_t* const tickets = args.tickets + blockIdx.x * (1 + GROUP);
    const uint32_t groups = (splits + GROUP - 1) / GROUP;
    const uint32_t step = groups > 1 ? GROUP : 1, count = groups > 1 ? groups : splits;
    if (groups > 1) {
        const uint32_t group = split / GROUP, begin = group * GROUP;
        const uint32_t members = splits - begin < GROUP ? splits - begin : GROUP;
        if (!is_last(&tickets[1 + group], members)) return;
        const auto of_group = [&](uint32_t h, uint32_t d) {
            return team.merged(begin, 1, members, h, d);
        };
        team.each_piece(of_group, [&](uint32_t h, uint32_t d, const Merged& merged) {
            team.store(begin, h, d, merged);
        });
    }
    if (!is_last(&tickets[0], count)) return;
    const auto of_all = [&](uint32_t h, uint32_t d) { return team.merged(0, step, count, h, d); };
    team.each_piece(of_all, finish);
}

template <int D> __device__ void attend_decode(const AttendDecode& args) {
    stamp(Moment::Begins);
    attend<D>(args);
    keep_stamps(args.trace);
}

extern "C" __global__ void __launch_bounds__(256, 2) attend_decode_d64(AttendDecode args) { attend_decode<64>(args); }
extern "C" __global__ void __launch_bounds__(128) attend_decode_d128(AttendDecode args) { attend_decode<128>(args); }
