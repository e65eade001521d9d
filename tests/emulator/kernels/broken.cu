//! Does not compile: the message must name this file and line 5.
#include "lib/ptx.cuh"

extern "C" __global__ void __launch_bounds__(32) broken(float* y) {
    y[threadIdx.x] = no_such_name;
}
