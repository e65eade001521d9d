use rayon::prelude::*;

use super::{launch, size};
use crate::case::{Case, Judge, Numbers, Setup};
use crate::encoding::Float;
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot};
use crate::op::{Cost, Op, Target};

/// Reads every byte once, and does next to nothing else: the bandwidth that decoding could reach.
/// The sum of `sums` is that of all words, modulo 2^32.
pub struct ReadAll {
    /// `[N]`, N a multiple of 4
    pub words: Slot<u32>,
    /// Out. `[blocks]`
    pub sums: Slot<u32>,
}

/// Words that a thread of the CPU reads at once.
const TASK_WORDS: usize = 1 << 18;

impl ReadAll {
    /// Blocks that a GPU reads best with.
    pub fn blocks(multiprocessors: u32) -> u32 {
        4 * multiprocessors
    }
}

impl Op for ReadAll {
    fn name(&self) -> &'static str {
        "read_all"
    }

    fn cost(&self, _position: usize) -> Cost {
        Cost { weight_bytes: self.words.bytes() as u64, ..Cost::default() }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (words, sums) = memory.slots((self.words, self.sums));
        let sum = |words: &[u32]| words.iter().fold(0u32, |sum, word| sum.wrapping_add(*word));
        sums.fill(0);
        sums[0] = words.par_chunks(TASK_WORDS).map(sum).reduce(|| 0, u32::wrapping_add);
    }

    fn launch(&self, _target: &Target) -> Launch {
        let words = self.words.len();
        assert!(words.is_multiple_of(4), "{words} words are not of whole 16-byte pieces");
        let arguments =
            kernel::ReadAll { words: self.words, sums: self.sums, pieces: size(words / 4) }
                .arguments();
        let grid = [size(self.sums.len()), 1];
        launch(kernel::ReadAll::KERNEL, (Float::F32, 0), grid, 0, arguments)
    }
}

impl ReadAll {
    /// With one block, whose sum is that of all words.
    pub fn cases() -> Vec<Case> {
        let case = |words: u32| {
            let mut setup = Setup::new(Numbers::Whole);
            let values: Vec<u32> = (0..words).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
            let op = Self {
                words: setup.given("words", &values),
                sums: setup.written("sums", &[1], Judge::Exact),
            };
            setup.case(format!("{words} words"), op)
        };
        [4, 100, 8192, 8196, 70_000].map(case).into()
    }
}
