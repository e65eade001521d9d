// Planted bugs and their twins without: each case compares what the kernel wrote, `run` knows which
// checker must object.
#include "cases.h"

#include <cstring>

namespace test {
namespace {

constexpr unsigned N = 256;
using Values = std::vector<float>;

bool is_fixed(const char* name) { return std::strstr(name, "_fixed") != nullptr; }

// Runs a kernel of bugs.cu, one block unless told, and compares.
void compare(const char* name, const Values& x, const Values& wanted, uint32_t count = 0,
             unsigned grid = 1, unsigned threads = N) {
    use_device(0);
    Handle kernel = function(load("bugs.cu"), name), stream = new_stream();
    Pair arguments = {upload(x), upload(Values(N)), count};
    if (launch(kernel, grid, threads, 0, stream, arguments)) std::exit(1);
    expect(name, download<float>(arguments.y, N, stream), wanted);
}

void missing_barrier(const char* name) {
    Values x = numbers(N);
    compare(name, x, Values(x.rbegin(), x.rend()));
}

void reused_buffer(const char* name) {
    const uint32_t tiles = 3;
    Values x = numbers(tiles * N), y(N);
    for (size_t i = 0; i < x.size(); i++) x[i] += float(i / N);
    for (uint32_t tile = 0; tile < tiles; tile++)
        for (size_t i = 0; i < N; i++) y[i] += x[tile * N + (i + 32 < N ? i + 32 : i)];
    compare(name, x, y, tiles);
}

void cross_block(const char* name) {
    const uint32_t blocks = 4;
    float wanted;
    std::memcpy(&wanted, &blocks, sizeof wanted);
    compare(name, numbers(N), Values(N, wanted), 0, blocks);
}

void missing_syncwarp(const char* name) {
    Values x = numbers(N), y(N);
    for (size_t thread = 0; thread < N; thread++) {
        const size_t lane = thread % 32, row = lane / 4, column = lane % 4 * 2;
        auto element = [&](size_t r, size_t c) {
            return x[thread / 32 * 32 + (r * 16 + c) / 8] + float(c % 8);
        };
        y[thread] = element(row, column) + element(8 + row, 8 + column + 1);
    }
    compare(name, x, y);
}

void weak_wait(const char* name) {
    Values x = numbers(4 * N);
    compare(name, x, Values(x.rbegin(), x.rbegin() + N));
}

void copies(const char* name) {
    Values x = numbers(N);
    compare(name, x, x, N);
}

void registers(const char* name) {
    Values x = numbers(N);
    compare(name, x, x, 0, 1, 384);
}

void divergent_shuffle(const char* name) {
    Values x = numbers(N), y = x;
    for (size_t i = 0; i < N; i++) y[i] += x[i ^ 1];
    compare(name, x, y);
}

void misaligned(const char* name) {
    Values x = numbers(N);
    compare(name, x, Values(N, x[is_fixed(name) ? 4 : 1]));
}

// Behind a kernel that writes 2 x, in a graph.
void early_read(const char* name) {
    use_device(0);
    Handle primary = function(load("good.cu"), "primary"), kernel = function(load("bugs.cu"), name);
    Handle stream = new_stream(), graph, executable;
    Values x = numbers(N), y = x;
    for (float& v : y) v = 2 * v + 1;
    Pair first = {upload(x), upload(Values(N)), 0}, second = {first.y, upload(Values(N)), 0};
    call("cuStreamBeginCapture_v2", stream, 0);
    launch_programmatic(primary, 1, N, stream, first);
    launch_programmatic(kernel, 1, N, stream, second);
    call("cuStreamEndCapture", stream, &graph);
    call("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
    call("cuGraphLaunch", executable, stream);
    expect(name, download<float>(second.y, N, stream), y);
}

void deadlock(const char* name) { compare(name, Values(N), Values(N)); }

// x x^T by TMA and a warpgroup.
void square(const char* name) {
    use_device(0);
    Handle kernel = function(load("bugs.cu"), name), stream = new_stream();
    const uint32_t slices = 3;
    const uint64_t columns = 64 * slices;
    std::vector<uint16_t> x(N * columns);
    auto at = [&](size_t row, size_t k) { return (row * 7 + k * 5 + k / 64) % 4; };
    const uint16_t halves[] = {0, 0x3c00, 0x4000, 0x4200};  // 0, 1, 2, 3 in f16
    for (size_t i = 0; i < x.size(); i++) x[i] = halves[at(i / columns, i % columns)];
    Values wanted(64 * N);
    for (size_t i = 0; i < wanted.size(); i++)
        for (size_t k = 0; k < columns; k++) wanted[i] += float(at(i / N, k) * at(i % N, k));
    struct alignas(128) {
        char map[128];
        Pointer y;
        uint32_t slices;
    } arguments = {{}, upload(Values(wanted.size())), slices};
    const uint64_t sizes[] = {columns, N}, strides[] = {2 * columns};
    const uint32_t box[] = {64, N}, steps[] = {1, 1};
    call("cuTensorMapEncodeTiled", (void*)arguments.map, 6, 2u, upload(x), (const uint64_t*)sizes,
         (const uint64_t*)strides, (const uint32_t*)box, (const uint32_t*)steps, 0, 3, 0, 0);
    if (launch(kernel, 1, N, 0, stream, arguments)) std::exit(1);
    expect(name, download<float>(arguments.y, wanted.size(), stream), wanted);
}

// The host reads pinned memory before the copy into it has ended.
void missing_wait(const char* name) {
    use_device(0);
    Handle add = function(load("good.cu"), "accumulate"), stream = new_stream();
    Values x = numbers(N);
    Pair arguments = {upload(x), upload(Values(N)), N};
    float* pinned;
    call("cuMemHostAlloc", (void**)&pinned, N * sizeof(float), 0u);
    launch(add, 1, N, 0, stream, arguments);
    call("cuMemcpyDtoHAsync_v2", (void*)pinned, arguments.y, N * sizeof(float), stream);
    if (is_fixed(name)) call("cuStreamSynchronize", stream);
    expect(name, Values(pinned, pinned + N), x);
}

}  // namespace

const Case* bug_cases() {
#define BOTH(name, run) \
    {#name, run}, { #name "_fixed", run }
    static const Case cases[] = {
        BOTH(missing_barrier, missing_barrier),
        BOTH(reused_buffer, reused_buffer),
        BOTH(cross_block, cross_block),
        BOTH(missing_syncwarp, missing_syncwarp),
        BOTH(weak_wait, weak_wait),
        BOTH(divergent_barrier, copies),
        BOTH(divergent_shuffle, divergent_shuffle),
        BOTH(too_many_registers, registers),
        BOTH(shared_bounds, copies),
        BOTH(global_bounds, copies),
        BOTH(misaligned, misaligned),
        BOTH(early_read, early_read),
        BOTH(deadlock, deadlock),
        BOTH(missing_wait, missing_wait),
        {"no_full_barrier", square},
        {"no_empty_barrier", square},
        {"early_empty_barrier", square},
        {"no_wait_for_products", square},
        {"no_fence_before_products", square},
        {"no_fence_after_init", square},
        {"no_fence_between_proxies", square},
        {"products_fixed", square},
        {nullptr, nullptr},
    };
#undef BOTH
    return cases;
}

}  // namespace test
