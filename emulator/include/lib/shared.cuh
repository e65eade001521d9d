//! Shared memory, in place of kernels/lib/shared.cuh.
#pragma once

#include "lib/types.cuh"

// A lambda is a type of its own wherever it stands, in every instantiation of a template: its
// static is the key.
#define SHARED(Type, name)                   \
    auto& name = emulator::shared<Type>([] { \
        static char key;                     \
        return &key;                         \
    }())

template <class T>
T* dynamic_shared() {
    return static_cast<T*>(emulator::dynamic_shared_memory());
}
