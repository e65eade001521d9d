//! How a test is run: what is in the time, and what is not.

use std::ops::Add;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::test::{Test, TestKind, wanted};
use crate::error::{Error, Result};
use crate::executor::cuda::nvtx;
use crate::model::Logits;
use crate::op::Cost;
use crate::random::random_ids;
use crate::rank::Rank;
use crate::sampler::SamplingOptions;
use crate::team::Team;

/// How the KV cache gets its tokens before a test at a depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// By prefill, as in use.
    Prefill,
    /// With random keys and values, which takes no time to speak of.
    Random,
}

/// One repetition of a test. Times are in seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Repetition {
    /// Of the tokens that count.
    pub time: f64,
    /// From the request to the first token; of [`TestKind::Loop`] alone.
    pub first_token: Option<f64>,
    /// Of each token, where they are waited for one by one.
    pub tokens: Vec<f64>,
}

/// A model on the bench.
pub struct Bench<'a> {
    pub team: Team,
    pub fill: Fill,
    /// Set from outside to end the test at hand.
    pub interrupt: &'a AtomicBool,
    /// Tokens of [`Self::fill_to`] in the cache, from its start.
    filled: usize,
}

/// What the ids of prompts and of depths are functions of.
const PROMPT_SEED: u64 = 1;
const DEPTH_SEED: u64 = 2;
const TOKEN_SEED: u64 = 3;

impl<'a> Bench<'a> {
    pub fn new(team: impl Into<Team>, fill: Fill, interrupt: &'a AtomicBool) -> Self {
        Self { team: team.into(), fill, interrupt, filled: 0 }
    }

    /// One prompt and two tokens, as far as the test has them: kernels are loaded, graphs captured.
    ///
    /// # Errors
    /// A device that fails; the interrupt.
    pub fn warm_up(&mut self, test: &Test) -> Result<()> {
        self.fill_to(test.depth)?;
        if test.kind == TestKind::Loop {
            return self.answer(&Test { generate: 2, ..*test }).map(drop);
        }
        self.take_prompt(test.prompt)?;
        if test.generate > 0 {
            self.team.rewind(test.depth)?;
            self.take_tokens(2)?;
        }
        Ok(())
    }

    /// Runs the test once. The cache is filled to its depth outside the time.
    ///
    /// # Errors
    /// As [`Self::warm_up`].
    pub fn sample(&mut self, test: &Test) -> Result<Repetition> {
        self.fill_to(test.depth)?;
        let _range = nvtx::range(&test.name());
        if test.kind == TestKind::Loop {
            return self.answer(test);
        }
        let start = Instant::now();
        self.take_prompt(test.prompt)?;
        let tokens = self.take_tokens(test.generate)?;
        Ok(Repetition { time: start.elapsed().as_secs_f64(), first_token: None, tokens })
    }

    /// What the tokens of a test that count must move and compute, on all ranks together.
    ///
    /// # Errors
    /// When the run has ended.
    pub fn cost(&mut self, test: &Test) -> Result<Cost> {
        let test = *test;
        let costs = self.team.each(move |rank| Ok(test.cost(rank)))?;
        Ok(costs.into_iter().fold(Cost::default(), Cost::add))
    }

    /// Rewinds to `depth` tokens, or fills the cache up to there.
    ///
    /// # Errors
    /// As [`Self::warm_up`].
    pub fn fill_to(&mut self, depth: usize) -> Result<()> {
        if depth > self.filled {
            match self.fill {
                Fill::Random => self.team.pretend(depth)?,
                Fill::Prefill => {
                    self.team.rewind(self.filled)?;
                    let ids = random_ids(DEPTH_SEED, depth, self.team.vocab());
                    for chunk in ids[self.filled..].chunks(self.team.chunk()) {
                        self.check()?;
                        self.team.forward_and_finish(chunk, Logits::None)?;
                    }
                }
            }
            self.filled = depth;
        }
        self.team.rewind(depth)
    }

    /// A prompt, up to the logits of its last token.
    pub(super) fn take_prompt(&mut self, tokens: usize) -> Result<()> {
        let ids = random_ids(PROMPT_SEED, tokens, self.team.vocab());
        let mut left = tokens;
        for chunk in ids.chunks(self.team.chunk()) {
            self.check()?;
            left -= chunk.len();
            match left {
                0 => self.team.forward_and_finish(chunk, Logits::Last)?,
                _ => self.team.forward(chunk, Logits::None)?,
            }
        }
        Ok(())
    }

    /// Random tokens one by one, each up to its logits. Returns the time of each.
    pub(super) fn take_tokens(&mut self, tokens: usize) -> Result<Vec<f64>> {
        let ids = random_ids(TOKEN_SEED, tokens, self.team.vocab());
        let take = |id: u32| {
            self.check()?;
            let start = Instant::now();
            self.team.forward_and_finish(&[id], Logits::Last)?;
            Ok(start.elapsed().as_secs_f64())
        };
        ids.into_iter().map(take).collect()
    }

    /// A prompt and its answer, chosen as Llama's makers sample, never ending early.
    fn answer(&mut self, test: &Test) -> Result<Repetition> {
        let ids = random_ids(PROMPT_SEED, test.prompt, self.team.vocab());
        let sampling =
            SamplingOptions { temperature: 0.6, top_p: 0.9, seed: 1, ..SamplingOptions::default() };
        let start = Instant::now();
        self.team.begin(&sampling, &ids)?;
        let mut left = ids.len();
        for chunk in ids.chunks(self.team.chunk()) {
            self.check()?;
            left -= chunk.len();
            self.team.forward(chunk, wanted(left == 0))?;
        }
        self.team.sample()?;
        let mut last = Instant::now();
        let first_token = (last - start).as_secs_f64();
        let mut tokens = Vec::with_capacity(test.generate - 1);
        for _ in 1..test.generate {
            self.check()?;
            self.team.decode_step()?;
            let now = Instant::now();
            tokens.push((now - last).as_secs_f64());
            last = now;
        }
        self.team.each(Rank::finish)?;
        Ok(Repetition { time: tokens.iter().sum(), first_token: Some(first_token), tokens })
    }

    fn check(&self) -> Result<()> {
        if self.interrupt.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}
