//! matmul: y = x W^T, or y += x W^T onto the residual stream, for many tokens at once.
//!
//! Inputs have the weights' 16-bit type, sums are f32 on the tensor cores, and so are the outputs:
//! queries and keys are rotated, the residual stream is added to and logits are compared in f32.
//! Tiles, shared memory and the order of sums: lib/product.cuh. The host chooses
//! the shape of tile. Where an input must be finer than its type, as that of
//! attention must, it comes in two terms: that much more precise, and twice the work. Products of the
//! same inputs (q, k and v) share a launch: on their own the small ones leave half of the SMs idle.
//! The epilogue has lanes trade halves of fragments so that each moves 16 bytes of y; where N is no
//! multiple of 4 (some vocabularies) it moves single numbers.
//!
//! Requirements: K is a multiple of 8 (16-byte rows). Grid: any; two blocks an SM. Block: 128.
#include "lib/convert.cuh"
#include "lib/product.cuh"
#include "lib/trace.cuh"

template <class W> struct Matmul {
    const Activation<W>* x; // [terms, T, K] whose sum over the terms is meant
    const W* weight;        // [N, K]
    const W* weight_1;      // [N1, K] of a second GEMM, if it has rows
    const W* weight_2;      // [N2, K] of a third one
    float* y;               // [T, N]
    float* y_1;             // [T, N1]
    float* y_2;             // [T, N2]
    uint32_t tokens;        // T
    uint32_t rows;          // N
    uint32_t rows_1;        // N1, or 0
    uint32_t rows_2;        // N2, or 0
    uint32_t width;         // K
    uint32_t residual;      // whether to add to what y holds
    uint32_t terms;         // 1 or 2
    uint32_t tile;          // the shape of tiles: a number of Shape
    Trace trace;
};

template <class W, class G>
__device__ void matmul_tiles(const Matmul<W>& args, Parts<const W*> parts,
                             Stage<W, G> (&ring)[PRODUCT_STAGES]) {
    for_each_tile<G>(args.tokens, columns<G>(parts), [&](uint32_t token, uint32_t column) {
        const Part<const W*> part = part_at<G>(parts, column);
        const Output output = {part.y, args.tokens, part.rows, args.residual != 0};
        const Terms<W> x = {args.x + uint64_t(token) * args.width,
                            uint64_t(args.tokens) * args.width, args.terms};
        const W* weight = part.weight + uint64_t(column) * args.width;
        Sums<G> sums;
        product<W, G>(sums, ring, x, args.tokens - token, {weight}, part.rows - column, args.width);
#pragma unroll
        for (int i = 0; i < G::WARP_T / 16; i++)
            store_fragments(output, sums[i], token + warp_token<G>() + 16 * i,
                            column + warp_column<G>());
    });
}

template <class W> __device__ void matmul(const Matmul<W>& args) {
    SHARED(Ring<W>, ring);
    const Part<const W*> parts[PARTS] = {{args.weight, args.y, args.rows},
                                         {args.weight_1, args.y_1, args.rows_1},
                                         {args.weight_2, args.y_2, args.rows_2}};
    grid_dependency_wait();
    begun(args.trace);
    grid_dependency_launch();
    if (Shape(args.tile) == Shape::Large) {
        matmul_tiles<W, Large>(args, parts, ring.large);
    } else if (Shape(args.tile) == Shape::Medium) {
        matmul_tiles<W, Medium>(args, parts, ring.medium);
    } else {
        matmul_tiles<W, Small>(args, parts, ring.small);
    }
}

extern "C" __global__ void __launch_bounds__(128) matmul_bf16(Matmul<bf16> args) { matmul<bf16>(args); }
extern "C" __global__ void __launch_bounds__(128) matmul_f16(Matmul<f16> args) { matmul<f16>(args); }
