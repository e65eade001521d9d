use super::matmul::matmul_cost;
use super::{launch, size};
use crate::for_dtype;
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot, Weight};
use crate::op::{Cost, Gpu, Op};
use crate::vector::matmul;

/// One token's activations onto the residual stream: `y += weight x`
pub struct Project {
    /// `[1, K]`
    pub x: Slot<f32>,
    /// `[N, K]`
    pub weight: Weight,
    /// In and out. `[1, N]`
    pub y: Slot<f32>,
}

impl Op for Project {
    fn name(&self) -> &'static str {
        "project"
    }

    fn cost(&self, _position: usize) -> Cost {
        matmul_cost(self.weight, 1)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        for_dtype!(self.weight.dtype, W => {
            let weight = memory.weight::<W>(self.weight);
            let (x, y) = memory.slots((self.x, self.y));
            matmul(weight, x, self.weight.cols, y, |y, sum| *y += sum);
        });
    }

    fn launch(&self, gpu: &Gpu) -> Launch {
        let Weight { dtype, rows, cols, .. } = self.weight;
        let arguments = kernel::Project {
            x: self.x,
            weight: self.weight,
            y: self.y,
            width: size(cols),
            rows: size(rows),
        }
        .arguments();
        launch(
            kernel::Project::KERNEL,
            (dtype, 0),
            [gpu.multiprocessors, 1],
            gemv_shared_bytes(cols),
            arguments,
        )
    }
}

/// What a block of every kernel that multiplies one token keeps its input of `width` numbers in: f32,
/// padded with zeros to a multiple of 1024 (`kernels/lib/gemv.cuh`).
pub(super) fn gemv_shared_bytes(width: usize) -> u32 {
    assert!(width.is_multiple_of(8), "rows of {width} are not of whole 16-byte pieces");
    size(width.next_multiple_of(1024) * size_of::<f32>())
}
