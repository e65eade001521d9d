// The sanitizers' fiber interfaces, or nothing in a plain build. The runtime itself is never
// instrumented: what it does between two steps of a thread is the hardware's business, not an
// access by that thread.
#pragma once
#include <cstddef>

#if defined(EMULATOR_THREAD)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, size_t bytes);
void __tsan_write_range(void* address, size_t bytes);
void __tsan_read2(void* address);
void __tsan_func_entry(void* caller);
void __tsan_func_exit();
}
#elif defined(EMULATOR_ADDRESS)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
void __asan_loadN(const void* address, size_t bytes);
void __asan_storeN(void* address, size_t bytes);
void __asan_poison_memory_region(const void* address, size_t bytes);
void __asan_unpoison_memory_region(const void* address, size_t bytes);
}
#endif

namespace emulator::sanitizer {

#if defined(EMULATOR_THREAD)
inline constexpr bool thread = true, address = false;
inline void* current() { return __tsan_get_current_fiber(); }
inline void destroy(void* fiber) { __tsan_destroy_fiber(fiber); }
inline void switch_to(void* fiber) { __tsan_switch_to_fiber(fiber, 1); }  // 1: orders nothing
// A new fiber is ordered after whoever creates it. That must be nobody who has seen anything: the
// threads of a programmatic dependent know nothing of the kernel before it.
inline void* create() {
    static void* nobody = __tsan_create_fiber(0);
    void* me = current();
    switch_to(nobody);
    void* fiber = __tsan_create_fiber(0);
    switch_to(me);
    return fiber;
}
inline void acquire(const void* token) { __tsan_acquire(const_cast<void*>(token)); }
inline void release(const void* token) { __tsan_release(const_cast<void*>(token)); }
inline void read(const void* address, size_t bytes) {
    __tsan_read_range(const_cast<void*>(address), bytes);
}
inline void read2(const void* address) { __tsan_read2(const_cast<void*>(address)); }
inline void write(void* address, size_t bytes) { __tsan_write_range(address, bytes); }
// What happens in the life of a Frame happens in the function called from `caller`, says a report.
class Frame {
public:
    explicit Frame(void* caller) { __tsan_func_entry(caller); }
    ~Frame() { __tsan_func_exit(); }
};

// Runs `action` as another fiber.
template <class Action>
void as(void* fiber, void* caller, Action action) {
    void* me = current();
    switch_to(fiber);
    {
        Frame frame(caller);
        action();
    }
    switch_to(me);
}
#else
inline constexpr bool thread = false;
class Frame {
public:
    explicit Frame(void*) {}
    ~Frame() {}
};
template <class Action>
void as(void*, void*, Action) {}
inline void* current() { return nullptr; }
inline void* create() { return nullptr; }
inline void destroy(void*) {}
inline void switch_to(void*) {}
inline void acquire(const void*) {}
inline void release(const void*) {}
#if defined(EMULATOR_ADDRESS)
inline constexpr bool address = true;
inline void read(const void* address, size_t bytes) { __asan_loadN(address, bytes); }
inline void read2(const void* address) { __asan_loadN(address, 2); }
inline void write(void* address, size_t bytes) { __asan_storeN(address, bytes); }
#else
inline constexpr bool address = false;
inline void read(const void*, size_t) {}
inline void read2(const void*) {}
inline void write(void*, size_t) {}
#endif
#endif

}  // namespace emulator::sanitizer
