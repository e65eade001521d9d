use super::{blocks, launch, size};
use crate::case::{Case, HALF, Judge, Numbers, Setup};
use crate::checkpoint::synthetic::{PIECE, Recipe};
use crate::encoding::Float;
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot};
use crate::op::{Cost, Op, Target};

/// Random weights where they will be read: see [`Recipe`]. A rank makes its part of a tensor alone.
pub struct Synthesize {
    /// Of BF16 or F16.
    pub recipe: Recipe,
    /// Which of the tensor's elements the first one is; like the other two a multiple of [`PIECE`].
    pub first: usize,
    /// Elements that follow each other in the tensor.
    pub row: usize,
    /// Elements from the start of a row to that of the next, in the tensor.
    pub stride: usize,
    /// Out, of the recipe's type: row after row. `[N]`
    pub out: Slot<u8>,
}

impl Op for Synthesize {
    fn name(&self) -> &'static str {
        "synthesize"
    }

    fn cost(&self, _position: usize) -> Cost {
        Cost::default()
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (out,) = memory.slots((self.out,));
        let starts = (self.first..).step_by(self.stride.max(1));
        for (first, row) in starts.zip(out.chunks_mut(self.row * self.recipe.dtype.bytes())) {
            self.recipe.fill(first, row);
        }
    }

    fn launch(&self, target: &Target) -> Launch {
        let pieces = |elements: usize| {
            assert!(elements.is_multiple_of(PIECE), "{elements} are not of whole 16-byte pieces");
            size(elements / PIECE)
        };
        let (all, recipe) = (pieces(self.out.len() / self.recipe.dtype.bytes()), &self.recipe);
        let arguments = kernel::Synthesize {
            out: self.out,
            pieces: all,
            first: pieces(self.first),
            row: pieces(self.row),
            stride: pieces(self.stride),
            tensor: recipe.tensor,
            seed_low: recipe.seed as u32,
            seed_high: (recipe.seed >> 32) as u32,
            centre: recipe.centre,
            scale: recipe.scale,
        }
        .arguments();
        launch(
            kernel::Synthesize::KERNEL,
            (self.recipe.dtype, 0),
            [blocks((all as usize).div_ceil(256), 8 * target.multiprocessors), 1],
            0,
            arguments,
        )
    }
}

impl Synthesize {
    /// A whole tensor.
    pub fn whole(recipe: Recipe, out: Slot<u8>) -> Self {
        let row = out.len() / recipe.dtype.bytes();
        Self { recipe, first: 0, row, stride: row, out }
    }

    /// A piece, an odd number of them, and more than a grid has threads; rows of a tensor, and columns.
    pub fn cases() -> Vec<Case> {
        let recipe = |dtype| Recipe {
            dtype,
            seed: 0x0123_4567_89ab_cdef,
            tensor: 7,
            centre: 1.0,
            scale: 1e-5,
        };
        let whole = [8, 2056, 300_000].map(|len| (1, len, len, 0));
        let parts =
            [(3, 40, 40, 80), (5, 24, 72, 48), (700, 8, 16, 8), (2, 30_000, 40_000, 10_000)];
        let sizes = whole.into_iter().chain(parts);
        let case = |((rows, row, stride, first), dtype): ((usize, usize, usize, usize), Float)| {
            let mut setup = Setup::new(Numbers::Real);
            let out = setup.written_as("out", (dtype, 1), &[rows * row], Judge::Exact).bytes;
            let name = format!("{} [{rows}, {row} of {stride}] from {first}", dtype.name());
            setup.case(name, Self { recipe: recipe(dtype), first, row, stride, out })
        };
        sizes.flat_map(|sizes| HALF.map(|dtype| (sizes, dtype))).map(case).collect()
    }
}
