// A small client of the CUDA driver API and of NVRTC, loaded at run time as cudarc loads them.
#pragma once
#include <dlfcn.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace test {

using Pointer = uintptr_t;  // CUdeviceptr
using Handle = void*;

inline std::string library_directory, kernel_directory,
    repository_kernels;  // from the command line

inline void* symbol(const char* library, const char* name) {
    void* handle = dlopen((library_directory + "/" + library).c_str(), RTLD_NOW | RTLD_GLOBAL);
    void* found = handle ? dlsym(handle, name) : nullptr;
    if (!found) std::printf("no %s in %s: %s\n", name, library, dlerror()), std::exit(3);
    return found;
}

// Calls a function by its name; returns its result.
template <class... A>
int try_call(const char* name, A... arguments) {
    const std::string text = name;
    const char* library = text.rfind("nvrtc", 0) == 0  ? "libnvrtc.so.13"
                          : text.rfind("nccl", 0) == 0 ? "libnccl.so.2"
                                                       : "libcuda.so.1";
    return reinterpret_cast<int (*)(A...)>(symbol(library, name))(arguments...);
}

// The same, and ends the test unless it succeeds.
template <class... A>
void call(const char* name, A... arguments) {
    if (int result = try_call(name, arguments...)) {
        std::printf("%s returned %d\n", name, result);
        std::fflush(stdout);
        std::_Exit(1);
    }
}

inline std::string read(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
}

// A file of tests/emulator/kernels, compiled for an architecture; empty if it did not compile (the log is
// printed).
inline std::vector<char> compile(const std::string& file, const std::string& arch) {
    Handle program;
    const std::string source = read(kernel_directory + "/" + file);
    call("nvrtcCreateProgram", &program, source.c_str(), file.c_str(), 0, nullptr, nullptr);
    const std::string include = "--include-path=" + repository_kernels;
    const std::string architecture = "--gpu-architecture=" + arch;
    const char* options[] = {architecture.c_str(), "-std=c++17", include.c_str()};
    int result = try_call("nvrtcCompileProgram", program, 3, (const char* const*)options);
    size_t size;
    call("nvrtcGetProgramLogSize", program, &size);
    std::vector<char> log(size);
    call("nvrtcGetProgramLog", program, log.data());
    if (result) return std::printf("%s", log.data()), std::vector<char>();
    call("nvrtcGetCUBINSize", program, &size);
    std::vector<char> image(size);
    call("nvrtcGetCUBIN", program, image.data());
    call("nvrtcDestroyProgram", &program);
    return image;
}

// The same, loaded.
inline Handle load(const std::string& file) {
    const char* capability = std::getenv("CHASKI_EMULATE_CAPABILITY");
    const bool is_old = capability && *capability == '8';
    const std::vector<char> image = compile(file, is_old ? "sm_80" : "sm_90a");
    if (image.empty()) return nullptr;
    Handle module;
    call("cuModuleLoadData", &module, (const void*)image.data());
    return module;
}

inline void use_device(int ordinal) {
    call("cuInit", 0u);
    int device;
    call("cuDeviceGet", &device, ordinal);
    Handle context;
    call("cuDevicePrimaryCtxRetain", &context, device);
    call("cuCtxSetCurrent", context);
}

inline Handle function(Handle module, const char* name) {
    if (!module) std::exit(1);  // the compiler has said why
    Handle found;
    call("cuModuleGetFunction", &found, module, name);
    call("cuFuncLoad", found);
    return found;
}

template <class Arguments>
int launch(Handle function, unsigned grid, unsigned block, unsigned shared, Handle stream,
           Arguments arguments) {
    void* pointers[] = {&arguments};
    return try_call("cuLaunchKernel", function, grid, 1u, 1u, block, 1u, 1u, shared, stream,
                    (void**)pointers, (void**)nullptr);
}

template <class Arguments>
int launch_programmatic(Handle function, unsigned grid, unsigned block, Handle stream,
                        Arguments arguments) {
    struct Attribute {
        int id;
        char padding[4];
        int value;
        char rest[60];
    } attribute = {6, {}, 1, {}};
    struct {
        unsigned grid[3], block[3], shared;
        Handle stream;
        Attribute* attributes;
        unsigned count;
    } config = {{grid, 1, 1}, {block, 1, 1}, 0, stream, &attribute, 1};
    void* pointers[] = {&arguments};
    return try_call("cuLaunchKernelEx", (const void*)&config, function, (void**)pointers,
                    (void**)nullptr);
}

inline Handle new_stream() {
    Handle stream;
    call("cuStreamCreate", &stream, 1u);
    return stream;
}

inline Pointer allocate(size_t bytes) {
    Pointer memory;
    call("cuMemAlloc_v2", &memory, bytes);
    return memory;
}

template <class T>
Pointer upload(const std::vector<T>& host) {
    Pointer memory = allocate(host.size() * sizeof(T));
    call("cuMemcpyHtoD_v2", memory, (const void*)host.data(), host.size() * sizeof(T));
    return memory;
}

// By way of the stream, so that it waits for what is queued there.
template <class T>
std::vector<T> download(Pointer memory, size_t count, Handle stream) {
    std::vector<T> host(count);
    call("cuMemcpyDtoHAsync_v2", (void*)host.data(), memory, count * sizeof(T), stream);
    call("cuStreamSynchronize", stream);
    return host;
}

template <class T>
void expect(const char* what, const std::vector<T>& got, const std::vector<T>& wanted) {
    for (size_t i = 0; i < wanted.size(); i++)
        if (!(got[i] == wanted[i])) {
            std::printf("%s[%zu] is %g, not %g\n", what, i, double(got[i]), double(wanted[i]));
            std::fflush(stdout);
            std::exit(1);
        }
}

// 0, 1, ... 6, 0, 1, ...: sums of them are exact in float.
inline std::vector<float> numbers(size_t count) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; i++) values[i] = float(i * 5 % 7);
    return values;
}

}  // namespace test
