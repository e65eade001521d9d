//! Shared memory, which is uninitialised.
#pragma once

#include "lib/types.cuh"

// Lets a macro's argument be any type: float[32] name would not be a declaration.
template <class T> using Same = T;

// Declares `name`, one object of `Type` (arrays too: SHARED(float[32], sums)) for the whole block.
#define SHARED(Type, name) __shared__ __align__(16) Same<Type> name

// The block's dynamic shared memory, 16-byte aligned; the launch decides how much.
template <class T> __device__ inline T* dynamic_shared() {
    extern __shared__ uint4 dynamic_shared_bytes[];
    return reinterpret_cast<T*>(dynamic_shared_bytes);
}
