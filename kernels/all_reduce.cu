//! all_reduce: the residual stream takes up a sum over all ranks.
//!
//! Where the ranks reach each other's memory, and for as much as a token has, the kernel also makes
//! the sum: each rank stores its part into slots of every other one, in vectors of 16 bytes, and
//! waits until the others' parts have come into its own. It then adds them up in the order of ranks,
//! starting from zero, so that all ranks get the same bits. The addition to the residual stream is
//! done on the way; the norm that follows is part of the next kernel anyhow. Every part travels once
//! and no flag travels after it: a word is there when it is not EMPTY. EMPTY is -0.0, and where a
//! rank's part has that it sends 0.0, which makes no difference to a sum that starts from zero.
//!
//! There are three sets of slots, for three rounds that follow each other. In round r a rank
//!   1. stores its part into set r % 3 of the others,
//!   2. empties its own set (r - 1) % 3, from which it has read in the round before,
//!   3. waits for the others' parts in its own set r % 3,
//!   4. fences, for the whole system.
//! Why no part is lost: a rank stores into set (r + 2) % 3 = (r - 1) % 3 of another in round r + 2.
//! By then its round r + 1 has ended, in which it saw the other's part (3) and fenced (4). That part
//! was stored after the other's round r had ended, hence after it emptied that set (2) and fenced
//! (4). So emptying comes before storing: a fence, a store, the load that sees it, a fence. And the
//! set's last readers, round r - 1 of the other, are behind it as well. A rank that is a round ahead
//! of another, which is all that can be, stores into a set that the other neither reads nor empties.
//! (2) and the next round's (1) may be of different threads, in kernels that follow each other: what a
//! thread has fenced is there for the whole system when the next kernel begins, so its stores have
//! no fence of their own. PTX's model, to the letter, would want one; each sum would wait for it.
//! The round is counted on the device: a graph needs no patching.
//!
//! All blocks run at once: no more than one a multiprocessor. Each stores all its parts before it
//! waits, and looks from time to time whether the host wants it to give up. The next kernels begin
//! when all do: they have weights to fetch.
#include "lib/convert.cuh"
#include "lib/trace.cuh"

// x = sum or x += sum, of all ranks' partial; partial = 0
struct AllReduce {
    float* partial; // [N] in, and zeros after: the rank's part; if `world` is 1, the sum
    float* x; // [N] in and out: the residual stream
    float* slots; // [3, world, M] scratch: what has come from the ranks, else EMPTY
    const uint64_t* addresses; // [world + 1] of all ranks' slots, and of a word: not 0 to give up
    uint32_t* rounds; // [3] the round modulo 3, N of the last one, blocks that are done with it
    uint32_t count; // N, a multiple of 4 if `world` is not 1
    uint32_t room; // M
    uint32_t world; // ranks, at most 8; 1: somebody else has made the sum
    uint32_t rank; // this one
    uint32_t residual; // 1: add to what x holds
    Trace trace;
};

constexpr uint32_t EMPTY = 1u << 31; // as a float, -0.0
constexpr uint32_t MOST_RANKS = 8;
constexpr uint32_t PATIENCE = 128; // looks at the slots for each at the host's word

__device__ inline void take_up(const AllReduce& args) {
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < args.count;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const float sum = args.partial[i];
        args.x[i] = args.residual ? args.x[i] + sum : sum;
        args.partial[i] = 0.0f;
    }
}

__device__ inline uint32_t not_empty(uint32_t word) { return word == EMPTY ? 0 : word; }

__device__ inline bool has_come(uint4 v) {
    return v.x != EMPTY && v.y != EMPTY && v.z != EMPTY && v.w != EMPTY;
}

// What all ranks have for a place, this one's `own`. `from` is the place in rank 0's slots.
__device__ inline void receive(const AllReduce& args, const float* from, uint4 own,
                               uint4 (&parts)[MOST_RANKS]) {
    const uint32_t* const gives_up = reinterpret_cast<const uint32_t*>(args.addresses[args.world]);
    for (uint32_t looks = 1;; looks++) {
        bool all = true;
#pragma unroll
        for (uint32_t rank = 0; rank < MOST_RANKS; rank++)
            if (rank < args.world)
                parts[rank] = rank == args.rank
                                  ? own
                                  : load16_relaxed_system(from + uint64_t(rank) * args.room);
#pragma unroll
        for (uint32_t rank = 0; rank < MOST_RANKS; rank++)
            if (rank < args.world && rank != args.rank) all = all && has_come(parts[rank]);
        if (all || (looks % PATIENCE == 0 && load_relaxed_system(gives_up) != 0)) return;
        nanosleep(20);
    }
}

__device__ inline void add_up(const AllReduce& args) {
    const uint32_t round = args.rounds[0], last_count = args.rounds[1];
    const uint32_t begin = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    const uint32_t stride = 4 * gridDim.x * blockDim.x;
    const uint64_t set = uint64_t(args.world) * args.room; // floats
    for (uint32_t i = begin; i < args.count; i += stride) {
        const uint4 own = load16(args.partial + i);
        const uint4 part = {not_empty(own.x), not_empty(own.y), not_empty(own.z), not_empty(own.w)};
        for (uint32_t step = 1; step < args.world; step++) {
            const uint32_t peer = (args.rank + step) % args.world; // not all to the same one at once
            float* const slots = reinterpret_cast<float*>(args.addresses[peer]);
            store16_relaxed_system(slots + round * set + uint64_t(args.rank) * args.room + i, part);
        }
    }
    float* const to_empty = args.slots + (round + 2) % 3 * set;
    for (uint32_t i = begin; i < last_count; i += stride)
        for (uint32_t rank = 0; rank < args.world; rank++)
            if (rank != args.rank)
                store16_relaxed_system(to_empty + uint64_t(rank) * args.room + i,
                                       {EMPTY, EMPTY, EMPTY, EMPTY});
    for (uint32_t i = begin; i < args.count; i += stride) {
        uint4 parts[MOST_RANKS];
        // Before the wait: this trip is over when the others' parts are here.
        const float4 held = args.residual ? load4(args.x + i) : float4{0.0f, 0.0f, 0.0f, 0.0f};
        receive(args, args.slots + round * set + i, load16(args.partial + i), parts);
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (uint32_t rank = 0; rank < MOST_RANKS; rank++) {
            if (rank >= args.world) continue;
            const uint4 part = parts[rank];
            const uint32_t words[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) sum[j] = add(sum[j], bits_float(words[j]));
        }
        if (args.residual)
            store4(args.x + i, {add(held.x, sum[0]), add(held.y, sum[1]), add(held.z, sum[2]),
                                add(held.w, sum[3])});
        else
            store4(args.x + i, {sum[0], sum[1], sum[2], sum[3]});
        store16(args.partial + i, {0, 0, 0, 0});
    }
    fence_system();
    __syncthreads();
    if (threadIdx.x != 0) return;
    if (atomic_add_acq_rel_gpu(&args.rounds[2], 1) != gridDim.x - 1) return;
    args.rounds[0] = (round + 1) % 3;
    args.rounds[1] = args.count;
    args.rounds[2] = 0;
}

__device__ inline void reduce(const AllReduce& args) {
    grid_dependency_launch();
    grid_dependency_wait();
    begun(args.trace);
    if (args.world == 1)
        take_up(args);
    else
        add_up(args);
}

extern "C" __global__ void __launch_bounds__(256, 1) all_reduce(AllReduce args) { reduce(args); }
