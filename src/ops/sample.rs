use super::{blocks, launch, size};
use crate::checkpoint::Dtype;
use crate::kernel::{self, Launch};
use crate::memory::{Layout, Memory, Slot};
use crate::op::{Cost, Gpu, Op};
use crate::sampler::{self, Outcome, SamplingOptions};

/// Chooses the next token and moves the cursor to it, as `sampler` specifies it to the bit.
pub struct Sample {
    /// In and out: bias and penalties are applied. `[1, V]`
    pub logits: Slot<f32>,
    pub sampling: Sampling,
    /// Out, at `position % RING`: the outcome, see [`outcome`]. Shared. `[RING]`
    pub ring: Slot<u64>,
    /// Out: the token; 0 where there is none. `[1]`
    pub token: Slot<u32>,
    /// In and out: the position of the last token, then of the chosen one. `[1]`
    pub cursor: Slot<u32>,
}

/// What sampling reads and remembers.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
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
    /// `[blocks]`
    pub best: Slot<u64>,
    /// `[blocks]`
    pub sums: Slot<u64>,
    /// Zeros before and after. `[64]`
    pub bins: Slot<u64>,
    /// `[2, V]`
    pub candidates: Slot<u32>,
    /// Zeros before and after. `[4]`
    pub tickets: Slot<u32>,
}

/// Outcomes that are remembered: more than there are steps on their way.
pub const RING: usize = 16;

/// The most tokens that the kernel can choose from.
pub const MOST_TOKENS: usize = 1 << 18;

/// Logits that a block looks at, at least.
const SHARE: usize = 1024;

/// The most blocks that the kernel can have.
const MOST_BLOCKS: usize = 512;

/// In an outcome, instead of a token: this bit and an id whose logit is broken, or all bits where no
/// token is left.
const FAILED: u32 = 1 << 31;

impl Sampling {
    pub fn plan(vocab: usize, layout: &mut Layout) -> Self {
        let blocks = vocab.div_ceil(SHARE).min(MOST_BLOCKS);
        Self {
            options: layout.slot(&[6]),
            top_k: layout.slot(&[1]),
            seed: layout.slot(&[1]),
            bias_ids: layout.slot(&[vocab]),
            biases: layout.slot(&[vocab]),
            bias_count: layout.slot(&[1]),
            counts: layout.slot(&[vocab]),
            best: layout.slot(&[blocks]),
            sums: layout.slot(&[blocks]),
            bins: layout.slot(&[64]),
            candidates: layout.slot(&[2, vocab]),
            tickets: layout.slot(&[4]),
        }
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
        let options = self.sampling.read(memory);
        let (logits, counts, token, cursor, ring) =
            memory.slots((self.logits, self.sampling.counts, self.token, self.cursor, self.ring));
        let position = cursor[0] + 1;
        let outcome = sampler::choose(&options, counts, logits, position.into());
        token[0] = match outcome {
            Outcome::Token(id) => id,
            Outcome::Broken(_) | Outcome::Empty => 0,
        };
        counts[token[0] as usize] += 1;
        cursor[0] = position;
        ring[position as usize % RING] = entry(position, outcome);
    }

    fn launch(&self, gpu: &Gpu) -> Launch {
        let vocab = self.logits.len();
        assert!(vocab <= MOST_TOKENS, "a choice between {vocab} tokens");
        let Sampling { options, top_k, seed, bias_ids, biases, bias_count, .. } = self.sampling;
        let Sampling { counts, best, sums, bins, candidates, tickets, .. } = self.sampling;
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
            cursor: self.cursor,
            ring: self.ring,
            best,
            sums,
            bins,
            candidates,
            tickets,
            vocab: size(vocab),
            ring_size: size(RING),
        }
        .arguments();
        // Blocks wait for each other: there are no more than run at once.
        let grid = [blocks(best.len(), gpu.multiprocessors), 1];
        launch(kernel::Sample::KERNEL, (Dtype::F32, 0), grid, 0, arguments)
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
