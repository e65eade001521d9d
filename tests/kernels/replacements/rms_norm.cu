// rms_norm in place of the built-in kernel, as ordinary CUDA: a block of 128 threads a token.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define THREADS 128

template <typename T> __device__ T narrow(float v);
template <> __device__ inline __nv_bfloat16 narrow(float v) { return __float2bfloat16(v); }
template <> __device__ inline __half narrow(float v) { return __float2half(v); }

// y: [2, tokens, width], whose sum over the two terms is meant.
template <typename T>
__device__ void norm(const float* x, const float* weight, T* y, unsigned tokens, unsigned width, float eps) {
    __shared__ float partial[THREADS];

    for (unsigned token = blockIdx.x; token < tokens; token += gridDim.x) {
        const float* row = x + (size_t)token * width;
        float sum = 0.0f;
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x) sum += row[i] * row[i];
        partial[threadIdx.x] = sum;
        __syncthreads();
        for (unsigned stride = THREADS / 2; stride > 0; stride /= 2) {
            if (threadIdx.x < stride) partial[threadIdx.x] += partial[threadIdx.x + stride];
            __syncthreads(); // after each step
        }
        const float scale = rsqrtf(partial[0] / width + eps);
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
            const float value = row[i] * scale * weight[i];
            const T leading = narrow<T>(value);
            y[(size_t)token * width + i] = leading;
            y[(size_t)(tokens + token) * width + i] = narrow<T>(value - static_cast<float>(leading));
        }
        __syncthreads(); // before the next token
    }
}

#define EXPORT(suffix, T)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS)                                          \
        rms_norm_##suffix(const float* __restrict__ x, const float* __restrict__ weight, T* y,     \
                          unsigned tokens, unsigned width, float eps) {                            \
        norm<T>(x, weight, y, tokens, width, eps);                                                 \
    }

EXPORT(bf16, __nv_bfloat16)
EXPORT(f16, __half)
