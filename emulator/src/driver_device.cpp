// Initialisation, devices, errors.
#include "entry.h"

#include "fault.h"
#include "hooks.h"

#include <dlfcn.h>
#include <algorithm>
#include <cstdio>
#include <cstring>

namespace emulator {

thread_local Device* current_device;
thread_local uint64_t calls, queries;

namespace {

bool ready_to_use;

struct ErrorText {
    int result;
    const char* name;
    const char* text;
};

constexpr ErrorText kErrors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
     "peer access is not supported between these two devices"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
    {705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access has not been enabled"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const ErrorText* error_text(int result) {
    for (const ErrorText& error : kErrors)
        if (error.result == result) return &error;
    return nullptr;
}

int attribute(int which) {
    const Modes& mode = modes();
    switch (which) {
        case 1:
        case 2:
        case 3:
            return 1024;  // threads a block, block x, y
        case 4:
            return 64;  // block z
        case 5:
            return 0x7fffffff;  // grid x
        case 6:
        case 7:
            return 65535;  // grid y, z
        case 8:
            return 48 << 10;  // shared memory a block
        case 9:
            return 64 << 10;  // constant memory
        case 10:
            return 32;  // warp size
        case 12:
        case 82:
            return 65536;  // registers a block, a multiprocessor
        case 13:
        case 36:
            return 1000000;  // clock, memory clock (kHz)
        case 16:
            return 4;  // multiprocessors: few, so that grids sized by them stay small
        case 19:
        case 31:
        case 41:
            return 1;  // maps host memory, concurrent kernels, unified addressing
        case 33:
            return 0x40;  // PCI bus
        case 37:
            return 64;  // memory bus (bits)
        case 38:
            return 4 << 20;  // L2 cache
        case 39:
            return 2048;  // threads a multiprocessor
        case 40:
            return 1;  // copy engines
        case 75:
            return mode.capability_major;
        case 76:
            return mode.capability_minor;
        case 81:
            return int(mode.shared_bytes());  // shared memory a multiprocessor
        case 95:
            return 1;  // cooperative launch
        case 97:
            return int(mode.max_block_shared_bytes());  // shared memory a block, opted in
        case 99:
            return 1;  // host memory can be registered
        case 106:
            return 32;  // blocks a multiprocessor
        case 111:
            return 1 << 10;  // shared memory reserved a block
        case 115:
            return 1;  // memory pools
        default:
            return 0;
    }
}

}  // namespace

bool initialized() { return ready_to_use; }

Device& device_at(int ordinal) {
    if (ordinal < 0 || size_t(ordinal) >= machine().devices.size()) throw Failure{kInvalidDevice};
    return machine().devices[ordinal];
}

void lose(Device& device, int result) {
    if (result == kDeviceLost || result == kEccUncorrectable || (result >= 700 && result < 720))
        poison(device, result);
}

}  // namespace emulator

using namespace emulator;

// The emulator's own: the last failure of a kernel in words, with the source line.
extern "C" __attribute__((visibility("default"))) const char* chaski_emulator_failure() {
    return last_failure().c_str();
}

// And how often the calling thread has called the driver. Of that, how often it has asked a stream
// whether it has ended: as many times as a wait is long.
extern "C" __attribute__((visibility("default"))) uint64_t chaski_emulator_calls(uint64_t* asked) {
    *asked = queries;
    return calls;
}

void chaski_emulator_lose(int device) { poison(machine().devices[device], kDeviceLost); }

ENTRY cuInit(unsigned) {
    return enter("cuInit", Needs::Nothing, [](Lock&) {
        if (ready_to_use) return;
        if (modes().devices == 0) throw Failure{kNoDevice};
        for (unsigned i = 0; i < modes().devices; i++) {
            machine().devices.emplace_back();
            Device& device = machine().devices.back();
            device.ordinal = int(i);
            device.memory_bytes = modes().memory_of(i);
            device.streams.emplace_back();
            device.streams.front().device = &device;
            device.streams.front().blocking = true;
        }
        // Kernels are loaded later and look for the runtime among the global symbols.
        Dl_info self_info;
        if (dladdr(reinterpret_cast<void*>(&cuInit), &self_info))
            dlopen(self_info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
        catch_faults();
        ready_to_use = true;
    });
}

ENTRY cuDriverGetVersion(int* version) {
    *version = modes().driver_version;
    return kSuccess;
}

ENTRY cuDeviceGetCount(int* count) {
    return enter("cuDeviceGetCount", Needs::Devices,
                 [&](Lock&) { *count = int(machine().devices.size()); });
}

ENTRY cuDeviceGet(int* device, int ordinal) {
    return enter("cuDeviceGet", Needs::Devices,
                 [&](Lock&) { *device = device_at(ordinal).ordinal; });
}

ENTRY cuDeviceGetName(char* name, int length, int device) {
    return enter("cuDeviceGetName", Needs::Devices, [&](Lock&) {
        std::snprintf(name, size_t(length), "Emulated GPU %d", device_at(device).ordinal);
    });
}

ENTRY cuDeviceTotalMem_v2(size_t* bytes, int device) {
    return enter("cuDeviceTotalMem_v2", Needs::Devices, [&](Lock&) {
        *bytes = device_at(device).memory_bytes;
    });
}

ENTRY cuDeviceGetUuid_v2(char* uuid, int device) {
    return enter("cuDeviceGetUuid_v2", Needs::Devices, [&](Lock&) {
        std::memset(uuid, 0, 16);
        std::memcpy(uuid, "emulated", 8);
        uuid[15] = char(device_at(device).ordinal);
    });
}
ENTRY cuDeviceGetUuid(char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

ENTRY cuDeviceGetPCIBusId(char* id, int length, int device) {
    return enter("cuDeviceGetPCIBusId", Needs::Devices, [&](Lock&) {
        std::snprintf(id, size_t(length), "0000:%02X:00.0", 0x40 + device_at(device).ordinal);
    });
}

ENTRY cuDeviceGetAttribute(int* value, int which, int device) {
    return enter("cuDeviceGetAttribute", Needs::Devices, [&](Lock&) {
        int ordinal = device_at(device).ordinal;
        *value = attribute(which) + (which == 33 ? ordinal : 0);
    });
}

ENTRY cuDeviceComputeCapability(int* major, int* minor, int device) {
    return enter("cuDeviceComputeCapability", Needs::Devices, [&](Lock&) {
        device_at(device);
        *major = modes().capability_major;
        *minor = modes().capability_minor;
    });
}

ENTRY cuGetErrorName(int result, const char** name) {
    const ErrorText* error = error_text(result);
    *name = error ? error->name : nullptr;
    return error ? kSuccess : kInvalidValue;
}

ENTRY cuGetErrorString(int result, const char** text) {
    const ErrorText* error = error_text(result);
    *text = error ? error->text : nullptr;
    return error ? kSuccess : kInvalidValue;
}

ENTRY cuGetProcAddress_v2(const char* symbol, void** function, int, uint64_t, int* status) {
    // Callers ask for the plain name and mean the newest version.
    for (const char* suffix : {"_v4", "_v3", "_v2", ""}) {
        *function = dlsym(RTLD_DEFAULT, (std::string(symbol) + suffix).c_str());
        if (*function) break;
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? kSuccess : kNotFound;
}
