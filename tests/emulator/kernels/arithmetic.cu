// CUDA's arithmetic: every line counts one if it gives what the CUDA Math API says. One thread; out: [2]
// the number that are right, and of all.
#include <float.h>
#include <math.h>
#include <stdint.h>

#define WORDS const uint32_t *in, uint32_t *out
#define KERNEL(name) extern "C" __global__ void name(WORDS)
#define IS(...) (out[1]++, out[0] += bool(__VA_ARGS__))

__device__ bool close(float a, float b) { return fabsf(a - b) <= 1e-5f * fabsf(b); }

KERNEL(bits) {
    const uint32_t x = in[0] + 0x12345678;
    IS(__popc(x) == 13), IS(__popcll(0xf0f0ull << 32 | 1) == 9), IS(__clz(1) == 31), IS(__clz(0) == 32);
    IS(__clzll(1ll << 40) == 23), IS(__ffs(8) == 4), IS(__ffs(0) == 0), IS(__ffsll(1ll << 40) == 41);
    IS(__brev(x) == 0x1e6a2c48), IS(__brevll(1) == 1ull << 63);
    IS(__byte_perm(x, 0x9abcdef0, 0x7531) == 0x9ade1256), IS(__byte_perm(x, 0, 0x0123) == 0x78563412);
    IS(__funnelshift_l(0x80000000, x, 4) == 0x23456788), IS(__funnelshift_r(x, 0xf, 4) == 0xf1234567);
    IS(__funnelshift_lc(3, x, 40) == 3), IS(__funnelshift_rc(x, 7, 32) == 7);
    IS(__mulhi(-3, 1 << 30) == -1), IS(__umulhi(x, 1u << 31) == x >> 1), IS(__mul24(-5, 7) == -35);
    IS(__umul24(0x01000003, 5) == 15), IS(__mul64hi(-1, 1) == -1), IS(__umul64hi(1ull << 63, 6) == 3);
    IS(__hadd(-7, 4) == -2), IS(__rhadd(-7, 4) == -1), IS(__uhadd(~0u, 1) == 1u << 31), IS(__sad(-3, 4, 5) == 12);
    IS(__usad(3, 10, 1) == 8), IS(__dp4a(0x01020304, 0x01010101, 5) == 15), IS(__dp4a(-1, 0x01010101, 0) == -4);
    IS(min(3, 7u) == 3), IS(max(-1, 2) == 2), IS(max(2.5f, 1.0f) == 2.5f), IS(min(1ll << 40, 5ll) == 5);
    IS(max(NAN, 1.0f) == 1.0f), IS(fminf(NAN, 2.0f) == 2.0f);
    IS(warpSize == 32), IS(sizeof(float4) == 16 && alignof(float4) == 16 && sizeof(uchar4) == 4);
    IS(make_float3(1, 2, 3).z == 3), IS(make_int4(1, 2, 3, 4).w == 4), IS(dim3(7).y == 1);
}

// A GPU shifts by 32 and more as by 32; C++ does not know what that is.
KERNEL(bits_bug) { out[0] = 1u << (in[0] + 32); }

// A GPU goes on.
KERNEL(numbers_bug) { out[0] = 7 / int(in[0]); }

extern "C" __global__ void numbers(const uint32_t *in, uint32_t *out) {
    const float one = in[0] + 1.0f, third = 1.0f / 3.0f;
    IS(__float_as_uint(one) == 0x3f800000), IS(__uint_as_float(0x40000000) == 2), IS(__int_as_float(0) == 0);
    IS(__double2hiint(1.0) == 0x3ff00000), IS(__hiloint2double(0x40000000, 0) == 2.0);
    IS(__fadd_rn(one, 1e-10f) == 1), IS(__fadd_ru(one, 1e-10f) == nextafterf(1, 2));
    IS(__fadd_rd(one, -1e-10f) == nextafterf(1, 0)), IS(__fadd_rz(-one, -1e-10f) == -1);
    IS(__fmul_rn(third, 3) == 1), IS(__fmul_rd(third, 3) == 1), IS(__fdiv_rn(one, 3) == third);
    IS(__fdiv_rd(one, 3) < third && __fdiv_ru(one, 3) == third), IS(__fsqrt_rn(4 * one) == 2);
    IS(__fmaf_rn(third, 3, -1) == fmaf(third, 3, -1) && fmaf(third, 3, -1) != 0), IS(__frcp_rn(4 * one) == 0.25f);
    IS(__float2int_rn(2.5f * one) == 2), IS(__float2int_rz(-2.7f) == -2), IS(__float2int_ru(2.1f * one) == 3);
    IS(__float2int_rd(-2.1f) == -3), IS(__float2int_rz(1e20f * one) == INT32_MAX), IS(__float2int_rz(NAN) == 0);
    IS(__float2uint_rn(-3.0f * one) == 0), IS(__int2float_rz(16777217) == 16777216.0f);
    IS(__int2float_ru(16777217) == 16777218.0f), IS(__double2float_rn(1.0 + 1e-12) == 1);
    IS(__uint2float_rn(~0u) == 4294967296.0f), IS(__double2int_rn(3.5) == 4), IS(__saturatef(NAN) == 0);
    IS(__saturatef(1.5f * one) == 1), IS(rsqrtf(16 * one) == 0.25f), IS(rsqrt(16.0) == 0.25);
    IS(close(__expf(one), 2.7182818f)), IS(close(__logf(10 * one), 2.3025851f)), IS(close(__log2f(8 * one), 3));
    IS(close(__powf(2 * one, 10), 1024)), IS(close(__sinf(one), 0.84147098f)), IS(close(__cosf(one), 0.5403023f));
    IS(close(__fdividef(one, 3), third)), IS(close(__exp10f(2 * one), 100)), IS(close(rcbrtf(8 * one), 0.5f));
    IS(close(sinpif(0.5f * one), 1)), IS(fabsf(cospif(0.5f * one)) < 1e-6f), IS(close(normcdff(0 * one), 0.5f));
    IS(close(tanhf(one), 0.76159416f)), IS(close(erff(one), 0.84270079f)), IS(isnan(NAN) && isinf(INFINITY));
    IS(FLT_MAX > 3e38f), IS(close(hypotf(3 * one, 4), 5)), IS(fmodf(7 * one, 4) == 3), IS(copysignf(2, -one) == -2);
    float sine, cosine;
    sincosf(one, &sine, &cosine);
    IS(close(sine * sine + cosine * cosine, 1));
}
