// Ranks as threads, each with a device, and as processes.
#pragma once
#include "cases.h"

#include <sys/wait.h>
#include <unistd.h>
#include <thread>

namespace test {

using Values = std::vector<float>;
enum { Float16 = 6, Float32 = 7, Bfloat16 = 9, Sum = 0, InvalidUsage = 5, RemoteError = 6, InProgress = 7 };

struct UniqueId {
    char bytes[128];
};

struct Rank {
    int rank, ranks;
    Handle communicator, stream;
};

inline UniqueId unique_id() {
    UniqueId id;
    call("ncclGetUniqueId", &id);
    return id;
}

inline Rank join(int rank, int ranks, UniqueId id, int device) {
    use_device(device);
    Rank self = {rank, ranks, nullptr, new_stream()};
    call("ncclCommInitRank", &self.communicator, ranks, id, rank);
    return self;
}

// Runs `body` as each of `ranks` ranks, on a thread and a device each.
template <class Body>
void as_threads(int ranks, Body body) {
    use_device(0);  // starts the driver
    const UniqueId id = unique_id();
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; rank++)
        threads.emplace_back([=] { body(join(rank, ranks, id, rank)); });
    for (std::thread& thread : threads) thread.join();
}

// The same in two processes; the driver starts in each for itself.
template <class Body>
void as_processes(Body body) {
    int channel[2];
    require(pipe(channel) == 0, "a pipe");
    const pid_t child = fork();
    UniqueId id;
    if (child == 0) {
        require(::read(channel[0], &id, sizeof id) == sizeof id, "the id comes");
        body(join(1, 2, id, 0));
        std::_Exit(0);
    }
    use_device(0);
    id = unique_id();
    require(::write(channel[1], &id, sizeof id) == sizeof id, "the id goes");
    body(join(0, 2, id, 0));
    int status;
    waitpid(child, &status, 0);
    const bool is_to_die = std::getenv("CHASKI_EMULATE_RANK_FAULT");
    require(is_to_die || status == 0, "the other process is right, too");
}

inline float value(int rank, size_t i) { return float(int((i * 7 + size_t(rank) * 13) % 31) - 15); }

inline Values values(int rank, size_t count) {
    Values all(count);
    for (size_t i = 0; i < count; i++) all[i] = value(rank, i);
    return all;
}

inline Values sums(int ranks, size_t count) {
    Values all(count);
    for (int rank = 0; rank < ranks; rank++)
        for (size_t i = 0; i < count; i++) all[i] += value(rank, i);
    return all;
}

// Joins without waiting for the others.
inline Handle begin_to_join(int ranks, UniqueId id, int rank) {
    struct {
        size_t size;
        unsigned magic, version;
        int blocking;
        int rest[32];
    } config = {sizeof config, 0xcafebeef, 22703, 0, {}};
    Handle communicator = nullptr;
    const int result =
        try_call("ncclCommInitRankConfig", &communicator, ranks, id, rank, (void*)&config);
    require(result == InProgress, "it goes on in the background");
    return communicator;
}

}  // namespace test
