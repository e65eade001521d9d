use super::gemv::Gemv;
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
        let gemv = Gemv::of_rows(rows, cols);
        let arguments = kernel::Project {
            x: self.x,
            weight: self.weight,
            y: self.y,
            width: size(cols),
            rows: size(rows),
            parts: gemv.parts(gpu),
        }
        .arguments();
        launch(kernel::Project::KERNEL, (dtype, 0), Gemv::grid(gpu), gemv.shared_bytes(), arguments)
    }
}
