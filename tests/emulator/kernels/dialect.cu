// Ordinary CUDA: every construct that a user's kernel may have, in a kernel of its own with a known result.
// Unless said otherwise: one block of 64, in = 0, 1, 2, ..., a word of `out` a thread. What ends in _bug is
// the kernel before it with a mistake: tests/emulator/dialect.rs has the results, and who must object.
#include <assert.h>
#include <stdint.h>
#include <stdio.h>

#define N 64
#define WORDS const uint32_t *in, uint32_t *out
#define KERNEL(name) extern "C" __global__ void name(WORDS)
#define LANE (threadIdx.x % 32)

__constant__ uint32_t factors[4] = {2, 3, 5, 7};
__device__ uint32_t counter = 100, ticket;
__device__ float table[N];
__shared__ uint32_t of_file[N];
extern __shared__ uint32_t dynamic[];

// Shared memory.

template <bool FIXED> __device__ void reversed(WORDS) {
    __shared__ uint32_t part[N];
    part[threadIdx.x] = in[threadIdx.x];
    if (FIXED) __syncthreads();
    out[threadIdx.x] = part[N - 1 - threadIdx.x];
}
KERNEL(shared_array) { reversed<true>(in, out); }
KERNEL(shared_array_bug) { reversed<false>(in, out); }

// Each instantiation has memory of its own.
template <class T, int ROWS> __device__ T* own_tile() {
    static __shared__ T tile[ROWS][N + 1];
    return tile[0];
}
KERNEL(shared_in_templates) {
    uint32_t* words = own_tile<uint32_t, 1>();
    unsigned char* bytes = own_tile<unsigned char, 2>();
    words[threadIdx.x] = in[threadIdx.x];
    bytes[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = words[threadIdx.x ^ 1] + bytes[threadIdx.x ^ 2];
}
KERNEL(shared_in_templates_bug) {
    uint32_t* words = own_tile<uint32_t, 1>();
    words[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = words[threadIdx.x + 2];  // past the end: 65 words
}

// A loop's variable is the same memory each time round.
template <bool FIXED> __device__ void rounds(WORDS) {
    uint32_t sum = 0;
    for (int round = 0; round < 3; round++) {
        __shared__ uint32_t part[N], unused;
        part[threadIdx.x] = in[threadIdx.x] + round;
        __syncthreads();
        sum += part[(threadIdx.x + 32) % N];
        if (FIXED) __syncthreads();
    }
    out[threadIdx.x] = sum;
}
KERNEL(shared_in_loop) { rounds<true>(in, out); }
KERNEL(shared_in_loop_bug) { rounds<false>(in, out); }

template <bool FIXED> __device__ void exchanged(WORDS) {
    of_file[threadIdx.x] = in[threadIdx.x];
    if (FIXED || threadIdx.x >= N) __syncthreads();
    out[threadIdx.x] = of_file[(threadIdx.x + 32) % N];
}
KERNEL(shared_of_file) { exchanged<true>(in, out); }
KERNEL(shared_of_file_bug) { exchanged<false>(in, out); }

// With 4 N bytes of dynamic memory.
KERNEL(shared_dynamic) {
    dynamic[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = dynamic[threadIdx.x ^ 3];
}
KERNEL(shared_dynamic_bug) {
    dynamic[threadIdx.x + 1] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = dynamic[threadIdx.x];
}

struct Pair {
    uint32_t key;
    float value;
};
KERNEL(shared_struct) {
    __shared__ __align__(128) Pair pairs[N];
    __shared__ union {
        float number;
        uint32_t bits;
    } one;
    pairs[threadIdx.x] = {in[threadIdx.x], float(threadIdx.x)};
    if (threadIdx.x == 0) one.number = 1.0f;
    __syncthreads();
    const Pair other = pairs[N - 1 - threadIdx.x];
    out[threadIdx.x] = other.key + uint32_t(other.value) + (one.bits == 0x3f800000) +
                       (reinterpret_cast<uintptr_t>(pairs) % 128 == 0);
}
KERNEL(shared_struct_bug) {
    __shared__ Pair pairs[N];
    if (threadIdx.x) pairs[threadIdx.x] = {in[threadIdx.x], 0.0f};
    __syncthreads();
    out[threadIdx.x] = pairs[threadIdx.x].key;  // the first was never written
}

// Variables of the module.

KERNEL(constants) { out[threadIdx.x] = factors[threadIdx.x % 4] * in[threadIdx.x]; }
KERNEL(constants_bug) { out[threadIdx.x] = factors[threadIdx.x % 4 + (threadIdx.x == 63)]; }

KERNEL(variables) {
    table[threadIdx.x] = 2.0f * in[threadIdx.x];
    const uint32_t before = atomicAdd(&counter, 1);
    out[threadIdx.x] = (before >= 100 && before < 100 + N) + uint32_t(table[threadIdx.x]);
}
// Two blocks.
KERNEL(variables_bug) {
    table[threadIdx.x] = float(blockIdx.x);
    if (blockIdx.x) out[threadIdx.x] = uint32_t(table[threadIdx.x]);
}

// Barriers with a count.
KERNEL(counting_barriers) {
    const int few = __syncthreads_count(threadIdx.x < 5), all = __syncthreads_and(in[threadIdx.x] < N);
    const int most = __syncthreads_and(threadIdx.x), none = __syncthreads_or(threadIdx.x > N);
    out[threadIdx.x] = few * 1000 + (all != 0) * 100 + (most != 0) * 10 + (none != 0);
}
KERNEL(counting_barriers_bug) {
    if (threadIdx.x < 40) out[threadIdx.x] = __syncthreads_count(threadIdx.x < 5);
}

// Lanes.

template <bool FIXED> __device__ void neighbours(WORDS) {
    __shared__ uint32_t part[N];
    part[threadIdx.x] = in[threadIdx.x];
    if (FIXED) __syncwarp();
    out[threadIdx.x] = part[threadIdx.x ^ 1];
}
KERNEL(lanes_in_step) { neighbours<true>(in, out); }
KERNEL(lanes_in_step_bug) { neighbours<false>(in, out); }

// Half a warp, in branches: a barrier of some lanes.
KERNEL(half_in_step) {
    __shared__ uint32_t part[N];
    part[threadIdx.x] = in[threadIdx.x];
    if (LANE < 16) {
        __syncwarp(0xffff);
        out[threadIdx.x] = part[threadIdx.x ^ 3];
    } else {
        __syncwarp(0xffff0000);
        out[threadIdx.x] = part[threadIdx.x ^ 5];
    }
}
KERNEL(half_in_step_bug) {
    if (LANE < 16) __syncwarp(0xffff0000);
    out[threadIdx.x] = 0;
}

KERNEL(shuffles) {
    const uint32_t v = in[threadIdx.x];
    uint32_t r = __shfl_sync(0xffffffff, v, 5) == threadIdx.x - LANE + 5;
    r += __shfl_sync(~0u, v, 3, 8) == threadIdx.x - LANE % 8 + 3;
    r += __shfl_up_sync(~0u, v, 2) == (LANE < 2 ? v : v - 2);
    r += __shfl_up_sync(~0u, v, 2, 4) == (LANE % 4 < 2 ? v : v - 2);
    r += __shfl_down_sync(~0u, v, 7) == (LANE + 7 < 32 ? v + 7 : v);
    r += __shfl_down_sync(~0u, v, 7, 16) == (LANE % 16 + 7 < 16 ? v + 7 : v);
    r += __shfl_xor_sync(~0u, v, 9) == (v ^ 9);
    r += __shfl_xor_sync(~0u, v, 12, 8) == ((LANE ^ 12) < LANE / 8 * 8 + 8 ? v ^ 12 : v);
    r += __shfl_sync(~0u, 1.5 + v, 0) == 1.5 + threadIdx.x - LANE;
    if (LANE < 8) r += __shfl_down_sync(0xff, v, 4, 8) == (LANE < 4 ? v + 4 : v);
    out[threadIdx.x] = r;
}
KERNEL(shuffles_bug) {
    uint32_t v = in[threadIdx.x];
    if (LANE < 16) v += __shfl_down_sync(0xffffffff, v, 8);
    out[threadIdx.x] = v;
}
KERNEL(shuffles_other_bug) {
    uint32_t v = in[threadIdx.x];
    if (LANE < 16) v = __shfl_sync(0xffff, v, 20);
    out[threadIdx.x] = v;
}

KERNEL(votes) {
    const uint32_t odd = __ballot_sync(~0u, threadIdx.x & 1);
    uint32_t r = odd == 0xaaaaaaaa;
    r += __any_sync(~0u, LANE == 7) && !__any_sync(~0u, threadIdx.x > N);
    r += __all_sync(~0u, threadIdx.x < N) && !__all_sync(~0u, LANE);
    r += __match_any_sync(~0u, LANE / 4) == 0xfu << LANE / 4 * 4;
    int all;
    r += __match_all_sync(~0u, 3, &all) == ~0u && all;
    r += __match_all_sync(~0u, LANE, &all) == 0 && !all;
    r += __reduce_add_sync(~0u, LANE) == 496 && __reduce_max_sync(~0u, int(LANE) - 40) == -9;
    r += __reduce_min_sync(~0u, LANE + 3) == 3 && __reduce_or_sync(~0u, 1u << LANE) == ~0u;
    r += __reduce_and_sync(~0u, LANE | 4) == 4 && __reduce_xor_sync(~0u, LANE) == 0;
    out[threadIdx.x] = r;
}
KERNEL(votes_bug) {
    if (LANE == 3) return;
    const uint32_t lanes = __ballot_sync(0x00000007, 1);
    out[threadIdx.x] = lanes;
}

// One atomic for all active lanes: right however few that are.
KERNEL(active_lanes) {
    if (threadIdx.x % 3 == 0) {
        const unsigned active = __activemask(), leader = __ffs(int(active)) - 1;
        unsigned first = 0;
        if (LANE == leader) first = atomicAdd(&ticket, __popc(active));
        first = __shfl_sync(active, first, leader);
        const unsigned mine = first + __popc(active & ((1u << LANE) - 1));
        out[threadIdx.x] = mine < (N + 2) / 3;
    } else {
        out[threadIdx.x] = 0;
    }
}
// That all are.
KERNEL(active_lanes_bug) {
    uint32_t v = in[threadIdx.x];
    if (LANE % 2) v += __shfl_xor_sync(__activemask(), v, 1);
    out[threadIdx.x] = v;
}

// Atomics. out: [16]

template <class T> __device__ void store(uint32_t* out, T value) { *out = uint32_t(value); }
KERNEL(atomics) {
    __shared__ unsigned u[8];
    __shared__ int i[4];
    __shared__ unsigned long long wide[2];
    __shared__ float f;
    __shared__ double d;
    if (threadIdx.x == 0) {
        for (unsigned& each : u) each = 0;
        u[2] = ~0u, u[6] = ~0u, i[0] = 1000, i[1] = -1000, i[2] = 0, wide[0] = wide[1] = 0, f = 0, d = 0;
    }
    __syncthreads();
    atomicAdd(&u[0], in[threadIdx.x]);
    atomicMax(&u[1], in[threadIdx.x]);
    atomicMin(&u[2], in[threadIdx.x] + 3);
    atomicOr(&u[3], 1u << LANE % 8);
    atomicXor(&u[4], threadIdx.x);
    atomicInc(&u[5], 9);
    atomicAnd(&u[6], ~threadIdx.x);
    atomicMin(&i[0], -int(threadIdx.x));
    atomicMax(&i[1], -int(threadIdx.x) - 7);
    atomicSub(&i[2], 2);
    atomicAdd(&wide[0], 1ull << 32);
    atomicExch(&wide[1], 5ull);
    atomicAdd(&f, 0.5f);
    atomicAdd_block(&d, 0.25);
    unsigned held = atomicAdd(&u[7], 0), seen;  // a sum by compare and swap
    do {
        seen = held;
        held = atomicCAS(&u[7], seen, seen + 3);
    } while (held != seen);
    __syncthreads();
    if (threadIdx.x) return;
    for (int k = 0; k < 8; k++) store(out + k, u[k]);
    for (int k = 0; k < 3; k++) store(out + 8 + k, -i[k]);
    store(out + 11, wide[0] >> 32), store(out + 12, wide[1]), store(out + 13, f), store(out + 14, d);
    store(out + 15, 1);
}
KERNEL(atomics_bug) {
    __shared__ unsigned sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    sum += in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = sum;
}

// The last of the blocks adds up what all have left; four blocks.
template <bool FIXED> __device__ void last_block(WORDS) {
    __shared__ bool is_last;
    if (threadIdx.x == 0) {
        table[blockIdx.x] = float(in[blockIdx.x] + 1);
        if (FIXED) __threadfence();
        is_last = atomicInc(&ticket, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    uint32_t sum = 0;
    for (unsigned block = 0; block < gridDim.x; block++) sum += uint32_t(table[block]);
    out[threadIdx.x] = sum;
}
KERNEL(fences) { last_block<true>(in, out); }
KERNEL(fences_bug) { last_block<false>(in, out); }

// A lock of the whole grid, four blocks, whose owner gives it back.
template <bool FIXED> __device__ void locked(WORDS) {
    if (threadIdx.x == 0) {
        while (atomicCAS(&ticket, 0, 1) != 0) {
        }
        __threadfence();
        out[0] += in[blockIdx.x] + 1;
        __threadfence();
        if (FIXED || blockIdx.x) atomicExch(&ticket, 0);
    }
}
KERNEL(locks) { locked<true>(in, out); }
KERNEL(locks_bug) { locked<false>(in, out); }

// A flag that others read in a loop; two blocks.
template <bool FIXED> __device__ void flagged(WORDS) {
    volatile uint32_t* flag = out + N;
    if (blockIdx.x == 1 && threadIdx.x == 0 && FIXED) *flag = 1;
    if (blockIdx.x == 0) {
        while (*flag == 0) {
        }
        out[threadIdx.x] = in[threadIdx.x];
    }
}
KERNEL(flags) { flagged<true>(in, out); }
KERNEL(flags_bug) { flagged<false>(in, out); }

// Loads and stores with a hint.
KERNEL(cache_hints) {
    const uint4 four = __ldg(reinterpret_cast<const uint4*>(in) + threadIdx.x % 16);
    __stcs(out + threadIdx.x, __ldcs(in + threadIdx.x) + four.w + __ldcg(in));
}
KERNEL(cache_hints_bug) {
    const uint4 four = __ldg(reinterpret_cast<const uint4*>(in + 1) + threadIdx.x % 8);
    out[threadIdx.x] = four.x;
}

// Blocks and grids of more dimensions: grid 2, 1, 2 of blocks 4, 8, 2.
extern "C" __global__ void __launch_bounds__(64, 2) dimensions(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
    const uint3 t = threadIdx;
    const dim3 block = blockDim;
    const unsigned thread = t.x + block.x * (t.y + block.y * t.z);
    const unsigned number = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    out[number * N + thread] = in[thread] + 1000 * number;
}

// Forgets a dimension.
KERNEL(dimensions_bug) {
    const unsigned thread = threadIdx.x + blockDim.x * threadIdx.y;
    out[thread] = in[thread] + threadIdx.z;
}

// A sum of old: lanes that run in step, and a volatile array that keeps the compiler from knowing.
template <bool FIXED> __device__ void add_in_step(volatile uint32_t* s) {
    for (int apart = 16; apart > 0; apart /= 2) {
        const uint32_t sum = s[LANE] + s[LANE + apart];
        if (FIXED) __syncwarp();
        s[LANE] = sum;
        if (FIXED) __syncwarp();
    }
}
template <bool FIXED> __device__ void volatile_sum(WORDS) {
    __shared__ volatile uint32_t part[N / 32][48];
    volatile uint32_t* own = part[threadIdx.x / 32];
    own[LANE] = in[threadIdx.x] / 32 + 1, own[LANE % 16 + 32] = 0;
    __syncwarp();
    add_in_step<FIXED>(own);
    out[threadIdx.x] = own[0];
}
KERNEL(volatiles) { volatile_sum<true>(in, out); }
KERNEL(volatiles_bug) { volatile_sum<false>(in, out); }

// Output.
KERNEL(prints) {
    if (threadIdx.x == 3) printf("thread %d of %s: %.2f\n", threadIdx.x, "prints", 2.5);
    const long long begin = clock64();
    out[threadIdx.x] = clock64() >= begin && clock() >= 0;
}
KERNEL(asserts) {
    assert(in[threadIdx.x] < N);
    out[threadIdx.x] = 1;
}
KERNEL(asserts_bug) {
    assert(in[threadIdx.x] != 9);
    out[threadIdx.x] = 1;
}
KERNEL(traps_bug) {
    if (threadIdx.x == 40) __trap();
    out[threadIdx.x] = 1;
}
