//! The names that safetensors have for the tensors of other formats.

/// A format's names of modules, and those that `transformers` has.
pub struct Names {
    model: [(&'static str, &'static str); 3],
    /// What stands before a layer's number.
    layer: &'static str,
    of_layer: [(&'static str, &'static str); 9],
}

/// llama.cpp's.
pub const GGUF: Names = Names {
    model: [
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    layer: "blk.",
    of_layer: [
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
};

/// Meta's.
pub const META: Names = Names {
    model: [
        ("tok_embeddings", "model.embed_tokens"),
        ("norm", "model.norm"),
        ("output", "lm_head"),
    ],
    layer: "layers.",
    of_layer: [
        ("attention_norm", "input_layernorm"),
        ("attention.wq", "self_attn.q_proj"),
        ("attention.wk", "self_attn.k_proj"),
        ("attention.wv", "self_attn.v_proj"),
        ("attention.wo", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("feed_forward.w1", "mlp.gate_proj"),
        ("feed_forward.w3", "mlp.up_proj"),
        ("feed_forward.w2", "mlp.down_proj"),
    ],
};

impl Names {
    /// The name that safetensors have; its own where they have none.
    pub fn in_safetensors(&self, theirs: &str) -> String {
        let known = |names: &[(&str, &'static str)], module| {
            names.iter().find(|(theirs, _)| *theirs == module).map(|(_, ours)| *ours)
        };
        let ours = || {
            let module = theirs.strip_suffix(".weight")?;
            let in_layer = module.strip_prefix(self.layer).and_then(|rest| rest.split_once('.'));
            Some(match in_layer {
                None => format!("{}.weight", known(&self.model, module)?),
                Some((layer, part)) => {
                    format!("model.layers.{layer}.{}.weight", known(&self.of_layer, part)?)
                }
            })
        };
        ours().unwrap_or_else(|| theirs.to_owned())
    }

    /// The name of a tensor that safetensors call so, if it has one.
    fn of_safetensors(&self, ours: &str) -> Option<String> {
        let known = |names: &[(&'static str, &str)], module| {
            names.iter().find(|(_, ours)| *ours == module).map(|(theirs, _)| *theirs)
        };
        let module = ours.strip_suffix(".weight")?;
        let in_layer = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        Some(match in_layer {
            None => format!("{}.weight", known(&self.model, module)?),
            Some((layer, part)) => {
                format!("{}{layer}.{}.weight", self.layer, known(&self.of_layer, part)?)
            }
        })
    }
}

/// llama.cpp's name of a tensor that safetensors call so, if it has one.
pub fn gguf_name(ours: &str) -> Option<String> {
    GGUF.of_safetensors(ours)
}

/// Whether rows of the tensor that safetensors call so are turned by the position: queries and keys.
pub fn is_turned(name: &str) -> bool {
    [".q_proj.weight", ".k_proj.weight"].iter().any(|end| name.ends_with(end))
}
