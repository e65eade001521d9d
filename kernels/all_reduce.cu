//! all_reduce: the residual stream takes up a sum over all ranks, which NCCL has made.
//!
//! Every number is read and written once, and from L2: what counts is that the grid is small and begins at
//! once. The sum's place is left at zero, since the products of the next layer add to it.
#include "lib/convert.cuh"

// x = partial or x += partial; partial = 0
struct AllReduce {
    float* partial; // [N] in, and zeros after: the sum
    float* x; // [N] in and out: the residual stream
    uint32_t count; // N
    uint32_t residual; // 1: add to what x holds
};

__device__ inline void take_up(const AllReduce& args) {
    grid_dependency_wait();
    grid_dependency_launch();
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < args.count;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const float sum = args.partial[i];
        args.x[i] = args.residual ? args.x[i] + sum : sum;
        args.partial[i] = 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(256) all_reduce(AllReduce args) { take_up(args); }
