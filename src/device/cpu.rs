//! The CPU executor: every op's reference, over the mapped checkpoint.

use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::Startup;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::memory::{Layout, Memory, Slot, StateRegion};
use crate::op::Program;

/// A rank's memory on the host, and what runs programs in it.
pub struct Cpu {
    weights: Checkpoint,
    state: StateRegion,
    pub startup: Startup,
}

impl Cpu {
    /// The weight region is `weights` itself; the state region is allocated from `layout`.
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn new(weights: Checkpoint, layout: &Layout) -> Result<Self> {
        let state = StateRegion::allocate(layout)?;
        Ok(Self { weights, state, startup: Startup::default() })
    }

    /// Runs every op in order; each is parallel in itself. All of it runs inside the thread pool:
    /// an op that had to wake the pool up would cost tens of microseconds.
    pub fn run(&mut self, program: &Program) {
        let mut memory = Memory { weights: &self.weights, state: &mut self.state };
        rayon::scope(|_| program.ops.iter().for_each(|op| op.reference(&mut memory)));
    }

    /// As [`Self::run`], and returns how long each op took.
    pub fn run_timed(&mut self, program: &Program) -> Vec<Duration> {
        let mut memory = Memory { weights: &self.weights, state: &mut self.state };
        let mut times = Vec::with_capacity(program.ops.len());
        rayon::scope(|_| {
            for op in &program.ops {
                let start = Instant::now();
                op.reference(&mut memory);
                times.push(start.elapsed());
            }
        });
        times
    }

    /// Replaces the first elements of `slot`.
    pub fn write<T: Pod>(&mut self, slot: Slot<T>, values: &[T]) {
        self.state.write(slot, values);
    }

    pub fn read<T: Pod>(&self, slot: Slot<T>) -> &[T] {
        self.state.read(slot)
    }
}
