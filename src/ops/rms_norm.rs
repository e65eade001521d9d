use super::{blocks, launch, size};
use crate::for_dtype;
use crate::kernel::{self, Launch};
use crate::memory::{Activation, Memory, Slot, Weight};
use crate::op::{Cost, Gpu, Op};
use crate::vector::{Element, dot, fill};

/// `y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight` (Zhang and Sennrich, 2019, arXiv:1910.07467)
pub struct RmsNorm {
    /// `[T, C]`
    pub x: Slot<f32>,
    /// `[C]`
    pub weight: Weight,
    pub eps: f32,
    /// Out. `[T, C]`
    pub y: Activation,
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cost(&self, _position: usize) -> Cost {
        Cost {
            weight_bytes: self.weight.bytes() as u64,
            flops: 4 * self.x.len() as u64,
            ..Cost::default()
        }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        for_dtype!(self.weight.dtype, W => {
            let weight = memory.weight::<W>(self.weight);
            let (x, y) = memory.slots((self.x, self.y.bytes));
            let width = self.weight.cols;
            fill(self.y, y, |y| {
                for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                    rms_norm(x, weight, self.eps, y);
                }
            });
        });
    }

    fn launch(&self, gpu: &Gpu) -> Launch {
        let width = self.weight.cols;
        let tokens = self.x.len() / width;
        assert!(width.is_multiple_of(8), "rows of {width} are not of whole 16-byte pieces");
        assert_eq!((self.y.dtype, self.y.terms), (self.weight.dtype, 2));
        let arguments = kernel::RmsNorm {
            x: self.x,
            weight: self.weight,
            y: self.y.bytes,
            tokens: size(tokens),
            width: size(width),
            eps: self.eps,
        }
        .arguments();
        launch(
            kernel::RmsNorm::KERNEL,
            (self.weight.dtype, 0),
            [blocks(tokens, 8 * gpu.multiprocessors), 1],
            0,
            arguments,
        )
    }
}

/// The norm of one token's `x` `[C]` into `y` `[C]`.
pub(super) fn rms_norm<W: Element>(x: &[f32], weight: &[W], eps: f32, y: &mut [f32]) {
    let mean_square = dot(x, x) / x.len() as f32;
    let scale = 1.0 / (mean_square + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w.widen();
    }
}

#[cfg(test)]
mod tests {
    use super::rms_norm;

    #[test]
    fn follows_the_formula_in_f64() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let weight: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 / 100.0).collect();
        let mut y = [f32::NAN; 37];
        rms_norm(&x, &weight, 1e-5, &mut y);
        let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 37.0;
        for i in 0..37 {
            let exact = f64::from(x[i]) / (square + 1e-5).sqrt() * f64::from(weight[i]);
            assert!((f64::from(y[i]) - exact).abs() < 1e-6, "{i}");
        }
    }
}
