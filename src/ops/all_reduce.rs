use crate::kernel::Launch;
use crate::memory::{Memory, Slot};
use crate::op::{Cost, Gpu, Op};

/// The residual stream takes up what all ranks have found, each a part of a sum: `x = sum of partial`, or
/// `x += sum of partial`, added up in the order of ranks. `x` is the same on all of them, to the bit.
pub struct AllReduce {
    /// In, and zeros after: what comes next adds to it. `[T, C]`
    pub partial: Slot<f32>,
    /// Add to what `x` holds.
    pub residual: bool,
    /// In and out. `[T, C]`
    pub x: Slot<f32>,
    /// Number of ranks.
    pub world: usize,
}

impl Op for AllReduce {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    /// As if each rank sent its part to each other one: at the sizes of one token, time is all latency.
    fn cost(&self, _position: usize) -> Cost {
        Cost {
            flops: (self.world * self.x.len()) as u64,
            link_bytes: ((self.world - 1) * self.partial.bytes()) as u64,
            ..Cost::default()
        }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let comm = memory.comm;
        let (partial, x) = memory.slots((self.partial, self.x));
        comm.all_reduce(partial);
        if !self.residual {
            x.fill(0.0);
        }
        x.iter_mut().zip(&*partial).for_each(|(x, sum)| *x += sum);
        partial.fill(0.0);
    }

    fn launch(&self, _gpu: &Gpu) -> Launch {
        unreachable!("a model is split over ranks on the CPU only")
    }
}
