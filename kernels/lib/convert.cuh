//! Between stored numbers and float.
#pragma once

#include "lib/ptx.cuh"

__device__ inline float to_f32(f16 v) { return f16_to_f32(v.bits); }

__device__ inline float to_f32(bf16 v) { return bits_float(uint32_t(v.bits) << 16); }

// Rounds to nearest even.
template <class T> __device__ T from_f32(float v);

template <> __device__ inline f16 from_f32<f16>(float v) { return {f32_to_f16(v)}; }

template <> __device__ inline bf16 from_f32<bf16>(float v) { return {f32_to_bf16(v)}; }

// What is too large for T becomes its largest finite number; NaN stays NaN.
template <class T> __device__ float saturated(float v);

template <> __device__ inline float saturated<f16>(float v) {
    constexpr float MAX = 65504.0f;
    return v > MAX ? MAX : v < -MAX ? -MAX : v;
}

template <> __device__ inline float saturated<bf16>(float v) { return v; } // f32 reaches no further

__device__ inline kv_t to_kv(float v) { return from_f32<kv_t>(saturated<kv_t>(v)); }

// Two neighbours in a register, the first in the low half.
template <class T> __device__ uint32_t pack(float low, float high);

template <> __device__ inline uint32_t pack<f16>(float low, float high) {
    return pack_f16(low, high);
}

template <> __device__ inline uint32_t pack<bf16>(float low, float high) {
    return pack_bf16(low, high);
}

template <class T> __device__ float2 unpack(uint32_t pair);

template <> __device__ inline float2 unpack<f16>(uint32_t pair) {
    return {f16_to_f32(uint16_t(pair)), f16_to_f32(uint16_t(pair >> 16))};
}

template <> __device__ inline float2 unpack<bf16>(uint32_t pair) {
    return {bits_float(pair << 16), bits_float(pair & 0xffff0000u)};
}

// Eight neighbours, as one 16-byte load brings them.
template <class T> __device__ inline void unpack8(const uint4& stored, float (&v)[8]) {
    const uint32_t pairs[4] = {stored.x, stored.y, stored.z, stored.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = unpack<T>(pairs[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
    }
}

template <class T> __device__ inline uint4 pack8(const float (&v)[8]) {
    return {pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7])};
}

// Sixteen bytes of float.
__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }

__device__ inline void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }
