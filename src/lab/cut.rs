//! An op whose launch is cut otherwise than it would be.

use crate::kernel::Launch;
use crate::memory::Memory;
use crate::op::{Cost, Op, Sealed, Target};

/// An op whose rows are cut into `parts` (`ops::gemv`).
pub(super) struct Cut {
    pub op: Box<dyn Op>,
    pub parts: u32,
}

impl Sealed for Cut {}

impl Op for Cut {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cost(&self, position: usize) -> Cost {
        self.op.cost(position)
    }

    fn scratch(&self, threads: usize) -> usize {
        self.op.scratch(threads)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        self.op.reference(memory);
    }

    fn launch(&self, target: &Target) -> Launch {
        let mut launch = self.op.launch(target);
        launch.set_number("parts", self.parts);
        launch
    }
}
