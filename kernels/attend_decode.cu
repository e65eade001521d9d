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
//! going through shared memory: see lib/warp_attention.cuh.
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
#include "lib/warp_attention.cuh"

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

constexpr uint32_t TEAM = 8; // query heads
constexpr uint32_t GROUP = 16; // splits that are merged at once

// Of a block: as many as have 32 KiB in flight.
template <int D> constexpr uint32_t WARPS = D == 64 ? 8 : 4;

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
