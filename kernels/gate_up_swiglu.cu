//! gate_up_swiglu: hidden = silu(x Wgate^T) * (x Wup^T), many tokens at once.
//!
//! The tile of weights is laid out so that a warp finds both products of a hidden unit in its own
//! sums: of its columns the first half are gate rows, the second half the up rows of the same
//! units. The gated unit is formed in f32 and rounded once, to the weights' type: the input of the
//! down projection. Neither of the two is ever in memory. Tiles, shared memory and the order of sums:
//! lib/product.cuh; a tile is N / 2 units wide.
//!
//! Requirements: C and F are multiples of 8 (16-byte rows here and in the down projection).
//! Grid: any; two blocks an SM. Block: 128.
#include "lib/convert.cuh"
#include "lib/math.cuh"
#include "lib/product.cuh"
#include "lib/trace.cuh"

template <class W> struct GateUpSwiglu {
    const Activation<W>* x; // [T, C]
    const W* w_gate;        // [F, C]
    const W* w_up;          // [F, C]
    Activation<W>* hidden;  // [T, F]
    uint32_t tokens;        // T
    uint32_t width;         // C
    uint32_t ffn;           // F
    uint32_t tile;          // the shape of tiles: a number of Shape
    Trace trace;
};

template <class W, class G>
__device__ void gate_up_tiles(const GateUpSwiglu<W>& args, Stage<W, G> (&ring)[PRODUCT_STAGES]) {
    constexpr int HALF = G::WARP_N / 2;
    const Units<W> units = {args.hidden, args.tokens, args.ffn};
    for_each_tile<G>(args.tokens, 2 * args.ffn, [&](uint32_t token, uint32_t column) {
        const uint32_t first = column / 2; // unit
        const Terms<W> x = {args.x + uint64_t(token) * args.width, 0, 1};
        const uint64_t weight = uint64_t(first) * args.width;
        Sums<G> sums;
        product<W, G>(sums, ring, x, args.tokens - token,
                      {args.w_gate + weight, args.w_up + weight}, args.ffn - first, args.width);
#pragma unroll
        for (int i = 0; i < G::WARP_T / 16; i++)
#pragma unroll
            for (int j = 0; j < HALF / 8; j++)
                store_units(units, sums[i][j], sums[i][j + HALF / 8],
                            token + warp_token<G>() + 16 * i, first + warp_column<G>() / 2 + 8 * j);
    });
}

template <class W> __device__ void gate_up_swiglu(const GateUpSwiglu<W>& args) {
    SHARED(Ring<W>, ring);
    grid_dependency_wait();
    begun(args.trace);
    grid_dependency_launch();
    if (Shape(args.tile) == Shape::Large) {
        gate_up_tiles<W, Large>(args, ring.large);
    } else if (Shape(args.tile) == Shape::Medium) {
        gate_up_tiles<W, Medium>(args, ring.medium);
    } else {
        gate_up_tiles<W, Small>(args, ring.small);
    }
}

extern "C" __global__ void __launch_bounds__(128) gate_up_swiglu_bf16(GateUpSwiglu<bf16> args) { gate_up_swiglu<bf16>(args); }
extern "C" __global__ void __launch_bounds__(128) gate_up_swiglu_f16(GateUpSwiglu<f16> args) { gate_up_swiglu<f16>(args); }
