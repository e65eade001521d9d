// Ends the kernel, not the process. NDEBUG takes it out; as C's own it may be included again.
#undef assert
#ifdef NDEBUG
#define assert(...) ((void)0)
#else
#define assert(...) \
    (emulator::assert_that(bool(__VA_ARGS__), "assertion failed: " #__VA_ARGS__, emulator::here()))
#endif
