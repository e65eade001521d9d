//! Weights on their way from files to a GPU, in the order in which a step uses them. Threads read
//! pieces of them into pinned memory and send them on, each thread on a stream of its own.
//! Whoever has work for the first weights can begin while later ones are still to come.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::driver::Context;
use super::region::Region;
use super::stream::{Staging, Stream};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::memory::Weight;

/// What a thread copies at once.
const PIECE_BYTES: usize = 8 << 20;

/// Threads that copy, each with two pieces in flight. One reads 10 GB/s from the page cache, and a
/// PCIe 5 link takes 50 (PERFORMANCE.md).
const THREADS: usize = 6;

/// Hears of bytes of weights that have come, from several threads, and says whether to go on.
pub type OnProgress = Box<dyn Fn(u64) -> Result<()> + Send + Sync>;

/// What a thread copies at once: rows of a weight, which follow each other on the GPU, or a part of one
/// whose rows do so in the file.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Which of the weights it is of.
    weight: usize,
    /// In the checkpoint's region, of the first row.
    offset: usize,
    rows: usize,
    row_bytes: usize,
    /// From the start of a row to that of the next.
    stride_bytes: usize,
    /// Where it goes on the GPU.
    at: usize,
}

impl Piece {
    /// All of `weight`, the one of this number, on its way to `at`.
    fn all(number: usize, weight: Weight, at: usize) -> Vec<Self> {
        let [row_bytes, stride_bytes] =
            [weight.cols, weight.stride].map(|cols| weight.encoding.row_bytes(cols));
        let piece = |offset, rows, row_bytes, at| Self {
            weight: number,
            offset: weight.offset + offset,
            rows,
            row_bytes,
            stride_bytes,
            at,
        };
        if row_bytes == stride_bytes {
            let part = |from| piece(from, 1, PIECE_BYTES.min(weight.bytes() - from), at + from);
            return (0..weight.bytes()).step_by(PIECE_BYTES).map(part).collect();
        }
        let most = (PIECE_BYTES / row_bytes).max(1);
        let some = |first| {
            let rows = most.min(weight.rows - first);
            piece(first * stride_bytes, rows, row_bytes, at + first * row_bytes)
        };
        (0..weight.rows).step_by(most).map(some).collect()
    }

    fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }

    /// Reads its rows, one after the other.
    fn read(&self, checkpoint: &Checkpoint, into: &mut [u8]) -> Result<()> {
        let mut rows = into.chunks_exact_mut(self.row_bytes).enumerate();
        rows.try_for_each(|(row, into)| {
            checkpoint.read(self.offset + row * self.stride_bytes, into)
        })
    }
}

/// Copies weights until it is done or dropped.
pub struct Loader {
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
}

/// What its threads share.
struct Work {
    context: Arc<Context>,
    checkpoint: Checkpoint,
    region: Arc<Region>,
    pieces: Vec<Piece>,
    /// The piece to be taken next.
    next: AtomicUsize,
    stopped: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    /// Gone before it shows that all weights have come, or never will.
    on_progress: RwLock<Option<OnProgress>>,
    since: Instant,
}

struct State {
    /// Pieces of each weight that have not come yet; of the last one also threads that have no memory yet.
    /// So a shortage shows, even where others have done the work.
    missing: Vec<usize>,
    /// Weights that have come, up to the first that has not.
    here: usize,
    failure: Option<Error>,
    /// What it took until all were here.
    took: Option<Duration>,
}

impl State {
    fn advance(&mut self) {
        while self.missing.get(self.here) == Some(&0) {
            self.here += 1;
        }
    }
}

impl Loader {
    /// Begins to copy each of `weights` to its place in the region.
    ///
    /// # Errors
    /// When the system has no threads to give.
    pub fn begin(
        context: &Arc<Context>,
        checkpoint: &Checkpoint,
        region: &Arc<Region>,
        weights: &[(Weight, usize)],
        on_progress: OnProgress,
    ) -> Result<Self> {
        let each = weights.iter().enumerate();
        let pieces: Vec<_> = each.map(|(n, (weight, at))| Piece::all(n, *weight, *at)).collect();
        let mut missing: Vec<usize> = pieces.iter().map(Vec::len).collect();
        let pieces = pieces.concat();
        let threads = THREADS.min(pieces.len());
        missing.iter_mut().last().into_iter().for_each(|last| *last += threads);
        let mut state = State { missing, here: 0, failure: None, took: None };
        state.advance();
        let work = Arc::new(Work {
            context: context.clone(),
            checkpoint: checkpoint.clone(),
            region: region.clone(),
            pieces,
            next: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
            on_progress: RwLock::new(Some(on_progress)),
            since: Instant::now(),
        });
        if threads == 0 {
            work.end();
        }
        let mut loader = Self { work, threads: Vec::new() };
        for _ in 0..threads {
            let work = loader.work.clone();
            let thread = thread::Builder::new().name("loader".to_owned());
            let thread = thread.spawn(move || work.carry_all()).map_err(|error| {
                Error::failed(format!("cannot start a thread to copy the weights: {error}"))
            });
            loader.threads.push(thread?);
        }
        Ok(loader)
    }

    /// Waits until the first `count` weights are where kernels read them.
    ///
    /// # Errors
    /// What keeps them from coming.
    pub fn wait(&self, count: usize) -> Result<()> {
        let mut state = self.work.state();
        while state.here < count {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            state = self.work.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Waits until its threads have ended.
    pub fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // It has told of its failure.
            let _ = thread.join();
        }
    }

    /// From the beginning until all had come, or until now.
    pub fn took(&self) -> Duration {
        self.work.state().took.unwrap_or_else(|| self.work.since.elapsed())
    }
}

impl Drop for Loader {
    /// The region may go next.
    fn drop(&mut self) {
        self.work.stopped.store(true, Ordering::Relaxed);
        self.join();
    }
}

impl Work {
    /// A panic elsewhere leaves numbers that still add up.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn carry_all(&self) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.carry()));
        let ended =
            ended.unwrap_or_else(|_| Err(Error::failed("a thread that loads has panicked")));
        if let Err(error) = ended {
            self.stopped.store(true, Ordering::Relaxed);
            self.hush();
            self.state().failure.get_or_insert(error);
            self.changed.notify_all();
        }
    }

    /// Takes pieces as long as there are any. While one is read, the one before is in flight.
    fn carry(&self) -> Result<()> {
        let largest = self.pieces.iter().map(Piece::bytes).max().unwrap_or(0);
        let stream = Stream::new(&self.context)?;
        let stage = || Staging::allocate(&self.context, largest);
        let mut stages = [(stage()?, None), (stage()?, None)];
        let last = self.state().missing.len() - 1;
        self.count(last);
        let mut turn = 0;
        while let Some(piece) = self.take() {
            let (stage, before) = &mut stages[turn];
            let memory = stage.emptied()?;
            before.take().map_or(Ok(()), |piece| self.come(piece))?;
            piece.read(&self.checkpoint, &mut memory[..piece.bytes()])?;
            stage.send(&stream, piece.bytes(), &self.region, piece.at)?;
            *before = Some(piece);
            turn = 1 - turn;
        }
        for turn in [turn, 1 - turn] {
            let (stage, last) = &mut stages[turn];
            stage.emptied()?;
            last.take().map_or(Ok(()), |piece| self.come(piece))?;
        }
        Ok(())
    }

    fn take(&self) -> Option<&Piece> {
        let is_wanted = !self.stopped.load(Ordering::Relaxed);
        is_wanted.then(|| self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)))?
    }

    /// A piece has come to the GPU.
    fn come(&self, piece: &Piece) -> Result<()> {
        let on_progress = self.on_progress.read().unwrap_or_else(PoisonError::into_inner);
        on_progress.as_ref().map_or(Ok(()), |on_progress| on_progress(piece.bytes() as u64))?;
        drop(on_progress);
        self.count(piece.weight);
        Ok(())
    }

    /// One thing less is missing of this weight.
    fn count(&self, weight: usize) {
        let mut state = self.state();
        state.missing[weight] -= 1;
        if state.missing.iter().all(|missing| *missing == 0) {
            drop(state);
            self.end();
            state = self.state();
        }
        state.advance();
        self.changed.notify_all();
    }

    /// All has come.
    fn end(&self) {
        self.hush();
        self.state().took = Some(self.since.elapsed());
    }

    /// There is nothing more to tell.
    fn hush(&self) {
        drop(self.on_progress.write().unwrap_or_else(PoisonError::into_inner).take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Float;

    /// Rows and columns of any size, also past what is copied at once.
    #[test]
    fn pieces_are_the_rows_of_a_weight_and_follow_each_other() {
        for (rows, cols, stride) in [(1, 5, 5), (3, 4, 4), (3, 4, 7), (5000, 900, 2000), (1, 3, 9)]
        {
            let weight = Weight { encoding: Float::F16.into(), offset: 8, rows, cols, stride };
            let words = (8 + weight.span_bytes()).div_ceil(8) as u64;
            let region: Vec<u64> = (0..words).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a)).collect();
            let checkpoint = Checkpoint::in_memory(Float::F16.into(), region.into());
            let mut packed: Vec<u8> = Vec::new();
            for piece in Piece::all(3, weight, 64) {
                assert_eq!((piece.at, piece.weight), (64 + packed.len(), 3));
                assert!(piece.bytes() <= PIECE_BYTES);
                let mut bytes = vec![0; piece.bytes()];
                piece.read(&checkpoint, &mut bytes).expect("it is in memory");
                packed.extend(bytes);
            }
            let span = checkpoint.bytes(8, weight.span_bytes());
            let expected: Vec<u8> =
                span.chunks(2 * stride).flat_map(|row| &row[..2 * cols]).copied().collect();
            assert!(packed == expected, "{rows} rows of {cols}, {stride} apart");
            assert_eq!(packed.len(), weight.bytes());
        }
    }
}
