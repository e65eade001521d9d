// y = x transposed, by tiles of 32 that blocks of 32 by 8 move; the padding keeps columns in different banks.
#include <cuda_runtime.h>

const int TILE_DIM = 32, BLOCK_ROWS = 8;

__global__ void transpose(float *y, const float *x, int width, int height)
{
    __shared__ float tile[TILE_DIM][TILE_DIM + 1];

    int col = blockIdx.x * TILE_DIM + threadIdx.x;
    int row = blockIdx.y * TILE_DIM + threadIdx.y;
    for (int j = 0; j < TILE_DIM; j += BLOCK_ROWS)
        if (col < width && row + j < height)
            tile[threadIdx.y + j][threadIdx.x] = x[(row + j) * width + col];

    __syncthreads();

    col = blockIdx.y * TILE_DIM + threadIdx.x;
    row = blockIdx.x * TILE_DIM + threadIdx.y;
    for (int j = 0; j < TILE_DIM; j += BLOCK_ROWS)
        if (col < height && row + j < width)
            y[(row + j) * height + col] = tile[threadIdx.x][threadIdx.y + j];
}
