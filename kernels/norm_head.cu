//! norm_head: one token from the residual stream to its logits.
//!
//! RMSNorm and the LM head: a warp owns two neighbouring rows (lib/gemv.cuh).
//!
//! Grid: SMs, any. Dynamic shared memory: 8 * round_up(C, 2048) bytes.
#include "lib/gemv.cuh"
#include "lib/trace.cuh"

// logits = head n, with n = rms_norm(x) * norm
template <class W> struct NormHead {
    const float* x; // [1, C] the residual stream
    const float* norm; // [C]
    const W* head; // [V, C]
    float* logits; // [1, V]
    uint32_t width; // C
    uint32_t vocab; // V
    uint32_t parts; // of each row, 1 to 8, a power of two (lib/gemv.cuh)
    uint32_t flow; // lib/flow.cuh
    float eps;
    Trace trace;
};

template <class W> __device__ void norm_head(const NormHead<W>& args) {
    float scale;
    fetch_norm(args.norm, args.width);
    const auto rows = [&](uint32_t pair) {
        const uint32_t a = 2 * pair, b = a + 1 < args.vocab ? a + 1 : a;
        return RowPair<W>{row_of(args.head, a, args.width), row_of(args.head, b, args.width)};
    };
    const auto prepare = [&](float* x) {
        grid_dependency_wait();
        begun(args.trace);
        stamp(Moment::Waited);
        fetch_columns(args.x, args.width, x);
        scale = stage_normed(x, args.width, args.eps);
    };
    const auto finish = [&](uint32_t pair, float a, float b) {
        const uint32_t id = 2 * pair + lane_id();
        if (lane_id() < 2 && id < args.vocab) args.logits[id] = (lane_id() == 0 ? a : b) * scale;
    };
    gemv<W>((args.vocab + 1) / 2, args.width, args.parts, {args.flow}, rows, prepare, finish);
    keep_stamps(args.trace);
}

extern "C" __global__ void __launch_bounds__(256, 2) norm_head_bf16(NormHead<bf16> args) { norm_head(args); }
extern "C" __global__ void __launch_bounds__(256, 2) norm_head_f16(NormHead<f16> args) { norm_head(args); }
