// Streams, events, capture and graphs.
#include "entry.h"

#include "hooks.h"

#include <algorithm>

namespace emulator {
namespace {

using Clock = std::chrono::steady_clock;

// What a capture hands out. The two handle types share everything but their operations' order of
// birth.
struct GraphHandle {
    std::vector<Operation> operations;
    Device* device;
    std::unique_ptr<Charge> charge;  // of an executable one
    bool uploaded = false;
};

// What each operation of an executable graph takes of the device's memory: 10 KB of 80 GB.
constexpr size_t kNodePart = 8 << 20;

// A call that waits for what a capture has is refused, and ends it.
void refuse_captured(const std::shared_ptr<Graph>& capture) {
    if (!capture) return refuse_during_capture();
    capture->invalid = true;
    throw Failure{kCaptureUnsupported};
}

// Faults are of kernels that run, not of those that are captured.
std::shared_ptr<const Launch> with_planned_fault(const std::shared_ptr<const Launch>& launch) {
    const int fault = planned_fault("kernel", current_device->ordinal);
    if (!fault) return launch;
    auto faulty = std::make_shared<Launch>(*launch);
    faulty->planned_fault = fault;
    return faulty;
}

void join(Stream& stream, const std::shared_ptr<Graph>& graph) {
    if (stream.capture == graph) return;
    if (stream.capture) throw Failure{kCaptureUnsupported};
    stream.capture = graph;
    graph->streams.push_back(&stream);
}

}  // namespace
}  // namespace emulator

using namespace emulator;

ENTRY cuStreamCreateWithPriority(Stream** stream, unsigned flags, int) {
    return enter("cuStreamCreate", Needs::Context, [&](Lock&) {
        current_device->streams.emplace_back();
        *stream = &current_device->streams.back();
        (*stream)->device = current_device;
        (*stream)->blocking = !(flags & 1);
    });
}
ENTRY cuStreamCreate(Stream** stream, unsigned flags) {
    return cuStreamCreateWithPriority(stream, flags, 0);
}

ENTRY cuStreamDestroy_v2(Stream* stream) {
    return enter("cuStreamDestroy_v2", Needs::Context, [&](Lock& lock) {
        if (!stream || stream_of(stream).capture) throw Failure{kInvalidHandle};
        force({stream, stream->submitted}, lock);
        stream->destroyed = true;
        if (stream->thread) sanitizer::destroy(stream->thread);
        stream->thread = nullptr;
    });
}

ENTRY cuStreamSynchronize(Stream* handle) {
    return enter("cuStreamSynchronize", Needs::Context, [&](Lock& lock) {
        Stream& stream = stream_of(handle);
        refuse_captured(stream.capture);
        force({&stream, stream.submitted}, lock);
    });
}

ENTRY cuStreamQuery(Stream* handle) {
    return enter("cuStreamQuery", Needs::Context, [&](Lock&) {
        queries++;
        Stream& stream = stream_of(handle);
        refuse_captured(stream.capture);
        Dependency all = {&stream, stream.submitted};
        step_once(all);
        if (!ended(all)) throw Failure{kNotReady};
    });
}

ENTRY cuStreamWaitEvent(Stream* handle, Event* event, unsigned) {
    return enter("cuStreamWaitEvent", Needs::Context, [&](Lock&) {
        Stream& stream = stream_of(handle);
        if (event->capture) {
            join(stream, event->capture);
            return;
        }
        if (ended(event->recorded) && !event->recorded.stream) return;  // never recorded
        Operation operation;
        operation.run = [] {};
        operation.after = {event->recorded};
        submit(stream, std::move(operation));
    });
}

ENTRY cuStreamGetCtx(Stream* stream, Device** context) {
    return enter("cuStreamGetCtx", Needs::Context,
                 [&](Lock&) { *context = stream_of(stream).device; });
}

ENTRY cuStreamAttachMemAsync(Stream*, uintptr_t, size_t, unsigned) { return kSuccess; }

ENTRY cuLaunchHostFunc(Stream* stream, void (*function)(void*), void* argument) {
    return enter("cuLaunchHostFunc", Needs::Context, [&](Lock&) {
        Operation operation;
        operation.run = [=] { function(argument); };
        submit(stream_of(stream), std::move(operation));
    });
}

ENTRY cuEventCreate(Event** event, unsigned flags) {
    return enter("cuEventCreate", Needs::Context,
                 [&](Lock&) { *event = new Event{current_device, !(flags & 2), {}, {}, {}}; });
}

ENTRY cuEventDestroy_v2(Event* event) {
    return enter("cuEventDestroy_v2", Needs::Context, [&](Lock&) { delete event; });
}

ENTRY cuEventRecord(Event* event, Stream* handle) {
    return enter("cuEventRecord", Needs::Context, [&](Lock&) {
        Stream& stream = of_this_device(stream_of(handle));
        of_this_device(*event).capture = stream.capture;
        if (stream.capture) return;
        auto time = event->time = std::make_shared<Clock::time_point>();
        Operation operation;
        operation.run = [time] { *time = Clock::now(); };
        submit(stream, std::move(operation));
        event->recorded = {&stream, stream.submitted};
    });
}
ENTRY cuEventRecordWithFlags(Event* event, Stream* stream, unsigned) {
    return cuEventRecord(event, stream);
}

ENTRY cuEventSynchronize(Event* event) {
    return enter("cuEventSynchronize", Needs::Context, [&](Lock& lock) {
        refuse_captured(event->capture);
        force(event->recorded, lock);
    });
}

ENTRY cuEventQuery(Event* event) {
    return enter("cuEventQuery", Needs::Context, [&](Lock&) {
        refuse_captured(event->capture);
        step_once(event->recorded);
        if (!ended(event->recorded)) throw Failure{kNotReady};
    });
}

ENTRY cuEventElapsedTime_v2(float* milliseconds, Event* from, Event* to) {
    return enter("cuEventElapsedTime_v2", Needs::Context, [&](Lock&) {
        for (Event* event : {from, to})
            if (!of_this_device(*event).time || !event->timed) throw Failure{kInvalidHandle};
        if (!ended(from->recorded) || !ended(to->recorded)) throw Failure{kNotReady};
        *milliseconds = std::chrono::duration<float, std::milli>(*to->time - *from->time).count();
    });
}
ENTRY cuEventElapsedTime(float* milliseconds, Event* from, Event* to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

ENTRY cuStreamBeginCapture_v2(Stream* handle, int mode) {
    return enter("cuStreamBeginCapture_v2", Needs::Context, [&](Lock&) {
        Stream& stream = stream_of(handle);
        if (stream.capture || &stream == &current_device->streams.front())
            throw Failure{kCaptureUnsupported};
        stream.capture = std::make_shared<Graph>();
        stream.capture->origin = &stream;
        stream.capture->streams = {&stream};
        stream.capture->mode = mode;
        stream.capture->thread = std::this_thread::get_id();
    });
}

ENTRY cuStreamEndCapture(Stream* handle, GraphHandle** graph) {
    return enter("cuStreamEndCapture", Needs::Context, [&](Lock&) {
        *graph = nullptr;
        Stream& stream = stream_of(handle);
        if (!stream.capture || stream.capture->origin != &stream) throw Failure{kCaptureUnmatched};
        auto captured = stream.capture;
        if (captured->mode != 2 && captured->thread != std::this_thread::get_id())
            throw Failure{kCaptureWrongThread};
        for (Stream* each : captured->streams) each->capture.reset();
        if (captured->invalid) throw Failure{kCaptureInvalidated};
        *graph = new GraphHandle{captured->operations, stream.device, nullptr};
    });
}

ENTRY cuStreamIsCapturing(Stream* handle, int* status) {
    return enter("cuStreamIsCapturing", Needs::Context, [&](Lock&) {
        Stream& stream = stream_of(handle);
        *status = !stream.capture ? 0 : stream.capture->invalid ? 2 : 1;
    });
}

ENTRY cuThreadExchangeStreamCaptureMode(int*) { return kSuccess; }

ENTRY cuGraphInstantiateWithFlags(GraphHandle** executable, GraphHandle* graph,
                                  unsigned long long) {
    return enter("cuGraphInstantiateWithFlags", Needs::Context, [&](Lock&) {
        if (!graph) throw Failure{kInvalidValue};
        refuse_during_capture();
        wait_for_all_devices("cuGraphInstantiate");
        const size_t nodes = std::max<size_t>(graph->operations.size(), 1);
        const size_t bytes = nodes * graph->device->memory_bytes / kNodePart;
        auto charge = std::make_unique<Charge>(*graph->device, bytes);
        *executable = new GraphHandle{graph->operations, graph->device, std::move(charge)};
    });
}

static void upload(GraphHandle& executable, const char* function) {
    if (!executable.uploaded) wait_for_all_devices(function);
    executable.uploaded = true;
}

ENTRY cuGraphUpload(GraphHandle* executable, Stream*) {
    return enter("cuGraphUpload", Needs::Context,
                 [&](Lock&) { upload(*executable, "cuGraphUpload"); });
}

ENTRY cuGraphLaunch(GraphHandle* executable, Stream* handle) {
    return enter("cuGraphLaunch", Needs::Context, [&](Lock&) {
        Stream& stream = of_this_device(stream_of(handle));
        of_this_device(*executable);
        upload(*executable, "cuGraphLaunch of what was not uploaded");
        std::vector<Operation> operations = executable->operations;
        for (Operation& operation : operations)
            if (operation.launch) operation.launch = with_planned_fault(operation.launch);
        submit_all(stream, operations);
    });
}

ENTRY cuGraphGetNodes(GraphHandle* graph, void**, size_t* count) {
    return enter("cuGraphGetNodes", Needs::Context,
                 [&](Lock&) { *count = graph->operations.size(); });
}

ENTRY cuGraphExecDestroy(GraphHandle* executable) {
    return enter("cuGraphExecDestroy", Needs::Context, [&](Lock&) { delete executable; });
}

ENTRY cuGraphDestroy(GraphHandle* graph) {
    return enter("cuGraphDestroy", Needs::Context, [&](Lock&) { delete graph; });
}

int chaski_emulator_wait_for_all(const char* function) {
    return enter(function, Needs::Context, [&](Lock&) { wait_for_all_devices(function); });
}

bool chaski_emulator_captures(void* stream) {
    bool captures = false;
    enter("chaski_emulator_captures", Needs::Context, [&](Lock&) {
        captures = stream_of(static_cast<Stream*>(stream)).capture != nullptr;
    });
    return captures;
}

int chaski_emulator_submit(void* stream, void* what, void* (*begin)(void*), bool (*step)(void*),
                           void (*drop)(void*)) {
    const std::shared_ptr<void> kept(what, drop);
    return enter("chaski_emulator_submit", Needs::Context, [&](Lock&) {
        Operation operation;
        operation.begin = [=]() -> Steps {
            void* state = begin(kept.get());
            return [=] { return step(state); };
        };
        submit(stream_of(static_cast<Stream*>(stream)), std::move(operation));
    });
}

void chaski_emulator_notify() { machine().submitted.notify_all(); }
