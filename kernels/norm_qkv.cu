//! norm_qkv: one token from the residual stream to its rotated queries and its place in the cache.
//!
//! RMSNorm, three matrix-vector products, rotary embedding and the append in one. A warp owns the
//! two rows of a rotary pair (lib/gemv.cuh), i and i + D/2 of one head, and so can turn them
//! itself; the values' rows are paired alike and not turned. Heads are counted through: H of the
//! queries, G of the keys, G of the values.
//!
//! Grid: SMs, any. Dynamic shared memory: 8 * round_up(C, 2048) bytes.
#include "lib/gemv.cuh"
#include "lib/trace.cuh"

// q = turn(wq n), cache row = turn(wk n), wv n; with n = rms_norm(x) * norm
template <class W> struct NormQkv {
    const float* x; // [1, C] the residual stream
    const float* norm; // [C]
    const W* wq; // [H D, C]
    const W* wk; // [G D, C]
    const W* wv; // [G D, C]
    const uint32_t* positions; // [R] of the tokens, R = 1
    const uint32_t* sequences; // [R] whose part of the cache is theirs
    const float* frequencies; // [D/2] radians per position
    float* q; // [1, H, D]
    kv_t* keys; // [B, S, G, D] the sequence's row at the position is written
    kv_t* values; // [B, S, G, D] the same
    uint32_t context; // S
    uint32_t width; // C
    uint32_t heads; // H
    uint32_t kv_heads; // G
    uint32_t parts; // of each row, 1 to 8, a power of two (lib/gemv.cuh)
    uint32_t flow; // lib/flow.cuh
    float eps;
    float magnitude; // what cosines and sines are multiplied with
    Trace trace;
};

template <class W, int D> __device__ void norm_qkv(const NormQkv<W>& args) {
    const uint32_t width = args.width, heads = args.heads, kv_heads = args.kv_heads;
    SHARED(float2[D / 2], turns); // sine and cosine
    SHARED(uint64_t, cached); // the row of the cache
    float scale;
    fetch_norm(args.norm, width);
    const auto rows = [&](uint32_t pair) {
        // Without branches: they would part the loads of a step from their use (lib/gemv.cuh).
        const uint32_t head = pair / (D / 2), i = pair % (D / 2);
        const W* matrix = head < heads ? args.wq : head < heads + kv_heads ? args.wk : args.wv;
        const uint32_t skipped = head < heads ? 0 : head < heads + kv_heads ? heads : heads + kv_heads;
        const W* a = row_of(matrix, (head - skipped) * D + i, width);
        return RowPair<W>{a, row_of(a, D / 2, width)};
    };
    const auto prepare = [&](float* x) {
        grid_dependency_wait();
        begun(args.trace);
        stamp(Moment::Waited);
        fetch_columns(args.x, width, x);
        if (threadIdx.x < D / 2) { // while x is in flight
            const uint32_t i = threadIdx.x, position = *args.positions;
            // The angle is one product in float, as models were trained with it.
            float sine, cosine;
            sin_cos(float(position) * args.frequencies[i], sine, cosine);
            turns[i] = {args.magnitude * sine, args.magnitude * cosine};
            if (i == 0) cached = uint64_t(*args.sequences) * args.context + position;
        }
        scale = stage_normed(x, width, args.eps);
    };
    const auto finish = [&](uint32_t pair, float a, float b) {
        if (lane_id() != 0) return;
        const uint32_t head = pair / (D / 2), i = pair % (D / 2);
        a *= scale;
        b *= scale;
        if (head < heads + kv_heads) {
            const float sine = turns[i].x, cosine = turns[i].y;
            const float turned = a * cosine - b * sine;
            b = b * cosine + a * sine;
            a = turned;
        }
        if (head < heads) {
            args.q[head * D + i] = a;
            args.q[head * D + i + D / 2] = b;
        } else {
            kv_t* cache = head < heads + kv_heads ? args.keys : args.values;
            kv_t* row = cache + (cached * kv_heads + (head - heads) % kv_heads) * D;
            row[i] = to_kv(a);
            row[i + D / 2] = to_kv(b);
        }
    };
    gemv<W>((heads + 2 * kv_heads) * (D / 2), width, args.parts, {args.flow}, rows, prepare, finish);
    keep_stamps(args.trace);
}

extern "C" __global__ void __launch_bounds__(256, 2) norm_qkv_bf16_d64(NormQkv<bf16> args) { norm_qkv<bf16, 64>(args); }
extern "C" __global__ void __launch_bounds__(256, 2) norm_qkv_bf16_d128(NormQkv<bf16> args) { norm_qkv<bf16, 128>(args); }
extern "C" __global__ void __launch_bounds__(256, 2) norm_qkv_f16_d64(NormQkv<f16> args) { norm_qkv<f16, 64>(args); }
extern "C" __global__ void __launch_bounds__(256, 2) norm_qkv_f16_d128(NormQkv<f16> args) { norm_qkv<f16, 128>(args); }
