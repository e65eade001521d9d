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
const Case* strict_cases();
const Case* bug_cases();
const Case* nccl_cases();
const Case* nccl_fault_cases();

struct Pair {  // the arguments of most kernels
    Pointer x, y;
    uint32_t count;
};

void run_ordinary(const std::string& spec);
void require(bool condition, const char* what);  // ends the test unless

}  // namespace test
