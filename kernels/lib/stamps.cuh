//! When a block of a decode kernel does what, by its multiprocessor's clock. It is there only where
//! STAMPS is defined, which scripts/gpu/stamps.py does in a copy of the kernels: a program without
//! it has no instruction of it. src/device/cuda/trace.rs has the memory.
#pragma once

#include "lib/shared.cuh"
#include "lib/trace.cuh"

enum class Moment : uint32_t {
    Begins,  // it asks for its first weights
    Waited,  // the kernels before have ended
    Staged,  // x is there
    Lets,    // its first warp lets the next kernel begin
    Ends,    // its first warp has nothing left to do
};

#ifdef STAMPS

// After the word that tells the op: the records' capacity, their number, and the records.
constexpr uint32_t MOMENTS = 5, RECORD = 2 + MOMENTS; // words of 64 bits

struct Stamps {
    uint64_t at[MOMENTS];
};

__device__ inline Stamps& stamps() {
    SHARED(Stamps, stamps);
    return stamps;
}

// The first time counts.
__device__ inline void stamp(Moment moment) {
    if (threadIdx.x != 0) return;
    if (moment == Moment::Begins)
        for (uint64_t& at : stamps().at) at = 0;
    uint64_t& at = stamps().at[uint32_t(moment)];
    if (at == 0) at = clock_cycles();
}

// Record: the op's place; multiprocessor and block; the moments.
__device__ inline void keep_stamps(const Trace& trace) {
    stamp(Moment::Ends);
    if (threadIdx.x != 0) return;
    uint64_t* const words = trace.word + 1;
    const uint64_t number = atomic_add_acq_rel_gpu(reinterpret_cast<uint32_t*>(words + 1), 1);
    if (number >= words[0]) return;
    uint64_t* const record = words + 2 + number * RECORD;
    record[0] = trace.place;
    record[1] = uint64_t(multiprocessor()) << 32 | blockIdx.x;
    for (uint32_t i = 0; i < MOMENTS; i++) record[2 + i] = stamps().at[i];
}

#else

__device__ inline void stamp(Moment) {}
__device__ inline void keep_stamps(const Trace&) {}

#endif
