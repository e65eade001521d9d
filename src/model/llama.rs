//! The model itself: two programs of the same shape.

use super::weights::floats;
use super::{Head, LayerState, Sizes, State, Weights};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::comm::Direction;
use crate::config::{Config, Dims};
use crate::error::Result;
use crate::memory::{Layout, Slot, Weight};
use crate::op::Program;
use crate::ops::{
    AllReduce, AttendDecode, AttendPrefill, Embed, GateUpSwiglu, Matmul, NormGateUp, NormHead,
    NormQkv, Project, RmsNorm, RopeAppend, Sample, SendRecv,
};

/// A Llama as one rank sees it.
pub struct Llama {
    pub dims: Dims,
    pub norm_eps: f32,
    /// What rotations multiply queries and keys with.
    pub magnitude: f32,
    pub weights: Weights,
    pub state: State,
}

impl Llama {
    /// A rank's share with its state laid out, and the layout.
    pub fn lay_out(config: &Config, dims: Dims, weights: Weights, sizes: Sizes) -> (Self, Layout) {
        let mut layout = Layout::default();
        let state = State::plan(&dims, sizes, &mut layout);
        let (norm_eps, magnitude) = (config.norm_eps, config.rope.magnitude());
        (Self { dims, norm_eps, magnitude, weights, state }, layout)
    }

    /// What the state must hold before the first program runs, the norms' weights of `checkpoint` among it;
    /// all else is written before it is read.
    ///
    /// # Errors
    /// A file that cannot be read, or has become shorter.
    pub fn initial_state(
        &self,
        config: &Config,
        checkpoint: &Checkpoint,
    ) -> Result<Vec<(Slot<u8>, Vec<u8>)>> {
        let State { frequencies, decode, sampling, placement, .. } = &self.state;
        let zeros = [
            decode.scratch.tickets.cast(),
            sampling.tickets.cast(),
            sampling.bins.cast(),
            sampling.rounds.cast(),
            placement.sequences.cast(),
        ];
        let zeros = zeros.map(|slot: Slot<u8>| (slot, vec![0; slot.len()]));
        let rotations = config.rope.frequencies(config.head_dim, 0);
        let norms = self.norms().map(|(vector, slot)| Ok((slot, floats(checkpoint, vector)?)));
        let floats = norms.chain([Ok((*frequencies, rotations))]);
        let floats = floats.map(|item: Result<_>| {
            item.map(|(slot, values)| (slot.cast(), bytemuck::cast_slice(&values).to_vec()))
        });
        floats.chain(zeros.into_iter().map(Ok)).collect()
    }

    /// The norms' weights in the checkpoint, and where they are kept.
    fn norms(&self) -> impl Iterator<Item = (Weight, Slot<f32>)> + '_ {
        let Self { weights, state, .. } = self;
        let layers = weights.layers.iter().zip(&state.layers).flat_map(|(layer, kept)| {
            [(layer.attention_norm, kept.attention_norm), (layer.ffn_norm, kept.ffn_norm)]
        });
        layers.chain(weights.head.map(|head| (head.norm, state.head_norm)))
    }
}

/// Which positions of a prefill step get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Logits {
    None,
    Last,
    All,
}

impl Logits {
    /// How many of a step's `tokens` positions get logits.
    pub fn of(self, tokens: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Last => 1,
            Self::All => tokens,
        }
    }
}

/// The first `tokens` rows of a slot that holds `[T, width]`.
fn leading<T: bytemuck::Pod>(slot: Slot<T>, tokens: usize, width: usize) -> Slot<T> {
    slot.part(0, tokens * width)
}

/// The residual stream at the stage's first layer: what the tokens mean, or the stage before has made of it.
fn begin(p: &mut Program, model: &Llama, tokens: usize) {
    let Llama { dims, weights, state, .. } = model;
    let [partial, x] = [state.partial, state.x].map(|slot| leading(slot, tokens, dims.width));
    match weights.embedding {
        None => p.push(SendRecv { x, direction: Direction::Receive }),
        Some(table) => {
            let (ids, first_id) = (leading(state.ids, tokens, 1), dims.first_id() as u32);
            p.push(Embed { ids, table, first_id, x: partial });
            all_reduce(p, model, tokens, false);
        }
    }
}

/// Puts together what the ranks of the stage have found, if there are several.
fn all_reduce(p: &mut Program, model: &Llama, tokens: usize, residual: bool) {
    let (world, width) = (model.dims.share.parts, model.dims.width);
    if world > 1 {
        let [partial, x] = [model.state.partial, model.state.x].map(|s| leading(s, tokens, width));
        let mailbox = model.state.mailbox;
        p.push(AllReduce { partial, residual, x, world, mailbox });
    }
}

/// `tokens` tokens of one sequence at once.
pub fn prefill(model: &Llama, tokens: usize, logits: Logits) -> Program {
    let Llama { dims, norm_eps: eps, magnitude, weights, state } = model;
    let magnitude = *magnitude;
    let (q_width, kv_width) = (dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);
    let x = leading(state.x, tokens, dims.width);
    let partial = leading(state.partial, tokens, dims.width);
    let q = leading(state.q, tokens, q_width);
    let k = leading(state.k, tokens, kv_width);
    let v = leading(state.v, tokens, kv_width);
    let normed = state.prefill.normed.first(tokens * dims.width);
    let queries = state.prefill.queries.first(tokens * q_width);
    let attended = state.prefill.attended.first(tokens * q_width);
    let hidden = state.prefill.hidden.first(tokens * dims.ffn);
    let (placement, frequencies) = (state.placement.first(1), state.frequencies);
    let Dims { heads, kv_heads, head_dim, .. } = *dims;

    let mut program = Program::default();
    let norm = |p: &mut Program, x, weight, y| p.push(RmsNorm { x, weight, eps: *eps, y });
    let p = &mut program;
    begin(p, model, tokens);
    for (layer, kept) in weights.layers.iter().zip(&state.layers) {
        let cache = kept.cache;
        norm(p, x, kept.attention_norm, normed);
        // Attention's scores are exponentiated: errors in them grow, so these three read both terms.
        let products = [(layer.wq, q), (layer.wk, k), (layer.wv, v)];
        p.push(Matmul { x: normed, products, residual: false });
        p.push(RopeAppend { q, k, v, placement, frequencies, magnitude, queries, cache, kv_heads });
        p.push(AttendPrefill { queries, cache, placement, heads, kv_heads, head_dim, y: attended });
        p.push(Matmul { x: attended, products: [(layer.wo, partial)], residual: true });
        all_reduce(p, model, tokens, true);
        norm(p, x, kept.ffn_norm, normed);
        p.push(GateUpSwiglu {
            x: normed.rounded(),
            w_gate: layer.w_gate,
            w_up: layer.w_up,
            hidden,
        });
        p.push(Matmul { x: hidden, products: [(layer.w_down, partial)], residual: true });
        all_reduce(p, model, tokens, true);
    }
    let Some(Head { matrix, .. }) = weights.head else {
        p.push(SendRecv { x, direction: Direction::Send });
        return program;
    };
    let scored = logits.of(tokens);
    if scored > 0 {
        let x = x.part((tokens - scored) * dims.width, scored * dims.width);
        let normed = state.prefill.normed.first(scored * dims.width);
        norm(p, x, state.head_norm, normed);
        let products = [(matrix, leading(state.logits, scored, dims.vocab))];
        p.push(Matmul { x: normed.rounded(), products, residual: false });
    }
    program
}

/// `rows` tokens, each the next one of a sequence of its own, to their logits or the next stage: five ops a
/// layer, if they need not be computed as a prefill is. `rows`: up to R
pub fn decode(model: &Llama, rows: usize) -> Program {
    if model.state.decode_as_prefill {
        assert_eq!(rows, 1, "a prefill is of one sequence");
        return prefill(model, 1, Logits::Last);
    }
    let Llama { dims, norm_eps: eps, magnitude, weights, state } = model;
    let (eps, magnitude) = (*eps, *magnitude);
    let (placement, frequencies) = (state.placement.first(rows), state.frequencies);
    let q_width = dims.heads * dims.head_dim;
    let x = leading(state.x, rows, dims.width);
    let partial = leading(state.partial, rows, dims.width);
    let q = leading(state.q, rows, q_width);
    let attended = leading(state.decode.attended, rows, q_width);
    let hidden = leading(state.decode.hidden, rows, dims.ffn);
    let scratch = state.decode.scratch;
    let logits = leading(state.logits, rows, dims.vocab);
    let Dims { kv_heads, head_dim, .. } = *dims;

    let mut p = Program::default();
    begin(&mut p, model, rows);
    for (layer, kept) in weights.layers.iter().zip(&state.layers) {
        let &LayerState { attention_norm: norm, ffn_norm, cache } = kept;
        let (wq, wk, wv) = (layer.wq, layer.wk, layer.wv);
        p.push(NormQkv { x, norm, eps, wq, wk, wv, placement, frequencies, magnitude, q, cache });
        p.push(AttendDecode { q, cache, placement, kv_heads, head_dim, y: attended, scratch });
        p.push(Project { x: attended, weight: layer.wo, y: partial });
        all_reduce(&mut p, model, rows, true);
        let (w_gate, w_up) = (layer.w_gate, layer.w_up);
        p.push(NormGateUp { x, norm: ffn_norm, eps, w_gate, w_up, hidden });
        p.push(Project { x: hidden, weight: layer.w_down, y: partial });
        all_reduce(&mut p, model, rows, true);
    }
    match weights.head {
        Some(Head { matrix: head, .. }) => {
            p.push(NormHead { x, norm: state.head_norm, eps, head, logits });
        }
        None => p.push(SendRecv { x, direction: Direction::Send }),
    }
    p
}

/// The next token, from the logits of the last; it takes the last one's place, so that [`decode`] can
/// follow at once.
pub fn choose(model: &Llama) -> Sample {
    let State { sampling, ring, placement, .. } = model.state;
    let positions = placement.first(1).positions;
    let logits = leading(model.state.logits, 1, model.dims.vocab);
    Sample { logits, sampling, ring, token: leading(model.state.ids, 1, 1), positions }
}

/// From the logits of the last token to those of the next: its choice comes first, so that the first layer's
/// weights are in flight while it is made.
pub fn step(model: &Llama) -> Program {
    let mut program = Program::default();
    program.push(choose(model));
    program.ops.extend(decode(model, 1).ops);
    program
}
