// Elementwise kernels, one for each operation and type.
#include <math.h>
#include <stdint.h>

#define CEIL_DIV(a, b) (((a) + (b)-1) / (b))
#define THREADS 128
#define GLOBAL_INDEX (blockIdx.x * blockDim.x + threadIdx.x)
#define LOOP(i, n) for (int i = GLOBAL_INDEX; i < (n); i += gridDim.x * blockDim.x)

#define UNARY(name, T, expr)                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) unary_##name##_##T( \
        const T* __restrict__ in, T* __restrict__ out, int numel) {           \
        LOOP(i, numel) {                                                      \
            const T x = in[i];                                                \
            out[i] = expr;                                                    \
        }                                                                     \
    }

#define UNARY_ALL(name, expr) \
    UNARY(name, float, expr)  \
    UNARY(name, double, expr)

UNARY_ALL(relu, x > 0 ? x : 0)
UNARY_ALL(square, x* x)
UNARY(sigmoid, float, 1.0f / (1.0f + expf(-x)))

#define BINARY(name, op)                                                                      \
    extern "C" __global__ void binary_##name(const float *a, const float *b, float *c, int n) \
    { LOOP(i, n) c[i] = a[i] op b[i]; }
BINARY(add, +)
BINARY(mul, *)

extern "C" __global__ void blocks_needed(int* out, int n) { if (GLOBAL_INDEX == 0) *out = CEIL_DIV(n, THREADS); }
