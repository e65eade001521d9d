// Contexts: one a device, its primary one; what it takes of the device's memory, and what goes with it.
#include "entry.h"

#include "hooks.h"
#include "stores.h"

namespace emulator {
namespace {

// About what real ones are told to take of 80 GB, of less in proportion.
constexpr size_t kContextPart = 160;       // 0.5 GB
constexpr size_t kCommunicatorPart = 320;  // 250 MB

void make_context(Device& device) {
    device.own = std::make_unique<Charge>(device, device.memory_bytes / kContextPart);
}

// Its memory, streams and what is queued there, modules and graphs; also an error, but that a device is
// gone.
void destroy_context(Device& device) {
    const bool gone = device.error == kDeviceLost;
    poison(device, 0);
    device.error = gone ? kDeviceLost : 0;
    for (Stream& stream : device.streams) {
        stream.capture.reset();
        stream.destroyed = &stream != &device.streams.front();
    }
    for (const Allocation& allocation : live_of(device.ordinal)) {
        land_stores(allocation.address, allocation.bytes);
        release(allocation.address);
    }
    device.own.reset();
    device.used_bytes = 0;
    device.contexts++;
    device.peers.clear();
    for (Device& other : machine().devices) other.peers.erase(device.ordinal);
}

}  // namespace

Charge::Charge(Device& device, size_t bytes)
    : device_(&device), bytes_(std::max<size_t>(bytes, 1)), context_(device.contexts) {
    if (bytes_ > device.memory_bytes - device.used_bytes) throw Failure{kOutOfMemory};
    device.used_bytes += bytes_;
}

Charge::~Charge() {
    if (device_->contexts == context_) device_->used_bytes -= bytes_;
}

void refuse_during_capture() {
    bool refused = false;
    for (Device& device : machine().devices)
        for (Stream& stream : device.streams)
            if (stream.capture && (stream.capture->mode == 0 || stream.capture->is_this_threads()))
                stream.capture->invalid = refused = true;
    if (refused) throw Failure{kCaptureUnsupported};
}

}  // namespace emulator

using namespace emulator;

int chaski_emulator_device() { return current_device ? current_device->ordinal : -1; }

bool chaski_emulator_use(int device) {
    Lock lock(machine().mutex);
    current_device = &machine().devices[size_t(device)];
    return current_device->retained > 0;
}

void* chaski_emulator_charge(int device) {
    Lock lock(machine().mutex);
    Device& of = machine().devices[size_t(device)];
    try {
        auto* charge = new Charge(of, of.memory_bytes / kCommunicatorPart);
        if (!of.kept) of.kept = true, of.retained++;
        return charge;
    } catch (const Failure&) {
        return nullptr;
    }
}

void chaski_emulator_refund(void* charge) {
    Lock lock(machine().mutex);
    delete static_cast<Charge*>(charge);
}

ENTRY cuDevicePrimaryCtxRetain(Device** context, int device) {
    return enter("cuDevicePrimaryCtxRetain", Needs::Devices, [&](Lock&) {
        Device& of = device_at(device);
        if (of.error) throw Failure{of.error};
        if (of.retained == 0) make_context(of);
        of.retained++;
        *context = &of;
    });
}

ENTRY cuDevicePrimaryCtxRelease_v2(int device) {
    return enter("cuDevicePrimaryCtxRelease_v2", Needs::Devices, [&](Lock&) {
        Device& of = device_at(device);
        if (of.retained == 0) throw Failure{kInvalidContext};
        if (--of.retained == 0) destroy_context(of);
    });
}

ENTRY cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return kSuccess; }

ENTRY cuCtxSetCurrent(Device* context) {
    return enter("cuCtxSetCurrent", Needs::Devices, [&](Lock&) {
        if (context && context->retained == 0) throw Failure{kContextIsDestroyed};
        current_device = context;
    });
}

ENTRY cuCtxGetCurrent(Device** context) {
    return enter("cuCtxGetCurrent", Needs::Devices, [&](Lock&) { *context = current_device; });
}

ENTRY cuCtxGetDevice(int* device) {
    return enter("cuCtxGetDevice", Needs::Context,
                 [&](Lock&) { *device = current_device->ordinal; });
}

ENTRY cuCtxSynchronize() {
    return enter("cuCtxSynchronize", Needs::Context, [](Lock& lock) {
        refuse_during_capture();
        force(*current_device, lock);
    });
}

ENTRY cuCtxSetFlags(unsigned) { return kSuccess; }
ENTRY cuCtxSetLimit(int, size_t) { return kSuccess; }
ENTRY cuCtxGetLimit(size_t* value, int) { return *value = 0, kSuccess; }
ENTRY cuCtxSetCacheConfig(int) { return kSuccess; }
ENTRY cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    return *least = 0, *greatest = 0, kSuccess;
}

ENTRY cuDeviceCanAccessPeer(int* can, int device, int peer) {
    return enter("cuDeviceCanAccessPeer", Needs::Devices,
                 [&](Lock&) {
                     const int from = device_at(device).ordinal, to = device_at(peer).ordinal;
                     *can = modes().between(from, to) != Reach::None;
                 });
}

ENTRY cuCtxEnablePeerAccess(Device* peer, unsigned) {
    return enter("cuCtxEnablePeerAccess", Needs::Context, [&](Lock&) {
        if (!peer || peer == current_device) throw Failure{kInvalidDevice};
        refuse_during_capture();
        if (modes().between(current_device->ordinal, peer->ordinal) == Reach::None)
            throw Failure{kPeerAccessUnsupported};
        wait_for_all_devices("cuCtxEnablePeerAccess");
        if (!current_device->peers.insert(peer->ordinal).second)
            throw Failure{kPeerAccessAlreadyEnabled};
    });
}

ENTRY cuCtxDisablePeerAccess(Device* peer) {
    return enter("cuCtxDisablePeerAccess", Needs::Context, [&](Lock&) {
        refuse_during_capture();
        if (!peer || !current_device->peers.erase(peer->ordinal))
            throw Failure{kPeerAccessNotEnabled};
    });
}
