// IEEE's half precision, as NVIDIA's header of this name has it.
#pragma once
#include "halves.h"

EMULATOR_HALF_TYPE(__half, emulator::F16)
struct alignas(4) __half2 {
    __half x, y;
};
EMULATOR_HALF_MATH(__half, __half2)
using half = __half;
using half2 = __half2;

inline __half __float2half(float v) { return __half(v); }
inline __half __float2half_rn(float v) { return __half(v); }
inline __half __float2half_rz(float v) { return __half::of(emulator::narrow_to<emulator::F16>(v, 'z')); }
inline __half __float2half_ru(float v) { return __half::of(emulator::narrow_to<emulator::F16>(v, 'u')); }
inline __half __float2half_rd(float v) { return __half::of(emulator::narrow_to<emulator::F16>(v, 'd')); }
inline __half __double2half(double v) { return __half(v); }
inline float __half2float(__half v) { return float(v); }
inline __half __int2half_rn(int v) { return __half(v); }
inline __half __uint2half_rn(unsigned v) { return __half(v); }
inline int __half2int_rn(__half v) { return __float2int_rn(float(v)); }
inline int __half2int_rz(__half v) { return __float2int_rz(float(v)); }
inline unsigned __half2uint_rn(__half v) { return __float2uint_rn(float(v)); }
inline unsigned short __half_as_ushort(__half v) { return v.emulator_bits_; }
inline short __half_as_short(__half v) { return short(v.emulator_bits_); }
inline __half __ushort_as_half(unsigned short v) { return __half::of(v); }
inline __half __short_as_half(short v) { return __half::of(unsigned(v)); }

inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half v) { return {v, v}; }
inline __half2 __float2half2_rn(float v) { return {__half(v), __half(v)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline float2 __half22float2(__half2 v) { return {float(v.x), float(v.y)}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return float(v.x); }
inline float __high2float(__half2 v) { return float(v.y); }
inline __half2 __lowhigh2highlow(__half2 v) { return {v.y, v.x}; }
