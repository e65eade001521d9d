//! Ranks on emulated GPUs that choose a token over each other's memory, round after round: the token that
//! one rank would choose from all logits, on every rank, whoever is early and whoever late.

use std::ops::Range;
use std::sync::Arc;

use crate::peers::{
    LATE_STORES, THREAD_SANITIZER, catches, each, left_alone,
    passes_under_every_schedule_and_checker, tarry,
};
use chaski::comm::{Communicator, LocalGroup};
use chaski::config::Shard;
use chaski::error::Result;
use chaski::executor::cuda::Gpu;
use chaski::executor::{Blueprint, Executor, Hardware};
use chaski::memory::{Layout, Slot};
use chaski::op::Program;
use chaski::ops::{self, RING, Sample, Sampling};
use chaski::random::random;
use chaski::sampler::{IN_PROMPT, Outcome, SamplingOptions, choose};

/// Position of the last token of the prompt.
const START: u32 = 40;

/// One rank, and what it chooses with.
struct Rank {
    device: Executor,
    comm: Arc<dyn Communicator>,
    sampling: Sampling,
    logits: Slot<f32>,
    token: Slot<u32>,
    positions: Slot<u32>,
    ring: Slot<u64>,
}

impl Rank {
    fn new(gpu: Gpu, room: &Arc<LocalGroup>, share: Shard, vocab: usize) -> Self {
        let comm: Arc<dyn Communicator> = Arc::new(room.place(share.part));
        let mut layout = Layout::default();
        let one_stage = Shard { part: 0, parts: 1 };
        let sampling = Sampling::plan(vocab, share, one_stage, &mut layout);
        let logits = layout.slot(&[share.of(vocab).len()]);
        let (token, positions) = (layout.slot(&[1]), layout.slot(&[1]));
        layout.begin_shared();
        let ring = layout.slot(&[RING]);
        let blueprint = Blueprint { comm: comm.clone(), ..Blueprint::of_state(&layout) };
        let mut device = Executor::new(&Hardware::Gpu(gpu), blueprint).unwrap();
        device.write(sampling.tickets, &[0; 4]).unwrap();
        device.write(sampling.bins, &[0; 64]).unwrap();
        device.write(sampling.rounds, &[0; 4]).unwrap();
        device.write(sampling.counts, &counts(share.of(vocab))).unwrap();
        device.write(positions, &[START]).unwrap();
        let mut rank = Self { device, comm, sampling, logits, token, positions, ring };
        rank.device.prepare(&[&rank.program()], &mut []).unwrap();
        rank.device.connect(sampling.slots, 0, sampling.addresses).unwrap();
        rank
    }

    fn program(&self) -> Program {
        let Self { logits, sampling, ring, token, positions, .. } = *self;
        let mut program = Program::default();
        program.push(Sample { logits, sampling, ring, token, positions });
        program
    }

    /// Queues the choice of the token of this round.
    fn start(&mut self, round: usize) -> Result<()> {
        let Sampling { whole_vocab, share, .. } = self.sampling;
        let own = share.of(whole_vocab);
        let o = options(round, whole_vocab);
        let is_own = |(id, _): &&(u32, f32)| own.contains(&(*id as usize));
        let biases: Vec<(u32, f32)> = o.logit_bias.iter().filter(is_own).copied().collect();
        let (ids, biases): (Vec<u32>, Vec<f32>) =
            biases.into_iter().map(|(id, bias)| (id - own.start as u32, bias)).unzip();
        let penalties = [o.repeat_penalty, o.presence_penalty, o.frequency_penalty];
        let numbers = [&[o.temperature, o.top_p, o.min_p], &penalties[..]].concat();
        let device = &mut self.device;
        device.write(self.sampling.options, &numbers)?;
        device.write(self.sampling.top_k, &[o.top_k as u32])?;
        device.write(self.sampling.seed, &[o.seed])?;
        device.write(self.sampling.bias_count, &[ids.len() as u32])?;
        device.write(self.sampling.bias_ids, &ids)?;
        device.write(self.sampling.biases, &biases)?;
        device.write(self.logits, &logits(round, own))?;
        let program = self.program();
        assert!(!self.device.needs_hosts(&program));
        self.device.run(&program)
    }
}

fn counts(ids: Range<usize>) -> Vec<u32> {
    ids.map(|id| [0, 0, 1, 3, IN_PROMPT, IN_PROMPT | 2, 0][id % 7]).collect()
}

/// Waves, ties across all ranks, zeros of both signs, and logits that leave nothing to choose.
fn logits(round: usize, ids: Range<usize>) -> Vec<f32> {
    let logit = |id: usize| {
        let noise = random(round as u64, id as u64);
        match round % 8 {
            0 | 4 => 9.0 * (id as f32 * 0.7 + round as f32).sin() + (noise % 13) as f32 / 8.0,
            1 | 5 => (noise % 5) as f32 - 2.0,
            2 => 400.0 * (id as f32 * 0.3).cos(),
            3 => [0.0, -0.0][noise as usize % 2],
            6 if noise.is_multiple_of(64) => [f32::NAN, f32::INFINITY][id % 2],
            7 => f32::NEG_INFINITY,
            _ => (noise % 100_000) as f32 / 5000.0,
        }
    };
    ids.map(logit).collect()
}

/// Every filter and none; with the logits, which recur after eight rounds, in all combinations.
fn options(round: usize, vocab: usize) -> SamplingOptions {
    let plain = SamplingOptions { seed: round as u64, ..Default::default() };
    match round % 9 {
        0 => SamplingOptions { temperature: 0.0, ..plain },
        1 => plain,
        2 => SamplingOptions { top_k: 5, ..plain },
        3 => SamplingOptions { top_p: 0.9, temperature: 0.7, ..plain },
        4 => SamplingOptions { top_k: vocab / 2, top_p: 0.95, min_p: 0.01, ..plain },
        5 => SamplingOptions { min_p: 0.3, temperature: 1.7, ..plain },
        6 => SamplingOptions { top_p: 0.999, temperature: 30.0, ..plain }, // nearly all are listed
        7 => SamplingOptions { top_k: vocab + 7, repeat_penalty: 1.5, ..plain },
        _ => SamplingOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.5,
            repeat_penalty: 1.3,
            presence_penalty: 0.5,
            frequency_penalty: -0.25,
            logit_bias: vec![(0, f32::NEG_INFINITY), (vocab as u32 - 1, 3.5), (2, -1.0)],
            ..plain
        },
    }
}

/// What one rank chooses in `rounds`.
fn expected(vocab: usize, rounds: usize) -> Vec<Outcome> {
    let mut counts = counts(0..vocab);
    let round = |round: usize| {
        let (options, position) = (options(round, vocab), u64::from(START) + 1 + round as u64);
        let outcome = choose(&options, &counts, &mut logits(round, 0..vocab), position);
        counts[outcome.token().unwrap_or(0) as usize] += 1;
        outcome
    };
    (0..rounds).map(round).collect()
}

/// What `world` ranks choose; the hosts wait only when the ring is full.
fn check(world: usize, vocab: usize, rounds: usize) {
    let chosen = each(world, |gpu, room, share| {
        let mut rank = Rank::new(gpu, room, share, vocab);
        let mut chosen = Vec::new();
        for round in 0..rounds {
            tarry(share.part, round);
            rank.start(round).unwrap();
            if round % RING == RING - 1 || round + 1 == rounds {
                for round in chosen.len()..=round {
                    let position = START as usize + 1 + round;
                    let (ring, seen) = (rank.ring, |entry| ops::outcome(entry, position));
                    let outcome = rank.device.watch(ring.part(position % RING, 1), seen).unwrap();
                    chosen.push(outcome.expect("a choice for the position"));
                }
            }
        }
        let last = chosen.last().unwrap().token().unwrap_or(0);
        assert_eq!(rank.device.read(rank.token).unwrap(), [last]);
        assert_eq!(rank.device.read(rank.positions).unwrap(), [START + rounds as u32]);
        (chosen, rank)
    });
    let expected = expected(vocab, rounds);
    for (rank, chosen) in chosen.iter().enumerate() {
        assert!(*chosen == expected, "rank {rank} of {world}, {vocab} tokens: {chosen:?}");
    }
}

/// Parts of different sizes, of more shares than blocks run at once, of a token or two.
#[test]
fn all_ranks_choose_what_one_would() {
    for (world, vocab) in [(2, 20_001), (3, 4103), (4, 9000), (8, 1025), (8, 9)] {
        check(world, vocab, 36);
    }
}

/// Few enough for ThreadSanitizer.
#[test]
fn a_few_rounds() {
    [(2, 1500), (3, 101)].into_iter().for_each(|(world, vocab)| check(world, vocab, 18));
}

/// The same.
#[test]
fn two_blocks_of_a_rank() {
    check(1, 2000, 18);
}

#[test]
fn hundreds_of_rounds() {
    [(2, 101, 400), (4, 33, 200)].into_iter().for_each(|(world, vocab, n)| check(world, vocab, n));
}

#[test]
fn under_every_schedule_and_every_checker() {
    passes_under_every_schedule_and_checker("sample_ranks::a_few_rounds");
}

/// What orders what ranks and blocks tell each other: without one of these it shows.
#[test]
fn mistakes_in_the_kernel_are_caught() {
    catches("sample_ranks::a_few_rounds", "sample", &[(LATE_STORES, "    fence_system();\n", "")]);
    let mistakes = [
        (THREAD_SANITIZER, "        fence_gpu();\n        for", "        for"),
        (THREAD_SANITIZER, "        fence_gpu();\n        return", "        return"),
    ];
    catches("sample_ranks::two_blocks_of_a_rank", "sample", &mistakes);
}

/// Blocks that wait for a rank which never comes end when the run does.
#[test]
fn a_rank_that_is_gone_keeps_nobody() {
    for round in [0, 1, 2] {
        let ready = |gpu, room: &_, share| Rank::new(gpu, room, share, 300);
        let said = left_alone(ready, |rank| rank.start(round).and_then(|()| rank.comm.leave()));
        assert!(said.contains("rank 1 on cuda:1") && said.contains("it is gone"), "{said}");
    }
}
