use crate::config::Dims;
use crate::encoding::Float;
use crate::memory::{Activation, Layout, Scratch, Slot};
use crate::op::Placement;
use crate::ops::{AttendDecode, AttendScratch, Cache, Mailbox, RING, Sampling};
use crate::vector::{attention_scratch, matmul_scratch};

/// How much state there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// S: tokens the KV cache holds of a sequence.
    pub context: usize,
    /// B: sequences that it holds.
    pub sequences: usize,
    /// R: tokens that a decode step takes, each of a sequence of its own.
    pub rows: usize,
    /// Tokens that one prefill step takes at most.
    pub chunk: usize,
    /// Positions of a step whose logits are kept at most.
    pub logits: usize,
    /// How keys and values are stored.
    pub cache: Float,
    /// What ops of a prefill exchange that are free to choose: f32, or the weights' type.
    pub activations: Float,
    /// Whether a token alone is computed as a prefill of one is, to the bit.
    pub decode_as_prefill: bool,
    /// Blocks that the attention of one token may spread over.
    pub attention_blocks: usize,
    /// Threads that ops on the CPU work with, each in scratch of its own.
    pub threads: usize,
}

/// All that a rank remembers: the activations of the step at hand and the KV cache.
#[derive(Debug)]
pub struct State {
    /// The step's tokens; the first are also where the next ones are put. `[T]`
    pub ids: Slot<u32>,
    /// `[R]`
    pub placement: Placement,
    /// Rotary frequencies, written once. `[D/2]`
    pub frequencies: Slot<f32>,
    /// The residual stream. `[T, C]`
    pub x: Slot<f32>,
    /// This rank's part of what is added to it; where there is one rank, the stream itself. Zeros between
    /// all-reduces. `[T, C]`
    pub partial: Slot<f32>,
    /// Through which the parts are put together, where there are several ranks.
    pub mailbox: Option<Mailbox>,
    /// `[T, H, D]`
    pub q: Slot<f32>,
    /// `[T, G, D]`
    pub k: Slot<f32>,
    /// `[T, G, D]`
    pub v: Slot<f32>,
    /// `[logits, V]`
    pub logits: Slot<f32>,
    pub prefill: PrefillState,
    pub decode: DecodeState,
    /// [`Sizes::decode_as_prefill`]
    pub decode_as_prefill: bool,
    pub sampling: Sampling,
    pub layers: Vec<LayerState>,
    /// The last norm's weights, written once. `[C]`
    pub head_norm: Slot<f32>,
    /// What the last choices of tokens came to. Shared. `[RING]`
    pub ring: Slot<u64>,
}

/// What a layer keeps.
#[derive(Debug, Clone, Copy)]
pub struct LayerState {
    /// The norms' weights, written once. `[C]`
    pub attention_norm: Slot<f32>,
    /// `[C]`
    pub ffn_norm: Slot<f32>,
    pub cache: Cache,
}

/// What the ops of a prefill exchange.
#[derive(Debug, Clone, Copy)]
pub struct PrefillState {
    /// The normed residual stream; in 16 bits, in two terms. `[T, C]`
    pub normed: Activation,
    /// The rotated queries. `[T, H, D]`
    pub queries: Activation,
    /// What attention found. `[T, H, D]`
    pub attended: Activation,
    /// The gated hidden units. `[T, F]`
    pub hidden: Activation,
}

/// What the ops of a decode step exchange, in f32.
#[derive(Debug, Clone, Copy)]
pub struct DecodeState {
    /// What attention found. `[R, H, D]`
    pub attended: Slot<f32>,
    /// The gated hidden units. `[R, F]`
    pub hidden: Slot<f32>,
    pub scratch: AttendScratch,
}

impl State {
    /// Everything that ops pass on to other ops, by name.
    pub fn numbers(&self) -> Vec<(String, Activation)> {
        let Self { x, q, k, v, logits, prefill, decode, .. } = self;
        let f32 = |name, slot: Slot<f32>| {
            (name, Activation { dtype: Float::F32, terms: 1, bytes: slot.cast() })
        };
        let passing = [
            f32("x", *x),
            f32("q", *q),
            f32("k", *k),
            f32("v", *v),
            f32("logits", *logits),
            f32("attended", decode.attended),
            f32("hidden", decode.hidden),
            ("normed", prefill.normed),
            ("queries", prefill.queries),
            ("attended", prefill.attended),
            ("hidden", prefill.hidden),
        ];
        let cached =
            self.layers.iter().enumerate().flat_map(|(number, LayerState { cache, .. })| {
                let of = |bytes| Activation { dtype: cache.dtype, terms: 1, bytes };
                [
                    (format!("keys {number}"), of(cache.keys)),
                    (format!("values {number}"), of(cache.values)),
                ]
            });
        passing.into_iter().map(|(name, slot)| (name.to_owned(), slot)).chain(cached).collect()
    }

    /// Lays out the state: activations, the cache, what host and device share, and what ops work in.
    pub fn plan(dims: &Dims, sizes: Sizes, layout: &mut Layout) -> Self {
        layout.scratch(scratch(dims, sizes));
        let r = sizes.rows;
        let t = sizes.chunk.max(r);
        let (h, g, d) = (dims.heads, dims.kv_heads, dims.head_dim);
        let activations = sizes.activations;
        // The cache's type has the longest mantissa of the 16-bit ones.
        let queries = if activations == Float::F32 { Float::F32 } else { sizes.cache };
        let terms = if activations == Float::F32 { 1 } else { 2 };
        let x = layout.slot(&[t, dims.width]);
        let splits = AttendDecode::splits((h, g, d), sizes.context, sizes.attention_blocks);
        Self {
            ids: layout.slot(&[t]),
            placement: Placement { positions: layout.slot(&[r]), sequences: layout.slot(&[r]) },
            frequencies: layout.slot(&[d / 2]),
            x,
            partial: if dims.share.parts > 1 { layout.slot(&[t, dims.width]) } else { x },
            mailbox: Mailbox::plan(dims.share, t.saturating_mul(dims.width), layout),
            q: layout.slot(&[t, h, d]),
            k: layout.slot(&[t, g, d]),
            v: layout.slot(&[t, g, d]),
            logits: layout.slot(&[sizes.logits.max(r), dims.vocab]),
            prefill: PrefillState {
                normed: layout.activation(activations, terms, &[t, dims.width]),
                queries: layout.activation(queries, 1, &[t, h, d]),
                attended: layout.activation(activations, 1, &[t, h, d]),
                hidden: layout.activation(activations, 1, &[t, dims.ffn]),
            },
            decode: DecodeState {
                attended: layout.slot(&[r, h, d]),
                hidden: layout.slot(&[r, dims.ffn]),
                scratch: AttendScratch {
                    partial: layout.slot(&[splits, h, d]),
                    statistics: layout.slot(&[splits, h, 2]),
                    tickets: layout.slot(&[AttendDecode::tickets(h, g)]),
                },
            },
            decode_as_prefill: sizes.decode_as_prefill,
            sampling: Sampling::plan(dims.whole_vocab, dims.share, dims.stage, layout),
            head_norm: layout.slot(&[dims.width]),
            layers: (0..dims.layers).map(|_| LayerState::plan(dims, sizes, layout)).collect(),
            ring: {
                layout.begin_shared();
                layout.slot(&[RING])
            },
        }
    }
}

impl LayerState {
    fn plan(dims: &Dims, sizes: Sizes, layout: &mut Layout) -> Self {
        let Sizes { sequences, context, cache: dtype, .. } = sizes;
        let shape = [sequences, context, dims.kv_heads, dims.head_dim, dtype.bytes()];
        Self {
            attention_norm: layout.slot(&[dims.width]),
            ffn_norm: layout.slot(&[dims.width]),
            cache: Cache { dtype, context, keys: layout.slot(&shape), values: layout.slot(&shape) },
        }
    }
}

/// Bytes that any op of the two programs works in on the CPU: the inputs of its products, with a decode
/// step's norms, keys and values; rotated keys; attention's. Where activations are stored in 16 bits, with
/// what an op reads and writes as f32.
fn scratch(dims: &Dims, sizes: Sizes) -> usize {
    let (q, kv) = (dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);
    let widest = dims.width.max(dims.ffn).max(q);
    let products = matmul_scratch(sizes.chunk.max(sizes.rows), widest, sizes.threads);
    let of_rows = |width| Scratch::bytes_of::<f32>(sizes.rows.saturating_mul(width));
    let of_rows = of_rows(dims.width) + 2 * of_rows(kv);
    let keys = Scratch::bytes_of::<f32>(sizes.chunk.saturating_mul(kv));
    let attention =
        |tokens| attention_scratch(tokens, dims.heads, dims.head_dim, sizes.context, sizes.threads);
    let attention = attention(1).max(attention(sizes.chunk));
    let wide = match sizes.activations {
        Float::F32 => 0,
        _ => 2 * Scratch::bytes_of::<f32>(sizes.chunk.saturating_mul(widest)),
    };
    products.saturating_add(of_rows).max(keys).max(attention).saturating_add(wide)
}
