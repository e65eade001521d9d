// The machine behind the driver: devices, streams with their queues, events, graphs. One lock for
// all of it; whoever holds it runs the work of all streams, so that a seed decides everything.
#pragma once
#include "grid.h"
#include "memory.h"

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <thread>

namespace emulator {

struct Stream;
struct Device;

// Thrown inside a driver function: what it returns.
struct Failure {
    int result;
};

// Memory that something of the driver's own takes, until it goes or the context does.
class Charge {
public:
    Charge(Device& device, size_t bytes);  // fails where there is not so much
    ~Charge();
    Charge(const Charge&) = delete;

private:
    Device* device_;
    size_t bytes_;
    unsigned context_;
};

struct Dependency {
    Stream* stream;
    uint64_t count;  // that many of its operations have ended
};

// Work that may have to wait for something outside the machine: called until it returns true.
using Steps = std::function<bool()>;

struct Operation {
    std::function<void()> run;             // a copy, a fill, a host function ...
    std::shared_ptr<const Launch> launch;  // ... or a kernel ...
    std::function<Steps()> begin;          // ... or something with others' part in it
    std::vector<Dependency> after;
};

struct Graph {
    std::vector<Operation>
        operations;  // in an order that respects every edge: the order of capture
    Stream* origin = nullptr;
    std::vector<Stream*> streams;  // that record into it
    int mode = 0;
    std::thread::id thread;  // that began it
    bool invalid = false;

    // In thread-local mode, whose calls it forbids.
    bool is_this_threads() const { return mode == 1 && thread == std::this_thread::get_id(); }
};

struct Queued {
    Operation operation;
    std::unique_ptr<Grid> grid;  // once begun
    Steps steps;                 // likewise
    char token = 0;              // what the host did before
};

struct Stream {
    Device* device;
    bool blocking;  // ordered with the device's null stream
    bool destroyed = false;
    std::deque<Queued> queue;
    uint64_t submitted = 0, ended = 0;
    std::shared_ptr<Graph> capture;
    void* thread = nullptr;  // ThreadSanitizer's idea of the stream
    std::unique_ptr<Grid>
        last;        // the kernel that ended last, while a programmatic dependent may follow
    char token = 0;  // what the stream has done
};

struct Event {
    Device* device;
    bool timed;
    Dependency recorded = {nullptr, 0};
    std::shared_ptr<Graph> capture;  // recorded in a capture: no other use
    std::shared_ptr<std::chrono::steady_clock::time_point> time;
};

struct Device {
    int ordinal;
    size_t memory_bytes = 0, used_bytes = 0;
    int error = 0;  // sticky
    unsigned retained = 0, contexts = 0;  // holders of its context; contexts that have gone
    std::unique_ptr<Charge> own;          // of the context
    bool kept = false;                    // one of its holders is NCCL
    std::set<int> peers;         // whose memory its kernels may use
    std::deque<Stream> streams;  // the first is the null stream; never shrinks
};

struct Machine {
    std::mutex mutex;
    std::condition_variable submitted;
    uint64_t submissions = 0;
    std::deque<Device> devices;
};

Machine& machine();

// Adds an operation to a stream or to the graph it is captured into.
void submit(Stream& stream, Operation operation);
void submit_all(Stream& stream,
                const std::vector<Operation>& operations);  // a graph: before any of them runs

// Runs a stream until it has ended `count` operations, and whatever else that takes. Sees to a
// deadlock.
void force(Dependency until, std::unique_lock<std::mutex>& lock);
void force(Device& device, std::unique_lock<std::mutex>& lock);  // all its streams
void step_once(Dependency towards);                              // a query: some progress, no more
bool ended(const Dependency& dependency);

// A call that the real driver may hold until all devices are idle, and other threads' calls with it. If
// a kernel waits for one that another thread has still to launch, that is for ever: the call fails.
void wait_for_all_devices(const char* function);

// The same of a call that may be held until a stream's work has ended.
void wait_for_stream(Stream& stream, const char* function);

// The first error that a kernel on this device made stays, and everything queued on it is dropped.
void poison(Device& device, int result);

// Device `device` launches; every argument that points to memory must point to some it may use.
void check_arguments(const Launch& launch, const Device& device);

}  // namespace emulator
