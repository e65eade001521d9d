// What the instructions of lib/ptx.cuh mean; those of lib/ptx_hopper.cuh are in hopper.cpp and wgmma.cpp.
#include "grid.h"
#include "machine.h"
#include "modes.h"
#include "tensor.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace emulator {
namespace {

constexpr int kLaunchFailed = 719, kMisaligned = 716;

}  // namespace

// All lanes of the warp come here, each with its payload; returns everybody's. The last one to come
// may work on them first. Orders no memory: the registers of a shuffle do not travel through any.
Payload* meet(const char* what, Site site, const Payload& mine, void (*last)(Payload*)) {
    Thread& me = current();
    Warp& warp = *me.team;
    for (unsigned lane = 0; warp.arrived && lane < warp.size; lane++) {
        const Thread& other = warp.lanes[lane];
        if (other.state != State::AtMeeting) continue;
        if (other.doing != what || other.site.line != site.line)
            fail(kLaunchFailed, site,
                 std::string("divergent: in ") + what + ", but " + place(other));
        break;
    }
    if (warp.finished)
        fail(kLaunchFailed, site,
             std::string("divergent: in ") + what + ", but other lanes have returned");
    Payload* all = warp.payload[warp.phase % 2];
    all[me.lane] = mine;
    me.polled = nullptr;
    if (++warp.arrived < warp.size) {
        wait(State::AtMeeting, what, site);
        return all;
    }
    if (last) last(all);
    warp.arrived = 0;
    warp.phase++;
    progress++;
    for (unsigned lane = 0; lane < warp.size; lane++) warp.lanes[lane].state = State::Ready;
    warp.ready = warp.size;
    return all;
}

// Looked up: without the instruction, which not every machine has, a conversion is a slow library
// call.
float half_to_float(uint16_t bits) {
    static const std::vector<float> values = [] {
        std::vector<float> all(1 << 16);
        for (unsigned i = 0; i < all.size(); i++) {
            const uint16_t narrow = uint16_t(i);
            _Float16 half;
            std::memcpy(&half, &narrow, sizeof half);
            all[i] = float(half);
        }
        return all;
    }();
    return values[bits];
}

float bf16_to_float(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

namespace {

// The whole product of a warp, from everybody's registers. Words 0-3: A, 4-5: B, 6-9: the sum.
template <float (*to_float)(uint16_t)>
void multiply(Payload* all) {
    double a[16][16], b[16][8];
    for (unsigned lane = 0; lane < kLanes; lane++) {
        const unsigned g = lane / 4, t = lane % 4;
        const uint32_t* words = all[lane].words;
        for (unsigned half = 0; half < 2; half++) {
            auto at = [&](unsigned word) {
                return double(to_float(uint16_t(words[word] >> 16 * half)));
            };
            for (unsigned word = 0; word < 4; word++)
                a[g + word % 2 * 8][2 * t + half + word / 2 * 8] = at(word);
            for (unsigned word = 0; word < 2; word++) b[2 * t + half + word * 8][g] = at(4 + word);
        }
    }
    bool finite = true;
    for (const auto& row : b)
        for (double factor : row) finite &= std::abs(factor) <= std::numeric_limits<float>::max();
    for (unsigned row = 0; row < 16; row++) {
        bool zeros = finite;
        for (double factor : a[row]) zeros &= factor == 0;
        if (zeros) continue;  // of a token that is not there: it would add zeros
        // Two columns lie with each of four lanes.
        auto words = [&](unsigned t) { return &all[row % 8 * 4 + t].words[6 + row / 8 * 2]; };
        float c[8];
        for (unsigned t = 0; t < 4; t++) std::memcpy(&c[2 * t], words(t), 2 * sizeof *c);
        add_products(a[row], b, 8, c);
        for (unsigned t = 0; t < 4; t++) std::memcpy(words(t), &c[2 * t], 2 * sizeof *c);
    }
}

}  // namespace

void sync_threads(Site site) {
    Thread& me = current();
    Block& block = *me.team->block;
    const char* what = "__syncthreads";
    if (block.finished)
        fail(kLaunchFailed, site,
             "divergent: in __syncthreads, but " + std::to_string(block.finished) + " of " +
                 std::to_string(block.size) + " threads have returned");
    for (Warp* warp : block.warps) {  // the first waiting thread stands for all
        if (!block.arrived) break;
        const Thread& other = warp->lanes[0];
        if (other.state == State::AtBarrier && other.site.line != site.line)
            fail(kLaunchFailed, site, "divergent: in __syncthreads, but " + place(other));
    }
    char* token = &block.token[block.phase % 2];
    sanitizer::release(token);
    me.polled = nullptr;
    if (++block.arrived < block.size) {
        wait(State::AtBarrier, what, site);
    } else {
        block.arrived = 0;
        block.phase++;
        block.votes[block.phase % 2] = 0;  // of the last but one: everybody has read them
        progress++;
        block.resume(State::AtBarrier);
        give_way();  // who came last has no right to go on first
    }
    sanitizer::acquire(token);
}

unsigned sync_threads_count(bool vote, Site site) {
    unsigned& votes = current().team->block->votes[current().team->block->phase % 2];
    votes += vote;
    sync_threads(site);
    return votes;
}

uint32_t shuffle(uint32_t value, unsigned from_lane, Site site) {
    Payload mine = {};
    mine.words[0] = value;
    const Payload* all = meet("a shuffle", site, mine);
    if (from_lane >= current().team->size)
        fail(kLaunchFailed, site,
             "shuffle from lane " + std::to_string(from_lane) + ", which does not exist");
    return all[from_lane].words[0];
}

uint32_t ballot(bool vote, Site site) {
    Payload mine = {};
    mine.words[0] = vote;
    const Payload* all = meet("a vote", site, mine);
    uint32_t result = 0;
    for (unsigned lane = 0; lane < current().team->size; lane++)
        result |= all[lane].words[0] << lane;
    return result;
}

void load_matrices(uint32_t* registers, unsigned count, bool transposed, const void* row,
                   Site site) {
    const unsigned lane = current().lane;
    current().site = site;  // for a fault in here
    if (lane < 8 * count) check_aligned(row, 16, site);
    Payload mine = {};
    mine.row = row;
    const Payload* all = meet("ldmatrix", site, mine);
    if (current().team->size < kLanes)
        fail(kLaunchFailed, site, "ldmatrix in a warp of fewer than 32 threads");
    sanitizer::Frame frame(__builtin_return_address(0));
    for (unsigned m = 0; m < count; m++) {
        auto element = [&](unsigned r, unsigned c) {
            const char* at = static_cast<const char*>(all[8 * m + r].row) + 2 * c;
            sanitizer::read2(at);
            uint16_t bits;
            std::memcpy(&bits, at, 2);
            return bits;
        };
        const unsigned r = lane / 4, c = lane % 4 * 2;
        const uint32_t low = transposed ? element(c, r) : element(r, c);
        const uint32_t high = transposed ? element(c + 1, r) : element(r, c + 1);
        registers[m] = low | high << 16;
    }
}

void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Half type,
                      Site site) {
    Payload mine = {};
    std::memcpy(mine.words, a, sizeof a);
    std::memcpy(mine.words + 4, b, sizeof b);
    std::memcpy(mine.words + 6, d, sizeof d);
    if (current().team->size < kLanes)
        fail(kLaunchFailed, site, "mma in a warp of fewer than 32 threads");
    const Payload* all = meet(
        "mma", site, mine, type == Half::F16 ? multiply<half_to_float> : multiply<bf16_to_float>);
    std::memcpy(d, all[current().lane].words + 6, sizeof d);
}

void copy_async(void* to, const void* from, bool valid, Site site) {
    Thread& me = current();
    me.site = site;  // for a fault in here
    check_aligned(to, 16, site);
    if (valid) {
        check_aligned(from, 16, site);
        sanitizer::Frame frame(__builtin_return_address(0));
        sanitizer::read(from, 16);
        (void)*static_cast<const volatile char*>(from);
    }
    if (sanitizer::thread) {
        if (!me.copier) me.copier = sanitizer::create();
        sanitizer::release(&me.copier_token);
        sanitizer::as(me.copier, __builtin_return_address(0), [&] {
            sanitizer::acquire(&me.copier_token);
            sanitizer::write(to, 16);
        });
    } else {
        sanitizer::write(to, 16);
    }
    __builtin_memset(to, 0xff, 16);  // NaN until waited for
    me.copies.back().copies.push_back({to, from, valid});
}

void copy_commit() {
    Thread& me = current();
    const char* token = &me.copies.back().token;
    if (me.copier) sanitizer::as(me.copier, nullptr, [&] { sanitizer::release(token); });
    me.copies.emplace_back();
}

void copy_wait(unsigned groups_left) {
    auto& groups = current().copies;
    while (groups.size() > groups_left + 1) {
        for (const AsyncCopy& copy : groups.front().copies)
            if (copy.valid)
                __builtin_memcpy(copy.to, copy.from, 16);
            else
                __builtin_memset(copy.to, 0, 16);
        sanitizer::acquire(&groups.front().token);
        groups.pop_front();
    }
}

void* shared_variable(const void* key, size_t bytes, size_t alignment) {
    Block& block = *current().team->block;
    void* variable = block.shared.variable(key, bytes, alignment);
    block.grid->has_static(block.shared.static_bytes());
    return variable;
}

void* dynamic_shared_memory() { return current().team->block->shared.dynamic(); }

void poll(const void* address, Site site) {
    if (current().polled == address) pause(site);
    current().polled = address;
}

void pause(Site site) {
    current().vain = kVain;
    wait(State::Spinning, "a spin loop", site);
}

void poll_outside() { current().team->block->grid->polls_outside = true; }

void poll_peers() {
    for (const Device& device : machine().devices)
        if (!device.peers.empty()) return poll_outside();
}

void progressed() { progress++; }

void dependency_wait() {
    Block& block = *current().team->block;
    Grid& grid = *block.grid;
    if (!grid.launch().can_wait) return;  // its image has no such instruction
    block.waited = true;
    if (!grid.dependency_has_ended()) wait(State::AtDependency, "grid_dependency_wait", {"", 0});
    sanitizer::acquire(grid.dependency_token());
}

// The dependent is started as early as it may be in any case.
void dependency_launch() {}

void check_aligned(const void* address, size_t alignment, Site site) {
    if (reinterpret_cast<uintptr_t>(address) % alignment)
        fail(kMisaligned, site, "misaligned access of " + std::to_string(alignment) + " bytes");
}

}  // namespace emulator
