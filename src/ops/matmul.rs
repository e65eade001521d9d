use super::tiles::{self, TileShape};
use super::{MatmulHopper, launch, size};
use crate::case::{Case, Content, F32_NMSE, HALF, Judge, NUMBERS, Numbers, Setup};
use crate::encoding::Float;
use crate::kernel::{self, Launch};
use crate::memory::{Activation, Memory, Slot, Weight};
use crate::op::{Cost, Op, Operands, Target, Tile};
use crate::vector::{Inputs, Rows, add, matmul, matmul_scratch, set, wide_scratch};

/// `y[t] = weight x[t]`, or `y[t] += weight x[t]` onto the residual stream, for each of up to three weights
#[derive(Clone, Copy)]
pub struct Matmul<const N: usize> {
    /// `[T, K]`
    pub x: Activation,
    /// Each weight `[N, K]`, and out: its `y`, `[T, N]`.
    pub products: [(Weight, Slot<f32>); N],
    /// Add to what `y` holds.
    pub residual: bool,
}

impl<const N: usize> Op for Matmul<N> {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cost(&self, _position: usize) -> Cost {
        let tokens = self.tokens();
        let costs = self.products.iter().map(|(weight, _)| matmul_cost(*weight, tokens));
        costs.fold(Cost::default(), std::ops::Add::add)
    }

    fn scratch(&self, threads: usize) -> usize {
        matmul_scratch(self.tokens(), self.width(), threads) + wide_scratch(self.x)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let rows = self.products.map(|(weight, _)| Rows::of(memory.weights, weight));
        let (mut region, mut scratch) = memory.region_and_scratch();
        let (x,) = region.slots((self.x.bytes,));
        let weights = self.products.map(|(weight, _)| weight);
        let inputs = Inputs::of(self.x, x, &weights, &mut scratch);
        let mut outputs = region.slots(self.products.map(|(_, y)| y)).into_iter();
        let products = rows.map(|rows| ([rows], outputs.next().expect("one for each")));
        matmul(products, inputs, &mut scratch, if self.residual { &add } else { &set });
    }

    fn operands(&self) -> Operands {
        let matrices = self.products.map(|(weight, _)| weight).to_vec();
        Operands { input: vec![self.tokens(), self.width()], matrices, norm: None }
    }

    fn launch(&self, target: &Target) -> Launch {
        if target.kernels.contains(kernel::MatmulHopper::KERNEL) {
            return MatmulHopper(*self).launch(target);
        }
        let [(weight, y), (weight_1, y_1), (weight_2, y_2)] = self.padded();
        let [rows, rows_1, rows_2] = self.rows();
        let (tile, grid) = tiles::choose(&SHAPES, self.tokens(), &self.rows(), target, 2);
        let arguments = kernel::Matmul {
            x: self.x.bytes,
            weight,
            weight_1,
            weight_2,
            y,
            y_1,
            y_2,
            tokens: size(self.tokens()),
            rows: size(rows),
            rows_1: size(rows_1),
            rows_2: size(rows_2),
            width: size(self.width()),
            residual: self.residual.into(),
            terms: size(self.x.terms),
            tile,
        }
        .arguments();
        launch(kernel::Matmul::KERNEL, (weight.encoding, 0), grid, 0, arguments)
    }
}

/// Of a launch; those that are not needed have no rows.
const MOST: usize = 3;

impl<const N: usize> Matmul<N> {
    pub(super) fn tokens(&self) -> usize {
        self.x.len() / self.width()
    }

    /// K
    pub(super) fn width(&self) -> usize {
        self.products[0].0.cols
    }

    /// As many as a kernel takes, checked: the first stands for those that are not there.
    pub(super) fn padded(&self) -> [(Weight, Slot<f32>); MOST] {
        const { assert!(1 <= N && N <= MOST) };
        let first = self.products[0];
        let Weight { encoding, cols, .. } = first.0;
        assert!(cols.is_multiple_of(8), "rows of {cols} are not of whole 16-byte pieces");
        let alike = |(weight, _): &(Weight, _)| (weight.encoding, weight.cols) == (encoding, cols);
        assert!(self.products.iter().all(alike));
        assert_eq!(self.x.dtype, encoding.activation());
        std::array::from_fn(|i| *self.products.get(i).unwrap_or(&first))
    }

    /// Of the weights; none of those that are not there.
    pub(super) fn rows(&self) -> [usize; MOST] {
        std::array::from_fn(|i| self.products.get(i).map_or(0, |(weight, _)| weight.rows))
    }
}

/// `kernels/lib/product.cuh`. Cycles are those of mma.sync on Hopper, 62% of its tensor cores' best, or
/// what reading shared memory takes.
pub(super) const SHAPES: [TileShape; 3] = [
    TileShape { tile: Tile::Large, tokens: 128, rows: 128, cycles: 824 },
    TileShape { tile: Tile::Medium, tokens: 64, rows: 64, cycles: 256 },
    TileShape { tile: Tile::Small, tokens: 32, rows: 32, cycles: 128 },
];

/// What a product of `weight` with `tokens` inputs must move and compute.
pub(super) fn matmul_cost(weight: Weight, tokens: usize) -> Cost {
    Cost {
        weight_bytes: weight.bytes() as u64,
        flops: 2 * (tokens * weight.rows * weight.cols) as u64,
        ..Cost::default()
    }
}

/// As [`F32_NMSE`], for sums of this many products on tensor cores.
///
/// They cut off where others round: each of `n` steps makes the sum so far, S, smaller by half a unit
/// of its last place on average, 0.36 * 2^-23 |S|. Where terms have random signs, |S| grows as a root,
/// so that of the last sum's magnitude the average is about 0.45, and the errors, whose signs are those
/// of S, add up: 0.16 * 2^-23 n, squared 3.6e-16 n^2. Ampere's steps are 8 products, Hopper's 16: for
/// 28672 products that is 4.7e-9 and 1.2e-9 (an emulated GPU's are 1.3e-9 to 1.4e-9). The limit is 2.6
/// times Ampere's.
fn products_nmse(products: usize) -> f64 {
    F32_NMSE * (products as f64 / 8192.0).powi(2).max(1.0)
}

impl<const N: usize> Matmul<N> {
    /// Cases of these sizes - tokens, rows, columns -, each op in the form that `of` gives it.
    pub(super) fn cases_of<O: Op + 'static>(
        sizes: &[(usize, [usize; N], usize)],
        of: fn(Self) -> O,
    ) -> Vec<Case> {
        let mut cases = Vec::new();
        for (i, (tokens, rows, cols)) in sizes.iter().copied().enumerate() {
            for (dtype, numbers) in HALF.into_iter().flat_map(|d| NUMBERS.map(|n| (d, n))) {
                let mut setup = Setup::new(numbers);
                let (residual, terms) = (i % 2 == 1, 1 + i / 2 % 2);
                let x = setup.read_as("x", (dtype, terms), &[tokens, cols], numbers.upto(4));
                let products = std::array::from_fn(|i| {
                    let shape = [tokens, rows[i]];
                    let judge = numbers.judge(products_nmse(cols));
                    let (weight, y) = (numbers.upto(4), ["y", "y_1", "y_2"][i]);
                    let weight = setup.weight(dtype, rows[i], cols, weight);
                    let y = match residual {
                        true => setup.changed(y, &shape, numbers.upto(100), judge),
                        false => setup.written(y, &shape, judge),
                    };
                    (weight, y)
                });
                let add = if residual { "y += " } else { "" };
                let x_shape = format!("{} [{terms}, {tokens}, {cols}]", dtype.name());
                let rows = rows.map(|rows| rows.to_string()).join(" + ");
                let name = format!("{add}{x_shape} x {rows} rows");
                cases.push(setup.case(name, of(Self { x, products, residual })));
            }
        }
        cases
    }
}

impl Matmul<1> {
    /// Below, at and past the tiles of every shape (32, 64, 128) and the K-tiles (32, 64, 128), of
    /// which there are more than stages; the rows of real models; several products.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (1, [1], 8),
            (2, [9], 1032),
            (33, [66], 328),
            (130, [130], 136),
            (3, [33], 40),
            (31, [65], 136),
            (33, [131], 200),
            (65, [129], 264),
            (130, [200], 72),
            (129, [257], 1032),
            (1, [40], 2048),
            (2, [33], 4096),
            (1, [33], 14336),
            (12, [8], 28672),
            (100, [2900], 64),
            (1030, [1290], 128),
            (20, [330], 40),
        ];
        let threes = [
            (3, [40, 8, 9], 136),
            (65, [130, 33, 64], 72),
            (1030, [900, 128, 130], 128),
            (33, [128, 64, 64], 200),
        ];
        let pairs = [(2, [1, 66], 40)];
        let mut cases = Self::cases_of(&sizes, |op| op);
        cases.extend(HALF.map(|dtype| Self::not_finite(dtype, |op| op)));
        cases.extend(Matmul::cases_of(&threes, |op| op));
        cases.extend(Matmul::cases_of(&pairs, |op| op));
        cases
    }

    /// A NaN in the second token and an infinity in the third.
    pub(super) fn not_finite<O: Op + 'static>(dtype: Float, of: fn(Self) -> O) -> Case {
        let mut setup = Setup::new(Numbers::Whole);
        let x = |i| match i {
            50 => f32::NAN,
            100 => f32::INFINITY,
            _ => (i % 7) as f32 - 3.0,
        };
        let x = setup.read_as("x", (dtype, 1), &[4, 40], Content::each(x));
        let weight = setup.weight(dtype, 9, 40, Content::Whole(-1.0, 1.0));
        let y = setup.written("y", &[4, 9], Judge::Exact);
        let op = Self { x, products: [(weight, y)], residual: false };
        setup.case(format!("{} with NaN and an infinity", dtype.name()), of(op))
    }
}
