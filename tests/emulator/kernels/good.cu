//! Kernels without mistakes, one for each thing the emulator does.
#include "lib/ptx.cuh"
#include "lib/shared.cuh"

constexpr int N = 256;  // threads of a block

struct Pair {
    const float* x;
    float* y;
    uint32_t count;
};

extern "C" __global__ void __launch_bounds__(N) accumulate(Pair args) {
    for (uint32_t i = blockIdx.x * N + threadIdx.x; i < args.count; i += gridDim.x * N)
        args.y[i] += args.x[i];
}

// y[block] = the sum of the block's part of x, through shared memory
extern "C" __global__ void __launch_bounds__(N) block_reduce(Pair args) {
    SHARED(float[N], part);
    part[threadIdx.x] = args.x[blockIdx.x * N + threadIdx.x];
    for (int half = N / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) args.y[blockIdx.x] = part[0];
}

// y[warp] = the sum of its part of x, through shuffles; y[8 + warp] = how many lanes have x > 3
extern "C" __global__ void __launch_bounds__(N) warp_reduce(Pair args) {
    float v = args.x[threadIdx.x];
    const uint32_t high = ballot(v > 3);
    for (uint32_t mask = 16; mask > 0; mask /= 2) v += shfl_xor(v, mask);
    if (lane_id() == 0) {
        args.y[warp_id()] = v;
        args.y[8 + warp_id()] = __popc(high);
    }
}

struct Product {
    const uint16_t* a;  // [16, 16]
    const uint16_t* b;  // [16, 8]
    float* d;           // [16, 8]
};

template <class T>
__device__ void product(const Product& args) {
    SHARED(uint16_t[16 * 16], a);
    SHARED(uint16_t[16 * 8], b);
    for (int i = lane_id(); i < 256; i += 32) a[i] = args.a[i];
    for (int i = lane_id(); i < 128; i += 32) b[i] = args.b[i];
    __syncwarp();
    uint32_t fa[4], fb[2];
    const uint32_t lane = lane_id();
    ldmatrix_x4(fa, &a[(lane % 16) * 16 + lane / 16 * 8]);
    ldmatrix_x2_trans(fb, &b[lane % 16 * 8]);
    float d[4] = {1, 1, 1, 1};
    mma_m16n8k16<T>(d, fa, fb);
    for (int i = 0; i < 4; i++) args.d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}
extern "C" __global__ void __launch_bounds__(32) product_f16(Product args) { product<f16>(args); }
extern "C" __global__ void __launch_bounds__(32) product_bf16(Product args) { product<bf16>(args); }

// y = the sums over rows of x [rows, 4 N], brought in by three stages of cp.async; count = rows
extern "C" __global__ void __launch_bounds__(N) pipeline(Pair args) {
    float* stages = dynamic_shared<float>();  // [3, 4 N]
    auto fetch = [&](uint32_t row) {
        const uint32_t mine = 4 * threadIdx.x;
        cp_async16(stages + row % 3 * 4 * N + mine, args.x + row * 4 * N + mine, row < args.count);
        cp_async_commit();
    };
    fetch(0);
    fetch(1);
    for (uint32_t row = 0; row < args.count; row++) {
        cp_async_wait<1>();
        __syncthreads();
        fetch(row + 2 < args.count ? row + 2 : args.count);
        float sum = 0;
        for (int i = threadIdx.x; i < 4 * N; i += N) sum += stages[row % 3 * 4 * N + i];
        args.y[row * N + threadIdx.x] = sum;
        __syncthreads();
    }
}

struct Total {
    const float* x;
    float* part;       // [blocks]
    uint32_t* ticket;  // [1], zero before and after
    float* total;      // [1]
};

// The last block to come adds up what all have left.
extern "C" __global__ void __launch_bounds__(N) last_block(Total args) {
    SHARED(uint32_t, last);
    const float mine = args.x[blockIdx.x * N + threadIdx.x];
    float v = mine;
    for (uint32_t mask = 16; mask > 0; mask /= 2) v += shfl_xor(v, mask);
    SHARED(float[N / 32], sums);
    if (lane_id() == 0) sums[warp_id()] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int i = 0; i < N / 32; i++) sum += sums[i];
        args.part[blockIdx.x] = sum;
        last = atomic_add_acq_rel_gpu(args.ticket, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    if (threadIdx.x == 0) {
        float sum = 0;
        for (uint32_t i = 0; i < gridDim.x; i++) sum += args.part[i];
        *args.total = sum;
        *args.ticket = 0;
    }
}

// Every block waits until all have come: they must be resident together.
extern "C" __global__ void __launch_bounds__(N) grid_barrier(Total args) {
    if (threadIdx.x == 0) {
        args.part[blockIdx.x] = args.x[blockIdx.x];
        atomic_add_release_gpu(args.ticket, 1);
        while (load_acquire_gpu(args.ticket) < gridDim.x) nanosleep(100);
    }
    __syncthreads();
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        float sum = 0;
        for (uint32_t i = 0; i < gridDim.x; i++) sum += args.part[i];
        *args.total = sum;
    }
}

// Waits for a flag that another kernel raises.
extern "C" __global__ void __launch_bounds__(32) wait_flag(Total args) {
    if (threadIdx.x == 0) {
        while (load_acquire_gpu(args.ticket) == 0) {
        }
        *args.total = *args.part;
    }
}
extern "C" __global__ void __launch_bounds__(32) raise_flag(Total args) {
    if (threadIdx.x == 0) {
        *args.part = *args.x;
        store_release_gpu(args.ticket, 1);
    }
}

// As a kernel waits for another device.
extern "C" __global__ void __launch_bounds__(32) wait_far(Total args) {
    if (threadIdx.x == 0)
        while (load_relaxed_system(args.ticket) == 0) nanosleep(20);
}

// A pair for programmatic launch: y = 2 x, then y = y + x in the dependent.
extern "C" __global__ void __launch_bounds__(N) primary(Pair args) {
    grid_dependency_launch();
    grid_dependency_wait();
    args.y[blockIdx.x * N + threadIdx.x] = 2 * args.x[blockIdx.x * N + threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(N) dependent(Pair args) {
    const float x = args.x[blockIdx.x * N + threadIdx.x];  // nobody writes x
    grid_dependency_wait();
    args.y[blockIdx.x * N + threadIdx.x] += x;
}

// 40 KiB of its own.
extern "C" __global__ void __launch_bounds__(N) own_shared(Pair args) {
    SHARED(float[10240], own);
    own[threadIdx.x] = args.x[threadIdx.x];
    args.y[threadIdx.x] = own[threadIdx.x];
}

// Into another device's memory: y[0] = 7.
extern "C" __global__ void __launch_bounds__(32) store_far(Pair args) {
    if (threadIdx.x == 0) store_relaxed_system(reinterpret_cast<uint64_t*>(args.y), 7);
}
