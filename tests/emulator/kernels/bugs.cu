//! Planted bugs, each beside the same kernel without it: `name` and `name_fixed`. One block has 256
//! threads.
#include "lib/ptx_hopper.cuh"
#include "lib/shared.cuh"

constexpr int N = 256;

struct Pair {
    const float* x;
    float* y;
    uint32_t count;
};

// y = x reversed
template <bool FIXED>
__device__ void missing_barrier_of(const Pair& args) {
    SHARED(float[N], part);
    part[threadIdx.x] = args.x[threadIdx.x];
    if (FIXED) __syncthreads();
    args.y[threadIdx.x] = part[N - 1 - threadIdx.x];
}

// y = the sum over tiles of the value in the next warp's place. Only a schedule that lets the last
// warp run ahead goes wrong.
template <bool FIXED>
__device__ void reused_buffer_of(const Pair& args) {
    SHARED(float[N], part);
    float sum = 0;
    for (uint32_t tile = 0; tile < args.count; tile++) {
        part[threadIdx.x] = args.x[tile * N + threadIdx.x];
        __syncthreads();
        sum += part[threadIdx.x + 32 < N ? threadIdx.x + 32 : threadIdx.x];
        if (FIXED) __syncthreads();
    }
    args.y[threadIdx.x] = sum;
}

// Every block counts into the same place.
template <bool FIXED>
__device__ void cross_block_of(const Pair& args) {
    if (FIXED) {
        atomic_add_acq_rel_gpu(reinterpret_cast<uint32_t*>(args.y) + threadIdx.x, 1);
    } else {
        reinterpret_cast<uint32_t*>(args.y)[threadIdx.x] += 1;
    }
}

// Each lane writes half a row of a 16x16 tile, then all load fragments.
template <bool FIXED>
__device__ void missing_syncwarp_of(const Pair& args) {
    SHARED(uint16_t[8 * 256], tiles);
    uint16_t* tile = tiles + warp_id() * 256;
    for (int i = 0; i < 8; i++) tile[lane_id() * 8 + i] = uint16_t(args.x[threadIdx.x] + i);
    if (FIXED) __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, tile + lane_id() % 16 * 16 + lane_id() / 16 * 8);
    args.y[threadIdx.x] = float(r[0] & 0xffff) + float(r[3] >> 16);
}

// Waits for all groups but the one that it needs.
template <bool FIXED>
__device__ void weak_wait_of(const Pair& args) {
    SHARED(float[4 * N], stage);
    cp_async16(stage + 4 * threadIdx.x, args.x + 4 * threadIdx.x, true);
    cp_async_commit();
    cp_async_wait<FIXED ? 0 : 1>();
    __syncthreads();
    args.y[threadIdx.x] = stage[4 * N - 1 - threadIdx.x];
}

template <bool FIXED>
__device__ void divergent_barrier_of(const Pair& args) {
    if (FIXED || threadIdx.x < N / 2) __syncthreads();
    args.y[threadIdx.x] = args.x[threadIdx.x];
}

// A shuffle in a branch that half of the lanes do not take.
template <bool FIXED>
__device__ void divergent_shuffle_of(const Pair& args) {
    float v = args.x[threadIdx.x];
    if (FIXED || lane_id() < 16) v += shfl_xor(v, 1);
    args.y[threadIdx.x] = v;
}

template <bool FIXED>
__device__ void shared_bounds_of(const Pair& args) {
    SHARED(float[N], part);
    part[threadIdx.x] = args.x[threadIdx.x];
    if (threadIdx.x == 0 && !FIXED) part[args.count] = 0;  // count = N
    args.y[threadIdx.x] = part[threadIdx.x];
}

// Memory of N floats, and one more is written.
template <bool FIXED>
__device__ void global_bounds_of(const Pair& args) {
    args.y[threadIdx.x + (FIXED ? 0 : 1)] = args.x[threadIdx.x];
}

template <bool FIXED>
__device__ void misaligned_of(const Pair& args) {
    const uint4 v = *reinterpret_cast<const uint4*>(args.x + (FIXED ? 4 : 1));
    args.y[threadIdx.x] = __uint_as_float(v.x);
}

// Reads what the kernel before it writes, before waiting for it.
template <bool FIXED>
__device__ void early_read_of(const Pair& args) {
    if (FIXED) grid_dependency_wait();
    const float v = args.x[threadIdx.x];
    if (!FIXED) grid_dependency_wait();
    args.y[threadIdx.x] = v + 1;
}

// Waits for a flag that nobody raises.
template <bool FIXED>
__device__ void deadlock_of(const Pair& args) {
    const uint32_t* flag = reinterpret_cast<const uint32_t*>(args.x);
    while (load_acquire_gpu(flag) == (FIXED ? 1 : 0)) nanosleep(10);
    args.y[threadIdx.x] = 0;
}

// Hopper: x x^T, of its first 64 rows, in slices of 64 columns through one stage. The first warpgroup
// has the slices brought, the second multiplies.
struct alignas(128) Square {
    TensorMap x;     // [256, 64 slices]
    float* y;        // [64, 256]
    uint32_t slices;
};

enum Bug { NONE, NO_FULL, NO_EMPTY, EARLY_EMPTY, NO_DONE, NO_FENCE, NO_INIT_FENCE, NO_PROXY_FENCE };

template <Bug BUG>
__device__ void square(const Square& args) {
    SHARED(uint64_t[2], barriers);
    SHARED(uint8_t[33 * 1024], shared);
    uint16_t* x = reinterpret_cast<uint16_t*>(shared + -uint64_t(shared) % 1024);
    uint64_t *full = &barriers[0], *empty = &barriers[1];
    if (threadIdx.x == 0) mbarrier_init(full, 1), mbarrier_init(empty, 4);
    if (threadIdx.x == 0 && BUG != NO_INIT_FENCE) fence_mbarrier_init();
    __syncthreads();
    if (warp_id() < 4) {
        for (uint32_t slice = 0; threadIdx.x == 0 && slice < args.slices; slice++) {
            if (BUG != NO_EMPTY) mbarrier_wait(empty, ~slice % 2);
            mbarrier_arrive_expect(full, 32 * 1024);
            copy_box(x, args.x, 0, 64 * slice, full);
        }
        return;
    }
    float d[32][4];
    for (uint32_t slice = 0; slice < args.slices; slice++) {
        if (BUG != NO_FULL) mbarrier_wait(full, slice % 2);
        x[threadIdx.x % 128] *= gridDim.x;  // 1
        if (BUG != NO_PROXY_FENCE) fence_async_proxy();
        named_barrier_sync(1, 128);
        if (BUG != NO_FENCE) wgmma_fence();
        for (int k = 0; k < 64; k += 16)
            wgmma_m64n256k16<f16>(d, matrix_descriptor(x + k), matrix_descriptor(x + k), slice || k);
        wgmma_commit();
        if (BUG == EARLY_EMPTY && lane_id() == 0) mbarrier_arrive(empty);
        if (BUG != NO_DONE) wgmma_wait<0>();
        if (BUG != EARLY_EMPTY && lane_id() == 0) mbarrier_arrive(empty);
    }
    const uint32_t row = threadIdx.x % 128 / 32 * 16 + lane_id() / 4;
    for (int j = 0; j < 32; j++)
        for (int i = 0; i < 4; i++)
            args.y[(row + i / 2 * 8) * 256 + 8 * j + lane_id() % 4 * 2 + i % 2] = d[j][i];
}

// A warpgroup gives registers up, two take more than that.
template <bool FIXED>
__device__ void too_many_registers_of(const Pair& args) {
    if (warp_id() < 4)
        give_up_registers<40>();
    else
        take_registers<FIXED ? 232 : 240>();
    if (threadIdx.x < N) args.y[threadIdx.x] = args.x[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(384) too_many_registers(Pair args) { too_many_registers_of<false>(args); }
extern "C" __global__ void __launch_bounds__(384) too_many_registers_fixed(Pair args) { too_many_registers_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) missing_barrier(Pair args) { missing_barrier_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) missing_barrier_fixed(Pair args) { missing_barrier_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) reused_buffer(Pair args) { reused_buffer_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) reused_buffer_fixed(Pair args) { reused_buffer_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) cross_block(Pair args) { cross_block_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) cross_block_fixed(Pair args) { cross_block_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) missing_syncwarp(Pair args) { missing_syncwarp_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) missing_syncwarp_fixed(Pair args) { missing_syncwarp_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) weak_wait(Pair args) { weak_wait_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) weak_wait_fixed(Pair args) { weak_wait_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) divergent_barrier(Pair args) { divergent_barrier_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) divergent_barrier_fixed(Pair args) { divergent_barrier_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) divergent_shuffle(Pair args) { divergent_shuffle_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) divergent_shuffle_fixed(Pair args) { divergent_shuffle_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) shared_bounds(Pair args) { shared_bounds_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) shared_bounds_fixed(Pair args) { shared_bounds_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) global_bounds(Pair args) { global_bounds_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) global_bounds_fixed(Pair args) { global_bounds_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) misaligned(Pair args) { misaligned_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) misaligned_fixed(Pair args) { misaligned_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) early_read(Pair args) { early_read_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) early_read_fixed(Pair args) { early_read_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) deadlock(Pair args) { deadlock_of<false>(args); }
extern "C" __global__ void __launch_bounds__(N) deadlock_fixed(Pair args) { deadlock_of<true>(args); }
extern "C" __global__ void __launch_bounds__(N) no_full_barrier(const __grid_constant__ Square args) { square<NO_FULL>(args); }
extern "C" __global__ void __launch_bounds__(N) no_empty_barrier(const __grid_constant__ Square args) { square<NO_EMPTY>(args); }
extern "C" __global__ void __launch_bounds__(N) early_empty_barrier(const __grid_constant__ Square args) { square<EARLY_EMPTY>(args); }
extern "C" __global__ void __launch_bounds__(N) no_wait_for_products(const __grid_constant__ Square args) { square<NO_DONE>(args); }
extern "C" __global__ void __launch_bounds__(N) no_fence_before_products(const __grid_constant__ Square args) { square<NO_FENCE>(args); }
extern "C" __global__ void __launch_bounds__(N) no_fence_after_init(const __grid_constant__ Square args) { square<NO_INIT_FENCE>(args); }
extern "C" __global__ void __launch_bounds__(N) no_fence_between_proxies(const __grid_constant__ Square args) { square<NO_PROXY_FENCE>(args); }
extern "C" __global__ void __launch_bounds__(N) products_fixed(const __grid_constant__ Square args) { square<NONE>(args); }
