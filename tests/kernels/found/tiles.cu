// Cooperative tiles: a warp a row softmax, then a scan of the rows' maxima.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <limits>
namespace cg = cooperative_groups;

struct __align__(8) MD { float m; float d; };

__device__ __forceinline__ MD merge(MD a, MD b) {
    bool a_bigger = a.m > b.m;
    MD bigger = a_bigger ? a : b, smaller = a_bigger ? b : a;
    MD res;
    res.d = bigger.d + smaller.d * __expf(smaller.m - bigger.m);
    res.m = bigger.m;
    return res;
}

template <int TILE>
__device__ MD reduce_md(cg::thread_block_tile<TILE> tile, MD v) {
    for (int i = tile.size() / 2; i > 0; i /= 2) {
        MD other = {tile.shfl_xor(v.m, i), tile.shfl_xor(v.d, i)};
        v = merge(v, other);
    }
    return v;
}

extern "C" __global__ __launch_bounds__(256) void online_softmax(const float* __restrict x, float* __restrict y, int rows, int V) {
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
    int row = blockIdx.x * warp.meta_group_size() + warp.meta_group_rank();
    if (row >= rows) return;
    x += row * V;
    y += row * V;
    MD md = {-3.4e38f, 0.f};
    for (int i = warp.thread_rank(); i < V; i += warp.num_threads()) md = merge(md, MD{x[i], 1.0f});
    md = reduce_md<32>(warp, md);
    const float d_total_inverse = __fdividef(1.0F, md.d);
    for (int i = warp.thread_rank(); i < V; i += warp.num_threads()) y[i] = __expf(x[i] - md.m) * d_total_inverse;
}

extern "C" __global__ void prefix(const int* in, int* out) {
    auto tile = cg::tiled_partition<16>(cg::this_thread_block());
    int i = cg::this_thread_block().thread_rank();
    int sum = cg::inclusive_scan(tile, in[i], cg::plus<int>());
    int largest = cg::reduce(tile, in[i], cg::greater<int>());
    if (tile.thread_rank() == 0) atomicAdd(&out[gridDim.x * blockDim.x], largest);
    out[i] = sum;
}
