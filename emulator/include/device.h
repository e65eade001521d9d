// CUDA C++ as g++ sees it: included before every kernel. What kernels may use without lib/ptx.cuh;
// __shared__, __constant__ and __device__ are src/dialect.cpp's.
#pragma once
#include "emulator.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <tuple>
#include <type_traits>

#define __CUDACC__ 1
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
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

template <class T>
EMULATOR_ACCESSOR T vector(Index index) {
    return T{index.x, index.y, index.z};
}

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

template <class T>
T& shared(const void* key, size_t alignment = 1) {
    return *static_cast<T*>(
        shared_variable(key, sizeof(T), alignment < alignof(T) ? alignof(T) : alignment));
}
template <class T>
T& dynamic_shared() {
    return *static_cast<T*>(dynamic_shared_memory());
}
}  // namespace emulator

#define threadIdx (emulator::vector<uint3>(emulator::thread_index()))
#define blockIdx (emulator::vector<uint3>(emulator::block_index()))
#define blockDim (emulator::vector<dim3>(emulator::block_dim()))
#define gridDim (emulator::vector<dim3>(emulator::grid_dim()))

#include "cuda_vectors.h"
#include "cuda_math.h"
#include "cuda_warp.h"
#include "cuda_atomics.h"
