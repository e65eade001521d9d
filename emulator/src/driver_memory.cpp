// Allocation, copies and fills.
#include "entry.h"

#include "hooks.h"
#include "stores.h"

#include <cstdio>
#include <cstring>

namespace emulator {
namespace {

uintptr_t allocate_on(Device& device, size_t bytes) {
    if (bytes == 0) throw Failure{kInvalidValue};
    if (bytes > device.memory_bytes - device.used_bytes) throw Failure{kOutOfMemory};
    void* memory = allocate(bytes, device.ordinal, device.ordinal);
    if (!memory) throw Failure{kOutOfMemory};
    device.used_bytes += bytes;
    return reinterpret_cast<uintptr_t>(memory);
}

void free_now(uintptr_t address) {
    const Allocation* found = find(address);
    if (!found || found->device == kHost || found->address != address || found->freed)
        throw Failure{kInvalidValue};
    machine().devices[found->device].used_bytes -= found->bytes;
    land_stores(address, found->bytes);
    release(address);
}

// For the device whose context is current.
bool pageable(const void* address) {
    const Allocation* found = find(reinterpret_cast<uintptr_t>(address));
    return !found || found->freed ||
           (found->device == kHost && !found->pinned_for(current_device->ordinal));
}

void check_device(const char* function, uintptr_t address, size_t bytes) {
    if (live(address, bytes)) return;
    std::fprintf(stderr, "emulator: %s of %zu bytes: not all in one live allocation: %s\n",
                 function, bytes, describe(address).c_str());
    throw Failure{kInvalidValue};
}

// Between two devices that only say that they reach each other, once that is asked for.
bool is_lost(uintptr_t to, uintptr_t from) {
    const Allocation *target = find(to), *source = find(from);
    if (!target || !source || target->device == kHost || source->device == kHost) return false;
    return modes().between(source->device, target->device) == Reach::Broken &&
           machine().devices[source->device].peers.count(target->device);
}

void move(void* to, const void* from, size_t bytes) {
    land_stores(reinterpret_cast<uintptr_t>(to), bytes);
    land_stores(reinterpret_cast<uintptr_t>(from), bytes);
    sanitizer::read(from, bytes);
    sanitizer::write(to, bytes);
    if (is_lost(reinterpret_cast<uintptr_t>(to), reinterpret_cast<uintptr_t>(from))) return;
    std::memcpy(to, from, bytes);
}

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

enum class Host { None, Source, Destination };  // which end is host memory that may be pageable

// A larger copy from pageable memory may wait for what is queued before it.
constexpr size_t kStagedBytes = 64 << 10;

// Pageable sources are read before the call returns; pageable destinations are written before it
// returns.
void copy(const char* function, Stream* handle, uintptr_t to, uintptr_t from, size_t bytes,
          Host host, Lock& lock) {
    if (bytes == 0) return;
    if (host != Host::Destination) check_device(function, to, bytes);
    if (host != Host::Source) check_device(function, from, bytes);
    Stream& stream = stream_of(handle);
    Operation operation;
    bool snapshot = host == Host::Source && pageable(pointer(from)) && !stream.capture;
    if (snapshot) {
        if (bytes > kStagedBytes) wait_for_stream(stream, function);
        auto* first = static_cast<const char*>(pointer(from));
        auto staged = std::make_shared<std::vector<char>>(first, first + bytes);
        operation.run = [=] { move(pointer(to), staged->data(), bytes); };
    } else {
        operation.run = [=] { move(pointer(to), pointer(from), bytes); };
    }
    submit(stream, std::move(operation));
    if (host == Host::Destination && pageable(pointer(to)) && !stream.capture)
        force({&stream, stream.submitted}, lock);
}

void copy_now(const char* function, uintptr_t to, uintptr_t from, size_t bytes, Host host,
              Lock& lock) {
    refuse_during_capture();
    copy(function, nullptr, to, from, bytes, host, lock);
    Stream& stream = stream_of(nullptr);
    force({&stream, stream.submitted}, lock);
}

template <class T>
void fill(const char* function, Stream* handle, uintptr_t to, T value, size_t count) {
    check_device(function, to, count * sizeof(T));
    Operation operation;
    operation.run = [=] {
        land_stores(to, count * sizeof(T));
        sanitizer::write(pointer(to), count * sizeof(T));
        for (size_t i = 0; i < count; i++)
            std::memcpy(static_cast<T*>(pointer(to)) + i, &value, sizeof value);
    };
    submit(stream_of(handle), std::move(operation));
}

template <class T>
void fill_now(const char* function, uintptr_t to, T value, size_t count, Lock& lock) {
    refuse_during_capture();
    fill(function, nullptr, to, value, count);
    Stream& stream = stream_of(nullptr);
    force({&stream, stream.submitted}, lock);
}

}  // namespace
}  // namespace emulator

using namespace emulator;

// The emulator's own: nobody may touch these bytes from now on. Says whether AddressSanitizer is here
// to see to it.
extern "C" __attribute__((visibility("default"))) int chaski_emulator_forbid(uintptr_t address,
                                                                             size_t bytes) {
#if defined(EMULATOR_ADDRESS)
    __asan_poison_memory_region(pointer(address), bytes);
    return 1;
#else
    return (void)address, (void)bytes, 0;
#endif
}

bool chaski_emulator_usable(const void* address, unsigned long bytes, int device) {
    auto at = reinterpret_cast<uintptr_t>(address);
    return live(at, bytes) && (find(at)->device == device || find(at)->device == kHost);
}

ENTRY cuMemGetInfo_v2(size_t* free, size_t* total) {
    return enter("cuMemGetInfo_v2", Needs::Context, [&](Lock&) {
        *total = current_device->memory_bytes;
        *free = *total - current_device->used_bytes;
    });
}

ENTRY cuMemAlloc_v2(uintptr_t* address, size_t bytes) {
    return enter("cuMemAlloc_v2", Needs::Context, [&](Lock&) {
        refuse_during_capture();
        wait_for_all_devices("cuMemAlloc");
        *address = allocate_on(*current_device, bytes);
    });
}

ENTRY cuMemFree_v2(uintptr_t address) {
    return enter("cuMemFree_v2", Needs::Context, [&](Lock& lock) {
        if (!address) return;
        refuse_during_capture();
        wait_for_all_devices("cuMemFree");
        force(*current_device, lock);  // as the real one does
        free_now(address);
    });
}

ENTRY cuMemAllocAsync(uintptr_t* address, size_t bytes, Stream* stream) {
    return enter("cuMemAllocAsync", Needs::Context, [&](Lock&) {
        if (stream_of(stream).capture) throw Failure{kCaptureUnsupported};
        *address = allocate_on(*current_device, bytes);
    });
}

ENTRY cuMemFreeAsync(uintptr_t address, Stream* stream) {
    return enter("cuMemFreeAsync", Needs::Context, [&](Lock&) {
        if (stream_of(stream).capture) throw Failure{kCaptureUnsupported};
        const Allocation* found = find(address);
        if (!found || found->address != address || found->freed) throw Failure{kInvalidValue};
        Operation operation;
        operation.run = [=] { free_now(address); };
        submit(stream_of(stream), std::move(operation));
    });
}

ENTRY cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
    return enter("cuMemHostAlloc", Needs::Context, [&](Lock&) {
        if (bytes == 0) throw Failure{kInvalidValue};
        refuse_during_capture();
        wait_for_all_devices("cuMemHostAlloc");
        *memory = allocate(bytes, kHost, current_device->ordinal, flags);
        if (!*memory) throw Failure{kOutOfMemory};
    });
}
ENTRY cuMemAllocHost_v2(void** memory, size_t bytes) { return cuMemHostAlloc(memory, bytes, 0); }

ENTRY cuMemFreeHost(void* memory) {
    return enter("cuMemFreeHost", Needs::Context, [&](Lock&) {
        refuse_during_capture();
        wait_for_all_devices("cuMemFreeHost");
        auto address = reinterpret_cast<uintptr_t>(memory);
        const Allocation* found = find(address);
        if (!found || found->device != kHost || !release(address)) throw Failure{kInvalidValue};
    });
}

// Registered memory stays where it is and counts as pageable: the strictest reading of a host that
// forgets to wait would be the pinned one, which needs memory of the emulator's own.
ENTRY cuMemHostRegister_v2(void*, size_t, unsigned) { return kSuccess; }
ENTRY cuMemHostUnregister(void*) { return kSuccess; }

ENTRY cuMemHostGetDevicePointer_v2(uintptr_t* address, void* memory, unsigned) {
    return enter("cuMemHostGetDevicePointer_v2", Needs::Context, [&](Lock&) {
        *address = reinterpret_cast<uintptr_t>(memory);
        const Allocation* found = pageable(memory) ? nullptr : find(*address);
        if (!found || !found->mapped_for(current_device->ordinal)) throw Failure{kInvalidValue};
    });
}

#define COPY(name, host, to_type, from_type)                                                \
    ENTRY name##_v2(to_type to, from_type from, size_t bytes) {                             \
        return enter(#name "_v2", Needs::Context, [&](Lock& lock) {                         \
            copy_now(#name, uintptr_t(to), uintptr_t(from), bytes, host, lock);             \
        });                                                                                 \
    }                                                                                       \
    ENTRY name##Async_v2(to_type to, from_type from, size_t bytes, Stream* stream) {        \
        return enter(#name "Async_v2", Needs::Context, [&](Lock& lock) {                    \
            copy(#name "Async", stream, uintptr_t(to), uintptr_t(from), bytes, host, lock); \
        });                                                                                 \
    }
COPY(cuMemcpyHtoD, Host::Source, uintptr_t, const void*)
COPY(cuMemcpyDtoH, Host::Destination, void*, uintptr_t)
COPY(cuMemcpyDtoD, Host::None, uintptr_t, uintptr_t)

ENTRY cuMemcpyPeer(uintptr_t to, Device*, uintptr_t from, Device*, size_t bytes) {
    return enter("cuMemcpyPeer", Needs::Context,
                 [&](Lock& lock) { copy_now("cuMemcpyPeer", to, from, bytes, Host::None, lock); });
}

ENTRY cuMemcpyPeerAsync(uintptr_t to, Device*, uintptr_t from, Device*, size_t bytes,
                        Stream* stream) {
    return enter("cuMemcpyPeerAsync", Needs::Context, [&](Lock& lock) {
        copy("cuMemcpyPeerAsync", stream, to, from, bytes, Host::None, lock);
    });
}

#define FILL(name, type)                                                             \
    ENTRY name##_v2(uintptr_t to, type value, size_t count) {                        \
        return enter(#name "_v2", Needs::Context,                                    \
                     [&](Lock& lock) { fill_now(#name, to, value, count, lock); });  \
    }                                                                                \
    ENTRY name##Async(uintptr_t to, type value, size_t count, Stream* stream) {      \
        return enter(#name "Async", Needs::Context,                                  \
                     [&](Lock&) { fill(#name "Async", stream, to, value, count); }); \
    }
FILL(cuMemsetD8, unsigned char)
FILL(cuMemsetD16, unsigned short)
FILL(cuMemsetD32, unsigned)

// Memory pools: one a device, with nothing to tune.
ENTRY cuDeviceGetDefaultMemPool(Device** pool, int device) {
    return enter("cuDeviceGetDefaultMemPool", Needs::Devices, [&](Lock&) {
        if (size_t(device) >= machine().devices.size()) throw Failure{kInvalidDevice};
        *pool = &machine().devices[device];
    });
}
ENTRY cuDeviceGetMemPool(Device** pool, int device) {
    return cuDeviceGetDefaultMemPool(pool, device);
}
ENTRY cuMemPoolSetAttribute(Device*, int, void*) { return kSuccess; }
ENTRY cuMemPoolTrimTo(Device*, size_t) { return kSuccess; }
