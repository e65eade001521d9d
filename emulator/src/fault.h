// Illegal addresses: what a GPU reports, not a crash of the process.
#pragma once

namespace emulator {

void catch_faults();          // once for the process
void catch_stack_overflow();  // once for each OS thread that runs kernels

}  // namespace emulator
