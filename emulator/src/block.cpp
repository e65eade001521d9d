#include "block.h"

#include "fault.h"
#include "grid.h"
#include "modes.h"
#include "preempt.h"

#include <sys/mman.h>
#include <cstdlib>
#include <cstring>
#include <deque>

namespace emulator {

Self* self;
uint64_t progress;

namespace {

Fiber scheduler;  // whoever called Block::run

// Lanes of the warp that runs take turns: each goes over to the next one itself.
struct Round {
    Warp* warp;
    unsigned phase;  // of the block: past a barrier the choice is open again
    unsigned start, turn;
};
Round round;

// The lane whose turn it is, if there is one left in this round.
Thread* next_in_round() {
    Warp& warp = *round.warp;
    const Block& block = *warp.block;
    if (block.phase != round.phase || block.grid->failed()) return nullptr;
    const bool descending = modes().order == Order::Descending;
    while (round.turn < warp.size) {
        const unsigned turn = round.turn++, place = round.start + turn;
        Thread& lane =
            warp.lanes[descending ? warp.size - 1 - turn : place - (place < warp.size ? 0 : warp.size)];
        if (lane.state == State::Ready) return &lane;
    }
    return nullptr;
}

void switch_to_next(Fiber& from) {
    Thread* next = next_in_round();
    self = next;
    switch_fiber(from, next ? next->fiber : scheduler);
}

// Idle warps and blocks, used again oldest first. ThreadSanitizer orders everything that one fiber
// does, so blocks that follow each other must not run on the same fibers or a race between them
// would go unseen. They outlive everything, as the machine does.
std::deque<Warp*>& idle_warps = *new std::deque<Warp*>;
std::deque<Block*>& idle_blocks = *new std::deque<Block*>;
constexpr size_t kIdleBlocks = 8;
constexpr size_t kRotations = sanitizer::thread ? 2 : 1;

void thread_main() {
    enter_fiber();
    for (;;) {
        Thread& thread = current();
        Block& block = *thread.team->block;
        sanitizer::acquire(block.grid->start_token());
        sanitizer::acquire(block.shared.use_before());
        block.grid->run_kernel();
        sanitizer::release(block.shared.use());
        // Shared memory stays the block's until copies that nobody has waited for have ended.
        if (thread.copier)
            sanitizer::as(thread.copier, nullptr,
                          [&] { sanitizer::release(block.shared.use()); });
        sanitizer::release(block.grid->end_token());
        Warp& warp = *thread.team;
        lane_returns(thread);
        if (warp.arrived || block.arrived) {
            for (Warp* other : block.warps)
                for (Thread& waiting : other->lanes)
                    if (waiting.state == (block.arrived ? State::AtBarrier : State::AtMeeting) &&
                        (block.arrived || other == &warp))
                        fail(719, waiting.site,
                             "divergent: " + place(waiting) + ", but thread " +
                                 std::to_string(thread.thread.x) + " has returned");
        }
        warp.finished++;
        block.finished++;
        progress++;
        for (const NamedBarrier& barrier : block.named)
            if (block.finished == block.size && barrier.arrived)
                fail(719, thread.site,
                     "a barrier that " + std::to_string(barrier.arrived) +
                         " threads have come to, and nobody has waited for");
        wait(State::Finished, "", {"", 0});
    }
}

Warp* take_warp(size_t needed) {
    if (idle_warps.size() < needed * kRotations) {
        auto* warp = new Warp;
        for (Thread& lane : warp->lanes) create(lane.fiber, thread_main);
        return warp;
    }
    Warp* warp = idle_warps.front();
    idle_warps.pop_front();
    return warp;
}

void set_up(Thread& thread, Warp& warp, unsigned number, const Block& block) {
    const Index dim = block.grid->launch().block;
    thread.thread = {number % dim.x, number / dim.x % dim.y, number / (dim.x * dim.y)};
    thread.block = block.index;
    thread.block_dim = dim;
    thread.grid_dim = block.grid->launch().grid;
    thread.lane = number % kLanes;
    thread.warp = number / kLanes;
    thread.team = &warp;
    thread.state = State::Ready;
    thread.polled = nullptr;
    thread.has_fenced = false;
    thread.states.clear();
    thread.codes.clear();
    thread.same = 0;
    thread.code = 0;
    thread.seen.clear();
    thread.copies.resize(1);
    thread.copies.front().copies.clear();
}

}  // namespace

Thread& current() { return *static_cast<Thread*>(self); }

void ready(Thread& thread) {
    thread.state = State::Ready;
    thread.team->ready++;
}

void wait(State state, const char* doing, Site site) {
    Thread& me = current();
    me.state = state;
    me.doing = doing;
    me.site = site;
    me.team->ready--;
    switch_to_next(me.fiber);
}

void give_way() { switch_to_next(current().fiber); }

void abandon() {
    current().team->ready--;
    current().state = State::Spinning;
    switch_fiber(current().fiber, scheduler);
    std::abort();
}

std::string place(const Thread& thread) {
    std::string text = "thread " + std::to_string(thread.thread.x);
    if (thread.block_dim.y * thread.block_dim.z > 1)
        text += "," + std::to_string(thread.thread.y) + "," + std::to_string(thread.thread.z);
    return text + " waits in " + thread.doing + " at " + line_of(thread);
}

std::string line_of(const Thread& thread) {
    if (thread.code) return line_of(thread.code);
    return std::string(thread.site.file) + ":" + std::to_string(thread.site.line);
}

Block* Block::begin(Grid& grid, Index index) {
    Block* block;
    if (idle_blocks.size() < kIdleBlocks) {
        block = new Block;
    } else {
        block = idle_blocks.front();
        idle_blocks.pop_front();
    }
    const Launch& launch = grid.launch();
    block->grid = &grid;
    block->index = index;
    block->size = launch.block.x * launch.block.y * launch.block.z;
    block->arrived = block->finished = block->phase = 0;
    block->votes[0] = block->votes[1] = 0;
    block->waited = false;
    block->mbarriers.clear();
    for (NamedBarrier& barrier : block->named) barrier = {};
    block->shared.begin(launch.shared_bytes);
    size_t needed = (block->size + kLanes - 1) / kLanes;
    for (size_t w = 0; w < needed; w++) {
        Warp* warp = take_warp(needed);
        warp->block = block;
        warp->size = warp->ready = std::min<size_t>(kLanes, block->size - w * kLanes);
        warp->arrived = warp->finished = warp->phase = 0;
        warp->sums.clear();
        warp->operands.clear();
        warp->committed = warp->registers = 0;
        warp->fenced = warp->asking = false;
        warp->returned = 0;
        for (Gathering* left : warp->gatherings) delete left;
        warp->gatherings.clear();
        for (unsigned lane = 0; lane < warp->size; lane++)
            set_up(warp->lanes[lane], *warp, w * kLanes + lane, *block);
        block->warps.push_back(warp);
    }
    return block;
}

void Block::end() {
    for (Warp* warp : warps) {
        for (unsigned lane = 0; lane < kLanes; lane++) {
            Thread& thread = warp->lanes[lane];
            if (thread.state != State::Finished) restart(thread.fiber, thread_main);
            thread.state = State::Finished;
        }
        idle_warps.push_back(warp);
    }
    warps.clear();
    shared.end();
    idle_blocks.push_back(this);
}

// The next warp that can run: the first in the order asked for, or a random one.
static Warp* choose(const std::vector<Warp*>& warps) {
    size_t n = warps.size();
    size_t start = modes().order == Order::Shuffled ? next_random() % n : 0;
    for (size_t i = 0; i < n; i++) {
        Warp* warp = warps[modes().order == Order::Descending ? n - 1 - i : (start + i) % n];
        if (warp->ready) return warp;
    }
    return nullptr;
}

bool Block::run() {
    Warp* warp = choose(warps);
    if (!warp) return false;
    adopt(scheduler);
    catch_stack_overflow();
    look_after_kernels();
    const unsigned before = phase;
    while (warp->ready && !grid->failed() && phase == before) {
        const bool shuffled = modes().order == Order::Shuffled;
        round = {warp, before, shuffled ? unsigned(next_random() % warp->size) : 0, 0};
        switch_to_next(scheduler);
        if (!warp->ready && warp->asking && !grid->failed()) answer_active(*warp);
    }
    self = nullptr;
    return true;
}

bool Block::resume(State from) {
    bool any = false;
    for (Warp* warp : warps)
        for (unsigned lane = 0; lane < warp->size; lane++)
            if (warp->lanes[lane].state == from) ready(warp->lanes[lane]), any = true;
    return any;
}

bool Block::has(State state) const {
    for (Warp* warp : warps)
        for (unsigned lane = 0; lane < warp->size; lane++)
            if (warp->lanes[lane].state == state) return true;
    return false;
}

bool Block::hopes() const {
    for (Warp* warp : warps)
        for (unsigned lane = 0; lane < warp->size; lane++) {
            const Thread& thread = warp->lanes[lane];
            if (thread.state == State::Spinning && thread.vain < kVain) return true;
        }
    return false;
}

std::string Block::stuck() const {
    const Thread *first = nullptr, *other = nullptr, *waiting = nullptr;
    for (Warp* warp : warps)
        for (unsigned lane = 0; lane < warp->size; lane++) {
            const Thread& thread = warp->lanes[lane];
            if (thread.state == State::Spinning || thread.state == State::AtDependency) return "";
            if (thread.state == State::AtMbarrier) waiting = &thread;
            if (thread.state != State::AtBarrier && thread.state != State::AtMeeting) continue;
            if (!first)
                first = &thread;
            else if (!other &&
                     (thread.doing != first->doing || thread.site.line != first->site.line))
                other = &thread;
        }
    if (waiting) return "deadlock: " + place(*waiting) + ", whose phase never ends";
    if (!first) return "";
    return "divergent: " + place(*first) +
           (other ? ", but " + place(*other) : ", for threads that do not come");
}

void SharedMemory::begin(size_t dynamic_bytes) {
    constexpr size_t kArenaBytes = 512 << 10;
    if (!arena_ && !sanitizer::address)
        arena_ = static_cast<char*>(mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (arena_ == MAP_FAILED) std::abort();
    used_ = 0;
    next_address_ = 0;
    static_bytes_ = 0;
    dynamic_ = dynamic_bytes ? allocate(dynamic_bytes, 16) : nullptr;
}

void* SharedMemory::allocate(size_t bytes, size_t alignment) {
    constexpr size_t kAlignment =
        16;  // what a kernel may count on: no more, so that it does not count on luck
    alignment = std::max(alignment, kAlignment);
    void* memory;
    if (sanitizer::address) {
        if (posix_memalign(&memory, alignment, bytes)) std::abort();
    } else {
        used_ = (used_ + alignment - 1) / alignment * alignment;
        memory = arena_ + used_;
        used_ += bytes;
    }
    if (modes().fill) __builtin_memset(memory, 0xff, bytes);
    // The low ten bits of an address count: swizzles go by them.
    const auto low = uint32_t(reinterpret_cast<uintptr_t>(memory) % 1024);
    next_address_ = (next_address_ + 1023) / 1024 * 1024 + low;
    spans_.push_back({static_cast<char*>(memory), bytes, next_address_});
    next_address_ += uint32_t(bytes);
    return memory;
}

int64_t SharedMemory::address(const void* memory) const {
    for (const Span& span : spans_) {
        const ptrdiff_t offset = static_cast<const char*>(memory) - span.memory;
        if (offset >= 0 && size_t(offset) < span.bytes) return span.address + offset;
    }
    return -1;
}

char* SharedMemory::at(uint32_t address) const {
    for (const Span& span : spans_)
        if (address >= span.address && address - span.address < span.bytes)
            return span.memory + (address - span.address);
    return nullptr;
}

void* SharedMemory::variable(const void* key, size_t bytes, size_t alignment) {
    for (const Variable& variable : variables_)
        if (variable.key == key) return variable.memory;
    variables_.push_back({key, allocate(bytes, alignment)});
    static_bytes_ += (bytes + 15) / 16 * 16;
    return variables_.back().memory;
}

void SharedMemory::end() {
    if (sanitizer::address) {
        for (const Variable& variable : variables_) std::free(variable.memory);
        std::free(dynamic_);
    }
    variables_.clear();
    spans_.clear();
    uses_++;
}

}  // namespace emulator
