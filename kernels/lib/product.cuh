//! The GEMM of activations X [T, K] with the rows of weights W [N, K] on the tensor cores: what
//! matmul and gate_up_swiglu share.
//!
//! A block of 4 warps computes one output tile at a time and walks over the tiles, so that any grid
//! will do. X and W come in K-tiles (`slice`) through a ring of three stages of 16 KB, filled by
//! cp.async two K-tiles ahead of the one in use; one barrier a K-tile says both that its data has
//! arrived and that the one before it is no longer read. Three shapes of tile share the ring:
//!
//!   large  128 x 128 x 32, a warp has 64 x 64: 32 mma for 8 ldmatrix.x4. Two blocks an SM.
//!   medium  64 x 64 x 64, a warp has 32 x 32: where large tiles would leave most SMs idle.
//!   small   32 x 32 x 128, a warp has 16 x 16: short prompts, which wait for weights; a stage
//!           takes 256 bytes of each weight row, and a block has 16 KB of weights in flight.
//!
//! An input may come in two terms: weights then meet its leading digits in a first pass over K and
//! the next digits in a second.
//!
//! **Same bits everywhere.** Every sum runs over K upwards in steps of 16 from zero, in every shape
//! of tile: neither the shape, nor the grid, nor the number of tokens changes a bit of a token's
//! result. The odd ends of K, T and N are zeros in shared memory; only the epilogue knows of them.
#pragma once
#include "lib/convert.cuh"
#include "lib/math.cuh"
#include "lib/shared.cuh"
#include "lib/tile.cuh"

constexpr int PRODUCT_THREADS = 128;
constexpr int PRODUCT_STAGES = 3;

// T, N, K: the block's tile. WARP_T, WARP_N: a warp's part of it.
template <int T_, int N_, int K_, int WARP_T_, int WARP_N_> struct Tiling {
    static constexpr int T = T_, N = N_, K = K_, WARP_T = WARP_T_, WARP_N = WARP_N_;
    static constexpr int WARPS_N = N / WARP_N;
    static_assert(T / WARP_T * WARPS_N * 32 == PRODUCT_THREADS, "four warps");
};
// Which of them a launch takes is the host's choice (src/ops/tiles.rs).
enum class Shape : uint32_t { Small, Medium, Large };
using Large = Tiling<128, 128, 32, 64, 64>;
using Medium = Tiling<64, 64, 64, 32, 32>;
using Small = Tiling<32, 32, 128, 16, 16>;

// One K-tile.
template <class W, class G> struct Stage {
    Tile<W, G::T, G::K> x;
    Tile<W, G::N, G::K> w;
};

template <class W> union Ring {
    Stage<W, Large> large[PRODUCT_STAGES];
    Stage<W, Medium> medium[PRODUCT_STAGES];
    Stage<W, Small> small[PRODUCT_STAGES];
};

// The sums of a warp's part: fragments C of 16 tokens and 8 columns.
template <class G> using Sums = float[G::WARP_T / 16][G::WARP_N / 8][4];

// Where the warp's part begins within the block's tile.
template <class G> __device__ int warp_token() { return warp_id() / G::WARPS_N * G::WARP_T; }
template <class G> __device__ int warp_column() { return warp_id() % G::WARPS_N * G::WARP_N; }

// sums += x w^T over one K-tile.
template <class W, class G> __device__ void multiply(Sums<G>& sums, Stage<W, G>& stage) {
#pragma unroll
    for (int column = 0; column < G::K / 8; column += 2) {
        uint32_t x[G::WARP_T / 16][4], w[G::WARP_N / 8][2];
#pragma unroll
        for (int i = 0; i < G::WARP_T / 16; i++)
            load_a(x[i], stage.x, warp_token<G>(), 16 * i, column);
#pragma unroll
        for (int j = 0; j < G::WARP_N / 8; j += 2)
            load_b(w[j], w[j + 1], stage.w, warp_column<G>(), 8 * j, column);
#pragma unroll
        for (int i = 0; i < G::WARP_T / 16; i++)
#pragma unroll
            for (int j = 0; j < G::WARP_N / 8; j++) mma_m16n8k16<W>(sums[i][j], x[i], w[j]);
    }
}

// An input: numbers that are each the sum of one or two terms of the type W, the leading digits of
// all first, then the next digits.
template <class W> struct Terms {
    const W* leading;
    uint64_t apart; // numbers from a leading term to the next
    uint32_t count; // 1 or 2
};

// The sums of one output tile over all of K = `width`: of `tokens` rows from x on with `rows` rows
// of each of the weights (fewer than a tile has at the edges). Of each WARP_N columns of the tile
// an equal part in a row belongs to each of the weights, in their order.
template <class W, class G, int WEIGHTS>
__device__ void product(Sums<G>& sums, Stage<W, G> (&ring)[PRODUCT_STAGES], const Terms<W>& x,
                        uint32_t tokens, const W* const (&weights)[WEIGHTS], uint32_t rows,
                        uint32_t width) {
    constexpr int AT_ONCE = PRODUCT_THREADS / (G::K / 8); // rows that fetch takes from one matrix
    static_assert(WEIGHTS == 1 || WEIGHTS * AT_ONCE == G::WARP_N, "a warp has a share of each");
#pragma unroll
    for (auto& row : sums)
#pragma unroll
        for (auto& sum : row) sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;

    const uint32_t slices_a_term = (width + G::K - 1) / G::K, slices = x.count * slices_a_term;
    const auto fetch_slice = [&](uint32_t slice) {
        if (slice < slices) {
            Stage<W, G>& stage = ring[slice % PRODUCT_STAGES];
            const bool leading = slice < slices_a_term;
            const uint32_t first = (leading ? slice : slice - slices_a_term) * G::K;
            const uint32_t left = width - first;
            const W* terms = x.leading + (leading ? 0 : x.apart);
            const W* parts[WEIGHTS];
#pragma unroll
            for (int i = 0; i < WEIGHTS; i++) parts[i] = weights[i] + first;
            fetch<PRODUCT_THREADS>(stage.x, {terms + first}, width, tokens, left);
            fetch<PRODUCT_THREADS>(stage.w, parts, width, rows, left);
        }
        cp_async_commit(); // an empty group past the end keeps the count of the groups
    };
    __syncthreads(); // the tile before this one no longer reads the ring
    for (uint32_t slice = 0; slice < PRODUCT_STAGES - 1; slice++) fetch_slice(slice);
    for (uint32_t slice = 0; slice < slices; slice++) {
        cp_async_wait<PRODUCT_STAGES - 2>(); // this thread's part of the K-tile is there,
        __syncthreads();                     // everyone's is, and all are done with the one before
        fetch_slice(slice + PRODUCT_STAGES - 1);
        multiply(sums, ring[slice % PRODUCT_STAGES]);
    }
}

// Calls `tile(first token, first column)` for each of the block's output tiles. Blocks that run
// together take tiles of up to 16 strips of tokens and few strips of columns: the inputs of those
// stay in the L2 cache.
template <class G, class OneTile>
__device__ void for_each_tile(uint32_t tokens, uint32_t columns, OneTile tile) {
    constexpr uint32_t GROUP = 16;
    const uint32_t strips = (tokens + G::T - 1) / G::T, across = (columns + G::N - 1) / G::N;
    for (uint32_t i = blockIdx.x; i < strips * across; i += gridDim.x) {
        const uint32_t group = i / (GROUP * across), first = group * GROUP;
        const uint32_t height = strips - first < GROUP ? strips - first : GROUP;
        const uint32_t place = i - group * GROUP * across;
        tile((first + place % height) * G::T, place / height * G::N);
    }
}

// One of the GEMMs that share a launch and their inputs. Their tiles stand side by side.
template <class Weight> struct Part {
    Weight weight; // [rows, K]
    float* y;      // [T, rows]
    uint32_t rows; // none: there is no such GEMM
};
constexpr int PARTS = 3;
template <class Weight> using Parts = const Part<Weight> (&)[PARTS];

// Columns of the tiles of all GEMMs.
template <class G, class Weight> __device__ uint32_t columns(Parts<Weight> parts) {
    uint32_t columns = 0;
#pragma unroll
    for (const Part<Weight>& part : parts) columns += (part.rows + G::N - 1) / G::N * G::N;
    return columns;
}

// The GEMM of whose tiles one begins at `column`, which becomes its column in there.
template <class G, class Weight>
__device__ Part<Weight> part_at(Parts<Weight> parts, uint32_t& column) {
    Part<Weight> part = parts[0];
#pragma unroll
    for (int i = 1; i < PARTS; i++) {
        const uint32_t before = (part.rows + G::N - 1) / G::N * G::N;
        if (column < before) break;
        column -= before, part = parts[i];
    }
    return part;
}

// Two lanes side by side hold columns 2t, 2t + 1 and 2t + 2, 2t + 3 of the rows g and g + 8 of a
// fragment C. Afterwards the even one holds all four columns of row g and the odd one those of row
// g + 8, so that they move 16 bytes at once: `fragment_row()` and `fragment_column()` say which.
__device__ inline void gather_row(float (&c)[4]) {
    const bool odd = lane_id() % 2;
    const float other0 = shfl_xor(odd ? c[0] : c[2], 1), other1 = shfl_xor(odd ? c[1] : c[3], 1);
    if (odd) {
        c[0] = other0, c[1] = other1;
    } else {
        c[2] = other0, c[3] = other1;
    }
}
__device__ inline int fragment_row() { return lane_id() / 4 + lane_id() % 2 * 8; }
__device__ inline int fragment_column() { return lane_id() % 4 / 2 * 4; }

// Where matmul's sums go.
struct Output {
    float* y; // [T, N]
    uint32_t tokens, rows;
    bool residual; // whether to add to what y holds
};

// Stores fragments that lie side by side, whose first token and column are given. Eight at a time:
// what y holds comes in one trip to memory for all of them.
template <int N>
__device__ inline void store_fragments(const Output& to, float (&sums)[N][4], uint32_t token,
                                       uint32_t column) {
    constexpr int AT_ONCE = N < 8 ? N : 8;
    static_assert(N % AT_ONCE == 0, "whole batches");
    token += fragment_row(), column += fragment_column();
    float* const row = to.y + uint64_t(token) * to.rows;
    const bool inside = token < to.tokens, whole = to.rows % 4 == 0;
#pragma unroll
    for (int first = 0; first < N; first += AT_ONCE) {
        float4 held[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const uint32_t at = column + 8 * (first + j);
            const bool adds = to.residual && whole && inside && at < to.rows;
            held[j] = adds ? load4(row + at) : float4{0.0f, 0.0f, 0.0f, 0.0f};
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            float(&sum)[4] = sums[first + j];
            gather_row(sum);
            const uint32_t at = column + 8 * (first + j);
            if (!inside || at >= to.rows) continue;
            if (whole)
                store4(row + at, {held[j].x + sum[0], held[j].y + sum[1], held[j].z + sum[2],
                                  held[j].w + sum[3]});
            else
                for (int i = 0; i < 4 && at + i < to.rows; i++)
                    row[at + i] = (to.residual ? row[at + i] : 0.0f) + sum[i];
        }
    }
}

// Where gate_up_swiglu's units go.
template <class W> struct Units {
    Activation<W>* hidden; // [T, F]
    uint32_t tokens, ffn;
};

// Stores eight units of 16 tokens, of which the first token and unit are given.
template <class W>
__device__ void store_units(const Units<W>& to, const float (&gate)[4], const float (&up)[4],
                            uint32_t token, uint32_t unit) {
    float hidden[4];
#pragma unroll
    for (int i = 0; i < 4; i++) hidden[i] = saturated<W>(swiglu(gate[i], up[i]));
    gather_row(hidden);
    token += fragment_row(), unit += fragment_column();
    if (token >= to.tokens || unit >= to.ffn) return;
    const uint2 packed = {pack<W>(hidden[0], hidden[1]), pack<W>(hidden[2], hidden[3])};
    *reinterpret_cast<uint2*>(to.hidden + uint64_t(token) * to.ffn + unit) = packed;
}
