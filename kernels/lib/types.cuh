//! Number types. The compilers bring the vector types (uint4, float4, ...) and size_t themselves.
#pragma once

using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using uint64_t = decltype(sizeof(0));

static_assert(sizeof(uint64_t) == 8, "64-bit platforms only");

// Sixteen bits as stored; arithmetic happens in float (lib/convert.cuh) or in the tensor cores.
struct f16 {
    uint16_t bits;
};

struct bf16 {
    uint16_t bits;
};

// An element of the KV cache.
using kv_t = f16;

// An activation in the weights' type: what the tensor cores multiply with them. The name tells a
// kernel's own state from its weights.
template <class W> using Activation = W;

// A matrix in global memory as TMA knows it: only the driver can read or write it.
struct alignas(128) TensorMap {
    uint64_t opaque[16];
};

// Where kernels tell that they have begun: the host looks there when nothing gets on.
struct alignas(16) Trace {
    uint64_t* word; // of the rank
    uint64_t place; // what to tell: of the op, among the host's programs
};
