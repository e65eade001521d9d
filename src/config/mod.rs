//! The whole model's [`Config`], read from its checkpoint and checked once, and [`Dims`], what one
//! rank sees of it.
//!
//! The letters that shapes are written in, everywhere: T tokens in the step, S cache capacity, C
//! model width, H query heads, G key/value heads, D head width, F FFN width, V vocabulary, L
//! layers. A shape stands in brackets, slowest dimension first: `[V, C]`.

mod dims;
mod fields;
mod generation;
mod quantised;
mod rope;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::{self, show};
use crate::source::Source;

pub use dims::{Dims, Shard};
use fields::Fields;
pub use generation::SamplingDefaults;
pub use rope::{Llama3Scaling, Rope, RopeScaling, Yarn};

const CONFIG_FILE: &str = "config.json";
const GENERATION_FILE: &str = "generation_config.json";

/// A config is a page of text; more is not a config.
const MAX_FILE_BYTES: usize = 1 << 20;

// Sizes above these are taken for damage. They are far above any Llama and low enough that every
// count of parameters or bytes that is derived from them fits u64.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1024;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 1024;
const MAX_FFN: usize = 1 << 22;
const MAX_VOCAB: usize = 1 << 24;
/// Positions up to here are exact in f32, in which their angles are formed.
const MAX_CONTEXT: usize = 1 << 24;

/// What the whole model looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// C: width of the residual stream.
    pub width: usize,
    /// L: number of layers.
    pub layers: usize,
    /// H: query heads of a layer.
    pub heads: usize,
    /// G: key/value heads of a layer; each serves H/G query heads.
    pub kv_heads: usize,
    /// D: width of a head, even.
    pub head_dim: usize,
    /// F: width inside the feed-forward network.
    pub ffn: usize,
    /// V: size of the vocabulary.
    pub vocab: usize,
    /// The longest sequence that the model was made for, in tokens; with `dynamic` scaling, that to which it
    /// stretches.
    pub max_context: usize,
    /// RMSNorm's ε.
    pub norm_eps: f32,
    pub rope: Rope,
    /// Whether the LM head is the embedding, where the config says so.
    pub tied: Option<bool>,
    /// The token that every sequence begins with.
    pub bos_id: Option<u32>,
    /// The tokens that end a sequence, of config.json and generation_config.json together,
    /// ascending.
    pub stop_ids: Vec<u32>,
    pub defaults: SamplingDefaults,
}

impl Config {
    /// Reads config.json and, where there is one, generation_config.json.
    pub fn load(source: &Source) -> Result<Config> {
        let Some(config) = source.read(CONFIG_FILE)? else {
            return Err(source.missing(CONFIG_FILE));
        };
        let generation = source.read(GENERATION_FILE)?;
        let config = Config::parse(&config, generation.as_deref(), &source.to_string());
        config.map_err(|error| match source {
            Source::Gguf(model) => model.in_own_names(&error),
            _ => error,
        })
    }

    /// The config that the texts of config.json and generation_config.json say; `folder` names
    /// their place in errors.
    ///
    /// Every key that the model's graph depends on must be there, and whatever asks for another
    /// graph is an error that names the key. `num_key_value_heads` and `rope_theta` too, which the
    /// first Llama configs left out: a wrong θ gives wrong text without any other sign.
    pub fn parse(config: &[u8], generation: Option<&[u8]>, folder: &str) -> Result<Config> {
        let file = format!("{folder}/{CONFIG_FILE}");
        let object = parse_file(config, &file)?;
        let fields = Fields { file: &file, prefix: "", object: &object };
        check_graph(&fields)?;

        let [width, heads] = [
            fields.size("hidden_size", MAX_WIDTH)?,
            fields.size("num_attention_heads", MAX_HEADS)?,
        ];
        let kv_heads = fields.size("num_key_value_heads", MAX_HEADS)?;
        if heads % kv_heads != 0 {
            let trouble =
                format!("is {kv_heads}, which does not divide num_attention_heads {heads}");
            return Err(fields.wrong("num_key_value_heads", &trouble));
        }
        let vocab = fields.size("vocab_size", MAX_VOCAB)?;
        let mut stop_ids = fields.ids("eos_token_id", vocab)?;
        let bos_ids = fields.ids("bos_token_id", vocab)?;
        if bos_ids.len() > 1 {
            return Err(fields.wrong("bos_token_id", "is a list: one token id is needed"));
        }

        let mut defaults = SamplingDefaults::default();
        if let Some(generation) = generation {
            let file = format!("{folder}/{GENERATION_FILE}");
            let object = parse_file(generation, &file)?;
            let fields = Fields { file: &file, prefix: "", object: &object };
            stop_ids.extend(fields.ids("eos_token_id", vocab)?);
            defaults = SamplingDefaults::parse(&fields)?;
        }
        stop_ids.sort_unstable();
        stop_ids.dedup();

        let rope = Rope::parse(&fields)?;
        let max_context = fields.size("max_position_embeddings", MAX_CONTEXT)?;
        let head_dim = head_dim(&fields, width, heads)?;
        if ![0, head_dim / 2].contains(&rope.divisors.len()) {
            let trouble = format!("is not a list of {}: one for each pair", head_dim / 2);
            return Err(fields.wrong("rope_divisors", &trouble));
        }
        let max_context = match rope.scaling {
            Some(RopeScaling::Dynamic { factor, .. }) => stretched(max_context, factor),
            _ => max_context,
        };
        Ok(Config {
            width,
            layers: fields.size("num_hidden_layers", MAX_LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            ffn: fields.size("intermediate_size", MAX_FFN)?,
            vocab,
            max_context,
            norm_eps: fields.number("rms_norm_eps", 1e-12..=1e-1)? as f32,
            rope,
            tied: fields.optional_bool("tie_word_embeddings")?,
            bos_id: bos_ids.first().copied(),
            stop_ids,
            defaults,
        })
    }

    /// The longest sequence that may be asked for. Models whose rotary embeddings are scaled linearly have
    /// been published with `max_position_embeddings` before scaling and after.
    pub fn longest_context(&self) -> usize {
        match self.rope.scaling {
            Some(RopeScaling::Linear { factor }) => stretched(self.max_context, factor),
            _ => self.max_context,
        }
    }

    /// The number of weights: `V·C + L·(2·C + 2·C·H·D + 2·C·G·D + 3·C·F) + C`, and another V·C for
    /// an output matrix that is not `tied` to the embedding.
    pub fn parameters(&self, tied: bool) -> u64 {
        let [width, ffn, vocab] = [self.width, self.ffn, self.vocab].map(|size| size as u64);
        let heads = (self.heads + self.kv_heads) as u64 * self.head_dim as u64;
        let layer = width * (2 + 2 * heads + 3 * ffn);
        let embeddings = vocab * width * if tied { 1 } else { 2 };
        embeddings + self.layers as u64 * layer + width
    }
}

/// So many tokens times the factor.
fn stretched(tokens: usize, factor: f64) -> usize {
    ((tokens as f64 * factor) as usize).min(MAX_CONTEXT)
}

fn parse_file(text: &[u8], file: &str) -> Result<serde_json::Map<String, Value>> {
    if text.len() > MAX_FILE_BYTES {
        let limit_mib = MAX_FILE_BYTES >> 20;
        return Err(Error::failed(format!("{file}: over {limit_mib} MiB: not a model's config")));
    }
    json::parse_object(text).map_err(|trouble| Error::failed(format!("{file}: {trouble}")))
}

/// The given `head_dim`, else C/H.
fn head_dim(fields: &Fields, width: usize, heads: usize) -> Result<usize> {
    let (key, head_dim) = match fields.optional_size("head_dim", 1, MAX_HEAD_DIM)? {
        Some(head_dim) => ("head_dim", head_dim),
        None if width.is_multiple_of(heads) => ("hidden_size / num_attention_heads", width / heads),
        None => {
            let trouble = format!("is {width}, which num_attention_heads {heads} does not divide");
            return Err(fields.wrong("hidden_size", &trouble));
        }
    };
    if head_dim % 2 != 0 || head_dim > MAX_HEAD_DIM {
        let trouble =
            format!("is {head_dim}: an even head width of at most {MAX_HEAD_DIM} is needed");
        return Err(fields.wrong(key, &trouble));
    }
    Ok(head_dim)
}

/// Keys that mean another graph when they are anything but absent, null or false.
const UNSUPPORTED: [(&str, &str); 11] = [
    ("attention_bias", "biases in attention"),
    ("mlp_bias", "biases in the feed-forward network"),
    ("compression_config", "quantised weights"),
    ("sliding_window", "attention in a sliding window"),
    ("use_sliding_window", "attention in a sliding window"),
    ("attention_chunk_size", "attention in chunks"),
    ("num_experts", "a mixture of experts"),
    ("num_local_experts", "a mixture of experts"),
    ("attn_logit_softcapping", "soft-capped attention"),
    ("final_logit_softcapping", "soft-capped logits"),
    ("use_qk_norm", "normalised queries and keys"),
];

/// That the config asks for the graph we have: a `LlamaForCausalLM` with SiLU and without extras.
fn check_graph(fields: &Fields) -> Result<()> {
    for (key, only) in [("model_type", "llama"), ("hidden_act", "silu")] {
        let found = fields.text(key)?;
        if found != only {
            return Err(
                fields.wrong(key, &format!("is {}: only {only} is supported", json::quote(found)))
            );
        }
    }
    let architecture = Value::from("LlamaForCausalLM");
    if let Some(found) = fields.optional("architectures")
        && !found.as_array().is_some_and(|list| list.contains(&architecture))
    {
        return Err(fields
            .wrong("architectures", "does not hold LlamaForCausalLM: nothing else is supported"));
    }
    quantised::check(fields)?;
    for (key, meaning) in UNSUPPORTED {
        if let Some(value) = fields.optional(key).filter(|value| *value != &Value::Bool(false)) {
            let trouble = format!("is {}, which means {meaning}: not supported", show(value));
            return Err(fields.wrong(key, &trouble));
        }
    }
    if let Some(types) = fields.optional("layer_types") {
        let full = |list: &Vec<Value>| list.iter().all(|kind| kind == "full_attention");
        if !types.as_array().is_some_and(full) {
            return Err(fields.wrong("layer_types", "holds something else than full_attention"));
        }
    }
    Ok(())
}
