//! What one rank sees of a model.

use super::Config;
use crate::error::{Error, Result};

/// The sizes of one rank's share: heads, FFN and vocabulary are split evenly, width and layers are
/// whole.
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
    /// V of this rank: its rows of the output matrix.
    pub vocab: usize,
    /// L, whole.
    pub layers: usize,
}

impl Dims {
    /// One of `world` equal shares of the model.
    pub fn new(config: &Config, world: usize) -> Result<Dims> {
        let share = |size: usize, key: &str| match size.checked_rem(world) {
            Some(0) => Ok(size / world),
            _ => Err(Error::failed(format!(
                "the model cannot be split over {world} ranks: its {key} is {size}"
            ))),
        };
        Ok(Dims {
            width: config.width,
            heads: share(config.heads, "num_attention_heads")?,
            kv_heads: share(config.kv_heads, "num_key_value_heads")?,
            head_dim: config.head_dim,
            ffn: share(config.ffn, "intermediate_size")?,
            vocab: share(config.vocab, "vocab_size")?,
            layers: config.layers,
        })
    }
}
