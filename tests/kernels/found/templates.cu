// Block reduction with functors, instantiated explicitly.
namespace ops {
struct Sum {
    template <typename T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
    template <typename T> static __device__ T identity() { return T(0); }
};
struct Max {
    template <typename T> __device__ __forceinline__ T operator()(const T& a, const T& b) const { return a > b ? a : b; }
    template <typename T> static __device__ T identity() { return T(-1e30f); }
};
}  // namespace ops

constexpr unsigned kFullMask = 0xffffffffu;

template <typename T, typename Op>
__device__ T warp_reduce(T val, Op op) {
#pragma unroll
    for (int offset = warpSize / 2; offset > 0; offset >>= 1)
        val = op(val, __shfl_down_sync(kFullMask, val, offset));
    return val;
}

template <typename T, typename Op, int kBlock>
__global__ void __launch_bounds__(kBlock) block_reduce(const T* __restrict__ input, T* __restrict__ output, size_t n) {
    static_assert(kBlock % 32 == 0, "whole warps");
    __shared__ T shared[kBlock / 32];
    Op op;
    T val = Op::template identity<T>();
    for (size_t i = blockIdx.x * size_t(kBlock) + threadIdx.x; i < n; i += size_t(kBlock) * gridDim.x) {
        val = op(val, input[i]);
    }
    const int lane = threadIdx.x % warpSize, warp = threadIdx.x / warpSize;
    val = warp_reduce(val, op);
    if (lane == 0) shared[warp] = val;
    __syncthreads();
    if (warp == 0) {
        val = lane < kBlock / 32 ? shared[lane] : Op::template identity<T>();
        val = warp_reduce(val, op);
        if (lane == 0) output[blockIdx.x] = val;
    }
}

template __global__ void block_reduce<float, ops::Sum, 128>(const float* __restrict__, float* __restrict__, size_t);
template __global__ void block_reduce<float, ops::Max, 64>(const float* __restrict__, float* __restrict__, size_t);
