//! What one rank sees of a model.

use std::ops::Range;

use super::Config;
use crate::error::{Error, Result, count};

/// One of several parts of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0 on.
    pub part: usize,
    pub parts: usize,
}

impl Shard {
    /// This part of `whole` things. The parts are in order, and where they cannot be equal, they differ
    /// by one at most.
    pub fn of(self, whole: usize) -> Range<usize> {
        self.part * whole / self.parts..(self.part + 1) * whole / self.parts
    }

    pub fn is_last(self) -> bool {
        self.part + 1 == self.parts
    }
}

/// The sizes of one rank's share. Ranks stand in stages, each with some of the layers; inside of a stage
/// heads and FFN are split evenly, the vocabulary as evenly as it can be; the width is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// C, whole.
    pub width: usize,
    /// H of this rank.
    pub heads: usize,
    /// G of this rank.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// F of this rank.
    pub ffn: usize,
    /// V of this rank: the tokens of which it has logits. Those before the last stage have none.
    pub vocab: usize,
    /// V.
    pub whole_vocab: usize,
    /// L of this rank's stage.
    pub layers: usize,
    /// L.
    pub whole_layers: usize,
    /// Which of the stages this is, and of how many.
    pub stage: Shard,
    /// Which of its stage's ranks this is, and of how many.
    pub share: Shard,
    /// Which part of the KV heads it has: the same as its neighbours, where there are more ranks.
    pub kv_share: Shard,
}

impl Dims {
    /// The first of `world` shares of the model, in one stage.
    ///
    /// # Errors
    /// What of the model cannot be split over `world` ranks, by its key in config.json.
    pub fn new(config: &Config, world: usize) -> Result<Dims> {
        let refuse = |size: usize, key: &str| {
            Err(Error::failed(format!(
                "the model cannot be split over {world} ranks: its {key} is {size}"
            )))
        };
        let divides = |parts: usize, size: usize| size.checked_rem(parts) == Some(0);
        let (heads, kv_heads) = (config.heads, config.kv_heads);
        if !divides(world, heads) {
            return refuse(heads, "num_attention_heads");
        }
        if !divides(world, kv_heads) && !divides(kv_heads, world) {
            return refuse(kv_heads, "num_key_value_heads");
        }
        if !divides(world, config.ffn) {
            return refuse(config.ffn, "intermediate_size");
        }
        if config.vocab < world {
            return refuse(config.vocab, "vocab_size");
        }
        let whole = Dims {
            width: config.width,
            heads: heads / world,
            kv_heads: kv_heads.div_ceil(world),
            head_dim: config.head_dim,
            ffn: config.ffn / world,
            vocab: config.vocab,
            whole_vocab: config.vocab,
            layers: config.layers,
            whole_layers: config.layers,
            stage: Shard { part: 0, parts: 1 },
            share: Shard { part: 0, parts: world },
            kv_share: Shard { part: 0, parts: kv_heads.min(world) },
        };
        Ok(whole.of_rank(0))
    }

    /// As [`Self::new`], of `world` ranks in `stages`.
    ///
    /// # Errors
    /// More stages than layers; ranks that do not divide into the stages; what of the model cannot be
    /// split over the ranks of a stage.
    pub fn in_stages(config: &Config, world: usize, stages: usize) -> Result<Dims> {
        let layers = config.layers;
        if !(1..=layers).contains(&stages) {
            return Err(Error::failed(format!(
                "the model has {}: it cannot be in {}",
                count(layers, "layer"),
                count(stages, "stage")
            )));
        }
        if world == 0 || !world.is_multiple_of(stages) {
            return Err(Error::failed(format!(
                "{} cannot stand in {} of as many ranks each",
                count(world, "rank"),
                count(stages, "stage")
            )));
        }
        let whole = Self::new(config, world / stages)?;
        Ok(Self { stage: Shard { part: 0, parts: stages }, ..whole }.of_rank(0))
    }

    /// The same model's share of the rank of this number: stage by stage. The last one's is the largest.
    pub fn of_rank(self, rank: usize) -> Self {
        assert!(rank < self.world(), "rank {rank} of {}", self.world());
        let (parts, kv_parts) = (self.share.parts, self.kv_share.parts);
        let (stage, part) = (rank / parts, rank % parts);
        let (stage, share) = (Shard { part: stage, ..self.stage }, Shard { part, parts });
        let kv_share = Shard { part: part * kv_parts / parts, parts: kv_parts };
        let vocab = if stage.is_last() { share.of(self.whole_vocab).len() } else { 0 };
        let layers = stage.of(self.whole_layers).len();
        Self { stage, share, kv_share, vocab, layers, ..self }
    }

    /// Which of all ranks this is.
    pub fn rank(&self) -> usize {
        self.stage.part * self.share.parts + self.share.part
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.stage.parts * self.share.parts
    }

    /// The token that the rank's first row of the vocabulary is of.
    pub fn first_id(&self) -> usize {
        self.share.of(self.whole_vocab).start
    }
}
