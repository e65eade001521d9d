use super::{blocks, launch, size};
use crate::case::{Case, HALF, Judge, Numbers, Setup};
use crate::checkpoint::Dtype;
use crate::checkpoint::synthetic::{PIECE, Recipe};
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot};
use crate::op::{Cost, Gpu, Op};

/// Random weights where they will be read: see [`Recipe`].
pub struct Synthesize {
    pub recipe: Recipe,
    /// BF16 or F16
    pub dtype: Dtype,
    /// Out, of that type. `[N]`
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
        self.recipe.fill(self.dtype, 0, out);
    }

    fn launch(&self, gpu: &Gpu) -> Launch {
        let (elements, recipe) = (self.out.len() / self.dtype.bytes(), &self.recipe);
        assert!(elements.is_multiple_of(PIECE), "{elements} are not of whole 16-byte pieces");
        let pieces = elements / PIECE;
        let arguments = kernel::Synthesize {
            out: self.out,
            pieces: size(pieces),
            tensor: recipe.tensor,
            seed_low: recipe.seed as u32,
            seed_high: (recipe.seed >> 32) as u32,
            centre: recipe.centre,
            scale: recipe.scale,
        }
        .arguments();
        launch(
            kernel::Synthesize::KERNEL,
            (self.dtype, 0),
            [blocks(pieces.div_ceil(256), 8 * gpu.multiprocessors), 1],
            0,
            arguments,
        )
    }
}

impl Synthesize {
    /// A piece, an odd number of them, and more than a grid has threads.
    pub fn cases() -> Vec<Case> {
        let sizes = [8, 2056, 300_000].into_iter().flat_map(|len| HALF.map(|dtype| (len, dtype)));
        let case = |(len, dtype): (usize, Dtype)| {
            let mut setup = Setup::new(Numbers::Real);
            let recipe =
                Recipe { seed: 0x0123_4567_89ab_cdef, tensor: 7, centre: 1.0, scale: 1e-5 };
            let out = setup.written_as("out", (dtype, 1), &[len], Judge::Exact).bytes;
            setup.case(format!("{} [{len}]", dtype.name()), Self { recipe, dtype, out })
        };
        sizes.map(case).collect()
    }
}
