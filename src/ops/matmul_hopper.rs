use super::{Matmul, blocks, launch, size};
use crate::case::Case;
use crate::kernel::{self, Launch, TensorMap};
use crate::memory::{Memory, Weight};
use crate::op::{Cost, Gpu, Op};

/// [`Matmul`] as Hopper does it best
#[derive(Clone, Copy)]
pub struct MatmulHopper(pub Matmul);

/// Of what a block computes at a time (`kernels/lib/hopper.cuh`).
pub(super) const TILE_TOKENS: usize = 128;
pub(super) const TILE_ROWS: usize = 256;
/// Four stages of two inputs in slices of 64, and what it takes to align them.
pub(super) const SHARED_BYTES: u32 = 4 * (128 + 256) * 64 * 2 + 1024;

impl Op for MatmulHopper {
    fn name(&self) -> &'static str {
        "matmul_hopper"
    }

    fn cost(&self, position: usize) -> Cost {
        self.0.cost(position)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        self.0.reference(memory);
    }

    fn launch(&self, gpu: &Gpu) -> Launch {
        let Matmul { x, weight, residual, y } = self.0;
        let Weight { dtype, rows, cols, .. } = weight;
        let tokens = x.len() / cols;
        assert!(cols.is_multiple_of(8), "rows of {cols} are not of whole 16-byte pieces");
        assert_eq!(x.dtype, dtype);
        let arguments = kernel::MatmulHopper {
            x: TensorMap::activation(x, cols, TILE_TOKENS as u32),
            weight: TensorMap::weight(weight, TILE_ROWS as u32 / 2),
            y,
            tokens: size(tokens),
            rows: size(rows),
            width: size(cols),
            residual: residual.into(),
            terms: size(x.terms),
        }
        .arguments();
        let tiles = tokens.div_ceil(TILE_TOKENS) * rows.div_ceil(TILE_ROWS);
        let grid = [blocks(tiles, gpu.multiprocessors), 1];
        launch(kernel::MatmulHopper::KERNEL, (dtype, 0), grid, SHARED_BYTES, arguments)
    }
}

impl MatmulHopper {
    /// Below, at and past the tiles (128 and 256) and the slices of K (64), of which there are more than
    /// stages; more tiles than blocks.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (2, 9, 1032),
            (130, 66, 72),
            (64, 128, 64),
            (33, 257, 328),
            (129, 30, 200),
            (128, 256, 256),
            (300, 600, 136),
        ];
        Matmul::cases_of(&sizes, Self)
    }
}
