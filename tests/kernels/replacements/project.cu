// project (y += weight x, for one token) in place of the built-in kernel, as ordinary CUDA: x in shared
// memory, a warp a row, 64 threads a block.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace cg = cooperative_groups;

constexpr int kThreads = 64;

template <typename T> struct Args {
    const float* x;
    const T* weight; // [rows, width]
    float* y;
    uint32_t width, rows;
    uint32_t parts, flow; // of the built-in kernel
};

template <typename T> __device__ void gemv(const Args<T>& args) {
    extern __shared__ float staged[]; // as much as the built-in kernel has: [width]
    for (uint32_t i = threadIdx.x; i < args.width; i += kThreads) staged[i] = args.x[i];
    __syncthreads(); // x is there

    auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    const uint32_t warps = kThreads / 32 * gridDim.x;
    for (uint32_t row = kThreads / 32 * blockIdx.x + warp.meta_group_rank(); row < args.rows; row += warps) {
        const T* weight = args.weight + (size_t)row * args.width;
        float sum = 0.0f;
        for (uint32_t i = warp.thread_rank(); i < args.width; i += warp.size())
            sum += static_cast<float>(weight[i]) * staged[i];
        sum = cg::reduce(warp, sum, cg::plus<float>());
        if (warp.thread_rank() == 0) args.y[row] += sum;
    }
}

extern "C" __global__ void __launch_bounds__(kThreads) project_bf16(Args<__nv_bfloat16> args) { gemv(args); }
extern "C" __global__ void __launch_bounds__(kThreads) project_f16(Args<__half> args) { gemv(args); }
