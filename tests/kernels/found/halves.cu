#include <cuda_fp16.h>
#include <cuda_bf16.h>

// y = gelu(x + bias), two at a time
__device__ __forceinline__ float gelu(float x) {
    const float kAlpha = 0.7978845608f;
    return 0.5f * x * (1.0f + tanhf(kAlpha * (x + 0.044715f * x * x * x)));
}

__global__ void bias_gelu(half2* __restrict__ x, const half2* __restrict__ bias, int m, int n) {
    for (int id = blockIdx.x * blockDim.x + threadIdx.x; id < m * n; id += blockDim.x * gridDim.x) {
        half2 v = __hadd2(x[id], __ldg(&bias[id % n]));
        float2 f = __half22float2(v);
        x[id] = __floats2half2_rn(gelu(f.x), gelu(f.y));
    }
}

__global__ void dot_h(const __half* a, const __half* b, float* out, int n) {
    __half2 acc = __float2half2_rn(0.f);
    const __half2* a2 = reinterpret_cast<const __half2*>(a);
    const __half2* b2 = reinterpret_cast<const __half2*>(b);
    for (int i = threadIdx.x; i < n / 2; i += blockDim.x) acc = __hfma2(a2[i], b2[i], acc);
    float sum = __low2float(acc) + __high2float(acc);
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(0xffffffff, sum, o);
    if (threadIdx.x == 0) *out = sum;
}

__global__ void to_bf16(const float* in, __nv_bfloat16* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = __float2bfloat16_rn(in[i]);
}
