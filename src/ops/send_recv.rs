use crate::comm::Way;
use crate::kernel::Launch;
use crate::memory::{Memory, Slot};
use crate::op::{Cost, Exchange, Op, Operands, Target};

/// The residual stream goes from a stage of layers to the next, from each rank to the one in its place
/// there. On GPUs that is NCCL's to do, or the hosts'.
pub struct SendRecv {
    /// In, or out. `[T, C]`
    pub x: Slot<f32>,
    pub way: Way,
}

impl Op for SendRecv {
    fn name(&self) -> &'static str {
        match self.way {
            Way::Send => "send",
            Way::Receive => "receive",
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        match self.way {
            Way::Send => Cost { link_bytes: self.x.bytes() as u64, ..Cost::default() },
            Way::Receive => Cost::default(),
        }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let comm = memory.comm;
        let (x,) = memory.slots((self.x,));
        comm.pass(x, self.way);
    }

    fn exchange(&self, _gpu: &Target) -> Option<Exchange> {
        Some(Exchange::SendRecv(self.x, self.way))
    }

    fn operands(&self) -> Operands {
        Operands { input: vec![self.x.len()], ..Operands::default() }
    }

    fn launch(&self, _gpu: &Target) -> Launch {
        unreachable!("{} is an exchange between ranks and nothing else", self.name())
    }
}
