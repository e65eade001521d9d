//! The CPU executor: every op's reference, over the mapped checkpoint.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::Pod;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{Blueprint, Startup};
use crate::checkpoint::Checkpoint;
use crate::comm::Communicator;
use crate::error::{Error, Result, count};
use crate::memory::{Memory, Slot, StateRegion};
use crate::op::{Op, Program};
use crate::vector::cores;

/// A rank's memory on the host, and what runs programs in it.
pub struct Cpu {
    weights: Checkpoint,
    state: StateRegion,
    comm: Arc<dyn Communicator>,
    threads: Threads,
    pub startup: Startup,
}

/// Threads that ops share their work over.
#[derive(Clone)]
pub struct Threads(Arc<ThreadPool>);

impl Threads {
    /// So many, or one for each core.
    ///
    /// # Errors
    /// When the system refuses them.
    pub fn new(count: Option<usize>) -> Result<Self> {
        let pool = ThreadPoolBuilder::new().num_threads(count.unwrap_or_else(cores)).build();
        let pool = pool.map_err(|error| Error::failed(format!("cannot start threads: {error}")))?;
        Ok(Self(Arc::new(pool)))
    }

    pub fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// What `work` comes to, whose parallel parts run on these threads.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.install(work)
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&count(self.count(), "thread"))
    }
}

impl Cpu {
    /// The weight region is the checkpoint itself; a rank that is not alone has its share of the threads, as
    /// many of its own, since ranks wait for others inside of ops: none may be waited for by two.
    ///
    /// # Errors
    /// When the system refuses the memory, or threads.
    pub fn new(threads: &Threads, blueprint: Blueprint<'_>) -> Result<Self> {
        let Blueprint { mut checkpoint, layout, comm, on_progress, .. } = blueprint;
        let mut startup = Startup::default();
        let start = Instant::now();
        threads.run(|| checkpoint.make(on_progress))?;
        startup.weights = start.elapsed();
        let state = StateRegion::allocate(layout)?;
        let threads = match comm.world() {
            1 => threads.clone(),
            // Of several stages one is at work at a time.
            _ => Threads::new(Some((threads.count() / comm.stage().len()).max(1)))?,
        };
        startup.allocate = start.elapsed() - startup.weights;
        Ok(Self { weights: checkpoint, state, comm, threads, startup })
    }

    /// The way to the other ranks.
    pub fn comm(&self) -> &dyn Communicator {
        &*self.comm
    }

    /// Runs every op in order; each is parallel in itself. All of it runs inside the thread pool:
    /// an op that had to wake the pool up would cost tens of microseconds.
    ///
    /// # Errors
    /// When another rank has failed.
    pub fn run(&mut self, program: &Program) -> Result<()> {
        self.run_timed(program).map(drop)
    }

    /// As [`Self::run`], and returns how long each op took.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_timed(&mut self, program: &Program) -> Result<Vec<Duration>> {
        let Self { weights, state, comm, threads, .. } = self;
        let mut memory = Memory { weights, state, comm: &**comm };
        let times = threads.run(|| {
            let mut time = |op: &dyn Op| {
                let start = Instant::now();
                memory.comm.enter(op.name())?;
                op.reference(&mut memory);
                Ok(start.elapsed())
            };
            program.ops.iter().map(|op| time(&**op)).collect::<Result<Vec<_>>>()
        })?;
        comm.leave()?;
        Ok(times)
    }

    /// Replaces the first elements of `slot`.
    pub fn write<T: Pod>(&mut self, slot: Slot<T>, values: &[T]) {
        self.state.write(slot, values);
    }

    pub fn read<T: Pod>(&self, slot: Slot<T>) -> &[T] {
        self.state.read(slot)
    }
}
