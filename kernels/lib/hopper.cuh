//! The GEMM of activations X [T, K] with the rows of weights W [N, K] on Hopper's tensor cores:
//! what matmul_hopper and gate_up_swiglu_hopper share.
//!
//! A block of three warpgroups computes one output tile of 128 tokens and 256 rows of weights at a
//! time; of 128 rows, where there are too few wide tiles for all SMs. One thread of the first warpgroup
//! loads K-tiles of 64 (`slice`), up to 48 KB each, by TMA into a ring of four stages; each of the
//! other two warpgroups multiplies 64 tokens with all rows, 128 sums a thread. Only two kinds of
//! barrier make anybody wait: `full`, a K-tile has arrived; `empty`, all eight warps are done with
//! a stage. The producer runs on into the next tile while this one's sums are stored.
//! Registers go where the sums are.
//!
//! An input may come in two terms: weights then meet its leading digits in a first pass over K and
//! the next digits in a second. Every sum runs over K upwards in steps of 16 from zero: neither the
//! tile, nor the grid, nor the number of tokens changes a bit of a token's result. The odd ends of K and N are
//! zeros that TMA puts there, those of T zeros or other tokens; only the epilogue knows
//! of them.
#pragma once
#include "lib/product.cuh"
#include "lib/ring.cuh"

constexpr uint32_t TILE_TOKENS = 128, TILE_ROWS = 256;

// One K-tile: rows of 128 bytes, swizzled (copy_box).
template <class W> struct Slice {
    W x[TILE_TOKENS * SLICE];
    W w[TILE_ROWS * SLICE]; // one half of the rows after the other
};

struct Extent {
    uint32_t tokens, columns; // of the output
    uint32_t width;           // K
    uint32_t terms;           // of X: [terms, T, K]
};

// What comes of 256 or 128 rows of weights, in boxes of 128 or 64: a column of the output of each row,
// or of two.
template <int ROWS_, int COLUMNS, int BOX_> struct OutputTile {
    static constexpr uint32_t T = TILE_TOKENS, N = COLUMNS, ROWS = ROWS_, BOX = BOX_;
};

// Rows of weights.
struct Rows {
    const TensorMap& weight;
    uint32_t first;
};

// The weights of a tile: of one matrix or of two. A tile of one box has no other half.
struct Halves {
    Rows one, other;
};

// Loads all K-tiles of all of the block's output tiles. By one thread.
template <class W, class G, class HalvesAt>
__device__ void fill_ring(Slice<W>* ring, Barriers& barriers, const Extent& extent,
                          const TensorMap& x, HalvesAt halves_at) {
    constexpr uint32_t BOXES = G::ROWS / G::BOX, OF_HALF = BOXES > 1 ? BOXES / 2 : 1;
    Turn turn = {0, 0};
    for_each_tile<G>(extent.tokens, extent.columns, [&](uint32_t token, uint32_t column) {
        const Halves halves = halves_at(column);
        for (uint32_t term = 0; term < extent.terms; term++)
            for (uint32_t k = 0; k < extent.width; k += SLICE, turn.next()) {
                Slice<W>& slice = ring[turn.stage];
                uint64_t* full = &barriers.full[turn.stage];
                mbarrier_wait(&barriers.empty[turn.stage], turn.round ^ 1);
                mbarrier_arrive_expect(full, sizeof slice.x + G::ROWS * SLICE * sizeof(W));
                copy_box(slice.x, x, term * extent.tokens + token, k, full);
#pragma unroll
                for (uint32_t i = 0; i < BOXES; i++) {
                    const Rows& half = i < OF_HALF ? halves.one : halves.other;
                    const uint32_t row = half.first + i % OF_HALF * G::BOX;
                    copy_box(slice.w + i * G::BOX * SLICE, half.weight, row, k, full);
                }
            }
    });
}

// sums += 64 tokens of x times the rows of w, over 16 of K; or = where they do not accumulate.
template <class W>
__device__ void multiply(float (&sums)[32][4], const W* x, const W* w, bool accumulate) {
    wgmma_m64n256k16<W>(sums, matrix_descriptor(x), matrix_descriptor(w), accumulate);
}
template <class W>
__device__ void multiply(float (&sums)[16][4], const W* x, const W* w, bool accumulate) {
    wgmma_m64n128k16<W>(sums, matrix_descriptor(x), matrix_descriptor(w), accumulate);
}

// The sums of 64 tokens and all rows over all K-tiles of one output tile.
template <class W, int COLUMNS>
__device__ void multiply_slices(float (&sums)[COLUMNS][4], Slice<W>* ring, Barriers& barriers,
                                Turn& turn, uint32_t slices) {
    const uint32_t token = (warp_id() / 4 - 1) * 64;
    uint32_t before = 0;
    for (uint32_t slice = 0; slice < slices; slice++) {
        const Slice<W>& stage = ring[turn.stage];
        mbarrier_wait(&barriers.full[turn.stage], turn.round);
        wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < SLICE; k += 16)
            multiply(sums, stage.x + token * SLICE + k, stage.w + k, slice > 0 || k > 0);
        wgmma_commit();
        wgmma_wait<1>(); // the K-tile before is no longer read
        if (slice > 0 && lane_id() == 0) mbarrier_arrive(&barriers.empty[before]);
        before = turn.stage;
        turn.next();
    }
    wgmma_wait<0>();
    hold(sums); // the compiler does not know that they were not there before
    if (lane_id() == 0) mbarrier_arrive(&barriers.empty[before]);
}

// Calls `finish(sums, first token, first column)` in each warp of the last two warpgroups for its 16
// tokens of each tile G, whose weights are `halves_at(first column)`.
template <class W, class G, class HalvesAt, class Finish>
__device__ void hopper_product(const Extent& extent, const TensorMap& x, HalvesAt halves_at,
                               Finish finish) {
    SHARED(Barriers, barriers);
    // The swizzle goes by address: stages begin at multiples of 1024.
    uint8_t* const shared = dynamic_shared<uint8_t>();
    auto* const ring = reinterpret_cast<Slice<W>*>(shared + -uint64_t(shared) % 1024);
    if (threadIdx.x == 0) {
        init(barriers);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warp_id() < 4) {
        give_up_registers<40>();
        if (threadIdx.x == 0) fill_ring<W, G>(ring, barriers, extent, x, halves_at);
    } else {
        take_registers<232>();
        const uint32_t slices = extent.terms * ((extent.width + SLICE - 1) / SLICE);
        Turn turn = {0, 0};
        for_each_tile<G>(extent.tokens, extent.columns, [&](uint32_t token, uint32_t column) {
            float sums[G::ROWS / 8][4];
            multiply_slices(sums, ring, barriers, turn, slices);
            finish(sums, token + (warp_id() - 4) * 16, column);
        });
    }
}
