//! Behind intrinsics.cu: one kernel for each function of lib/ptx_hopper.cuh.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL // Hopper's own

// Shared memory whose swizzle begins where it does.
template <class T> __device__ inline T* aligned(uint8_t* shared) {
    return reinterpret_cast<T*>(shared + -uint64_t(shared) % 1024);
}

// Blocks of 64: each warp tells the other, in two phases. out: [64] what was heard, twice
extern "C" __global__ void __launch_bounds__(128) phases(WORDS) {
    SHARED(uint64_t, barrier);
    SHARED(uint32_t[64], told);
    if (threadIdx.x == 0) {
        mbarrier_init(&barrier, 64);
        fence_mbarrier_init();
    }
    __syncthreads();
    mbarrier_wait(&barrier, 1); // before the first phase
    for (uint32_t phase = 0; phase < 2; phase++) {
        if (warp_id() == phase) told[threadIdx.x] = in[lane_id()] + phase;
        mbarrier_arrive(&barrier);
        mbarrier_wait(&barrier, phase);
        out[64 * phase + threadIdx.x] = told[32 * phase + 31 - lane_id()];
    }
}

// in: a TensorMap, row and column; out: [16, 32] the box as it lies
struct alignas(128) Box {
    TensorMap map;
    uint32_t* out;
    uint32_t row;
    uint32_t column;
};
extern "C" __global__ void __launch_bounds__(128) boxes(const __grid_constant__ Box args) {
    SHARED(uint64_t, barrier);
    SHARED(uint8_t[3072], shared);
    uint32_t* box = aligned<uint32_t>(shared);
    if (threadIdx.x == 0) {
        mbarrier_init(&barrier, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect(&barrier, 2048);
        copy_box(box, args.map, args.row, args.column, &barrier);
    }
    __syncthreads();
    mbarrier_wait(&barrier, 0);
    for (uint32_t i = threadIdx.x; i < 512; i += blockDim.x) args.out[i] = box[i];
}

// in: [32, 2] what is told, in two rounds; out: [2, 32] what was heard. Of 96 threads the last warp
// tells the first one, which answers.
extern "C" __global__ void __launch_bounds__(128) some_warps(WORDS) {
    constexpr uint32_t TOLD = 5, HEARD = 15, TWO_WARPS = 64;
    SHARED(uint32_t[32], told);
    for (uint32_t round = 0; round < 2; round++) {
        if (warp_id() == 2) {
            if (round > 0) named_barrier_sync(HEARD, TWO_WARPS);
            told[lane_id()] = in[2 * lane_id() + round];
            named_barrier_arrive(TOLD, TWO_WARPS);
        } else if (warp_id() == 0) {
            named_barrier_sync(TOLD, TWO_WARPS);
            out[32 * round + lane_id()] = told[31 - lane_id()];
            if (round == 0) named_barrier_arrive(HEARD, TWO_WARPS);
        }
    }
}

// out: [N, 4, 128]
template <int N> __device__ inline void store_sums(uint32_t* out, const float (&d)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[(4 * j + i) * 128 + threadIdx.x] = float_bits(d[j][i]);
}

// Blocks of 128. in: [64, 32] A, then [N, 32] B, of 16 bits; out: registers of A B^T
template <int N, class Multiply>
__device__ inline void wide_product(const uint32_t* in, uint32_t* out, Multiply multiply) {
    SHARED(uint8_t[41984], shared);
    uint16_t* const a = aligned<uint16_t>(shared);
    uint16_t* const b = a + 64 * 64;
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(in);
    for (uint32_t i = threadIdx.x; i < (64 + N) * 32; i += 128) {
        const uint32_t row = i / 32, k = i % 32;
        a[row * 64 + ((k / 8) ^ (row % 8)) * 8 + k % 8] = halves[i];
    }
    fence_async_proxy();
    __syncthreads();
    float d[N / 8][4];
    wgmma_fence();
    multiply(d, matrix_descriptor(a), matrix_descriptor(b), false);
    wgmma_commit();
    multiply(d, matrix_descriptor(a + 16), matrix_descriptor(b + 16), true);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_wait<0>();
    hold(d);
    store_sums(out, d);
}
extern "C" __global__ void __launch_bounds__(128) wide_products_of_f16(WORDS) {
    wide_product<256>(in, out, [](float (&d)[32][4], uint64_t a, uint64_t b, bool accumulate) {
        wgmma_m64n256k16<f16>(d, a, b, accumulate);
    });
}
extern "C" __global__ void __launch_bounds__(128) wide_products_of_bf16(WORDS) {
    wide_product<256>(in, out, [](float (&d)[32][4], uint64_t a, uint64_t b, bool accumulate) {
        wgmma_m64n256k16<bf16>(d, a, b, accumulate);
    });
}
extern "C" __global__ void __launch_bounds__(128) half_as_wide_products_of_f16(WORDS) {
    wide_product<128>(in, out, [](float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate) {
        wgmma_m64n128k16<f16>(d, a, b, accumulate);
    });
}
extern "C" __global__ void __launch_bounds__(128) half_as_wide_products_of_bf16(WORDS) {
    wide_product<128>(in, out, [](float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate) {
        wgmma_m64n128k16<bf16>(d, a, b, accumulate);
    });
}

// Blocks of 128. in: [64, 32] A, then [32, N] B, of f16; out: registers of A B + 1
template <int N>
__device__ inline void product_from_registers(const uint32_t* in, uint32_t* out) {
    constexpr uint32_t PANEL = 32 * 64;
    SHARED(uint8_t[2 * N / 64 * PANEL + 1024], shared);
    uint16_t* const b = aligned<uint16_t>(shared);
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(in) + 64 * 32;
    for (uint32_t i = threadIdx.x; i < 32 * N; i += 128) {
        const uint32_t k = i / N, panel = i % N / 64, column = i % 64;
        b[panel * PANEL + k * 64 + ((column / 8) ^ (k % 8)) * 8 + column % 8] = halves[i];
    }
    uint32_t a[2][4];
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const uint32_t row = warp_id() * 16 + lane_id() / 4 + r % 2 * 8;
            a[k][r] = in[row * 16 + 8 * k + r / 2 * 4 + lane_id() % 4];
        }
    fence_async_proxy();
    __syncthreads();
    float d[N / 8][4];
#pragma unroll
    for (auto& sums : d) sums[0] = sums[1] = sums[2] = sums[3] = 1.0f;
    hold(d);
    hold(a);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 2; k++)
        wgmma_rs_m64k16(d, a[k], transposed_descriptor(b + k * 16 * 64, 2 * PANEL));
    wgmma_commit();
    wgmma_wait<0>();
    hold(d);
    store_sums(out, d);
}
extern "C" __global__ void __launch_bounds__(128) products_from_registers_64(WORDS) {
    product_from_registers<64>(in, out);
}
extern "C" __global__ void __launch_bounds__(128) products_from_registers_128(WORDS) {
    product_from_registers<128>(in, out);
}

// Blocks of 384. out: [384] in + warpgroup; [384] the distance between addresses 12 bytes apart
extern "C" __global__ void __launch_bounds__(384, 1) moved_registers(WORDS) {
    SHARED(uint32_t[4], four);
    if (warp_id() < 4) {
        give_up_registers<40>();
        out[threadIdx.x] = in[lane_id()];
    } else {
        take_registers<232>();
        out[threadIdx.x] = in[lane_id()] + warp_id() / 4;
    }
    out[384 + threadIdx.x] = shared_address(&four[3]) - shared_address(&four[0]);
}

#endif
