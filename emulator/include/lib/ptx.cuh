//! The functions of kernels/lib/ptx.cuh, in C++. Memory is touched here, inline, so that a
//! sanitizer sees the kernel's own line; everything that concerns more than one thread is in the
//! runtime.
#pragma once

#include "lib/types.cuh"

#define SITE emulator::Site site = emulator::here()

inline uint32_t lane_id() { return threadIdx.x % 32; }
inline uint32_t warp_id() { return threadIdx.x / 32; }

// Shuffles and votes.
inline uint32_t shfl(uint32_t v, uint32_t lane, SITE) {
    return emulator::shuffle(v, lane % 32, site);
}
inline uint32_t shfl_xor(uint32_t v, uint32_t lane_mask, SITE) {
    return emulator::shuffle(v, (lane_id() ^ lane_mask) % 32, site);
}
inline uint32_t shfl_up(uint32_t v, uint32_t delta, SITE) {
    return emulator::shuffle(v, lane_id() < delta ? lane_id() : lane_id() - delta, site);
}
inline float shfl(float v, uint32_t lane, SITE) {
    return __uint_as_float(emulator::shuffle(__float_as_uint(v), lane % 32, site));
}
inline float shfl_xor(float v, uint32_t lane_mask, SITE) {
    return __uint_as_float(
        emulator::shuffle(__float_as_uint(v), (lane_id() ^ lane_mask) % 32, site));
}
inline uint32_t ballot(bool predicate, SITE) { return emulator::ballot(predicate, site); }
inline bool vote_any(bool predicate, SITE) { return emulator::ballot(predicate, site) != 0; }
inline bool vote_all(bool predicate, SITE) { return emulator::ballot(!predicate, site) == 0; }

// Numbers.
inline uint32_t float_bits(float v) { return __float_as_uint(v); }
inline float bits_float(uint32_t v) { return __uint_as_float(v); }
inline float f16_to_f32(uint16_t v) { return float(emulator_bits<_Float16>(v)); }
// To nearest even; any NaN becomes the GPU's one NaN.
inline uint16_t f32_to_f16(float v) {
    return v == v ? emulator_bits<uint16_t>(_Float16(v)) : 0x7fff;
}
inline uint16_t f32_to_bf16(float v) {
    const uint32_t bits = __float_as_uint(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
inline uint32_t pack_f16(float low, float high) {
    return f32_to_f16(low) | uint32_t(f32_to_f16(high)) << 16;
}
inline uint32_t pack_bf16(float low, float high) {
    return f32_to_bf16(low) | uint32_t(f32_to_bf16(high)) << 16;
}
inline float exp2_approx(float v) {
    const float r = exp2f(v);
    return r < 1.17549435e-38f ? 0.0f : r;  // subnormal results are flushed
}
inline uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = low | uint64_t(high) << 32;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t nibble = selector >> 4 * i & 15;
        uint32_t byte = bytes >> 8 * (nibble & 7) & 0xff;
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, spread
        r |= byte << 8 * i;
    }
    return r;
}
inline float multiply(float a, float b) {
    return a * b;
}  // rounded by themselves: never fused here
inline float add(float a, float b) { return a + b; }
inline uint64_t multiply_high(uint64_t a, uint64_t b) {
    return uint64_t((unsigned __int128)a * b >> 64);
}

// Global memory, 16 bytes.
inline uint4 load16(const void* p, SITE) {
    emulator::check_aligned(p, 16, site);
    return *static_cast<const uint4*>(p);
}
inline uint4 load_stream(const void* p, bool valid, SITE) {
    return valid ? load16(p, site) : uint4{};
}
inline uint4 load_once(const void* p, bool valid, SITE) {
    return valid ? load16(p, site) : uint4{};
}
inline void store16(void* p, uint4 v, SITE) {
    emulator::check_aligned(p, 16, site);
    *static_cast<uint4*>(p) = v;
}
inline void prefetch_l2(const void*) {}
inline void prefetch_l2_bulk(const void* p, uint32_t bytes, SITE) {
    emulator::check_aligned(p, 16, site);
    emulator::check_aligned(reinterpret_cast<const void*>(uintptr_t(bytes)), 16, site);
}
inline void await_line(const void* p) {
    [[maybe_unused]] const uint32_t word = *static_cast<const volatile uint32_t*>(p);
}

// Asynchronous copies.
inline void cp_async16(void* shared, const void* global, bool valid, SITE) {
    emulator::copy_async(shared, global, valid, site);
}
inline void cp_async_commit() { emulator::copy_commit(); }
template <int N>
inline void cp_async_wait() {
    emulator::copy_wait(N);
}

// Tensor cores.
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, SITE) {
    emulator::load_matrices(r, 4, false, row, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, SITE) {
    emulator::load_matrices(r, 4, true, row, site);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, SITE) {
    emulator::load_matrices(r, 2, false, row, site);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, SITE) {
    emulator::load_matrices(r, 2, true, row, site);
}
template <class T>
struct emulator_half;
template <>
struct emulator_half<f16> {
    static constexpr emulator::Half type = emulator::Half::F16;
};
template <>
struct emulator_half<bf16> {
    static constexpr emulator::Half type = emulator::Half::Bf16;
};
template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SITE) {
    emulator::multiply_16x8x16(d, a, b, emulator_half<T>::type, site);
}

// Programmatic dependent launch.
inline void grid_dependency_wait() { emulator::dependency_wait(); }
inline void grid_dependency_launch() { emulator::dependency_launch(); }

// Between blocks. The compiler's atomics: ThreadSanitizer knows what they order.
inline uint32_t atomic_add_acq_rel_gpu(uint32_t* p, uint32_t v) {
    emulator::progressed();
    return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL);
}
inline uint32_t atomic_add_release_gpu(uint32_t* p, uint32_t v) {
    emulator::progressed();
    return __atomic_fetch_add(p, v, __ATOMIC_RELEASE);
}
inline uint32_t atomic_add_gpu(uint32_t* p, uint32_t v) {
    emulator::progressed();
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline uint64_t atomic_add_gpu(uint64_t* p, uint64_t v) {
    emulator::progressed();
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline void reduce_add_gpu(float* p, float v) {
    emulator::progressed();
    const auto flushed = [](float v) { return fabsf(v) < 1.17549435e-38f ? copysignf(0, v) : v; };
    uint32_t* const word = reinterpret_cast<uint32_t*>(p);
    uint32_t held = __atomic_load_n(word, __ATOMIC_RELAXED), sum;
    do {
        sum = __float_as_uint(flushed(flushed(__uint_as_float(held)) + flushed(v)));
    } while (!__atomic_compare_exchange_n(word, &held, sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}
inline uint32_t load_acquire_gpu(const uint32_t* p, SITE) {
    emulator::poll(p, site);
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void store_release_gpu(uint32_t* p, uint32_t v) {
    emulator::progressed();
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
inline void fence_gpu() { emulator::fence(); }

// Between devices, and with the host. Each word of a vector for itself.
inline uint32_t load_relaxed_system(const uint32_t* p) {
    emulator::poll_outside();
    emulator::look(p);
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}
inline uint64_t load_relaxed_system(const uint64_t* p) {
    emulator::poll_peers();
    emulator::look(p);
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}
inline void store_relaxed_system(uint64_t* p, uint64_t v, SITE) {
    emulator::progressed();
    if (!emulator::store_late(p, v, 8, site)) __atomic_store_n(p, v, __ATOMIC_RELAXED);
}
inline uint4 load16_relaxed_system(const void* p, SITE) {
    emulator::check_aligned(p, 16, site);
    const uint32_t* const words = static_cast<const uint32_t*>(p);
    return {load_relaxed_system(words), load_relaxed_system(words + 1),
            load_relaxed_system(words + 2), load_relaxed_system(words + 3)};
}
inline void store16_relaxed_system(void* p, uint4 v, SITE) {
    emulator::check_aligned(p, 16, site);
    emulator::progressed();
    const uint32_t values[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < 4; i++) {
        uint32_t* const word = static_cast<uint32_t*>(p) + i;
        if (!emulator::store_late(word, values[i], 4, site))
            __atomic_store_n(word, values[i], __ATOMIC_RELAXED);
    }
}
inline void fence_system() {
    emulator::land_stores();
    emulator::fence();
}
// A cycle is a nanosecond, and all blocks run on one multiprocessor.
inline uint64_t clock_cycles() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return uint64_t(now.tv_sec) * 1000000000 + uint64_t(now.tv_nsec);
}
inline uint32_t multiprocessor() { return 0; }
inline void nanosleep(uint32_t, SITE) { emulator::pause(site); }
inline uint32_t atomic_add_shared(uint32_t* shared, uint32_t v) {
    emulator::progressed();
    return __atomic_fetch_add(shared, v, __ATOMIC_RELAXED);
}

#undef SITE
