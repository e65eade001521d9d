use super::{MatmulHopper, blocks, launch, size};
use crate::case::{Case, Content, F32_NMSE, HALF, Judge, NUMBERS, Numbers, Setup};
use crate::checkpoint::Dtype;
use crate::for_dtype;
use crate::kernel::{self, Launch};
use crate::memory::{Activation, Memory, Slot, Weight};
use crate::op::{Cost, Gpu, Op, Product};
use crate::vector::{matmul_strided, widened};

/// `y[t] = weight x[t]`, or `y[t] += weight x[t]` onto the residual stream
#[derive(Clone, Copy)]
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
            let Weight { stride, cols, .. } = self.weight;
            if self.residual {
                matmul_strided(weight, stride, x, cols, y, |y, sum| *y += sum);
            } else {
                matmul_strided(weight, stride, x, cols, y, |y, sum| *y = sum);
            }
        });
    }

    fn product(&self) -> Option<Product> {
        let Self { x, weight, residual, y } = *self;
        let x = (x.dtype == weight.dtype).then_some(x);
        Some(Product { x, weight, residual, y })
    }

    fn launch(&self, gpu: &Gpu) -> Launch {
        if gpu.hopper {
            return MatmulHopper(*self).launch(gpu);
        }
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

impl Matmul {
    /// Below, at and past the tiles of every shape (32, 64, 128) and the slices of K (32, 64, 128), of
    /// which there are more than stages; the rows of real models.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (1, 1, 8),
            (2, 9, 1032),
            (33, 66, 328),
            (130, 130, 136),
            (3, 33, 40),
            (31, 65, 136),
            (33, 131, 200),
            (65, 129, 264),
            (130, 200, 72),
            (129, 257, 1032),
            (1, 40, 2048),
            (2, 33, 4096),
            (1, 33, 14336),
            (17, 8, 28672),
            (100, 2900, 64),
            (1030, 1290, 128),
        ];
        Self::cases_of(&sizes, |op| op)
    }

    /// Cases of these sizes - tokens, rows, columns -, each op in the form that `of` gives it.
    pub(super) fn cases_of<O: Op + 'static>(
        sizes: &[(usize, usize, usize)],
        of: fn(Self) -> O,
    ) -> Vec<Case> {
        let mut cases = Vec::new();
        for (i, (tokens, rows, cols)) in sizes.iter().copied().enumerate() {
            for (dtype, numbers) in HALF.into_iter().flat_map(|d| NUMBERS.map(|n| (d, n))) {
                let mut setup = Setup::new(numbers);
                let (shape, judge) = ([tokens, rows], numbers.judge(F32_NMSE));
                let (residual, terms) = (i % 2 == 1, 1 + i / 2 % 2);
                let op = Self {
                    x: setup.read_as("x", (dtype, terms), &[tokens, cols], numbers.upto(4)),
                    weight: setup.weight(dtype, rows, cols, numbers.upto(4)),
                    residual,
                    y: match residual {
                        true => setup.changed("y", &shape, numbers.upto(100), judge),
                        false => setup.written("y", &shape, judge),
                    },
                };
                let add = if residual { "y += " } else { "" };
                let x = format!("{} [{terms}, {tokens}, {cols}]", dtype.name());
                let name = format!("{add}{x} x {rows} rows");
                cases.push(setup.case(name, of(op)));
            }
        }
        cases.extend(HALF.map(|dtype| Self::not_finite(dtype, of)));
        cases
    }

    /// A NaN in the second token and an infinity in the third.
    fn not_finite<O: Op + 'static>(dtype: Dtype, of: fn(Self) -> O) -> Case {
        let mut setup = Setup::new(Numbers::Whole);
        let x = |i| match i {
            50 => f32::NAN,
            100 => f32::INFINITY,
            _ => (i % 7) as f32 - 3.0,
        };
        let op = Self {
            x: setup.read_as("x", (dtype, 1), &[4, 40], Content::each(x)),
            weight: setup.weight(dtype, 9, 40, Content::Whole(-1.0, 1.0)),
            residual: false,
            y: setup.written("y", &[4, 9], Judge::Exact),
        };
        setup.case(format!("{} with NaN and an infinity", dtype.name()), of(op))
    }
}
