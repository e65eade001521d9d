use crate::checkpoint::Dtype;
use crate::config::Dims;
use crate::memory::{Layout, Slot};
use crate::ops::Cache;

/// How much state there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// S: tokens the KV cache holds.
    pub context: usize,
    /// Tokens that one prefill step takes at most.
    pub chunk: usize,
    /// Positions of a step whose logits are kept at most.
    pub logits: usize,
    /// How keys and values are stored.
    pub cache: Dtype,
}

/// All that a rank remembers: the activations of the step at hand and the KV cache.
#[derive(Debug)]
pub struct State {
    /// The step's tokens. `[T]`
    pub ids: Slot<u32>,
    /// Position of the step's first token. `[1]`
    pub cursor: Slot<u32>,
    /// Rotary frequencies, written once. `[D/2]`
    pub frequencies: Slot<f32>,
    /// The residual stream. `[T, C]`
    pub x: Slot<f32>,
    /// The normed residual stream. `[T, C]`
    pub normed: Slot<f32>,
    /// `[T, H, D]`
    pub q: Slot<f32>,
    /// `[T, G, D]`
    pub k: Slot<f32>,
    /// `[T, G, D]`
    pub v: Slot<f32>,
    /// What attention found. `[T, H, D]`
    pub attended: Slot<f32>,
    /// `[T, F]`
    pub gate: Slot<f32>,
    /// `[T, F]`
    pub up: Slot<f32>,
    /// `[logits, V]`
    pub logits: Slot<f32>,
    /// One a layer.
    pub caches: Vec<Cache>,
}

impl State {
    /// Lays out the state, activations before the cache.
    pub fn plan(dims: &Dims, sizes: Sizes, layout: &mut Layout) -> Self {
        let t = sizes.chunk;
        let (h, g, d) = (dims.heads, dims.kv_heads, dims.head_dim);
        Self {
            ids: layout.slot(&[t]),
            cursor: layout.slot(&[1]),
            frequencies: layout.slot(&[d / 2]),
            x: layout.slot(&[t, dims.width]),
            normed: layout.slot(&[t, dims.width]),
            q: layout.slot(&[t, h, d]),
            k: layout.slot(&[t, g, d]),
            v: layout.slot(&[t, g, d]),
            attended: layout.slot(&[t, h, d]),
            gate: layout.slot(&[t, dims.ffn]),
            up: layout.slot(&[t, dims.ffn]),
            logits: layout.slot(&[sizes.logits, dims.vocab]),
            caches: (0..dims.layers)
                .map(|_| {
                    let shape = [sizes.context, g, d, sizes.cache.bytes()];
                    let (keys, values) = (layout.slot(&shape), layout.slot(&shape));
                    Cache { dtype: sizes.cache, keys, values }
                })
                .collect(),
        }
    }
}
