use crate::comm::Direction;
use crate::kernel::Launch;
use crate::memory::{Memory, Slot};
use crate::op::{Cost, Exchange, Op, Operands, Target};

/// The residual stream goes from a stage of layers to the next, from each rank to the one in its place
/// there. On GPUs that is NCCL's to do, or the hosts'.
pub struct SendRecv {
    /// In, or out. `[T, C]`
    pub x: Slot<f32>,
    pub direction: Direction,
}

impl Op for SendRecv {
    fn name(&self) -> &'static str {
        match self.direction {
            Direction::Send => "send",
            Direction::Receive => "receive",
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        match self.direction {
            Direction::Send => Cost { link_bytes: self.x.bytes() as u64, ..Cost::default() },
            Direction::Receive => Cost::default(),
        }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let comm = memory.comm;
        let (x,) = memory.slots((self.x,));
        comm.pass(x, self.direction);
    }

    fn exchange(&self, _target: &Target) -> Option<Exchange> {
        Some(Exchange::SendRecv(self.x, self.direction))
    }

    fn operands(&self) -> Operands {
        Operands { input: vec![self.x.len()], ..Operands::default() }
    }

    fn launch(&self, _target: &Target) -> Launch {
        unreachable!("{} is an exchange between ranks and nothing else", self.name())
    }
}
