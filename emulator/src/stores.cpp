// Fences, and relaxed accesses for the whole system by way of which they order what threads do: who has
// seen a store, and fences then, comes after what was done before the fence before the store.
//
// CHASKI_EMULATE_STORES=late: relaxed stores for the whole system, seen by others as late and in as
// odd an order as PTX allows. A word waits here from its store until a fence for the system follows on
// its device, or until it has been looked for some times; each word for itself, also of a vector.
//
// If another device stores to a word that still waits here, nothing orders the two: the older one may
// be what stays. What ranks tell each other must not be lost so, so that is an error.
#include "grid.h"
#include "memory.h"
#include "modes.h"
#include "stores.h"

#include <cstring>
#include <iterator>
#include <map>

namespace emulator {

int running_device;

namespace {

struct Late {
    uint64_t value;
    unsigned bytes, looks;  // how often it is looked for in vain
    int device;
    const Grid* grid;
    Site site;
};

constexpr int kLaunchFailed = 719;
constexpr unsigned kMostLooks = 6;

// By address. Outlives everything, as the machine does.
using Stores = std::map<uintptr_t, Late>;
Stores& waiting = *new Stores;

Stores::iterator land(Stores::iterator store) {
    std::memcpy(reinterpret_cast<void*>(store->first), &store->second.value, store->second.bytes);
    progress++;
    return waiting.erase(store);
}

// By address: the last fence before the last store. An older fence's name may have come to mean a
// newer one since, if it is the fourth: that may hide a race, but never invents one.
std::map<uintptr_t, const char*>& fenced = *new std::map<uintptr_t, const char*>;

std::map<uintptr_t, std::set<const char*>>& ordered =
    *new std::map<uintptr_t, std::set<const char*>>;

const Grid* running_grid() { return current().team->block->grid; }

}  // namespace

// A device's store into memory of another one, which it was promised to reach.
static bool is_lost(const void* to) {
    if (modes().reach != Reach::Broken && modes().pairs.empty()) return false;
    const Allocation* target = find(reinterpret_cast<uintptr_t>(to));
    return target && target->device != kHost &&
           modes().between(running_device, target->device) == Reach::Broken;
}

bool store_late(void* to, uint64_t value, unsigned bytes, Site site) {
    const auto address = reinterpret_cast<uintptr_t>(to);
    const Thread& me = current();
    if (is_lost(to)) return true;
    if (sanitizer::thread) fenced[address] = &me.fences[me.last_fence];
    if (!modes().late_stores) return false;
    const auto before = waiting.find(address);
    if (before != waiting.end() && before->second.device != running_device) {
        const Late& other = before->second;
        fail(kLaunchFailed, site,
             "device " + std::to_string(other.device) + " has stored there before, at " +
                 other.site.file + ":" + std::to_string(other.site.line) +
                 ", and no fence_system orders the two: what is stored now may be lost");
    }
    const auto looks = unsigned(next_random() % (kMostLooks + 1));
    waiting[address] = {value, bytes, looks, running_device, running_grid(), site};
    return true;
}

void look(const void* from) {
    const auto address = reinterpret_cast<uintptr_t>(from);
    if (sanitizer::thread) {
        const auto fence = fenced.find(address);
        if (fence != fenced.end()) current().seen.insert(fence->second);
    }
    const auto found = waiting.find(address);
    if (found == waiting.end()) return;
    Late& late = found->second;
    progress++;
    // The device's own later kernels come after it.
    const bool behind = late.device == running_device && late.grid != running_grid();
    if (behind || late.looks == 0)
        land(found);
    else
        late.looks--;
}

void fence() {
    Thread& me = current();
    for (const char* other : me.seen) sanitizer::acquire(other);
    me.seen.clear();
    me.has_fenced = true;
    me.last_fence = (me.last_fence + 1) % std::size(me.fences);
    sanitizer::release(&me.fences[me.last_fence]);
}

// What is known of the order in which atomics of relaxed order were done: an atomic comes after the fences
// that were before earlier atomics on its address.
void before_atomic(const void* address) {
    if (!sanitizer::thread) return;
    const auto before = ordered.find(reinterpret_cast<uintptr_t>(address));
    if (before == ordered.end()) return;
    for (const char* fence : before->second) sanitizer::acquire(fence);
}

static void after(const void* address, bool changed, Site site, void* code) {
    Thread& me = current();
    if (sanitizer::thread && me.has_fenced)
        ordered[reinterpret_cast<uintptr_t>(address)].insert(&me.fences[me.last_fence]);
    if (changed) {
        progress++;
        me.polled = nullptr;
        return;
    }
    me.vain = me.polled == address ? me.vain + 1 : 0;
    me.polled = address;
    if (!me.vain) return;
    me.code = reinterpret_cast<uintptr_t>(code);
    wait(State::Spinning, "a loop", site);
    me.code = 0;
}

void after_atomic(const void* address, bool changed, Site site) {
    after(address, changed, site, nullptr);
}

#if defined(EMULATOR_THREAD)
// Volatile accesses are relaxed ones (PTX ISA, ld.volatile): no race among themselves or with atomics. A
// loop of them spins.
template <class Load>
static void read_volatile(void* address, void* caller, Load load) {
    before_atomic(address);
    load(address);
    if (self) after(address, false, {"", 0}, caller);
}
template <class Add>
static void write_volatile(void* address, Add add) {
    add(address);
    if (self) after(address, true, {"", 0}, nullptr);
}
#endif

void land_stores() {
    for (auto store = waiting.begin(); store != waiting.end();)
        store = store->second.device == running_device ? land(store) : std::next(store);
}

void land_stores(uintptr_t address, size_t bytes) {
    auto store = waiting.lower_bound(address);
    while (store != waiting.end() && store->first < address + bytes) store = land(store);
}

}  // namespace emulator

#if defined(EMULATOR_THREAD)
// What g++ calls before volatile accesses. The runtime's own atomics tell it of them: the kernel's code
// loads and stores by itself.
extern "C" {
enum { kRelaxed };
uint8_t __tsan_atomic8_load(const volatile void*, int);
uint16_t __tsan_atomic16_load(const volatile void*, int);
uint32_t __tsan_atomic32_load(const volatile void*, int);
uint64_t __tsan_atomic64_load(const volatile void*, int);
uint8_t __tsan_atomic8_fetch_add(volatile void*, uint8_t, int);
uint16_t __tsan_atomic16_fetch_add(volatile void*, uint16_t, int);
uint32_t __tsan_atomic32_fetch_add(volatile void*, uint32_t, int);
uint64_t __tsan_atomic64_fetch_add(volatile void*, uint64_t, int);

#define VOLATILE(bytes, bits)                                                                     \
    __attribute__((visibility("default"))) void __tsan_volatile_read##bytes(void* address) {      \
        void* const caller = __builtin_return_address(0);                                         \
        emulator::sanitizer::Frame frame(caller);                                                 \
        emulator::read_volatile(address, caller,                                                  \
                                [](void* p) { __tsan_atomic##bits##_load(p, kRelaxed); });        \
    }                                                                                             \
    __attribute__((visibility("default"))) void __tsan_volatile_write##bytes(void* address) {     \
        emulator::sanitizer::Frame frame(__builtin_return_address(0));                                      \
        emulator::write_volatile(                                                                 \
            address, [](void* p) { __tsan_atomic##bits##_fetch_add(p, 0, kRelaxed); });           \
    }
VOLATILE(1, 8)
VOLATILE(2, 16)
VOLATILE(4, 32)
VOLATILE(8, 64)
#undef VOLATILE
}
#endif
