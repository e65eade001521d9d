use super::{blocks, launch, size};
use crate::case::{Case, Content, Judge, Numbers, Setup};
use crate::checkpoint::Dtype;
use crate::kernel::{self, Launch};
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

    fn exchange(&self) -> Option<Slot<f32>> {
        Some(self.partial)
    }

    fn launch(&self, gpu: &Gpu) -> Launch {
        let count = self.x.len();
        let arguments = kernel::AllReduce {
            partial: self.partial,
            x: self.x,
            count: size(count),
            residual: self.residual.into(),
        }
        .arguments();
        let grid = [blocks(count.div_ceil(256), 8 * gpu.multiprocessors), 1];
        launch(kernel::AllReduce::KERNEL, (Dtype::F32, 0), grid, 0, arguments)
    }
}

impl AllReduce {
    /// What a rank does with a sum; one of a single rank is its own part.
    pub fn cases() -> Vec<Case> {
        let cases = [1, 255, 4096, 100_003].into_iter().flat_map(|n| [false, true].map(|r| (n, r)));
        let case = |(count, residual)| {
            let mut setup = Setup::new(Numbers::Real);
            let op = Self {
                partial: setup.changed("partial", &[count], Content::Real(3.0), Judge::Exact),
                residual,
                x: setup.changed("x", &[count], Content::Real(1.0), Judge::Exact),
                world: 1,
            };
            setup.case(format!("{count} sums, residual {residual}"), op)
        };
        cases.map(case).collect()
    }
}
