//! sample: from logits to the next token, and on to the next step.
//!
//! The outcome is specified to the bit (src/sampler): a token's weight is exp((logit - highest) /
//! temperature) times 2^40, rounded down to an integer, and all sums are of integers, exact in any
//! order. So the host's sampler, and any number of blocks, choose the same token.
//!
//! Every block takes a share of the vocabulary, and what takes time is done on shares:
//!   1. bias, penalties, the highest logit. Greedily, one block makes the choice.
//!   2. else all blocks wait for each other, since weights are relative to the highest logit. With
//!      neither top-k nor top-p each tells the sum of its weights; the block in whose share the
//!      drawn token lies finds it there.
//!   3. else they sum counts (for top-k) or weights in bins of half a temperature, wait again, and
//!      list the tokens up to the bin in which the last kept one lies: few, as a rule.
//! The last block then finds up to three tokens in the list - the last that top-k keeps, the last
//! that top-p keeps, the one that is drawn - each as the first in an order at which a running sum
//! exceeds a target. That is a radix selection: the sums of 2048 bins, in shared memory; the bin
//! that holds the target; then the bins within it. The first bins are even steps of the logit, 1/64
//! of the temperature each, which part the probable tokens well.
//!
//! Where several ranks have parts of the vocabulary, all their blocks do this together, as if they
//! were one rank's. They tell each other keys, sums and the lists over each other's memory
//! (lib/board.cuh): one exchange greedily, three otherwise. One block of every rank then has the
//! choice, the same on all.
//!
//! The next token, its position and its count stay on the device. The host learns of it from a
//! ring.
//!
//! Blocks wait for each other, so all must run at once: no more than one a multiprocessor. The next
//! kernels begin when all do: they have weights to fetch.
//!
//! Grid: B, but at most one block an SM. V is at most 2^18, world * B at most 512.
#include "lib/board.cuh"
#include "lib/candidates.cuh"
#include "lib/flow.cuh"
#include "lib/random.cuh"
#include "lib/trace.cuh"

// token ~ filter(softmax((logits + bias - penalties) / temperature))
struct Sample {
    float* logits; // [V of the rank] in and out: with bias and penalties
    const float* options; // [6] temperature, top-p, min-p; repeat, presence, frequency penalty
    const uint32_t* top_k; // [1] 0: all
    const uint64_t* seed; // [1]
    const uint32_t* bias_ids; // [N] of the rank's tokens, from 0 on; each at most once
    const float* biases; // [N]
    const uint32_t* bias_count; // [1] N
    uint32_t* counts; // [V of the rank] times in the answer; the highest bit: in the prompt
    uint32_t* token; // [1] out: the next step's token; 0 where there is none
    uint32_t* positions; // [R] in and out, R = 1: of the last token, then of the next
    uint64_t* ring; // [ring_size] out, at position % ring_size: position * 2^32 + token (or FAILED)
    uint64_t* slots; // [3, (2 B + 65 + M) world + 1] scratch, see lib/board.cuh; at first zeros
    const uint64_t* addresses; // [world + 1] of all ranks' slots, and of a word: not 0 to give up
    uint32_t* rounds; // [4] the round modulo 3; tokens that any rank has listed, by round
    uint64_t* bins; // [64] of half a temperature, over all shares; zeros before and after
    uint64_t* candidates; // [2, V] scratch
    uint32_t* tickets; // [4] zeros before and after, see the constants
    uint32_t vocab; // V
    uint32_t own_vocab; // V of the rank
    uint32_t first_id; // of the rank's tokens
    uint32_t ring_size;
    uint32_t world; // ranks, at most 8
    uint32_t rank; // this one
    uint32_t blocks; // B
    uint32_t room; // M: the most tokens of a rank
    Trace trace;
};

// Tickets: blocks that have filled the bins, tokens on the rank's list, blocks that have listed
// theirs, and blocks that are done.
constexpr uint32_t BINNED = 0, LISTED = 1, LISTING = 2, DONE = 3;
// Instead of a token in the ring: this bit and the first id whose logit is NaN or infinite, or all
// bits if every token is ruled out.
constexpr uint32_t FAILED = 1u << 31;

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

// Adds the block's tokens to the list of those that the first filter may keep. `goal` is where the
// last kept one lies: in the number of tokens for top-k, in the weight of all for top-p. False if
// the wait for the others was given up.
__device__ inline bool list_share(const Sample& args, const Board& board, const Filters& filters,
                                  const Tokens& tokens, uint64_t& goal, Bins& bins,
                                  Exchange& exchange) {
    constexpr uint32_t OWN = BINS / THREADS, LANES = BINS / WIDE_BINS / OWN; // of a wide bin
    bins.clear();
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        const uint64_t key = tokens.key(i);
        bins.add(tokens.bin(key), filters.top_k > 0 ? 1 : tokens.weight(key));
    }
    uint64_t own[OWN], sum = 0;
    bins.read(own);
    for (uint64_t bin : own) sum += bin;
    for (uint32_t mask = 1; mask < LANES; mask *= 2) sum += shfl_wide(sum, lane_id() ^ mask);
    if (threadIdx.x % LANES == 0 && sum > 0) atomic_add_gpu(&args.bins[threadIdx.x / LANES], sum);
    const uint32_t peer = threadIdx.x / WIDE_BINS, bin = threadIdx.x % WIDE_BINS;
    if (is_last(&args.tickets[BINNED], exchange) && peer < board.world)
        board.store(peer, board.wide() + board.rank * WIDE_BINS + bin, args.bins[bin]);
    uint64_t wide[1] = {0};
    if (!board.hear(wide[0], exchange, WIDE_BINS, board.wide(), board.world, WIDE_BINS))
        return false;
    const Place place = locate(wide, exchange, [&](uint64_t total) {
        return goal = filters.top_k > 0 ? filters.top_k - 1 : filters.share(total);
    });
    const uint32_t last_bin = (place.bin + 1) * (BINS / WIDE_BINS) - 1;
    const uint32_t from = board.list() + board.rank * board.room;
    tokens.list_upto(
        last_bin, [&](uint32_t n) { return atomic_add_gpu(&args.tickets[LISTED], n); },
        [&](uint32_t at, uint64_t key) {
            for (uint32_t i = 0; i < board.world; i++) board.store(i, from + at, key);
        });
    return true;
}

// Brings together what all ranks have listed; one block. False if the wait was given up.
__device__ inline bool take_lists(const Sample& args, const Board& board, Tokens& tokens,
                                  Exchange& exchange) {
    SHARED(uint32_t[MOST_RANKS], listed);
    board.tell(board.counts() + board.rank, args.tickets[LISTED]);
    uint64_t count;
    if (!board.hear(count, exchange, board.world, board.counts())) return false;
    if (threadIdx.x < board.world) listed[threadIdx.x] = uint32_t(count);
    __syncthreads();
    uint32_t most = 0;
    tokens.count = 0;
    for (uint32_t peer = 0; peer < board.world; peer++) {
        most = listed[peer] > most ? listed[peer] : most;
        tokens.count += listed[peer];
    }
    if (threadIdx.x == 0) args.rounds[1 + board.round] = most;
    bool gave_up = false;
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS) {
        uint32_t peer = 0, at = i;
        while (at >= listed[peer]) at -= listed[peer++];
        const uint64_t key = board.wait(board.list() + peer * board.room + at);
        gave_up = gave_up || key == GAVE_UP;
        args.candidates[i] = key;
    }
    tokens.list = args.candidates;
    return block_min(gave_up ? 0 : 1, exchange) != 0;
}

// Draws one of the listed tokens; one block. `goal`: see list_share.
__device__ inline uint32_t draw_listed(const Sample& args, const Filters& filters, Tokens tokens,
                                       uint64_t goal, uint64_t random, Bins& bins,
                                       Exchange& exchange) {
    uint64_t* spare = args.candidates + args.vocab;
    if (filters.top_k > 0) {
        const auto one = [](uint64_t) { return uint64_t(1); };
        const auto target = [&](uint64_t) { return goal; };
        tokens.last = select_key(tokens, bins, exchange, spare, one, target);
        spare = args.candidates;
    }
    if (filters.top_p < 1.0f) {
        const auto weight = [&](uint64_t key) { return tokens.weight(key); };
        tokens.last = select_key(tokens, bins, exchange, spare, weight, [&](uint64_t total) {
            return filters.top_k > 0 ? filters.share(total) : goal;
        });
    }
    tokens.least = least_weight(args);
    return select_id(tokens, bins, exchange,
                     [&](uint64_t total) { return multiply_high(random, total); });
}

// Makes the choice known on this rank; one block.
__device__ inline void publish(const Sample& args, uint64_t best, uint32_t drawn) {
    if (threadIdx.x != 0) return;
    const bool is_broken = best >> 32 == 0;
    const bool is_empty = best >> 32 == float_bits(-infinity());
    const uint32_t position = *args.positions + 1;
    const uint32_t token = is_broken || is_empty ? 0 : drawn;
    const uint32_t outcome = is_empty ? ~0u : is_broken ? FAILED | uint32_t(best) : token;
    if (token - args.first_id < args.own_vocab) args.counts[token - args.first_id] += 1;
    *args.token = token;
    *args.positions = position;
    // All that the host looks at: nothing has to be there before it.
    store_relaxed_system(args.ring + position % args.ring_size, uint64_t(position) << 32 | outcome);
}

// Draws one of all tokens: the block that has it does, and another of each other rank hears of it.
__device__ inline void draw_any(const Sample& args, const Board& board, const Tokens& tokens,
                                uint64_t best, uint64_t random, Bins& bins, Exchange& exchange) {
    uint64_t sum = 0;
    for (uint32_t i = threadIdx.x; i < tokens.count; i += THREADS)
        sum += tokens.weight(tokens.key(i));
    sum = block_scan(sum, exchange);
    if (threadIdx.x == THREADS - 1) exchange.before = sum;
    __syncthreads();
    board.tell_share(board.sums(), exchange.before, 0);
    uint64_t own[1] = {0};
    if (!board.hear(own[0], exchange, board.world * board.blocks, board.sums())) return;
    const Place place = locate(own, exchange,
                               [&](uint64_t total) { return multiply_high(random, total); });
    uint64_t drawn = 0;
    if (place.bin / board.blocks == board.rank) {
        if (place.bin % board.blocks != blockIdx.x) return;
        drawn = select_id(tokens, bins, exchange, [&](uint64_t) { return place.left; });
        board.tell(board.drawn(), drawn);
    } else if (blockIdx.x > 0 || !board.hear(drawn, exchange, 1, board.drawn())) {
        return;
    }
    publish(args, best, uint32_t(drawn));
}

// Bias and penalties on the block's tokens; the first of them.
__device__ inline uint64_t adjust_share(const Sample& args, uint32_t begin, uint32_t end) {
    for (uint32_t i = threadIdx.x; i < *args.bias_count; i += THREADS) {
        const uint32_t id = args.bias_ids[i];
        if (begin <= id && id < end) args.logits[id] += args.biases[i];
    }
    __syncthreads();
    uint64_t best = NO_KEY;
    for (uint32_t id = begin + threadIdx.x; id < end; id += THREADS) {
        const float given = args.logits[id], logit = penalise(args.options, args.counts[id], given);
        if (logit != given) args.logits[id] = logit;
        const uint64_t key = key_of(logit, args.first_id + id);
        best = key < best ? key : best;
    }
    return best;
}

__device__ inline void choose(const Sample& args, const Board& board, Bins& bins,
                              Exchange& exchange) {
    const uint32_t vocab = args.own_vocab, share = (vocab + gridDim.x - 1) / gridDim.x;
    const uint32_t begin = blockIdx.x * share < vocab ? blockIdx.x * share : vocab;
    const uint32_t end = vocab - begin < share ? vocab : begin + share;
    uint64_t best = block_min(adjust_share(args, begin, end), exchange);
    board.tell_share(0, best, NO_KEY);
    board.empty_last(args.rounds[1 + (board.round + 2) % 3]);
    const float temperature = args.options[0];
    if (temperature == 0.0f && blockIdx.x > 0) return;
    best = NO_KEY;
    if (!board.hear(best, exchange, board.world * board.blocks, 0)) return;
    best = block_min(best, exchange);
    if (temperature == 0.0f || best >> 32 == 0 || best >> 32 == float_bits(-infinity())) {
        if (blockIdx.x == 0) publish(args, best, uint32_t(best));
        return;
    }
    Tokens tokens = {logit_of(best), temperature, args.logits + begin, args.first_id + begin,
                     end - begin};
    const Filters filters(args);
    const uint4 bits = philox(*args.seed, uint64_t(*args.positions) + 1, 0);
    const uint64_t random = bits.x | uint64_t(bits.y) << 32;
    if (!filters.are_any()) {
        tokens.least = least_weight(args);
        return draw_any(args, board, tokens, best, random, bins, exchange);
    }
    uint64_t goal;
    if (!list_share(args, board, filters, tokens, goal, bins, exchange)) return;
    if (!is_last(&args.tickets[LISTING], exchange)) return;
    if (!take_lists(args, board, tokens, exchange)) return;
    publish(args, best, draw_listed(args, filters, tokens, goal, random, bins, exchange));
}

// Leaves the scratch as it was found, and begins the next round; the last block does.
__device__ inline void end_round(const Sample& args, const Board& board, Exchange& exchange) {
    fence_system();
    if (!is_last(&args.tickets[DONE], exchange)) return;
    if (threadIdx.x < WIDE_BINS) args.bins[threadIdx.x] = 0;
    if (threadIdx.x < 4) args.tickets[threadIdx.x] = 0;
    if (threadIdx.x != 0) return;
    args.rounds[0] = (board.round + 1) % 3;
    args.rounds[1 + (board.round + 2) % 3] = 0;
}

__device__ inline void sample_token(const Sample& args) {
    SHARED(Bins, bins);
    SHARED(Exchange, exchange);
    stamp(Moment::Begins);
    let_next_begin();
    grid_dependency_wait();
    begun(args.trace);
    stamp(Moment::Waited);
    const Board board = {args.slots,  args.addresses, args.world,    args.rank,
                         args.blocks, args.room,      args.rounds[0]};
    choose(args, board, bins, exchange);
    end_round(args, board, exchange);
    keep_stamps(args.trace);
}

extern "C" __global__ void __launch_bounds__(512, 2) sample(Sample args) { sample_token(args); }
