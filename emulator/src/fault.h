// Illegal addresses: what a GPU reports, not a crash of the process.
#pragma once
#include <cstdint>
#include <string>

namespace emulator {

void catch_faults();          // once for the process
void catch_stack_overflow();  // once for each OS thread that runs kernels

bool in_kernel(uintptr_t code);        // whether it is of the kernel that runs
std::string line_of(uintptr_t code);   // "file:line" of the kernel's source; empty: not known
[[noreturn]] void fail_at(uintptr_t code, int result, const std::string& what);  // as `fail`

}  // namespace emulator
