// Stream compaction with warp-aggregated atomics.
#include <cooperative_groups.h>
using namespace cooperative_groups;

__device__ int atomicAggInc(int *ctr) {
    auto g = coalesced_threads();
    int warp_res;
    if (g.thread_rank() == 0) warp_res = atomicAdd(ctr, g.size());
    return g.shfl(warp_res, 0) + g.thread_rank();
}

__device__ inline int atomicAggIncBallot(int *ctr) {
    unsigned int active = __activemask();
    int leader = __ffs(active) - 1;
    int lane = threadIdx.x & 31;
    int rank = __popc(active & ((1u << lane) - 1));
    int base;
    if (lane == leader) base = atomicAdd(ctr, __popc(active));
    base = __shfl_sync(active, base, leader);
    return base + rank;
}

__global__ void filter_k(int *dst, int *nres, const int *src, int n) {
    int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i >= n) return;
    if (src[i] > 0) dst[atomicAggInc(nres)] = src[i];
}

__global__ void filter_ballot(int *dst, int *nres, const int *src, int n) {
    for (int i = threadIdx.x + blockIdx.x * blockDim.x; i < n; i += blockDim.x * gridDim.x)
        if (src[i] > 0) dst[atomicAggIncBallot(nres)] = src[i];
}
