// The stand-in for NCCL: ranks as threads, each with a device, and as processes.
#include "cases.h"

#include <sys/wait.h>
#include <unistd.h>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

namespace test {
namespace {

using Values = std::vector<float>;
enum { Float16 = 6, Float32 = 7, Bfloat16 = 9, Sum = 0, InvalidUsage = 5, RemoteError = 6, InProgress = 7 };

struct UniqueId {
    char bytes[128];
};

struct Rank {
    int rank, ranks;
    Handle communicator, stream;
};

UniqueId unique_id() {
    UniqueId id;
    call("ncclGetUniqueId", &id);
    return id;
}

Rank join(int rank, int ranks, UniqueId id, int device) {
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

float value(int rank, size_t i) { return float(int((i * 7 + size_t(rank) * 13) % 31) - 15); }

Values values(int rank, size_t count) {
    Values all(count);
    for (size_t i = 0; i < count; i++) all[i] = value(rank, i);
    return all;
}

Values sums(int ranks, size_t count) {
    Values all(count);
    for (int rank = 0; rank < ranks; rank++)
        for (size_t i = 0; i < count; i++) all[i] += value(rank, i);
    return all;
}

// More than travels at a time.
constexpr size_t kMany = 700'000;

void reduces(const Rank& self) {
    for (size_t count : {size_t(1), size_t(1000), kMany}) {
        Pointer x = upload(values(self.rank, count)), y = allocate(count * 4);
        call("ncclAllReduce", x, y, count, int(Float32), int(Sum), self.communicator, self.stream);
        expect("a sum", download<float>(y, count, self.stream), sums(self.ranks, count));
        call("ncclAllReduce", x, x, count, int(Float32), int(Sum), self.communicator, self.stream);
        expect("in place", download<float>(x, count, self.stream), sums(self.ranks, count));
    }
}

void all_reduce(const char*) { as_threads(4, reduces); }
void all_reduce_of_processes(const char*) { as_processes(reduces); }

// 1 + 2^-11 is no number of 10 bits: only a sum in float, rounded once, has the right end.
void sixteen_bits(const char*) {
    as_threads(3, [](const Rank& self) {
        const std::vector<uint16_t> half = {
            uint16_t(self.rank == 0 ? 0x3c00 : 0x1000)};  // 1, 2^-11
        const std::vector<uint16_t> brain = {
            uint16_t(self.rank == 0 ? 0x3f80 : 0x3b80)};  // 1, 2^-8
        Pointer x = upload(half), y = upload(brain);
        call("ncclAllReduce", x, x, size_t(1), int(Float16), int(Sum), self.communicator,
             self.stream);
        call("ncclAllReduce", y, y, size_t(1), int(Bfloat16), int(Sum), self.communicator,
             self.stream);
        expect("a sum of f16", download<uint16_t>(x, 1, self.stream), {uint16_t(0x3c01)});
        expect("a sum of bf16", download<uint16_t>(y, 1, self.stream), {uint16_t(0x3f81)});
    });
}

// A kernel, a sum and a copy, replayed.
void all_reduce_in_a_graph(const char*) {
    as_threads(2, [](const Rank& self) {
        constexpr uint32_t count = 256;
        Handle add = function(load("good.cu"), "accumulate"), graph, executable;
        Pair arguments = {upload(values(self.rank, count)), upload(Values(count)), count};
        Pointer sum = allocate(count * 4);
        call("cuStreamBeginCapture_v2", self.stream, 1);
        launch(add, 1, count, 0, self.stream, arguments);
        call("ncclAllReduce", arguments.y, sum, size_t(count), int(Float32), int(Sum),
             self.communicator, self.stream);
        call("cuStreamEndCapture", self.stream, &graph);
        call("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
        for (int replay = 1; replay <= 3; replay++) {
            call("cuGraphLaunch", executable, self.stream);
            Values wanted = sums(2, count);
            for (float& v : wanted) v *= float(replay);
            expect("the sum", download<float>(sum, count, self.stream), wanted);
        }
    });
}

// With CHASKI_EMULATE_PATIENCE_MS
void left(bool graph_goes_first) {
    as_threads(2, [=](const Rank& self) {
        Handle graph, executable;
        Pointer x = upload(values(self.rank, 4));
        call("cuStreamBeginCapture_v2", self.stream, 1);
        call("ncclAllReduce", x, x, size_t(4), int(Float32), int(Sum), self.communicator, self.stream);
        call("cuStreamEndCapture", self.stream, &graph);
        call("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
        call("cuGraphDestroy", graph);
        if (graph_goes_first) call("cuGraphExecDestroy", executable);
        call("ncclCommDestroy", self.communicator);
    });
}
void graph_goes_first(const char*) { left(true); }
void communicator_goes_first(const char*) { left(false); }

void collectives(const Rank& self) {
    const size_t count = 1000, ranks = size_t(self.ranks);
    Pointer x = upload(values(self.rank, count)), all = allocate(ranks * count * 4);
    call("ncclAllGather", x, all, count, int(Float32), self.communicator, self.stream);
    Values wanted;
    for (size_t rank = 0; rank < ranks; rank++)
        for (float v : values(int(rank), count)) wanted.push_back(v);
    expect("what all have", download<float>(all, ranks * count, self.stream), wanted);
    // all: rank r's x at r. Its sum over ranks is ranks times itself.
    call("ncclReduceScatter", all, x, count, int(Float32), int(Sum), self.communicator,
         self.stream);
    wanted = values(self.rank, count);
    for (float& v : wanted) v *= float(ranks);
    expect("a part of the sum", download<float>(x, count, self.stream), wanted);
    call("ncclBroadcast", x, x, count, int(Float32), 1, self.communicator, self.stream);
    wanted = values(1, count);
    for (float& v : wanted) v *= float(ranks);
    expect("what rank 1 has", download<float>(x, count, self.stream), wanted);
}

// To the next rank, from the one before; larger than what fits the way at a time.
void ring(const Rank& self) {
    const int next = (self.rank + 1) % self.ranks,
              before = (self.rank + self.ranks - 1) % self.ranks;
    const size_t count = 50'000;
    Pointer x = upload(values(self.rank, count)), y = allocate(count * 4);
    call("ncclGroupStart");
    call("ncclSend", x, count, int(Float32), next, self.communicator, self.stream);
    call("ncclRecv", y, count, int(Float32), before, self.communicator, self.stream);
    call("ncclGroupEnd");
    expect("the neighbour's", download<float>(y, count, self.stream), values(before, count));
}

void all_collectives(const char*) {
    as_threads(3, [](const Rank& self) {
        collectives(self);
        ring(self);
    });
}
void all_collectives_of_processes(const char*) {
    as_processes([](const Rank& self) {
        collectives(self);
        ring(self);
    });
}

// One thread for several devices: what is grouped begins together.
void one_thread(const char*) {
    use_device(0);
    const UniqueId id = unique_id();
    Rank ranks[2];
    call("ncclGroupStart");
    for (int rank = 0; rank < 2; rank++) {
        use_device(rank);
        ranks[rank] = {rank, 2, nullptr, new_stream()};
        call("ncclCommInitRank", &ranks[rank].communicator, 2, id, rank);
    }
    call("ncclGroupEnd");
    Pointer x[2];
    for (int rank = 0; rank < 2; rank++) use_device(rank), x[rank] = upload(values(rank, 100));
    for (int rank = 0; rank < 2; rank++) {
        use_device(rank);
        call("ncclAllReduce", x[rank], x[rank], size_t(100), int(Float32), int(Sum),
             ranks[rank].communicator, ranks[rank].stream);
    }
    for (int rank = 0; rank < 2; rank++) {
        use_device(rank);
        expect("a sum", download<float>(x[rank], 100, ranks[rank].stream), sums(2, 100));
    }
}

// Joins without waiting for the others.
Handle begin_to_join(int ranks, UniqueId id, int rank) {
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

size_t free_bytes() {
    size_t free, total;
    call("cuMemGetInfo_v2", &free, &total);
    return free;
}

// What communicators take comes back when the last rank of a process leaves, for all.
void last_reclaims(const char*) {
    std::atomic<int> left{0};
    as_threads(2, [&](const Rank& self) {
        const size_t joined = free_bytes();
        if (self.rank == 1)
            while (left == 0) std::this_thread::yield();
        call("ncclCommDestroy", self.communicator);
        require((free_bytes() > joined) == (self.rank == 1), "the first rank leaves, and has no more");
        left++;
        while (left < 2) std::this_thread::yield();
        require(free_bytes() > joined, "the last one gives back what both had");
    });
}

// Calls return before they are done, unless they are captured; the next is not before the last is.
void in_background(const char*) {
    use_device(0);
    const UniqueId id = unique_id();
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 2; rank++)
        threads.emplace_back([=] {
            use_device(rank);
            Handle communicator = begin_to_join(2, id, rank), stream = new_stream(), graph;
            int error = InProgress;
            auto settle = [&] {
                while (error == InProgress) call("ncclCommGetAsyncError", communicator, &error);
                require(error == 0, "it is done");
            };
            settle();
            Pointer x = upload(values(rank, 100));
            auto sum = [&] {
                return try_call("ncclAllReduce", x, x, size_t(100), int(Float32), int(Sum),
                                communicator, stream);
            };
            require(sum() == InProgress, "it is not done yet");
            expect("x", download<float>(x, 100, stream), values(rank, 100));
            require(sum() == 4, "another call meanwhile is refused");
            error = InProgress;
            call("ncclCommGetAsyncError", communicator, &error);
            settle();
            expect("a sum", download<float>(x, 100, stream), sums(2, 100));
            call("cuStreamBeginCapture_v2", stream, 1);
            require(sum() == 0, "a captured one is done");
            call("cuStreamEndCapture", stream, &graph);
            call("cuGraphDestroy", graph);
            call("ncclCommDestroy", communicator);
        });
    for (std::thread& thread : threads) thread.join();
}

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

const Case* nccl_cases() {
    static const Case cases[] = {
        {"all_reduce", all_reduce},
        {"all_reduce_of_processes", all_reduce_of_processes},
        {"sixteen_bits", sixteen_bits},
        {"all_reduce_in_a_graph", all_reduce_in_a_graph},
        {"graph_goes_first", graph_goes_first},
        {"communicator_goes_first", communicator_goes_first},
        {"all_collectives", all_collectives},
        {"all_collectives_of_processes", all_collectives_of_processes},
        {"one_thread", one_thread},
        {"refusals", refusals},
        {"mismatch", mismatch},
        {"faulty_threads", faulty_threads},
        {"faulty_processes", faulty_processes},
        {"absent", absent},
        {"duplicate", duplicate},
        {"last_reclaims", last_reclaims},
        {"in_background", in_background},
        {nullptr, nullptr},
    };
    return cases;
}

}  // namespace test
