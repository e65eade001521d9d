// How often each byte is there: each block counts by itself, then all add up.
#include <stdint.h>
#define BINS 256

__global__ void histogram(const uint8_t* data, unsigned int* bins, size_t n) {
    __shared__ unsigned int own[BINS];
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) own[i] = 0;
    __syncthreads();
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        atomicAdd(&own[data[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) atomicAdd(&bins[i], own[i]);
}
