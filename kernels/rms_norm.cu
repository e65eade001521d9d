//! rms_norm: y = x / sqrt(mean(x^2) + eps) * weight for each token, in two terms of the weights' type.
//!
//! One block a token, and on to further tokens by the size of the grid. A thread takes 8 numbers at
//! a time: 32 bytes of x, 32 of the weight, twice 16 of y. x is read twice, the second time from the L1
//! cache, so that any width will do without a register being set aside for it. Squares are summed
//! in f32: by thread, by warp, then over the warps, always in the same order. y is what the next
//! GEMMs read: rounded to the weights' type, and in a second term what that took away.
//! GEMMs that cannot bear the rounding add both.
//!
//! Requirements: C is a multiple of 8. Grid: any; one block a token. Block: 256.
#include "lib/convert.cuh"
#include "lib/math.cuh"
#include "lib/reduce.cuh"
#include "lib/trace.cuh"

template <class W> struct RmsNorm {
    const float* x;      // [T, C]
    const float* weight; // [C]
    Activation<W>* y;    // [2, T, C] whose sum over the terms is meant
    uint32_t tokens;     // T
    uint32_t width;      // C
    float eps;
    Trace trace;
};

constexpr int RMS_NORM_THREADS = 256;

// The sum of the squares of one token's x.
__device__ inline float sum_squares(const float* x, uint32_t width) {
    float sum = 0.0f;
    for (uint32_t i = 8 * threadIdx.x; i < width; i += 8 * RMS_NORM_THREADS) {
        const float4 a = load4(x + i), b = load4(x + i + 4);
        sum += (a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w) +
               (b.x * b.x + b.y * b.y + b.z * b.z + b.w * b.w);
    }
    return sum;
}

template <class W> __device__ void rms_norm(const RmsNorm<W>& args) {
    grid_dependency_wait();
    begun(args.trace);
    grid_dependency_launch();
    for (uint64_t token = blockIdx.x; token < args.tokens; token += gridDim.x) {
        const float* x = args.x + token * args.width;
        const float square = block_sum<RMS_NORM_THREADS / 32>(sum_squares(x, args.width));
        const float scale = reciprocal_sqrt(square / args.width + args.eps);
        for (uint32_t i = 8 * threadIdx.x; i < args.width; i += 8 * RMS_NORM_THREADS) {
            const float4 a = load4(x + i), b = load4(x + i + 4);
            const float4 w = load4(args.weight + i), v = load4(args.weight + i + 4);
            const float y[8] = {a.x * scale * w.x, a.y * scale * w.y, a.z * scale * w.z,
                                a.w * scale * w.w, b.x * scale * v.x, b.y * scale * v.y,
                                b.z * scale * v.z, b.w * scale * v.w};
            const uint4 leading = pack8<W>(y);
            float rest[8];
            unpack8<W>(leading, rest);
#pragma unroll
            for (int k = 0; k < 8; k++) rest[k] = y[k] - rest[k];
            store16(args.y + token * args.width + i, leading);
            store16(args.y + (args.tokens + token) * args.width + i, pack8<W>(rest));
        }
        __syncthreads(); // the shared sums are read: the next token may replace them
    }
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_bf16(RmsNorm<bf16> args) { rms_norm<bf16>(args); }
extern "C" __global__ void __launch_bounds__(256) rms_norm_f16(RmsNorm<f16> args) { rms_norm<f16>(args); }
