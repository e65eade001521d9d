//! Every instruction that C++ has no word for, one function each; those that only Hopper has are in
//! lib/ptx_hopper.cuh, loads and stores of global memory in lib/ptx_global.cuh. No other file has asm.
#pragma once

#include "lib/ptx_global.cuh"
#include "lib/types.cuh"

// Lanes and warps of blocks that are one-dimensional.

__device__ inline uint32_t lane_id() { return threadIdx.x % 32; }

__device__ inline uint32_t warp_id() { return threadIdx.x / 32; }

// All 32 lanes take part in shuffles and votes.

__device__ inline uint32_t shfl(uint32_t v, uint32_t lane) {
    uint32_t r;
    asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, -1;" : "=r"(r) : "r"(v), "r"(lane));
    return r;
}

__device__ inline uint32_t shfl_xor(uint32_t v, uint32_t lane_mask) {
    uint32_t r;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=r"(r) : "r"(v), "r"(lane_mask));
    return r;
}

// From the lane `delta` below; lanes under `delta` keep their own.
__device__ inline uint32_t shfl_up(uint32_t v, uint32_t delta) {
    uint32_t r;
    asm volatile("shfl.sync.up.b32 %0, %1, %2, 0, -1;" : "=r"(r) : "r"(v), "r"(delta));
    return r;
}

__device__ inline float shfl(float v, uint32_t lane) {
    float r;
    asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, -1;" : "=f"(r) : "f"(v), "r"(lane));
    return r;
}

__device__ inline float shfl_xor(float v, uint32_t lane_mask) {
    float r;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(r) : "f"(v), "r"(lane_mask));
    return r;
}

// One bit a lane.
__device__ inline uint32_t ballot(bool predicate) {
    uint32_t r;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; vote.sync.ballot.b32 %0, p, -1; }"
                 : "=r"(r)
                 : "r"(uint32_t(predicate)));
    return r;
}

__device__ inline bool vote_any(bool predicate) { return ballot(predicate) != 0; }

__device__ inline bool vote_all(bool predicate) { return ballot(!predicate) == 0; }

// Numbers. Conversions to 16 bits round to nearest even.

__device__ inline uint32_t float_bits(float v) {
    uint32_t r;
    asm("mov.b32 %0, %1;" : "=r"(r) : "f"(v));
    return r;
}

__device__ inline float bits_float(uint32_t v) {
    float r;
    asm("mov.b32 %0, %1;" : "=f"(r) : "r"(v));
    return r;
}

__device__ inline float f16_to_f32(uint16_t v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
}

__device__ inline uint16_t f32_to_f16(float v) {
    uint16_t r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}

__device__ inline uint16_t f32_to_bf16(float v) {
    uint16_t r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}

// Two at once, `low` in the low half.
__device__ inline uint32_t pack_f16(float low, float high) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

__device__ inline uint32_t pack_bf16(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// 2^v within 2 units in the last place; 2^-inf = 0.
__device__ inline float exp2_approx(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

// Bytes of the pair (low, high), numbered 0-7 from the low end, by the nibbles of `selector`.
__device__ inline uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(selector));
    return r;
}

// A product and a sum that the compiler does not fuse with others: the same bits on every machine.

__device__ inline float multiply(float a, float b) {
    float r;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

__device__ inline float add(float a, float b) {
    float r;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

// The high 64 bits of a product.
__device__ inline uint64_t multiply_high(uint64_t a, uint64_t b) {
    uint64_t r;
    asm("mul.hi.u64 %0, %1, %2;" : "=l"(r) : "l"(a), "l"(b));
    return r;
}

// Global to shared memory, asynchronously; zeros instead where not `valid` (nothing is read then).

__device__ inline void cp_async16(void* shared, const void* global, bool valid) {
    uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
                 "r"(valid ? 16u : 0u)
                 : "memory");
}

__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's groups are under way.
template <int N> __device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Tensor cores. Lane l of a fragment: g = l / 4, t = l % 4; a register holds two neighbours of the
// inner dimension, the first in its low half.

// Four 8x8 matrices of 16-bit elements; lanes 8m..8m+7 give the row addresses of matrix m.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
    uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// The same, each matrix transposed.
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row) {
    uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// Two matrices; lanes 0-15 give the addresses.
__device__ inline void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row) {
    uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(from)
                 : "memory");
}

__device__ inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared_row) {
    uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(from)
                 : "memory");
}

// d += a b. a: [16, 16], b: [16, 8], d: [16, 8]
// a0 = (g, 2t..), a1 = (g+8, 2t..), a2 = (g, 2t+8..), a3 = (g+8, 2t+8..); b0 = (2t.., g),
// b1 = (2t+8.., g); d0, d1 = (g, 2t..2t+1), d2, d3 = (g+8, 2t..2t+1)
template <class T>
__device__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ inline void mma_m16n8k16<f16>(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ inline void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4],
                                          const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Programmatic dependent launch (no effect in a kernel that was not launched so).

// Returns when the kernels before this one have ended and what they wrote is visible.
__device__ inline void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// This block does not mind if the next kernel begins.
__device__ inline void grid_dependency_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Between blocks. Each returns what was there before.

__device__ inline uint32_t atomic_add_acq_rel_gpu(uint32_t* p, uint32_t v) {
    uint32_t r;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(r)
                 : "l"(p), "r"(v)
                 : "memory");
    return r;
}

__device__ inline uint32_t atomic_add_release_gpu(uint32_t* p, uint32_t v) {
    uint32_t r;
    asm volatile("atom.release.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(r)
                 : "l"(p), "r"(v)
                 : "memory");
    return r;
}

// Ordering nothing else.
__device__ inline uint32_t atomic_add_gpu(uint32_t* p, uint32_t v) {
    uint32_t r;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(r)
                 : "l"(p), "r"(v)
                 : "memory");
    return r;
}

__device__ inline uint64_t atomic_add_gpu(uint64_t* p, uint64_t v) {
    uint64_t r;
    asm volatile("atom.relaxed.gpu.global.add.u64 %0, [%1], %2;"
                 : "=l"(r)
                 : "l"(p), "l"(v)
                 : "memory");
    return r;
}

// Adds to a number in memory, rounded to nearest; subnormal numbers are zeros. Nobody waits for it.
__device__ inline void reduce_add_gpu(float* p, float v) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(p), "f"(v) : "memory");
}

__device__ inline uint32_t load_acquire_gpu(const uint32_t* p) {
    uint32_t r;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
    return r;
}

__device__ inline void store_release_gpu(uint32_t* p, uint32_t v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// Between GPUs, and with the host. A vector is four accesses of a word each, in any order: whoever
// reads it may see some of the words new and others old.

__device__ inline uint32_t load_relaxed_system(const uint32_t* p) {
    uint32_t r;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
    return r;
}

__device__ inline uint64_t load_relaxed_system(const uint64_t* p) {
    uint64_t r;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(r) : "l"(p) : "memory");
    return r;
}

__device__ inline void store_relaxed_system(uint64_t* p, uint64_t v) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}

__device__ inline uint4 load16_relaxed_system(const void* p) {
    uint4 r;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p)
                 : "memory");
    return r;
}

__device__ inline void store16_relaxed_system(void* p, uint4 v) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

__device__ inline void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

__device__ inline void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Of the multiprocessor that the thread runs on, and its number.
__device__ inline uint64_t clock_cycles() {
    uint64_t r;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(r)::"memory");
    return r;
}
__device__ inline uint32_t multiprocessor() {
    uint32_t r;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(r));
    return r;
}

__device__ inline void nanosleep(uint32_t ns) { asm volatile("nanosleep.u32 %0;" ::"r"(ns)); }

// Within a block, in shared memory, ordering nothing else. Returns what was there before.
__device__ inline uint32_t atomic_add_shared(uint32_t* shared, uint32_t v) {
    uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared)), r;
    asm volatile("atom.relaxed.cta.shared.add.u32 %0, [%1], %2;"
                 : "=r"(r)
                 : "r"(to), "r"(v)
                 : "memory");
    return r;
}
