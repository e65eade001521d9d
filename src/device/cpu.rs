//! The CPU executor: every op's reference, over the mapped checkpoint.

use bytemuck::Pod;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::memory::{Layout, Memory, Slot, StateRegion};
use crate::op::Program;

/// A rank's memory on the host, and what runs programs in it.
pub struct Cpu {
    weights: Checkpoint,
    state: StateRegion,
}

impl Cpu {
    /// The weight region is `weights` itself; the state region is allocated from `layout`.
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn new(weights: Checkpoint, layout: &Layout) -> Result<Self> {
        Ok(Self { weights, state: StateRegion::allocate(layout)? })
    }

    /// Runs every op in order; each is parallel in itself. All of it runs inside the thread pool:
    /// an op that had to wake the pool up would cost tens of microseconds.
    pub fn run(&mut self, program: &Program) {
        let mut memory = Memory { weights: &self.weights, state: &mut self.state };
        rayon::scope(|_| program.ops.iter().for_each(|op| op.reference(&mut memory)));
    }

    /// Replaces the first elements of `slot`.
    pub fn write<T: Pod>(&mut self, slot: Slot<T>, values: &[T]) {
        self.state.write(slot, values);
    }

    pub fn read<T: Pod>(&self, slot: Slot<T>) -> &[T] {
        self.state.read(slot)
    }
}
