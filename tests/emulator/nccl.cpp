// The stand-in for NCCL, when all goes well.
#include "nccl.h"

#include <atomic>
#include <cstring>

namespace test {
namespace {

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
        {"last_reclaims", last_reclaims},
        {"in_background", in_background},
        {nullptr, nullptr},
    };
    return cases;
}

}  // namespace test
