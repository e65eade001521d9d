// Device and pinned host memory: who owns which address.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

constexpr int kHost = -1;  // the "device" of pinned host memory

constexpr unsigned kPortable = 1, kMapped = 2;  // CU_MEMHOSTALLOC_...

struct Allocation {
    uintptr_t address;
    size_t bytes;
    int device;  // or kHost
    int owner;   // the device whose context it was made in
    unsigned flags;  // of pinned memory: kPortable, kMapped
    bool freed;
    // Whether a device's kernels may use it, if it is pinned; kPortable: also other devices'.
    bool mapped_for(int user) const { return flags & kMapped && pinned_for(user); }
    bool pinned_for(int user) const { return flags & kPortable || owner == user; }
};

// Every allocation has its exact size, ends at a page that may not be touched (or at
// AddressSanitizer's red zone) and begins as 0xFF. Freed memory is never used again, so that
// whoever still points to it is found out. Null when the machine itself has no more.
void* allocate(size_t bytes, int device, int owner, unsigned flags = 0);
void adopt(uintptr_t address, size_t bytes, int device);  // memory of a module's variable
bool release(uintptr_t address);             // false: not the start of a live allocation
std::vector<Allocation> live_of(int owner);  // all that was allocated in a device's context
const Allocation* find(uintptr_t address);   // the allocation that contains it, freed or not
bool live(uintptr_t address, size_t bytes);  // all of it inside one live allocation
std::string describe(uintptr_t address);     // for messages about a bad address

}  // namespace emulator
