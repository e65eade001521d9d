#include "memory.h"

#include "modes.h"
#include "sanitizer.h"

#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

namespace emulator {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;  // what cuMemAlloc promises
constexpr size_t kPoisonBytes = 8 << 20;

// By address; what is freed stays, for messages. Outlives everything, as the machine does.
std::map<uintptr_t, Allocation>& allocations = *new std::map<uintptr_t, Allocation>;

// Forgets what is freed where a new allocation lies: AddressSanitizer's memory is used again.
void forget_below(uintptr_t address, size_t bytes) {
    auto at = allocations.lower_bound(address + bytes);
    while (at != allocations.begin()) {
        auto before = std::prev(at);
        if (before->first + before->second.bytes <= address) break;
        at = allocations.erase(before);
    }
}

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// A file of 0xFF, in memory; -1 where the system has no such files.
int poison_file() {
    static int file = [] {
        int made = memfd_create("chaski-poison", MFD_CLOEXEC);
        if (made < 0 || ftruncate(made, kPoisonBytes) != 0) return -1;
        void* all = mmap(nullptr, kPoisonBytes, PROT_READ | PROT_WRITE, MAP_SHARED, made, 0);
        if (all == MAP_FAILED) return -1;
        std::memset(all, 0xff, kPoisonBytes);
        munmap(all, kPoisonBytes);
        return made;
    }();
    return file;
}

// Fills fresh memory with 0xFF. Of a large one the pages are copies of a file's that are made when
// they are written to: what nobody touches costs nothing.
void poison(char* memory, size_t bytes) {
    char* end = memory + bytes;
    char* page = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(memory), kPage));
    if (bytes < kPoisonBytes || poison_file() < 0) {
        std::memset(memory, 0xff, bytes);
        return;
    }
    std::memset(memory, 0xff, page - memory);
    while (size_t piece = std::min<size_t>((end - page) / kPage * kPage, kPoisonBytes)) {
        void* mapped = mmap(page, piece, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, poison_file(), 0);
        if (mapped == MAP_FAILED) break;  // too many maps: as it is then
        page += piece;
    }
    std::memset(page, 0xff, end - page);
}

// Between two pages that may not be touched, as close to the second as the alignment allows.
char* map(size_t bytes) {
    size_t body = round_up(bytes, kPage);
    void* memory = mmap(nullptr, body + 2 * kPage, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    char* first = static_cast<char*>(memory) + kPage;
    if (mprotect(first, body, PROT_READ | PROT_WRITE) != 0) return nullptr;
    if (modes().fill) poison(first, body);
    return first + body - round_up(bytes, kAlignment);
}

void unmap(const Allocation& allocation) {  // the addresses stay taken
    uintptr_t first = allocation.address / kPage * kPage;
    size_t body = allocation.address + round_up(allocation.bytes, kAlignment) - first;
    mmap(reinterpret_cast<void*>(first), body, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

}  // namespace

void* allocate(size_t bytes, int device, int owner, unsigned flags) {
    void* memory = nullptr;
    if (sanitizer::address) {
        if (posix_memalign(&memory, kAlignment, bytes)) return nullptr;
        if (modes().fill) poison(static_cast<char*>(memory), bytes);
    } else {
        memory = map(bytes);
    }
    auto address = reinterpret_cast<uintptr_t>(memory);
    if (!memory) return nullptr;
    forget_below(address, bytes);
    allocations[address] = {address, bytes, device, owner, flags, false};
    return memory;
}

void adopt(uintptr_t address, size_t bytes, int device) {
    allocations[address] = {address, bytes, device, kHost, 0, false};  // no context frees it
}

bool release(uintptr_t address) {
    auto found = allocations.find(address);
    if (found == allocations.end() || found->second.freed) return false;
    found->second.freed = true;
    if (sanitizer::address)
        std::free(reinterpret_cast<void*>(address));
    else
        unmap(found->second);
    return true;
}

std::vector<Allocation> live_of(int owner) {
    std::vector<Allocation> all;
    for (const auto& [address, allocation] : allocations)
        if (!allocation.freed && allocation.owner == owner) all.push_back(allocation);
    return all;
}

const Allocation* find(uintptr_t address) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return nullptr;
    const Allocation& allocation = std::prev(after)->second;
    return address - allocation.address < allocation.bytes ? &allocation : nullptr;
}

bool live(uintptr_t address, size_t bytes) {
    const Allocation* allocation = find(address);
    return allocation && !allocation->freed &&
           bytes <= allocation->bytes - (address - allocation->address);
}

std::string describe(uintptr_t address) {
    char text[160];
    std::snprintf(text, sizeof text, "0x%zx", size_t(address));
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return text;
    const Allocation& nearest = std::prev(after)->second;
    size_t offset = address - nearest.address;
    if (offset >= nearest.bytes + (1 << 20)) return text;
    const char* whose = nearest.device == kHost ? "pinned host" : "device";
    if (offset < nearest.bytes)
        std::snprintf(text, sizeof text, "0x%zx, byte %zu of %s%s memory of %zu bytes",
                      size_t(address), offset, nearest.freed ? "freed " : "", whose, nearest.bytes);
    else
        std::snprintf(text, sizeof text, "0x%zx, %zu bytes past the end of %s memory of %zu bytes",
                      size_t(address), offset - nearest.bytes, whose, nearest.bytes);
    return text;
}

}  // namespace emulator
