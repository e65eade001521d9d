//! An answer on its way, token by token.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Session, check_prompt};
use crate::error::Result;
use crate::model::Logits;
use crate::sampler::{Sampler, SamplingOptions};

/// When an answer ends, other than by the context.
#[derive(Debug, Clone, Copy)]
pub struct StopCriteria<'s, 'i> {
    pub max_tokens: usize,
    /// Tokens that end the answer.
    pub stop_ids: &'s [u32],
    /// Set from outside to end the answer at once, as Ctrl-C does.
    pub interrupt: &'i AtomicBool,
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

/// Of which tokens the logits are wanted that they were chosen from, or might have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scored {
    Nothing,
    Answer,
    /// Of the prompt's, too: then all of it is computed, whatever the cache holds.
    All,
}

/// What a step has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// A part of the prompt was taken; there is more of it.
    Prompt,
    /// A token was generated: [`Generation::step`].
    Token,
    /// Nothing was left to do: the answer has ended.
    Ended,
}

/// An answer on its way: what has been said of it, and when it ends. A caller may hold several, each at a
/// place of its own, of which each goes on when its [`Self::next`] or [`Self::advance`] is called.
pub struct Generation<'i> {
    place: usize,
    prompt: Vec<u32>,
    /// Tokens of the prompt that are in the cache.
    taken: usize,
    max_tokens: usize,
    stop_ids: Vec<u32>,
    interrupt: &'i AtomicBool,
    /// Where the logits are wanted.
    host: Option<Host>,
    /// The logits after each token of the prompt that the last step took, where those are wanted. `[T, V]`
    prompt_logits: Option<Vec<f32>>,
    /// All generated tokens.
    ids: Vec<u32>,
    begun: Instant,
    timing: Timing,
    finish: Option<FinishReason>,
}

/// Of those that nobody interrupts.
static NEVER: AtomicBool = AtomicBool::new(false);

impl Default for StopCriteria<'_, '_> {
    /// None but the end of the context.
    fn default() -> Self {
        Self { max_tokens: usize::MAX, stop_ids: &[], interrupt: &NEVER }
    }
}

impl<'i> Generation<'i> {
    /// At `place`, whose cache is brought to what it has in common with `prompt`.
    pub(super) fn new(
        session: &mut Session,
        place: usize,
        prompt: &[u32],
        sampling: &SamplingOptions,
        stop: StopCriteria<'_, 'i>,
        scored: Scored,
    ) -> Result<Self> {
        let begun = Instant::now();
        check_prompt(prompt, session.team.context(), session.team.vocab())?;
        session.team.turn_to(place)?;
        session.team.begin(sampling, prompt)?;
        let host = || -> Result<Host> {
            let mut sampler = Sampler::new(sampling.clone(), session.team.vocab())?;
            sampler.accept_prompt(prompt);
            Ok(Host { sampler, logits: Vec::new() })
        };
        let host = (scored != Scored::Nothing).then(host).transpose()?;
        if scored == Scored::All {
            session.forget(place, 0);
        }
        let taken = session.keep_common(place, prompt)?;
        let timing = Timing { prefill_tokens: prompt.len() - taken, ..Timing::default() };
        Ok(Self {
            place,
            prompt: prompt.to_vec(),
            taken,
            max_tokens: stop.max_tokens,
            stop_ids: stop.stop_ids.to_vec(),
            interrupt: stop.interrupt,
            host,
            prompt_logits: (scored == Scored::All).then(Vec::new),
            ids: Vec::new(),
            begun,
            timing,
            finish: None,
        })
    }

    /// The next token; none when the answer has ended.
    ///
    /// # Errors
    /// A device that fails; logits that leave no choice.
    pub fn next(&mut self, session: &mut Session) -> Result<Option<Step<'_>>> {
        loop {
            match self.advance(session)? {
                Advance::Prompt => {}
                Advance::Token => return Ok(self.step()),
                Advance::Ended => return Ok(None),
            }
        }
    }

    /// One step, of a prompt's part or of a token.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn advance(&mut self, session: &mut Session) -> Result<Advance> {
        if self.has_ended(session) {
            return Ok(Advance::Ended);
        }
        self.prompt_logits.iter_mut().for_each(Vec::clear);
        let id = match self.ids.last() {
            None => match self.take_prompt(session)?.filter(|_| self.max_tokens > 0) {
                None => return Ok(Advance::Prompt),
                Some(id) => id,
            },
            Some(last) => session.take_token(self.place, *last, &mut self.host)?,
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
        if self.stop_ids.contains(&id) {
            self.finish = Some(FinishReason::StopId);
        }
        Ok(Advance::Token)
    }

    /// Takes the next part of the prompt; the token that follows, if that was the last one.
    fn take_prompt(&mut self, session: &mut Session) -> Result<Option<u32>> {
        let start = Instant::now();
        let rest = &self.prompt[self.taken..];
        let most = match self.prompt_logits {
            None => session.team.chunk(),
            Some(_) => session.team.scored().min(session.team.chunk()),
        };
        let is_last = rest.len() <= most;
        // A last token alone would have the bits of decoding: how long steps are shall not decide that.
        let length = if is_last { rest.len() } else { most.min(rest.len() - 2).max(1) };
        let part = &rest[..length];
        self.taken += length;
        let id = if let (Some(kept), Some(host)) = (&mut self.prompt_logits, &mut self.host) {
            kept.extend(session.take_scored(self.place, part)?);
            let last = &kept[kept.len() - session.team.vocab()..];
            is_last.then(|| host.choose(last, self.prompt.len())).transpose()?
        } else if is_last {
            Some(session.take_last(self.place, part, &mut self.host)?)
        } else {
            session.take(self.place, part, Logits::None)?;
            None
        };
        self.timing.prefill += start.elapsed();
        Ok(id)
    }

    /// The logits after each token of the prompt that the last step took, `[T, V]`; empty where they are not
    /// wanted.
    pub fn prompt_logits(&self) -> &[f32] {
        self.prompt_logits.as_deref().unwrap_or_default()
    }

    /// The token that was generated last.
    pub fn step(&self) -> Option<Step<'_>> {
        let id = *self.ids.last()?;
        let logits = self.host.as_ref().map_or(&[][..], |host| &host.logits);
        Some(Step { id, is_stop: self.finish == Some(FinishReason::StopId), logits })
    }

    /// Whether there is to be no further token.
    pub fn has_ended(&mut self, session: &Session) -> bool {
        self.finish = self.finish.or_else(|| self.ended(session));
        self.finish.is_some()
    }

    /// Why there is to be no further token, if there is not.
    fn ended(&self, session: &Session) -> Option<FinishReason> {
        let said = self.ids.len();
        let scores_more = self.prompt_logits.is_some() && self.taken < self.prompt.len();
        if said == self.max_tokens && !scores_more {
            Some(FinishReason::Length)
        } else if self.interrupt.load(Ordering::Relaxed) {
            Some(FinishReason::Interrupted)
        } else if said > 0 && self.prompt.len() + said > session.context() {
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
