//! A warp's attention over tiles of the cache, on the tensor cores: one team of up to eight query heads, which
//! share a KV head, against 16 positions at a time (attend_decode.cu has the idea).
#pragma once

#include "lib/convert.cuh"
#include "lib/flow.cuh"
#include "lib/math.cuh"

constexpr uint32_t WARP_TILE = 16; // positions a warp takes at once

// The queries of one team as the first factor of the scores, in units of log2. Lane (g, t) holds
// head g; in step k of 16 its "columns" 2t, 2t+1, 2t+8, 2t+9 are the four dimensions from 32 (k /
// 2) + 8 t + 4 (k % 2) on: the half of a 16-byte piece.
template <int D> struct Queries {
    uint32_t a[D / 16][4];

    __device__ Queries(const float* q, bool valid) {
        const float scale = LOG2_E / sqrtf(float(D));
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            float4 v = {};
            if (valid) v = load4(q + 32 * (k / 2) + 8 * (lane_id() % 4) + 4 * (k % 2));
            split(v.x * scale, v.y * scale, a[k][0], a[k][1]);
            split(v.z * scale, v.w * scale, a[k][2], a[k][3]);
        }
    }

    // Two numbers as f16, and what the rounding left over.
    __device__ static void split(float low, float high, uint32_t& rounded, uint32_t& rest) {
        rounded = pack<f16>(low, high);
        const float2 kept = unpack<f16>(rounded);
        rest = pack<f16>(low - kept.x, high - kept.y);
    }
};

// A warp's softmax in the making. Lane (g, t) holds head g: `sum` over the lane's own positions,
// and in values[n] the dimensions of output tile n, columns 2t and 2t+1, twice: for the weights as
// rounded and for what the rounding left over.
template <int D> struct Softmax {
    float maximum = -infinity();
    float sum = 0;
    float values[D / 8][4] = {};
};

// A warp's keys of one tile: positions g and 8 + g, 16 bytes at dimensions 32 i + 8 t.
template <int D> struct Keys {
    uint4 rows[2][D / 32];

    __device__ void load(const kv_t* keys, uint32_t first, uint32_t end, uint32_t row) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const uint32_t position = first + 8 * n + lane_id() / 4;
            const kv_t* from = keys + uint64_t(position) * row + 8 * (lane_id() % 4);
#pragma unroll
            for (int i = 0; i < D / 32; i++) rows[n][i] = load_once(from + 32 * i, position < end);
        }
    }
};

// A warp's values of one tile: positions 2t, 2t+1, 2t+8, 2t+9, 16 bytes at dimensions 64 i + 8 g.
template <int D> struct Values {
    uint4 rows[4][D / 64];

    __device__ void load(const kv_t* values, uint32_t first, uint32_t end, uint32_t row) {
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const uint32_t position = first + 2 * (lane_id() % 4) + p % 2 + p / 2 * 8;
            const kv_t* from = values + uint64_t(position) * row + lane_id() / 4 * 8;
#pragma unroll
            for (int i = 0; i < D / 64; i++) rows[p][i] = load_once(from + 64 * i, position < end);
        }
    }
};

// Brings a warp's keys and values of one tile into the L2 cache, a line of 128 bytes at a time.
template <int D>
__device__ inline void prefetch_tile(const kv_t* keys, const kv_t* values, uint32_t first,
                                     uint32_t end, uint32_t row) {
    constexpr uint32_t PIECES = D / 64, LINES = WARP_TILE * PIECES; // of a row, of the keys
#pragma unroll
    for (uint32_t i = 0; i < 2 * LINES; i += 32) {
        const uint32_t line = (i + lane_id()) % LINES, position = first + line / PIECES;
        const kv_t* from = i + lane_id() < LINES ? keys : values;
        if (position < end) prefetch_l2(from + uint64_t(position) * row + line % PIECES * 64);
    }
}

// The weights of a tile's positions, 2^(score - maximum), as the first factor of the second
// product; the state is brought to the new maximum. Two score tiles of 8 positions: the lane's are
// 2t and 2t+1.
template <int D>
__device__ inline void weigh(const Queries<D>& queries, const Keys<D>& keys, uint32_t first,
                             uint32_t end, Softmax<D>& state, uint32_t (&weights)[4]) {
    float scores[4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        float d[4] = {};
#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            const uint4& piece = keys.rows[n][i];
            mma_m16n8k16<f16>(d, queries.a[2 * i], {piece.x, piece.y});
            mma_m16n8k16<f16>(d, queries.a[2 * i + 1], {piece.z, piece.w});
        }
        const uint32_t position = first + 8 * n + 2 * (lane_id() % 4);
        scores[2 * n] = position < end ? d[0] + d[2] : -infinity();
        scores[2 * n + 1] = position + 1 < end ? d[1] + d[3] : -infinity();
    }
    float maximum = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
    maximum = fmaxf(maximum, shfl_xor(maximum, 1));
    maximum = fmaxf(fmaxf(maximum, shfl_xor(maximum, 2)), state.maximum);
    const float shrink = exp2_approx(state.maximum - maximum);
    state.maximum = maximum;
    state.sum *= shrink;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        for (float& v : state.values[n]) v *= shrink;
#pragma unroll
    for (float& score : scores) {
        score = exp2_approx(score - maximum);
        state.sum += score;
    }
    Queries<D>::split(scores[0], scores[1], weights[0], weights[1]);
    Queries<D>::split(scores[2], scores[3], weights[2], weights[3]);
}

__device__ inline uint32_t word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// values += weights . rows. Lane (g, t) has eight neighbouring dimensions of its positions; in
// output tile n = 8 i + j column g is dimension 64 i + 8 g + j.
template <int D>
__device__ inline void add_values(const uint32_t (&weights)[4], const Values<D>& values,
                                  Softmax<D>& state) {
#pragma unroll
    for (int i = 0; i < D / 64; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const auto pair = [&](int p) {
                const uint32_t low = word(values.rows[p][i], j / 2);
                const uint32_t high = word(values.rows[p + 1][i], j / 2);
                return byte_permute(low, high, j % 2 ? 0x7632 : 0x5410);
            };
            mma_m16n8k16<f16>(state.values[8 * i + j], weights, {pair(0), pair(2)});
        }
    }
}
