//! rope_append: queries and keys rotated to their positions; keys and values into the cache.
//!
//! One block a token. Its first D / 2 threads compute the sines and cosines of the position once,
//! into shared memory; then every thread rotates eight pairs (i, i + D/2) of a head at a time - 64
//! bytes read, 32 written - until all heads of q and k are done, and copies eight numbers of v at a
//! time. The angle is one f32 product, as the models were trained with; from there on sine and
//! cosine are exact to f32 for every position (lib/math.cuh reduces the argument). Queries come out
//! in the cache's type, which has the most mantissa of the 16-bit types: attention multiplies them
//! with keys on the tensor cores. All stores to f16 saturate.
//!
//! Grid: any; one block a token. Block: 128.
#include "lib/convert.cuh"
#include "lib/math.cuh"
#include "lib/shared.cuh"
#include "lib/trace.cuh"

struct RopeAppend {
    const float* q;            // [T, H, D]
    const float* k;            // [T, G, D]
    const float* v;            // [T, G, D]
    const uint32_t* positions; // [1] of the first token
    const uint32_t* sequences; // [1] whose part of the cache is theirs
    const float* frequencies;  // [D/2] radians per position
    kv_t* queries;             // [T, H, D] the rotated q
    kv_t* keys;                // [B, S, G, D] the layer's cache: T rows from the position on are written
    kv_t* values;              // [B, S, G, D] the same
    uint32_t context;          // S
    uint32_t tokens;           // T
    uint32_t heads;            // H
    uint32_t kv_heads;         // G
    float magnitude;           // what cosines and sines are multiplied with
    Trace trace;
};

constexpr int ROPE_APPEND_THREADS = 128;

// Of one position, at each frequency.
template <int D> struct Rotation {
    alignas(16) float cosines[D / 2];
    alignas(16) float sines[D / 2];
};

// Eight numbers, each saturating.
__device__ inline uint4 pack8_kv(const float (&v)[8]) {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        pairs[i] = uint32_t(to_kv(v[2 * i + 1]).bits) << 16 | to_kv(v[2 * i]).bits;
    return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

__device__ inline void load8(float (&v)[8], const float* p) {
    const float4 a = load4(p), b = load4(p + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// Rotates one token's heads, eight pairs a thread at a time. in, out: [heads, D]
template <int D>
__device__ void rotate(kv_t* out, const float* in, uint32_t heads, const Rotation<D>& rotation) {
    constexpr uint32_t PARTS = D / 16; // of eight pairs, in a head
    for (uint32_t i = threadIdx.x; i < heads * PARTS; i += ROPE_APPEND_THREADS) {
        const uint32_t pair = i % PARTS * 8, place = i / PARTS * D + pair;
        float a[8], b[8], c[8], s[8];
        load8(a, in + place), load8(b, in + place + D / 2);
        load8(c, rotation.cosines + pair), load8(s, rotation.sines + pair);
        float low[8], high[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            low[j] = a[j] * c[j] - b[j] * s[j];
            high[j] = b[j] * c[j] + a[j] * s[j];
        }
        store16(out + place, pack8_kv(low));
        store16(out + place + D / 2, pack8_kv(high));
    }
}

// in, out: [count], a multiple of 8
__device__ inline void append(kv_t* out, const float* in, uint32_t count) {
    for (uint32_t i = 8 * threadIdx.x; i < count; i += 8 * ROPE_APPEND_THREADS) {
        float v[8];
        load8(v, in + i);
        store16(out + i, pack8_kv(v));
    }
}

template <int D> __device__ void rope_append(const RopeAppend& args) {
    SHARED(Rotation<D>, rotation);
    grid_dependency_wait();
    begun(args.trace);
    grid_dependency_launch();
    const uint32_t first = args.positions[0], q_row = args.heads * D, kv_row = args.kv_heads * D;
    const uint64_t cached = uint64_t(args.sequences[0]) * args.context * kv_row;
    for (uint64_t token = blockIdx.x; token < args.tokens; token += gridDim.x) {
        const uint64_t position = first + token;
        if (threadIdx.x < D / 2) {
            float sine, cosine;
            sin_cos(float(position) * args.frequencies[threadIdx.x], sine, cosine);
            rotation.sines[threadIdx.x] = args.magnitude * sine;
            rotation.cosines[threadIdx.x] = args.magnitude * cosine;
        }
        __syncthreads();
        rotate<D>(args.queries + token * q_row, args.q + token * q_row, args.heads, rotation);
        rotate<D>(args.keys + cached + position * kv_row, args.k + token * kv_row, args.kv_heads, rotation);
        append(args.values + cached + position * kv_row, args.v + token * kv_row, kv_row);
        __syncthreads(); // the rotation is read: the next token's may replace it
    }
}

extern "C" __global__ void __launch_bounds__(128) rope_append_d64(RopeAppend args) { rope_append<64>(args); }
extern "C" __global__ void __launch_bounds__(128) rope_append_d128(RopeAppend args) { rope_append<128>(args); }
