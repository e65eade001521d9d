// What Hopper's own instructions mean: barriers that count arrivals and bytes, boxes that the copy
// engine brings, shares of registers; products of a warpgroup are in wgmma.cpp. All that is done on
// the side is done as late as it may be seen, and its targets are NaN until then.
#include "entry.h"
#include "hopper.h"

#include <algorithm>
#include <cstring>

namespace emulator {
namespace {

Mbarrier& mbarrier(void* barrier, Site site) {
    need_hopper(site);
    auto& all = current().team->block->mbarriers;
    auto found = all.find(barrier);
    if (found == all.end()) fail(kLaunchFailed, site, "an mbarrier before mbarrier_init");
    sanitizer::read(barrier, sizeof(uint64_t));
    return found->second;
}

void end_phase_if_complete(Mbarrier& barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.pending = barrier.count;
    barrier.phase ^= 1;
    barrier.brought.insert(barrier.brought.end(), barrier.under_way.begin(),
                           barrier.under_way.end());
    barrier.under_way.clear();
    progress++;
    current().team->block->resume(State::AtMbarrier);
}

// Calls `row(to, from, bytes)` for what of a box's rows lies in the matrix; from null: it does not.
template <class Row>
void for_each_row(const BoxCopy& copy, Row row) {
    const TensorMap& map = copy.map;
    for (uint32_t r = 0; r < map.box_rows; r++) {
        const uint64_t at = uint64_t(copy.row) + r;
        const uint64_t left = copy.column < map.columns ? map.columns - copy.column : 0;
        const uint64_t columns = at < map.rows ? std::min<uint64_t>(left, map.box_columns) : 0;
        const uintptr_t from =
            map.address + at * map.row_bytes + uint64_t(copy.column) * map.element_bytes;
        row(copy.to + r * 128, columns ? reinterpret_cast<const char*>(from) : nullptr,
            size_t(columns * map.element_bytes));
    }
}

}  // namespace

void barrier_init(void* barrier, uint32_t arrivals, Site site) {
    need_hopper(site);
    check_aligned(barrier, 8, site);
    if (arrivals == 0) fail(kLaunchFailed, site, "an mbarrier for no arrivals");
    sanitizer::write(barrier, sizeof(uint64_t));
    Mbarrier& made = current().team->block->mbarriers[barrier];
    made.count = made.pending = arrivals;
    made.maker = &current();
}

void tell_of_barriers() {
    for (auto& [address, barrier] : current().team->block->mbarriers)
        if (barrier.maker == &current()) barrier.maker = nullptr;
}

void tell_of_writes() { sanitizer::release(&current().team->block->told); }

void barrier_arrive(void* barrier, uint32_t expected_bytes, Site site) {
    Mbarrier& all = mbarrier(barrier, site);
    sanitizer::release(&all.token[all.phase]);
    all.bytes += expected_bytes;
    all.pending--;
    end_phase_if_complete(all);
}

void barrier_wait(void* barrier, uint32_t parity, Site site) {
    Mbarrier& all = mbarrier(barrier, site);
    while (all.phase == parity) wait(State::AtMbarrier, "mbarrier_wait", site);
    sanitizer::acquire(&all.token[parity]);
    for (const BoxCopy& copy : all.brought) copy.land();
    all.brought.clear();
}

void BoxCopy::land() const {
    for_each_row(*this, [](char* to, const char* from, size_t bytes) {
        char row[128] = {};
        if (from) std::memcpy(row, from, bytes);
        for (size_t chunk = 0; chunk < 128; chunk += 16)
            std::memcpy(reinterpret_cast<char*>(swizzled(reinterpret_cast<uintptr_t>(to + chunk))),
                        row + chunk, 16);
    });
}

void copy_box(void* to, const void* map, uint32_t row, uint32_t column, void* barrier,
              Site site) {
    Thread& me = current();
    me.site = site;  // for a fault in here
    Mbarrier& all = mbarrier(barrier, site);
    check_aligned(to, 128, site);
    if (all.maker) fail(kLaunchFailed, site, "an mbarrier without fence_mbarrier_init");
    BoxCopy copy = {static_cast<char*>(to), {}, row, column};
    std::memcpy(&copy.map, map, sizeof copy.map);
    if (copy.map.magic != kTensorMap)
        fail(kLaunchFailed, site, "a TensorMap that cuTensorMapEncodeTiled did not make");
    const uint32_t bytes = copy.map.box_rows * 128;
    const auto touch = [&] {
        for_each_row(copy, [](char*, const char* from, size_t bytes) {
            if (!from) return;
            sanitizer::read(from, bytes);
            (void)*static_cast<const volatile char*>(from);
            (void)*static_cast<const volatile char*>(from + bytes - 1);
        });
        sanitizer::write(to, bytes);
    };
    if (sanitizer::thread) {
        if (!me.copier) me.copier = sanitizer::create();
        sanitizer::release(&me.copier_token);
        sanitizer::as(me.copier, __builtin_return_address(0), [&] {
            sanitizer::acquire(&me.copier_token);
            touch();
            sanitizer::release(&all.token[all.phase]);
            sanitizer::release(&me.team->block->told);
        });
    } else {
        touch();
    }
    std::memset(to, 0xff, bytes);
    all.under_way.push_back(copy);
    all.bytes -= bytes;
    end_phase_if_complete(all);
}

uint32_t shared_address(const void* shared, Site site) {
    const int64_t address = current().team->block->shared.address(shared);
    if (address < 0) fail(kLaunchFailed, site, "an address outside of shared memory");
    return uint32_t(address);
}

NamedBarrier& named_barrier(uint32_t number, uint32_t threads, Site site) {
    auto& all = current().team->block->named;
    if (number == 0 || number >= std::size(all) || threads == 0 || threads % kLanes)
        fail(kLaunchFailed, site, "a barrier of number " + std::to_string(number) + " for " +
                                      std::to_string(threads) + " threads");
    return all[number];
}

// Returns the phase that the thread has come to. Who comes twice to a phase has not been waited for.
unsigned come(NamedBarrier& barrier, uint32_t threads, Site site) {
    const Thread& me = current();
    if (barrier.come.empty()) barrier.come.resize(me.team->block->size), barrier.threads = threads;
    if (barrier.threads != threads)
        fail(kLaunchFailed, site, "a barrier that others have come to as one for " +
                                      std::to_string(barrier.threads) + " threads");
    const unsigned thread = me.warp * kLanes + me.lane;
    if (barrier.come[thread])
        fail(kLaunchFailed, site, "a barrier that the same thread has come to before, and nobody "
                                  "has waited for");
    barrier.come[thread] = true;
    const unsigned phase = barrier.phase;
    sanitizer::release(&barrier.token[phase % 2]);
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        barrier.come.clear();
        barrier.phase++;
        progress++;
        current().team->block->resume(State::AtMbarrier);
    }
    return phase;
}

void named_sync(uint32_t number, uint32_t threads, Site site) {
    NamedBarrier& barrier = named_barrier(number, threads, site);
    const unsigned phase = come(barrier, threads, site);
    while (barrier.phase == phase) wait(State::AtMbarrier, "named_barrier_sync", site);
    sanitizer::acquire(&barrier.token[phase % 2]);
}

void named_arrive(uint32_t number, uint32_t threads, Site site) {
    come(named_barrier(number, threads, site), threads, site);
}

void change_registers(unsigned registers, bool more, Site site) {
    need_hopper(site);
    Warp& warp = *current().team;
    const Block& block = *warp.block;
    const std::string wish = "setmaxnreg of " + std::to_string(registers) + " registers";
    if (registers % 8 || registers < 24 || registers > 256) fail(kLaunchFailed, site, wish);
    meet("setmaxnreg", site, {});
    // At first all threads have an equal share; what nobody gives up is waited for for ever.
    const unsigned share = std::min(65536 / block.size, 255u) / 8 * 8;
    if (!warp.registers && (more ? registers < share : registers > share))
        fail(kLaunchFailed, site, wish + " where each thread has " + std::to_string(share));
    warp.registers = registers;
    size_t all = 0;
    for (const Warp* each : block.warps) all += each->registers;
    const bool settled = std::none_of(block.warps.begin(), block.warps.end(),
                                      [](const Warp* each) { return each->registers == 0; });
    if (settled && all > share * block.warps.size())
        fail(kLaunchFailed, site, wish + ", which others have not given up");
}

}  // namespace emulator

using namespace emulator;

// Two dimensions of 16-bit numbers, boxes with rows of 128 bytes, swizzled over these: what else the
// driver can do is not there.
ENTRY cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address,
                             const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                             const uint32_t* element_strides, int interleave, int swizzle, int,
                             int fill) {
    return enter("cuTensorMapEncodeTiled", Needs::Nothing, [&](Lock&) {
        if (!map || reinterpret_cast<uintptr_t>(map) % 64 || !address ||
            reinterpret_cast<uintptr_t>(address) % 16)
            throw Failure{kInvalidValue};
        const bool half = type == 6 || type == 9;  // FLOAT16, BFLOAT16
        if (!half || rank != 2 || interleave || swizzle != 3 || fill) throw Failure{kNotSupported};
        for (uint32_t d = 0; d < 2; d++)
            if (!sizes[d] || sizes[d] > uint64_t(1) << 32 || !box[d] || box[d] > 256 ||
                element_strides[d] != 1)
                throw Failure{kInvalidValue};
        if (strides[0] % 16 || strides[0] >= uint64_t(1) << 40 || box[0] * 2 > 128)
            throw Failure{kInvalidValue};
        if (box[0] * 2 != 128) throw Failure{kNotSupported};
        const TensorMap made = {kTensorMap, reinterpret_cast<uintptr_t>(address), sizes[0], sizes[1],
                                strides[0], box[0], box[1], 2};
        std::memset(map, 0, 128);
        std::memcpy(map, &made, sizeof made);
    });
}
