// The stand-in for NCCL: collectives between emulated devices, of one process or of several on this
// machine. Sums are in order of ranks, in float for 16-bit types, so that all ranks get the same
// bits. What real NCCL answers with a hang - ranks that do not mean the same operation - is an
// error here.
#include "collective.h"
#include "hooks.h"
#include "modes.h"
#include "sanitizer.h"

#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#define ENTRY extern "C" __attribute__((visibility("default"))) int

namespace {

using namespace emulator;
using Clock = std::chrono::steady_clock;

bool misbehaves(const Communicator& communicator, RankFault fault) {
    return modes().rank_fault == fault && modes().faulty_rank == communicator.rank;
}

char order;  // ThreadSanitizer's name for what ranks of one process know of each other

// What one or several calls put on a stream, while it runs.
struct Running {
    std::vector<Member> members;
    Clock::time_point from = Clock::now();
    bool stalls = false;

    bool step() {
        sanitizer::release(&order);
        Communicator& first = *members.front().communicator;
        if (misbehaves(first, RankFault::Slow) &&
            Clock::now() - from < std::chrono::milliseconds(modes().rank_fault_at))
            return first.aborted;
        if (stalls) return first.aborted;
        std::vector<Communicator*> busy;  // collectives of one communicator come one after another
        bool all = true;
        for (Member& member : members) {
            bool waits = false;
            if (member.is_collective() && !member.ended)
                for (Communicator* each : busy) waits |= each == member.communicator;
            if (!waits && member.step()) continue;
            all = false;
            if (member.is_collective()) busy.push_back(member.communicator);
        }
        if (all) sanitizer::acquire(&order);
        return all;
    }
};

// What is queued or captured at once.
struct Call {
    Call(std::vector<Member> together, bool is_captured)
        : members(std::move(together)), captured(is_captured) {
        for (const Member& member : members) member.communicator->captured += captured;
    }
    ~Call() {
        for (const Member& member : members) member.communicator->captured -= captured;
    }
    const std::vector<Member> members;
    const unsigned captured;
};

void drop(void* what) { delete static_cast<Call*>(what); }

void* begin(void* what) {
    auto* running = new Running{static_cast<Call*>(what)->members};
    for (Member& member : running->members) {
        Communicator& communicator = *member.communicator;
        const bool now = ++communicator.operations == modes().rank_fault_at;
        if (now && misbehaves(communicator, RankFault::Stalls)) running->stalls = true;
        if (!now || !misbehaves(communicator, RankFault::Dies)) continue;
        bool alone = true;
        for (int rank = 0; rank < communicator.world->ranks(); rank++)
            alone &=
                rank == communicator.rank || communicator.world->state(rank).process != getpid();
        if (alone) _exit(137);
        running->stalls = true;
        communicator.world->leave();
        chaski_emulator_lose(communicator.device);
    }
    return running;
}

bool step(void* state) {
    auto* running = static_cast<Running*>(state);
    if (!running->step()) return false;
    delete running;
    return true;
}

thread_local int group_depth;
thread_local std::vector<std::pair<void*, Member>> group;  // stream and call
thread_local std::vector<Communicator*> joining;           // communicators begun in the group

int submit_now(void* stream, std::vector<Member> together) {
    auto* call = new Call(std::move(together), chaski_emulator_captures(stream));
    return chaski_emulator_submit(stream, call, begin, step, drop)
               ? refuse(kUnhandledCudaError, "the stream does not take it")
               : kSuccess;
}

constexpr std::chrono::microseconds kGlance(50);

// Calls of communicators that do not block are done by a thread of their own, unless they are captured: as
// late as may be, when somebody has asked for it.
int submit(void* stream, std::vector<Member> together) {
    const bool blocks = together.front().communicator->blocking;
    if (blocks || chaski_emulator_captures(stream)) return submit_now(stream, std::move(together));
    for (Member& member : together) {
        member.communicator->asked = false;
        member.communicator->busy = true;
    }
    std::thread([=] {
        const auto is_time = [](const Member& member) {
            return member.communicator->asked || member.communicator->aborted;
        };
        while (std::none_of(together.begin(), together.end(), is_time))
            std::this_thread::sleep_for(kGlance);
        Communicator& first = *together.front().communicator;
        const bool there = !first.aborted && chaski_emulator_use(first.device);
        const int result = there ? submit_now(stream, together) : kUnhandledCudaError;
        for (const Member& member : together) {
            if (result) member.communicator->error = result;
            member.communicator->busy = false;
        }
    }).detach();
    return kInProgress;
}

// The communicators of this process, by the name of their world. What they have is given back when the
// last of a world's is left.
struct Family {
    std::vector<Communicator*> members;
    size_t left = 0;
};
std::mutex families_mutex;
std::map<std::string, Family>& families = *new std::map<std::string, Family>;

void leave(Communicator& communicator) {
    communicator.asked = true;
    while (communicator.busy) std::this_thread::sleep_for(kGlance);
    const std::lock_guard<std::mutex> lock(families_mutex);
    Family& family = families[communicator.name];
    if (++family.left < family.members.size()) return;
    for (Communicator* member : family.members)
        chaski_emulator_refund(std::exchange(member->charge, nullptr));
    families.erase(communicator.name);
}

int planned(const char* function) { return planned_fault(function, chaski_emulator_device()); }

int enqueue(Communicator* communicator, void* stream, Kind kind, const void* from, void* to,
            size_t count, int type, int reduction, int peer) {
    const char* name = kNames[kind];
    if (int result = planned(name)) return refuse(result, std::string(name) + ": planned fault");
    if (!communicator || communicator->aborted) return refuse(kInvalidArgument, "no communicator");
    if (communicator->error) return communicator->error;
    if (communicator->busy)
        return refuse(kInvalidArgument,
                      std::string(name) + " before the communicator's last call was done");
    const int ranks = communicator->world->ranks(), device = communicator->device;
    if (type < 0 || type > Bfloat16 || reduction > Average || peer < 0 || peer >= ranks)
        return refuse(kInvalidArgument, std::string(name) + ": type, operation or rank");
    if (chaski_emulator_device() != device)
        return refuse(kInvalidUsage,
                      std::string(name) + " on another device than its communicator's");
    const size_t bytes = count * kTypeBytes[type], whole = bytes * size_t(ranks);
    const bool reads = kind != Recv && (kind != Broadcast || communicator->rank == peer);
    const bool writes = kind != Send && (kind != Reduce || communicator->rank == peer);
    if (count &&
        ((reads && !chaski_emulator_usable(from, kind == ReduceScatter ? whole : bytes, device)) ||
         (writes && !chaski_emulator_usable(to, kind == AllGather ? whole : bytes, device))))
        return refuse(kInvalidArgument, std::string(name) + ": not memory of device " +
                                            std::to_string(device) + ", or not all of it");
    // As in the original, the first of a kind connects the ranks and allocates what that takes.
    if (!std::exchange(communicator->connected[kind], true) && chaski_emulator_wait_for_all(name))
        return refuse(kUnhandledCudaError, std::string(name) + ": the ranks cannot be connected now");
    Member member = {
        communicator, kind, static_cast<const char*>(from), static_cast<char*>(to), count, type,
        reduction,    peer};
    if (group_depth == 0) return submit(stream, {member});
    group.emplace_back(stream, member);
    return kSuccess;
}

struct UniqueId {
    char text[128];
};

// What is wrong with the ranks that have come: as in the original, no two may be on one device.
int check_all(Communicator& communicator) {
    const std::string duplicate = communicator.world->duplicate();
    if (!duplicate.empty()) communicator.error = refuse(kInvalidUsage, duplicate);
    return communicator.error;
}

// Returns when everybody has come.
int wait_for_all(Communicator& communicator) {
    while (!communicator.world->complete() && !communicator.aborted)
        std::this_thread::sleep_for(std::chrono::microseconds(200));
    return communicator.aborted ? kSuccess : check_all(communicator);
}

int join(Communicator** result, int ranks, const UniqueId& id, int rank, bool blocking) {
    if (int planned_result = planned("ncclCommInitRank"))
        return refuse(planned_result, "ncclCommInitRank: planned fault");
    const int device = chaski_emulator_device();
    if (device < 0) return refuse(kInvalidUsage, "ncclCommInitRank without a device");
    const std::string name(id.text, strnlen(id.text, sizeof id.text));
    auto* communicator = new Communicator;
    communicator->rank = rank;
    communicator->device = device;
    while (misbehaves(*communicator, RankFault::Absent)) pause();
    std::string reason;
    communicator->world = World::join(name, ranks, rank, device, reason);
    if (!communicator->world) {
        delete communicator;
        return refuse(kInvalidUsage, reason);
    }
    communicator->charge = chaski_emulator_charge(device);
    if (!communicator->charge) {
        communicator->world->leave();
        return refuse(kUnhandledCudaError, "no memory for a communicator");
    }
    communicator->blocking = blocking;
    communicator->name = name;
    {
        const std::lock_guard<std::mutex> lock(families_mutex);
        families[name].members.push_back(communicator);
    }
    *result = communicator;
    if (!blocking) return kInProgress;
    if (group_depth == 0) return wait_for_all(*communicator);
    joining.push_back(communicator);
    return kSuccess;
}

}  // namespace

ENTRY ncclGetVersion(int* version) { return *version = 22703, kSuccess; }

extern "C" __attribute__((visibility("default"))) const char* ncclGetErrorString(int result) {
    constexpr const char* kTexts[] = {"no error",
                                      "unhandled cuda error",
                                      "unhandled system error",
                                      "internal error",
                                      "invalid argument",
                                      "invalid usage",
                                      "remote process exited or there was a network error",
                                      "NCCL operation in progress"};
    return result >= 0 && result <= kInProgress ? kTexts[result] : "unknown result code";
}

extern "C" __attribute__((visibility("default"))) const char* ncclGetLastError(Communicator*) {
    return last_refusal();
}

ENTRY ncclGetUniqueId(UniqueId* id) {
    if (int result = planned("ncclGetUniqueId")) return result;
    const std::string name = World::create();
    if (name.empty()) return refuse(kSystemError, "cannot make a file in memory");
    std::memset(id, 0, sizeof *id);
    std::snprintf(id->text, sizeof id->text, "%s", name.c_str());
    return kSuccess;
}

ENTRY ncclCommInitRank(Communicator** result, int ranks, UniqueId id, int rank) {
    return join(result, ranks, id, rank, true);
}

// Of the configuration only `blocking` means something here.
ENTRY ncclCommInitRankConfig(Communicator** result, int ranks, UniqueId id, int rank,
                             const char* config) {
    int blocking = 1;
    if (config) std::memcpy(&blocking, config + 16, sizeof blocking);
    return join(result, ranks, id, rank, blocking != 0);
}

ENTRY ncclCommCount(const Communicator* communicator, int* count) {
    return *count = communicator->world->ranks(), kSuccess;
}
ENTRY ncclCommUserRank(const Communicator* communicator, int* rank) {
    return *rank = communicator->rank, kSuccess;
}
ENTRY ncclCommCuDevice(const Communicator* communicator, int* device) {
    return *device = communicator->device, kSuccess;
}

ENTRY ncclCommGetAsyncError(Communicator* communicator, int* result) {
    *result = communicator->error;
    // Not kept: what a rank gave before it went still reaches the others.
    if (!*result && communicator->world->broken()) *result = kRemoteError;
    if (!*result && communicator->busy) {
        communicator->asked = true;
        *result = kInProgress;
    }
    if (!*result)
        *result = communicator->world->complete() ? check_all(*communicator) : kInProgress;
    return kSuccess;
}

ENTRY ncclCommFinalize(Communicator*) { return kSuccess; }

// The others go on for as long as they need nothing from this rank: its memory stays mapped. As in the
// original, it does not return while a graph has calls of the communicator; which would be for ever.
ENTRY ncclCommDestroy(Communicator* communicator) {
    const auto from = Clock::now();
    while (communicator->captured > 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        if (Clock::now() - from < std::chrono::milliseconds(modes().patience_ms)) continue;
        std::fprintf(stderr, "emulator: ncclCommDestroy: a graph still has calls of it\n");
        std::abort();
    }
    leave(*communicator);
    return kSuccess;
}

// Who waits is let go at once; it returns when no graph has calls of the communicator any more.
ENTRY ncclCommAbort(Communicator* communicator) {
    communicator->aborted = true;
    communicator->world->leave();
    chaski_emulator_notify();
    while (communicator->captured > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    leave(*communicator);
    return kSuccess;
}

ENTRY ncclAllReduce(const void* from, void* to, size_t count, int type, int reduction,
                    Communicator* communicator, void* stream) {
    return enqueue(communicator, stream, AllReduce, from, to, count, type, reduction, 0);
}
ENTRY ncclReduce(const void* from, void* to, size_t count, int type, int reduction, int root,
                 Communicator* communicator, void* stream) {
    return enqueue(communicator, stream, Reduce, from, to, count, type, reduction, root);
}
ENTRY ncclBroadcast(const void* from, void* to, size_t count, int type, int root,
                    Communicator* communicator, void* stream) {
    return enqueue(communicator, stream, Broadcast, from, to, count, type, Sum, root);
}
ENTRY ncclBcast(void* memory, size_t count, int type, int root, Communicator* communicator,
                void* stream) {
    return enqueue(communicator, stream, Broadcast, memory, memory, count, type, Sum, root);
}
ENTRY ncclAllGather(const void* from, void* to, size_t count, int type, Communicator* communicator,
                    void* stream) {
    return enqueue(communicator, stream, AllGather, from, to, count, type, Sum, 0);
}
ENTRY ncclReduceScatter(const void* from, void* to, size_t count, int type, int reduction,
                        Communicator* communicator, void* stream) {
    return enqueue(communicator, stream, ReduceScatter, from, to, count, type, reduction, 0);
}
ENTRY ncclSend(const void* from, size_t count, int type, int peer, Communicator* communicator,
               void* stream) {
    return enqueue(communicator, stream, Send, from, nullptr, count, type, Sum, peer);
}
ENTRY ncclRecv(void* to, size_t count, int type, int peer, Communicator* communicator,
               void* stream) {
    return enqueue(communicator, stream, Recv, nullptr, to, count, type, Sum, peer);
}

ENTRY ncclGroupStart() { return group_depth++, kSuccess; }

ENTRY ncclGroupEnd() {
    if (group_depth == 0) return refuse(kInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group_depth > 0) return kSuccess;
    int result = kSuccess;
    for (Communicator* communicator : std::exchange(joining, {}))
        if (int refused = wait_for_all(*communicator)) result = refused;
    auto calls = std::exchange(group, {});
    while (!calls.empty()) {  // what is for the same stream goes together
        void* stream = calls.front().first;
        std::vector<Member> together;
        std::vector<std::pair<void*, Member>> rest;
        for (auto& [to, member] : calls)
            if (to == stream)
                together.push_back(member);
            else
                rest.emplace_back(to, member);
        calls = std::move(rest);
        if (int refused = submit(stream, std::move(together))) result = refused;
    }
    return result;
}
