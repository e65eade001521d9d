// The emulator's tests: main LIBRARIES TEST_KERNELS KERNELS CASE... Runs cases in one process, each
// ending with a line `CASE right`; exit status 1 at the first that goes wrong. A case with colons is one
// of ordinary.cpp's.
#include "cases.h"

#include <cstring>

int main(int count, char** arguments) {
    if (count < 5) return std::printf("usage: main LIBRARIES TEST_KERNELS KERNELS CASE...\n"), 2;
    test::library_directory = arguments[1];
    test::kernel_directory = arguments[2];
    test::repository_kernels = arguments[3];
    for (int i = 4; i < count; i++) {
        if (std::strchr(arguments[i], ':')) {
            test::run_ordinary(arguments[i]);
            continue;
        }
        const test::Case* found = nullptr;
        for (const test::Case* list :
             {test::good_cases(), test::driver_cases(), test::strict_cases(), test::bug_cases(),
              test::nccl_cases(), test::nccl_fault_cases()})
            for (; list->name; list++)
                if (std::strcmp(list->name, arguments[i]) == 0) found = list;
        if (!found) return std::printf("no case %s\n", arguments[i]), 2;
        found->run(found->name);
        std::printf("%s right\n", found->name);
        std::fflush(stdout);
    }
    return 0;
}
