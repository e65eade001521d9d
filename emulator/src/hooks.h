// What the stand-in for NCCL, a library of its own, asks of the stand-in for the driver.
#pragma once

#pragma GCC visibility push(default)
extern "C" {

// Queues work on a stream, or captures it. Each time that it is to run, `begin(what)` makes a new
// state, and `step(state)` is called until it returns true; it may not block. `drop(what)` is called
// when that is of no more use: neither queued nor in a graph. Returns a CUresult.
int chaski_emulator_submit(void* stream, void* what, void* (*begin)(void*), bool (*step)(void*),
                           void (*drop)(void*));

// A call that may wait for all devices, as `function` does. Returns a CUresult: with HOLD=on, an error where
// that could be for ever.
int chaski_emulator_wait_for_all(const char* function);

// Whether what is queued there is captured.
bool chaski_emulator_captures(void* stream);

// The device of the calling thread's context; -1: none.
int chaski_emulator_device();

// Makes a device's context that of the calling thread; false: it is no more.
bool chaski_emulator_use(int device);

// Takes what a communicator takes of a device's memory, until that is given back; null: there is not
// so much. From then on the library keeps the device's context.
void* chaski_emulator_charge(int device);
void chaski_emulator_refund(void* charge);

// Whether all these bytes are in memory that the device may use.
bool chaski_emulator_usable(const void* address, unsigned long bytes, int device);

// Ends a device for good, as if it had been unplugged.
void chaski_emulator_lose(int device);

// Somebody's wait may have ended.
void chaski_emulator_notify();
}
#pragma GCC visibility pop
