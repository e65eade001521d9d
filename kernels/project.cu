//! project: one token's activations back onto the residual stream.
//!
//! The output projection of attention and the down projection of the FFN: a warp owns two
//! neighbouring rows (lib/gemv.cuh).
//!
//! Grid: SMs, any. Dynamic shared memory: 4 * round_up(K, 2048) bytes.
#include "lib/gemv.cuh"
#include "lib/trace.cuh"

// y += weight x
template <class W> struct Project {
    const float* x; // [1, K]
    const W* weight; // [N, K]
    float* y; // [1, N] in and out: the residual stream
    uint32_t width; // K
    uint32_t rows; // N
    uint32_t parts; // of each row, 1 to 8, a power of two (lib/gemv.cuh)
    uint32_t flow; // lib/flow.cuh
    Trace trace;
};

template <class W> __device__ void project(const Project<W>& args) {
    const auto rows = [&](uint32_t pair) {
        const uint32_t a = 2 * pair, b = a + 1 < args.rows ? a + 1 : a;
        return RowPair<W>{row_of(args.weight, a, args.width), row_of(args.weight, b, args.width)};
    };
    const auto prepare = [&](float* x) {
        grid_dependency_wait();
        begun(args.trace);
        stamp(Moment::Waited);
        stage(args.x, args.width, x);
    };
    const auto finish = [&](uint32_t pair, float a, float b) {
        const uint32_t n = 2 * pair + lane_id();
        // Nobody else adds to it: the same bits as a load, an addition and a store.
        if (lane_id() < 2 && n < args.rows) reduce_add_gpu(&args.y[n], lane_id() == 0 ? a : b);
    };
    gemv<W>((args.rows + 1) / 2, args.width, args.parts, {args.flow}, rows, prepare, finish);
    keep_stamps(args.trace);
}

extern "C" __global__ void __launch_bounds__(256, 2) project_bf16(Project<bf16> args) { project(args); }
extern "C" __global__ void __launch_bounds__(256, 2) project_f16(Project<f16> args) { project(args); }
