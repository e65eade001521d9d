#include "fiber.h"

#include <sys/mman.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#error "the emulator switches fibers with x86-64 instructions"
#endif

// Pushes what a call must preserve, changes stacks, pops the other side's. 25-30 ns; ucontext's
// switch makes a system call and takes ten times as long. rdi: where to leave our stack pointer,
// rsi: the one to resume.
asm(R"(
    .text
    .p2align 4
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
    .size emulator_switch, .-emulator_switch
)");
extern "C" void emulator_switch(void** save, void* load) asm("emulator_switch");

namespace emulator {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = sanitizer::thread || sanitizer::address ? 256 << 10 : 64 << 10;
constexpr int kSavedRegisters = 6;

Fiber* left;  // the fiber that the last switch came from

void finish_switch([[maybe_unused]] Fiber& arrived) {
#if defined(EMULATOR_ADDRESS)
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(arrived.fake_stack, &bottom, &bytes);
    if (!left->stack) {  // an OS thread's: now its bounds are known
        left->stack = static_cast<char*>(const_cast<void*>(bottom));
        left->stack_bytes = bytes;
    }
#endif
}

}  // namespace

uint64_t switches;

void restart(Fiber& fiber, void (*entry)()) {
    // As emulator_switch would have left it: six registers, `entry` as return address, 0 as entry's
    // own (ends backtraces). At a function's first instruction rsp is 8 below a multiple of 16.
    auto* top = reinterpret_cast<void**>(fiber.stack + fiber.stack_bytes) - 3;
    top[0] = nullptr;
    top[-1] = reinterpret_cast<void*>(entry);
    for (int i = 0; i < kSavedRegisters; i++) top[-2 - i] = nullptr;
    fiber.stack_pointer = top - 1 - kSavedRegisters;
    fiber.fake_stack = nullptr;
    if (fiber.thread) sanitizer::destroy(fiber.thread);
    fiber.thread = sanitizer::create();
#if defined(EMULATOR_ADDRESS)
    __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
#endif
}

void create(Fiber& fiber, void (*entry)()) {
    void* memory = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) {
        std::fprintf(stderr, "emulator: no memory for the stack of another thread\n");
        std::abort();
    }
    fiber.stack = static_cast<char*>(memory) + kPage;
    fiber.stack_bytes = kStackBytes;
    restart(fiber, entry);
}

void adopt(Fiber& host) { host.thread = sanitizer::current(); }

void switch_fiber(Fiber& from, Fiber& to) {
    left = &from;
    switches++;
    sanitizer::switch_to(to.thread);
#if defined(EMULATOR_ADDRESS)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
    emulator_switch(&from.stack_pointer, to.stack_pointer);
    finish_switch(from);
}

void enter_fiber() {
    Fiber fresh;
    finish_switch(fresh);
}

}  // namespace emulator
