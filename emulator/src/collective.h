// What the ranks of a NCCL communicator do together, a step at a time.
#pragma once
#include "reduction.h"
#include "world.h"

#include <atomic>
#include <string>

namespace emulator {

enum NcclResult {
    kSuccess = 0,
    kUnhandledCudaError = 1,
    kSystemError = 2,
    kInvalidArgument = 4,
    kInvalidUsage = 5,
    kRemoteError = 6,
    kInProgress = 7,
};

enum Kind { AllReduce, Reduce, Broadcast, AllGather, ReduceScatter, Send, Recv };
constexpr const char* kNames[] = {"ncclAllReduce", "ncclReduce",        "ncclBroadcast",
                                  "ncclAllGather", "ncclReduceScatter", "ncclSend",
                                  "ncclRecv"};
// Says why, remembers it for ncclGetLastError, and returns `result`.
int refuse(int result, const std::string& why);
const char* last_refusal();

struct Communicator {
    World* world;
    int rank, device;
    uint64_t rounds = 0;  // collectives, in pieces, that it has taken part in
    unsigned operations = 0;
    bool connected[Recv + 1] = {};  // by kind
    std::atomic<unsigned> captured{0};  // calls in graphs
    std::atomic<bool> aborted{false};
    bool blocking = true;
    std::atomic<bool> busy{false};  // a call of it is still to be done by another thread ...
    std::atomic<bool> asked{false};  // ... and somebody has asked whether it is
    std::string name;               // that its world was made under
    void* charge = nullptr;         // of its device's memory
    std::atomic<int> error{kSuccess};
};

// One call's work, once in flight.
struct Member {
    Communicator* communicator;
    Kind kind;
    const char* from;
    char* to;
    size_t count;  // elements, as the call says
    int type, reduction, peer;

    size_t done = 0;  // elements
    bool published = false, ended = false;

    bool is_collective() const { return kind < Send; }
    bool step();

private:
    size_t bytes(size_t elements) const { return elements * kTypeBytes[type]; }
    size_t piece() const;
    void contribute(size_t elements);
    void take(size_t elements);
    bool step_collective();
    bool step_message();
};

}  // namespace emulator
