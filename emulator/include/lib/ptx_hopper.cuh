//! The functions of kernels/lib/ptx_hopper.cuh, in C++: src/hopper.cpp and src/wgmma.cpp have what they mean.
#pragma once
#include "lib/ptx.cuh"

#define SITE emulator::Site site = emulator::here()

inline uint32_t shared_address(const void* shared, SITE) {
    return emulator::shared_address(shared, site);
}
inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals, SITE) {
    emulator::barrier_init(barrier, arrivals, site);
}
inline void fence_mbarrier_init() { emulator::tell_of_barriers(); }
inline void mbarrier_arrive(uint64_t* barrier, SITE) { emulator::barrier_arrive(barrier, 0, site); }
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes, SITE) {
    emulator::barrier_arrive(barrier, bytes, site);
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity, SITE) {
    emulator::barrier_wait(barrier, parity, site);
}
inline void named_barrier_sync(uint32_t number, uint32_t threads, SITE) {
    emulator::named_sync(number, threads, site);
}
inline void named_barrier_arrive(uint32_t number, uint32_t threads, SITE) {
    emulator::named_arrive(number, threads, site);
}
inline void fence_async_proxy() { emulator::tell_of_writes(); }
inline void copy_box(void* shared, const TensorMap& map, uint32_t row, uint32_t column,
                     uint64_t* barrier, SITE) {
    emulator::copy_box(shared, &map, row, column, barrier, site);
}
inline uint64_t matrix_descriptor(const void* shared, SITE) {
    return uint64_t(emulator::shared_address(shared, site) >> 4 & 0x3fff) | uint64_t(1) << 16 |
           uint64_t(1024 / 16) << 32 | uint64_t(1) << 62;
}
inline uint64_t transposed_descriptor(const void* shared, uint32_t panel_bytes, SITE) {
    return uint64_t(emulator::shared_address(shared, site) >> 4 & 0x3fff) |
           uint64_t(panel_bytes >> 4) << 16 | uint64_t(1024 / 16) << 32 | uint64_t(1) << 62;
}
inline void wgmma_fence(SITE) { emulator::products_fence(site); }
inline void wgmma_commit(SITE) { emulator::products_commit(site); }
template <int N>
inline void wgmma_wait(SITE) {
    emulator::products_wait(N, site);
}
template <class T>
inline void wgmma_m64n256k16(float (&d)[32][4], uint64_t a, uint64_t b, bool accumulate, SITE) {
    emulator::multiply({d, nullptr, a, b, 256, false, accumulate, emulator_half<T>::type, site, {}});
}
template <class T>
inline void wgmma_m64n128k16(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate, SITE) {
    emulator::multiply({d, nullptr, a, b, 128, false, accumulate, emulator_half<T>::type, site, {}});
}
template <int N>  // of eight columns
inline void wgmma_rs_m64k16(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b, SITE) {
    static_assert(N == 8 || N == 16);
    emulator::multiply({d, a, 0, b, 8 * N, true, true, emulator::Half::F16, site, {}});
}
template <class T, int N>
inline void hold(T (&)[N][4]) {}  // products poison their sums
template <int N>
inline void give_up_registers(SITE) {
    emulator::change_registers(N, false, site);
}
template <int N>
inline void take_registers(SITE) {
    emulator::change_registers(N, true, site);
}

#undef SITE
