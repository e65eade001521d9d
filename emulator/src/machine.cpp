#include "machine.h"

#include "modes.h"
#include "stores.h"

#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>

namespace emulator {
namespace {

enum class Step { Went, Spinning, Idle };

constexpr int kTimeout = 702, kIllegalAddress = 700;

// Runs code as the stream: what it reads and writes is the stream's doing, not the calling host
// thread's.
class AsStream {
public:
    explicit AsStream(Stream& stream) : host_(sanitizer::current()) {
        if (!stream.thread) stream.thread = sanitizer::create();
        sanitizer::switch_to(stream.thread);
    }
    ~AsStream() { sanitizer::switch_to(host_); }

private:
    void* host_;
};

// The kernel that ended last is behind the stream now.
void settle(Stream& stream) {
    if (stream.last) sanitizer::acquire(stream.last->end_token());
    stream.last.reset();
}

void begin(Queued& queued, Stream& stream) {
    sanitizer::acquire(&queued.token);
    for (const Dependency& dependency : queued.operation.after)
        sanitizer::acquire(&dependency.stream->token);
    const Launch& launch = *queued.operation.launch;
    check_arguments(launch, *stream.device);
    queued.grid = std::make_unique<Grid>(launch);
}

bool free_to_go(const Queued& queued, const Stream& stream) {
    for (const Dependency& dependency : queued.operation.after)
        if (dependency.stream != &stream && !ended(dependency)) return false;
    return true;
}

// Programmatic dependents may begin before the kernel in front of them. So they do, the last one
// first.
void run_early(Stream& stream) {
    constexpr size_t kDepth = 2;
    if (!modes().early_dependents) return;
    size_t end = 1;
    while (end < stream.queue.size() && end <= kDepth) {
        Queued& queued = stream.queue[end];
        if (!queued.operation.launch || !queued.operation.launch->programmatic ||
            !free_to_go(queued, stream))
            break;
        if (!queued.grid) begin(queued, stream);
        end++;
    }
    for (size_t i = end; i-- > 1;)
        if (stream.queue[i].grid->advance() == Progress::Failed) {
            poison(*stream.device, stream.queue[i].grid->result());
            return;
        }
}

Step run_kernel(Stream& stream) {
    running_device = stream.device->ordinal;
    Queued& head = stream.queue.front();
    if (!head.grid) {
        if (!head.operation.launch->programmatic) settle(stream);
        begin(head, stream);
    }
    settle(stream);
    if (!head.grid->dependency_has_ended()) head.grid->dependency_ended();
    run_early(stream);
    if (stream.queue.empty()) return Step::Went;
    uint64_t before = progress;
    switch (head.grid->advance()) {
        case Progress::Finished:
            stream.last = std::move(head.grid);
            return Step::Went;
        case Progress::Failed:
            poison(*stream.device, head.grid->result());
            return Step::Went;
        default:
            return progress == before ? Step::Spinning : Step::Went;
    }
}

// Runs the head of the queue, or what it waits for.
Step step(Stream& stream, int depth = 0) {
    if (stream.queue.empty()) return Step::Idle;
    if (depth > 64) return Step::Spinning;  // streams that wait for each other in a circle
    Queued& head = stream.queue.front();
    for (const Dependency& dependency : head.operation.after)
        if (!ended(dependency)) return step(*dependency.stream, depth + 1);
    AsStream as(stream);
    if (head.operation.launch) {
        Step result;
        try {
            result = run_kernel(stream);
        } catch (const Failure& failure) {
            poison(*stream.device, failure.result);
            return Step::Went;
        }
        if (stream.queue.empty() || !stream.last) return result;
    } else {
        settle(stream);
        sanitizer::acquire(&head.token);
        for (const Dependency& dependency : head.operation.after)
            sanitizer::acquire(&dependency.stream->token);
        if (head.operation.begin) {
            if (!head.steps) {
                const auto begin = head.operation.begin;
                Steps steps = begin();
                if (stream.queue.empty()) return Step::Went;  // it has lost its device
                head.steps = steps;
            }
            if (!head.steps()) return Step::Spinning;
        } else {
            head.operation.run();
        }
    }
    stream.queue.pop_front();
    stream.ended++;
    if (stream.queue.empty() || !stream.queue.front().operation.launch ||
        !stream.queue.front().operation.launch->programmatic) {
        // Nothing queued may overlap: others may see what this stream has done.
        if (stream.last) sanitizer::acquire(stream.last->end_token());
    }
    sanitizer::release(&stream.token);
    return Step::Went;
}

// False: everything spins, and only another host thread can change that.
bool run_until(const Dependency& until) {
    while (!ended(until)) {
        if (step(*until.stream) == Step::Went) continue;
        bool any = false;
        for (Device& device : machine().devices)
            for (Stream& stream : device.streams)
                if (&stream != until.stream) any |= step(stream) == Step::Went;
        if (!any) return false;
    }
    return true;
}

}  // namespace

Machine& machine() {
    static Machine* machine =
        new Machine;  // outlives everything that may still call the driver at exit
    return *machine;
}

bool ended(const Dependency& dependency) {
    return !dependency.stream || dependency.stream->ended >= dependency.count;
}

namespace {

void enqueue(Stream& stream, Operation operation) {
    Stream& null_stream = stream.device->streams.front();
    if (&stream == &null_stream) {
        for (Stream& other : stream.device->streams)
            if (other.blocking && &other != &stream)
                operation.after.push_back({&other, other.submitted});
    } else if (stream.blocking) {
        operation.after.push_back({&null_stream, null_stream.submitted});
    }
    stream.queue.emplace_back();
    stream.queue.back().operation = std::move(operation);
    sanitizer::release(&stream.queue.back().token);
    stream.submitted++;
    machine().submissions++;
    machine().submitted.notify_all();
}

}  // namespace

void submit_all(Stream& stream, const std::vector<Operation>& operations) {
    if (stream.capture) {
        auto& captured = stream.capture->operations;
        captured.insert(captured.end(), operations.begin(), operations.end());
        return;
    }
    for (const Operation& operation : operations) enqueue(stream, operation);
    if (!modes().lazy) run_until({&stream, stream.submitted});
}

void submit(Stream& stream, Operation operation) {
    std::vector<Operation> one;
    one.push_back(std::move(operation));
    submit_all(stream, one);
}

// Whether some stream waits for what other processes do, or the host while a kernel runs: that is no
// deadlock, however long it takes.
static bool waits_for_others() {
    for (Device& device : machine().devices)
        for (Stream& stream : device.streams) {
            if (stream.queue.empty()) continue;
            const Queued& head = stream.queue.front();
            if (head.steps || (head.grid && head.grid->polls_outside)) return true;
        }
    return false;
}

// Threads in calls that wait for a device.
static std::atomic<int> waiting{0};

struct Waiting {
    Waiting() { waiting++; }
    ~Waiting() { waiting--; }
};

// A real driver's handlers may wait for such threads when the process ends by exit().
static const struct AtExit {
    ~AtExit() {
        if (waiting == 0) return;
        std::fprintf(stderr, "emulator: exit() while a thread waits in a call may not return\n");
        _exit(97);
    }
} at_exit;

void force(Dependency until, std::unique_lock<std::mutex>& lock) {
    const Waiting call;
    while (!run_until(until)) {
        uint64_t seen = machine().submissions;
        if (waits_for_others()) {
            machine().submitted.wait_for(lock, std::chrono::microseconds(200));
            continue;
        }
        bool more =
            machine().submitted.wait_for(lock, std::chrono::milliseconds(modes().patience_ms),
                                         [&] { return machine().submissions != seen; });
        if (more) continue;
        Stream& stream = *until.stream;
        Grid* grid = stream.queue.empty() ? nullptr : stream.queue.front().grid.get();
        if (grid)
            grid->fail(kTimeout, grid->spinning());
        else
            std::fprintf(stderr, "emulator: deadlock: streams wait for each other\n");
        poison(*stream.device, kTimeout);
    }
    if (until.stream) sanitizer::acquire(&until.stream->token);
}

void force(Device& device, std::unique_lock<std::mutex>& lock) {
    for (Stream& stream : device.streams) force({&stream, stream.submitted}, lock);
}

static const Grid* waiting_for_a_peer(const Stream& stream) {
    if (stream.queue.empty()) return nullptr;
    const Grid* grid = stream.queue.front().grid.get();
    // One that is to stall would never end, whoever calls.
    const bool waits = grid && grid->polls_outside && grid->launch().planned_fault != kStalls;
    return waits ? grid : nullptr;
}

static void wait_for(const std::vector<Stream*>& streams, const char* function) {
    if (!modes().hold || std::none_of(streams.begin(), streams.end(),
                                      [](Stream* stream) { return waiting_for_a_peer(*stream); }))
        return;
    for (Stream* stream : streams)
        if (!run_until({stream, stream->submitted})) break;
    for (const Stream* stream : streams) {
        const Grid* grid = waiting_for_a_peer(*stream);
        if (!grid) continue;
        report(std::string(function) + " while kernel " + grid->launch().kernel->name + " on device " +
               std::to_string(stream->device->ordinal) +
               " waits for a peer: the driver may wait for that kernel, and keep its peer waiting");
        throw Failure{kTimeout};
    }
}

void wait_for_all_devices(const char* function) {
    std::vector<Stream*> all;
    for (Device& device : machine().devices)
        for (Stream& stream : device.streams) all.push_back(&stream);
    wait_for(all, function);
}

void wait_for_stream(Stream& stream, const char* function) { wait_for({&stream}, function); }

void step_once(Dependency towards) {
    if (!ended(towards)) step(*towards.stream);
    if (towards.stream && ended(towards)) sanitizer::acquire(&towards.stream->token);
}

void poison(Device& device, int result) {
    if (!device.error) device.error = result;
    for (Stream& stream : device.streams) {
        stream.queue.clear();
        stream.ended = stream.submitted;
        stream.last.reset();
    }
}

void check_arguments(const Launch& launch, const Device& device) {
    for (size_t i = 0; i < launch.arguments.size(); i++) {
        const Argument& argument = launch.arguments[i];
        for (size_t at = 0; at + sizeof(uintptr_t) <= argument.size(); at += sizeof(uintptr_t)) {
            uintptr_t word;
            std::memcpy(&word, argument.data() + at, sizeof word);
            const Allocation* allocation = find(word);
            if (!allocation) continue;
            const bool pinned = allocation->device == kHost;
            const bool foreign = pinned ? !allocation->mapped_for(device.ordinal)
                                        : allocation->device != device.ordinal &&
                                              !device.peers.count(allocation->device);
            if (!foreign && !allocation->freed) continue;
            std::string what = std::string("kernel ") + launch.kernel->name + ": argument " +
                               std::to_string(i) + ", byte " + std::to_string(at) + " points to " +
                               describe(word);
            if (foreign)
                what += " of device " + std::to_string(allocation->owner) + ", which device " +
                        std::to_string(device.ordinal) + " has no access to";
            std::fprintf(stderr, "emulator: %s\n", what.c_str());
            throw Failure{kIllegalAddress};
        }
    }
}

}  // namespace emulator
