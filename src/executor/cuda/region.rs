//! Memory of the device, and of the host where the device sees it, as owned values: no address leaves the
//! bounds of its allocation.

use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use cudarc::driver::sys;

use super::driver::{Context, check, destroy};
use super::libcuda;
use crate::error::Result;

/// One allocation of device memory.
pub struct Region {
    context: Arc<Context>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Region {
    /// Allocates; the memory is not initialised. `what` is for messages.
    pub fn allocate(context: &Arc<Context>, bytes: usize, what: &str) -> Result<Self> {
        context.bind()?;
        let mut address = 0;
        // SAFETY: the driver writes one address; an allocation of nothing is one of a byte.
        let result = unsafe { libcuda::cuMemAlloc_v2(&mut address, bytes.max(1)) };
        check(&format!("cannot allocate {bytes} bytes of GPU memory for {what}"), result)?;
        Ok(Self { context: context.clone(), address, bytes })
    }

    /// The device's address of `range`.
    ///
    /// # Panics
    /// When it is not inside the region.
    pub fn address(&self, range: Range<usize>) -> u64 {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {}", self.bytes);
        self.address + range.start as u64
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocate` and freed once; cuMemFree waits for work that uses it.
        destroy(&self.context, || unsafe { libcuda::cuMemFree_v2(self.address) });
    }
}

/// Pinned host memory that the device sees, too. Zeroed.
pub struct Pinned {
    context: Arc<Context>,
    pub(super) start: *mut u8,
    bytes: usize,
}

impl Pinned {
    pub fn allocate(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.bind()?;
        let mut start = ptr::null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the driver writes one address.
        let result = unsafe { libcuda::cuMemHostAlloc(&mut start, bytes.max(1), flags) };
        check(&format!("cannot allocate {bytes} bytes of pinned memory"), result)?;
        let start = start.cast::<u8>();
        // SAFETY: `bytes` bytes were allocated, and nobody else knows of them yet.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { context: context.clone(), start, bytes })
    }

    /// The device's address of `range`.
    pub fn address(&self, range: Range<usize>) -> Result<u64> {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {}", self.bytes);
        self.context.bind()?;
        let mut address = 0;
        // SAFETY: `start` is pinned memory that is mapped for the device; the driver writes one address.
        let result =
            unsafe { libcuda::cuMemHostGetDevicePointer_v2(&mut address, self.start.cast(), 0) };
        check("cannot map pinned memory", result)?;
        Ok(address + range.start as u64)
    }

    /// The word at byte `at` as it is now; the device may be writing it.
    pub fn load(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Replaces the word at byte `at`, before anything is queued that uses it.
    pub fn store(&mut self, at: usize, word: u64) {
        self.word(at).store(word, Ordering::Release);
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        let is_inside = self.bytes.checked_sub(8).is_some_and(|last| at <= last);
        assert!(at.is_multiple_of(8) && is_inside, "{at} of {}", self.bytes);
        // SAFETY: inside the allocation, which begins with a page and lives as long as `self`. The device
        // writes whole words, and where it may nobody else does but by these functions.
        unsafe { AtomicU64::from_ptr(self.start.add(at).cast()) }
    }

    /// Replaces the bytes from `at` on, which no device may be using at the time.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let room = self.bytes.checked_sub(at);
        assert!(room.is_some_and(|room| bytes.len() <= room), "{at} of {}", self.bytes);
        // SAFETY: inside the allocation, and `bytes` cannot overlap memory that `self` owns.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) };
    }

    /// All of it. No copy into it may be in flight: `Stream::copy_out` waits for its own.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and initialised; the borrow keeps copies out that need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// As [`Self::bytes`], to be changed. No copy from it may be in flight either: `Staging` waits
    /// for its own.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated and initialised, and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    pub fn len(&self) -> usize {
        self.bytes
    }
}

// SAFETY: memory is no thread's own, and the driver's calls are for any thread.
unsafe impl Send for Pinned {}

/// A word by which kernels that wait are told to give up.
pub struct Alarm(Pinned);

// SAFETY: after it was made, the word is only set, as an atomic.
unsafe impl Sync for Alarm {}

impl Alarm {
    pub fn allocate(context: &Arc<Context>) -> Result<Self> {
        Pinned::allocate(context, size_of::<u32>()).map(Self)
    }

    /// The device's address of the word.
    pub fn address(&self) -> Result<u64> {
        self.0.address(0..size_of::<u32>())
    }

    pub fn raise(&self) {
        // SAFETY: a page's first word, which lives as long as `self`; all accesses are atomic.
        unsafe { AtomicU32::from_ptr(self.0.start.cast()) }.store(1, Ordering::Relaxed);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocate` and freed once; whoever copies from it waits before (`Staging`).
        destroy(&self.context, || unsafe { libcuda::cuMemFreeHost(self.start.cast()) });
    }
}
