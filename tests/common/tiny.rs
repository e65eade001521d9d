/// A kernel in good form. Its lines are numbered from 1.
pub const TINY: &str = "\
//! tiny: y = a x.
//!
//! One number a thread.
#include \"lib/types.cuh\"

// y[i] = a x[i]
template <class W> struct Tiny {
    const float* x; // [N]
    const W* a; // [1]
    Activation<W>* y; // [N]
    uint32_t count; // N
    kv_t *cache; // [N] wherever the star stands
    float eps;
};

template <class W> __device__ void tiny(const Tiny<W>& args) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < args.count) args.y[i].bits = args.a->bits * uint32_t(args.x[i]);
}

extern \"C\" __global__ void __launch_bounds__(64, 2) tiny_bf16(Tiny<bf16> args) { tiny(args); }
extern \"C\" __global__ void __launch_bounds__(128) tiny_f16_d64(Tiny<f16> args) { tiny(args); }
";
