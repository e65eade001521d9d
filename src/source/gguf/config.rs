//! A GGUF's keys as the config.json and generation_config.json that the model had before.

use serde_json::{Map, Value as Json, json};

use crate::gguf::{Gguf, Value};
use crate::json::quote;

/// Keys of another graph than Llama's, when they are neither zero nor false.
const UNSUPPORTED: [(&str, &str); 8] = [
    ("expert_count", "a mixture of experts"),
    ("expert_used_count", "a mixture of experts"),
    ("attention.sliding_window", "attention in a sliding window"),
    ("attn_logit_softcapping", "soft-capped attention"),
    ("final_logit_softcapping", "soft-capped logits"),
    ("logit_scale", "scaled logits"),
    ("embedding_scale", "scaled embeddings"),
    ("residual_scale", "scaled residuals"),
];

/// Keys of the config.json, or of an object in it, and which keys of the file, or tensor, they are made of.
const NAMES: [(&str, &str); 20] = [
    (
        "rope_parameters.original_max_position_embeddings",
        "llama.rope.scaling.original_context_length",
    ),
    ("rope_parameters.attention_factor", "llama.rope.scaling.attn_factor"),
    ("rope_parameters.beta_fast", "llama.rope.scaling.yarn_beta_fast"),
    ("rope_parameters.beta_slow", "llama.rope.scaling.yarn_beta_slow"),
    ("rope_parameters.factor", "llama.rope.scaling.factor"),
    ("rope_parameters.rope_theta", "llama.rope.freq_base"),
    ("rope_parameters.rope_type", "llama.rope.scaling.type"),
    ("rope_divisors", "rope_freqs.weight"),
    ("hidden_size / num_attention_heads", "llama.embedding_length / llama.attention.head_count"),
    ("hidden_size", "llama.embedding_length"),
    ("intermediate_size", "llama.feed_forward_length"),
    ("num_hidden_layers", "llama.block_count"),
    ("num_attention_heads", "llama.attention.head_count"),
    ("num_key_value_heads", "llama.attention.head_count_kv"),
    ("head_dim", "llama.attention.key_length"),
    ("vocab_size", "llama.vocab_size"),
    ("max_position_embeddings", "llama.context_length"),
    ("bos_token_id", "tokenizer.ggml.bos_token_id"),
    ("eos_token_id", "tokenizer.ggml.eos_token_id"),
    ("rms_norm_eps", "llama.attention.layer_norm_rms_epsilon"),
];

/// What is said of the config.json, as it is said of the file that it is made of.
pub fn in_own_names(path: &str, message: &str) -> String {
    let message = message.replace(&format!("{path}/config.json"), path);
    NAMES.iter().fold(message, |message, (theirs, own)| message.replace(theirs, own))
}

/// One key that is a number for all layers; lists of one and the same number count, too.
struct Keys<'a> {
    gguf: &'a Gguf,
    file: &'a [u8],
}

impl Keys<'_> {
    fn value(&self, key: &str) -> Result<Option<Value>, String> {
        let key = format!("llama.{key}");
        match self.gguf.get(&key) {
            Some(Value::Array(array)) => {
                let mut values = array.values(self.file);
                let first = values.next().ok_or_else(|| format!("{key} is empty"))?;
                match values.find(|value| *value != first) {
                    None => Ok(Some(first)),
                    Some(other) => Err(format!(
                        "{key} is {first} in one layer and {other} in another: Llama's are alike"
                    )),
                }
            }
            other => Ok(other.cloned()),
        }
    }

    fn size(&self, key: &str) -> Result<Option<u64>, String> {
        self.typed(key, Value::as_u64, "a whole number")
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.typed(key, Value::as_f64, "a number")
    }

    fn typed<T>(
        &self,
        key: &str,
        of: impl Fn(&Value) -> Option<T>,
        what: &str,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        of(&value).map(Some).ok_or_else(|| format!("llama.{key} is {value}: {what} is needed"))
    }

    fn required(&self, key: &str) -> Result<u64, String> {
        self.size(key)?.ok_or_else(|| format!("llama.{key} is missing: it is never guessed"))
    }
}

/// Token ids of these keys, each once.
fn ids(gguf: &Gguf, roles: &[&str]) -> Vec<u64> {
    let mut ids = Vec::new();
    for role in roles {
        let id = gguf.get(&format!("tokenizer.ggml.{role}_token_id")).and_then(Value::as_u64);
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    ids
}

/// The config.json. `divisors`: of the rotary frequencies, as the tensor rope_freqs.weight has them.
///
/// # Errors
/// Another architecture than llama, a key that is missing or of another graph.
pub fn config(gguf: &Gguf, file: &[u8], divisors: Option<Vec<f32>>) -> Result<Json, String> {
    check(gguf)?;
    let keys = Keys { gguf, file };
    let [width, heads] =
        [keys.required("embedding_length")?, keys.required("attention.head_count")?];
    let turned = keys.size("rope.dimension_count")?;
    let head_dim = match keys.size("attention.key_length")?.or(turned) {
        Some(head_dim) => head_dim,
        None if heads > 0 && width.is_multiple_of(heads) => width / heads,
        None => return Err(format!("llama.attention.head_count {heads} does not divide {width}")),
    };
    for (key, found) in [
        ("rope.dimension_count", turned),
        ("attention.value_length", keys.size("attention.value_length")?),
    ] {
        if let Some(found) = found.filter(|found| *found != head_dim) {
            return Err(format!("llama.{key} is {found} where a head has {head_dim}"));
        }
    }
    let tokens = gguf.get("tokenizer.ggml.tokens").and_then(Value::as_array);
    let vocab = match (keys.size("vocab_size")?, tokens) {
        (Some(vocab), _) => vocab,
        (None, Some(tokens)) => tokens.len as u64,
        (None, None) => keys.required("vocab_size")?,
    };
    let kv_heads = keys.size("attention.head_count_kv")?.unwrap_or(heads);
    let epsilon = keys.number("attention.layer_norm_rms_epsilon")?;
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_hidden_layers": keys.required("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": keys.required("context_length")?,
        "rms_norm_eps": epsilon.ok_or("llama.attention.layer_norm_rms_epsilon is missing")?,
        "rope_parameters": rope(&keys)?,
        "rope_divisors": divisors,
        "tie_word_embeddings": !gguf.tensors.iter().any(|tensor| tensor.name == "output.weight"),
    });
    if let Some(id) = ids(gguf, &["bos"]).first() {
        config["bos_token_id"] = json!(id);
    }
    config["eos_token_id"] = json!(ids(gguf, &["eos", "eot", "eom"]));
    Ok(config)
}

/// That it is a Llama, computed as Llamas are.
fn check(gguf: &Gguf) -> Result<(), String> {
    match gguf.get("general.architecture").and_then(Value::as_text) {
        Some("llama") => {}
        Some(other) => {
            return Err(format!("the architecture is {}: only llama is supported", quote(other)));
        }
        None => return Err("general.architecture is missing".to_owned()),
    }
    for (key, meaning) in UNSUPPORTED {
        let value = gguf.get(&format!("llama.{key}"));
        if let Some(value) =
            value.filter(|value| value.as_f64() != Some(0.0) && value.as_bool() != Some(false))
        {
            return Err(format!("llama.{key} is {value}, which means {meaning}: not supported"));
        }
    }
    Ok(())
}

/// `rope_parameters`, as transformers 5 has them.
fn rope(keys: &Keys<'_>) -> Result<Json, String> {
    let mut rope = Map::new();
    rope.insert("rope_theta".to_owned(), json!(keys.number("rope.freq_base")?.unwrap_or(10_000.0)));
    let kind = keys.value("rope.scaling.type")?;
    let kind = kind.as_ref().and_then(Value::as_text);
    let factor = match keys.number("rope.scaling.factor")? {
        // As it was called until 2023.
        None => keys.number("rope.scale_linear")?,
        factor => factor,
    };
    let kind = match (kind, factor) {
        (Some("none"), _) | (Some("linear") | None, None | Some(0.0 | 1.0)) => "default",
        (Some("linear") | None, Some(_)) => "linear",
        (Some("yarn"), _) => "yarn",
        (Some(other), _) => {
            let other = quote(other);
            return Err(format!(
                "llama.rope.scaling.type is {other}: none, linear and yarn are supported"
            ));
        }
    };
    rope.insert("rope_type".to_owned(), json!(kind));
    if kind != "default" {
        rope.insert("factor".to_owned(), json!(factor));
    }
    if kind == "yarn" {
        for (key, theirs) in [
            ("original_max_position_embeddings", "rope.scaling.original_context_length"),
            ("attention_factor", "rope.scaling.attn_factor"),
            ("beta_fast", "rope.scaling.yarn_beta_fast"),
            ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ] {
            if let Some(value) = keys.value(theirs)? {
                let number = value.as_u64().map(Json::from).or(value.as_f64().map(Json::from));
                rope.insert(key.to_owned(), json!(number));
            }
        }
    }
    Ok(Json::Object(rope))
}
