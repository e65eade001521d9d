// Numbers of 16 bits, of which cuda_fp16.h and cuda_bf16.h each make a type and its pair: computed in
// float, or in double where that would round twice, and rounded to nearest even.
#pragma once

namespace emulator {
struct F16 {
    static constexpr uint16_t kNan = 0x7fff;
    static float wide(uint16_t bits) { return float(emulator_bits<_Float16>(bits)); }
    static uint16_t narrow(double v) {
        return v == v ? emulator_bits<uint16_t>(_Float16(v)) : kNan;
    }
};
struct Bf16 {
    static constexpr uint16_t kNan = 0x7fff;
    static float wide(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }
    static uint16_t narrow(double v) {
        if (v != v) return kNan;
        // To a float that is odd where it is not exact: rounding that again is as rounding once.
        uint32_t bits = __float_as_uint(rounded(v, 'z'));
        if (double(__uint_as_float(bits)) != v && std::isfinite(__uint_as_float(bits))) bits |= 1;
        return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
    }
};
// The neighbour towards where `mode` says, of what was rounded to nearest.
template <class Format>
uint16_t narrow_to(double v, char mode) {
    uint16_t bits = Format::narrow(v);
    const double got = Format::wide(bits);
    if (v != v || got == v) return bits;
    const bool down = mode == 'd' || (mode == 'z' && v > 0);
    if ((got > v) != down) return bits;
    const bool away = (got > 0) != (got > v);  // from zero
    if (got == 0) return down ? 0x8001 : 0x0001;
    return uint16_t(bits + (away ? 1 : -1));
}
}  // namespace emulator

#define EMULATOR_HALF_TYPE(T, Format)                                                              \
    struct T {                                                                                     \
        uint16_t emulator_bits_;                                                                   \
        T() = default;                                                                             \
        template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>>                      \
        T(N v) : emulator_bits_(Format::narrow(double(v))) {}                                      \
        operator float() const { return Format::wide(emulator_bits_); }                            \
        T& operator+=(T o) { return *this = T(float(*this) + float(o)); }                          \
        T& operator-=(T o) { return *this = T(float(*this) - float(o)); }                          \
        T& operator*=(T o) { return *this = T(float(*this) * float(o)); }                          \
        T& operator/=(T o) { return *this = T(float(*this) / float(o)); }                          \
        T& operator++() { return *this += T(1.0f); }                                               \
        T operator-() const { return of(emulator_bits_ ^ 0x8000); }                                \
        static T of(unsigned bits) {                                                               \
            T v;                                                                                   \
            v.emulator_bits_ = uint16_t(bits);                                                     \
            return v;                                                                              \
        }                                                                                          \
    };                                                                                             \
    inline T operator+(T a, T b) { return a += b; }                                                \
    inline T operator-(T a, T b) { return a -= b; }                                                \
    inline T operator*(T a, T b) { return a *= b; }                                                \
    inline T operator/(T a, T b) { return a /= b; }                                                \
    inline bool operator==(T a, T b) { return float(a) == float(b); }                              \
    inline bool operator!=(T a, T b) { return float(a) != float(b); }                              \
    inline bool operator<(T a, T b) { return float(a) < float(b); }                                \
    inline bool operator>(T a, T b) { return float(a) > float(b); }                                \
    inline bool operator<=(T a, T b) { return float(a) <= float(b); }                              \
    inline bool operator>=(T a, T b) { return float(a) >= float(b); }

#define EMULATOR_HALF_MATH(T, T2)                                                                  \
    inline T __hadd(T a, T b) { return a + b; }                                                    \
    inline T __hsub(T a, T b) { return a - b; }                                                    \
    inline T __hmul(T a, T b) { return a * b; }                                                    \
    inline T __hdiv(T a, T b) { return a / b; }                                                    \
    inline T __hadd_rn(T a, T b) { return a + b; }                                                 \
    inline T __hsub_rn(T a, T b) { return a - b; }                                                 \
    inline T __hmul_rn(T a, T b) { return a * b; }                                                 \
    inline T __hadd_sat(T a, T b) { return T(__saturatef(float(a + b))); }                         \
    inline T __hmul_sat(T a, T b) { return T(__saturatef(float(a * b))); }                         \
    inline T __hfma(T a, T b, T c) { return T(double(float(a)) * float(b) + float(c)); }           \
    inline T __hneg(T a) { return -a; }                                                            \
    inline T __habs(T a) { return T::of(a.emulator_bits_ & 0x7fff); }                              \
    inline T __hmax(T a, T b) { return T(std::fmax(float(a), float(b))); }                         \
    inline T __hmin(T a, T b) { return T(std::fmin(float(a), float(b))); }                         \
    inline bool __heq(T a, T b) { return a == b; }                                                 \
    inline bool __hne(T a, T b) { return a != b; }                                                 \
    inline bool __hlt(T a, T b) { return a < b; }                                                  \
    inline bool __hle(T a, T b) { return a <= b; }                                                 \
    inline bool __hgt(T a, T b) { return a > b; }                                                  \
    inline bool __hge(T a, T b) { return a >= b; }                                                 \
    inline bool __hisnan(T a) { return float(a) != float(a); }                                     \
    inline int __hisinf(T a) { return std::isinf(float(a)) ? float(a) > 0 ? 1 : -1 : 0; }          \
    inline T hexp(T a) { return T(std::exp(float(a))); }                                           \
    inline T hexp2(T a) { return T(std::exp2(float(a))); }                                         \
    inline T hlog(T a) { return T(std::log(float(a))); }                                           \
    inline T hlog2(T a) { return T(std::log2(float(a))); }                                         \
    inline T hsin(T a) { return T(std::sin(float(a))); }                                           \
    inline T hcos(T a) { return T(std::cos(float(a))); }                                           \
    inline T hsqrt(T a) { return T(std::sqrt(float(a))); }                                         \
    inline T hrsqrt(T a) { return T(1.0 / std::sqrt(double(float(a)))); }                          \
    inline T hrcp(T a) { return T(1.0 / double(float(a))); }                                       \
    inline T htrunc(T a) { return T(std::trunc(float(a))); }                                       \
    inline T hfloor(T a) { return T(std::floor(float(a))); }                                       \
    inline T hceil(T a) { return T(std::ceil(float(a))); }                                         \
    inline T hrint(T a) { return T(std::nearbyint(float(a))); }                                    \
    inline T2 operator+(T2 a, T2 b) { return {a.x + b.x, a.y + b.y}; }                             \
    inline T2 operator-(T2 a, T2 b) { return {a.x - b.x, a.y - b.y}; }                             \
    inline T2 operator*(T2 a, T2 b) { return {a.x * b.x, a.y * b.y}; }                             \
    inline T2 operator/(T2 a, T2 b) { return {a.x / b.x, a.y / b.y}; }                             \
    inline T2& operator+=(T2& a, T2 b) { return a = a + b; }                                       \
    inline T2& operator-=(T2& a, T2 b) { return a = a - b; }                                       \
    inline T2& operator*=(T2& a, T2 b) { return a = a * b; }                                       \
    inline T2 operator-(T2 a) { return {-a.x, -a.y}; }                                             \
    inline T2 __hadd2(T2 a, T2 b) { return a + b; }                                                \
    inline T2 __hsub2(T2 a, T2 b) { return a - b; }                                                \
    inline T2 __hmul2(T2 a, T2 b) { return a * b; }                                                \
    inline T2 __h2div(T2 a, T2 b) { return a / b; }                                                \
    inline T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
    inline T2 __hneg2(T2 a) { return -a; }                                                         \
    inline T2 __habs2(T2 a) { return {__habs(a.x), __habs(a.y)}; }                                 \
    inline T2 __hmax2(T2 a, T2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                 \
    inline T2 __hmin2(T2 a, T2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }                 \
    inline T2 h2exp(T2 a) { return {hexp(a.x), hexp(a.y)}; }                                       \
    inline T2 h2sqrt(T2 a) { return {hsqrt(a.x), hsqrt(a.y)}; }                                    \
    inline T2 h2rsqrt(T2 a) { return {hrsqrt(a.x), hrsqrt(a.y)}; }                                 \
    inline T atomicAdd(T* p, T v, emulator::Site site = emulator::here()) {                        \
        return emulator::atomically(p, site, [=](T old) { return old + v; });                      \
    }                                                                                              \
    inline T2 atomicAdd(T2* p, T2 v, emulator::Site site = emulator::here()) {                     \
        return emulator::atomically(p, site, [=](T2 old) { return old + v; });                     \
    }
