//! Choices as a function of a seed.

use chaski::random::random_ids;

pub struct Dice(std::vec::IntoIter<u32>);

const SIDES: usize = 1 << 30;

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(random_ids(seed, 4096, SIDES).into_iter())
    }

    /// A number below `end`; 0 when all choices have been made.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.next().unwrap_or(0) as usize % end
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == count - 1
    }

    pub fn pick<'t, T>(&mut self, these: &'t [T]) -> &'t T {
        &these[self.below(these.len())]
    }
}
