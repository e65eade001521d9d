// A block of threads: warps, lanes, barriers, shared memory, and the order in which they run.
#pragma once
#include "../include/emulator.h"
#include "fiber.h"

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace emulator {

class Grid;
struct Warp;
struct Block;

enum class State : uint8_t {
    Ready,
    AtBarrier,
    AtMbarrier,
    AtMeeting,
    Spinning,
    AtDependency,
    Finished
};

struct AsyncCopy {
    void* to;
    const void* from;
    bool valid;
};

struct CopyGroup {
    std::vector<AsyncCopy> copies;
    char token = 0;  // what ThreadSanitizer's copier has written so far
};

struct Thread : Self {
    Fiber fiber;
    State state = State::Finished;
    Site site = {"", 0};           // where it waits
    const char* doing = "";        // and in what
    const void* polled = nullptr;  // the last address of a possible spin loop
    unsigned vain = 0;             // how often in a row it was looked at, and nothing had changed
    uint32_t active = 0;           // what __activemask returns
    // preempt.cpp: where it had to give way, and of a loop that it may be in its registers, how often they
    // were the same, and its code.
    uintptr_t code = 0;
    std::set<uint64_t> states;
    unsigned same = 0;
    std::set<uintptr_t> codes;
    Warp* team = nullptr;
    std::deque<CopyGroup> copies;  // cp.async groups, oldest first; the last one is open
    void* copier = nullptr;  // ThreadSanitizer's idea of who writes what they bring: ordered with
                             // us by waits only
    char copier_token = 0;
    // Fences, and what they order by way of relaxed accesses for the system (stores.cpp):
    // ThreadSanitizer's names of the last ones, which of them came last, and those of other threads
    // that came before stores which this one has seen since.
    char fences[4];
    unsigned last_fence = 0;
    bool has_fenced = false;
    std::set<const char*> seen;
};

// A matrix in global memory as cuTensorMapEncodeTiled describes it: our own layout of its 128 bytes.
// Swizzled over 128 bytes, which is what a row of a box has.
struct TensorMap {
    uint64_t magic;  // kTensorMap
    uintptr_t address;
    uint64_t columns, rows, row_bytes;
    uint32_t box_columns, box_rows, element_bytes;
};
constexpr uint64_t kTensorMap = 0x70616d726f736e74;

struct BoxCopy {
    char* to;
    TensorMap map;
    uint32_t row, column;
    void land() const;  // writes what it brings
};

struct Mbarrier {
    uint32_t count, pending;  // arrivals of a phase, and how many are still missing
    int64_t bytes = 0;        // expected and not yet brought
    uint32_t phase = 0;
    const Thread* maker;    // while TMA does not know of it
    std::vector<BoxCopy> under_way, brought;  // of this phase; of ended ones, until somebody looks
    char token[2];                            // ThreadSanitizer's names of phases, by parity
};

// Of some of the block's warps.
struct NamedBarrier {
    std::vector<bool> come;  // threads of this phase; empty: none yet
    uint32_t threads, arrived = 0, phase = 0;
    char token[2];  // ThreadSanitizer's names of phases, by parity
};

// Sums of products of a warp's 16 rows that nobody has waited for: NaN meanwhile.
struct Sums {
    float (*lanes[32])[4];  // where each lane wants its own
    unsigned columns;
    float values[16][256];
    unsigned group;
};

// What a product reads: not to be written before it is waited for.
struct Operands {
    Product product;
    const uint32_t* registers[32];  // of each lane, where A is in registers
    uint64_t hash;
    unsigned group;
};

// What a lane brings to a meeting: up to four registers of A, two of B, four of the sum, or an
// address.
struct Payload {
    const void* row;
    uint32_t words[10];
};

constexpr unsigned kLanes = 32;

// Of the lanes of a mask: lanes.cpp.
struct Gathering {
    uint32_t mask;
    const char* what;
    Lanes lanes;
    unsigned left;  // lanes that have yet to go on, once all have come
    char token;     // ThreadSanitizer's name of __syncwarp
};

struct Warp {
    Thread lanes[kLanes];
    Block* block = nullptr;
    unsigned size = 0;      // lanes in use: fewer than 32 only in the last warp of an odd block
    unsigned ready = 0;     // lanes in State::Ready
    unsigned arrived = 0;   // lanes at the current meeting
    unsigned finished = 0;  // lanes that have returned
    unsigned registers = 0; // of a thread, if they have been changed
    unsigned phase =
        0;  // meetings held: a lane may be one ahead of another, so two sets of everything
    Payload payload[2][kLanes];
    std::vector<Gathering*> gatherings;  // that lanes wait at
    uint32_t returned = 0;               // lanes
    bool asking = false;                 // some lane for __activemask

    // wgmma
    std::list<Sums> sums;
    std::vector<Operands> operands;
    unsigned committed = 0;  // groups
    bool fenced = false;
    void* engine = nullptr;  // ThreadSanitizer's idea of who reads the operands
    char asked, done[4];     // its names of what the engine is told, and of groups
    void* proxy = nullptr;  // the same who knows only of what fences between the proxies tell
};

// Shared memory of one block after another. With AddressSanitizer every variable is an allocation
// of its own.
class SharedMemory {
public:
    void begin(size_t dynamic_bytes);
    void* variable(const void* key, size_t bytes, size_t alignment);
    void* dynamic() const { return dynamic_; }
    size_t static_bytes() const { return static_bytes_; }
    int64_t address(const void* memory) const;  // as the hardware would number it; -1: none of it
    char* at(uint32_t address) const;           // and back; null: nothing is there
    void end();

    // ThreadSanitizer's names of two uses that follow each other: threads are ordered after the use
    // before theirs, not after threads of their own block that have ended already.
    const void* use_before() const { return &token_[(uses_ + 1) % 2]; }
    const void* use() const { return &token_[uses_ % 2]; }

private:
    struct Variable {
        const void* key;
        void* memory;
    };
    void* allocate(size_t bytes, size_t alignment);
    struct Span {
        char* memory;
        size_t bytes;
        uint32_t address;
    };
    std::vector<Variable> variables_;
    std::vector<Span> spans_;
    uint32_t next_address_ = 0;
    char* arena_ = nullptr;
    size_t used_ = 0;
    void* dynamic_ = nullptr;
    size_t static_bytes_ = 0;
    unsigned uses_ = 0;
    char token_[2];
};

struct Block {
    Grid* grid = nullptr;
    Index index = {0, 0, 0};
    std::vector<Warp*> warps;
    SharedMemory shared;
    unsigned size = 0;      // threads
    unsigned arrived = 0;   // at the barrier
    unsigned finished = 0;  // returned
    unsigned phase = 0;     // barriers passed
    std::map<const void*, Mbarrier> mbarriers;
    NamedBarrier named[16];
    bool waited = false;    // some thread has come to grid_dependency_wait
    char told;               // ThreadSanitizer's name of what engines know of shared memory
    char token[2];          // ThreadSanitizer's names of the barrier
    unsigned votes[2];      // at the barrier, by phase

    static Block* begin(Grid& grid, Index index);
    void end();  // gives everything back to the pools; threads that have not finished are forgotten
    bool run();  // one warp as far as it goes; false if no warp is ready
    bool done() const { return finished == size; }
    bool has(State state) const;  // some thread is in it
    bool hopes() const;           // some thread spins and may yet see a change of its own
    bool resume(State from);      // makes threads in that state ready; false if there was none
    std::string stuck()
        const;  // what keeps a block with no ready thread from going on; empty: nothing
};

Payload* meet(const char* what, Site site, const Payload& mine,
                     void (*last)(Payload*) = nullptr);  // of a warp's lanes: intrinsics.cpp
float half_to_float(uint16_t bits);
float bf16_to_float(uint16_t bits);
void lane_returns(Thread& thread);  // lets those go on that wait for nobody else: lanes.cpp
void answer_active(Warp& warp);     // tells lanes that ask who is active
Thread& current();                                     // the thread that runs now
void wait(State state, const char* doing, Site site);  // leaves it in that state
void give_way();                                       // stays ready, but lets the scheduler choose
void ready(Thread& thread);
std::string line_of(const Thread& thread);  // where it waits
std::string place(const Thread& thread);  // "thread 3 in __syncthreads at file:line"
[[noreturn]] void fail(int result, Site site, const std::string& what);  // ends the running grid
void abandon();  // leaves the running thread for good, after the grid has failed

extern uint64_t progress;  // counts everything that may end somebody's wait

}  // namespace emulator
