// Threads of a kernel that do not give way by themselves, as in a loop that waits for what another thread
// is to store: others get their turn, and what goes round without end is found out. Where
// CHASKI_EMULATE_LIMIT_MS is given.
#pragma once

namespace emulator {

// Of the kernels that this OS thread runs. Once is enough.
void look_after_kernels();

}  // namespace emulator
