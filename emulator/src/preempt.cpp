// A timer interrupts the OS thread that runs kernels. Where the kernel's own code is interrupted, its fiber
// can go over to another one out of the signal's handler, and come back later as after any call.
//
// A thread that is interrupted again and again with the same contents of all its registers goes round in a
// circle, unless somebody else stores what it waits for: it spins, as one that polls does.
#include "preempt.h"

#include "fault.h"
#include "grid.h"
#include "modes.h"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <csignal>
#include <cstring>
#include <ctime>

namespace emulator {
namespace {

constexpr int kSignal = SIGPROF;
constexpr long kTickMs = 4;      // of the OS thread's processor time
constexpr unsigned kFirst = 25;  // ticks until a thread is made to give way, unless another one has been
constexpr unsigned kSame = 12;   // times the same registers, until that is a circle
// Looks after which it is none. ThreadSanitizer is at work most of the time, and tells of such loops itself.
constexpr unsigned kLooks = sanitizer::thread ? 2 : 40;

thread_local bool looked_after = false;
uint64_t switches_before;  // at the last tick
unsigned ticks;            // since the last switch

uint64_t hash_of(const ucontext_t& context) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; i <= REG_RIP; i++)
        hash = (hash ^ uint64_t(context.uc_mcontext.gregs[i])) * 0x100000001b3u;
    // Compilers keep variables on the stack, too.
    const auto* stack = reinterpret_cast<const uint64_t*>(context.uc_mcontext.gregs[REG_RSP]);
    const auto* top = reinterpret_cast<const uint64_t*>(current().fiber.stack + current().fiber.stack_bytes);
    for (int i = 0; i < 64 && stack + i < top; i++) hash = (hash ^ stack[i]) * 0x100000001b3u;
    return hash;
}

void on_tick(int, siginfo_t*, void* raw) {
    if (!looked_after || !self) return;
    const auto& context = *static_cast<ucontext_t*>(raw);
    const auto code = uintptr_t(context.uc_mcontext.gregs[REG_RIP]);
    Thread& me = current();
    Grid& grid = *me.team->block->grid;
    ticks = switches == switches_before ? ticks + 1 : 0;
    switches_before = switches;
    grid.ticks++;
    if (!in_kernel(code)) return;
    if (grid.ticks * kTickMs > modes().limit_ms)
        fail_at(code, 702, "still runs after " + std::to_string(modes().limit_ms / 1000) + " s");
    if (!grid.circles.count(code) && ticks < (grid.somebody_loops ? 1 : kFirst)) return;
    grid.somebody_loops = true;
    me.same += !me.states.insert(hash_of(context)).second;
    me.codes.insert(code);
    if (me.same >= kSame) grid.circles.insert(me.codes.begin(), me.codes.end());
    // Where others go round already, one look is enough.
    const bool circles = grid.circles.count(code);
    if (!circles && me.states.size() + me.same < kLooks) return;
    me.states.clear();
    me.codes.clear();
    me.same = ticks = 0;
    me.vain = circles ? kVain : 0;
    me.code = code;
    wait(State::Spinning, "a loop", {"", 0});
    me.code = 0;
}

}  // namespace

void look_after_kernels() {
    if (looked_after || !modes().limit_ms) return;
    looked_after = true;
    struct sigaction action = {};
    action.sa_sigaction = on_tick;
    action.sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER;
    // ThreadSanitizer's own keeps signals back until the next system call.
    void* libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
    using Function = int (*)(int, const struct sigaction*, struct sigaction*);
    const auto own = reinterpret_cast<Function>(libc ? dlsym(libc, "sigaction") : nullptr);
    if (!own || own(kSignal, &action, nullptr) != 0) return;
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = kSignal;
    event._sigev_un._tid = pid_t(syscall(SYS_gettid));
    timer_t timer;
    if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) != 0) return;
    const timespec tick = {0, kTickMs * 1000000};
    const itimerspec period = {tick, tick};
    timer_settime(timer, 0, &period, nullptr);
}

}  // namespace emulator
