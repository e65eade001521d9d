//! Waiting for what a kernel tells the host before its graph has ended.

use std::thread;
use std::time::{Duration, Instant};

use super::Cuda;
use crate::error::Result;
use crate::memory::Slot;

/// How long the driver is left alone: 16 GB at the pace of an H100's memory take 5 ms, so that a token costs
/// no other calls than those that queue the next.
const QUIET: Duration = Duration::from_millis(6);

/// How often the driver is asked after that whether all has ended, or failed. On an emulated GPU that is
/// what makes work go on.
const BETWEEN_QUERIES: Duration = Duration::from_micros(20);

/// A token that takes longer is one that the host can sleep for.
const PATIENCE: Duration = Duration::from_secs(1);

impl Cuda {
    /// Empties a shared slot at once: nothing that writes it may be under way.
    pub fn clear(&mut self, slot: Slot<u64>) {
        let at = self.in_shared(slot);
        self.shared.store(at, u64::MAX);
    }

    /// Where a shared slot is in the shared memory.
    fn in_shared(&self, slot: Slot<u64>) -> usize {
        slot.offset().checked_sub(self.own_bytes).expect("a slot that is shared")
    }

    /// Waits until `seen` finds what it looks for in the one element of a shared slot; none if all that was
    /// queued has ended and it is not there.
    ///
    /// # Errors
    /// When a kernel has failed.
    pub fn watch<R>(
        &mut self,
        slot: Slot<u64>,
        seen: impl Fn(u64) -> Option<R>,
    ) -> Result<Option<R>> {
        let at = self.in_shared(slot);
        self.guard(|cuda| {
            let since = Instant::now();
            let mut next_query = since + QUIET;
            let mut has_ended = false;
            loop {
                let found = seen(cuda.shared.load(at));
                if found.is_some() || has_ended {
                    return Ok(found);
                }
                let now = Instant::now();
                if now > since + PATIENCE {
                    cuda.stream.synchronize(&cuda.failure())?;
                    has_ended = true;
                } else if now > next_query {
                    has_ended = cuda.stream.has_ended(&cuda.failure())?;
                    next_query = now + BETWEEN_QUERIES;
                } else {
                    thread::yield_now();
                }
            }
        })
    }
}
