//! From logits to the next token.
//!
//! The order is that of `transformers` and vLLM: bias, repetition penalty, presence and frequency
//! penalties; the highest logit if the temperature is 0, else temperature, top-k, top-p, min-p,
//! and a draw.
//!
//! The outcome is specified to the bit, for any machine and any order of summation. A token's
//! weight is exp((logit - highest logit) / temperature), in single precision by `exp` below, times
//! 2^40, rounded down to an integer. Everything after that is integer arithmetic: the sums are
//! exact. The draw takes 64 random bits r, from the seed and the position alone, and the first
//! token in the order of ids at which the running sum of the kept weights exceeds
//! floor(r * their total / 2^64).

mod choice;
mod distributed;
mod logprobs;
mod options;

use crate::error::{Error, Result};
use crate::random::random;
pub use choice::{SamplingChoice, for_conversation};
pub use distributed::choose_among_ranks;
pub use logprobs::Logprobs;
pub use options::SamplingOptions;

/// The weight of the most probable token. The sum of 2^23 of them fits 64 bits.
const ONE: u64 = 1 << 40;

/// So many of the most probable tokens nearly always hold the share that top-p asks for.
const FIRST_SORTED: usize = 1024;

/// In a token's count: it is in the prompt. The other bits are how often it is in the answer.
pub const IN_PROMPT: u32 = 1 << 31;

/// Chooses tokens, and counts them for the penalties.
pub struct Sampler {
    options: SamplingOptions,
    /// See [`IN_PROMPT`]. `[V]`
    counts: Vec<u32>,
}

impl Sampler {
    /// A sampler for `vocab` logits. Options without meaning are an error naming their flag.
    pub fn new(options: SamplingOptions, vocab: usize) -> Result<Self> {
        options.validate(vocab)?;
        Ok(Self { options, counts: vec![0; vocab] })
    }

    /// Counts tokens of the prompt, for which only the repetition penalty cares, as in
    /// `transformers`.
    pub fn accept_prompt(&mut self, ids: &[u32]) {
        ids.iter().for_each(|id| self.counts[*id as usize] |= IN_PROMPT);
    }

    /// Counts a token of the answer.
    pub fn accept(&mut self, id: u32) {
        self.counts[id as usize] += 1;
    }

    /// As [`choose`], by this sampler's options and counts.
    pub fn sample(&mut self, logits: &mut [f32], position: u64) -> Result<u32> {
        choose(&self.options, &self.counts, logits, position).token()
    }
}

/// What the choice of a token came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Token(u32),
    /// The logit of this token is NaN or infinite.
    Broken(u32),
    /// Every token is ruled out.
    Empty,
}

impl Outcome {
    /// The token.
    ///
    /// # Errors
    /// What is wrong with the logits.
    pub fn token(self) -> Result<u32> {
        match self {
            Self::Token(id) => Ok(id),
            Self::Broken(id) => Err(Error::failed(format!(
                "the model's logit for the token {id} is NaN or infinite: its weights or its \
                 activations overflow"
            ))),
            Self::Empty => Err(Error::failed("every token is ruled out: none is left to choose")),
        }
    }
}

/// The token that follows. `logits` (`[V]`) are changed by bias and penalties; `counts`: see
/// [`IN_PROMPT`], `[V]`; `position` is where in the sequence the token will stand, and together with
/// the seed decides the draw.
pub fn choose(
    options: &SamplingOptions,
    counts: &[u32],
    logits: &mut [f32],
    position: u64,
) -> Outcome {
    assert_eq!(logits.len(), counts.len(), "a logit for each token");
    adjust(options, counts, logits);
    let best = match highest(logits) {
        Outcome::Token(best) if options.temperature > 0.0 => best,
        outcome => return outcome,
    };
    let highest = logits[best as usize];
    let weights = Weights { logits, highest, temperature: options.temperature };
    let mut keys = kept(options, &weights);
    Outcome::Token(draw(&mut keys, random(options.seed, position), &weights))
}

/// The tokens that the draw is between.
fn kept(options: &SamplingOptions, weights: &Weights) -> Vec<u64> {
    let mut keys = (0..).zip(weights.logits).map(|(id, logit)| key(id, *logit)).collect();
    keep_top_k(&mut keys, options.top_k);
    keep_top_p(&mut keys, options.top_p, weights);
    if options.min_p > 0.0 {
        let least = least_weight(options.min_p);
        keys.retain(|key| weights.of(*key) >= least);
    }
    keys
}

/// The smallest weight that min-p keeps.
fn least_weight(min_p: f32) -> u64 {
    (f64::from(min_p) * ONE as f64).ceil() as u64
}

fn adjust(options: &SamplingOptions, counts: &[u32], logits: &mut [f32]) {
    for (id, bias) in &options.logit_bias {
        logits[*id as usize] += bias;
    }
    let SamplingOptions { repeat_penalty, presence_penalty, frequency_penalty, .. } = *options;
    if (repeat_penalty, presence_penalty, frequency_penalty) == (1.0, 0.0, 0.0) {
        return;
    }
    for (logit, count) in logits.iter_mut().zip(counts).filter(|(_, count)| **count > 0) {
        *logit = if *logit > 0.0 { *logit / repeat_penalty } else { *logit * repeat_penalty };
        let times = count & !IN_PROMPT;
        if times > 0 {
            *logit -= frequency_penalty * times as f32 + presence_penalty;
        }
    }
}

/// The lowest id that has the highest logit.
fn highest(logits: &[f32]) -> Outcome {
    let broken = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY);
    if let Some(id) = broken {
        return Outcome::Broken(id as u32);
    }
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    match (0..).zip(logits).find(|(_, logit)| **logit == highest) {
        Some((id, _)) if highest > f32::NEG_INFINITY => Outcome::Token(id),
        _ => Outcome::Empty,
    }
}

/// A candidate as a number: in ascending order, the higher logit is first, then the lower id.
fn key(id: u32, logit: f32) -> u64 {
    // Adding zero makes a zero of a negative zero, which is no lower.
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!ascending) << 32 | u64::from(id)
}

fn id(key: u64) -> usize {
    key as u32 as usize
}

/// How probable tokens are, as integers.
struct Weights<'l> {
    /// `[V]`
    logits: &'l [f32],
    highest: f32,
    temperature: f32,
}

impl Weights<'_> {
    /// The weight of a token, at most [`ONE`].
    fn of(&self, key: u64) -> u64 {
        let x = (self.logits[id(key)] - self.highest) / self.temperature;
        (exp(x) * ONE as f32) as u64
    }

    fn sum(&self, keys: &[u64]) -> u64 {
        keys.iter().map(|key| self.of(*key)).sum()
    }
}

/// Keeps the first `k` in the order of keys; all if `k` is 0.
fn keep_top_k(keys: &mut Vec<u64>, k: usize) {
    if 0 < k && k < keys.len() {
        keys.select_nth_unstable(k - 1);
        keys.truncate(k);
    }
}

/// Keeps, in the order of keys, those before which no more than `share` of the weight lies.
fn keep_top_p(keys: &mut Vec<u64>, share: f32, weights: &Weights) {
    if share >= 1.0 {
        return;
    }
    let total: u64 = weights.sum(keys);
    let limit = share_of(total, share);
    let mut before = 0;
    let mut sorted = 0;
    while sorted < keys.len() {
        // Sort only as far as is needed, in parts that grow.
        let part = (FIRST_SORTED + 7 * sorted).min(keys.len() - sorted);
        let rest = &mut keys[sorted..];
        if part < rest.len() {
            rest.select_nth_unstable(part);
        }
        rest[..part].sort_unstable();
        for at in sorted..sorted + part {
            if before > limit {
                return keys.truncate(at);
            }
            before += weights.of(keys[at]);
        }
        sorted += part;
    }
}

fn share_of(total: u64, share: f32) -> u64 {
    (f64::from(share) * total as f64) as u64
}

/// Draws one of the kept tokens in proportion to their weights.
fn draw(keys: &mut [u64], random: u64, weights: &Weights) -> u32 {
    keys.sort_unstable_by_key(|key| id(*key));
    let total: u64 = weights.sum(keys);
    let target = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    let mut sum = 0;
    let drawn = keys.iter().find(|key| {
        sum += weights.of(**key);
        sum > target
    });
    // The most probable token is always kept, so the total is above zero, and any target below it.
    id(*drawn.expect("a target below the total")) as u32
}

/// e^x for x <= 0, to within three units in the last place: additions and multiplications only,
/// none of them fused, so that every machine gives the same bits. Below -87 it is zero.
///
/// x = n ln 2 + r with |r| <= ln(2) / 2, and e^r by its Taylor polynomial of degree 7.
fn exp(x: f32) -> f32 {
    /// ln 2 as a number with few bits, whose product with n is exact, and the rest.
    const LN_2: (f32, f32) = (355.0 / 512.0, -2.121_944_4e-4);
    if x < -87.0 {
        return 0.0;
    }
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    let n = (x * std::f32::consts::LOG2_E + ROUNDER) - ROUNDER;
    let r = (x - n * LN_2.0) - n * LN_2.1;
    let terms = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let e_r = terms.into_iter().fold(1.0 / 5040.0, |sum: f32, term| sum * r + term);
    e_r * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

#[cfg(test)]
mod tests;
