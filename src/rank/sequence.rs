//! What belongs to one text, whatever ranks take it.

use std::sync::Arc;

use crate::error::Result;
use crate::sampler::{IN_PROMPT, SamplingOptions};

/// A text that is being taken. Ranks know nothing of it but what is in their caches; a copy is cheap.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    /// Which of the caches is its own, of [`Sizes::sequences`](crate::model::Sizes).
    pub place: usize,
    /// Tokens in the KV cache: the next one's position.
    pub position: usize,
    /// Tokens of the text in all, where more of it is known than the step at hand.
    pub text: usize,
    /// How its tokens are chosen.
    pub sampling: Arc<SamplingOptions>,
    /// Of each token, what has been said so far: that it is in the prompt. `[V]`, whole
    pub counts: Arc<[u32]>,
}

impl Sequence {
    /// Tokens are chosen like this from now on; so far `prompt` has been said. `vocab`: V, whole
    ///
    /// # Errors
    /// Options without meaning.
    pub fn begin(&mut self, options: &SamplingOptions, prompt: &[u32], vocab: usize) -> Result<()> {
        options.validate(vocab)?;
        let mut counts = vec![0; vocab];
        let known = prompt.iter().filter(|id| (**id as usize) < vocab);
        known.for_each(|id| counts[*id as usize] |= IN_PROMPT);
        self.sampling = Arc::new(options.clone());
        self.counts = counts.into();
        Ok(())
    }
}
