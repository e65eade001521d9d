// Sums and the like over the lanes of a group up to each.
#pragma once
#include "reduce.h"

namespace cooperative_groups {

template <class Group, class T, class Operation = plus<T>>
T inclusive_scan(const Group& group, T value, Operation operation = {},
                 emulator::Site site = emulator::here()) {
    T result = value;
    for (unsigned rank = group.size(); rank-- > 0;) {
        const T other = group.shfl(value, rank, site);
        if (rank < group.thread_rank()) result = operation(other, result);
    }
    return result;
}
template <class Group, class T, class Operation = plus<T>>
T exclusive_scan(const Group& group, T value, Operation operation = {},
                 emulator::Site site = emulator::here()) {
    const T all = inclusive_scan(group, value, operation, site);
    const T before = group.shfl_up(all, 1, site);
    return group.thread_rank() == 0 ? T{} : before;
}

}  // namespace cooperative_groups
