// A launched kernel: its blocks, one after another or several at a time.
#pragma once
#include "block.h"

#include <algorithm>
#include <deque>
#include <memory>

namespace emulator {

// A kernel's argument, aligned as the most demanding type of them is.
struct alignas(128) ArgumentLine {
    char bytes[128];
};
struct Argument {
    std::vector<ArgumentLine> lines;
    size_t bytes;
    char* data() { return lines.data()->bytes; }
    const char* data() const { return lines.data()->bytes; }
    size_t size() const { return bytes; }
};

// Shared memory that a block may have: of its own and dynamic. More than 48 KiB of both must have been
// asked for; the largest dynamic part and the block's own must fit what a block can have. A block's own is
// at most 48 KiB.
constexpr size_t kDefaultShared = 48 << 10;
struct SharedLimit {
    size_t dynamic_bytes, block_bytes;  // asked for; that there are
    size_t most_dynamic(size_t own) const {
        return std::max(dynamic_bytes, kDefaultShared - std::min(own, kDefaultShared));
    }
    bool allows(size_t own, size_t dynamic) const {
        return own <= kDefaultShared && own + dynamic_bytes <= block_bytes &&
               dynamic <= most_dynamic(own);
    }
};

// A kernel's own shared memory, as far as its blocks have come.
size_t static_bytes(const Kernel& kernel);

// Everything a launch needs; arguments are copied when it is queued, as the driver does.
struct Launch {
    const Kernel* kernel;
    Index grid, block;
    size_t shared_bytes;
    SharedLimit shared_limit;
    std::vector<Argument> arguments;
    bool programmatic;  // may begin before the kernel queued before it has ended
    bool can_wait;      // grid_dependency_wait waits
    int planned_fault;  // 0, or what it fails with while it runs, or kStalls
};

// So often nothing has changed for a thread that looks again and again: it waits in vain, unless
// somebody else gets on.
constexpr unsigned kVain = 4096;

enum class Progress { Finished, Waiting, Spinning, Failed };

class Grid {
public:
    explicit Grid(const Launch& launch);
    ~Grid();

    // Runs until it has ended or cannot go on: Waiting for its dependency, or Spinning on something
    // outside.
    Progress advance();
    void dependency_ended();  // lets grid_dependency_wait return

    const Launch& launch() const { return launch_; }
    void run_kernel() const;  // on a thread's fiber
    void fail(int result, const std::string& message);
    void has_static(size_t bytes);  // a block has come to so much shared memory of its own
    std::string spinning() const;  // who spins where, when that turns out to be for ever
    bool failed() const { return result_ != 0; }
    int result() const { return result_; }
    bool dependency_has_ended() const { return dependency_ended_; }
    const void* start_token() const { return &start_token_; }
    const void* end_token() const { return &end_token_; }
    const void* dependency_token() const { return &dependency_token_; }

    // Since it last went on, some thread has looked at what other devices or the host may write.
    bool polls_outside = false;

    // preempt.cpp: time, whether some thread did not give way, and code that goes round for ever.
    uint64_t ticks = 0;
    bool somebody_loops = false;
    std::set<uintptr_t> circles;

private:
    bool start_block();
    Block* next();
    Launch launch_;
    std::vector<void*> argument_pointers_;
    uint64_t blocks_, started_ = 0;
    std::vector<uint32_t> order_;  // of blocks, when shuffled
    std::deque<Block*> resident_;
    size_t turn_ = 0;
    bool dependency_ended_ = false;
    int result_ = 0;
    char start_token_, end_token_, dependency_token_;
};

// The last failure in words, also written to stderr when it happens.
const std::string& last_failure();
void report(const std::string& message);

}  // namespace emulator
