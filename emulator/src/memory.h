// Device and pinned host memory: who owns which address.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

constexpr int kHost = -1;  // the "device" of pinned host memory

struct Allocation {
    uintptr_t address;
    size_t bytes;
    int device;
    bool freed;
};

// Every allocation has its exact size, ends at a page that may not be touched (or at
// AddressSanitizer's red zone) and begins as 0xFF. Freed memory is never used again, so that
// whoever still points to it is found out. Null when the machine itself has no more.
void* allocate(size_t bytes, int device);
bool release(uintptr_t address);             // false: not the start of a live allocation
const Allocation* find(uintptr_t address);   // the allocation that contains it, freed or not
bool live(uintptr_t address, size_t bytes);  // all of it inside one live allocation
std::string describe(uintptr_t address);     // for messages about a bad address

}  // namespace emulator
