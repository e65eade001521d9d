use super::all_reduce::MOST_RANKS;
use super::{blocks, launch, size};
use crate::case::{Case, Content, Judge, Numbers, Setup};
use crate::config::Shard;
use crate::encoding::Float;
use crate::kernel::{self, Launch};
use crate::memory::{Layout, Memory, Slot};
use crate::op::{Cost, Exchange, Op, Target};
use crate::sampler::{self, IN_PROMPT, Outcome, SamplingOptions};

/// Chooses the next token and moves its row's position to it, as `sampler` specifies it to the bit.
pub struct Sample {
    /// In and out: bias and penalties are applied. Those of the rank's share of the tokens. `[1, V]`
    pub logits: Slot<f32>,
    pub sampling: Sampling,
    /// Out, at `position % RING`: the outcome, see [`outcome`]. Shared. `[RING]`
    pub ring: Slot<u64>,
    /// Out: the token; 0 where there is none. `[1]`
    pub token: Slot<u32>,
    /// In and out: that of the last token, then of the chosen one. `[R]`, R = 1
    pub positions: Slot<u32>,
}

/// What sampling reads and remembers.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// V, the whole model's.
    pub whole_vocab: usize,
    /// Which of the tokens are the rank's, if it is of the last stage; the others have none.
    pub share: Shard,
    pub stage: Shard,
    /// Temperature, top-p, min-p; repeat, presence, frequency penalty. `[6]`
    pub options: Slot<f32>,
    /// `[1]`
    pub top_k: Slot<u32>,
    /// `[1]`
    pub seed: Slot<u64>,
    /// The first `bias_count` are in use. `[V]`
    pub bias_ids: Slot<u32>,
    /// `[V]`
    pub biases: Slot<f32>,
    /// `[1]`
    pub bias_count: Slot<u32>,
    /// Times in the answer, and whether in the prompt: `sampler::IN_PROMPT`. `[V]`
    pub counts: Slot<u32>,
    /// What blocks, those of other ranks too, tell each other in three rounds that follow each other; at
    /// first zeros. See [`Sampling::places`].
    pub slots: Slot<u64>,
    /// Of all ranks' slots, and of a word by which the host ends the wait for them. `[world + 1]`
    pub addresses: Slot<u64>,
    /// The round modulo 3, and what is left of each; at first zeros. `[4]`
    pub rounds: Slot<u32>,
    /// Zeros before and after. `[64]`
    pub bins: Slot<u64>,
    /// `[2, V]` of the whole model
    pub candidates: Slot<u64>,
    /// Zeros before and after. `[4]`
    pub tickets: Slot<u32>,
}

/// Outcomes that are remembered: more than there are steps in flight.
pub const RING: usize = 16;

/// The most tokens that the kernel can choose from.
pub const MOST_TOKENS: usize = 1 << 18;

/// Logits that a block looks at, at least.
const SHARE: usize = 1024;

/// Bins of half a temperature.
const WIDE_BINS: usize = 64;

/// In an outcome, instead of a token: this bit and an id whose logit is broken, or all bits where no
/// token is left.
const FAILED: u32 = 1 << 31;

impl Sampling {
    /// For a rank's share of the tokens.
    pub fn plan(whole_vocab: usize, share: Shard, stage: Shard, layout: &mut Layout) -> Self {
        let vocab = if stage.is_last() { share.of(whole_vocab).len() } else { 0 };
        Self {
            whole_vocab,
            share,
            stage,
            options: layout.slot(&[6]),
            top_k: layout.slot(&[1]),
            seed: layout.slot(&[1]),
            bias_ids: layout.slot(&[vocab]),
            biases: layout.slot(&[vocab]),
            bias_count: layout.slot(&[1]),
            counts: layout.slot(&[vocab]),
            slots: layout.slot(&[Self::places(whole_vocab, share.parts)]),
            addresses: layout.slot(&[share.parts + 1]),
            rounds: layout.slot(&[4]),
            bins: layout.slot(&[WIDE_BINS]),
            candidates: layout.slot(&[2, whole_vocab]),
            tickets: layout.slot(&[4]),
        }
    }

    /// What is told in three rounds: by each block its best token and the sum of its weights; by each rank
    /// its bins, how many tokens it lists, and those; by one of them the drawn token.
    fn places(whole_vocab: usize, world: usize) -> usize {
        let room = whole_vocab.div_ceil(world);
        3 * (world * (2 * room.div_ceil(SHARE) + WIDE_BINS + 1 + room) + 1)
    }

    /// M: the most tokens that a rank has.
    fn room(&self) -> usize {
        self.whole_vocab.div_ceil(self.share.parts)
    }

    /// B: the most blocks of a rank.
    fn blocks(&self) -> usize {
        self.room().div_ceil(SHARE)
    }

    /// The token that the rank's first logit is of.
    fn first_id(&self) -> u32 {
        size(self.share.of(self.whole_vocab).start)
    }

    /// Whether GPUs can choose without their hosts.
    fn suits(&self, target: &Target) -> bool {
        let world = self.share.parts;
        let is_small = world <= MOST_RANKS && self.whole_vocab <= MOST_TOKENS;
        self.stage.parts == 1 && (world == 1 || (target.reaches_peers && is_small))
    }
}

/// What an entry of the ring says of `position`; `None` if it is about another.
pub fn outcome(entry: u64, position: usize) -> Option<Outcome> {
    let outcome = entry as u32;
    (entry >> 32 == position as u64).then_some(match outcome {
        u32::MAX => Outcome::Empty,
        _ if outcome & FAILED != 0 => Outcome::Broken(outcome & !FAILED),
        _ => Outcome::Token(outcome),
    })
}

fn entry(position: u32, outcome: Outcome) -> u64 {
    let outcome = match outcome {
        Outcome::Token(id) => id,
        Outcome::Broken(id) => FAILED | id,
        Outcome::Empty => u32::MAX,
    };
    u64::from(position) << 32 | u64::from(outcome)
}

impl Op for Sample {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn cost(&self, _position: usize) -> Cost {
        Cost { flops: self.logits.len() as u64, ..Cost::default() }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (options, comm) = (self.sampling.read(memory), memory.comm);
        let (logits, counts, token, positions, ring) = memory.slots((
            self.logits,
            self.sampling.counts,
            self.token,
            self.positions,
            self.ring,
        ));
        let position = positions[0] + 1;
        let outcome = match comm.world() {
            1 => sampler::choose(&options, counts, logits, position.into()),
            _ => {
                let first = self.sampling.first_id();
                sampler::choose_among_ranks(&options, counts, logits, first, position.into(), comm)
            }
        };
        token[0] = match outcome {
            Outcome::Token(id) => id,
            Outcome::Broken(_) | Outcome::Empty => 0,
        };
        let row = token[0].checked_sub(self.sampling.first_id()).map(|row| row as usize);
        if let Some(count) = row.and_then(|row| counts.get_mut(row)) {
            *count += 1;
        }
        positions[0] = position;
        ring[position as usize % RING] = entry(position, outcome);
    }

    fn exchange(&self, target: &Target) -> Option<Exchange> {
        if self.sampling.suits(target) {
            return None;
        }
        let Sampling { options, top_k, seed, bias_ids, biases, bias_count, counts, .. } =
            self.sampling;
        let floats = [self.logits, options, biases].map(Slot::cast);
        let whole =
            [top_k, bias_ids, bias_count, counts, self.token, self.positions].map(Slot::cast);
        let words = [seed, self.ring].map(Slot::cast);
        Some(Exchange::ByHosts([&floats[..], &whole, &words].concat()))
    }

    fn launch(&self, target: &Target) -> Launch {
        let all = &self.sampling;
        assert!(all.suits(target), "ranks that choose a token without their hosts");
        assert!(all.whole_vocab <= MOST_TOKENS, "a choice between {} tokens", all.whole_vocab);
        let Sampling { options, top_k, seed, bias_ids, biases, bias_count, counts, .. } = *all;
        let Sampling { slots, addresses, rounds, bins, candidates, tickets, .. } = *all;
        let arguments = kernel::Sample {
            logits: self.logits,
            options,
            top_k,
            seed,
            bias_ids,
            biases,
            bias_count,
            counts,
            token: self.token,
            positions: self.positions,
            ring: self.ring,
            slots,
            addresses,
            rounds,
            bins,
            candidates,
            tickets,
            vocab: size(all.whole_vocab),
            own_vocab: size(self.logits.len()),
            first_id: all.first_id(),
            ring_size: size(RING),
            world: size(all.share.parts),
            rank: size(all.share.part),
            blocks: size(all.blocks()),
            room: size(all.room()),
        }
        .arguments();
        // Blocks wait for each other: there are no more than run at once.
        let grid = [blocks(all.blocks(), target.multiprocessors), 1];
        let launch = launch(kernel::Sample::KERNEL, (Float::F32, 0), grid, 0, arguments);
        Launch { together: true, ..launch }
    }
}

impl Sampling {
    /// The options in memory, as [`SamplingOptions`].
    fn read(&self, memory: &mut Memory<'_>) -> SamplingOptions {
        let (options, top_k, seed, ids, biases, count) = memory.slots((
            self.options,
            self.top_k,
            self.seed,
            self.bias_ids,
            self.biases,
            self.bias_count,
        ));
        let [temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty] =
            *<&[f32; 6]>::try_from(&*options).expect("six options");
        let biases = ids.iter().copied().zip(biases.iter().copied());
        SamplingOptions {
            temperature,
            top_k: top_k[0] as usize,
            top_p,
            min_p,
            repeat_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias: biases.take(count[0] as usize).collect(),
            seed: seed[0],
        }
    }
}

impl Sample {
    /// Every option alone and with the others, on vocabularies of any size; ties, zeros of both signs,
    /// logits that are NaN or infinite or all ruled out.
    pub fn cases() -> Vec<Case> {
        type Logit = fn(usize) -> f32;
        let wave: Logit = |i| 9.0 * (i as f32 * 0.7).sin() + (i % 13) as f32 / 8.0;
        let ties: Logit = |i| (i * 7 % 5) as f32 - 2.0;
        let steep: Logit = |i| 400.0 * (i as f32 * 0.3).cos();
        let odd: [(&str, Logit); 5] = [
            ("zeros", |i| if i % 2 == 0 { 0.0 } else { -0.0 }),
            ("one token", |i| if i == 0 { 1.5 } else { f32::NEG_INFINITY }),
            ("no token", |_| f32::NEG_INFINITY),
            ("NaN", |i| if i == 2 || i == 90 { f32::NAN } else { 1.0 }),
            ("an infinity", |i| if i == 70 { f32::INFINITY } else { 1.0 }),
        ];
        let (main, others) = (Self::main_options(), Self::other_options());
        let mut cases = Vec::new();
        let mut add = |vocab, (what, logit), (how, options): &(&str, _)| {
            cases.push(Self::case(
                vocab,
                logit,
                &format!("{what}, {vocab} tokens, {how}"),
                options,
            ));
        };
        for options in &main {
            for vocab in [7, 101, 1023, 1025, 4103] {
                add(vocab, ("a wave", wave), options);
                add(vocab, ("ties", ties), options);
                add(vocab, ("steep", steep), options);
            }
            odd.into_iter().for_each(|odd| add(1100, odd, options));
            add(128_256, ("a wave", wave), options);
        }
        for options in &others {
            add(1500, ("a wave", wave), options);
            add(1500, ("ties", ties), options);
        }
        cases
    }

    fn main_options() -> [(&'static str, SamplingOptions); 3] {
        let drawn = SamplingOptions { seed: 0x1234_5678_9abc_def0, ..Default::default() };
        let all = SamplingOptions {
            temperature: 0.7,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.05,
            repeat_penalty: 1.3,
            presence_penalty: 0.5,
            frequency_penalty: -0.25,
            logit_bias: vec![(0, f32::NEG_INFINITY), (2, 3.5), (5, -1.0)],
            seed: 3,
        };
        let greedy = SamplingOptions { temperature: 0.0, ..drawn.clone() };
        [("greedy", greedy), ("drawn", drawn), ("all options", all)]
    }

    fn other_options() -> Vec<(&'static str, SamplingOptions)> {
        type Change = fn(&mut SamplingOptions);
        let changes: [(&str, Change); 14] = [
            ("temperature 1.7", |o| o.temperature = 1.7),
            ("top-k 1", |o| o.top_k = 1),
            ("top-k 17", |o| o.top_k = 17),
            ("top-k of more than there are", |o| o.top_k = 5000),
            ("top-p 0.3", |o| o.top_p = 0.3),
            ("top-p 0.999", |o| o.top_p = 0.999),
            ("min-p 0.2", |o| o.min_p = 0.2),
            ("min-p 1", |o| o.min_p = 1.0),
            ("top-k and top-p", |o| (o.top_k, o.top_p) = (300, 0.8)),
            ("a repeat penalty", |o| o.repeat_penalty = 1.5),
            ("a presence penalty", |o| o.presence_penalty = 1.5),
            ("a frequency penalty", |o| o.frequency_penalty = 0.4),
            ("a bias", |o| o.logit_bias = vec![(3, 8.0), (4, -8.0)]),
            ("another seed", |o| o.seed = 7),
        ];
        let change = |(name, change): (_, Change)| {
            let mut options = SamplingOptions::default();
            change(&mut options);
            (name, options)
        };
        changes.into_iter().map(change).collect()
    }

    fn case(vocab: usize, logit: fn(usize) -> f32, name: &str, options: &SamplingOptions) -> Case {
        let mut setup = Setup::new(Numbers::Whole);
        let SamplingOptions { temperature, top_p, min_p, seed, .. } = *options;
        let SamplingOptions { repeat_penalty, presence_penalty, frequency_penalty, .. } = *options;
        let numbers =
            [temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty];
        let (ids, biases): (Vec<u32>, Vec<f32>) = options.logit_bias.iter().copied().unzip();
        let bias_count = ids.len() as u32;
        let counts: Vec<u32> =
            (0..vocab).map(|i| [0, 0, 1, 3, IN_PROMPT, IN_PROMPT | 2, 0][i % 7]).collect();
        let bytes = bytemuck::cast_slice(&counts).to_vec();
        let (exact, zeros) = (Judge::Exact, |bytes| Content::Bytes(vec![0; bytes]));
        let places = Sampling::places(vocab, 1);
        let op = Self {
            logits: setup.changed("logits", &[1, vocab], Content::each(logit), exact),
            sampling: Sampling {
                whole_vocab: vocab,
                share: Shard { part: 0, parts: 1 },
                stage: Shard { part: 0, parts: 1 },
                options: setup.given("options", &numbers),
                top_k: setup.given("top_k", &[options.top_k as u32]),
                seed: setup.given("seed", &[seed]),
                bias_ids: setup.given("bias_ids", &ids),
                biases: setup.given("biases", &biases),
                bias_count: setup.given("bias_count", &[bias_count]),
                counts: setup.changed("counts", &[vocab], Content::Bytes(bytes), exact),
                slots: setup.changed("slots", &[places], zeros(8 * places), Judge::Any),
                addresses: setup.given("addresses", &[0u64; 2]),
                rounds: setup.changed("rounds", &[4], zeros(16), Judge::Any),
                bins: setup.given("bins", &[0u64; 64]),
                candidates: setup.written("candidates", &[2, vocab], Judge::Any),
                tickets: setup.given("tickets", &[0u32; 4]),
            },
            ring: setup.written("ring", &[RING], exact),
            token: setup.written("token", &[1], exact),
            positions: {
                let bytes = Content::Bytes(1234u32.to_ne_bytes().to_vec());
                setup.changed("positions", &[1], bytes, exact)
            },
        };
        setup.case(name, op)
    }
}
