// Sums and the like over a group of lanes, in the order of ranks.
#pragma once
#include "../cooperative_groups.h"

namespace cooperative_groups {

#define EMULATOR_OPERATION(name, expression)        \
    template <class T>                              \
    struct name {                                   \
        T operator()(T a, T b) const {              \
            return static_cast<T>(expression);      \
        }                                           \
    };
EMULATOR_OPERATION(plus, a + b)
EMULATOR_OPERATION(less, b < a ? b : a)
EMULATOR_OPERATION(greater, a < b ? b : a)
EMULATOR_OPERATION(bit_and, a & b)
EMULATOR_OPERATION(bit_or, a | b)
EMULATOR_OPERATION(bit_xor, a ^ b)
#undef EMULATOR_OPERATION

template <class Group, class T, class Operation>
T reduce(const Group& group, T value, Operation operation,
         emulator::Site site = emulator::here()) {
    T result = group.shfl(value, 0, site);
    for (unsigned rank = 1; rank < group.size(); rank++)
        result = operation(result, group.shfl(value, rank, site));
    return result;
}

}  // namespace cooperative_groups
