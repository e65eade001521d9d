//! The choice of a token by ranks that each have the logits of a part of the vocabulary: what
//! [`choose`](super::choose) specifies, to the bit. Keys of candidates and sums of weights travel, no
//! logits.

use super::{Outcome, SamplingOptions, Weights, adjust, highest, key, least_weight, share_of};
use crate::comm::Communicator;
use crate::random::random;

/// Bits of a key that one exchange tells of.
const BITS: u32 = 11;

/// In the place of the best key, where every token is ruled out.
const EMPTY: u64 = u64::MAX;

/// As [`choose`](super::choose), where `logits`, `counts` and the biases in `options` are those of a
/// rank's tokens, `first` and those after it, numbered from 0 on.
pub fn choose_among_ranks(
    options: &SamplingOptions,
    counts: &[u32],
    logits: &mut [f32],
    first: u32,
    position: u64,
    comm: &dyn Communicator,
) -> Outcome {
    adjust(options, counts, logits);
    // A broken logit comes before all keys: those of numbers begin with bits that are not all zero.
    let own = match highest(logits) {
        Outcome::Token(id) => key(id, logits[id as usize]) + u64::from(first),
        Outcome::Broken(id) => u64::from(id + first),
        Outcome::Empty => EMPTY,
    };
    let told = comm.all_gather(&[own, logits.len() as u64]);
    let (bests, lens) = (told.iter().step_by(2), told.iter().skip(1).step_by(2));
    let (best, vocab) = (bests.copied().min().unwrap_or(EMPTY), lens.sum::<u64>());
    match best {
        EMPTY => return Outcome::Empty,
        broken if broken >> 32 == 0 => return Outcome::Broken(broken as u32),
        best if options.temperature == 0.0 => return Outcome::Token(best as u32),
        _ => {}
    }
    let weights = Weights { logits, highest: logit(best), temperature: options.temperature };
    let mut kept: Vec<LocalChoice> = (0..)
        .zip(weights.logits)
        .map(|(id, logit)| {
            let key = key(id, *logit);
            LocalChoice { key: key + u64::from(first), weight: weights.of(key) }
        })
        .collect();
    let k = options.top_k as u64;
    if 0 < k && k < vocab {
        let last = select(comm, &kept, |_| 1, k - 1);
        kept.retain(|candidate| candidate.key <= last);
    }
    if options.top_p < 1.0 {
        let total = comm.all_gather(&[sum(&kept)]).iter().sum();
        let last = select(comm, &kept, |kept| kept.weight, share_of(total, options.top_p));
        kept.retain(|candidate| candidate.key <= last);
    }
    let least = least_weight(options.min_p);
    kept.retain(|candidate| candidate.weight >= least);
    draw(&mut kept, random(options.seed, position), comm)
}

/// A token that may be chosen.
#[derive(Debug, Clone, Copy)]
struct LocalChoice {
    /// With the token's own id.
    key: u64,
    weight: u64,
}

fn sum(candidates: &[LocalChoice]) -> u64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
}

/// The logit that a key is made from, but for the sign of a zero.
fn logit(key: u64) -> f32 {
    let ascending = !((key >> 32) as u32);
    f32::from_bits(if ascending >> 31 == 1 { ascending ^ 1 << 31 } else { !ascending })
}

/// The first key, in the order of all ranks' keys, at which the running sum of `weight` exceeds `target`,
/// which is below the total: its bits from the highest on, by the sums of the weights of the candidates
/// that agree so far.
fn select(
    comm: &dyn Communicator,
    candidates: &[LocalChoice],
    weight: impl Fn(&LocalChoice) -> u64,
    mut target: u64,
) -> u64 {
    let mut left = candidates.to_vec();
    let (mut known, mut unknown) = (0, u64::BITS);
    while unknown > 0 {
        let bits = BITS.min(unknown);
        unknown -= bits;
        let bin = |candidate: &LocalChoice| (candidate.key >> unknown) as usize % (1 << bits);
        let mut own = vec![0; 1 << bits];
        left.iter().for_each(|candidate| own[bin(candidate)] += weight(candidate));
        let of_ranks = comm.all_gather(&own);
        let mut chosen = 0;
        for bin in 0..1 << bits {
            let sum = of_ranks.iter().skip(bin).step_by(1 << bits).sum::<u64>();
            chosen = bin;
            if sum > target {
                break;
            }
            target -= sum;
        }
        known = known << bits | chosen as u64;
        left.retain(|candidate| bin(candidate) == chosen);
    }
    known
}

/// Draws one of the kept tokens in proportion to their weights. Ranks have the tokens in the order of
/// their ids, so each knows where in the running sum its own begin.
fn draw(kept: &mut [LocalChoice], random: u64, comm: &dyn Communicator) -> Outcome {
    let sums = comm.all_gather(&[sum(kept)]);
    let total: u64 = sums.iter().sum();
    let target = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    let mut sum: u64 = sums[..comm.rank()].iter().sum();
    let mut own = EMPTY;
    if sum <= target {
        kept.sort_unstable_by_key(|candidate| candidate.key as u32);
        let drawn = kept.iter().find(|candidate| {
            sum += candidate.weight;
            sum > target
        });
        own = drawn.map_or(EMPTY, |candidate| candidate.key & u64::from(u32::MAX));
    }
    match comm.all_gather(&[own]).into_iter().min() {
        None | Some(EMPTY) => Outcome::Empty,
        Some(id) => Outcome::Token(id as u32),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::super::{IN_PROMPT, choose};
    use super::*;
    use crate::comm::{DEFAULT_TIMEOUT, LocalGroup};
    use crate::config::Shard;

    /// What each of `world` ranks chooses from its part of the logits.
    fn chosen(options: &SamplingOptions, counts: &[u32], logits: &[f32], world: usize) -> Outcome {
        let room = LocalGroup::new(vec!["cpu".to_owned(); world], DEFAULT_TIMEOUT, None);
        let choose = |rank: usize| {
            let own = Shard { part: rank, parts: world }.of(logits.len());
            let first = own.start as u32;
            let biases = options.logit_bias.iter().filter(|(id, _)| own.contains(&(*id as usize)));
            let logit_bias = biases.map(|(id, bias)| (id - first, *bias)).collect();
            let options = SamplingOptions { logit_bias, ..options.clone() };
            let mut logits = logits[own.clone()].to_vec();
            let comm = room.place(rank);
            choose_among_ranks(&options, &counts[own], &mut logits, first, 17, &comm)
        };
        let outcomes: Vec<Outcome> = thread::scope(|scope| {
            let choose = &choose;
            let ranks: Vec<_> = (0..world).map(|rank| scope.spawn(move || choose(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
        outcomes[0]
    }

    fn assert_same(options: &SamplingOptions, counts: &[u32], logits: &[f32]) {
        let alone = choose(options, counts, &mut logits.to_vec(), 17);
        for world in [1, 2, 3, 8].into_iter().filter(|world| *world <= logits.len()) {
            let together = chosen(options, counts, logits, world);
            assert_eq!(together, alone, "{options:?} on {world} ranks");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 60, ..Default::default() })]

        /// Coarse logits tie often, at the filters' borders, too.
        #[test]
        fn ranks_choose_as_one_does(
            coarse in any::<bool>(),
            seed in any::<u64>(),
            vocab in 1usize..200,
            temperature in prop::sample::select(vec![0.0f32, 0.05, 0.8, 1.0, 30.0]),
            top_k in prop::sample::select(vec![0usize, 1, 3, 40, 199, 1000]),
            top_p in prop::sample::select(vec![1e-6f32, 0.3, 0.9, 0.999, 1.0]),
            min_p in prop::sample::select(vec![0.0f32, 0.05, 1.0]),
            penalties in prop::sample::select(vec![(1.0f32, 0.0f32, 0.0f32), (1.3, 0.5, -0.25)]),
            biases in prop::collection::vec((0usize..200, -5f32..5.0), 0..4),
        ) {
            let noise = |i: usize| random(seed, i as u64);
            let (repeat_penalty, presence_penalty, frequency_penalty) = penalties;
            let mut logit_bias: Vec<(u32, f32)> =
                biases.iter().map(|(id, bias)| ((id % vocab) as u32, *bias)).collect();
            logit_bias.push(((seed % vocab as u64) as u32, f32::NEG_INFINITY));
            let options = SamplingOptions {
                temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty,
                frequency_penalty, logit_bias, seed,
            };
            let logits: Vec<f32> = (0..vocab)
                .map(|i| match coarse {
                    true => (noise(i) % 9) as f32 - 4.0,
                    false => (noise(i) % 100_000) as f32 / 5000.0 - 10.0,
                })
                .collect();
            let counts: Vec<u32> =
                (0..vocab).map(|i| [0, 0, 1, 3, IN_PROMPT, IN_PROMPT | 2][noise(i) as usize % 6]).collect();
            assert_same(&options, &counts, &logits);
        }
    }

    #[test]
    fn what_cannot_be_sampled_is_the_same_error() {
        for temperature in [0.0, 1.0] {
            let options = SamplingOptions { temperature, ..Default::default() };
            let (none, inf) = (f32::NEG_INFINITY, f32::INFINITY);
            for logits in [
                [1.0, f32::NAN, 2.0, f32::NAN, 3.0, 4.0, 5.0, 6.0],
                [1.0, 2.0, 3.0, 4.0, 5.0, inf, 6.0, -f32::NAN],
                [none; 8],
                [none, none, none, none, none, none, -1e38, none],
                [0.0, -0.0, 0.0, -0.0, -0.0, 0.0, -0.0, 0.0],
            ] {
                assert_same(&options, &[0; 8], &logits);
            }
        }
    }

    #[test]
    fn a_large_vocabulary_too() {
        let logits: Vec<f32> = (0..40_001).map(|i| (random(3, i) % 1000) as f32 / 100.0).collect();
        let counts = vec![0; logits.len()];
        for (top_k, top_p) in [(0, 1.0), (0, 0.95), (20_000, 0.5), (300, 1.0)] {
            let options = SamplingOptions { top_k, top_p, seed: 5, ..Default::default() };
            assert_same(&options, &counts, &logits);
        }
    }
}
