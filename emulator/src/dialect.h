// Preprocessed CUDA as C++: variables of a block and of a module become what the runtime gives them,
// and what is not there is refused by its name.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace emulator {

// A kernel that is to be found by `symbol`: what names it, such as reduce<float, 256>.
struct Expression {
    std::string symbol, text;
};

// With what the driver's stand-in launches each kernel by: those that are extern "C" by their names, the
// others by the expressions that name them. False: `refused` has a line for each thing that is not there.
bool translate(std::string& text, const std::vector<Expression>& expressions, std::string& refused);

}  // namespace emulator
