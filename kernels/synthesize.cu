//! synthesize: random weights, each a function of seed, tensor and index, made where they are read.
//!
//! Bit for bit what the host makes (src/checkpoint/synthetic): the operations are not fused. A thread
//! makes 16 bytes of one draw of random numbers and goes on by the size of the grid, whatever that is.
#include "lib/convert.cuh"
#include "lib/random.cuh"

// out[8 i + e] = centre + scale (n + 1/2), n the e-th signed 16 bits of Philox(seed; p, tensor),
// where piece i of out is piece p = first + stride (i / row) + i % row of the whole tensor
template <class W> struct Synthesize {
    Activation<W>* out; // [N]
    uint32_t pieces; // N / 8
    uint32_t first; // of out's pieces in the tensor
    uint32_t row; // pieces that follow each other there
    uint32_t stride; // from a row's first piece to that of the next
    uint32_t tensor;
    uint32_t seed_low;
    uint32_t seed_high;
    float centre;
    float scale;
};

template <class W> __device__ void synthesize(const Synthesize<W>& args) {
    grid_dependency_wait();
    grid_dependency_launch();
    const uint64_t seed = args.seed_low | uint64_t(args.seed_high) << 32;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < args.pieces;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const uint32_t in_row = uint32_t(i) % args.row;
        const uint64_t piece = args.first + uint64_t(args.stride) * (uint32_t(i) / args.row) + in_row;
        const uint4 random = philox(seed, piece, args.tensor);
        const uint32_t pairs[4] = {random.x, random.y, random.z, random.w};
        float v[8];
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const int32_t n = int32_t(pairs[e / 2] << (e % 2 == 0 ? 16 : 0)) >> 16;
            v[e] = add(multiply(float(n) + 0.5f, args.scale), args.centre);
        }
        store16(args.out + 8 * i, pack8<W>(v));
    }
}

extern "C" __global__ void __launch_bounds__(256) synthesize_bf16(Synthesize<bf16> args) { synthesize(args); }
extern "C" __global__ void __launch_bounds__(256) synthesize_f16(Synthesize<f16> args) { synthesize(args); }
