#include "grid.h"

#include "modes.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <numeric>

namespace emulator {
namespace {

// How many blocks may be resident at once when they wait for each other: a large GPU's worth of
// small blocks, as far as there are fibers (ThreadSanitizer allows 8128 threads in a process).
constexpr size_t kMaxResidentThreads = sanitizer::thread ? 4096 : 32768;

// Both outlive everything, as the machine does.
std::string& failure = *new std::string;
std::map<const Kernel*, size_t>& static_of = *new std::map<const Kernel*, size_t>;

}  // namespace

const std::string& last_failure() { return failure; }

void report(const std::string& message) {
    failure = message;
    std::fprintf(stderr, "emulator: %s\n", message.c_str());
}

void fail(int result, Site site, const std::string& what) {
    const Thread& thread = current();
    Grid& grid = *thread.team->block->grid;
    std::string message =
        site.line ? std::string(site.file) + ":" + std::to_string(site.line) + ": " : "";
    message += std::string("kernel ") + grid.launch().kernel->name + ", block " +
               std::to_string(thread.block.x);
    if (thread.grid_dim.y * thread.grid_dim.z > 1)
        message += "," + std::to_string(thread.block.y) + "," + std::to_string(thread.block.z);
    grid.fail(result, message + ", thread " + std::to_string(thread.thread.x) + ": " + what);
    abandon();
    __builtin_unreachable();
}

size_t static_bytes(const Kernel& kernel) {
    const auto found = static_of.find(&kernel);
    return found == static_of.end() ? 0 : found->second;
}

Grid::Grid(const Launch& launch) : launch_(launch) {
    blocks_ = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    for (auto& argument : launch_.arguments) argument_pointers_.push_back(argument.data());
    if (modes().order == Order::Shuffled) {
        order_.resize(blocks_);
        std::iota(order_.begin(), order_.end(), 0);
        for (size_t i = blocks_; i > 1; i--) std::swap(order_[i - 1], order_[next_random() % i]);
    }
    sanitizer::release(&start_token_);
}

Grid::~Grid() {
    for (Block* block : resident_) block->end();
}

void Grid::run_kernel() const { launch_.kernel->run(argument_pointers_.data()); }

void Grid::fail(int result, const std::string& message) {
    if (failed()) return;
    result_ = result;
    std::fflush(stdout);
    report(message);
}

void Grid::has_static(size_t bytes) {
    if (bytes <= static_bytes(*launch_.kernel)) return;
    static_of[launch_.kernel] = bytes;
    if (launch_.shared_limit.allows(bytes, launch_.shared_bytes)) return;
    constexpr int kOutOfResources = 701;
    emulator::fail(kOutOfResources, {"", 0},
                   std::to_string(bytes) + " bytes of static shared memory and " +
                       std::to_string(launch_.shared_bytes) + " of dynamic: more than are allowed");
}

std::string Grid::spinning() const {
    for (const Block* block : resident_)
        for (const Warp* warp : block->warps)
            for (unsigned lane = 0; lane < warp->size; lane++) {
                const Thread& thread = warp->lanes[lane];
                if (thread.state != State::Spinning) continue;
                const std::string at = line_of(thread);
                return (at.empty() ? "" : at + ": ") + "kernel " + launch_.kernel->name + ", block " +
                       std::to_string(block->index.x) + ": deadlock: " + place(thread) +
                       ", and nothing that could end it can run";
            }
    return std::string("kernel ") + launch_.kernel->name + ": deadlock";
}

void Grid::dependency_ended() {
    dependency_ended_ = true;
    sanitizer::release(&dependency_token_);
    for (Block* block : resident_) block->resume(State::AtDependency);
}

bool Grid::start_block() {
    size_t threads = size_t(launch_.block.x) * launch_.block.y * launch_.block.z;
    if (started_ == blocks_ || (resident_.size() + 1) * threads > kMaxResidentThreads) return false;
    uint64_t n = started_++;
    if (modes().order == Order::Descending) n = blocks_ - 1 - n;
    if (modes().order == Order::Shuffled) n = order_[n];
    Index at = {unsigned(n % launch_.grid.x), unsigned(n / launch_.grid.x % launch_.grid.y),
                unsigned(n / (uint64_t(launch_.grid.x) * launch_.grid.y))};
    resident_.push_back(Block::begin(*this, at));
    return true;
}

// The block whose turn it is, among those with something to do.
Block* Grid::next() {
    while (resident_.size() < modes().resident_blocks && start_block()) {
    }
    bool alternate = modes().resident_blocks > 1;
    for (size_t i = 0; i < resident_.size(); i++) {
        Block* block = resident_[(turn_ + i) % resident_.size()];
        for (Warp* warp : block->warps)
            if (warp->ready) {
                turn_ = alternate ? (turn_ + i + 1) % resident_.size() : turn_ + i;
                return block;
            }
    }
    return nullptr;
}

Progress Grid::advance() {
    const bool stalls = launch_.planned_fault == kStalls;
    if (launch_.planned_fault && !stalls && !failed())
        fail(launch_.planned_fault,
             std::string("kernel ") + launch_.kernel->name + ": planned fault");
    if (failed()) return Progress::Failed;
    uint64_t before = progress;
    polls_outside = false;
    for (Block* block : resident_) block->resume(State::Spinning);
    for (;;) {
        Block* block = next();
        if (!block) {
            // Nobody can run. Let another block begin; only then ask those that spin to look again.
            bool dependents = std::any_of(resident_.begin(), resident_.end(),
                                          [](Block* b) { return b->has(State::AtDependency); });
            if ((!dependents || resident_.size() < 4) && start_block()) continue;
            if (resident_.empty() && stalls) {
                polls_outside = true;  // it is meant to: no deadlock
                return Progress::Spinning;
            }
            if (resident_.empty()) {
                std::fflush(stdout);  // what it has printed
                return Progress::Finished;
            }
            const bool hopeful = std::any_of(resident_.begin(), resident_.end(),
                                             [](Block* b) { return b->hopes(); });
            if (progress == before && !hopeful) {
                for (Block* b : resident_)
                    if (b->has(State::Spinning)) return Progress::Spinning;
                return Progress::Waiting;
            }
            before = progress;
            bool spinning = false;
            for (Block* b : resident_) spinning |= b->resume(State::Spinning);
            if (!spinning) return Progress::Waiting;
            continue;
        }
        block->run();
        if (failed()) return Progress::Failed;
        if (block->done()) {
            // The kernel after this one counts on all that came before having ended.
            if (launch_.programmatic && !block->waited) {
                fail(719, std::string("kernel ") + launch_.kernel->name + ", block " +
                              std::to_string(block->index.x) +
                              ": returns without grid_dependency_wait" +
                              (launch_.can_wait ? "" : ", which its image's architecture has not"));
                return Progress::Failed;
            }
            resident_.erase(std::find(resident_.begin(), resident_.end(), block));
            turn_ = 0;
            block->end();
        } else if (std::none_of(block->warps.begin(), block->warps.end(),
                                [](Warp* w) { return w->ready; })) {
            std::string reason = block->stuck();
            if (reason.empty()) continue;
            fail(719, std::string("kernel ") + launch_.kernel->name + ", block " +
                          std::to_string(block->index.x) + ": " + reason);
            return Progress::Failed;
        }
    }
}

}  // namespace emulator
