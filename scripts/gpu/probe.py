#!/usr/bin/env python3
"""How many bytes one prefetch brings into the L2 cache, which the PTX ISA does not say: a warp asks for
lines that nobody has read, waits, and times a load of each at 0, 32, 64 and 96 bytes.

Prints JSON: for each way to ask, the median cycles of such loads. One that was brought takes as long as
the L2 cache does, one that was not as long as memory. `--compile` only compiles, which needs no GPU.
"""

import argparse
import ctypes
import json
import statistics
import sys

LINES, STRIDE = 4096, 4096  # bytes from line to line
OFFSETS = (0, 32, 64, 96)
WAYS = {"nothing": 0, "prefetch.global.L2": 1, "cp.async.bulk.prefetch.L2 of 32": 2,
        "cp.async.bulk.prefetch.L2 of 128": 3}
KERNEL = r"""
// Cycles that a load of each line takes at `offset`, after it was asked for in one `way`. One thread.
extern "C" __global__ void probe(const char* lines, unsigned* cycles, unsigned count, unsigned stride,
                                 unsigned way, unsigned offset) {
    for (unsigned i = 0; i < count; i++) {
        const char* const line = lines + (unsigned long long)i * stride;
        if (way == 1) asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
        if (way == 2) asm volatile("cp.async.bulk.prefetch.L2.global [%0], 32;" ::"l"(line));
        if (way == 3) asm volatile("cp.async.bulk.prefetch.L2.global [%0], 128;" ::"l"(line));
        const long long asked = clock64();
        while (clock64() - asked < 4000) {}
        unsigned before, after, word;
        asm volatile("mov.u32 %0, %%clock;" : "=r"(before)::"memory");
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(line + offset) : "memory");
        if (word != 0) __trap(); // so the load has come: the lines are zeros
        asm volatile("mov.u32 %0, %%clock;" : "=r"(after)::"memory");
        cycles[i] = after - before;
    }
}
"""


class Failed(Exception):
    pass


def compile_kernel(nvrtc, arch):
    """Machine code."""
    program = ctypes.c_void_p()
    check("nvrtcCreateProgram", nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), KERNEL.encode(), b"probe.cu", 0, None, None))
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture={arch}".encode())
    result = nvrtc.nvrtcCompileProgram(program, 1, options)
    if result != 0:
        raise Failed(f"NVRTC: {text(nvrtc, program, 'ProgramLog')[:-1].decode()}")
    return text(nvrtc, program, "CUBIN")


def text(nvrtc, program, what):
    size = ctypes.c_size_t()
    check(what, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    check(what, getattr(nvrtc, f"nvrtcGet{what}")(program, data))
    return data.raw


def check(doing, result):
    if result != 0:
        raise Failed(f"{doing}: error {result}")


def measure(cuda, nvrtc):
    """Median cycles by way and offset, on the first GPU."""
    def call(name, *arguments):
        check(name, getattr(cuda, name)(*arguments))

    device, context, module, function = ctypes.c_int(), *(ctypes.c_void_p() for _ in range(3))
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    name, version = ctypes.create_string_buffer(256), [ctypes.c_int(), ctypes.c_int()]
    call("cuDeviceGetName", name, 256, device)
    for number, attribute in zip(version, (75, 76)):  # compute capability
        call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
    code = compile_kernel(nvrtc, f"sm_{version[0].value}{version[1].value}")
    call("cuModuleLoadData", ctypes.byref(module), code)
    call("cuModuleGetFunction", ctypes.byref(function), module, b"probe")
    pairs = [(way, offset) for way in WAYS for offset in OFFSETS]
    lines, cycles = ctypes.c_uint64(), ctypes.c_uint64()
    # Each measurement has lines of its own, so that none was read before; as much again is zeroed
    # after them, so that no cache has them.
    size = ctypes.c_size_t(2 * LINES * STRIDE * len(pairs))
    call("cuMemAlloc_v2", ctypes.byref(lines), size)
    call("cuMemAlloc_v2", ctypes.byref(cycles), ctypes.c_size_t(4 * LINES))
    call("cuMemsetD8_v2", lines, ctypes.c_ubyte(0), size)
    found = {way: {} for way in WAYS}
    for number, (way, offset) in enumerate(pairs):
        first = ctypes.c_uint64(lines.value + number * LINES * STRIDE)
        values = [first, cycles, *map(ctypes.c_uint, (LINES, STRIDE, WAYS[way], offset))]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, pointers, None)
        took = (ctypes.c_uint * LINES)()
        call("cuMemcpyDtoH_v2", took, cycles, ctypes.c_size_t(4 * LINES))
        found[way][offset] = statistics.median(took)
    return {"device": name.value.decode(), "cycles": found}


def library(*names):
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            pass
    raise Failed(f"{names[0]} is not there")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compile", metavar="LIBNVRTC", help="only compile, by this library")
    arguments = parser.parse_args()
    try:
        if arguments.compile:
            print(len(compile_kernel(library(arguments.compile), "sm_90")))
        else:
            nvrtc = library("libnvrtc.so", *(f"libnvrtc.so.{major}" for major in (13, 12)))
            print(json.dumps(measure(library("libcuda.so.1"), nvrtc), indent=1))
    except Failed as error:
        print(f"probe.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
