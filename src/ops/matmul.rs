use crate::for_dtype;
use crate::memory::{Memory, Slot, Weight};
use crate::op::{Cost, Op};
use crate::vector::matmul;

/// `y[t] = weight x[t]`, or `y[t] += weight x[t]` onto the residual stream
pub struct Matmul {
    /// `[T, K]`
    pub x: Slot<f32>,
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
            let (x, y) = memory.slots((self.x, self.y));
            if self.residual {
                matmul(weight, x, self.weight.cols, y, |y, sum| *y += sum);
            } else {
                matmul(weight, x, self.weight.cols, y, |y, sum| *y = sum);
            }
        });
    }
}

/// What a product of `weight` with `tokens` inputs must move and compute.
pub(super) fn matmul_cost(weight: Weight, tokens: usize) -> Cost {
    Cost {
        weight_bytes: weight.bytes() as u64,
        flops: 2 * (tokens * weight.rows * weight.cols) as u64,
        ..Cost::default()
    }
}
