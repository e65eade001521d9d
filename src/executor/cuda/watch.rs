//! Waiting for kernels, and for what one tells the host before its graph has ended.

use std::thread;
use std::time::{Duration, Instant};

use super::Cuda;
use super::trace::Trace;
use crate::error::{Error, Result};
use crate::memory::Slot;

/// How long the driver is left alone: 16 GB at the pace of an H100's memory take 5 ms, so that a token costs
/// no other calls than those that queue the next.
const QUIET: Duration = Duration::from_millis(6);

/// How often the driver is asked after that whether all has ended, or failed. On an emulated GPU that is
/// what makes work go on.
const BETWEEN_QUERIES: Duration = Duration::from_micros(20);

/// A token that takes longer is one that the host can sleep for.
const PATIENCE: Duration = Duration::from_secs(1);

/// One that waits longer than this sleeps for as long between two queries.
const SHORT: Duration = Duration::from_micros(200);

/// In the time that an op may take, it is looked so many times whether it is still that one.
const LOOKS: u32 = 10;

/// What has been seen of a GPU that is waited for.
struct Progress {
    /// The op that it is in.
    op: Option<String>,
    since: Instant,
    next_look: Instant,
}

impl Progress {
    fn new(timeout: Duration) -> Self {
        let now = Instant::now();
        Self { op: None, since: now, next_look: now + timeout / LOOKS }
    }

    /// Whether nothing has been seen of it for too long.
    fn has_none(&mut self, trace: &Trace, timeout: Duration) -> bool {
        if Instant::now() < self.next_look {
            return false;
        }
        let op = trace.look(false);
        let now = Instant::now();
        self.next_look = now + timeout / LOOKS;
        if op != self.op {
            (self.op, self.since) = (op, now);
        }
        now - self.since >= timeout
    }
}

impl Cuda {
    /// Waits for all that is queued. Of several ranks, the others see to it that this has an end
    /// (`comm/in_process/stall`); one that is alone is given up when it stays in the same op for too long,
    /// and all of its GPU's context with it.
    ///
    /// # Errors
    /// When a kernel has failed, or does not end.
    pub(super) fn wait(&self, doing: &str) -> Result<()> {
        if self.comm.world() > 1 {
            return self.stream.synchronize(doing);
        }
        let (since, timeout) = (Instant::now(), self.comm.timeout());
        let mut progress = Progress::new(timeout);
        while !self.stream.has_ended(doing)? {
            if progress.has_none(&self.trace, timeout) {
                self.context.abandon();
                let (op, seconds) = (progress.op, timeout.as_secs_f64());
                let op = op.unwrap_or_else(|| format!("one of {}", self.doing));
                return Err(Error::failed(format!(
                    "the GPU failed in {op}: made no progress for {seconds} s; `timeout` allows more"
                )));
            }
            match since.elapsed() < SHORT {
                true => thread::yield_now(),
                false => thread::sleep(SHORT),
            }
        }
        Ok(())
    }

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
                    cuda.wait(&cuda.failure())?;
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
