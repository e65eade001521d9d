// Fibers: a stack and a place to go on. One for each CUDA thread, plus the scheduler's own.
#pragma once
#include "sanitizer.h"

#include <cstdint>

namespace emulator {

struct Fiber {
    void* stack_pointer = nullptr;  // where to go on, while it does not run
    char* stack = nullptr;          // lowest address; below it a page that may not be touched
    size_t stack_bytes = 0;
    void* thread = nullptr;      // ThreadSanitizer's idea of it
    void* fake_stack = nullptr;  // AddressSanitizer's
};

void create(Fiber& fiber, void (*entry)());   // `entry` never returns
void restart(Fiber& fiber, void (*entry)());  // forget what it was doing
void switch_fiber(Fiber& from, Fiber& to);
extern uint64_t switches;  // so far
void enter_fiber();  // first thing `entry` does

// Makes `host` the fiber that runs now (the calling OS thread).
void adopt(Fiber& host);

}  // namespace emulator
