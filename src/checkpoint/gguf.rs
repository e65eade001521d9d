//! The tensors of a GGUF by the names that safetensors have for them.

use std::collections::{BTreeMap, HashMap};

use super::reordered::Reordered;
use super::{Checkpoint, FILE_ALIGN_BYTES, Tensor, WeightFile};
use crate::encoding::Encoding;
use crate::error::{Error, Result};
use crate::gguf::GgufTensor;
use crate::json::quote;
use crate::source::{GgufModel, ROPE_DIVISORS};

/// What llama.cpp calls them, and what transformers does.
const NAMES: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
/// Of a layer.
const LAYER_NAMES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

impl Checkpoint {
    /// The files' tensors where they lie, but for queries and keys, whose rows have another order
    /// ([`Reordered`]). `head_dim`: rows of a head.
    pub(super) fn of_gguf(model: &GgufModel, head_dim: usize) -> Result<Self> {
        let (mut shards, mut tensors) = (Vec::<WeightFile>::new(), Vec::new());
        let (mut places, mut reordered) = (HashMap::new(), BTreeMap::new());
        for part in model.parts() {
            let end = shards.last().map_or(0, |shard| shard.base + shard.bytes.len());
            let base = end.next_multiple_of(FILE_ALIGN_BYTES);
            let wrong = |what: String| Error::failed(format!("{}: {what}", part.path));
            for tensor in part.gguf.tensors.iter().filter(|tensor| tensor.name != ROPE_DIVISORS) {
                let (name, tensor) = (name(&tensor.name), of(tensor, base).map_err(wrong)?);
                if is_turned(&name) {
                    let row_bytes = tensor.encoding.row_bytes(tensor.shape[tensor.shape.len() - 1]);
                    let turned = Reordered::new(head_dim, row_bytes, tensor.bytes);
                    reordered.insert(tensor.offset, turned.map_err(wrong)?);
                }
                if places.insert(name.clone(), tensors.len()).is_some() {
                    return Err(wrong(format!("tensor {} is there twice", quote(&name))));
                }
                tensors.push((name, tensor));
            }
            let bytes = part.bytes.clone();
            shards.push(WeightFile { path: part.path.clone(), base, bytes });
        }
        Ok(Self { reordered, ..Self::of_shards(shards, tensors, places)? })
    }
}

/// The name that safetensors have; its own where they have none.
fn name(theirs: &str) -> String {
    let ours = || {
        let module = theirs.strip_suffix(".weight")?;
        let known = |names: &[(&str, &'static str)], name| {
            names.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours)
        };
        let Some((layer, part)) = module.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
        else {
            return Some(format!("{}.weight", known(&NAMES, module)?));
        };
        Some(format!("model.layers.{layer}.{}.weight", known(&LAYER_NAMES, part)?))
    };
    ours().unwrap_or_else(|| theirs.to_owned())
}

/// Whether its rows are turned by the position.
fn is_turned(name: &str) -> bool {
    [".q_proj.weight", ".k_proj.weight"].iter().any(|end| name.ends_with(end))
}

/// A tensor in the weight region.
fn of(tensor: &GgufTensor, base: usize) -> std::result::Result<Tensor, String> {
    let GgufTensor { name, kind, shape, offset, bytes } = tensor;
    let wrong = |what: String| format!("tensor {} {what}", quote(name));
    let encoding = Encoding::from_name(kind.name).ok_or_else(|| {
        let known = Encoding::all().map(Encoding::name).collect::<Vec<_>>().join(", ");
        wrong(format!("is in {}, which is not supported: {known} are", kind.name))
    })?;
    if let Encoding::Plain(float) = encoding
        && !offset.is_multiple_of(float.bytes())
    {
        return Err(wrong(format!("begins at byte {offset}, in the middle of an element")));
    }
    Ok(Tensor { encoding, shape: shape.clone(), offset: base + offset, bytes: *bytes })
}
