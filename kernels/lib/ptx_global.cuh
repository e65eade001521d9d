//! Global memory, 16 bytes at 16-byte aligned addresses, and what is fetched ahead of its use.
#pragma once

#include "lib/types.cuh"

// A cache policy: all of it is the first to leave the L2 cache. This is what ptxas makes of
// createpolicy.fractional.L2::evict_first with 1.0 for every architecture; as an instruction it
// would cost registers.
constexpr uint64_t EVICT_FIRST = 0x12f0000000000000;

// What nothing writes while the kernel runs and nothing reads again soon: weights. They pass by the
// L1 cache, and through the L2 cache without displacing activations or what is prefetched. Zeros
// instead where not `valid` (nothing is read then).
__device__ inline uint4 load_stream(const void* p, bool valid) {
    uint4 r;
    asm volatile("{ .reg .pred p; .reg .b64 policy; setp.ne.u32 p, %5, 0;\n"
                 "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
                 "mov.b64 policy, %6;\n"
                 "@p ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.u32 "
                 "{%0, %1, %2, %3}, [%4], policy; }"
                 : "=&r"(r.x), "=&r"(r.y), "=&r"(r.z), "=&r"(r.w)
                 : "l"(p), "r"(uint32_t(valid)), "n"(EVICT_FIRST));
    return r;
}

// What earlier kernels wrote and nothing reads again soon: the KV cache. Zeros where not `valid`.
__device__ inline uint4 load_once(const void* p, bool valid) {
    uint4 r;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0;\n"
                 "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
                 "@p ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "=&r"(r.x), "=&r"(r.y), "=&r"(r.z), "=&r"(r.w)
                 : "l"(p), "r"(uint32_t(valid))
                 : "memory");
    return r;
}

__device__ inline uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }

// As one instruction: the compiler would take four for values that do not lie side by side.
__device__ inline void store16(void* p, uint4 v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}

// Brings the 128-byte line of `p` into the L2 cache. Any mapped address; no effect on memory.
__device__ inline void prefetch_l2(const void* p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// The same for `bytes` of them from `p` on, both multiples of 16, by one instruction where the GPU has
// one; by one thread.
__device__ inline void prefetch_l2_bulk(const void* p, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes));
#else
    for (uint32_t i = 0; i < bytes; i += 128) prefetch_l2(static_cast<const char*>(p) + i);
#endif
}

// Returns when the line of `p` has come, which nothing writes while the kernel runs.
__device__ inline void await_line(const void* p) {
    asm volatile("{ .reg .b32 r; .reg .pred p;\n"
                 "ld.global.nc.L1::no_allocate.b32 r, [%0];\n"
                 "setp.eq.u32 p, r, 0x7fc1dead;\n"
                 "@p nanosleep.u32 0; }" ::"l"(p));
}
