//! From a prompt's ids to an answer's: what is in the KV cache, when to stop, how long it took.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::model::Logits;
use crate::sampler::{Sampler, SamplingOptions};
use crate::team::Team;

/// A model with the tokens it has taken.
pub struct Session {
    team: Team,
    /// The tokens in the KV cache.
    cached: Vec<u32>,
}

/// When an answer ends, other than by the context.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    pub max_tokens: usize,
    /// Tokens that end the answer.
    pub stop_ids: &'a [u32],
    /// Set from outside to end the answer at once, as Ctrl-C does.
    pub interrupt: &'a AtomicBool,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop id was generated; it was not passed on as text, but it is among the ids.
    StopId,
    /// The receiver wanted no more, as at a stop string.
    Receiver,
    MaxTokens,
    /// The context is full.
    Context,
    Interrupted,
}

/// What the receiver of an answer's tokens wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Continue,
    Stop,
}

/// A token that was generated.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    pub id: u32,
    /// Whether it ends the answer.
    pub is_stop: bool,
    /// The model's logits that it was chosen from, without bias and penalties, `[V]`; empty if nobody
    /// wants them.
    pub logits: &'a [f32],
}

/// Chooses tokens on the host, where the logits are wanted. It is the choice that a device makes.
struct Host {
    sampler: Sampler,
    /// Of the last choice. `[V]`
    logits: Vec<f32>,
}

impl Host {
    /// The token that follows the `position` ones that `logits` (`[V]`) come after.
    fn choose(&mut self, logits: &[f32], position: usize) -> Result<u32> {
        self.logits.clear();
        self.logits.extend(logits);
        let id = self.sampler.sample(&mut logits.to_vec(), position as u64)?;
        self.sampler.accept(id);
        Ok(id)
    }
}

/// An answer and what it took.
#[derive(Debug, Clone)]
pub struct Answer {
    /// All generated tokens, a stop id included.
    pub ids: Vec<u32>,
    pub finish: Finish,
    pub timing: Timing,
}

/// Prefill and decode apart.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Tokens of the prompt that were not in the cache yet.
    pub prefill_tokens: usize,
    pub prefill: Duration,
    /// Tokens generated after the first, which the prefill yields.
    pub decode_tokens: usize,
    pub decode: Duration,
    /// From the request to the first token.
    pub first_token: Duration,
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

    /// Continues `prompt`, of which only what is not in the cache is computed, and gives each
    /// generated token but a stop id to `receive`.
    ///
    /// # Errors
    /// An empty prompt or one past the context, ids outside the vocabulary, options without meaning, a
    /// device that fails, and what `receive` says.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &SamplingOptions,
        limits: Limits<'_>,
        mut receive: impl FnMut(u32) -> Result<Next>,
    ) -> Result<Answer> {
        self.generate_steps(prompt, sampling, limits, false, |step| match step.is_stop {
            true => Ok(Next::Stop),
            false => receive(step.id),
        })
    }

    /// As [`Self::generate`], and gives stop ids too, with the logits if `wants_logits`.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn generate_steps(
        &mut self,
        prompt: &[u32],
        sampling: &SamplingOptions,
        limits: Limits<'_>,
        wants_logits: bool,
        mut receive: impl FnMut(Step<'_>) -> Result<Next>,
    ) -> Result<Answer> {
        let start = Instant::now();
        self.check(prompt)?;
        self.team.begin(sampling, prompt)?;
        let mut host = match wants_logits {
            true => Some(self.host(sampling, prompt)?),
            false => None,
        };
        let mut timing = Timing::default();
        let mut answer = Vec::new();
        let interrupted = || limits.interrupt.load(Ordering::Relaxed);
        let finish = loop {
            if answer.len() == limits.max_tokens {
                break Finish::MaxTokens;
            }
            if interrupted() {
                break Finish::Interrupted;
            }
            let id = match answer.last() {
                None => {
                    match self.take_prompt(prompt, limits.interrupt, &mut timing, &mut host)? {
                        Some(id) => id,
                        None => break Finish::Interrupted,
                    }
                }
                Some(_) if self.team.position() == self.team.context() => break Finish::Context,
                Some(last) => {
                    self.cached.push(*last);
                    let position = self.cached.len();
                    match &mut host {
                        None => self.team.advance()?,
                        Some(host) => host.choose(self.team.decode(*last)?, position)?,
                    }
                }
            };
            answer.push(id);
            if answer.len() == 1 {
                timing.first_token = start.elapsed();
            }
            let is_stop = limits.stop_ids.contains(&id);
            let logits = host.as_ref().map_or(&[][..], |host| &host.logits);
            let next = receive(Step { id, is_stop, logits })?;
            if is_stop {
                break Finish::StopId;
            }
            if next == Next::Stop {
                break Finish::Receiver;
            }
        };
        timing.decode_tokens = answer.len().saturating_sub(1);
        if timing.decode_tokens > 0 {
            timing.decode = start.elapsed() - timing.first_token;
        }
        Ok(Answer { ids: answer, finish, timing })
    }

    /// Chooses as the team would after `prompt`.
    fn host(&self, sampling: &SamplingOptions, prompt: &[u32]) -> Result<Host> {
        let mut sampler = Sampler::new(sampling.clone(), self.team.vocab())?;
        sampler.accept_prompt(prompt);
        Ok(Host { sampler, logits: Vec::new() })
    }

    /// That `prompt` can be taken at all.
    fn check(&self, prompt: &[u32]) -> Result<()> {
        let (context, vocab) = (self.team.context(), self.team.vocab());
        if prompt.is_empty() {
            return Err(Error::failed("the prompt is empty: there is nothing to continue"));
        }
        if prompt.len() > context {
            return Err(Error::failed(format!(
                "the prompt has {} tokens and the context holds {context}: shorten it, or raise \
                 --context if the model allows",
                prompt.len()
            )));
        }
        match prompt.iter().find(|id| **id as usize >= vocab) {
            None => Ok(()),
            Some(id) => Err(Error::failed(format!(
                "token id {id} is outside the model's vocabulary of {vocab}"
            ))),
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
            self.team.take(chunk, Logits::None)?;
            self.cached.extend(chunk);
            done += chunk.len();
        }
        self.cached.extend(&prompt[done..]);
        let id = match host {
            None => {
                self.team.take(&prompt[done..], Logits::Last)?;
                self.team.choose()?
            }
            Some(host) => {
                host.choose(self.team.prefill(&prompt[done..], Logits::Last)?, prompt.len())?
            }
        };
        timing.prefill = start.elapsed();
        Ok(Some(id))
    }
}
