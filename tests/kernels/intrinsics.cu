//! One kernel for each function of lib/ptx.cuh: tests/emulator/intrinsics.rs holds what every lane must
//! get; those of lib/ptx_hopper.cuh are in intrinsics_hopper.cu, which is compiled behind this. Unless said
//! otherwise one warp, `in` and `out` a word a lane.
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
