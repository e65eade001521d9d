// The driver itself: memory, streams, events, graphs, several devices, threads, errors.
#include "cases.h"

#include <cstring>
#include <thread>

namespace test {

void require(bool condition, const char* what) {
    if (condition) return;
    std::printf("wrong: %s\n", what);
    std::fflush(stdout);
    std::_Exit(1);
}

namespace {

constexpr unsigned N = 256;
using Values = std::vector<float>;

// A graph of two kernels and a copy, replayed; y doubles what is added each time.
void graph(const char*) {
    use_device(0);
    Handle add = function(load("good.cu"), "accumulate"), stream = new_stream(), graph, executable;
    Values x = numbers(N);
    Pair arguments = {upload(x), upload(Values(N)), N};
    Pointer copy = allocate(N * sizeof(float));
    int status;
    call("cuStreamBeginCapture_v2", stream, 0);
    launch(add, 1, N, 0, stream, arguments);
    launch(add, 1, N, 0, stream, arguments);
    call("cuMemcpyDtoDAsync_v2", copy, arguments.y, N * sizeof(float), stream);
    call("cuStreamIsCapturing", stream, &status);
    require(status == 1, "the stream is capturing");
    call("cuStreamEndCapture", stream, &graph);
    expect("y before a launch", download<float>(arguments.y, N, stream), Values(N));
    call("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
    call("cuGraphUpload", executable, stream);
    for (int replay = 1; replay <= 2; replay++) {
        call("cuGraphLaunch", executable, stream);
        Values y = x;
        for (float& v : y) v *= float(2 * replay);
        expect("y", download<float>(copy, N, stream), y);
    }
    call("cuGraphExecDestroy", executable);
    call("cuGraphDestroy", graph);
}

// What must not happen while a capture goes on invalidates it.
void capture_refuses(const char*) {
    use_device(0);
    Handle stream = new_stream(), graph;
    Pointer memory;
    call("cuStreamBeginCapture_v2", stream, 0);
    require(try_call("cuMemAlloc_v2", &memory, size_t(4)) == 900,
            "cuMemAlloc during capture is refused");
    require(try_call("cuStreamEndCapture", stream, &graph) == 901, "the capture is invalid");
    void* page;
    call("cuStreamBeginCapture_v2", stream, 1);  // this thread's calls, but not another's
    std::thread([&] {
        use_device(0);
        call("cuMemAlloc_v2", &memory, size_t(4));
    }).join();
    require(try_call("cuMemHostAlloc", &page, size_t(4), 0u) == 900, "nor pinned memory");
    require(try_call("cuStreamEndCapture", stream, &graph) == 901, "the capture is invalid again");
}

// Work on another stream waits for an event.
void events(const char*) {
    use_device(0);
    Handle add = function(load("good.cu"), "accumulate"), first = new_stream(), second = new_stream(),
           event, other;
    Values x = numbers(N), y = x;
    for (float& v : y) v *= 2;
    Pair arguments = {upload(x), upload(Values(N)), N};
    call("cuEventCreate", &event, 0u);
    call("cuEventCreate", &other, 0u);
    launch(add, 1, N, 0, first, arguments);
    call("cuEventRecord", event, first);
    call("cuStreamWaitEvent", second, event, 0u);
    launch(add, 1, N, 0, second, arguments);
    call("cuEventRecord", other, second);
    call("cuEventSynchronize", other);
    float milliseconds = -1;
    call("cuEventElapsedTime_v2", &milliseconds, event, other);
    require(milliseconds >= 0, "time does not run backwards");
    while (try_call("cuStreamQuery", first) == 600) {
    }
    expect("y", download<float>(arguments.y, N, second), y);
}

// Two devices: peer copies always, kernels only with peer access.
void two_devices(const char*) {
    use_device(1);
    Values x = numbers(N);
    Pointer far = upload(x);
    Handle far_context;
    call("cuCtxGetCurrent", &far_context);
    use_device(0);
    Handle context, add = function(load("good.cu"), "accumulate"), stream = new_stream();
    call("cuCtxGetCurrent", &context);
    Pointer near = allocate(N * sizeof(float)), sum = upload(Values(N));
    call("cuMemcpyPeerAsync", near, context, far, far_context, N * sizeof(float), stream);
    expect("a peer copy", download<float>(near, N, stream), x);
    int can = 0;
    call("cuDeviceCanAccessPeer", &can, 0, 1);
    require(can == 1, "peer access is possible");
    call("cuCtxEnablePeerAccess", far_context, 0u);
    launch(add, 1, N, 0, stream, Pair{far, sum, N});
    expect("a kernel's read of peer memory", download<float>(sum, N, stream), x);
    call("cuCtxDisablePeerAccess", far_context);
    launch(add, 1, N, 0, stream, Pair{far, sum, N});
    require(try_call("cuStreamSynchronize", stream) == 700,
            "no access to peer memory without asking");
}

// Two host threads, two devices: one kernel waits for a flag in the other's memory.
void two_ranks(const char*) {
    use_device(1);
    Handle far_context;
    call("cuCtxGetCurrent", &far_context);
    Pointer flag = upload(std::vector<uint32_t>{0}), value = allocate(4);
    struct Total {
        Pointer x, part, ticket, total;
    };
    Handle stream = new_stream(), raise = function(load("good.cu"), "raise_flag");
    const Total arguments = {upload(Values{7}), value, flag, allocate(4)};
    std::thread waiter([&] {
        use_device(0);
        call("cuCtxEnablePeerAccess", far_context, 0u);
        Handle stream = new_stream();
        Total arguments = {allocate(4), value, flag, allocate(4)};
        launch(function(load("good.cu"), "wait_flag"), 1, 32, 0, stream, arguments);
        expect("what the other device wrote", download<float>(arguments.total, 1, stream), {7.0f});
    });
    launch(raise, 1, 32, 0, stream, arguments);
    call("cuStreamSynchronize", stream);
    waiter.join();
}

// A kernel waits for one that is not launched yet: what may wait for the devices fails, until it is.
void peer_waits(const char*) {
    use_device(1);
    Handle far_context, module = load("good.cu"), unloaded, graph, executable;
    call("cuCtxGetCurrent", &far_context);
    Handle stream = new_stream(), raise = function(module, "raise_flag");
    call("cuModuleGetFunction", &unloaded, module, "accumulate");
    struct Total {
        Pointer x, part, ticket, total;
    } arguments = {upload(Values{7}), allocate(4), upload(std::vector<uint32_t>{0}), allocate(4)};
    const Pair pair = {allocate(N * 4), allocate(N * 4), N};
    call("cuStreamBeginCapture_v2", stream, 1);
    call("cuStreamEndCapture", stream, &graph);
    use_device(0);
    call("cuCtxEnablePeerAccess", far_context, 0u);
    Handle near = new_stream(), wait = function(load("good.cu"), "wait_far");
    launch(wait, 1, 32, 0, near, Total{0, arguments.part, arguments.ticket, allocate(4)});
    require(try_call("cuStreamQuery", near) == 600, "it waits");
    use_device(1);
    Pointer memory;
    void* page;
    auto refused = [&](bool is) {
        const int result = is ? 702 : 0;
        require(try_call("cuMemAlloc_v2", &memory, size_t(4)) == result, "cuMemAlloc");
        if (is) memory = arguments.total;
        require(try_call("cuMemFree_v2", memory) == result, "cuMemFree");
        require(try_call("cuMemHostAlloc", &page, size_t(4), 0u) == result, "cuMemHostAlloc");
        require(try_call("cuFuncLoad", unloaded) == result, "cuFuncLoad");
        require(launch(unloaded, 1, N, 0, stream, pair) == result, "a first launch");
        require(try_call("cuGraphInstantiateWithFlags", &executable, graph, 0ull) == result,
                "cuGraphInstantiate");
    };
    refused(true);
    launch(raise, 1, 32, 0, stream, arguments);
    refused(false);
    call("cuStreamSynchronize", stream);
}

// What is copied from pageable memory may wait for the stream, if it is more than 64 KiB.
void pageable_waits(const char*) {
    use_device(1);
    Handle far_context;
    call("cuCtxGetCurrent", &far_context);
    const Pointer flag = upload(std::vector<uint32_t>{0});
    use_device(0);
    call("cuCtxEnablePeerAccess", far_context, 0u);
    Handle near = new_stream(), other = new_stream(), wait = function(load("good.cu"), "wait_far");
    const std::vector<char> bytes((64 << 10) + 1);
    const Pointer to = allocate(bytes.size());
    auto copy = [&](size_t count, Handle stream) {
        return try_call("cuMemcpyHtoDAsync_v2", to, (const void*)bytes.data(), count, stream);
    };
    struct {
        Pointer x, part, ticket, total;
    } arguments = {0, 0, flag, 0};
    launch(wait, 1, 32, 0, near, arguments);
    require(copy(64 << 10, near) == 0, "64 KiB");
    require(copy(bytes.size(), other) == 0, "on another stream");
    require(copy(bytes.size(), near) == 702, "more than 64 KiB");
    std::_Exit(0);  // nobody raises the flag
}

void memory(const char*) {
    use_device(0);
    size_t free, total, later;
    call("cuMemGetInfo_v2", &free, &total);
    require(free < total && free > total - total / 100, "a context takes a little");
    Pointer block = allocate(1000), huge;
    call("cuMemGetInfo_v2", &later, &total);
    require(later == free - 1000, "an allocation costs what it costs");
    require(try_call("cuMemAlloc_v2", &huge, total) == 2, "more than there is: out of memory");
    std::vector<uint8_t> fresh(1000);
    call("cuMemcpyDtoH_v2", (void*)fresh.data(), block, size_t(1000));
    expect("fresh memory", fresh, std::vector<uint8_t>(1000, 0xff));
    call("cuMemsetD8_v2", block + 1, (unsigned char)7, size_t(3));
    call("cuMemcpyDtoH_v2", (void*)fresh.data(), block, size_t(5));
    expect("a fill", {fresh.begin(), fresh.begin() + 5}, std::vector<uint8_t>{255, 7, 7, 7, 255});
    require(try_call("cuMemcpyDtoH_v2", (void*)fresh.data(), block + 1, size_t(1000)) == 1,
            "past the end: refused");
    call("cuMemFree_v2", block);
    require(try_call("cuMemFree_v2", block) == 1, "freed twice: refused");
    require(try_call("cuMemcpyDtoH_v2", (void*)fresh.data(), block, size_t(1)) == 1,
            "freed memory: refused");
}

// A kernel that points to freed memory.
void freed_argument(const char*) {
    use_device(0);
    Handle add = function(load("good.cu"), "accumulate"), stream = new_stream();
    Pair arguments = {upload(numbers(N)), upload(Values(N)), N};
    call("cuMemFree_v2", arguments.x);
    launch(add, 1, N, 0, stream, arguments);
    require(try_call("cuStreamSynchronize", stream) == 700, "freed memory is an illegal address");
    Pointer later;
    require(try_call("cuMemAlloc_v2", &later, size_t(4)) == 700, "and the error stays");
}

void launches(const char*) {
    use_device(0);
    Handle module = load("good.cu"), add = function(module, "accumulate"), missing;
    Pair arguments = {upload(numbers(N)), upload(Values(N)), N};
    require(launch(add, 0, N, 0, nullptr, arguments) == 1, "an empty grid is refused");
    require(launch(add, 1, 2 * N, 0, nullptr, arguments) == 1,
            "more threads than its launch bounds are refused");
    require(launch(add, 1, N, 64 << 10, nullptr, arguments) == 1,
            "more dynamic shared memory than allowed is refused");
    call("cuFuncSetAttribute", add, 8, 64 << 10);
    require(launch(add, 1, N, 64 << 10, nullptr, arguments) == 0, "unless asked for");
    require(try_call("cuModuleGetFunction", &missing, module, "no_such_kernel") == 500,
            "an unknown kernel");
    require(try_call("cuModuleLoadData", &missing, (const void*)"\177ELF, a real cubin") == 209,
            "a real cubin");
    const char* name;
    call("cuGetErrorName", 209, &name);
    require(std::strcmp(name, "CUDA_ERROR_NO_BINARY_FOR_GPU") == 0, "its name");
}

void compile_error(const char*) {
    require(load("broken.cu") == nullptr, "a kernel with an error does not compile");
}

// With CHASKI_EMULATE_FAULT=cuMemAlloc_v2:2:2
void fault_memory(const char*) {
    use_device(0);
    Pointer memory;
    allocate(4);
    require(try_call("cuMemAlloc_v2", &memory, size_t(4)) == 2, "the second allocation fails");
    allocate(4);
}

// With CHASKI_EMULATE_FAULT=kernel:2:700
void fault_kernel(const char*) {
    use_device(0);
    Handle add = function(load("good.cu"), "accumulate"), stream = new_stream();
    Pair arguments = {upload(numbers(N)), upload(Values(N)), N};
    launch(add, 1, N, 0, stream, arguments);
    call("cuStreamSynchronize", stream);
    launch(add, 1, N, 0, stream, arguments);
    require(try_call("cuStreamSynchronize", stream) == 700, "the second kernel fails");
    require(try_call("cuMemFree_v2", arguments.x) == 700, "and everything after it");
}

// With CHASKI_EMULATE=2 CHASKI_EMULATE_FAULT=kernel@1:1:stalls
void fault_stalls(const char*) {
    for (int device = 0; device < 2; device++) {
        use_device(device);
        Handle add = function(load("good.cu"), "accumulate"), stream = new_stream();
        Pair arguments = {upload(numbers(N)), upload(Values(N)), N};
        launch(add, 1, N, 0, stream, arguments);
        for (int look = 0; look < 100; look++)
            require(try_call("cuStreamQuery", stream) == (device == 0 ? 0 : 600),
                    "only the second device's kernel never ends");
    }
}

// With CHASKI_EMULATE=2 CHASKI_EMULATE_FAULT=cuMemcpyHtoD_v2:1:lost
void fault_lost(const char*) {
    use_device(0);
    Pointer memory = allocate(4);
    float value = 1;
    require(try_call("cuMemcpyHtoD_v2", memory, (const void*)&value, size_t(4)) == 46,
            "the device disappears");
    require(try_call("cuCtxSynchronize") == 46, "for good");
    use_device(1);
    upload(Values{1});
}

}  // namespace

const Case* driver_cases() {
    static const Case cases[] = {
        {"graph", graph},
        {"capture_refuses", capture_refuses},
        {"events", events},
        {"two_devices", two_devices},
        {"two_ranks", two_ranks},
        {"peer_waits", peer_waits},
        {"pageable_waits", pageable_waits},
        {"memory", memory},
        {"freed_argument", freed_argument},
        {"launches", launches},
        {"compile_error", compile_error},
        {"fault_memory", fault_memory},
        {"fault_kernel", fault_kernel},
        {"fault_stalls", fault_stalls},
        {"fault_lost", fault_lost},
        {nullptr, nullptr},
    };
    return cases;
}

}  // namespace test
