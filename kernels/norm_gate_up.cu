//! norm_gate_up: one token from the residual stream to the gated hidden units.
//!
//! RMSNorm, two matrix-vector products and SwiGLU. A warp owns a row of the gate's matrix and the
//! same row of the other (lib/gemv.cuh, where the bytes in flight are counted), so that it can
//! gate them itself. The norm is done again in every block, its scale after the products: 16 KB
//! from the L2 cache beside 0.9 MB of weights an SM for an 8B model.
//!
//! Grid: SMs, any. Dynamic shared memory: 8 * round_up(C, 2048) bytes.
#include "lib/gemv.cuh"
#include "lib/trace.cuh"

// hidden = silu(w_gate n) * (w_up n), with n = rms_norm(x) * norm
template <class W> struct NormGateUp {
    const float* x; // [1, C] the residual stream
    const float* norm; // [C]
    const W* w_gate; // [F, C]
    const W* w_up; // [F, C]
    float* hidden; // [1, F]
    uint32_t width; // C
    uint32_t ffn; // F
    uint32_t parts; // of each row, 1 to 8, a power of two (lib/gemv.cuh)
    uint32_t flow; // lib/flow.cuh
    float eps;
    Trace trace;
};

template <class W> __device__ void norm_gate_up(const NormGateUp<W>& args) {
    float scale;
    fetch_norm(args.norm, args.width);
    const auto rows = [&](uint32_t f) {
        return RowPair<W>{row_of(args.w_gate, f, args.width), row_of(args.w_up, f, args.width)};
    };
    const auto prepare = [&](float* x) {
        grid_dependency_wait();
        begun(args.trace);
        stamp(Moment::Waited);
        fetch_columns(args.x, args.width, x);
        scale = stage_normed(x, args.width, args.eps);
    };
    const auto finish = [&](uint32_t f, float gate, float up) {
        if (lane_id() == 0) args.hidden[f] = swiglu(gate * scale, up * scale);
    };
    gemv<W>(args.ffn, args.width, args.parts, {args.flow}, rows, prepare, finish);
    keep_stamps(args.trace);
}

extern "C" __global__ void __launch_bounds__(256, 2) norm_gate_up_bf16(NormGateUp<bf16> args) { norm_gate_up(args); }
extern "C" __global__ void __launch_bounds__(256, 2) norm_gate_up_f16(NormGateUp<f16> args) { norm_gate_up(args); }
