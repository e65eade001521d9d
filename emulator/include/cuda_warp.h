// Barriers, votes and shuffles: what the threads of a block or a warp do together. Part of device.h.
#pragma once

#define SITE emulator::Site site = emulator::here()

inline void __syncthreads(SITE) { emulator::sync_threads(site); }
inline int __syncthreads_count(int predicate, SITE) {
    return int(emulator::sync_threads_count(predicate != 0, site));
}
inline int __syncthreads_and(int predicate, SITE) {
    return emulator::sync_threads_count(predicate == 0, site) == 0;
}
inline int __syncthreads_or(int predicate, SITE) {
    return emulator::sync_threads_count(predicate != 0, site) != 0;
}
inline void __syncwarp(unsigned mask = ~0u, SITE) { emulator::sync_lanes(mask, site); }

inline unsigned __activemask(SITE) { return emulator::active_lanes(site); }
inline unsigned __ballot_sync(unsigned mask, int predicate, SITE) {
    unsigned votes = 0;
    const emulator::Lanes lanes = emulator::gather("__ballot_sync", mask, predicate != 0, site);
    for (unsigned lane = 0; lane < 32; lane++) votes |= unsigned(lanes.values[lane]) << lane;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, SITE) {
    return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SITE) {
    return __ballot_sync(mask, !predicate, site) == 0;
}

namespace emulator {
template <class T>
uint64_t word_of(T value) {
    static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
    uint64_t word = 0;
    __builtin_memcpy(&word, &value, sizeof value);
    return word;
}
template <class T>
T of_word(uint64_t word) {
    T value;
    __builtin_memcpy(&value, &word, sizeof value);
    return value;
}

// The value of the lane that `from` makes of this one's number in its segment of `width`.
template <class T, class From>
T shuffled(const char* what, unsigned mask, T value, int width, Site site, From from) {
    const unsigned lane = self->lane, first = lane & ~unsigned(width - 1);
    const int source = from(int(lane - first));
    const Lanes lanes = gather(what, mask, word_of(value), site);
    return of_word<T>(lanes.values[check_lane(lanes, what, first + unsigned(source), site)]);
}
template <class T, class Combine>
T reduced(const char* what, unsigned mask, T value, Site site, Combine combine) {
    const Lanes lanes = gather(what, mask, word_of(value), site);
    bool any = false;
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(lanes.come >> lane & 1)) continue;
        const T other = of_word<T>(lanes.values[lane]);
        value = any ? combine(value, other) : other;
        any = true;
    }
    return value;
}
}  // namespace emulator

template <class T>
inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32, SITE) {
    return emulator::shuffled("__shfl_sync", mask, v, width, site,
                              [=](int) { return lane & (width - 1); });
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, SITE) {
    return emulator::shuffled("__shfl_up_sync", mask, v, width, site, [=](int own) {
        return own - int(delta) < 0 ? own : own - int(delta);
    });
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, SITE) {
    return emulator::shuffled("__shfl_down_sync", mask, v, width, site, [=](int own) {
        return own + int(delta) < width ? own + int(delta) : own;
    });
}
// Into earlier segments, too.
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, SITE) {
    const int first = int(emulator::self->lane) & ~(width - 1);
    return emulator::shuffled("__shfl_xor_sync", mask, v, width, site, [=](int own) {
        const int other = (first + own) ^ lane_mask;
        return (other < first + width ? other : first + own) - first;
    });
}
// The lanes whose value is that of this one.
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, SITE) {
    const emulator::Lanes lanes =
        emulator::gather("__match_any_sync", mask, emulator::word_of(value), site);
    unsigned same = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        same |= unsigned((lanes.come >> lane & 1) && lanes.values[lane] == emulator::word_of(value))
                << lane;
    return same;
}
template <class T>
inline unsigned __match_all_sync(unsigned mask, T value, int* all, SITE) {
    const unsigned same = __match_any_sync(mask, value, site);
    *all = same == (mask & same) && __all_sync(mask, same == mask, site);
    return *all ? mask : 0;
}

#define EMULATOR_REDUCE(name, T, expression)                                        \
    inline T __reduce_##name##_sync(unsigned mask, T value, SITE) {                 \
        return emulator::reduced("__reduce_" #name "_sync", mask, value, site,      \
                                 [](T a, T b) { return T(expression); });           \
    }
EMULATOR_REDUCE(add, unsigned, a + b)
EMULATOR_REDUCE(add, int, unsigned(a) + unsigned(b))
EMULATOR_REDUCE(min, unsigned, b < a ? b : a)
EMULATOR_REDUCE(min, int, b < a ? b : a)
EMULATOR_REDUCE(max, unsigned, a < b ? b : a)
EMULATOR_REDUCE(max, int, a < b ? b : a)
EMULATOR_REDUCE(and, unsigned, a & b)
EMULATOR_REDUCE(or, unsigned, a | b)
EMULATOR_REDUCE(xor, unsigned, a ^ b)
#undef EMULATOR_REDUCE

inline void __nanosleep(unsigned, SITE) { emulator::pause(site); }
inline void __trap(SITE) { emulator::stop(715, "__trap", site); }

namespace emulator {
inline void assert_that(bool holds, const char* text, Site site) {
    if (!holds) stop(710, text, site);
}
}  // namespace emulator
#include "cuda/assert.h"

#undef SITE
