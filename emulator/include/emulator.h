// What a kernel compiled as C++ and the runtime that runs it know of each other. Everything a
// kernel can do beyond plain C++ is a function here; include/device.h and include/lib/ptx.cuh give
// them CUDA's names.
#pragma once
#include <cstddef>
#include <cstdint>

#pragma GCC visibility push(default)
namespace emulator {

struct Index {
    unsigned x, y, z;
};

// A place in the kernel's source: where the caller of a function with `Site site = here()` stands.
struct Site {
    const char* file;
    int line;
};
inline constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
}

// What a running CUDA thread knows of itself.
struct Self {
    Index thread, block, block_dim, grid_dim;
    unsigned lane, warp;
};
extern Self* self;  // the thread that runs now; the scheduler sets it at every switch

// A kernel, as the trampoline that src/dialect.cpp appends to each source describes it.
struct Kernel {
    const char* name;
    void (*run)(void* const* arguments);
    unsigned arguments;
    const size_t* sizes;
    const size_t* alignments;
    int max_threads;
};

// A variable of a module, which tells of itself when its code is loaded.
struct Registration {
    Registration(const char* name, const volatile void* address, size_t bytes);
};

// Barriers and warp-wide meetings: all threads concerned must come, to the same place.
void sync_threads(Site site);
unsigned sync_threads_count(bool vote, Site site);  // and how many have voted
// The same for the lanes of a mask that have not returned, wherever they stand: src/lanes.cpp.
struct Lanes {
    uint32_t come;
    uint64_t values[32];  // 0 where none came
};
Lanes gather(const char* what, uint32_t mask, uint64_t value, Site site);
void sync_lanes(uint32_t mask, Site site);
uint32_t active_lanes(Site site);
unsigned check_lane(const Lanes& lanes, const char* what, unsigned lane, Site site);
void stop(int result, const char* why, Site site);  // the grid
uint32_t shuffle(uint32_t value, unsigned from_lane, Site site);
uint32_t ballot(bool vote, Site site);
void load_matrices(uint32_t* registers, unsigned count, bool transposed, const void* row,
                   Site site);
enum class Half { F16, Bf16 };
void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Half type,
                      Site site);

// Asynchronous copies to shared memory, 16 bytes each: poison now, data when waited for.
void copy_async(void* to, const void* from, bool valid, Site site);
void copy_commit();
void copy_wait(unsigned groups_left);

// Hopper's barriers in shared memory, boxes of a matrix that TMA loads, and products of
// a warpgroup: src/hopper.cpp and src/wgmma.cpp.
void barrier_init(void* barrier, uint32_t arrivals, Site site);
void tell_of_barriers();  // lets TMA know of those made by this thread
void tell_of_writes();    // and engines of what this thread has written, or seen written
void barrier_arrive(void* barrier, uint32_t expected_bytes, Site site);
void barrier_wait(void* barrier, uint32_t parity, Site site);
void copy_box(void* to, const void* map, uint32_t row, uint32_t column, void* barrier, Site site);
uint32_t shared_address(const void* shared, Site site);  // as the hardware numbers shared memory
void products_fence(Site site);
void products_commit(Site site);
void products_wait(unsigned groups_left, Site site);
// wgmma: d = a b, or d += a b. A: [64, 16]; B: [16, columns].
struct Product {
    float (*sums)[4];           // the lane's
    const uint32_t* registers;  // the lane's part of A; null: it is in shared memory
    uint64_t a, b;              // descriptors
    unsigned columns;
    bool transposed;  // B lies in rows of its own, not in its columns
    bool accumulate;
    Half type;
    Site site;
    void* caller;
};
void multiply(Product product);
// Barriers of some of a block's warps.
void named_sync(uint32_t number, uint32_t threads, Site site);
void named_arrive(uint32_t number, uint32_t threads, Site site);
void change_registers(unsigned registers, bool more, Site site);

// Shared memory of the running block. `key` tells one variable from another.
void* shared_variable(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared_memory();

// Between blocks and kernels.
void poll(const void* address, Site site);  // before a load that may be part of a spin loop
void pause(Site site);                      // let others run
void poll_outside();  // before a load of what other devices or the host may write
void poll_peers();    // before a load of what other devices may write, where there are such
void progressed();                          // something was published: waiting for it may end
void fence();
void before_atomic(const void* address);
void after_atomic(const void* address, bool changed, Site site);
// Of relaxed accesses for the system: takes a store that is seen later, if stores are late; before a
// load; a release for the system, from where on all of the device's stores are seen.
bool store_late(void* to, uint64_t value, unsigned bytes, Site site);
void look(const void* from);
void land_stores();
void dependency_wait();
void dependency_launch();

// Access checks for what the sanitizers cannot see, and alignment, which a GPU checks and a CPU
// does not.
void check_aligned(const void* address, size_t alignment, Site site);

}  // namespace emulator
#pragma GCC visibility pop
