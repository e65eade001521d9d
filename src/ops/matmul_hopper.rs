use super::tiles::{self, TileShape};
use super::{Matmul, launch, size};
use crate::case::{Case, HALF};
use crate::kernel::{self, Launch, TensorMap};
use crate::memory::Memory;
use crate::op::{Cost, Op, Target, Tile};

/// [`Matmul`] as Hopper does it best
#[derive(Clone, Copy)]
pub struct MatmulHopper<const N: usize>(pub Matmul<N>);

/// Of what a block computes at a time (`kernels/lib/hopper.cuh`).
pub(super) const TILE_TOKENS: usize = 128;
pub(super) const TILE_ROWS: usize = 256;
/// Cycles are those of the tensor cores.
pub(super) const SHAPES: [TileShape; 2] = [
    TileShape { tile: Tile::Large, tokens: TILE_TOKENS, rows: TILE_ROWS, cycles: 1024 },
    TileShape { tile: Tile::Small, tokens: TILE_TOKENS, rows: TILE_ROWS / 2, cycles: 512 },
];
/// Four stages of two inputs in slices of 64, and what it takes to align them.
pub(super) const SHARED_BYTES: u32 = 4 * (128 + 256) * 64 * 2 + 1024;

impl<const N: usize> Op for MatmulHopper<N> {
    fn name(&self) -> &'static str {
        "matmul_hopper"
    }

    fn cost(&self, position: usize) -> Cost {
        self.0.cost(position)
    }

    fn scratch(&self, threads: usize) -> usize {
        self.0.scratch(threads)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        self.0.reference(memory);
    }

    fn launch(&self, target: &Target) -> Launch {
        let (x, tokens, width) = (self.0.x, self.0.tokens(), self.0.width());
        let [(weight, y), (weight_1, y_1), (weight_2, y_2)] = self.0.padded();
        let [rows, rows_1, rows_2] = self.0.rows();
        let map = |weight| TensorMap::weight(weight, TILE_ROWS as u32 / 2);
        let (tile, grid) = tiles::choose(&SHAPES, tokens, &self.0.rows(), target, 1);
        let arguments = kernel::MatmulHopper {
            x: TensorMap::activation(x, width, TILE_TOKENS as u32),
            weight: map(weight),
            weight_1: map(weight_1),
            weight_2: map(weight_2),
            y,
            y_1,
            y_2,
            tokens: size(tokens),
            rows: size(rows),
            rows_1: size(rows_1),
            rows_2: size(rows_2),
            width: size(width),
            residual: self.0.residual.into(),
            terms: size(x.terms),
            tile,
        }
        .arguments();
        launch(kernel::MatmulHopper::KERNEL, (weight.encoding, 0), grid, SHARED_BYTES, arguments)
    }
}

impl MatmulHopper<1> {
    /// Below, at and past the tiles (128 and 256 or 128) and the K-tiles (64), of which there are more
    /// than stages; more tiles than blocks; several products.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (2, [9], 1032),
            (130, [66], 72),
            (64, [128], 64),
            (33, [257], 328),
            (129, [30], 200),
            (128, [256], 256),
            (300, [600], 136),
        ];
        let threes = [(129, [256, 9, 264], 72), (2, [257, 128, 130], 136)];
        let mut cases = Matmul::cases_of(&sizes, MatmulHopper);
        cases.extend(HALF.map(|dtype| Matmul::not_finite(dtype, MatmulHopper)));
        cases.extend(Matmul::cases_of(&threes, MatmulHopper));
        cases
    }
}
