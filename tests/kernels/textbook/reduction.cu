// The sum of x, a block's part by shared memory and then by shuffles.
template <typename T, unsigned BLOCK>
__global__ void __launch_bounds__(BLOCK) reduction(const T* __restrict__ x, T* __restrict__ total, unsigned n) {
    extern __shared__ unsigned char bytes[];
    T* part = reinterpret_cast<T*>(bytes);
    const unsigned tid = threadIdx.x;
    T sum = 0;
    for (unsigned i = blockIdx.x * BLOCK + tid; i < n; i += BLOCK * gridDim.x) sum += x[i];
    part[tid] = sum;
    __syncthreads();
#pragma unroll
    for (unsigned s = BLOCK / 2; s >= 32; s >>= 1) {
        if (tid < s) part[tid] += part[tid + s];
        __syncthreads();
    }
    if (tid < 32) {
        sum = part[tid];
        for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_down_sync(0xffffffff, sum, offset);
        if (tid == 0) atomicAdd(total, sum);
    }
}
