//! Rotations that depend on the length of the text (`dynamic`): `transformers` forms all queries and keys
//! of one pass with the frequencies of the longest position in it, and leaves those in the cache as they
//! are.

use crate::config::Rope;

/// Which frequencies are on the device.
pub struct Turning {
    pub rope: Rope,
    /// The length of text that they are of; 0 where that does not matter.
    written_for: usize,
}

impl Turning {
    /// Those of a short text are there.
    pub fn new(rope: Rope) -> Self {
        Self { written_for: rope.fixed_up_to().unwrap_or(0), rope }
    }

    /// The frequencies of a text of `tokens` tokens, if the device has others.
    pub fn changed(&mut self, head_dim: usize, tokens: usize) -> Option<Vec<f32>> {
        let tokens = tokens.max(self.rope.fixed_up_to()?);
        let is_new = std::mem::replace(&mut self.written_for, tokens) != tokens;
        is_new.then(|| self.rope.frequencies(head_dim, tokens))
    }
}
