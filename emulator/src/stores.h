// Relaxed stores that others have not seen yet; nothing of it without CHASKI_EMULATE_STORES=late.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

extern int running_device;  // whose kernel runs now

void land_stores(uintptr_t address, size_t bytes);  // before the memory is copied, filled or freed

}  // namespace emulator
