use super::{blocks, launch, size};
use crate::for_dtype;
use crate::kernel::{self, Launch};
use crate::memory::{Activation, Memory, Slot, Weight};
use crate::op::{Cost, Gpu, Op};
use crate::vector::{matmul, widened};

/// `y[t] = weight x[t]`, or `y[t] += weight x[t]` onto the residual stream
pub struct Matmul {
    /// `[T, K]`
    pub x: Activation,
    /// `[N, K]`
    pub weight: Weight,
    /// Add to what `y` holds.
    pub residual: bool,
    /// Out. `[T, N]`
    pub y: Slot<f32>,
}

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cost(&self, _position: usize) -> Cost {
        let tokens = self.x.len() / self.weight.cols;
        matmul_cost(self.weight, tokens)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        for_dtype!(self.weight.dtype, W => {
            let weight = memory.weight::<W>(self.weight);
            let (x, y) = memory.slots((self.x.bytes, self.y));
            let x = &widened(self.x, x);
            if self.residual {
                matmul(weight, x, self.weight.cols, y, |y, sum| *y += sum);
            } else {
                matmul(weight, x, self.weight.cols, y, |y, sum| *y = sum);
            }
        });
    }

    fn launch(&self, gpu: &Gpu) -> Launch {
        let Weight { dtype, rows, cols, .. } = self.weight;
        let tokens = self.x.len() / cols;
        assert!(cols.is_multiple_of(8), "rows of {cols} are not of whole 16-byte pieces");
        assert_eq!(self.x.dtype, dtype);
        let arguments = kernel::Matmul {
            x: self.x.bytes,
            weight: self.weight,
            y: self.y,
            tokens: size(tokens),
            rows: size(rows),
            width: size(cols),
            residual: self.residual.into(),
            terms: size(self.x.terms),
        }
        .arguments();
        launch(
            kernel::Matmul::KERNEL,
            (dtype, 0),
            [product_blocks(tokens, rows, gpu), 1],
            0,
            arguments,
        )
    }
}

/// Tiles of a product's output, in the smallest shape that kernels use (`kernels/lib/product.cuh`): a
/// grid of more blocks would leave some without work.
pub(super) fn product_blocks(tokens: usize, rows: usize, gpu: &Gpu) -> u32 {
    const TILE: usize = 32;
    blocks(tokens.div_ceil(TILE) * rows.div_ceil(TILE), 2 * gpu.multiprocessors)
}

/// What a product of `weight` with `tokens` inputs must move and compute.
pub(super) fn matmul_cost(weight: Weight, tokens: usize) -> Cost {
    Cost {
        weight_bytes: weight.bytes() as u64,
        flops: 2 * (tokens * weight.rows * weight.cols) as u64,
        ..Cost::default()
    }
}
