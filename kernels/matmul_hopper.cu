//! matmul_hopper: matmul on Hopper's tensor cores, for many tokens at once.
//!
//! What matmul.cu computes, with the instructions that only Hopper has: TMA loads the inputs,
//! warpgroups multiply them. Tiles, shared memory and the order of sums: lib/hopper.cuh.
//!
//! Architectures: sm_90a
//! Requirements: K is a multiple of 8 (16-byte rows). Grid: any; one block an SM. Block: 384. Shared
//! memory: the four stages and 1024 bytes to align them.
#include "lib/hopper.cuh"
#include "lib/trace.cuh"

template <class W> struct MatmulHopper {
    TensorMap x;        // [terms T, K] whose sum over the terms is meant: boxes of 128 rows
    TensorMap weight;   // [N, K] boxes of 128 rows
    TensorMap weight_1; // [N1, K] of a second GEMM, if it has rows
    TensorMap weight_2; // [N2, K] of a third one
    float* y;           // [T, N]
    float* y_1;         // [T, N1]
    float* y_2;         // [T, N2]
    uint32_t tokens;    // T
    uint32_t rows;      // N
    uint32_t rows_1;    // N1, or 0
    uint32_t rows_2;    // N2, or 0
    uint32_t width;     // K
    uint32_t residual;  // whether to add to what y holds
    uint32_t terms;     // 1 or 2
    uint32_t tile;      // the shape of tiles: a number of Shape
    Trace trace;
};

template <class W, class G>
__device__ void matmul_tiles(const MatmulHopper<W>& args, Parts<const TensorMap*> parts) {
    const auto halves = [&](uint32_t row) {
        const TensorMap* weight = part_at<G>(parts, row).weight;
        return Halves{{*weight, row}, {*weight, row + TILE_ROWS / 2}};
    };
    const auto store = [&](float (&sums)[G::ROWS / 8][4], uint32_t token, uint32_t column) {
        const auto part = part_at<G>(parts, column);
        const Output output = {part.y, args.tokens, part.rows, args.residual != 0};
        store_fragments(output, sums, token, column);
    };
    const Extent extent = {args.tokens, columns<G>(parts), args.width, args.terms};
    hopper_product<W, G>(extent, args.x, halves, store);
}

template <class W> __device__ void matmul_hopper(const MatmulHopper<W>& args) {
    using Wide = OutputTile<256, 256, 128>;
    using Narrow = OutputTile<128, 128, 128>;
    const Part<const TensorMap*> parts[PARTS] = {{&args.weight, args.y, args.rows},
                                                 {&args.weight_1, args.y_1, args.rows_1},
                                                 {&args.weight_2, args.y_2, args.rows_2}};
    grid_dependency_wait();
    begun(args.trace);
    grid_dependency_launch();
    if (Shape(args.tile) == Shape::Large) {
        matmul_tiles<W, Wide>(args, parts);
    } else {
        matmul_tiles<W, Narrow>(args, parts);
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) matmul_hopper_bf16(const __grid_constant__ MatmulHopper<bf16> args) { matmul_hopper<bf16>(args); }
extern "C" __global__ void __launch_bounds__(384, 1) matmul_hopper_f16(const __grid_constant__ MatmulHopper<f16> args) { matmul_hopper<f16>(args); }
