//! Functions of float, accurate to a few units in the last place, without local memory.
#pragma once

#include "lib/ptx.cuh"

constexpr float LOG2_E = 1.44269504088896340736f;

__device__ inline float infinity() { return bits_float(0x7f800000); }

__device__ inline float reciprocal_sqrt(float v) { return 1.0f / sqrtf(v); }

// silu(gate) * up, with silu(g) = g / (1 + e^-g) (Shazeer, 2020, arXiv:2002.05202). The approximate
// division is one instruction and a product, where the exact one is a function; it gives 0 where e^-g
// is above 2^126.
__device__ inline float swiglu(float gate, float up) {
    return __fdividef(gate, 1.0f + exp2_approx(-LOG2_E * gate)) * up;
}

// Sine and cosine of an angle of any size up to 2^30 radians.
//
// The library's functions reduce large angles through an array in local memory. Here one fused
// multiply-add in double does it: with n below 2^30 its error is below 2^-23 of a radian's unit in
// the last place; Taylor series then serve the remaining quarter turn.
__device__ inline void sin_cos(float angle, float& sine, float& cosine) {
    constexpr double QUARTER_TURN = 1.57079632679489661923;
    const double turns = rint(angle * (1.0 / QUARTER_TURN));
    const float r = float(fma(-turns, QUARTER_TURN, double(angle)));
    const int quadrant = int(turns) & 3;
    const float r2 = r * r;
    float s = fmaf(r2, 1.0f / 362880, -1.0f / 5040);
    s = fmaf(r2, s, 1.0f / 120);
    s = fmaf(r2, s, -1.0f / 6);
    s = fmaf(r * r2, s, r);
    float c = fmaf(r2, -1.0f / 3628800, 1.0f / 40320);
    c = fmaf(r2, c, -1.0f / 720);
    c = fmaf(r2, c, 1.0f / 24);
    c = fmaf(r2, c, -0.5f);
    c = fmaf(r2, c, 1.0f);
    sine = quadrant & 1 ? c : s;
    cosine = quadrant & 1 ? s : c;
    if (quadrant & 2) sine = -sine;
    if (quadrant == 1 || quadrant == 2) cosine = -cosine;
}
