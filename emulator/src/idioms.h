// Two habits of CUDA that C++ does not know: one that is no race, and one that no longer works.
#pragma once
#include "tokens.h"

namespace emulator {

// old = *p; do { assumed = old; old = atomicCAS(p, assumed, ...); } while (...): the CUDA guide's own way to other
// atomics. The first load is a guess, which the CAS puts right, and becomes one as atomics are. Every other plain
// access beside atomics is a race.
void take_guesses(Tokens& tokens);

// Where lanes count on running in step, as they did before Volta: s[i] += s[i + 32]; s[i] += s[i + 16]; of a volatile
// s, with nothing between that waits. No race to ThreadSanitizer, since volatile accesses are none.
std::vector<size_t> in_step(const Tokens& tokens);

}  // namespace emulator
