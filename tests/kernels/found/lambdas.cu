#include <cstdint>
#include <type_traits>

template <typename F>
__device__ void for_each(int n, F&& f) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) f(i);
}

template <int... Is> struct Seq {};

template <typename T> __host__ __device__ constexpr T clampTo(T v, T lo, T hi) { return v < lo ? lo : (v > hi ? hi : v); }

enum class Mode : int { Linear = 0, Quadratic = 1 };

__constant__ float coefficients[3] = {1.f, 2.f, 3.f};
__device__ unsigned int calls = 0;

namespace app { namespace detail {
__global__ void polynomial(const float* x, float* y, int n, int mode) {
    auto eval = [=] __device__ (float v) -> float {
        float r = coefficients[0] + coefficients[1] * v;
        if (static_cast<Mode>(mode) == Mode::Quadratic) r += coefficients[2] * v * v;
        return r;
    };
    for_each(n, [&](int i) {
        y[i] = clampTo(eval(x[i]), -100.f, 100.f);
        if constexpr (std::is_same_v<decltype(y[i]), float&>) atomicAdd(&calls, 1u);
    });
}
}}  // namespace app::detail

__global__ void countCalls(unsigned int* out) { *out = calls; }
