//! sample: from logits to the next token, and on to the next step.
//!
//! The outcome is specified to the bit (src/sampler): a token's weight is exp((logit - highest) /
//! temperature) times 2^40, rounded down to an integer, and all sums are of integers, exact in any
//! order. So the host's sampler, and any number of blocks, choose the same token.
//!
//! Every block takes a share of the vocabulary, and what takes time is done on shares:
//!   1. bias, penalties, the highest logit. Greedily, the block that finishes last has the choice.
//!   2. else all blocks wait for each other, since weights are relative to the highest logit. With
//!      neither top-k nor top-p each sums its weights; the last finds the share in which the drawn
//!      token lies, and in it the token.
//!   3. else they sum counts (for top-k) or weights in bins of half a temperature, wait again, and
//!      list the tokens up to the bin in which the last kept one lies: few, as a rule.
//! The last block then finds up to three tokens in the list - the last that top-k keeps, the last
//! that top-p keeps, the one that is drawn - each as the first in an order at which a running sum
//! exceeds a target. That is a radix selection: the sums of 2048 bins, in shared memory; the bin
//! that holds the target; then the bins within it. The first bins are even steps of the logit, 1/64
//! of the temperature each, which part the probable tokens well.
//!
//! The next token, its position and its count stay on the device. The host learns of it from a
//! ring.
//!
//! Blocks wait for each other, so all must run at once: no more than one a multiprocessor. The next
//! kernels begin when all do: they have weights to fetch.
//!
//! Grid: ceil(V / 1024), but at most one block an SM and 512. V is at most 2^18.
#include "lib/math.cuh"
#include "lib/random.cuh"
#include "lib/select.cuh"

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
    uint64_t* best; // [blocks] scratch: the first token of each share
    uint64_t* sums; // [blocks] scratch: the weight of each share
    uint64_t* bins; // [64] of half a temperature, over all shares; zeros before and after
    uint32_t* candidates; // [2, V] scratch
    uint32_t* tickets; // [4] zeros before and after, see the constants
    uint32_t vocab; // V
    uint32_t ring_size; // R
};

constexpr uint32_t WIDE_BINS = 64; // of all shares together
// Tickets: blocks that have found their best token, that have filled the bins, and that are done;
// and the number of candidates.
constexpr uint32_t FOUND = 0, BINNED = 1, DONE = 2, LISTED = 3;
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

// Bias and penalties on one logit, in the host's order; none of the operations may be fused.
__device__ inline float penalise(const float* options, uint32_t count, float logit) {
    if (count == 0) return logit;
    const float repeat = options[3], times = float(count & ~FAILED);
    logit = logit > 0.0f ? logit / repeat : multiply(logit, repeat);
    if (times == 0.0f) return logit;
    return add(logit, -add(multiply(options[5], times), options[4]));
}

// The smallest weight that min-p keeps.
__device__ inline uint64_t least_weight(const Sample& args) {
    const float min_p = args.options[2];
    return min_p > 0.0f ? uint64_t(ceil(double(min_p) * double(1ull << 40))) : 0;
}

// The tokens that are still candidates.
struct Tokens {
    const float* logits; // [V]
    float highest;
    float temperature;
    uint32_t first; // without a list, the candidates are the `count` ids from here on
    uint32_t count;
    const uint32_t* list = nullptr; // [count] of ids
    uint64_t last = ~0ull; // the last key that is kept
    uint64_t least = 0; // the smallest weight that is kept

    __device__ uint32_t id(uint32_t i) const { return list ? list[i] : first + i; }

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

    // Appends those in bins up to `last_bin` to a list, in any order. `reserve(n)` is the place of
    // the first of n more.
    template <class Reserve>
    __device__ void append(uint32_t last_bin, uint32_t* to, Reserve reserve) const {
        for (uint32_t start = 0; start < count; start += THREADS) {
            const uint32_t i = start + threadIdx.x;
            const bool keep = i < count && bin(id(i)) <= last_bin;
            const uint32_t kept = ballot(keep);
            uint32_t at = 0;
            if (lane_id() == 0 && kept != 0) at = reserve(__popc(kept));
            at = shfl(at, 0) + __popc(kept & ((1u << lane_id()) - 1));
            if (keep) to[at] = id(i);
        }
    }

    // Keeps those in bins up to `last_bin`. `to` has room for all.
    __device__ void narrow(uint32_t last_bin, uint32_t* to, uint32_t& shared_count) {
        if (threadIdx.x == 0) shared_count = 0;
        __syncthreads();
        append(last_bin, to, [&](uint32_t n) { return atomic_add_shared(&shared_count, n); });
        __syncthreads();
        list = to;
        count = shared_count;
    }
};

// The key of the first token, in the order of keys, at which the running sum of `weight(id)`
// exceeds `target(total)`. The candidates beyond its bin are dropped; `to` has room for the others.
template <class Weight, class Target>
__device__ uint64_t select_key(Tokens& tokens, Bins& bins, Exchange& exchange, uint32_t* to,
                               Weight weight, Target target) {
    bins.clear();
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        const uint32_t id = tokens.id(i);
        bins.add(tokens.bin(id), weight(id));
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
            const uint32_t id = tokens.id(i);
            const uint64_t key = tokens.key(id);
            const bool matches = unknown == 64 || key >> unknown == known;
            if (matches && tokens.bin(id) == bin)
                bins.add(uint32_t(key >> shift) % (1u << (unknown - shift)), weight(id));
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
        const uint32_t id = tokens.id(i);
        bins.add(id / IDS, tokens.weight(id));
    }
    const Place coarse = bins.find(exchange, target);
    bins.clear();
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        const uint32_t id = tokens.id(i);
        if (id / IDS == coarse.bin) bins.add(id % IDS, tokens.weight(id));
    }
    const Place fine = bins.find(exchange, [&](uint64_t) { return coarse.left; });
    return coarse.bin * IDS + fine.bin;
}

// The first token of all shares, once all blocks have come with theirs.
__device__ inline uint64_t first_of_all(const Sample& args, Exchange& exchange) {
    uint64_t best = ~0ull;
    for (uint32_t i = threadIdx.x; i < gridDim.x; i += THREADS)
        best = args.best[i] < best ? args.best[i] : best;
    return block_min(best, exchange);
}

// What narrows the choice, beside min-p.
struct Filters {
    uint32_t top_k; // 0: all
    float top_p;

    __device__ explicit Filters(const Sample& args) : top_k(*args.top_k), top_p(args.options[1]) {
        if (top_k >= args.vocab) top_k = 0;
    }

    __device__ bool are_any() const { return top_k > 0 || top_p < 1.0f; }

    // Where the last kept token lies in the weight of all.
    __device__ uint64_t share(uint64_t total) const {
        return uint64_t(double(top_p) * double(total));
    }
};

// Adds the block's tokens to the list of those that the first filter may keep. Returns where the
// last kept one lies: in the number of tokens for top-k, in the weight of all for top-p.
__device__ inline uint64_t list_share(const Sample& args, const Filters& filters,
                                      const Tokens& tokens, Bins& bins, Exchange& exchange) {
    constexpr uint32_t OWN = BINS / THREADS, LANES = BINS / WIDE_BINS / OWN; // of a wide bin
    bins.clear();
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        const uint32_t id = tokens.id(i);
        bins.add(tokens.bin(id), filters.top_k > 0 ? 1 : tokens.weight(id));
    }
    uint64_t own[OWN], sum = 0;
    bins.read(own);
    for (uint64_t bin : own) sum += bin;
    for (uint32_t mask = 1; mask < LANES; mask *= 2) sum += shfl_wide(sum, lane_id() ^ mask);
    if (threadIdx.x % LANES == 0 && sum > 0) atomic_add_gpu(&args.bins[threadIdx.x / LANES], sum);
    meet(&args.tickets[BINNED], exchange);
    const uint64_t wide[1] = {threadIdx.x < WIDE_BINS ? args.bins[threadIdx.x] : 0};
    uint64_t goal;
    const Place place = locate(wide, exchange, [&](uint64_t total) {
        return goal = filters.top_k > 0 ? filters.top_k - 1 : filters.share(total);
    });
    const uint32_t last_bin = (place.bin + 1) * (BINS / WIDE_BINS) - 1;
    tokens.append(last_bin, args.candidates,
                  [&](uint32_t n) { return atomic_add_gpu(&args.tickets[LISTED], n); });
    return goal;
}

// Draws one of the listed tokens; one block. `goal`: see list_share.
__device__ inline uint32_t draw_listed(const Sample& args, const Filters& filters, Tokens tokens,
                                       uint64_t goal, uint64_t random, Bins& bins,
                                       Exchange& exchange) {
    tokens.list = args.candidates;
    tokens.count = args.tickets[LISTED];
    uint32_t* spare = args.candidates + args.vocab;
    if (filters.top_k > 0) {
        const auto one = [](uint32_t) { return uint64_t(1); };
        const auto target = [&](uint64_t) { return goal; };
        tokens.last = select_key(tokens, bins, exchange, spare, one, target);
        spare = args.candidates;
    }
    if (filters.top_p < 1.0f) {
        const auto weight = [&](uint32_t id) { return tokens.weight(id); };
        tokens.last = select_key(tokens, bins, exchange, spare, weight, [&](uint64_t total) {
            return filters.top_k > 0 ? filters.share(total) : goal;
        });
    }
    tokens.least = least_weight(args);
    return select_id(tokens, bins, exchange,
                     [&](uint64_t total) { return multiply_high(random, total); });
}

// Leaves the weight of the block's tokens for the last block to see.
__device__ inline void sum_share(const Sample& args, const Tokens& tokens, Exchange& exchange) {
    uint64_t sum = 0;
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS)
        sum += tokens.weight(tokens.id(i));
    sum = block_scan(sum, exchange);
    if (threadIdx.x == THREADS - 1) args.sums[blockIdx.x] = sum;
}

// Draws one of all tokens; one block. `share`: tokens of a block
__device__ inline uint32_t draw_any(const Sample& args, Tokens tokens, uint32_t share,
                                    uint64_t random, Bins& bins, Exchange& exchange) {
    const uint64_t own[1] = {threadIdx.x < gridDim.x ? args.sums[threadIdx.x] : 0};
    const Place place = locate(own, exchange,
                               [&](uint64_t total) { return multiply_high(random, total); });
    tokens.first = place.bin * share;
    tokens.count = args.vocab - tokens.first < share ? args.vocab - tokens.first : share;
    return select_id(tokens, bins, exchange, [&](uint64_t) { return place.left; });
}

// Makes the choice known and leaves the scratch as it was found; one block.
__device__ inline void publish(const Sample& args, uint64_t best, uint32_t drawn) {
    if (threadIdx.x < WIDE_BINS) args.bins[threadIdx.x] = 0;
    if (threadIdx.x < 4) args.tickets[threadIdx.x] = 0;
    if (threadIdx.x != 0) return;
    const bool is_broken = best >> 32 == 0;
    const bool is_empty = best >> 32 == float_bits(-infinity());
    const uint32_t position = *args.cursor + 1;
    const uint32_t token = is_broken || is_empty ? 0 : drawn;
    const uint32_t outcome = is_empty ? ~0u : is_broken ? FAILED | uint32_t(best) : token;
    args.counts[token] += 1;
    *args.token = token;
    *args.cursor = position;
    store_release_system(args.ring + position % args.ring_size, uint64_t(position) << 32 | outcome);
}

// Bias and penalties on the block's tokens; the first of them.
__device__ inline uint64_t adjust_share(const Sample& args, uint32_t begin, uint32_t end) {
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
    return best;
}

__device__ inline void sample_token(const Sample& args) {
    SHARED(Bins, bins);
    SHARED(Exchange, exchange);
    grid_dependency_launch();
    grid_dependency_wait();
    const uint32_t share = (args.vocab + gridDim.x - 1) / gridDim.x;
    const uint32_t begin = blockIdx.x * share < args.vocab ? blockIdx.x * share : args.vocab;
    const uint32_t end = args.vocab - begin < share ? args.vocab : begin + share;
    uint64_t best = block_min(adjust_share(args, begin, end), exchange);
    if (threadIdx.x == 0) args.best[blockIdx.x] = best;
    const float temperature = args.options[0];
    if (temperature == 0.0f) {
        if (!is_last(&args.tickets[FOUND], exchange)) return;
        best = first_of_all(args, exchange);
        return publish(args, best, uint32_t(best));
    }
    meet(&args.tickets[FOUND], exchange);
    best = first_of_all(args, exchange);
    if (best >> 32 == 0 || best >> 32 == float_bits(-infinity())) {
        if (is_last(&args.tickets[DONE], exchange)) publish(args, best, 0);
        return;
    }
    Tokens tokens = {args.logits, args.logits[uint32_t(best)], temperature, begin, end - begin};
    const Filters filters(args);
    const uint4 bits = philox(*args.seed, uint64_t(*args.cursor) + 1, 0);
    const uint64_t random = bits.x | uint64_t(bits.y) << 32;
    uint32_t token;
    if (filters.are_any()) {
        const uint64_t goal = list_share(args, filters, tokens, bins, exchange);
        if (!is_last(&args.tickets[DONE], exchange)) return;
        token = draw_listed(args, filters, tokens, goal, random, bins, exchange);
    } else {
        tokens.least = least_weight(args);
        sum_share(args, tokens, exchange);
        if (!is_last(&args.tickets[DONE], exchange)) return;
        token = draw_any(args, tokens, share, random, bins, exchange);
    }
    publish(args, best, token);
}

extern "C" __global__ void __launch_bounds__(512, 2) sample(Sample args) { sample_token(args); }
