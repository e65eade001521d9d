// Each row of y is the softmax of that of x; a block a row, and no sum is taken twice.
#include <cfloat>
#include <cmath>
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

namespace cg = cooperative_groups;

__global__ void softmax(const float* x, float* y, int columns) {
    __shared__ float maxima[32], sums[32];
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
    const float* row = x + blockIdx.x * columns;

    float top = -FLT_MAX;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) top = fmaxf(top, row[i]);
    top = cg::reduce(warp, top, cg::greater<float>());
    if (warp.thread_rank() == 0) maxima[warp.meta_group_rank()] = top;
    block.sync();
    for (unsigned w = 0; w < warp.meta_group_size(); w++) top = fmaxf(top, maxima[w]);

    float sum = 0.0f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += __expf(row[i] - top);
    sum = cg::reduce(warp, sum, cg::plus<float>());
    if (warp.thread_rank() == 0) sums[warp.meta_group_rank()] = sum;
    block.sync();
    sum = 0.0f;
    for (unsigned w = 0; w < warp.meta_group_size(); w++) sum += sums[w];

    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        y[blockIdx.x * columns + i] = __fdividef(__expf(row[i] - top), sum);
}
