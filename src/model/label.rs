//! What the ops of a program work on, by the checkpoint's names.

use super::Llama;
use crate::memory::{Slot, Weight};
use crate::op::{Operands, Program};

/// What an op works on, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Label {
    /// Of the whole model; none before the first layer and after the last.
    pub layer: Option<usize>,
    /// `gate_proj + up_proj`; empty, if it reads none of the checkpoint's.
    pub tensor: String,
    /// `[64, 1536] x [576, 1536]`: its input's, and that of the matrices below each other.
    pub shape: String,
}

impl Llama {
    /// Of each op of a program of this model. Those that read no tensor are of the layer of the op before.
    pub fn labels(&self, program: &Program) -> Vec<Label> {
        let mut layer = None;
        let label = |Operands { input, matrices, norm }| {
            let found: Vec<_> = match &matrices[..] {
                [] => norm.and_then(|norm| self.norm_name(norm)).into_iter().collect(),
                matrices => {
                    matrices.iter().filter_map(|matrix| self.matrix_name(*matrix)).collect()
                }
            };
            if let Some((of_layer, _)) = found.first() {
                layer = *of_layer;
            }
            let names: Vec<_> = found.iter().map(|(_, name)| *name).collect();
            let rows: usize = matrices.iter().map(|matrix| matrix.rows).sum();
            let matrix = matrices.first().map(|matrix| format!(" x [{rows}, {}]", matrix.cols));
            let shape = format!("{input:?}{}", matrix.unwrap_or_default());
            Label { layer, tensor: names.join(" + "), shape }
        };
        program.ops.iter().map(|op| op.operands()).map(label).collect()
    }

    /// Of the stage's layer in this place the number in the whole model.
    fn layer_number(&self, place: usize) -> usize {
        self.dims.stage.of(self.dims.whole_layers).start + place
    }

    fn matrix_name(&self, weight: Weight) -> Option<(Option<usize>, &'static str)> {
        if self.weights.embedding == Some(weight) {
            return Some((None, "embed_tokens"));
        }
        if self.weights.head.is_some_and(|head| head.matrix == weight) {
            return Some((None, "lm_head"));
        }
        self.weights.layers.iter().enumerate().find_map(|(place, layer)| {
            let named = [
                (layer.wq, "q_proj"),
                (layer.wk, "k_proj"),
                (layer.wv, "v_proj"),
                (layer.wo, "o_proj"),
                (layer.w_gate, "gate_proj"),
                (layer.w_up, "up_proj"),
                (layer.w_down, "down_proj"),
            ];
            let (_, name) = named.into_iter().find(|(known, _)| *known == weight)?;
            Some((Some(self.layer_number(place)), name))
        })
    }

    fn norm_name(&self, norm: Slot<f32>) -> Option<(Option<usize>, &'static str)> {
        if self.state.head_norm.offset() == norm.offset() {
            return Some((None, "norm"));
        }
        self.state.layers.iter().enumerate().find_map(|(place, layer)| {
            let named = [
                (layer.attention_norm, "input_layernorm"),
                (layer.ffn_norm, "post_attention_layernorm"),
            ];
            let (_, name) = named.into_iter().find(|(known, _)| known.offset() == norm.offset())?;
            Some((Some(self.layer_number(place)), name))
        })
    }
}
