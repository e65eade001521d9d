// What a real driver refuses, although it could be done: work for another device than the current one's,
// calls that a capture does not allow, more memory than there is, and what is gone.
#include "cases.h"

#include <cstring>
#include <thread>

namespace test {
namespace {

constexpr unsigned N = 256;
constexpr int kMapped = 2, kPortable = 1;
using Values = std::vector<float>;

template <class... A>
void refused(int result, const char* name, A... arguments) {
    const int got = try_call(name, arguments...);
    if (got != result) std::printf("%s returned %d, not %d\n", name, got, result);
    require(got == result, name);
}

Pair pair() { return {upload(numbers(N)), upload(Values(N)), N}; }

size_t free_bytes() {
    size_t free, total;
    call("cuMemGetInfo_v2", &free, &total);
    return free;
}

Handle graph_of_one_kernel(Handle add, Handle stream, Pair arguments) {
    Handle graph;
    call("cuStreamBeginCapture_v2", stream, 1);
    require(launch(add, 1, N, 0, stream, arguments) == 0, "a launch is captured");
    call("cuStreamEndCapture", stream, &graph);
    return graph;
}

// A stream, an event, a function and a graph of device 1, while device 0 is current.
void owner(const char*) {
    use_device(1);
    Handle module = load("good.cu"), far = function(module, "accumulate"), far_stream = new_stream();
    Handle far_event, other_event, executable, event, name;
    call("cuEventCreate", &far_event, 0u);
    call("cuEventCreate", &other_event, 0u);
    const Pair there = pair();
    call("cuGraphInstantiateWithFlags", &executable, graph_of_one_kernel(far, far_stream, there), 0ull);
    call("cuEventRecord", far_event, far_stream);
    call("cuEventRecord", other_event, far_stream);
    use_device(0);
    Handle near = function(load("good.cu"), "accumulate"), stream = new_stream();
    const Pair here = pair();
    call("cuEventCreate", &event, 0u);
    require(launch(near, 1, N, 0, far_stream, here) == 400, "another device's stream");
    require(launch(far, 1, N, 0, stream, here) == 400, "another device's function");
    refused(400, "cuEventRecord", event, far_stream);
    refused(400, "cuEventRecord", far_event, stream);
    refused(400, "cuGraphLaunch", executable, far_stream);
    refused(400, "cuGraphLaunch", executable, stream);
    refused(400, "cuFuncSetAttribute", far, 8, 1024);
    refused(400, "cuModuleGetFunction", &name, module, "accumulate");
    refused(400, "cuModuleUnload", module);
    float milliseconds;
    refused(400, "cuEventElapsedTime_v2", &milliseconds, far_event, other_event);
    // To wait is for everybody.
    call("cuStreamSynchronize", far_stream);
    call("cuEventSynchronize", far_event);
    call("cuStreamWaitEvent", stream, far_event, 0u);
}

// Only the thread that began a capture ends it, and meanwhile it may not wait for anything.
void capture_thread(const char*) {
    use_device(1);
    Handle peer;
    call("cuCtxGetCurrent", &peer);
    use_device(0);
    Handle module = load("good.cu"), stream = new_stream(), other = new_stream(), event, graph;
    call("cuEventCreate", &event, 0u);
    call("cuEventRecord", event, other);
    auto begin = [&] { call("cuStreamBeginCapture_v2", stream, 1); };
    auto ends_it = [&](auto... arguments) {
        begin();
        refused(900, arguments...);
        refused(901, "cuStreamEndCapture", stream, &graph);
    };
    begin();
    std::thread([&] {
        use_device(0);
        refused(908, "cuStreamEndCapture", stream, &graph);
        call("cuStreamQuery", other);  // another thread's calls are its own matter
    }).join();
    call("cuStreamEndCapture", stream, &graph);
    ends_it("cuStreamQuery", stream);
    ends_it("cuStreamSynchronize", stream);
    ends_it("cuStreamQuery", other);
    ends_it("cuStreamSynchronize", other);
    ends_it("cuEventQuery", event);
    ends_it("cuEventSynchronize", event);
    ends_it("cuCtxSynchronize");
    ends_it("cuModuleUnload", module);
    ends_it("cuCtxEnablePeerAccess", peer, 0u);
    begin();
    call("cuEventRecord", event, stream);
    refused(900, "cuEventQuery", event);
    refused(901, "cuStreamEndCapture", stream, &graph);
    call("cuCtxEnablePeerAccess", peer, 0u);
}

// With CHASKI_EMULATE_MEMORY=1G,512M
void memory_is_charged(const char*) {
    use_device(2);
    size_t bytes;
    call("cuDeviceTotalMem_v2", &bytes, 0);
    require(bytes == 1 << 30, "the first device's memory");
    call("cuDeviceTotalMem_v2", &bytes, 2);
    require(bytes == 1 << 29, "the last size is that of all others");
    const size_t fresh = free_bytes();
    require(fresh < 1 << 29, "a context takes memory");
    Handle module = load("good.cu"), executable, add = function(module, "accumulate");
    const size_t loaded = free_bytes();
    require(loaded < fresh, "a module takes memory");
    const Pair arguments = pair();
    Handle graph = graph_of_one_kernel(add, new_stream(), arguments);
    const size_t before = free_bytes();
    call("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
    require(free_bytes() < before, "a graph takes memory");
    call("cuGraphExecDestroy", executable);
    require(free_bytes() == before, "and gives it back");
    Pointer rest = allocate(before);
    refused(2, "cuGraphInstantiateWithFlags", &executable, graph, 0ull);
    const std::vector<char> image = compile("good.cu", "sm_90a");
    refused(2, "cuModuleLoadData", &executable, (const void*)image.data());
    call("cuMemFree_v2", rest);
    call("cuModuleUnload", module);
    require(free_bytes() == before + (fresh - loaded), "so does a module");
}

// Nobody has the context any more.
void released_context(const char*) {
    use_device(0);
    const size_t fresh = free_bytes();
    Handle context, stream = new_stream();
    call("cuCtxGetCurrent", &context);
    allocate(1000);
    call("cuDevicePrimaryCtxRelease_v2", 0);
    Pointer memory;
    refused(709, "cuMemAlloc_v2", &memory, size_t(4));
    refused(709, "cuStreamSynchronize", stream);
    refused(709, "cuCtxSetCurrent", context);
    use_device(0);
    require(free_bytes() == fresh, "what was in it has gone with it");
    refused(400, "cuStreamSynchronize", stream);
}

void untimed_events(const char*) {
    use_device(0);
    Handle stream = new_stream(), timed, untimed;
    call("cuEventCreate", &timed, 0u);
    call("cuEventCreate", &untimed, 2u);
    for (Handle event : {timed, untimed}) call("cuEventRecord", event, stream);
    call("cuStreamSynchronize", stream);
    float milliseconds;
    refused(400, "cuEventElapsedTime_v2", &milliseconds, timed, untimed);
    call("cuEventElapsedTime_v2", &milliseconds, timed, timed);
}

// Static and dynamic shared memory together.
void shared_limits(const char*) {
    use_device(0);
    Handle own = function(load("good.cu"), "own_shared"), stream = new_stream();
    const Pair arguments = pair();
    require(launch(own, 1, N, 8 << 10, stream, arguments) == 0, "48 KiB in all");
    call("cuStreamSynchronize", stream);
    int bytes;
    call("cuFuncGetAttribute", &bytes, 1, own);
    require(bytes == 40 << 10, "its own is known when it has run");
    require(launch(own, 1, N, 9 << 10, stream, arguments) == 1, "49 KiB");
    refused(1, "cuFuncSetAttribute", own, 8, 200 << 10);
    call("cuFuncSetAttribute", own, 8, 100 << 10);
    require(launch(own, 1, N, 9 << 10, stream, arguments) == 0, "unless asked for");
    int blocks;
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", &blocks, own, int(N), size_t(0));
    require(blocks == 5, "five of 41 KiB find room in 228");
}

void shared_limits_at_first(const char*) {
    use_device(0);
    Handle own = function(load("good.cu"), "own_shared"), stream = new_stream();
    const int result = launch(own, 1, N, 9 << 10, stream, pair());
    require(result == 701 || try_call("cuStreamSynchronize", stream) == 701, "49 KiB");
}

// With CHASKI_EMULATE_CAPABILITY=8.0
void programmatic_is_refused(const char*) {
    use_device(0);
    Handle add = function(load("good.cu"), "accumulate"), stream = new_stream();
    require(launch_programmatic(add, 1, N, stream, pair()) == 801, "below 9.0");
}

// Memory of the host belongs to its context, unless its flags say otherwise.
void pinned_flags(const char*) {
    use_device(1);
    void *own, *mapped, *everybodys;
    Pointer address;
    call("cuMemHostAlloc", &own, size_t(4 * N), 0u);
    call("cuMemHostAlloc", &mapped, size_t(4 * N), unsigned(kMapped));
    call("cuMemHostAlloc", &everybodys, size_t(4 * N), unsigned(kMapped | kPortable));
    refused(1, "cuMemHostGetDevicePointer_v2", &address, own, 0u);
    call("cuMemHostGetDevicePointer_v2", &address, mapped, 0u);
    use_device(0);
    refused(1, "cuMemHostGetDevicePointer_v2", &address, mapped, 0u);
    call("cuMemHostGetDevicePointer_v2", &address, everybodys, 0u);
    Handle add = function(load("good.cu"), "accumulate"), stream = new_stream();
    require(launch(add, 1, N, 0, stream, Pair{address, address, 1}) == 0, "mapped for all");
    call("cuStreamSynchronize", stream);
    launch(add, 1, N, 0, stream, Pair{Pointer(mapped), address, 1});
    refused(700, "cuStreamSynchronize", stream);
}

// With CHASKI_EMULATE_PEERS=0-1,2-3:broken
void peers(const char*) {
    use_device(0);
    auto can = [](int from, int to) {
        int can = -1;
        call("cuDeviceCanAccessPeer", &can, from, to);
        return can == 1;
    };
    require(can(0, 1) && can(1, 0) && can(2, 3) && !can(0, 2) && !can(3, 1), "which pairs can");
    auto stores = [](int from, int to) {  // what device `from` writes into memory of device `to`
        use_device(to);
        Handle there, here;
        call("cuCtxGetCurrent", &there);
        const Pointer kernels = upload(std::vector<uint64_t>{1}), copied = upload(std::vector<uint64_t>{1});
        use_device(from);
        call("cuCtxGetCurrent", &here);
        if (int result = try_call("cuCtxEnablePeerAccess", there, 0u))
            return require(result == 217, "no access"), uint64_t(0);
        const Pointer sevens = upload(std::vector<uint64_t>{7});
        Handle store = function(load("good.cu"), "store_far"), stream = new_stream();
        require(launch(store, 1, 32, 0, stream, Pair{0, kernels, 0}) == 0, "it may be stored there");
        call("cuMemcpyPeerAsync", copied, there, sevens, here, size_t(8), stream);
        call("cuStreamSynchronize", stream);
        use_device(to);
        Handle reader = new_stream();
        const uint64_t value = download<uint64_t>(kernels, 1, reader)[0];
        require(download<uint64_t>(copied, 1, reader)[0] == value, "a copy goes the same way");
        return value;
    };
    require(stores(0, 1) == 7, "it arrives");
    require(stores(0, 2) == 0, "it is refused");
    require(stores(2, 3) == 1, "it is promised, and does not arrive");
}

// With CHASKI_EMULATE_FAULT=cuModuleLoadData:2:222
void images(const char*) {
    use_device(0);
    Handle module;
    auto load_for = [&](const char* arch) {
        const std::vector<char> image = compile("good.cu", arch);
        return try_call("cuModuleLoadData", &module, (const void*)image.data());
    };
    require(load_for("compute_90") == 0, "PTX for this device");
    require(load_for("compute_90") == 222, "refused once");
    require(load_for("compute_90") == 0, "and not again");
    require(load_for("sm_80") == 209, "machine code for another major version");
    require(load_for("compute_100") == 209, "PTX for newer devices");
    require(load_for("compute_90a") == 0 && load_for("sm_90a") == 0, "for this one alone");
    require(load_for("compute_80") == 0, "PTX for older ones");
    const char* name;
    call("cuGetErrorName", 222, &name);
    require(std::strcmp(name, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION") == 0, "its name");
    // Which has no griddepcontrol: the dependent does not wait.
    Handle stream = new_stream();
    Handle primary = function(module, "primary"), dependent = function(module, "dependent");
    const Pair arguments = pair();
    require(launch(primary, 1, N, 0, stream, arguments) == 0, "a plain launch");
    call("cuStreamSynchronize", stream);
    require(launch_programmatic(dependent, 1, N, stream, arguments) == 719, "not a programmatic one");
}

// With CHASKI_EMULATE_PRODUCTS=truncated or without: the sum of 1 and sixteen products, each `a` times `b`.
void cut_off(const char* name) {
    use_device(0);
    const bool truncated = std::strcmp(name, "cut_off") == 0;
    Handle module = load("good.cu"), stream = new_stream();
    auto sum = [&](uint16_t a, uint16_t b) {
        const struct {
            Pointer a, b, d;
        } arguments = {upload(std::vector<uint16_t>(256, a)), upload(std::vector<uint16_t>(128, b)),
                       allocate(128 * 4)};
        require(launch(function(module, "product_f16"), 1, 32, 0, stream, arguments) == 0, "a product");
        return download<float>(arguments.d, 128, stream)[127];
    };
    const uint16_t p12 = 3 << 10, p13 = 2 << 10, minus_p13 = 0x8000 | p13;  // 2^-12, 2^-13
    expect("1 + 16 * 2^-25", {sum(p12, p13)}, Values{1 + 0x1p-21f});
    // Below the two bits that are kept.
    expect("1 + 16 * 2^-26", {sum(p13, p13)}, Values{truncated ? 1 : 1 + 0x1p-22f});
    // Sixteen halves of a float's last place: what is left of them is cut off, not rounded.
    expect("1 - 16 * 2^-26", {sum(p13, minus_p13)}, Values{truncated ? 1 : 1 - 0x1p-22f});
    const uint16_t p12_and_more = p12 | 1 << 9;  // 1.5 * 2^-12
    expect("1 + 16 * 1.5 * 2^-25", {sum(p12_and_more, p13)},
           Values{truncated ? 1 + 0x1p-21f : 1 + 0x1.8p-21f});
}

}  // namespace

const Case* strict_cases() {
    static const Case cases[] = {
        {"owner", owner},
        {"capture_thread", capture_thread},
        {"memory_is_charged", memory_is_charged},
        {"released_context", released_context},
        {"untimed_events", untimed_events},
        {"shared_limits", shared_limits},
        {"shared_limits_at_first", shared_limits_at_first},
        {"programmatic_is_refused", programmatic_is_refused},
        {"pinned_flags", pinned_flags},
        {"peers", peers},
        {"images", images},
        {"cut_off", cut_off},
        {"not_cut_off", cut_off},
        {nullptr, nullptr},
    };
    return cases;
}

}  // namespace test
