//! Every instruction that C++ has no word for, one function each. The only file with asm.
#pragma once

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

// Global memory, 16 bytes at 16-byte aligned addresses.

// A cache policy: all of it is the first to leave the L2 cache. This is what ptxas makes of
// createpolicy.fractional.L2::evict_first with 1.0 for every architecture; as an instruction it
// would cost registers.
constexpr uint64_t EVICT_FIRST = 0x12f0000000000000;

// What nothing writes while the kernel runs and nothing reads again soon: weights. They pass by the
// L1 cache, and through the L2 cache without displacing activations or what is prefetched. Zeros
// instead where not `valid` (nothing is read then).
__device__ inline uint4 load_stream(const void* p, bool valid) {
    uint4 r;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0;\n"
                 "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
                 "@p ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.u32 "
                 "{%0, %1, %2, %3}, [%4], %6; }"
                 : "=&r"(r.x), "=&r"(r.y), "=&r"(r.z), "=&r"(r.w)
                 : "l"(p), "r"(uint32_t(valid)), "l"(EVICT_FIRST));
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

__device__ inline uint32_t load_acquire_gpu(const uint32_t* p) {
    uint32_t r;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
    return r;
}

__device__ inline void store_release_gpu(uint32_t* p, uint32_t v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// For a host that looks on.
__device__ inline void store_release_system(uint64_t* p, uint64_t v) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}

// Between GPUs, and with the host. A vector is four accesses of a word each, in any order: whoever
// reads it may see some of the words new and others old.

__device__ inline uint32_t load_relaxed_system(const uint32_t* p) {
    uint32_t r;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
    return r;
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

// Hopper's own (sm_90a).

// Barriers in shared memory, which count arrivals and bytes. A phase ends when as many threads have
// arrived as the barrier was made for and all bytes that they expect have come; phases are numbered
// by parity, from 0.

__device__ inline uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

// Lets the copy engine know of barriers made before.
__device__ inline void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
}

// The same, and the phase does not end before so many bytes have come.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

// Returns when the last phase of this parity has ended; that before the first has parity 1.
__device__ inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile("{ .reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again; }" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

// What this thread wrote to shared memory before, the tensor cores and the copy engine see after.
__device__ inline void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Has the copy engine bring a box of a matrix, from (row, column) on, whose bytes `barrier` counts.
// What lies outside of the matrix is zeros, and counts. Rows of 128 bytes follow each other, and the
// 16-byte chunk c of a row lies at place c ^ (bits 7-9 of the row's address).
__device__ inline void copy_box(void* shared, const TensorMap& map, uint32_t row, uint32_t column,
                                uint64_t* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(shared)),
                 "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
                 : "memory");
}

// Products of a warpgroup, four warps of which the first has a number divisible by four. They are
// done on the side: from wgmma_fence until wgmma_wait their sums may not be touched, and what they
// read may not be written.

// From `shared` on 16 columns of a matrix as copy_box leaves it: rows of 128 bytes, eight of which
// begin at a multiple of 1024. PTX ISA, matrix descriptor: address / 16; stride from eight rows to
// the next eight / 16 from bit 32 on; 1 in bits 62-63, a swizzle over 128 bytes. The leading
// dimension's stride, from bit 16 on, has no meaning then.
__device__ inline uint64_t matrix_descriptor(const void* shared) {
    return uint64_t(shared_address(shared) >> 4 & 0x3fff) | uint64_t(1) << 16 |
           uint64_t(1024 / 16) << 32 | uint64_t(1) << 62;
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most N of the warpgroup's groups are under way.
template <int N> __device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// d = a b^T, or d += a b^T. a: [64, 16], b: [256, 16], d: [64, 256], of which d[j] are the 8 columns
// from 8 j on as mma_m16n8k16 has them, for the 16 rows of each of the four warps.
template <class T>
__device__ void wgmma_m64n256k16(float (&d)[32][4], uint64_t a, uint64_t b, bool accumulate);

#define FOUR(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 1), FOUR(i + 2), FOUR(i + 3)
#define WGMMA(T, NAME)                                                                             \
    template <>                                                                                    \
    __device__ inline void wgmma_m64n256k16<T>(float (&d)[32][4], uint64_t a, uint64_t b,          \
                                               bool accumulate) {                                  \
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %130, 0;\n"                                   \
                     "wgmma.mma_async.sync.aligned.m64n256k16.f32." NAME "." NAME " "              \
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "                    \
                     "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "           \
                     "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, "           \
                     "%39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "           \
                     "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, "           \
                     "%65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "           \
                     "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, "           \
                     "%91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, "       \
                     "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "\
                     "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "         \
                     "%128, %129, p, 1, 1, 0, 0; }"                                                \
                     : SIXTEEN(0), SIXTEEN(4), SIXTEEN(8), SIXTEEN(12), SIXTEEN(16), SIXTEEN(20),  \
                       SIXTEEN(24), SIXTEEN(28)                                                    \
                     : "l"(a), "l"(b), "r"(uint32_t(accumulate)));                                 \
    }
WGMMA(f16, "f16")
WGMMA(bf16, "bf16")
#undef WGMMA
#undef SIXTEEN
#undef FOUR

// Registers of a thread from here on, for all of a warpgroup: N is a multiple of 8.
template <int N> __device__ inline void give_up_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
