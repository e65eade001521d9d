//! The CPU executor: every op's reference, over the mapped checkpoint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::Pod;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::Startup;
use crate::checkpoint::Checkpoint;
use crate::comm::{Alone, Communicator};
use crate::error::{Error, Result};
use crate::memory::{Layout, Memory, Slot, StateRegion};
use crate::op::{Op, Program};

/// A rank's memory on the host, and what runs programs in it.
pub struct Cpu {
    weights: Checkpoint,
    state: StateRegion,
    comm: Arc<dyn Communicator>,
    /// The threads of one of several ranks. They wait for other ranks inside of ops, so none of them may
    /// be waited for by two.
    threads: Option<ThreadPool>,
    pub startup: Startup,
}

impl Cpu {
    /// The weight region is `weights` itself; the state region is allocated from `layout`.
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn new(weights: Checkpoint, layout: &Layout) -> Result<Self> {
        Self::of_rank(weights, layout, Arc::new(Alone))
    }

    /// As [`Self::new`], for a rank that has its share of the machine's threads.
    ///
    /// # Errors
    /// When the system refuses the memory, or threads.
    pub fn of_rank(
        weights: Checkpoint,
        layout: &Layout,
        comm: Arc<dyn Communicator>,
    ) -> Result<Self> {
        let state = StateRegion::allocate(layout)?;
        let threads = match comm.world() {
            1 => None,
            _ => {
                // Of several stages one is at work at a time.
                let threads = (rayon::current_num_threads() / comm.stage().len()).max(1);
                let pool = ThreadPoolBuilder::new().num_threads(threads).build();
                Some(pool.map_err(|error| Error::failed(format!("cannot start threads: {error}")))?)
            }
        };
        Ok(Self { weights, state, comm, threads, startup: Startup::default() })
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
        let mut run = || {
            let mut time = |op: &dyn Op| {
                let start = Instant::now();
                memory.comm.enter(op.name())?;
                op.reference(&mut memory);
                Ok(start.elapsed())
            };
            program.ops.iter().map(|op| time(&**op)).collect::<Result<Vec<_>>>()
        };
        let times = match threads {
            None => rayon::scope(|_| run()),
            Some(threads) => threads.install(run),
        }?;
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
