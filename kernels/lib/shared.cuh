//! Shared memory, which is uninitialised.
#pragma once

#include "lib/types.cuh"

template <class T> struct same {
    using type = T;
};

// Declares `name`, one object of `Type` (arrays too: SHARED(float[32], sums)) for the whole block.
#define SHARED(Type, name) __shared__ __align__(16) typename same<Type>::type name

// The block's dynamic shared memory, 16-byte aligned; the launch decides how much.
template <class T> __device__ inline T* dynamic_shared() {
    extern __shared__ uint4 dynamic_shared_bytes[];
    return reinterpret_cast<T*>(dynamic_shared_bytes);
}
