//! gate_up_swiglu_hopper: gate_up_swiglu on Hopper's tensor cores, for many tokens at once.
//!
//! What gate_up_swiglu.cu computes. A tile of weights is 128 or 64 gate rows and the up rows of the
//! same units, so that a thread finds both products of a unit in its own sums. Tiles, shared memory and
//! the order of sums: lib/hopper.cuh.
//!
//! Architectures: sm_90a
//! Requirements: C and F are multiples of 8 (16-byte rows here and in the down projection). Grid: any;
//! one block an SM. Block: 384. Shared memory: the four stages and 1024 bytes to align them.
#include "lib/hopper.cuh"
#include "lib/math.cuh"
#include "lib/trace.cuh"

template <class W> struct GateUpSwigluHopper {
    TensorMap x;           // [T, C] boxes of 128 rows
    TensorMap w_gate;      // [F, C] boxes of 64 rows
    TensorMap w_up;        // [F, C] the same
    Activation<W>* hidden; // [T, F]
    uint32_t tokens;       // T
    uint32_t width;        // C
    uint32_t ffn;          // F
    uint32_t tile;         // the shape of tiles: a number of Shape
    Trace trace;
};

template <class W, class G> __device__ void gate_up_tiles(const GateUpSwigluHopper<W>& args) {
    constexpr int HALF = G::ROWS / 8 / 2;
    const Units<W> units = {args.hidden, args.tokens, args.ffn};
    const auto halves = [&](uint32_t unit) {
        return Halves{{args.w_gate, unit}, {args.w_up, unit}};
    };
    const auto store = [&](float (&sums)[2 * HALF][4], uint32_t token, uint32_t unit) {
#pragma unroll
        for (int j = 0; j < HALF; j++)
            store_units(units, sums[j], sums[j + HALF], token, unit + 8 * j);
    };
    const Extent extent = {args.tokens, args.ffn, args.width, 1};
    hopper_product<W, G>(extent, args.x, halves, store);
}

template <class W> __device__ void gate_up_swiglu_hopper(const GateUpSwigluHopper<W>& args) {
    using Wide = OutputTile<256, 128, 64>;
    using Narrow = OutputTile<128, 64, 64>;
    grid_dependency_wait();
    begun(args.trace);
    grid_dependency_launch();
    if (Shape(args.tile) == Shape::Large) {
        gate_up_tiles<W, Wide>(args);
    } else {
        gate_up_tiles<W, Narrow>(args);
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) gate_up_swiglu_hopper_bf16(const __grid_constant__ GateUpSwigluHopper<bf16> args) { gate_up_swiglu_hopper<bf16>(args); }
extern "C" __global__ void __launch_bounds__(384, 1) gate_up_swiglu_hopper_f16(const __grid_constant__ GateUpSwigluHopper<f16> args) { gate_up_swiglu_hopper<f16>(args); }
