// CUDA C++ as g++ sees it: included before every kernel. Only what kernels may use without
// lib/ptx.cuh.
#pragma once
#include "emulator.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__
#define __CUDA_ARCH_FEAT_SM90_ALL 1

namespace emulator {
// Kept out of line and unchecked when sanitized: the index of a thread is the scheduler's own
// memory.
#define EMULATOR_ACCESSOR __attribute__((no_sanitize("thread", "address", "undefined"))) inline
EMULATOR_ACCESSOR Index thread_index() { return self->thread; }
EMULATOR_ACCESSOR Index block_index() { return self->block; }
EMULATOR_ACCESSOR Index block_dim() { return self->block_dim; }
EMULATOR_ACCESSOR Index grid_dim() { return self->grid_dim; }

// From a pointer to a kernel to what the driver needs to launch it.
template <auto function>
struct Trampoline;
template <class... A, void (*function)(A...)>
struct Trampoline<function> {
    template <size_t... i>
    static void call(void* const* arguments, std::index_sequence<i...>) {
        function(*static_cast<A*>(arguments[i])...);
    }
    static void run(void* const* arguments) { call(arguments, std::index_sequence_for<A...>{}); }
    static constexpr size_t sizes[] = {sizeof(A)..., 0};
    static constexpr size_t alignments[] = {alignof(A)..., 0};
    static constexpr Kernel describe(const char* name, int max_threads) {
        return {name, run, sizeof...(A), sizes, alignments, max_threads};
    }
};
inline constexpr int first(int value, ...) { return value; }
}  // namespace emulator

// One for each export, appended to the source: EMULATOR_KERNEL(name, launch bounds)
#define EMULATOR_KERNEL(name, ...)                            \
    extern "C" const emulator::Kernel emulator_kernel_##name; \
    const emulator::Kernel emulator_kernel_##name =           \
        emulator::Trampoline<&name>::describe(#name, emulator::first(__VA_ARGS__));

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_dim())
#define gridDim (emulator::grid_dim())

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) int2 {
    int32_t x, y;
};
struct alignas(16) int4 {
    int32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncthreads(emulator::Site site = emulator::here()) { emulator::sync_threads(site); }
inline void __syncwarp(unsigned = ~0u, emulator::Site site = emulator::here()) {
    emulator::sync_warp(site);
}

// Device functions that C++ does not have, or names differently.
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
template <class To, class From>
inline To emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
inline uint32_t __float_as_uint(float x) { return emulator_bits<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return emulator_bits<float>(x); }
inline int32_t __float_as_int(float x) { return emulator_bits<int32_t>(x); }
inline float __int_as_float(int32_t x) { return emulator_bits<float>(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(uint32_t x) { return __builtin_ffs(int(x)); }
template <class T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
    return a < b ? b : a;
}
