//! A ring of four stages in shared memory, which one thread of a block's first warpgroup has
//! TMA fill and the eight warps of the other two empty.
#pragma once
#include "lib/ptx_hopper.cuh"

constexpr int HOPPER_STAGES = 4;
constexpr uint32_t CONSUMERS = 256; // threads of the last two warpgroups
constexpr uint32_t SLICE = 64;      // columns of a box: rows of 128 bytes, swizzled (copy_box)

struct Barriers {
    uint64_t full[HOPPER_STAGES], empty[HOPPER_STAGES];
};

// By one thread; fence_mbarrier_init is to follow.
__device__ inline void init(Barriers& barriers) {
    for (int stage = 0; stage < HOPPER_STAGES; stage++) {
        mbarrier_init(&barriers.full[stage], 1);
        mbarrier_init(&barriers.empty[stage], CONSUMERS / 32);
    }
}

// Where in the ring a role is, and the parity of that round.
struct Turn {
    uint32_t stage, round;

    __device__ void next() {
        if (++stage == HOPPER_STAGES) stage = 0, round ^= 1;
    }
};
