// Modules, functions and launches.
#include "entry.h"

#include "image.h"

#include <dlfcn.h>
#include <cstdio>
#include <cstring>

namespace emulator {
namespace {

// A variable of a module, and what it holds when the module is loaded.
struct Variable {
    std::string name;
    char* address;
    size_t bytes;
    std::vector<char> initial;
};

// By the path of the code; they outlive everything, as the machine does. Those that the code which is
// being loaded tells of come last.
using Variables = std::vector<Variable>;
std::map<std::string, Variables>& variables_of = *new std::map<std::string, Variables>;
Variables& told = *new Variables;

// Code that is loaded again is the same in memory, but its variables are new.
void renew(Variables& variables) {
    for (Variable& each : told) {
        each.initial.assign(each.address, each.address + each.bytes);
        adopt(reinterpret_cast<uintptr_t>(each.address), each.bytes, current_device->ordinal);
        variables.push_back(std::move(each));
    }
    told.clear();
    for (Variable& each : variables)  // constants cannot be written
        if (std::memcmp(each.address, each.initial.data(), each.bytes) != 0)
            std::memcpy(each.address, each.initial.data(), each.bytes);
}

// What a module takes of the device's memory: 1.2 MB of 80 GB.
constexpr size_t kModulePart = 65536;

Module* load(const void* image) {
    refuse_during_capture();
    wait_for_all_devices("cuModuleLoadData");
    const Image code = read_image(image);  // without a path: a real cubin or PTX
    if (code.path.empty() || !code.runs_on(modes().capability_major, modes().capability_minor))
        throw Failure{kNoBinaryForGpu};
    void* library = dlopen(code.path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        std::fprintf(stderr, "emulator: loading a compiled kernel: %s\n", dlerror());
        throw Failure{kInvalidImage};
    }
    Device& device = *current_device;
    renew(variables_of[code.path]);
    return new Module{library, code.path, &device, code.can_wait_for_dependency(),
                      Charge(device, device.memory_bytes / kModulePart), {}};
}

Function* function_of(Module& module, const char* name) {
    auto known = module.functions.find(name);
    if (known != module.functions.end()) return &known->second;
    void* symbol = dlsym(module.library, (std::string("emulator_kernel_") + name).c_str());
    if (!symbol) throw Failure{kNotFound};
    Function function = {static_cast<const Kernel*>(symbol), module.device, module.can_wait};
    return &module.functions.emplace(name, function).first->second;
}

// Lazily, as the real driver may: when it is asked for or at the first use.
void load_function(Function& function, const char* by) {
    of_this_device(function);
    refuse_during_capture();
    wait_for_all_devices(by);
    function.loaded = true;
}

}  // namespace

Registration::Registration(const char* name, const volatile void* address, size_t bytes) {
    told.push_back({name, static_cast<char*>(const_cast<void*>(address)), bytes, {}});
}

namespace {

uint64_t volume(Index size) { return uint64_t(size.x) * size.y * size.z; }

// The arguments out of an array of pointers, or out of the packed buffer of
// CU_LAUNCH_PARAM_BUFFER_POINTER.
std::vector<Argument> copy_arguments(const Kernel& kernel, void** pointers, void** extra) {
    const char* packed = nullptr;
    for (; extra && *extra; extra += 2)
        if (*extra == reinterpret_cast<void*>(1)) packed = static_cast<const char*>(extra[1]);
    if (kernel.arguments && !pointers && !packed) throw Failure{kInvalidValue};
    std::vector<Argument> copies;
    size_t offset = 0;
    for (unsigned i = 0; i < kernel.arguments; i++) {
        offset = (offset + kernel.alignments[i] - 1) / kernel.alignments[i] * kernel.alignments[i];
        const char* from = packed ? packed + offset : static_cast<const char*>(pointers[i]);
        const size_t bytes = kernel.sizes[i];
        copies.push_back({std::vector<ArgumentLine>((bytes + 127) / 128), bytes});
        std::memcpy(copies.back().data(), from, bytes);
        offset += kernel.sizes[i];
    }
    return copies;
}

void launch(Function* function, const LaunchConfig& config, bool programmatic, void** pointers,
            void** extra) {
    if (!function) throw Failure{kInvalidHandle};
    Stream& stream = of_this_device(stream_of(config.stream));
    const Kernel& kernel = *of_this_device(*function).kernel;
    if (programmatic && modes().capability_major < 9) throw Failure{kNotSupported};
    const SharedLimit limit = {function->dynamic_bytes, modes().max_block_shared_bytes()};
    if (!volume(config.grid) || !volume(config.block) ||
        volume(config.block) > uint64_t(kernel.max_threads) || config.grid.y > 65535 ||
        config.grid.z > 65535 || !limit.allows(static_bytes(kernel), config.shared_bytes)) {
        std::fprintf(stderr,
                     "emulator: launch of %s refused: grid %ux%ux%u, block %ux%ux%u (at most %d "
                     "threads), %zu bytes of static and %u of dynamic shared memory (%zu are allowed)\n",
                     kernel.name, config.grid.x, config.grid.y, config.grid.z, config.block.x,
                     config.block.y, config.block.z, kernel.max_threads, static_bytes(kernel),
                     config.shared_bytes, limit.most_dynamic(static_bytes(kernel)));
        throw Failure{kInvalidValue};
    }
    if (!function->loaded) load_function(*function, "the first launch of a kernel");
    const int fault = stream.capture ? 0 : planned_fault("kernel", current_device->ordinal);
    Operation operation;
    operation.launch = std::make_shared<Launch>(
        Launch{&kernel, config.grid, config.block, config.shared_bytes, limit,
               copy_arguments(kernel, pointers, extra), programmatic, function->can_wait, fault});
    submit(stream, std::move(operation));
}

int blocks_per_multiprocessor(const Function& function, int threads, size_t shared_bytes) {
    if (threads <= 0 || threads > function.kernel->max_threads) return 0;
    int by_threads = 2048 / ((threads + 31) / 32 * 32);
    const size_t all = static_bytes(*function.kernel) + shared_bytes + (1 << 10);
    int by_shared = int(modes().shared_bytes() / all);
    return std::min({by_threads, by_shared, 32});
}

}  // namespace
}  // namespace emulator

using namespace emulator;

ENTRY cuModuleLoadData(Module** module, const void* image) {
    return enter("cuModuleLoadData", Needs::Context, [&](Lock&) { *module = load(image); });
}

ENTRY cuModuleLoadDataEx(Module** module, const void* image, unsigned, int*, void**) {
    return enter("cuModuleLoadDataEx", Needs::Context, [&](Lock&) { *module = load(image); });
}

ENTRY cuModuleUnload(Module* module) {
    return enter("cuModuleUnload", Needs::Context, [&](Lock& lock) {
        of_this_device(*module);
        refuse_during_capture();
        wait_for_all_devices("cuModuleUnload");
        force(*current_device, lock);
        delete module;  // the code stays: sanitizer reports at exit still name its lines
    });
}

ENTRY cuModuleGetFunction(Function** function, Module* module, const char* name) {
    return enter("cuModuleGetFunction", Needs::Context,
                 [&](Lock&) {
                     if (!module) throw Failure{kInvalidHandle};
                     *function = function_of(of_this_device(*module), name);
                 });
}

ENTRY cuModuleGetGlobal_v2(uintptr_t* address, size_t* bytes, Module* module, const char* name) {
    return enter("cuModuleGetGlobal", Needs::Context, [&](Lock&) {
        if (!module) throw Failure{kInvalidHandle};
        for (const Variable& each : variables_of[of_this_device(*module).path]) {
            if (each.name != name) continue;
            if (address) *address = reinterpret_cast<uintptr_t>(each.address);
            if (bytes) *bytes = each.bytes;
            return;
        }
        throw Failure{kNotFound};
    });
}

ENTRY cuFuncLoad(Function* function) {
    return enter("cuFuncLoad", Needs::Context,
                 [&](Lock&) { load_function(*function, "cuFuncLoad"); });
}

ENTRY cuFuncGetAttribute(int* value, int which, Function* function) {
    return enter("cuFuncGetAttribute", Needs::Context, [&](Lock&) {
        switch (which) {
            case 0:
                *value = function->kernel->max_threads;
                break;
            case 1:
                *value = int(static_bytes(*function->kernel));  // as far as it has run
                break;
            case 5:
            case 6:
                *value = modes().capability_major * 10 + modes().capability_minor;
                break;
            case 8:
                *value = int(SharedLimit{function->dynamic_bytes, 0}.most_dynamic(
                    static_bytes(*function->kernel)));
                break;
            default:
                *value = 0;  // registers and local memory: not known here
        }
    });
}

ENTRY cuFuncSetAttribute(Function* function, int which, int value) {
    return enter("cuFuncSetAttribute", Needs::Context, [&](Lock&) {
        of_this_device(*function);
        if (which != 8) return;
        const size_t all = static_bytes(*function->kernel) + size_t(value);
        if (value < 0 || all > modes().max_block_shared_bytes()) throw Failure{kInvalidValue};
        function->dynamic_bytes = size_t(value);
    });
}

ENTRY cuFuncGetParamInfo(Function* function, size_t index, size_t* offset, size_t* bytes) {
    return enter("cuFuncGetParamInfo", Needs::Context, [&](Lock&) {
        const Kernel& kernel = *of_this_device(*function).kernel;
        if (index >= kernel.arguments) throw Failure{kInvalidValue};
        size_t at = 0;
        for (size_t i = 0;; at += kernel.sizes[i++]) {
            at = (at + kernel.alignments[i] - 1) / kernel.alignments[i] * kernel.alignments[i];
            if (i == index) break;
        }
        *offset = at;
        if (bytes) *bytes = kernel.sizes[index];
    });
}

ENTRY cuFuncSetCacheConfig(Function*, int) { return kSuccess; }

ENTRY cuFuncGetName(const char** name, Function* function) {
    return *name = function->kernel->name, kSuccess;
}

ENTRY cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                     unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                     Stream* stream, void** arguments, void** extra) {
    return enter("cuLaunchKernel", Needs::Context, [&](Lock&) {
        LaunchConfig config = {{grid_x, grid_y, grid_z},
                               {block_x, block_y, block_z},
                               shared_bytes,
                               stream,
                               nullptr,
                               0};
        launch(function, config, false, arguments, extra);
    });
}

ENTRY cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** arguments,
                       void** extra) {
    return enter("cuLaunchKernelEx", Needs::Context, [&](Lock&) {
        bool programmatic = false;
        for (unsigned i = 0; i < config->attribute_count; i++)
            if (config->attributes[i].id == kProgrammaticStreamSerialization)
                programmatic = config->attributes[i].value;
        launch(function, *config, programmatic, arguments, extra);
    });
}

ENTRY cuLaunchCooperativeKernel(Function* function, unsigned grid_x, unsigned grid_y,
                                unsigned grid_z, unsigned block_x, unsigned block_y,
                                unsigned block_z, unsigned shared_bytes, Stream* stream,
                                void** arguments) {
    return cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes,
                          stream, arguments, nullptr);
}

ENTRY cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* function,
                                                           int threads, size_t shared_bytes,
                                                           unsigned) {
    return enter("cuOccupancyMaxActiveBlocksPerMultiprocessor", Needs::Context, [&](Lock&) {
        *blocks = blocks_per_multiprocessor(*function, threads, shared_bytes);
    });
}
ENTRY cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads,
                                                  size_t shared_bytes) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads,
                                                                shared_bytes, 0);
}

ENTRY cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, Function*, int blocks, int) {
    return enter("cuOccupancyAvailableDynamicSMemPerBlock", Needs::Context, [&](Lock&) {
        if (blocks <= 0) throw Failure{kInvalidValue};
        *bytes = modes().shared_bytes() / size_t(blocks) - (1 << 10);
    });
}

ENTRY cuOccupancyMaxPotentialBlockSize(int* grid, int* block, Function* function, size_t (*)(int),
                                       size_t shared_bytes, int limit) {
    return enter("cuOccupancyMaxPotentialBlockSize", Needs::Context, [&](Lock&) {
        *block = limit > 0 ? std::min(limit, function->kernel->max_threads)
                           : function->kernel->max_threads;
        *grid = 4 * blocks_per_multiprocessor(*function, *block, shared_bytes);
    });
}
