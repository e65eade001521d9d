use rayon::prelude::*;

use super::{blocks, launch, size};
use crate::case::{Case, Content, F32_NMSE, HALF, NUMBERS, Numbers, Setup};
use crate::encoding::Float;
use crate::kernel::{self, Launch};
use crate::memory::{Activation, Memory, Scratch, Slot};
use crate::op::{Cost, Op, Operands, Target};
use crate::vector::{Inputs, dot, fill, matmul_scratch, wide_scratch};

/// `y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight` (Zhang and Sennrich, 2019, arXiv:1910.07467)
pub struct RmsNorm {
    /// `[T, C]`
    pub x: Slot<f32>,
    /// `[C]`
    pub weight: Slot<f32>,
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

    fn scratch(&self, _threads: usize) -> usize {
        wide_scratch(self.y)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (mut region, mut scratch) = memory.region_and_scratch();
        let (x, weight, y) = region.slots((self.x, self.weight, self.y.bytes));
        let width = weight.len();
        fill(self.y, y, &mut scratch, |y, _| {
            let tokens = x.par_chunks_exact(width).zip(y.par_chunks_exact_mut(width));
            let least = (ELEMENTS_PER_TASK / width).max(1);
            tokens.with_min_len(least).for_each(|(x, y)| rms_norm(x, weight, self.eps, y));
        });
    }

    fn operands(&self) -> Operands {
        let width = self.weight.len();
        let input = vec![self.x.len() / width, width];
        Operands { input, matrices: Vec::new(), norm: Some(self.weight) }
    }

    fn launch(&self, target: &Target) -> Launch {
        let width = self.weight.len();
        let tokens = self.x.len() / width;
        assert!(width.is_multiple_of(8), "rows of {width} are not of whole 16-byte pieces");
        assert_eq!(self.y.terms, 2);
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
            (self.y.dtype, 0),
            [blocks(tokens, 8 * target.multiprocessors), 1],
            0,
            arguments,
        )
    }
}

/// Elements that are worth a task of their own.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// The norm of each token's `x`, `[R, C]`, for ops that begin with it.
pub(super) fn normed<'s>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    scratch: &mut Scratch<'s>,
) -> Inputs<'s> {
    let (y, width) = (scratch.take(x.len()), weight.len());
    let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
    rows.for_each(|(x, y)| rms_norm(x, weight, eps, y));
    Inputs::pack(y, width, scratch)
}

/// Bytes of scratch that [`normed`] of `x` and products of it take.
pub(super) fn normed_scratch(x: Slot<f32>, norm: Slot<f32>, threads: usize) -> usize {
    let width = norm.len();
    Scratch::bytes_of::<f32>(x.len()) + matmul_scratch(x.len() / width, width, threads)
}

/// The norm of one token's `x` `[C]` into `y` `[C]`.
fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let mean_square = dot(x, x) / x.len() as f32;
    let scale = 1.0 / (mean_square + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

impl RmsNorm {
    /// Rows shorter and longer than a block takes at once, more rows than a grid has blocks; rows that
    /// are all zero, overflow, or hold an infinity or a NaN.
    pub fn cases() -> Vec<Case> {
        let sizes = [(1, 8), (3, 40), (37, 2040), (2, 2056), (1, 4096), (2, 8192), (1100, 16)];
        let mut cases = Vec::new();
        for ((tokens, width), dtype) in sizes.into_iter().flat_map(|s| HALF.map(|d| (s, d))) {
            cases.extend(NUMBERS.map(|numbers| {
                let (x, eps) = numbers.to_norm();
                let name = format!("{} [{tokens}, {width}]", dtype.name());
                Self::case(numbers, [tokens, width], dtype, (x, eps), name)
            }));
        }
        let odd = |(value, what): (f32, &str), dtype: Float| {
            // The second of three rows is odd, in one place.
            let x = Content::each(move |i| if i == 30 { value } else { (i % 5) as f32 - 2.0 });
            let name = format!("{} [3, 24] with {what}", dtype.name());
            Self::case(Numbers::Real, [3, 24], dtype, (x, 1e-5), name)
        };
        let values = [(f32::NAN, "NaN"), (f32::INFINITY, "an infinity"), (3e38, "an overflow")];
        cases.extend(values.into_iter().flat_map(|value| HALF.map(|dtype| odd(value, dtype))));
        let zeros = |dtype: Float| {
            let name = format!("{} [2, 24] of zeros", dtype.name());
            Self::case(Numbers::Whole, [2, 24], dtype, (Content::each(|_| 0.0), 1e-5), name)
        };
        cases.extend(HALF.map(zeros));
        cases
    }

    fn case(
        numbers: Numbers,
        shape: [usize; 2],
        dtype: Float,
        (x, eps): (Content, f32),
        name: String,
    ) -> Case {
        let mut setup = Setup::new(numbers);
        let op = Self {
            x: setup.read("x", &shape, x),
            weight: setup.read("weight", &shape[1..], numbers.upto(3)),
            eps,
            y: setup.written_as("y", (dtype, 2), &shape, numbers.judge(F32_NMSE)),
        };
        setup.case(name, op)
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
