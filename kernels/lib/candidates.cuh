//! Tokens as candidates for a choice: keys that order them, weights that are their probabilities, and
//! the selection of one by running sums.
#pragma once

#include "lib/math.cuh"
#include "lib/select.cuh"

// Comes after all keys.
constexpr uint64_t NO_KEY = ~1ull;

// e^x for x <= 0, bit for bit the host's: its operations in its order, none of them fused.
__device__ inline float exact_exp(float x) {
    if (x < -87.0f) return 0.0f;
    constexpr float ROUNDER = 12582912.0f; // 1.5 * 2^23 leaves the nearest integer in the low bits
    const float n = add(add(multiply(x, LOG2_E), ROUNDER), -ROUNDER);
    const float r = add(add(x, -multiply(n, 0.693359375f)), -multiply(n, -2.1219444e-4f));
    constexpr float TERMS[7] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    float e = 1.0f / 5040;
#pragma unroll
    for (int i = 0; i < 7; i++) e = add(multiply(e, r), TERMS[i]);
    return multiply(e, bits_float(uint32_t(int32_t(n) + 127) << 23));
}

// A token as a number: ascending, the higher logit is first, then the lower id. A logit that is NaN
// or infinite comes before all others.
__device__ inline uint64_t key_of(float logit, uint32_t id) {
    if (!(logit < infinity())) return id;
    const uint32_t bits = float_bits(logit + 0.0f); // of a negative zero, zero
    const uint32_t descending = bits >> 31 == 0 ? ~(bits | 1u << 31) : bits;
    return uint64_t(descending) << 32 | id;
}

// The logit that a key is made from, but for the sign of a zero.
__device__ inline float logit_of(uint64_t key) {
    const uint32_t ascending = ~uint32_t(key >> 32);
    return bits_float(ascending >> 31 == 1 ? ascending ^ 1u << 31 : ~ascending);
}

// The tokens that are still candidates.
struct Tokens {
    float highest;
    float temperature;
    const float* logits; // [count] of neighbouring tokens
    uint32_t first; // id
    uint32_t count;
    const uint64_t* list = nullptr; // [count] of keys, instead of logits
    uint64_t last = ~0ull; // the last key that is kept
    uint64_t least = 0; // the smallest weight that is kept

    __device__ uint64_t key(uint32_t i) const {
        return list ? list[i] : key_of(logits[i], first + i);
    }

    // The logit in temperatures above the highest.
    __device__ float relative(uint64_t key) const {
        return add(logit_of(key), -highest) / temperature;
    }

    // 64 bins a temperature; whatever is 32 of them below the highest is in the last.
    __device__ uint32_t bin(uint64_t key) const {
        const float x = relative(key);
        return x > -float(BINS) / 64 ? uint32_t(x * -64.0f) : BINS - 1;
    }

    __device__ uint64_t weight(uint64_t key) const {
        if (key > last) return 0;
        const uint64_t weight = uint64_t(exact_exp(relative(key)) * float(1ull << 40));
        return weight < least ? 0 : weight;
    }

    // Lists those in bins up to `last_bin`, in any order, by `put(at, key)`. `reserve(n)` is the
    // place of the first of n more.
    template <class Reserve, class Put>
    __device__ void list_upto(uint32_t last_bin, Reserve reserve, Put put) const {
        for (uint32_t start = 0; start < count; start += THREADS) {
            const uint32_t i = start + threadIdx.x;
            const uint64_t candidate = i < count ? key(i) : NO_KEY;
            const bool keep = i < count && bin(candidate) <= last_bin;
            const uint32_t kept = ballot(keep);
            uint32_t at = 0;
            if (lane_id() == 0 && kept != 0) at = reserve(__popc(kept));
            at = shfl(at, 0) + __popc(kept & ((1u << lane_id()) - 1));
            if (keep) put(at, candidate);
        }
    }

    // Keeps those in bins up to `last_bin`. `to` has room for all.
    __device__ void narrow(uint32_t last_bin, uint64_t* to, uint32_t& shared_count) {
        if (threadIdx.x == 0) shared_count = 0;
        __syncthreads();
        list_upto(
            last_bin, [&](uint32_t n) { return atomic_add_shared(&shared_count, n); },
            [&](uint32_t at, uint64_t key) { to[at] = key; });
        __syncthreads();
        list = to;
        count = shared_count;
    }
};

// The key of the first token, in the order of keys, at which the running sum of `weight(key)`
// exceeds `target(total)`. The candidates beyond its bin are dropped; `to` has room for the others.
template <class Weight, class Target>
__device__ uint64_t select_key(Tokens& tokens, Bins& bins, Exchange& exchange, uint64_t* to,
                               Weight weight, Target target) {
    bins.clear();
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        const uint64_t key = tokens.key(i);
        bins.add(tokens.bin(key), weight(key));
    }
    Place place = bins.find(exchange, target);
    const uint32_t bin = place.bin;
    tokens.narrow(bin, to, bins.kept);
    // The key's 64 bits, eleven at a time; the last nine.
    uint64_t known = 0;
    for (int unknown = 64; unknown > 0;) {
        const int shift = unknown > 11 ? unknown - 11 : 0;
        bins.clear();
        for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
            const uint64_t key = tokens.key(i);
            const bool matches = unknown == 64 || key >> unknown == known;
            if (matches && tokens.bin(key) == bin)
                bins.add(uint32_t(key >> shift) % (1u << (unknown - shift)), weight(key));
        }
        place = bins.find(exchange, [&](uint64_t) { return place.left; });
        known = known << (unknown - shift) | place.bin;
        unknown = shift;
    }
    return known;
}

// The first id, in the order of ids, at which the running sum of weights exceeds `target(total)`.
template <class Target>
__device__ uint32_t select_id(const Tokens& tokens, Bins& bins, Exchange& exchange,
                              Target target) {
    constexpr uint32_t IDS = 128; // in each of the first bins
    bins.clear();
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        const uint64_t key = tokens.key(i);
        bins.add(uint32_t(key) / IDS, tokens.weight(key));
    }
    const Place coarse = bins.find(exchange, target);
    bins.clear();
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        const uint64_t key = tokens.key(i);
        if (uint32_t(key) / IDS == coarse.bin) bins.add(uint32_t(key) % IDS, tokens.weight(key));
    }
    const Place fine = bins.find(exchange, [&](uint64_t) { return coarse.left; });
    return coarse.bin * IDS + fine.bin;
}
