// Device functions that C++ does not have, or names differently: arithmetic, conversions, bits. Part of
// device.h. What is approximate on a GPU is exact here, to the rounding.
#pragma once

using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

// Which way a result is rounded. A kernel's own arithmetic is to nearest.
namespace emulator {
// The neighbour of `nearest` that `exact`, in twice the precision, lies beyond: what is rounded to nearest
// rounded down, up, or towards zero instead.
template <class Exact>
float rounded(Exact exact, char mode) {
    float nearest = float(exact);
    if (!(nearest - nearest == 0) && mode != 'n') {
        const bool overflowed = exact - exact == 0;
        if (!overflowed) return nearest;
    }
    const bool above = Exact(nearest) > exact, below = Exact(nearest) < exact;
    const bool down = mode == 'd' || (mode == 'z' && exact > 0), up = mode == 'u' || (mode == 'z' && exact < 0);
    if (above && down) return std::nextafter(nearest, -INFINITY);
    if (below && up) return std::nextafter(nearest, INFINITY);
    return nearest;
}
// To a whole number that T has; what lies outside becomes the nearest, and NaN 0.
template <class T, class From>
T whole(From v) {
    constexpr T least = T(1) << (8 * sizeof(T) - 1), most = T(~least);
    if constexpr (std::is_signed_v<T>) {
        if (v != v) return 0;
        if (v <= From(least)) return least;
        if (v >= From(most)) return most;
    } else {
        if (!(v > 0)) return 0;
        if (v >= From(T(~T(0)))) return T(~T(0));
    }
    return T(v);
}
}  // namespace emulator

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
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }
inline int __double2hiint(double x) { return int(emulator_bits<uint64_t>(x) >> 32); }
inline int __double2loint(double x) { return int(emulator_bits<uint64_t>(x)); }
inline double __hiloint2double(int high, int low) {
    return emulator_bits<double>(uint64_t(uint32_t(high)) << 32 | uint32_t(low));
}

// Approximations of the hardware, and functions that C++ lacks.
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rcbrtf(float x) { return 1.0f / std::cbrt(x); }
inline double rcbrt(double x) { return 1.0 / std::cbrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return float(std::pow(10.0, double(x))); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline float __tanhf(float x) { return std::tanh(x); }
inline void __sincosf(float x, float* sine, float* cosine) {
    *sine = std::sin(x);
    *cosine = std::cos(x);
}
inline float sinpif(float x) { return float(std::sin(M_PI * std::fmod(double(x), 2.0))); }
inline float cospif(float x) { return float(std::cos(M_PI * std::fmod(double(x), 2.0))); }
inline float normcdff(float x) { return float(0.5 * std::erfc(-double(x) * M_SQRT1_2)); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * M_SQRT1_2); }
inline float norm3df(float x, float y, float z) { return std::hypot(x, y, z); }
inline float __fdividef(float x, float y) { return x / y; }
inline float fdividef(float x, float y) { return x / y; }
// NaN becomes 0.
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1.0f : 0.0f; }

// Rounded as their names say, and never fused.
#define EMULATOR_ROUNDED(suffix, mode)                                                               \
    inline float __fadd_##suffix(float a, float b) { return emulator::rounded(double(a) + b, mode); } \
    inline float __fsub_##suffix(float a, float b) { return emulator::rounded(double(a) - b, mode); } \
    inline float __fmul_##suffix(float a, float b) { return emulator::rounded(double(a) * b, mode); } \
    inline float __fdiv_##suffix(float a, float b) {                                                  \
        return emulator::rounded((long double)(a) / b, mode);                                         \
    }                                                                                                 \
    inline float __fmaf_##suffix(float a, float b, float c) {                                         \
        return mode == 'n' ? std::fma(a, b, c)                                                        \
                           : emulator::rounded((long double)(a) * b + c, mode);                       \
    }                                                                                                 \
    inline float __frcp_##suffix(float a) { return emulator::rounded(1.0L / a, mode); }               \
    inline float __fsqrt_##suffix(float a) {                                                          \
        return emulator::rounded(std::sqrt((long double)(a)), mode);                                  \
    }                                                                                                 \
    inline float __double2float_##suffix(double v) { return emulator::rounded(v, mode); }             \
    inline float __int2float_##suffix(int v) { return emulator::rounded(double(v), mode); }           \
    inline float __uint2float_##suffix(unsigned v) { return emulator::rounded(double(v), mode); }     \
    inline float __ll2float_##suffix(long long v) {                                                   \
        return emulator::rounded((long double)(v), mode);                                             \
    }                                                                                                 \
    inline float __ull2float_##suffix(unsigned long long v) {                                         \
        return emulator::rounded((long double)(v), mode);                                             \
    }
EMULATOR_ROUNDED(rn, 'n')
EMULATOR_ROUNDED(rz, 'z')
EMULATOR_ROUNDED(ru, 'u')
EMULATOR_ROUNDED(rd, 'd')
#undef EMULATOR_ROUNDED
inline float __frsqrt_rn(float x) { return float(1.0L / std::sqrt((long double)(x))); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

#define EMULATOR_TO_WHOLE(suffix, round)                                                         \
    inline int __float2int_##suffix(float v) { return emulator::whole<int>(round(v)); }          \
    inline unsigned __float2uint_##suffix(float v) {                                             \
        return emulator::whole<unsigned>(round(v));                                              \
    }                                                                                            \
    inline long long __float2ll_##suffix(float v) {                                              \
        return emulator::whole<long long>(round(v));                                             \
    }                                                                                            \
    inline unsigned long long __float2ull_##suffix(float v) {                                    \
        return emulator::whole<unsigned long long>(round(v));                                    \
    }                                                                                            \
    inline int __double2int_##suffix(double v) { return emulator::whole<int>(round(v)); }        \
    inline unsigned __double2uint_##suffix(double v) {                                           \
        return emulator::whole<unsigned>(round(v));                                              \
    }                                                                                            \
    inline long long __double2ll_##suffix(double v) {                                            \
        return emulator::whole<long long>(round(v));                                             \
    }
EMULATOR_TO_WHOLE(rn, std::nearbyint)
EMULATOR_TO_WHOLE(rz, std::trunc)
EMULATOR_TO_WHOLE(ru, std::ceil)
EMULATOR_TO_WHOLE(rd, std::floor)
#undef EMULATOR_TO_WHOLE
inline double __int2double_rn(int v) { return v; }
inline double __uint2double_rn(unsigned v) { return v; }
inline double __ll2double_rn(long long v) { return double(v); }

// Integers.
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}
inline unsigned long long __brevll(unsigned long long x) {
    return (unsigned long long)(__brev(unsigned(x))) << 32 | __brev(unsigned(x >> 32));
}
// Bytes of the pair (low, high), numbered 0-7 from the low end, by the low three bits of the nibbles.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = low | uint64_t(high) << 32;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return r;
}
// The high or low word of (high, low) shifted; `c`: by 32 at most, otherwise modulo 32.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned by) {
    return by >= 32 ? low : __funnelshift_l(low, high, by);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) >> (by & 31));
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned by) {
    return by >= 32 ? high : __funnelshift_r(low, high, by);
}
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline long long __mul64hi(long long a, long long b) { return (long long)((__int128)(a) * b >> 64); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)(a) * b >> 64);
}
inline int __mul24(int a, int b) {
    const auto low = [](int v) { return unsigned(int(unsigned(v) << 8) >> 8); };
    return int(low(a) * low(b));
}
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
inline int __hadd(int a, int b) { return int((int64_t(a) + b) >> 1); }
inline int __rhadd(int a, int b) { return int((int64_t(a) + b + 1) >> 1); }
inline unsigned __uhadd(unsigned a, unsigned b) { return unsigned((uint64_t(a) + b) >> 1); }
inline unsigned __urhadd(unsigned a, unsigned b) { return unsigned((uint64_t(a) + b + 1) >> 1); }
inline unsigned __sad(int a, int b, unsigned c) {
    return c + unsigned(a < b ? int64_t(b) - a : int64_t(a) - b);
}
inline unsigned __usad(unsigned a, unsigned b, unsigned c) { return c + (a < b ? b - a : a - b); }
inline int __dp4a(int a, int b, int c) {
    unsigned sum = unsigned(c);
    for (int i = 0; i < 32; i += 8) sum += unsigned(int8_t(a >> i) * int8_t(b >> i));
    return int(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 32; i += 8) c += (a >> i & 0xff) * (b >> i & 0xff);
    return c;
}

// Of two types as CUDA has them. Of a number and NaN the number.
template <class A, class B>
inline auto min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return std::fmin(T(a), T(b));
    else
        return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
inline auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return std::fmax(T(a), T(b));
    else
        return T(a) < T(b) ? T(b) : T(a);
}

// Time: a cycle is a nanosecond. There is one multiprocessor.
inline unsigned long long emulator_nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned long long)(now.tv_sec) * 1000000000 + (unsigned long long)(now.tv_nsec);
}
inline long long clock64() { return (long long)(emulator_nanoseconds()); }
