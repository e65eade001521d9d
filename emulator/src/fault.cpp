#include "fault.h"

#include "grid.h"
#include "memory.h"
#include "shell.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <csignal>
#include <cstdlib>

namespace emulator {
namespace {

constexpr int kIllegalAddress = 700, kHardwareStackError = 714;
constexpr int kSignals[] = {SIGSEGV, SIGBUS};

struct sigaction previous[2];
uintptr_t fault_address, fault_code;  // of the one kernel thread that runs

}  // namespace

// Innermost first, and the headers of the stand-in are not the kernel's.
std::string line_of(uintptr_t code) {
    Dl_info info;
    if (!dladdr(reinterpret_cast<void*>(code), &info)) return "";
    char offset[32];
    std::snprintf(offset, sizeof offset, "0x%zx",
                  size_t(code - reinterpret_cast<uintptr_t>(info.dli_fbase)));
    std::string lines;
    if (!run({"addr2line", "-i", "-e", info.dli_fname, offset}, lines)) return "";
    for (size_t at = 0, end; (end = lines.find('\n', at)) != std::string::npos; at = end + 1) {
        std::string line = lines.substr(at, end - at);
        if (line.find("/include/") == std::string::npos && line.find('?') == std::string::npos)
            return without(line.substr(0, line.find(" (disc")), "./");
    }
    return "";
}

bool in_kernel(uintptr_t code) {
    Dl_info here, kernel;
    void* run = reinterpret_cast<void*>(current().team->block->grid->launch().kernel->run);
    return dladdr(reinterpret_cast<void*>(code), &here) && dladdr(run, &kernel) &&
           here.dli_fbase == kernel.dli_fbase;
}

void fail_at(uintptr_t code, int result, const std::string& what) {
    std::string line = line_of(code);
    const size_t colon = line.rfind(':');
    if (colon == std::string::npos) fail(result, {"", 0}, what);
    const int number = std::atoi(line.c_str() + colon + 1);
    line.resize(colon);
    fail(result, {line.c_str(), number}, what);
}

namespace {

// Where a faulting thread goes on: on its own stack, from the top, never to return.
void land() {
    const Fiber& fiber = current().fiber;
    const auto stack = reinterpret_cast<uintptr_t>(fiber.stack);
    if (fault_address < stack && fault_address >= stack - 4096)
        fail(kHardwareStackError, {"", 0}, "the stack of a thread overflows");
    const std::string what = "illegal address " + describe(fault_address);
    if (in_kernel(fault_code)) fail_at(fault_code, kIllegalAddress, what);
    fail(kIllegalAddress, current().site, what);  // the runtime, at work for this line
}

void on_fault(int signal, siginfo_t* info, void* context) {
    if (!self) {  // not a kernel: whoever was here before us
        sigaction(signal, &previous[signal == SIGBUS], nullptr);
        return;
    }
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    fault_address = reinterpret_cast<uintptr_t>(info->si_addr);
    fault_code = uintptr_t(registers[REG_RIP]);
    const Fiber& fiber = current().fiber;
    registers[REG_RSP] = greg_t(fiber.stack + fiber.stack_bytes - 24);
    registers[REG_RIP] = reinterpret_cast<greg_t>(&land);
}

}  // namespace

void catch_faults() {
    if (sanitizer::address) return;  // it reports more than we could
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 2; i++) sigaction(kSignals[i], &action, &previous[i]);
}

void catch_stack_overflow() {
    static thread_local bool done = false;
    if (done || sanitizer::address) return;
    done = true;
    stack_t existing;
    if (sigaltstack(nullptr, &existing) != 0 || !(existing.ss_flags & SS_DISABLE)) return;
    constexpr size_t kBytes = 64 << 10;
    void* memory =
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t stack = {};
    stack.ss_sp = memory;
    stack.ss_size = kBytes;
    if (memory != MAP_FAILED) sigaltstack(&stack, nullptr);
}

}  // namespace emulator
