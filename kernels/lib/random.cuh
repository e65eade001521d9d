//! Random bits without state: Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy
//! as 1, 2, 3").
#pragma once

#include "lib/types.cuh"

// The 128 bits at (number, stream) in the sequence of `seed`.
__device__ inline uint4 philox(uint64_t seed, uint64_t number, uint32_t stream) {
    uint4 counter = {uint32_t(number), uint32_t(number >> 32), stream, 0};
    uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t a = uint64_t(0xD2511F53u) * counter.x;
        const uint64_t b = uint64_t(0xCD9E8D57u) * counter.z;
        counter = {uint32_t(b >> 32) ^ counter.y ^ key[0], uint32_t(b),
                   uint32_t(a >> 32) ^ counter.w ^ key[1], uint32_t(a)};
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return counter;
}
