//! What one rank sees of a model.

use std::ops::Range;

use super::Config;
use crate::error::{Error, Result};

/// One of several parts of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// From 0 on.
    pub part: usize,
    pub parts: usize,
}

impl Share {
    /// This part of `whole` things. The parts are in order, and where they cannot be equal, they differ
    /// by one at most.
    pub fn of(self, whole: usize) -> Range<usize> {
        self.part * whole / self.parts..(self.part + 1) * whole / self.parts
    }
}

/// The sizes of one rank's share: heads and FFN are split evenly, the vocabulary as evenly as it can
/// be; width and layers are whole.
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
    /// V of this rank: its rows of the embedding and of the output matrix.
    pub vocab: usize,
    /// V.
    pub whole_vocab: usize,
    /// L, whole.
    pub layers: usize,
    /// Which of the ranks this is, and of how many.
    pub share: Share,
    /// Which part of the KV heads it has: the same as its neighbours, where there are more ranks.
    pub kv_share: Share,
}

impl Dims {
    /// The first of `world` shares of the model.
    ///
    /// # Errors
    /// What of the model cannot be split over so many ranks, by its key in config.json.
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
            share: Share { part: 0, parts: world },
            kv_share: Share { part: 0, parts: kv_heads.min(world) },
        };
        Ok(whole.of_rank(0))
    }

    /// The same model's share of the rank of this number.
    pub fn of_rank(self, rank: usize) -> Self {
        let (world, kv_parts) = (self.share.parts, self.kv_share.parts);
        assert!(rank < world, "rank {rank} of {world}");
        let share = Share { part: rank, parts: world };
        let kv_share = Share { part: rank * kv_parts / world, parts: kv_parts };
        Self { share, kv_share, vocab: share.of(self.whole_vocab).len(), ..self }
    }

    /// The token that the rank's first row of the vocabulary is of.
    pub fn first_id(&self) -> usize {
        self.share.of(self.whole_vocab).start
    }
}
