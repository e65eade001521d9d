// Every knob of the emulator: environment variables, read once, unless chaski_emulator_configure has been
// given others in their place.
//
//   CHASKI_EMULATE=N                number of devices (default 1)
//   CHASKI_EMULATE_MEMORY=BYTES[,...]
//                                   memory of each device, the last for all that follow (default
//                                   8 GiB); suffixes K, M, G
//   CHASKI_EMULATE_CAPABILITY=9.0   compute capability, and the shared memory that goes with it
//   CHASKI_EMULATE_ARCHS=sm_80,...  what the program is to be taken to be built for (src/executor/cuda)
//   CHASKI_EMULATE_DRIVER=13000     version of CUDA that the driver is of
//   CHASKI_EMULATE_ORDER=ascending | descending | shuffled:SEED
//                                   which warp of a block (and which block) goes next. A warp
//                                   always runs as far as it can: the least fair schedule finds
//                                   what fair ones miss
//   CHASKI_EMULATE_BLOCKS=N         run N blocks at a time, changing block whenever a warp can go
//   no further
//                                   (default 1: a block runs alone until it ends or spins)
//   CHASKI_EMULATE_STREAMS=eager | lazy
//                                   lazy: work runs only when a synchronisation forces it
//   CHASKI_EMULATE_STORES=prompt | late
//                                   late: relaxed stores for the system are seen late, word by word,
//                                   and another device's store to a word before a fence is an error
//   CHASKI_EMULATE_PDL=early | late
//                                   early: a programmatic dependent runs up to its
//                                   grid_dependency_wait before the kernel it depends on, wherever
//                                   both are queued together (graphs, lazy streams)
//   CHASKI_EMULATE_PRODUCTS=rounded | truncated
//                                   truncated: tensor cores cut off where hardware does, see tensor.h;
//                                   otherwise sixteen products are added exactly, and rounded once
//   CHASKI_EMULATE_FILL=on | off    fresh memory is 0xFF (NaN in every float type, -1 as an index)
//   CHASKI_EMULATE_PATIENCE_MS=N    how long a spinning kernel waits for another host thread to
//   queue what it waits
//                                   for before that is a deadlock (default 10000)
//   CHASKI_EMULATE_LIMIT_MS=N       threads that do not give way are made to, and a kernel that takes more of
//                                   the processor's time fails (default 0: neither)
//   CHASKI_EMULATE_PEERS=on | off | broken | A-B[:broken][,...]
//                                   which devices can access each other's memory; broken: the driver
//                                   says that they can, and nothing arrives
//   CHASKI_EMULATE_HOLD=on | off    on: calls that the real driver may hold until all devices are idle
//                                   fail while a kernel waits for one that is not launched yet. For
//                                   processes in which all ranks work together (default off)
//   CHASKI_EMULATE_FAULT=FUNCTION[@DEVICE]:N:RESULT[,...]
//                                   the N-th call (from 1) of driver function FUNCTION, of those
//                                   for DEVICE if one is given, returns the CUresult RESULT. A
//                                   launch that is to fail while it runs is `kernel:N:RESULT`; with
//                                   RESULT `stalls` it never ends. RESULT `lost`: that call's
//                                   device disappears. Sticky results stay, as in the real driver
//   CHASKI_EMULATE_RANK_FAULT=RANK:absent | RANK:dies:N | RANK:stalls:N | RANK:slow:MS
//                                   what a rank of a NCCL communicator does to the others: it never
//                                   comes; at its N-th operation (from 1) its process ends (its
//                                   device, where the ranks share a process) or does not go on; it
//                                   takes that long for each
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace emulator {

enum class Order { Ascending, Descending, Shuffled };

struct PlannedFault {
    std::string function;
    unsigned call;
    int result;
    unsigned seen;
};

enum class Reach { None, Works, Broken };

enum class RankFault { None, Absent, Dies, Stalls, Slow };

struct Modes {
    unsigned devices = 1;
    std::vector<size_t> memory_bytes = {size_t(8) << 30};  // the last: of all that follow
    int capability_major = 9, capability_minor = 0;
    int driver_version = 13000;
    Order order = Order::Ascending;
    unsigned resident_blocks = 1;
    bool lazy = false;
    bool late_stores = false;
    bool early_dependents = true;
    bool truncate = false;
    bool fill = true;
    unsigned patience_ms = 10000;
    unsigned limit_ms = 0;
    std::vector<PlannedFault> faults;
    RankFault rank_fault = RankFault::None;
    int faulty_rank = 0;
    unsigned rank_fault_at = 0;  // operation, or milliseconds
    Reach reach = Reach::Works;
    std::map<std::pair<int, int>, Reach> pairs;  // smaller number first; if not empty, of no others
    bool hold = false;

    size_t memory_of(unsigned device) const {
        return memory_bytes[std::min<size_t>(device, memory_bytes.size() - 1)];
    }
    Reach between(int device, int other) const;

    // Of a multiprocessor; 1 KiB of it is the system's, for each block.
    size_t shared_bytes() const;
    size_t max_block_shared_bytes() const { return shared_bytes() - (1 << 10); }
};

inline constexpr int kDeviceLost = 46;  // CUDA_ERROR_DEVICE_UNAVAILABLE
inline constexpr int kStalls = -1;      // of a kernel: no result, ever

// A wrong value in the environment ends the process with one line: a mistyped mode must not pass for a
// clean run.
Modes& modes();

// What this call is to return, for a device (-1: none is current); 0: nothing is planned.
int planned_fault(const char* function, int device);

// A small generator, so that a seed means the same schedule everywhere.
uint64_t next_random();

}  // namespace emulator
