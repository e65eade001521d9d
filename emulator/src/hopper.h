// What hopper.cpp and wgmma.cpp share.
#pragma once
#include "grid.h"
#include "modes.h"

namespace emulator {

constexpr int kLaunchFailed = 719;

// 16-byte chunks change places by bits 7-9 of the address.
inline uintptr_t swizzled(uintptr_t address) { return address ^ (address >> 3 & 0x70); }

inline void need_hopper(Site site) {
    if (modes().capability_major != 9 || modes().capability_minor != 0)
        fail(kLaunchFailed, site, "an instruction that only compute capability 9.0 has");
}

}  // namespace emulator
