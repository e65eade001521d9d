//! What the blocks of all ranks that choose a token tell each other, over each other's memory: keys,
//! sums, counts. What is told travels as the number after it, so that a slot which is not 0 is its own
//! flag. One rank is no special case: its blocks tell each other through the slots, too.
//!
//! There are three sets of slots, for three rounds that follow each other, and they are used as those
//! of all_reduce.cu are: in round r a rank stores into set r % 3 of all, itself included, empties its
//! own set (r - 1) % 3, and fences before it ends. Every rank's round ends only when it has heard of all
//! blocks' best tokens, whatever else it has waited for: this is the exchange from which it follows,
//! as it is proved there, that whoever stores into a set finds it empty.
#pragma once

#include "lib/select.cuh"

constexpr uint32_t MOST_RANKS = 8;
constexpr uint32_t WIDE_BINS = 64; // of a rank: half a temperature each
constexpr uint32_t PATIENCE = 128; // looks at a slot for each at the host's word
constexpr uint64_t GAVE_UP = ~0ull; // heard instead of a number: the host wants the wait to end

struct Board {
    uint64_t* own; // this rank's slots
    const uint64_t* addresses; // [world + 1] of all ranks' slots, and of the host's word
    uint32_t world, rank;
    uint32_t blocks; // B: room for the blocks of a rank
    uint32_t room; // M: room for the tokens that a rank lists
    uint32_t round; // modulo 3

    // Where in a set is what: [world, B] first tokens of the blocks' shares; [world, B] weights of
    // the shares; [world, 64] sums of wide bins; [world] numbers of listed tokens; the drawn token;
    // [world, M] keys of listed tokens.
    __device__ uint32_t sums() const { return world * blocks; }
    __device__ uint32_t wide() const { return 2 * world * blocks; }
    __device__ uint32_t counts() const { return wide() + world * WIDE_BINS; }
    __device__ uint32_t drawn() const { return counts() + world; }
    __device__ uint32_t list() const { return drawn() + 1; }
    __device__ uint64_t set(uint32_t r) const {
        return r % 3 * (list() + uint64_t(world) * room);
    }

    // The round's set of a rank.
    __device__ uint64_t* of(uint32_t peer) const {
        uint64_t* const slots =
            peer == rank ? own : reinterpret_cast<uint64_t*>(addresses[peer]);
        return slots + set(round);
    }

    __device__ void store(uint32_t peer, uint32_t at, uint64_t v) const {
        store_relaxed_system(of(peer) + at, v + 1);
    }

    // Tells all ranks; the whole block does.
    __device__ void tell(uint32_t at, uint64_t v) const {
        if (threadIdx.x < world) store(threadIdx.x, at, v);
    }

    // What ranks tell each other is in the word itself; the fences here are for one GPU's blocks.
    // Tells all of the block's share, and `nothing` for the blocks that there might have been. What the
    // block has read or written comes before what others of its rank do when they have heard.
    __device__ void tell_share(uint32_t from, uint64_t v, uint64_t nothing) const {
        fence_gpu();
        for (uint32_t block = blockIdx.x; block < blocks; block += gridDim.x)
            tell(from + rank * blocks + block, block == blockIdx.x ? v : nothing);
    }

    // The sum of what is told in `rows` slots, `stride` apart, once all of it is; or GAVE_UP.
    __device__ uint64_t wait(uint32_t at, uint32_t rows = 1, uint32_t stride = 0) const {
        const uint64_t* const slots = own + set(round) + at;
        for (uint32_t looks = 1;; looks++) {
            uint64_t sum = 0;
            bool all = true;
#pragma unroll
            for (uint32_t row = 0; row < MOST_RANKS; row++) {
                if (row >= rows) continue;
                const uint64_t v = load_relaxed_system(slots + row * stride);
                all = all && v != 0;
                sum += v - 1;
            }
            if (all) return sum;
            if (world > 1 && looks % PATIENCE == 0) {
                const uint64_t word = addresses[world];
                if (load_relaxed_system(reinterpret_cast<const uint32_t*>(word)) != 0)
                    return GAVE_UP;
            }
            nanosleep(20);
        }
    }

    // Each of the first `count` threads waits for a sum as above, the others have `v` already. False,
    // for the whole block, where the wait was given up.
    __device__ bool hear(uint64_t& v, Exchange& exchange, uint32_t count, uint32_t from,
                         uint32_t rows = 1, uint32_t stride = 0) const {
        const bool waits = threadIdx.x < count;
        if (waits) v = wait(from + threadIdx.x, rows, stride);
        fence_gpu();
        return block_min(waits && v == GAVE_UP ? 0 : 1, exchange) != 0;
    }

    // Empties the set of the round before, in which ranks have listed up to `listed` tokens.
    __device__ void empty_last(uint32_t listed) const {
        uint64_t* const last = own + set(round + 2);
        const uint32_t begin = blockIdx.x * THREADS + threadIdx.x, stride = gridDim.x * THREADS;
        for (uint32_t i = begin; i < list(); i += stride) store_relaxed_system(last + i, 0);
        for (uint32_t peer = 0; peer < world; peer++)
            for (uint32_t i = begin; i < listed; i += stride)
                store_relaxed_system(last + list() + uint64_t(peer) * room + i, 0);
    }
};
