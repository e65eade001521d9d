// The stand-in for NCCL, when ranks err, do not come or give up.
#include "nccl.h"

#include <chrono>

namespace test {
namespace {

int refused(int ranks, UniqueId id, int rank) {
    Handle communicator;
    return try_call("ncclCommInitRank", &communicator, ranks, id, rank);
}

void refusals(const char*) {
    as_threads(2, [](const Rank& self) {
        Pointer x = upload(values(0, 4));
        const int result = try_call("ncclAllReduce", x, x, size_t(5), int(Float32), int(Sum),
                                    self.communicator, self.stream);
        require(result == 4, "more than the memory has is refused");
    });
    use_device(0);
    const UniqueId id = unique_id();
    begin_to_join(2, id, 0);
    require(refused(3, id, 1) == 5, "another number of ranks is refused");
    require(refused(2, id, 0) == 5, "two ranks 0 are refused");
    use_device(1);
    require(refused(2, id, 1) == 0, "and the right one is not");
    require(refused(2, {}, 0) == 5, "no id is refused");
}

// Ranks that do not mean the same: an error, where the real one hangs.
void mismatch(const char*) {
    as_threads(2, [](const Rank& self) {
        Pointer x = upload(values(self.rank, 8));
        const size_t count = self.rank ? 8 : 4;
        call("ncclAllReduce", x, x, count, int(Float32), int(Sum), self.communicator, self.stream);
        int error = 0;
        while (error == 0) {
            try_call("cuStreamQuery", self.stream);
            call("ncclCommGetAsyncError", self.communicator, &error);
        }
        require(error == 5 || error == RemoteError, "an error comes");
        call("ncclCommAbort", self.communicator);
        call("cuStreamSynchronize", self.stream);
    });
}

// Sums until one does not end; then another thread gives up.
void until_it_fails(const Rank& self) {
    using Clock = std::chrono::steady_clock;
    Pointer x = upload(values(self.rank, 100));
    for (int round = 1; round <= 3; round++) {
        if (try_call("ncclAllReduce", x, x, size_t(100), int(Float32), int(Sum), self.communicator,
                     self.stream)) {
            std::printf("rank %d: round %d refused\n", self.rank, round);
            std::fflush(stdout);
            return;
        }
        int error = 0, state;
        auto deadline = Clock::now() + std::chrono::seconds(1);
        // A rank may be gone that has given its part already: what is to come after that comes soon.
        while ((state = try_call("cuStreamQuery", self.stream)) == 600 && Clock::now() < deadline) {
            if (error) continue;
            call("ncclCommGetAsyncError", self.communicator, &error);
            if (error) deadline = Clock::now() + std::chrono::milliseconds(500);
        }
        if (state == 0) continue;
        std::thread watch([&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            call("ncclCommAbort", self.communicator);
        });
        try_call("cuStreamSynchronize", self.stream);  // returns, once aborted
        watch.join();
        std::printf("rank %d: round %d fails, error %d\n", self.rank, round, error);
        std::fflush(stdout);
        return;
    }
    std::printf("rank %d: all rounds\n", self.rank);
    std::fflush(stdout);
}

void faulty_threads(const char*) { as_threads(2, until_it_fails); }
void faulty_processes(const char*) { as_processes(until_it_fails); }

// Two ranks on one device of one process: both are refused.
void duplicate(const char*) {
    use_device(0);
    const UniqueId id = unique_id();
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 2; rank++)
        threads.emplace_back([=] {
            use_device(0);
            Handle communicator;
            const int result = try_call("ncclCommInitRank", &communicator, 2, id, rank);
            require(result == InvalidUsage, "it is refused");
        });
    for (std::thread& thread : threads) thread.join();
}

// Rank 1 never comes: rank 0 does not block, and gives up.
void absent(const char*) {
    use_device(0);
    Handle communicator = begin_to_join(2, unique_id(), 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    int error;
    call("ncclCommGetAsyncError", communicator, &error);
    require(error == InProgress, "it does not end");
    call("ncclCommAbort", communicator);
}

}  // namespace

const Case* nccl_fault_cases() {
    static const Case cases[] = {
        {"refusals", refusals},
        {"mismatch", mismatch},
        {"faulty_threads", faulty_threads},
        {"faulty_processes", faulty_processes},
        {"absent", absent},
        {"duplicate", duplicate},
        {nullptr, nullptr},
    };
    return cases;
}

}  // namespace test
