// The driver's types as far as they are needed, in the emulator's own terms, and the frame of every
// entry point. Numbers and struct layouts are the CUDA driver's ABI.
#pragma once
#include "machine.h"
#include "modes.h"

#define ENTRY extern "C" __attribute__((visibility("default"))) int

namespace emulator {

enum Result {
    kSuccess = 0,
    kInvalidValue = 1,
    kOutOfMemory = 2,
    kNotInitialized = 3,
    kNoDevice = 100,
    kInvalidDevice = 101,
    kInvalidImage = 200,
    kInvalidContext = 201,
    kNoBinaryForGpu = 209,
    kEccUncorrectable = 214,
    kPeerAccessUnsupported = 217,
    kInvalidHandle = 400,
    kNotFound = 500,
    kNotReady = 600,
    kPeerAccessAlreadyEnabled = 704,
    kPeerAccessNotEnabled = 705,
    kContextIsDestroyed = 709,
    kNotSupported = 801,
    kCaptureUnsupported = 900,
    kCaptureInvalidated = 901,
    kCaptureUnmatched = 903,
    kCaptureUnjoined = 904,
    kCaptureWrongThread = 908,
    kUnknown = 999,
};

// A kernel as the driver hands it out.
struct Function {
    const Kernel* kernel;
    Device* device;
    bool can_wait;  // its image's architecture has griddepcontrol
    size_t dynamic_bytes = 0;  // that it has been allowed; 0: what there is without asking
    bool loaded = false;
};

struct Module {
    void* library;
    std::string path;
    Device* device;
    bool can_wait;
    Charge charge;
    std::map<std::string, Function> functions;
};

struct LaunchAttribute {  // CUlaunchAttribute
    int id;
    char padding[4];
    union {
        int value;
        char bytes[64];
    };
};
constexpr int kProgrammaticStreamSerialization = 6;

struct LaunchConfig {  // CUlaunchConfig
    Index grid, block;
    unsigned shared_bytes;
    Stream* stream;
    LaunchAttribute* attributes;
    unsigned attribute_count;
};

// Whether an entry point works on the current context: then it fails once that context has failed.
enum class Needs { Nothing, Devices, Context };

using Lock = std::unique_lock<std::mutex>;

extern thread_local Device* current_device;  // a context is its device: there are only primary ones
extern thread_local uint64_t calls, queries;  // how many of entry points, and of cuStreamQuery
bool initialized();
Device& device_at(int ordinal);
void lose(Device& device, int result);  // what a planned fault leaves behind

// Runs an entry point: under the lock, after planned faults and sticky errors have had their say.
template <class Body>
int enter(const char* function, Needs needs, Body&& body) {
    calls++;
    Lock lock(machine().mutex);
    Device* device = current_device;
    if (needs != Needs::Nothing && !initialized()) return kNotInitialized;
    if (needs == Needs::Context && !device) return kInvalidContext;
    if (needs == Needs::Context && device->retained == 0) return kContextIsDestroyed;
    if (int result = planned_fault(function, device ? device->ordinal : -1)) {
        if (device) lose(*device, result);
        return result;
    }
    if (needs == Needs::Context && device->error) return device->error;
    try {
        body(lock);
    } catch (const Failure& failure) {
        return failure.result;
    }
    if (needs == Needs::Context && device->error) return device->error;
    return kSuccess;
}

inline Stream& stream_of(
    Stream* handle) {  // 0 and 1: the null stream, 2: a thread's own, here the same
    auto number = reinterpret_cast<uintptr_t>(handle);
    Stream& stream = number <= 2 ? current_device->streams.front() : *handle;
    if (stream.destroyed) throw Failure{kInvalidHandle};
    return stream;
}

// Of work that is only for the device of the current context.
template <class T>
T& of_this_device(T& handle) {
    if (handle.device != current_device) throw Failure{kInvalidHandle};
    return handle;
}

// What may wait for work, which a capture does not run, is not allowed while one in global mode goes on,
// or in thread-local mode one of this thread; which is then invalid.
void refuse_during_capture();

}  // namespace emulator
