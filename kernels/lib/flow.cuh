//! When a decode kernel asks for what: choices of the host's (`Tuning` in src/op.rs) that change no
//! bit of a result.
#pragma once

#include "lib/ptx.cuh"
#include "lib/stamps.cuh"

enum class Prefetch : uint32_t {
    Lines, // a line of 128 bytes a lane, all at once
    Paced, // the same, each as soon as the one before has come
    Bulk,  // one instruction a row; as Lines on GPUs older than Hopper
};

// The word that the host gives: from its low end a byte for the depth, a byte for the way, a bit.
struct Flow {
    uint32_t word;

    // Pieces that are brought into the L2 cache ahead.
    __device__ uint32_t depth() const { return word & 0xff; }
    __device__ Prefetch prefetch() const { return Prefetch(word >> 8 & 0xff); }
    // Whether the next kernel may begin at once, and not only when this one's last weights have been
    // asked for.
    __device__ bool at_once() const { return word >> 16 & 1; }
};

// The blocks of the next kernel may begin when all of this one have come here, or have ended.
__device__ inline void let_next_begin() {
    stamp(Moment::Lets);
    grid_dependency_launch();
}
