// y[i] = x[0] + ... + x[i], a block of 256: warps by shuffles, then the sums of the warps.
#include <cstdint>

constexpr int WARPS = 8;

__device__ __forceinline__ int32_t warp_scan(int32_t v, int lane) {
    for (int d = 1; d < 32; d <<= 1) {
        int32_t below = __shfl_up_sync(0xffffffffu, v, d);
        if (lane >= d) v += below;
    }
    return v;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) scan(const int32_t* x, int32_t* y, int n) {
    __shared__ int32_t sums[WARPS];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int32_t v = (int)threadIdx.x < n ? __ldg(&x[threadIdx.x]) : 0;
    v = warp_scan(v, lane);
    if (lane == 31) sums[warp] = v;
    __syncthreads();
    if (warp == 0) {
        int32_t s = lane < WARPS ? sums[lane] : 0;
        s = warp_scan(s, lane);
        if (lane < WARPS) sums[lane] = s;
    }
    __syncthreads();
    if (warp > 0) v += sums[warp - 1];
    if ((int)threadIdx.x < n) y[threadIdx.x] = v;
}
