// Kernels without mistakes: right under every mode and every sanitizer.
#include "cases.h"

namespace test {
namespace {

constexpr unsigned N = 256;

struct Total {
    Pointer x, part, ticket, total;
};

void add(const char*) {
    use_device(0);
    Handle add = function(load("good.cu"), "accumulate"), stream = new_stream();
    auto x = numbers(1000), y = numbers(1000);
    Pointer dx = upload(x), dy = upload(y);
    if (launch(add, 3, N, 0, stream, Pair{dx, dy, 1000})) std::exit(1);
    for (size_t i = 0; i < y.size(); i++) y[i] += x[i];
    expect("y", download<float>(dy, 1000, stream), y);
}

void reduce(const char*) {
    use_device(0);
    Handle module = load("good.cu"), stream = new_stream();
    auto x = numbers(4 * N);
    Pointer dx = upload(x), dy = allocate(16 * sizeof(float));
    std::vector<float> blocks(4), warps(16);
    for (size_t i = 0; i < x.size(); i++) blocks[i / N] += x[i];
    for (size_t i = 0; i < N; i++) warps[i / 32] += x[i], warps[8 + i / 32] += x[i] > 3;
    launch(function(module, "block_reduce"), 4, N, 0, stream, Pair{dx, dy, 0});
    expect("block_reduce", download<float>(dy, 4, stream), blocks);
    launch(function(module, "warp_reduce"), 1, N, 0, stream, Pair{dx, dy, 0});
    expect("warp_reduce", download<float>(dy, 16, stream), warps);
}

// Small integers as bf16 and f16; both have them exactly.
uint16_t bf16(int v) {
    float f = float(v);
    uint32_t bits;
    __builtin_memcpy(&bits, &f, 4);
    return uint16_t(bits >> 16);
}
uint16_t f16(int v) {
    if (v == 0) return 0;
    int magnitude = v < 0 ? -v : v, exponent = 31 - __builtin_clz(unsigned(magnitude));
    return uint16_t((v < 0 ? 0x8000 : 0) | (exponent + 15) << 10 |
                    (magnitude << (10 - exponent) & 0x3ff));
}

void product(const char* name, uint16_t (*half)(int)) {
    use_device(0);
    Handle kernel = function(load("good.cu"), name), stream = new_stream();
    std::vector<uint16_t> a(256), b(128);
    std::vector<float> d(128, 1.0f);
    auto at = [](size_t i) { return int(i * 37 % 23) - 11; };
    for (size_t i = 0; i < a.size(); i++) a[i] = half(at(i));
    for (size_t i = 0; i < b.size(); i++) b[i] = half(at(i + 5));
    for (size_t row = 0; row < 16; row++)
        for (size_t column = 0; column < 8; column++)
            for (size_t k = 0; k < 16; k++)
                d[row * 8 + column] += float(at(row * 16 + k) * at(k * 8 + column + 5));
    struct {
        Pointer a, b, d;
    } arguments = {upload(a), upload(b), allocate(128 * sizeof(float))};
    launch(kernel, 1, 32, 0, stream, arguments);
    expect(name, download<float>(arguments.d, 128, stream), d);
}
void product_f16(const char*) { product("product_f16", f16); }
void product_bf16(const char*) { product("product_bf16", bf16); }

void pipeline(const char*) {
    use_device(0);
    Handle kernel = function(load("good.cu"), "pipeline"), stream = new_stream();
    const size_t rows = 7;
    auto x = numbers(rows * 4 * N);
    std::vector<float> y(rows * N);
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < 4 * N; i++) y[row * N + i % N] += x[row * 4 * N + i];
    Pointer dx = upload(x), dy = allocate(rows * N * sizeof(float));
    launch(kernel, 1, N, 3 * 4 * N * sizeof(float), stream, Pair{dx, dy, rows});
    expect("pipeline", download<float>(dy, rows * N, stream), y);
}

void across_blocks(const char* name, size_t blocks, size_t values) {
    use_device(0);
    Handle kernel = function(load("good.cu"), name), stream = new_stream();
    auto x = numbers(values);
    float sum = 0;
    for (float v : x) sum += v;
    Total arguments = {upload(x), allocate(blocks * sizeof(float)),
                       upload(std::vector<uint32_t>{0}), allocate(4)};
    launch(kernel, unsigned(blocks), N, 0, stream, arguments);
    expect(name, download<float>(arguments.total, 1, stream), {sum});
}
void last_block(const char*) { across_blocks("last_block", 7, 7 * N); }
void grid_barrier(const char*) { across_blocks("grid_barrier", 6, 6); }

// Two streams: the second raises the flag that the first spins on.
void flag(const char*) {
    use_device(0);
    Handle module = load("good.cu"), first = new_stream(), second = new_stream();
    Total arguments = {upload(std::vector<float>{42}), allocate(4),
                       upload(std::vector<uint32_t>{0}), allocate(4)};
    launch(function(module, "wait_flag"), 1, 32, 0, first, arguments);
    launch(function(module, "raise_flag"), 1, 32, 0, second, arguments);
    expect("flag", download<float>(arguments.total, 1, first), {42.0f});
}

// Captured, so that both kernels are queued together: the dependent may come first.
void programmatic(const char*) {
    use_device(0);
    Handle module = load("good.cu"), stream = new_stream(), graph, executable;
    auto x = numbers(4 * N), y = x;
    for (float& v : y) v *= 3;
    Pair arguments = {upload(x), allocate(4 * N * sizeof(float)), 0};
    Handle primary = function(module, "primary"), dependent = function(module, "dependent");
    call("cuStreamBeginCapture_v2", stream, 0);
    launch_programmatic(primary, 4, N, stream, arguments);
    launch_programmatic(dependent, 4, N, stream, arguments);
    call("cuStreamEndCapture", stream, &graph);
    call("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
    for (int replay = 0; replay < 2; replay++) {
        call("cuGraphLaunch", executable, stream);
        expect("programmatic", download<float>(arguments.y, 4 * N, stream), y);
    }
}

}  // namespace

const Case* good_cases() {
    static const Case cases[] = {
        {"add", add},
        {"reduce", reduce},
        {"product_f16", product_f16},
        {"product_bf16", product_bf16},
        {"pipeline", pipeline},
        {"last_block", last_block},
        {"grid_barrier", grid_barrier},
        {"flag", flag},
        {"programmatic", programmatic},
        {nullptr, nullptr},
    };
    return cases;
}

}  // namespace test
