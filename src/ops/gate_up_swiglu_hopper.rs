use super::matmul_hopper::{SHAPES, SHARED_BYTES, TILE_TOKENS};
use super::{GateUpSwiglu, launch, size, tiles};
use crate::case::Case;
use crate::kernel::{self, Launch, TensorMap};
use crate::memory::{Memory, Weight};
use crate::op::{Cost, Op, Target};

/// [`GateUpSwiglu`] as Hopper does it best
#[derive(Clone, Copy)]
pub struct GateUpSwigluHopper(pub GateUpSwiglu);

/// Of a narrow tile: as many rows each of gate and up, a box of either.
const TILE_UNITS: usize = 64;

impl Op for GateUpSwigluHopper {
    fn name(&self) -> &'static str {
        "gate_up_swiglu_hopper"
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
        let GateUpSwiglu { x, w_gate, w_up, hidden } = self.0;
        let (tokens, Weight { encoding, rows: ffn, cols: width, .. }) = (self.0.tokens(), w_gate);
        assert!(width.is_multiple_of(8) && ffn.is_multiple_of(8), "sizes {ffn}, {width}");
        assert_eq!([x.dtype, hidden.dtype], [encoding.activation(); 2]);
        assert!(x.terms == 1 && hidden.terms == 1);
        let (tile, grid) = tiles::choose(&SHAPES, tokens, &[2 * ffn], target, 1);
        let arguments = kernel::GateUpSwigluHopper {
            x: TensorMap::activation(x, width, TILE_TOKENS as u32),
            w_gate: TensorMap::weight(w_gate, TILE_UNITS as u32),
            w_up: TensorMap::weight(w_up, TILE_UNITS as u32),
            hidden: hidden.bytes,
            tokens: size(tokens),
            width: size(width),
            ffn: size(ffn),
            tile,
        }
        .arguments();
        launch(kernel::GateUpSwigluHopper::KERNEL, (encoding, 0), grid, SHARED_BYTES, arguments)
    }
}

impl GateUpSwigluHopper {
    /// Below, at and past the tiles (128 and 128 or 64) and the K-tiles (64), of which there are more
    /// than stages; more tiles than blocks.
    pub fn cases() -> Vec<Case> {
        let sizes = [(2, 8, 1032), (130, 72, 136), (33, 136, 328), (128, 128, 64), (257, 264, 72)];
        GateUpSwiglu::cases_of(&sizes, Self)
    }
}
