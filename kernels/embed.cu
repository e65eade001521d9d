//! embed: the step's tokens to their rows of the embedding table, where the residual stream begins.
//!
//! A thread copies 16 bytes of a row, whatever the grid. Nothing is worth prefetching: which rows
//! are wanted is known only when the kernel before has ended. The kernel after this one may begin
//! at once: it has weights to fetch.
#include "lib/convert.cuh"
#include "lib/flow.cuh"
#include "lib/trace.cuh"

// x[t] = table[ids[t] - first_id], or zeros where the table has no such row
template <class W> struct Embed {
    const uint32_t* ids; // [T]
    const W* table; // [V, C]
    float* x; // [T, C] the residual stream
    uint32_t tokens; // T
    uint32_t width; // C
    uint32_t rows; // V
    uint32_t first_id; // the token that the table's first row is of
    Trace trace;
};

template <class W> __device__ void embed(const Embed<W>& args) {
    stamp(Moment::Begins);
    let_next_begin();
    grid_dependency_wait();
    begun(args.trace);
    stamp(Moment::Waited);
    const uint32_t pieces = args.width / 8;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
         i < uint64_t(args.tokens) * pieces; i += uint64_t(gridDim.x) * blockDim.x) {
        const uint64_t token = i / pieces, k = i % pieces * 8;
        const uint32_t row = args.ids[token] - args.first_id; // of tokens before it, a large number
        float v[8] = {};
        if (row < args.rows)
            unpack8<W>(load_stream(args.table + uint64_t(row) * args.width + k, true), v);
        float* x = args.x + token * args.width + k;
        store4(x, {v[0], v[1], v[2], v[3]});
        store4(x + 4, {v[4], v[5], v[6], v[7]});
    }
    keep_stamps(args.trace);
}

extern "C" __global__ void __launch_bounds__(256) embed_bf16(Embed<bf16> args) { embed(args); }
extern "C" __global__ void __launch_bounds__(256) embed_f16(Embed<f16> args) { embed(args); }
