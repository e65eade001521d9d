//! What changes no bit is chosen by its time: how decode kernels bring their weights and let each
//! other begin, the shape of tiles, the length of a prompt's steps.

use std::fmt::{self, Display};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::executor::cuda::LaunchOptions;
use crate::executor::{Captured, Executor};
use crate::model::{self, Logits};
use crate::op::{Prefetch, Tile, Trigger, Tuning};
use crate::random::random_ids;
use crate::rank::{Rank, Sequence};
use crate::sampler::SamplingOptions;

/// What was chosen, and what that brings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    pub tuning: Tuning,
    /// Times as shares of those by [`Tuning::DEFAULT`]: a token's, and a prompt's.
    pub token: f64,
    pub prompt: f64,
    /// Why no time was taken.
    pub untimed: Option<String>,
}

impl Tuned {
    /// The default, because of `reason`.
    pub fn untimed(reason: impl Into<String>) -> Self {
        let untimed = Some(reason.into());
        Self { tuning: Tuning::DEFAULT, token: 1.0, prompt: 1.0, untimed }
    }
}

impl Display for Tuned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tuning, token, prompt, untimed } = self;
        match untimed {
            Some(reason) => write!(f, "{tuning} (not timed: {reason})"),
            None => {
                let gain = |share: &f64| 100.0 * (1.0 - share);
                let (token, prompt) = (gain(token), gain(prompt));
                write!(
                    f,
                    "{tuning} (tokens {token:.1}% and prompts {prompt:.1}% below the default)"
                )
            }
        }
    }
}

/// How much is timed.
#[derive(Debug, Clone, Copy)]
pub struct Lengths<'a> {
    /// Of prompts of one step, by which tiles are judged: the same weight for a token of each.
    pub prompts: &'a [usize],
    /// Of steps, the default first. The prompt is as long as the longest.
    pub steps: &'a [usize],
}

impl Lengths<'_> {
    pub const USUAL: Lengths<'static> =
        Lengths { prompts: &[64, 512, 2048], steps: &[Tuning::DEFAULT.chunk, 512, 1024, 4096] };

    /// Tokens of the longest step, which the model must have room for.
    pub fn longest(self) -> usize {
        self.prompts.iter().chain(self.steps).max().copied().unwrap_or(1)
    }
}

/// Tells how many seconds `work` takes under a tuning.
pub type Clock<'a> = &'a mut dyn FnMut(&Tuning, &mut dyn FnMut() -> Result<()>) -> Result<f64>;

/// The clock of hosts.
pub fn host_clock(_: &Tuning, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Tokens of a run, from this position on.
const TOKENS: usize = 8;
const POSITION: usize = 32;
/// Candidates take turns for so many seconds, but so many times at least and at most.
const SECONDS: f64 = 0.25;
const FEWEST: usize = 5;
const MOST: usize = 25;
/// One is faster than the first if it takes no more than this share of its time at the median, and less at
/// three quarters of the turns.
const CLEARLY: f64 = 0.99;

/// Ways for weights to come.
pub fn flows(base: Tuning, options: LaunchOptions) -> Vec<Tuning> {
    let triggers = [Trigger::Last, Trigger::First];
    let triggers = &triggers[..if options.programmatic { 2 } else { 1 }];
    let ways = [Prefetch::Lines, Prefetch::Paced, Prefetch::Bulk];
    let each = |trigger| ways.iter().map(move |way| Tuning { trigger, prefetch: *way, ..base });
    triggers.iter().flat_map(|trigger| each(*trigger)).collect()
}

/// How far ahead weights are asked for.
pub fn depths(base: Tuning) -> Vec<Tuning> {
    let others = [0, 1, 2, 3, 8, 11, Tuning::MOST_AHEAD].map(|ahead| Tuning { ahead, ..base });
    [&[base], &others[..]].concat()
}

/// Shapes of tiles.
pub fn tiles(base: Tuning) -> Vec<Tuning> {
    let shapes = [Tile::Small, Tile::Medium, Tile::Large];
    let others = shapes.map(|tile| Tuning { tile: Some(tile), ..base });
    [&[base], &others[..]].concat()
}

/// Chooses for `rank`, a small model whose kernels are launched as `options` say. `begins` is told before
/// candidates take turns.
///
/// # Errors
/// What fails; a tuning by which other bits come.
pub fn tune(
    rank: Rank,
    options: LaunchOptions,
    lengths: Lengths<'_>,
    clock: Clock<'_>,
    begins: &mut dyn FnMut(),
) -> Result<Tuned> {
    let mut bed = TimedRank { rank, options, recordings: Vec::new() };
    let mut choose = |candidates: &[Tuning], works: &[Work]| {
        begins();
        fastest(&mut bed, candidates, works, clock)
    };
    let (tuning, by_flow) = choose(&flows(Tuning::DEFAULT, options), &[Work::Tokens])?;
    let (tuning, by_depth) = choose(&depths(tuning), &[Work::Tokens])?;
    let prompts: Vec<_> = lengths.prompts.iter().map(|length| Work::Prompt(*length)).collect();
    let (tuning, by_tile) = choose(&tiles(tuning), &prompts)?;
    let steps: Vec<_> =
        lengths.steps.iter().map(|chunk| Tuning { chunk: *chunk, ..tuning }).collect();
    let (tuning, by_step) = choose(&steps, &[Work::Prompt(lengths.longest())])?;
    let (token, prompt) = (by_flow * by_depth, by_tile * by_step);
    Ok(Tuned { tuning, token, prompt, untimed: None })
}

/// What is timed.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// [`TOKENS`] of them, each chosen and taken.
    Tokens,
    /// So many tokens, in steps as long as the tuning says.
    Prompt(usize),
}

impl Work {
    fn tokens(self) -> usize {
        match self {
            Self::Tokens => TOKENS,
            Self::Prompt(tokens) => tokens,
        }
    }
}

/// A small model, whose weights in a step are many times what caches hold.
struct TimedRank {
    rank: Rank,
    options: LaunchOptions,
    /// A token's kernels, by the tuning that they were recorded under.
    recordings: Vec<(Tuning, Captured)>,
}

impl TimedRank {
    /// Has the device ready for `work`, and returns the bits of the logits that it leaves.
    fn ready(&mut self, tuning: Tuning, work: Work) -> Result<Vec<u32>> {
        if let Work::Tokens = work {
            let sampling = SamplingOptions { temperature: 0.8, seed: 1, ..Default::default() };
            let prompt = random_ids(0, POSITION, self.rank.vocab());
            let mut sequence = Sequence::default();
            sequence.begin(&sampling, &prompt, self.rank.vocab())?;
            self.rank.begin(&sequence)?;
            self.rank.forward(&sequence, &prompt, Logits::Last)?;
            let recording = Captured::new(model::step(self.rank.model()));
            self.recordings.push((tuning, recording));
        }
        self.run(tuning, work)?;
        let logits = self.rank.model().state.logits.part(0, self.rank.vocab());
        let logits = self.rank.device_mut().read(logits)?;
        Ok(logits.iter().map(|logit| logit.to_bits()).collect())
    }

    /// Does `work`; nothing is under way when this returns.
    fn run(&mut self, tuning: Tuning, work: Work) -> Result<()> {
        let Self { rank, options, recordings } = self;
        if let Executor::Cuda(cuda) = rank.device_mut() {
            cuda.set_options(LaunchOptions { tuning, ..*options });
        }
        match work {
            Work::Tokens => {
                let positions = rank.model().state.placement.positions;
                let (_, recording) = recordings
                    .iter_mut()
                    .find(|(known, _)| *known == tuning)
                    .ok_or_else(|| Error::failed("a tuning that was not made ready"))?;
                rank.device_mut().write(positions, &[POSITION as u32 - 1])?;
                for _ in 0..TOKENS {
                    rank.device_mut().step(recording)?;
                }
            }
            Work::Prompt(tokens) => {
                let mut sequence = Sequence::default();
                for ids in random_ids(0, tokens, rank.vocab()).chunks(tuning.chunk) {
                    let is_last = sequence.position + ids.len() == tokens;
                    let logits = if is_last { Logits::Last } else { Logits::None };
                    rank.forward(&sequence, ids, logits)?;
                    sequence.position += ids.len();
                }
            }
        }
        rank.finish()
    }
}

/// The fastest of `candidates` at `works`, of which a token of each counts the same; and its time as a share
/// of the first's, which stays unless another one is [`CLEARLY`] faster.
fn fastest(
    bed: &mut TimedRank,
    candidates: &[Tuning],
    works: &[Work],
    clock: Clock<'_>,
) -> Result<(Tuning, f64)> {
    for work in works {
        let right = bed.ready(candidates[0], *work)?;
        for tuning in &candidates[1..] {
            if bed.ready(*tuning, *work)? != right {
                return Err(Error::failed(format!("{work:?} by {tuning:?} have other bits")));
            }
        }
    }
    let mut turns: Vec<Vec<f64>> = Vec::new();
    let mut spent = 0.0;
    while turns.len() < FEWEST || spent < SECONDS && turns.len() < MOST {
        let mut time = |tuning: &Tuning| {
            let each = works.iter().map(|work| {
                let seconds = clock(tuning, &mut || bed.run(*tuning, *work))?;
                spent += seconds;
                Ok(seconds / work.tokens() as f64)
            });
            each.sum::<Result<f64>>()
        };
        turns.push(candidates.iter().map(&mut time).collect::<Result<_>>()?);
    }
    let (place, share) = best(&turns);
    Ok((candidates[place], share))
}

/// Of candidates who have taken turns: which one is the fastest, and its time as a share of the first's.
fn best(turns: &[Vec<f64>]) -> (usize, f64) {
    let shares = |place: usize| {
        let mut shares: Vec<_> = turns.iter().map(|times| times[place] / times[0]).collect();
        shares.sort_by(f64::total_cmp);
        (shares[shares.len() / 2], shares[shares.len() * 3 / 4])
    };
    let each = (1..turns[0].len()).map(|place| (place, shares(place)));
    let clear = each.filter(|(_, (median, upper))| *median <= CLEARLY && *upper < 1.0);
    let best = clear.min_by(|(_, (one, _)), (_, (other, _))| one.total_cmp(other));
    best.map_or((0, 1.0), |(place, (median, _))| (place, median))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stays_unless_another_is_clearly_faster() {
        let turns = |of: &dyn Fn(usize) -> Vec<f64>| (0..9).map(of).collect::<Vec<_>>();
        assert_eq!(best(&turns(&|_| vec![1.0, 0.995, 1.2])), (0, 1.0));
        assert_eq!(best(&turns(&|_| vec![1.0, 0.9, 0.8])), (2, 0.8));
        // As a share of the first in the same turn: clocks come and go.
        assert_eq!(best(&turns(&|i| vec![1.0 + i as f64, 0.5 + 0.5 * i as f64])), (1, 0.5));
        // The slower one, as often as not.
        let uneven = |i: usize| vec![1.0, if i.is_multiple_of(3) { 1.5 } else { 0.9 }];
        assert_eq!(best(&turns(&uneven)), (0, 1.0));
    }
}
