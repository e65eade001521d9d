//! From a prompt's ids to an answer's: what is in the KV cache, when to stop, how long it took.

mod conversation;
mod generation;
mod stops;
mod text;

pub use conversation::Conversation;
pub use generation::{
    Advance, Answer, FinishReason, Generation, Next, Scored, Step, StopCriteria, Timing,
};
pub use stops::Stops;
pub use text::AnswerText;

use crate::error::{Error, Result, count};
use crate::model::Logits;
use crate::sampler::SamplingOptions;
use crate::team::Team;
use generation::Host;

/// A model with the tokens it has taken, of one text or of several side by side.
pub struct Session {
    team: Team,
    /// The tokens in the KV cache, by place.
    cached: Vec<Vec<u32>>,
    /// Where the last step's tokens went, unless another text has begun since: the device goes on from there.
    last: Option<usize>,
}

impl Session {
    pub fn new(team: impl Into<Team>) -> Self {
        let team = team.into();
        Self { cached: vec![Vec::new(); team.sequences()], team, last: None }
    }

    /// B: texts that the KV cache holds side by side.
    pub fn places(&self) -> usize {
        self.cached.len()
    }

    /// The tokens in the KV cache at `place`, below [`Self::places`].
    pub fn cached(&self, place: usize) -> &[u32] {
        &self.cached[place]
    }

    /// Forgets all but the first `tokens` tokens at `place`.
    pub fn forget(&mut self, place: usize, tokens: usize) {
        self.cached[place].truncate(tokens);
    }

    /// That what runs the model has not failed, which would concern every text.
    ///
    /// # Errors
    /// Why it has.
    pub fn check(&mut self) -> Result<()> {
        self.team.each(|rank| rank.finish()).map(drop)
    }

    /// Whether a failure has ended it for good.
    pub fn has_ended(&self) -> bool {
        self.team.has_ended()
    }

    /// S: tokens the KV cache can hold.
    pub fn context(&self) -> usize {
        self.team.context()
    }

    /// V
    pub fn vocab(&self) -> usize {
        self.team.vocab()
    }

    /// Begins to continue `prompt`, of which only what is not in the cache will be computed; steps come
    /// with their logits if `wants_logits`.
    ///
    /// # Errors
    /// An empty prompt or one past the context, ids outside the vocabulary, options without meaning, a
    /// device that fails.
    pub fn begin<'i>(
        &mut self,
        prompt: &[u32],
        sampling: &SamplingOptions,
        stop: StopCriteria<'_, 'i>,
        wants_logits: bool,
    ) -> Result<Generation<'i>> {
        let scored = if wants_logits { Scored::Answer } else { Scored::Nothing };
        self.begin_at(0, prompt, sampling, stop, scored)
    }

    /// As [`Self::begin`], at a place of several. What was generated there before goes on no longer.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_at<'i>(
        &mut self,
        place: usize,
        prompt: &[u32],
        sampling: &SamplingOptions,
        stop: StopCriteria<'_, 'i>,
        scored: Scored,
    ) -> Result<Generation<'i>> {
        Generation::new(self, place, prompt, sampling, stop, scored)
    }

    /// Continues `prompt` to the end, and gives each generated token but a stop id to `receive`.
    ///
    /// # Errors
    /// As [`Self::begin`], and what `receive` says.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &SamplingOptions,
        stop: StopCriteria<'_, '_>,
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

    /// Brings the cache at `place` to what it has in common with `prompt`, and returns how many tokens that
    /// are. At least two are left to be computed, if there are: for the last one's logits, and since one
    /// alone would have the bits of decoding.
    fn keep_common(&mut self, place: usize, prompt: &[u32]) -> Result<usize> {
        let may_stay = self.team.expect(prompt.len())?;
        let common = common(&self.cached[place], prompt).min(prompt.len().saturating_sub(2));
        let kept = if may_stay { common } else { 0 };
        self.team.rewind(kept)?;
        self.last = None;
        self.cached[place].truncate(kept);
        Ok(kept)
    }

    /// Takes tokens of the text at `place`.
    fn take(&mut self, place: usize, ids: &[u32], logits: Logits) -> Result<()> {
        self.team.turn_to(place)?;
        self.last = Some(place);
        self.team.forward(ids, logits)?;
        self.cached[place].extend(ids);
        Ok(())
    }

    /// As [`Self::take`], and returns the token that follows.
    fn take_last(&mut self, place: usize, ids: &[u32], host: &mut Option<Host>) -> Result<u32> {
        let Some(host) = host else {
            self.take(place, ids, Logits::Last)?;
            return self.team.sample();
        };
        self.team.turn_to(place)?;
        self.last = Some(place);
        let logits = self.team.prefill(ids, Logits::Last)?;
        self.cached[place].extend(ids);
        host.choose(logits, self.cached[place].len())
    }

    /// As [`Self::take`]. Returns the logits after each of them, `[T, V]`.
    fn take_scored(&mut self, place: usize, ids: &[u32]) -> Result<&[f32]> {
        self.team.turn_to(place)?;
        self.last = Some(place);
        self.cached[place].extend(ids);
        self.team.prefill(ids, Logits::All)
    }

    /// Takes a token that was chosen for `place`, and returns the one that follows.
    fn take_token(&mut self, place: usize, last: u32, host: &mut Option<Host>) -> Result<u32> {
        if host.is_some() || self.last != Some(place) {
            return self.take_last(place, &[last], host);
        }
        // The device knows the token, and may have taken it already.
        self.cached[place].push(last);
        self.team.decode_step()
    }
}

/// How many tokens two texts begin with both.
pub fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
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
