//! From a prompt's ids to an answer's: what is in the KV cache, when to stop, how long it took.

mod conversation;
mod generation;
mod text;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub use conversation::Conversation;
pub use generation::{Answer, FinishReason, Generation, Next, Step, StopCriteria, Timing};
pub use text::AnswerText;

use crate::error::{Error, Result, count};
use crate::model::Logits;
use crate::sampler::SamplingOptions;
use crate::team::Team;
use generation::Host;

/// A model with the tokens it has taken.
pub struct Session {
    team: Team,
    /// The tokens in the KV cache.
    cached: Vec<u32>,
}

impl Session {
    pub fn new(team: impl Into<Team>) -> Self {
        Self { team: team.into(), cached: Vec::new() }
    }

    /// The tokens in the KV cache.
    pub fn cached(&self) -> &[u32] {
        &self.cached
    }

    /// Whether a failure has ended it for good.
    pub fn has_ended(&self) -> bool {
        self.team.has_ended()
    }

    /// S: tokens the KV cache can hold.
    pub fn context(&self) -> usize {
        self.team.context()
    }

    /// Begins to continue `prompt`, of which only what is not in the cache will be computed; steps come
    /// with their logits if `wants_logits`.
    ///
    /// # Errors
    /// An empty prompt or one past the context, ids outside the vocabulary, options without meaning, a
    /// device that fails.
    pub fn begin<'a>(
        &mut self,
        prompt: &'a [u32],
        sampling: &SamplingOptions,
        stop: StopCriteria<'a>,
        wants_logits: bool,
    ) -> Result<Generation<'a>> {
        Generation::new(self, prompt, sampling, stop, wants_logits)
    }

    /// Continues `prompt` to the end, and gives each generated token but a stop id to `receive`.
    ///
    /// # Errors
    /// As [`Self::begin`], and what `receive` says.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &SamplingOptions,
        stop: StopCriteria<'_>,
        mut receive: impl FnMut(u32) -> Result<Next>,
    ) -> Result<Answer> {
        let mut generation = self.begin(prompt, sampling, stop, false)?;
        while let Some(step) = generation.next(self)? {
            if !step.is_stop && receive(step.id)? == Next::Stop {
                generation.stop();
            }
        }
        Ok(generation.answer())
    }

    /// Takes a token that was chosen, and returns the one that follows.
    fn take_token(&mut self, last: u32, host: &mut Option<Host>) -> Result<u32> {
        self.cached.push(last);
        let position = self.cached.len();
        match host {
            None => self.team.decode_step(),
            Some(host) => host.choose(self.team.decode(last)?, position),
        }
    }

    /// Brings the cache to `prompt` and returns the token that follows; `None` if interrupted.
    fn take_prompt(
        &mut self,
        prompt: &[u32],
        interrupt: &AtomicBool,
        timing: &mut Timing,
        host: &mut Option<Host>,
    ) -> Result<Option<u32>> {
        let start = Instant::now();
        // The last token is always computed anew, for its logits.
        let known = self.cached.iter().zip(&prompt[..prompt.len() - 1]);
        let known = known.take_while(|(cached, prompt)| cached == prompt).count();
        let mut done = if self.team.expect(prompt.len())? { known } else { 0 };
        self.team.rewind(done)?;
        self.cached.truncate(done);
        timing.prefill_tokens = prompt.len() - done;
        while prompt.len() - done > self.team.chunk() {
            if interrupt.load(Ordering::Relaxed) {
                return Ok(None);
            }
            // A last token alone would have the bits of decoding: how long steps are shall not decide that.
            let length = self.team.chunk().min(prompt.len() - done - 2).max(1);
            let chunk = &prompt[done..done + length];
            self.team.forward(chunk, Logits::None)?;
            self.cached.extend(chunk);
            done += chunk.len();
        }
        self.cached.extend(&prompt[done..]);
        let id = match host {
            None => {
                self.team.forward(&prompt[done..], Logits::Last)?;
                self.team.sample()?
            }
            Some(host) => {
                host.choose(self.team.prefill(&prompt[done..], Logits::Last)?, prompt.len())?
            }
        };
        timing.prefill = start.elapsed();
        Ok(Some(id))
    }
}

/// That a model with this context and vocabulary can take `prompt` at all.
///
/// # Errors
/// An empty prompt or one past the context, ids outside the vocabulary.
pub fn check_prompt(prompt: &[u32], context: usize, vocab: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::failed("the prompt is empty: there is nothing to continue"));
    }
    if prompt.len() > context {
        return Err(Error::failed(format!(
            "the prompt has {} and the context holds {context}: shorten it, or raise `context` if the \
             model allows",
            count(prompt.len(), "token")
        )));
    }
    match prompt.iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::failed(format!(
            "token id {id} is outside the model's vocabulary of {vocab}"
        ))),
    }
}
