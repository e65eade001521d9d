// The emulator's tests: main LIBRARIES TEST_KERNELS KERNELS CASE. Runs one case; exit status 1 if
// it goes wrong.
#include "cases.h"

#include <cstring>

int main(int count, char** arguments) {
    if (count != 5) return std::printf("usage: main LIBRARIES TEST_KERNELS KERNELS CASE\n"), 2;
    test::library_directory = arguments[1];
    test::kernel_directory = arguments[2];
    test::repository_kernels = arguments[3];
    for (const test::Case* list : {test::good_cases(), test::driver_cases(), test::bug_cases()})
        for (; list->name; list++)
            if (std::strcmp(list->name, arguments[4]) == 0) {
                list->run(list->name);
                std::printf("right\n");
                return 0;
            }
    return std::printf("no case %s\n", arguments[4]), 2;
}
