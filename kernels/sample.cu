//! sample: from logits to the next token, and on to the next step.
//!
//! The outcome is specified to the bit (src/sampler): a token's weight is exp((logit - highest) /
//! temperature) times 2^40, rounded down to an integer, and all sums are of integers, exact in any
//! order. So the host's sampler, and any number of blocks, choose the same token.
//!
//! Every block takes a share of the vocabulary: bias, penalties, the highest logit. The block that
//! finishes last does the rest alone: greedily that is all. Otherwise it finds up to three tokens -
//! the last that top-k keeps, the last that top-p keeps, the one that is drawn - each as the first
//! in an order at which a running sum exceeds a target. That is a radix selection: the sums of 2048
//! bins, in shared memory; the bin that holds the target; then the bins within it. The first bins
//! are even steps of the logit, 1/64 of the temperature each, which part the probable tokens well,
//! and whatever lies beyond the target's bin is never looked at again: the few tokens left go to a
//! list.
//!
//! The next token, its position and its count stay on the device. The host learns of it from a
//! ring.
//!
//! Grid: ceil(V / 1024), any. V is at most 2^18.
#include "lib/math.cuh"
#include "lib/ptx.cuh"
#include "lib/random.cuh"
#include "lib/shared.cuh"

// token ~ filter(softmax((logits + bias - penalties) / temperature))
struct Sample {
    float* logits; // [V] in and out: with bias and penalties
    const float* options; // [6] temperature, top-p, min-p; repeat, presence, frequency penalty
    const uint32_t* top_k; // [1] 0: all
    const uint64_t* seed; // [1]
    const uint32_t* bias_ids; // [B] each at most once
    const float* biases; // [B]
    const uint32_t* bias_count; // [1] B
    uint32_t* counts; // [V] times in the answer; the highest bit: in the prompt
    uint32_t* token; // [1] out: the next step's token; 0 where there is none
    uint32_t* cursor; // [1] in and out: the position of the last token, then of the next
    uint64_t* ring; // [R] out, at position % R: position * 2^32 + token (or FAILED)
    uint64_t* best; // [blocks] scratch
    uint32_t* candidates; // [2, V] scratch
    uint32_t* ticket; // [1] zero before and after
    uint32_t vocab; // V
    uint32_t ring_size; // R
};

constexpr uint32_t THREADS = 1024;
constexpr uint32_t BINS = 2048;
// Instead of a token in the ring: this bit and the first id whose logit is NaN or infinite, or all
// bits if every token is ruled out.
constexpr uint32_t FAILED = 1u << 31;

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

__device__ inline uint64_t shfl_wide(uint64_t v, uint32_t lane) {
    return uint64_t(shfl(uint32_t(v >> 32), lane)) << 32 | shfl(uint32_t(v), lane);
}

// The least over the block, for thread 0.
__device__ inline uint64_t block_min(uint64_t v, uint64_t (&warps)[THREADS / 32]) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        const uint64_t other = shfl_wide(v, lane_id() ^ mask);
        v = other < v ? other : v;
    }
    if (lane_id() == 0) warps[warp_id()] = v;
    __syncthreads();
    if (threadIdx.x == 0)
        for (const uint64_t& warp : warps) v = warp < v ? warp : v;
    return v;
}

// Bias and penalties on one logit, in the host's order; none of the operations may be fused.
__device__ inline float penalise(const float* options, uint32_t count, float logit) {
    if (count == 0) return logit;
    const float repeat = options[3], times = float(count & ~FAILED);
    logit = logit > 0.0f ? logit / repeat : multiply(logit, repeat);
    if (times == 0.0f) return logit;
    return add(logit, -add(multiply(options[5], times), options[4]));
}

// Sums of integers below 2^41 by bin, in pieces of 14 bits: 2^18 of those fit 32 bits, for which
// shared memory has atomic additions.
struct Bins {
    uint32_t pieces[3][BINS];
    uint64_t warps[THREADS / 32];
    uint64_t total; // of all bins
    uint64_t before; // the target's bin: what lies before it
    uint32_t chosen; // the target's bin
    uint32_t kept; // candidates left

    __device__ void clear() {
        for (uint32_t i = threadIdx.x; i < 3 * BINS; i += THREADS) pieces[i / BINS][i % BINS] = 0;
        __syncthreads();
    }

    __device__ void add(uint32_t bin, uint64_t v) {
        for (uint32_t (&piece)[BINS] : pieces) {
            if (v % (1 << 14) != 0) atomic_add_shared(&piece[bin], uint32_t(v % (1 << 14)));
            v >>= 14;
        }
    }

    __device__ uint64_t sum(uint32_t bin) const {
        return pieces[0][bin] + (uint64_t(pieces[1][bin]) << 14) + (uint64_t(pieces[2][bin]) << 28);
    }

    // Finds the first bin up to and with which the sum exceeds `target(total)`, which is below the
    // total; returns how far the target lies into it.
    template <class Target> __device__ uint64_t find(Target target) {
        __syncthreads();
        const uint64_t own[2] = {sum(2 * threadIdx.x), sum(2 * threadIdx.x + 1)};
        uint64_t upto = own[0] + own[1]; // and with this thread's two bins
        for (uint32_t delta = 1; delta < 32; delta *= 2) {
            const uint64_t lower = shfl_wide(upto, (lane_id() - delta) % 32);
            if (lane_id() >= delta) upto += lower;
        }
        if (lane_id() == 31) warps[warp_id()] = upto;
        __syncthreads();
        for (uint32_t warp = 0; warp < warp_id(); warp++) upto += warps[warp];
        if (threadIdx.x == THREADS - 1) total = upto;
        __syncthreads();
        const uint64_t goal = target(total), at = upto - own[0] - own[1];
        if (at <= goal && goal < upto) {
            const bool second = goal - at >= own[0];
            chosen = 2 * threadIdx.x + second;
            before = at + (second ? own[0] : 0);
        }
        __syncthreads();
        return goal - before;
    }
};

// The tokens that are still candidates.
struct Tokens {
    const float* logits; // [V]
    float highest;
    float temperature;
    const uint32_t* list = nullptr; // [count] of ids; without a list, all up to the count
    uint32_t count;
    uint64_t last = ~0ull; // the last key that is kept
    uint64_t least = 0; // the smallest weight that is kept

    __device__ uint32_t id(uint32_t i) const { return list ? list[i] : i; }

    __device__ uint64_t key(uint32_t id) const { return key_of(logits[id], id); }

    // The logit in temperatures above the highest.
    __device__ float relative(uint32_t id) const { return add(logits[id], -highest) / temperature; }

    // 64 bins a temperature; whatever is 32 of them below the highest is in the last.
    __device__ uint32_t bin(uint32_t id) const {
        const float x = relative(id);
        return x > -float(BINS) / 64 ? uint32_t(x * -64.0f) : BINS - 1;
    }

    __device__ uint64_t weight(uint32_t id) const {
        if (key(id) > last) return 0;
        const uint64_t weight = uint64_t(exact_exp(relative(id)) * float(1ull << 40));
        return weight < least ? 0 : weight;
    }

    // Keeps those in bins up to `last_bin`, in any order. `to` has room for all.
    __device__ void narrow(uint32_t last_bin, uint32_t* to, uint32_t& shared_count) {
        if (threadIdx.x == 0) shared_count = 0;
        __syncthreads();
        for (uint32_t first = 0; first < count; first += THREADS) {
            const uint32_t i = first + threadIdx.x;
            const bool keep = i < count && bin(id(i)) <= last_bin;
            const uint32_t kept = ballot(keep);
            uint32_t at = 0;
            if (lane_id() == 0 && kept != 0) at = atomic_add_shared(&shared_count, __popc(kept));
            at = shfl(at, 0) + __popc(kept & ((1u << lane_id()) - 1));
            if (keep) to[at] = id(i);
        }
        __syncthreads();
        list = to;
        count = shared_count;
    }
};

// The key of the first token, in the order of keys, at which the running sum of `weight(id)`
// exceeds `target(total)`. The candidates beyond its bin are dropped; `to` has room for the others.
template <class Weight, class Target>
__device__ uint64_t select_key(Tokens& tokens, Bins& bins, uint32_t* to, Weight weight,
                               Target target) {
    bins.clear();
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        const uint32_t id = tokens.id(i);
        bins.add(tokens.bin(id), weight(id));
    }
    uint64_t left = bins.find(target);
    const uint32_t bin = bins.chosen;
    tokens.narrow(bin, to, bins.kept);
    // The key's 64 bits, eleven at a time; the last nine.
    uint64_t known = 0;
    for (int unknown = 64; unknown > 0;) {
        const int shift = unknown > 11 ? unknown - 11 : 0;
        bins.clear();
        for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
            const uint32_t id = tokens.id(i);
            const uint64_t key = tokens.key(id);
            const bool matches = unknown == 64 || key >> unknown == known;
            if (matches && tokens.bin(id) == bin)
                bins.add(uint32_t(key >> shift) % (1u << (unknown - shift)), weight(id));
        }
        left = bins.find([&](uint64_t) { return left; });
        known = known << (unknown - shift) | bins.chosen;
        unknown = shift;
    }
    return known;
}

// The first id, in the order of ids, at which the running sum of weights exceeds `target(total)`.
template <class Target>
__device__ uint32_t select_id(const Tokens& tokens, Bins& bins, Target target) {
    constexpr uint32_t IDS = 128; // in each of the first bins
    bins.clear();
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        const uint32_t id = tokens.id(i);
        bins.add(id / IDS, tokens.weight(id));
    }
    const uint64_t left = bins.find(target);
    const uint32_t bin = bins.chosen;
    bins.clear();
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        const uint32_t id = tokens.id(i);
        if (id / IDS == bin) bins.add(id % IDS, tokens.weight(id));
    }
    bins.find([&](uint64_t) { return left; });
    return bin * IDS + bins.chosen;
}

// Draws a token; `best` has the highest logit.
__device__ inline uint32_t draw(const Sample& args, uint32_t best, Bins& bins) {
    Tokens tokens = {args.logits, args.logits[best], args.options[0]};
    tokens.count = args.vocab;
    const uint32_t top_k = *args.top_k;
    const float top_p = args.options[1], min_p = args.options[2];
    if (0 < top_k && top_k < args.vocab) {
        const auto one = [](uint32_t) { return uint64_t(1); };
        const auto target = [&](uint64_t) { return uint64_t(top_k - 1); };
        tokens.last = select_key(tokens, bins, args.candidates, one, target);
    }
    if (top_p < 1.0f) {
        const auto weight = [&](uint32_t id) { return tokens.weight(id); };
        const auto target = [&](uint64_t total) { return uint64_t(double(top_p) * double(total)); };
        tokens.last = select_key(tokens, bins, args.candidates + args.vocab, weight, target);
    }
    if (min_p > 0.0f) tokens.least = uint64_t(ceil(double(min_p) * double(1ull << 40)));
    const uint4 bits = philox(*args.seed, uint64_t(*args.cursor) + 1, 0);
    const uint64_t random = bits.x | uint64_t(bits.y) << 32;
    return select_id(tokens, bins, [&](uint64_t total) { return multiply_high(random, total); });
}

// Makes the choice known; one thread.
__device__ inline void publish(const Sample& args, uint64_t best, uint32_t drawn) {
    const bool is_broken = best >> 32 == 0;
    const bool is_empty = best >> 32 == float_bits(-infinity());
    const uint32_t position = *args.cursor + 1;
    const uint32_t token = is_broken || is_empty ? 0 : drawn;
    const uint32_t outcome = is_empty ? ~0u : is_broken ? FAILED | uint32_t(best) : token;
    args.counts[token] += 1;
    *args.token = token;
    *args.cursor = position;
    *args.ticket = 0;
    store_release_system(args.ring + position % args.ring_size, uint64_t(position) << 32 | outcome);
}

__device__ inline void sample_token(const Sample& args) {
    grid_dependency_wait();
    grid_dependency_launch();
    const uint32_t share = (args.vocab + gridDim.x - 1) / gridDim.x;
    const uint32_t begin = blockIdx.x * share;
    const uint32_t end = begin + share < args.vocab ? begin + share : args.vocab;
    for (uint32_t i = threadIdx.x; i < *args.bias_count; i += THREADS) {
        const uint32_t id = args.bias_ids[i];
        if (begin <= id && id < end) args.logits[id] += args.biases[i];
    }
    __syncthreads();
    uint64_t best = ~0ull;
    for (uint32_t id = begin + threadIdx.x; id < end; id += THREADS) {
        const float given = args.logits[id], logit = penalise(args.options, args.counts[id], given);
        if (logit != given) args.logits[id] = logit;
        const uint64_t key = key_of(logit, id);
        best = key < best ? key : best;
    }
    SHARED(Bins, bins);
    SHARED(uint64_t, least);
    SHARED(bool, is_last);
    best = block_min(best, bins.warps);
    if (threadIdx.x == 0) args.best[blockIdx.x] = best;
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomic_add_acq_rel_gpu(args.ticket, 1) == gridDim.x - 1;
    __syncthreads();
    if (!is_last) return;

    best = ~0ull;
    for (uint32_t i = threadIdx.x; i < gridDim.x; i += THREADS)
        best = args.best[i] < best ? args.best[i] : best;
    best = block_min(best, bins.warps);
    if (threadIdx.x == 0) least = best;
    __syncthreads();
    best = least;
    uint32_t token = uint32_t(best);
    const bool can_draw = best >> 32 != 0 && best >> 32 != float_bits(-infinity());
    if (args.options[0] != 0.0f && can_draw) token = draw(args, token, bins);
    __syncthreads();
    if (threadIdx.x == 0) publish(args, best, token);
}

extern "C" __global__ void __launch_bounds__(1024) sample(Sample args) { sample_token(args); }
