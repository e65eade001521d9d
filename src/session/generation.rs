//! An answer on its way, token by token.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Session, check_prompt};
use crate::error::Result;
use crate::sampler::{Sampler, SamplingOptions};

/// When an answer ends, other than by the context.
#[derive(Debug, Clone, Copy)]
pub struct StopCriteria<'a> {
    pub max_tokens: usize,
    /// Tokens that end the answer.
    pub stop_ids: &'a [u32],
    /// Set from outside to end the answer at once, as Ctrl-C does.
    pub interrupt: &'a AtomicBool,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop id was generated; it was not passed on as text, but it is among the ids.
    StopId,
    /// The receiver wanted no more, as at a stop string.
    StopString,
    /// As many tokens as it may have.
    Length,
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
pub(super) struct Host {
    sampler: Sampler,
    /// Of the last choice. `[V]`
    logits: Vec<f32>,
}

impl Host {
    /// The token that follows the `position` ones that `logits` (`[V]`) come after.
    pub(super) fn choose(&mut self, logits: &[f32], position: usize) -> Result<u32> {
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
    pub finish: FinishReason,
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

impl std::ops::Add for Timing {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            prefill_tokens: self.prefill_tokens + other.prefill_tokens,
            prefill: self.prefill + other.prefill,
            decode_tokens: self.decode_tokens + other.decode_tokens,
            decode: self.decode + other.decode,
            first_token: self.first_token + other.first_token,
        }
    }
}

/// An answer on its way: what has been said of it, and when it ends. A caller may hold several, of which
/// each goes on when its [`Generation::next`] is called.
pub struct Generation<'a> {
    prompt: &'a [u32],
    stop: StopCriteria<'a>,
    /// Where the logits are wanted.
    host: Option<Host>,
    /// All generated tokens.
    ids: Vec<u32>,
    begun: Instant,
    timing: Timing,
    finish: Option<FinishReason>,
}

/// Of those that nobody interrupts.
static NEVER: AtomicBool = AtomicBool::new(false);

impl Default for StopCriteria<'_> {
    /// None but the end of the context.
    fn default() -> Self {
        Self { max_tokens: usize::MAX, stop_ids: &[], interrupt: &NEVER }
    }
}

impl<'a> Generation<'a> {
    pub(super) fn new(
        session: &mut Session,
        prompt: &'a [u32],
        sampling: &SamplingOptions,
        stop: StopCriteria<'a>,
        wants_logits: bool,
    ) -> Result<Self> {
        let begun = Instant::now();
        check_prompt(prompt, session.team.context(), session.team.vocab())?;
        session.team.begin(sampling, prompt)?;
        let host = || -> Result<Host> {
            let mut sampler = Sampler::new(sampling.clone(), session.team.vocab())?;
            sampler.accept_prompt(prompt);
            Ok(Host { sampler, logits: Vec::new() })
        };
        let host = wants_logits.then(host).transpose()?;
        let (ids, timing) = (Vec::new(), Timing::default());
        Ok(Self { prompt, stop, host, ids, begun, timing, finish: None })
    }

    /// The next token; none when the answer has ended.
    ///
    /// # Errors
    /// A device that fails; logits that leave no choice.
    pub fn next(&mut self, session: &mut Session) -> Result<Option<Step<'_>>> {
        if self.finish.is_none() {
            self.finish = self.ended(session);
        }
        if self.finish.is_some() {
            return Ok(None);
        }
        let id = match self.ids.last() {
            None => match session.take_prompt(
                self.prompt,
                self.stop.interrupt,
                &mut self.timing,
                &mut self.host,
            )? {
                Some(id) => id,
                None => {
                    self.finish = Some(FinishReason::Interrupted);
                    return Ok(None);
                }
            },
            Some(last) => session.take_token(*last, &mut self.host)?,
        };
        self.ids.push(id);
        let spent = self.begun.elapsed();
        match self.ids.len() {
            1 => self.timing.first_token = spent,
            several => {
                self.timing.decode_tokens = several - 1;
                self.timing.decode = spent - self.timing.first_token;
            }
        }
        let is_stop = self.stop.stop_ids.contains(&id);
        if is_stop {
            self.finish = Some(FinishReason::StopId);
        }
        let logits = self.host.as_ref().map_or(&[][..], |host| &host.logits);
        Ok(Some(Step { id, is_stop, logits }))
    }

    /// Why there is to be no further token, if there is not.
    fn ended(&self, session: &Session) -> Option<FinishReason> {
        let is_full = || session.team.position() == session.team.context();
        if self.ids.len() == self.stop.max_tokens {
            Some(FinishReason::Length)
        } else if self.stop.interrupt.load(Ordering::Relaxed) {
            Some(FinishReason::Interrupted)
        } else if !self.ids.is_empty() && is_full() {
            Some(FinishReason::Context)
        } else {
            None
        }
    }

    /// Ends it: the receiver wants no more.
    pub fn stop(&mut self) {
        self.finish.get_or_insert(FinishReason::StopString);
    }

    /// What it has come to; if it has not ended, it was interrupted.
    pub fn answer(self) -> Answer {
        let finish = self.finish.unwrap_or(FinishReason::Interrupted);
        Answer { ids: self.ids, finish, timing: self.timing }
    }
}
