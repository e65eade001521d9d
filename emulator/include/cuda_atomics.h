// Atomics, fences, and loads and stores with a hint for the caches. Part of device.h. All atomics are
// relaxed, as CUDA's are: between blocks they order what __threadfence has told of before.
#pragma once

#define SITE emulator::Site site = emulator::here()

namespace emulator {
// old = *p, *p = change(old). Here, so that a sanitizer sees the kernel's own line.
template <class T, class Change>
__attribute__((always_inline)) inline T atomically(T* p, Site site, Change change) {
    using Bits = std::conditional_t<
        sizeof(T) == 8, uint64_t,
        std::conditional_t<sizeof(T) == 4, uint32_t,
                           std::conditional_t<sizeof(T) == 2, uint16_t, uint8_t>>>;
    check_aligned(p, sizeof(T), site);
    before_atomic(p);
    Bits* const word = reinterpret_cast<Bits*>(p);
    Bits held = __atomic_load_n(word, __ATOMIC_RELAXED), next;
    do {
        const T wanted = change(emulator_bits<T>(held));
        next = emulator_bits<Bits>(wanted);
    } while (!__atomic_compare_exchange_n(word, &held, next, false, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    after_atomic(p, held != next, site);
    return emulator_bits<T>(held);
}
// A plain load of what a CAS is then tried on (src/idioms.cpp).
template <class T>
__attribute__((always_inline)) inline std::remove_cv_t<T> guess(T* p) {
    std::remove_cv_t<T> value;
    __atomic_load(p, &value, __ATOMIC_RELAXED);
    return value;
}
}  // namespace emulator

#define EMULATOR_ATOMIC(name, T, expression)                                                  \
    inline T name(T* p, T v, SITE) {                                                          \
        return emulator::atomically(p, site, [=](T old) { return static_cast<T>(expression); }); \
    }                                                                                         \
    inline T name##_block(T* p, T v, SITE) { return name(p, v, site); }                       \
    inline T name##_system(T* p, T v, SITE) { return name(p, v, site); }
#define EMULATOR_ATOMIC_OF_WORDS(name, expression)             \
    EMULATOR_ATOMIC(name, int, expression)                     \
    EMULATOR_ATOMIC(name, unsigned, expression)                \
    EMULATOR_ATOMIC(name, long long, expression)               \
    EMULATOR_ATOMIC(name, unsigned long long, expression)      \
    EMULATOR_ATOMIC(name, unsigned long, expression)
// A sum wraps: it is one of unsigned numbers.
EMULATOR_ATOMIC(atomicAdd, int, unsigned(old) + unsigned(v))
EMULATOR_ATOMIC(atomicAdd, unsigned, old + v)
EMULATOR_ATOMIC(atomicAdd, unsigned long, old + v)
EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + v)
EMULATOR_ATOMIC(atomicAdd, float, old + v)
EMULATOR_ATOMIC(atomicAdd, double, old + v)
EMULATOR_ATOMIC(atomicSub, int, unsigned(old) - unsigned(v))
EMULATOR_ATOMIC(atomicSub, unsigned, old - v)
EMULATOR_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1)
EMULATOR_ATOMIC(atomicExch, float, v)
EMULATOR_ATOMIC_OF_WORDS(atomicExch, v)
EMULATOR_ATOMIC_OF_WORDS(atomicMin, v < old ? v : old)
EMULATOR_ATOMIC_OF_WORDS(atomicMax, old < v ? v : old)
EMULATOR_ATOMIC_OF_WORDS(atomicAnd, old & v)
EMULATOR_ATOMIC_OF_WORDS(atomicOr, old | v)
EMULATOR_ATOMIC_OF_WORDS(atomicXor, old ^ v)
#undef EMULATOR_ATOMIC_OF_WORDS
#undef EMULATOR_ATOMIC

#define EMULATOR_CAS(T)                                                                       \
    inline T atomicCAS(T* p, T expected, T v, SITE) {                                         \
        return emulator::atomically(p, site, [=](T old) { return old == expected ? v : old; }); \
    }                                                                                         \
    inline T atomicCAS_block(T* p, T expected, T v, SITE) { return atomicCAS(p, expected, v, site); } \
    inline T atomicCAS_system(T* p, T expected, T v, SITE) { return atomicCAS(p, expected, v, site); }
EMULATOR_CAS(int)
EMULATOR_CAS(unsigned)
EMULATOR_CAS(unsigned short)
EMULATOR_CAS(unsigned long)
EMULATOR_CAS(unsigned long long)
#undef EMULATOR_CAS

inline void __threadfence() { emulator::fence(); }
inline void __threadfence_block() { emulator::fence(); }
inline void __threadfence_system() {
    emulator::land_stores();
    emulator::fence();
}

// The caches are not there. A vector lies at a multiple of its size.
#define EMULATOR_LOAD(name)                                                     \
    template <class T>                                                          \
    __attribute__((always_inline)) inline T name(const T* p, SITE) {            \
        emulator::check_aligned(p, alignof(T), site);                           \
        return *p;                                                              \
    }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldcv)
EMULATOR_LOAD(__ldlu)
#undef EMULATOR_LOAD
#define EMULATOR_STORE(name)                                                    \
    template <class T>                                                          \
    __attribute__((always_inline)) inline void name(T* p, T v, SITE) {          \
        emulator::check_aligned(p, alignof(T), site);                           \
        *p = v;                                                                 \
    }
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stwt)
#undef EMULATOR_STORE

#undef SITE
