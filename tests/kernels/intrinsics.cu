//! One kernel for each function of lib/ptx.cuh and lib/ptx_hopper.cuh: tests/intrinsics.rs holds what every lane must get.
//! Unless said otherwise one warp, `in` and `out` a word a lane.
#include "lib/ptx.cuh"
#include "lib/ptx_hopper.cuh"
#include "lib/shared.cuh"

#define WORDS const uint32_t *in, uint32_t *out

// Blocks of 96. out: [96, 2]
extern "C" __global__ void __launch_bounds__(128) lanes_and_warps(WORDS) {
    out[2 * threadIdx.x] = lane_id();
    out[2 * threadIdx.x + 1] = warp_id();
}

// Shuffles. in: [2, 32] values, then lanes, masks or a distance
extern "C" __global__ void __launch_bounds__(128) shfl_of_words(WORDS) {
    out[lane_id()] = shfl(in[lane_id()], in[32 + lane_id()]);
}
extern "C" __global__ void __launch_bounds__(128) shfl_of_floats(WORDS) {
    out[lane_id()] = float_bits(shfl(bits_float(in[lane_id()]), in[32 + lane_id()]));
}
extern "C" __global__ void __launch_bounds__(128) shfl_xor_of_words(WORDS) {
    out[lane_id()] = shfl_xor(in[lane_id()], in[32]);
}
extern "C" __global__ void __launch_bounds__(128) shfl_xor_of_floats(WORDS) {
    out[lane_id()] = float_bits(shfl_xor(bits_float(in[lane_id()]), in[32]));
}
extern "C" __global__ void __launch_bounds__(128) shfl_up_of_words(WORDS) {
    out[lane_id()] = shfl_up(in[lane_id()], in[32]);
}

// Votes. in: [32] predicates; out: [3, 32]
extern "C" __global__ void __launch_bounds__(128) votes(WORDS) {
    const bool predicate = in[lane_id()] != 0;
    out[lane_id()] = ballot(predicate);
    out[32 + lane_id()] = vote_any(predicate);
    out[64 + lane_id()] = vote_all(predicate);
}

// Numbers. in: as many words as there are threads in the grid, or three of them a thread
__device__ inline uint32_t thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

extern "C" __global__ void __launch_bounds__(128) bits_there_and_back(WORDS) {
    out[thread()] = float_bits(bits_float(in[thread()]));
}
extern "C" __global__ void __launch_bounds__(128) f16_to_floats(WORDS) {
    out[thread()] = float_bits(f16_to_f32(uint16_t(in[thread()])));
}
extern "C" __global__ void __launch_bounds__(128) floats_to_f16(WORDS) {
    out[thread()] = f32_to_f16(bits_float(in[thread()]));
}
extern "C" __global__ void __launch_bounds__(128) floats_to_bf16(WORDS) {
    out[thread()] = f32_to_bf16(bits_float(in[thread()]));
}
extern "C" __global__ void __launch_bounds__(128) exponentials(WORDS) {
    out[thread()] = float_bits(exp2_approx(bits_float(in[thread()])));
}
extern "C" __global__ void __launch_bounds__(128) pairs_to_f16(WORDS) {
    const uint32_t* pair = in + 3 * thread();
    out[thread()] = pack_f16(bits_float(pair[0]), bits_float(pair[1]));
}
extern "C" __global__ void __launch_bounds__(128) pairs_to_bf16(WORDS) {
    const uint32_t* pair = in + 3 * thread();
    out[thread()] = pack_bf16(bits_float(pair[0]), bits_float(pair[1]));
}
extern "C" __global__ void __launch_bounds__(128) permuted_bytes(WORDS) {
    const uint32_t* of = in + 3 * thread();
    out[thread()] = byte_permute(of[0], of[1], of[2]);
}
// a b + c, rounded twice
extern "C" __global__ void __launch_bounds__(128) multiply_then_add(WORDS) {
    const uint32_t* of = in + 3 * thread();
    const float product = multiply(bits_float(of[0]), bits_float(of[1]));
    out[thread()] = float_bits(add(product, bits_float(of[2])));
}
// in: [threads, 2] of 64 bits; out: the same
extern "C" __global__ void __launch_bounds__(128) high_products(WORDS) {
    const uint64_t* of = reinterpret_cast<const uint64_t*>(in) + 2 * thread();
    reinterpret_cast<uint64_t*>(out)[thread()] = multiply_high(of[0], of[1]);
}

// Global memory: 16 bytes a lane. in: [32, 4], where every third lane does not read; out: [32, 4]
__device__ inline bool reads() { return lane_id() % 3 != 2; }

extern "C" __global__ void __launch_bounds__(128) loads(WORDS) {
    store16(out + 4 * lane_id(), load16(in + 4 * lane_id()));
}
extern "C" __global__ void __launch_bounds__(128) stream_loads(WORDS) {
    // Nothing is read there, so that it may be anywhere.
    const uint32_t* from = reads() ? in + 4 * lane_id() : nullptr;
    store16(out + 4 * lane_id(), load_stream(from, reads()));
}
extern "C" __global__ void __launch_bounds__(128) loads_of_what_is_read_once(WORDS) {
    const uint32_t* from = reads() ? in + 4 * lane_id() : nullptr;
    store16(out + 4 * lane_id(), load_once(from, reads()));
}
extern "C" __global__ void __launch_bounds__(128) prefetches(WORDS) {
    prefetch_l2(in + lane_id());
    if (lane_id() == 0) prefetch_l2_bulk(in, 128);
    await_line(in + lane_id());
    out[lane_id()] = in[lane_id()];
}

// Three groups of copies; the first two are waited for, then the third. out: [3, 32, 4]
extern "C" __global__ void __launch_bounds__(128) asynchronous_copies(WORDS) {
    SHARED(uint32_t[3 * 128], stages);
    for (uint32_t stage = 0; stage < 3; stage++) {
        const uint32_t at = stage * 128 + 4 * lane_id();
        cp_async16(stages + at, in + at, stage != 1 || reads());
        cp_async_commit();
    }
    const auto show = [&](uint32_t stage) {
        __syncwarp();
        for (uint32_t i = lane_id(); i < 128; i += 32) // what other lanes have copied
            out[stage * 128 + i] = stages[stage * 128 + i];
    };
    cp_async_wait<1>();
    show(0);
    show(1);
    cp_async_wait<0>();
    show(2);
}

// Matrices. in: [32, 4], rows of eight 16-bit elements; lane l names row l. out: [registers, 32]
template <int COUNT, class Load> __device__ inline void matrices(const uint32_t* in, uint32_t* out,
                                                                 Load load) {
    SHARED(uint4[32], rows);
    // Not side by side, so that it is the lanes' addresses that count.
    const uint32_t place = lane_id() * 5 % 32;
    rows[place] = load16(in + 4 * lane_id());
    __syncwarp();
    uint32_t r[COUNT];
    load(r, &rows[place]);
    for (int i = 0; i < COUNT; i++) out[32 * i + lane_id()] = r[i];
}
extern "C" __global__ void __launch_bounds__(128) four_matrices(WORDS) {
    matrices<4>(in, out, [](uint32_t (&r)[4], const uint4* row) { ldmatrix_x4(r, row); });
}
extern "C" __global__ void __launch_bounds__(128) four_matrices_transposed(WORDS) {
    matrices<4>(in, out, [](uint32_t (&r)[4], const uint4* row) { ldmatrix_x4_trans(r, row); });
}
extern "C" __global__ void __launch_bounds__(128) two_matrices(WORDS) {
    matrices<2>(in, out, [](uint32_t (&r)[2], const uint4* row) { ldmatrix_x2(r, row); });
}
extern "C" __global__ void __launch_bounds__(128) two_matrices_transposed(WORDS) {
    matrices<2>(in, out, [](uint32_t (&r)[2], const uint4* row) { ldmatrix_x2_trans(r, row); });
}

// in: [10, 32], the registers of a, b and d; out: [4, 32], those of d
template <class T> __device__ inline void product(const uint32_t* in, uint32_t* out) {
    uint32_t a[4], b[2];
    float d[4];
    for (int i = 0; i < 4; i++) a[i] = in[32 * i + lane_id()];
    for (int i = 0; i < 2; i++) b[i] = in[32 * (4 + i) + lane_id()];
    for (int i = 0; i < 4; i++) d[i] = bits_float(in[32 * (6 + i) + lane_id()]);
    mma_m16n8k16<T>(d, a, b);
    for (int i = 0; i < 4; i++) out[32 * i + lane_id()] = float_bits(d[i]);
}
extern "C" __global__ void __launch_bounds__(128) products_of_f16(WORDS) { product<f16>(in, out); }
extern "C" __global__ void __launch_bounds__(128) products_of_bf16(WORDS) {
    product<bf16>(in, out);
}

// Programmatic launch: `before` writes slowly what `after` reads.
extern "C" __global__ void __launch_bounds__(128) before(WORDS) {
    grid_dependency_launch();
    grid_dependency_wait();
    nanosleep(100000);
    out[lane_id()] = in[lane_id()] + 1;
}
extern "C" __global__ void __launch_bounds__(128) after(WORDS) {
    grid_dependency_launch();
    grid_dependency_wait();
    out[lane_id()] = in[lane_id()] + 1;
}

// Between blocks. out: a counter, then [threads] what each thread found in it
extern "C" __global__ void __launch_bounds__(128) tickets_acq_rel(WORDS) {
    out[1 + thread()] = atomic_add_acq_rel_gpu(out, in[0]);
}
extern "C" __global__ void __launch_bounds__(128) tickets_release(WORDS) {
    out[1 + thread()] = atomic_add_release_gpu(out, in[0]);
}
extern "C" __global__ void __launch_bounds__(128) tickets_relaxed(WORDS) {
    out[1 + thread()] = atomic_add_gpu(out, in[0]);
}
// in: [2, 32] numbers, and what is added to each; out: [32] the sums
extern "C" __global__ void __launch_bounds__(128) reductions(WORDS) {
    out[lane_id()] = in[lane_id()];
    reduce_add_gpu(reinterpret_cast<float*>(out) + lane_id(), bits_float(in[32 + lane_id()]));
}
// The same in 64 bits, by steps of in[0] * 2^30
extern "C" __global__ void __launch_bounds__(128) tickets_of_64_bits(WORDS) {
    uint64_t* const wide = reinterpret_cast<uint64_t*>(out);
    wide[1 + thread()] = atomic_add_gpu(wide, uint64_t(in[0]) << 30);
}

// Block 1 tells block 0 something. out: a flag, what is told, [32] what was heard
template <class Raise> __device__ inline void tell(const uint32_t* in, uint32_t* out, Raise raise) {
    if (blockIdx.x == 1) {
        if (lane_id() == 0) {
            out[1] = in[0];
            raise(out);
        }
        return;
    }
    if (lane_id() == 0)
        while (load_acquire_gpu(out) == 0) nanosleep(100);
    __syncwarp();
    out[2 + lane_id()] = out[1];
}
extern "C" __global__ void __launch_bounds__(128) told_by_a_store(WORDS) {
    tell(in, out, [](uint32_t* flag) { store_release_gpu(flag, 1); });
}
extern "C" __global__ void __launch_bounds__(128) told_by_an_addition(WORDS) {
    tell(in, out, [](uint32_t* flag) { atomic_add_release_gpu(flag, 1); });
}
extern "C" __global__ void __launch_bounds__(128) told_across_a_fence(WORDS) {
    tell(in, out, [](uint32_t* flag) {
        fence_gpu();
        atomic_add_acq_rel_gpu(flag, 1);
    });
}
extern "C" __global__ void __launch_bounds__(128) told_across_a_system(WORDS) {
    if (blockIdx.x == 1) {
        if (lane_id() == 0) {
            out[1] = in[0];
            fence_system();
            const uint32_t told = in[0];
            store16_relaxed_system(out + 4, {told, told + 1, told + 2, told + 3});
        }
        return;
    }
    uint4 v = {};
    do {
        nanosleep(100);
        v = load16_relaxed_system(out + 4);
    } while (v.x == 0 || v.y == 0 || v.z == 0 || v.w == 0);
    fence_system();
    out[8 + lane_id()] = out[1] + v.x + v.y + v.z + v.w + load_relaxed_system(out + 5);
}
// out: [64] of 64 bits
extern "C" __global__ void __launch_bounds__(128) told_in_wide_words(WORDS) {
    uint64_t* const wide = reinterpret_cast<uint64_t*>(out);
    if (blockIdx.x == 1)
        return store_relaxed_system(wide + lane_id(), uint64_t(in[lane_id()]) << 32 | ~lane_id());
    uint64_t v = 0;
    while ((v = load_relaxed_system(static_cast<const uint64_t*>(wide) + lane_id())) == 0)
        nanosleep(100);
    wide[32 + lane_id()] = v;
}
// out: [32] of 64 bits
extern "C" __global__ void __launch_bounds__(128) told_to_the_host(WORDS) {
    const uint64_t value = uint64_t(in[lane_id()]) << 32 | lane_id();
    store_relaxed_system(reinterpret_cast<uint64_t*>(out) + lane_id(), value);
}

// out: [32] whether the clock goes on, [32] whether the multiprocessor's number is one
extern "C" __global__ void __launch_bounds__(128) when_and_where(WORDS) {
    const uint64_t before = clock_cycles();
    uint32_t looks = 0;
    while (clock_cycles() == before && looks < 1000) looks++;
    out[lane_id()] = clock_cycles() > before;
    out[32 + lane_id()] = multiprocessor() < 1024;
}

// Blocks of 128: four counters. out: [4] their ends, then [128] what each thread found
extern "C" __global__ void __launch_bounds__(128) tickets_in_shared_memory(WORDS) {
    SHARED(uint32_t[4], counters);
    if (threadIdx.x < 4) counters[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[4 + threadIdx.x] = atomic_add_shared(&counters[threadIdx.x % 4], 3);
    __syncthreads();
    if (threadIdx.x < 4) out[threadIdx.x] = counters[threadIdx.x];
}

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
