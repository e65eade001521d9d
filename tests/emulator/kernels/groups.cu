// Numbers of 16 bits and cooperative groups, whose headers NVIDIA's wheels have. One block of 64; a word of
// `out` a thread: how many lines of it are right.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace cg = cooperative_groups;

#define N 64
#define WORDS const uint32_t *in, uint32_t *out
#define KERNEL(name) extern "C" __global__ void name(WORDS)
#define IS(...) (r += bool(__VA_ARGS__))

extern "C" __global__ void halves(const uint32_t *in, uint32_t *out) {
    uint32_t r = 0;
    const float v = float(in[threadIdx.x]);
    const half a = __float2half(v), b = __float2half(0.5f);
    IS(__half2float(a) == v), IS(__half2float(a * b) == v / 2), IS(__hgt(__hadd(a, b), a));
    IS(__half_as_ushort(__float2half(65504.0f)) == 0x7bff), IS(__hisinf(__float2half(65520.0f)) == 1);
    IS(__half_as_ushort(__float2half_rn(1.0f + 1.0f / 2048)) == 0x3c00);
    IS(__half_as_ushort(__float2half_rz(1.0f + 3.0f / 2048)) == 0x3c01);
    IS(__half_as_ushort(__float2half_ru(1.0f + 1.0f / 2048)) == 0x3c01);
    IS(__half2float(__hfma(a, b, b)) == v / 2 + 0.5f), IS(__half2int_rz(__float2half(-2.5f)) == -2);
    const half2 pair = __floats2half2_rn(v, 2.0f), twice = __hadd2(pair, pair);
    IS(__low2float(twice) == 2 * v && __high2float(twice) == 4), IS(__half22float2(__hmul2(pair, pair)).y == 4);
    IS(__half2float(__shfl_xor_sync(~0u, a, 1)) == float(in[threadIdx.x ^ 1]));
    IS(__half2float(hsqrt(__float2half(4.0f))) == 2), IS(sizeof(half2) == 4 && alignof(half2) == 4);
    out[threadIdx.x] = r;
}
KERNEL(halves_bug) {
    __shared__ half part[N];
    part[threadIdx.x] = __float2half(float(in[threadIdx.x]));
    out[threadIdx.x] = __half2int_rn(part[N - 1 - threadIdx.x]);
}

KERNEL(brains) {
    uint32_t r = 0;
    const float v = float(in[threadIdx.x]);
    const __nv_bfloat16 a = __float2bfloat16(v);
    IS(__bfloat162float(a) == v), IS(__bfloat162float(a + a) == 2 * v);
    IS(__bfloat16_as_ushort(__float2bfloat16(1.0f + 1.0f / 256)) == 0x3f80);
    IS(__bfloat16_as_ushort(__float2bfloat16(1.0f + 3.0f / 256)) == 0x3f82);
    IS(__bfloat162float(__hfma(a, a, __float2bfloat16(0.0f))) == __bfloat162float(__float2bfloat16(v * v)));
    const __nv_bfloat162 pair = __floats2bfloat162_rn(v, 3.0f);
    IS(__high2float(__hmul2(pair, pair)) == 9), IS(__bfloat1622float2(pair).x == v);
    out[threadIdx.x] = r;
}

// Pairs from an odd place on.
KERNEL(brains_bug) {
    const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(reinterpret_cast<const __nv_bfloat16*>(in) + 1);
    out[threadIdx.x] = uint32_t(__low2float(pairs[threadIdx.x / 2]));
}

KERNEL(groups) {
    uint32_t r = 0;
    const cg::thread_block block = cg::this_thread_block();
    IS(block.size() == N && block.thread_rank() == threadIdx.x && block.group_index().x == 0);
    const auto warp = cg::tiled_partition<32>(block);
    const auto tile = cg::tiled_partition<8>(warp);
    IS(tile.size() == 8 && tile.thread_rank() == threadIdx.x % 8);
    IS(warp.meta_group_rank() == threadIdx.x / 32 && warp.meta_group_size() == 2);
    IS(tile.shfl(threadIdx.x, 2) == threadIdx.x / 8 * 8 + 2);
    IS(tile.shfl_xor(threadIdx.x, 1) == (threadIdx.x ^ 1));
    IS(tile.shfl_down(threadIdx.x, 3) == (threadIdx.x % 8 + 3 < 8 ? threadIdx.x + 3 : threadIdx.x));
    IS(tile.ballot(threadIdx.x & 1) == 0xaa && tile.any(threadIdx.x % 8 == 5) && !tile.all(threadIdx.x % 8));
    IS(cg::reduce(tile, int(threadIdx.x % 8), cg::plus<int>()) == 28);
    IS(cg::reduce(warp, int(threadIdx.x % 32), cg::greater<int>()) == 31);
    IS(cg::inclusive_scan(tile, 1, cg::plus<int>()) == int(threadIdx.x % 8) + 1);
    IS(cg::exclusive_scan(tile, 2) == 2 * int(threadIdx.x % 8));
    __shared__ uint32_t part[N];
    part[threadIdx.x] = in[threadIdx.x];
    tile.sync();
    IS(part[threadIdx.x ^ 7] == (threadIdx.x ^ 7));
    cg::sync(block);
    IS(part[N - 1 - threadIdx.x] == N - 1 - threadIdx.x);
    const auto active = cg::coalesced_threads();
    IS(active.thread_rank() < active.size() && active.shfl(7, 0) == 7);
    out[threadIdx.x] = r;
}
KERNEL(groups_bug) {
    __shared__ uint32_t part[N];
    const auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    part[threadIdx.x] = in[threadIdx.x]; // for the next tile
    tile.sync();
    out[threadIdx.x] = part[threadIdx.x ^ 8]; // of the next tile
}
