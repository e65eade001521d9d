// The lists of cases, each ended by a case without a name.
#pragma once
#include "client.h"

namespace test {

struct Case {
    const char* name;
    void (*run)(const char* name);
};

const Case* good_cases();
const Case* driver_cases();
const Case* bug_cases();

struct Pair {  // the arguments of most kernels
    Pointer x, y;
    uint32_t count;
};

}  // namespace test
