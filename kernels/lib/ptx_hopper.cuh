//! The instructions that only Hopper has (sm_90a), one function each.
#pragma once
#include "lib/ptx.cuh"

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

// Lets TMA know of barriers made before.
__device__ inline void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
}

// The same, and the phase does not end before `bytes` have arrived.
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

// Barriers of some of a block's warps, numbered from 1 to 15: who waits goes on when `threads` have
// come, those that only arrive among them. Orders shared memory as __syncthreads does.

__device__ inline void named_barrier_sync(uint32_t number, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

__device__ inline void named_barrier_arrive(uint32_t number, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// What this thread wrote to shared memory before, the tensor cores and TMA see after.
__device__ inline void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Has TMA load a box of a matrix, from (row, column) on, whose bytes `barrier` counts.
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

// From `shared` on 16 rows of a matrix that lies in panels of 64 columns, each as copy_box leaves it
// and `panel_bytes` after the one before: for a product along its rows. PTX ISA, strides of N-major
// matrices: the leading dimension's from 64 columns to the next 64, the other from eight rows to the
// next eight.
__device__ inline uint64_t transposed_descriptor(const void* shared, uint32_t panel_bytes) {
    return uint64_t(shared_address(shared) >> 4 & 0x3fff) | uint64_t(panel_bytes >> 4) << 16 |
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

// The same for fewer columns. b: [128, 16], d: [64, 128]
template <class T>
__device__ void wgmma_m64n128k16(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate);

// d += a b of f16, with a in registers. a: [64, 16] as mma_m16n8k16 has it, for the 16 rows of each
// warp; b: [16, 64] or [16, 128] in rows of its own, by transposed_descriptor; d: [64, 64 or 128]
__device__ inline void wgmma_rs_m64k16(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b);
__device__ inline void wgmma_rs_m64k16(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b);

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

#define SUMS_32                                                                                    \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                      \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_64                                                                                    \
    SUMS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "   \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA(T, NAME)                                                                             \
    template <>                                                                                    \
    __device__ inline void wgmma_m64n128k16<T>(float (&d)[16][4], uint64_t a, uint64_t b,          \
                                               bool accumulate) {                                  \
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %66, 0;\n"                                    \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " " SUMS_64       \
                     "}, %64, %65, p, 1, 1, 0, 0; }"                                               \
                     : SIXTEEN(0), SIXTEEN(4), SIXTEEN(8), SIXTEEN(12)                             \
                     : "l"(a), "l"(b), "r"(uint32_t(accumulate)));                                 \
    }
WGMMA(f16, "f16")
WGMMA(bf16, "bf16")
#undef WGMMA
__device__ inline void wgmma_rs_m64k16(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " SUMS_32
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1; }"
                 : SIXTEEN(0), SIXTEEN(4)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void wgmma_rs_m64k16(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " SUMS_64
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1; }"
                 : SIXTEEN(0), SIXTEEN(4), SIXTEEN(8), SIXTEEN(12)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef SUMS_64
#undef SUMS_32
#undef SIXTEEN
#undef FOUR

// For the compiler alone, which does not know that products still write and read registers when it
// has passed the line that begins them: nothing that is done to these moves across.
template <int N> __device__ inline void hold(float (&v)[N][4]) {
#pragma unroll
    for (auto& each : v)
        asm volatile("" : "+f"(each[0]), "+f"(each[1]), "+f"(each[2]), "+f"(each[3])::"memory");
}
template <int N> __device__ inline void hold(uint32_t (&v)[N][4]) {
#pragma unroll
    for (auto& each : v)
        asm volatile("" : "+r"(each[0]), "+r"(each[1]), "+r"(each[2]), "+r"(each[3])::"memory");
}

// Registers of a thread from here on, for all of a warpgroup: N is a multiple of 8.
template <int N> __device__ inline void give_up_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
