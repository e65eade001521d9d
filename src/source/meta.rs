//! A model as Meta publishes it: params.json, tokenizer.model and consolidated.NN.pth, a file for each of the
//! ranks that it was split over. It shows itself as the folder that `transformers` has of it.
//!
//! <https://github.com/meta-llama/llama-models>: models/llama3/args.py, model.py and tokenizer.py.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Bytes, Source};
use crate::error::{Error, Result};
use crate::json::{parse_object, quote, show};
use crate::torch::{self, TorchTensor};

/// The file of the folder that is made of others.
pub const MADE: &str = "config.json";
pub const PARAMS: &str = "params.json";

const EMBEDDING: &str = "tok_embeddings.weight";
pub const HEAD: &str = "output.weight";

/// The most files: Llama 3.1 405B has 16.
const MAX_PARTS: usize = 100;

/// Names for ids after those of tokenizer.model, and the first ones' that begin a text and end one.
const CONTROL_TOKENS: usize = 256;
const BEGIN_OF_TEXT: usize = 0;
const ENDS: [usize; 3] = [1, 8, 9];

/// What params.json may have: sizes and numbers by `transformers`' names, and what the rest follows from.
const SIZES: [(&str, &str); 3] =
    [("dim", "hidden_size"), ("n_layers", "num_hidden_layers"), ("n_heads", "num_attention_heads")];
const NUMBERS: [(&str, &str); 2] = [("norm_eps", "rms_norm_eps"), ("rope_theta", "rope_theta")];
const OTHERS: [&str; 7] = [
    "n_kv_heads",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "use_scaled_rope",
    "max_batch_size",
    "max_seq_len",
];

/// A model of Meta's, its files of weights mapped and their lists of tensors read.
#[derive(Debug)]
pub struct MetaModel {
    directory: PathBuf,
    parts: Vec<MetaPart>,
}

/// A rank's weights.
#[derive(Debug)]
pub struct MetaPart {
    /// For messages.
    pub path: String,
    pub bytes: Bytes,
    pub tensors: Vec<TorchTensor>,
}

impl PartialEq for MetaModel {
    fn eq(&self, other: &Self) -> bool {
        self.directory == other.directory
    }
}

impl Eq for MetaModel {}

impl MetaModel {
    /// The model in a directory with files of these names, if it is one of Meta's, without a config.json.
    ///
    /// # Errors
    /// A file that is missing, or is not one of `torch.save`.
    pub fn open(directory: &Path, names: &[String]) -> Result<Option<Self>> {
        let number = |name: &String| {
            name.strip_prefix("consolidated.")?.strip_suffix(".pth")?.parse::<usize>().ok()
        };
        let last = names.iter().filter_map(number).max();
        let has = |name: &str| names.iter().any(|other| other == name);
        let Some(last) = last.filter(|_| has(PARAMS) && !has(MADE)) else {
            return Ok(None);
        };
        let source = Source::Directory(directory.to_owned());
        if last >= MAX_PARTS {
            return Err(Error::failed(format!("{source}: there is no part {last} of a model")));
        }
        let part = |number: usize| {
            let name = format!("consolidated.{number:02}.pth");
            if !source.has(&name) {
                let path = source.path(&name);
                return Err(Error::failed(format!("{path}: no such file, of {}", last + 1)));
            }
            let (path, bytes) = (source.path(&name), source.map(&name)?);
            let tensors = torch::parse(&bytes);
            let tensors = tensors.map_err(|what| Error::failed(format!("{path}: {what}")))?;
            Ok(MetaPart { path, bytes, tensors })
        };
        let parts = (0..=last).map(part).collect::<Result<_>>()?;
        Ok(Some(Self { directory: directory.to_owned(), parts }))
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn parts(&self) -> &[MetaPart] {
        &self.parts
    }

    /// Whether the LM head is the embedding.
    pub fn is_tied(&self) -> bool {
        self.parts.iter().all(|part| match (part.tensor(HEAD), part.tensor(EMBEDDING)) {
            (Some(head), Some(embedding)) => head.is_same(embedding),
            (head, _) => head.is_none(),
        })
    }

    /// The config.json.
    ///
    /// # Errors
    /// No params.json of a Llama.
    pub fn config(&self) -> Result<Vec<u8>> {
        let source = Source::Directory(self.directory.clone());
        let wrong = |what: String| Error::failed(format!("{}: {what}", source.path(PARAMS)));
        let params = source.read(PARAMS)?.ok_or_else(|| source.missing(PARAMS))?;
        let params = parse_object(&params).map_err(wrong)?;
        let mut config = self.config_of(&params).map_err(wrong)?;
        let ranks = source.read("tokenizer.model")?.as_deref().map_or(0, lines);
        if config["vocab_size"] == json!(ranks + CONTROL_TOKENS) {
            config["bos_token_id"] = json!(ranks + BEGIN_OF_TEXT);
            config["eos_token_id"] = json!(ENDS.map(|end| ranks + end));
        }
        Ok(config.to_string().into_bytes())
    }

    fn config_of(&self, params: &Map<String, Value>) -> std::result::Result<Value, String> {
        let known = |key: &str| {
            OTHERS.contains(&key) || SIZES.iter().chain(&NUMBERS).any(|(name, _)| *name == key)
        };
        if let Some((key, value)) = params.iter().find(|(key, _)| !known(key)) {
            return Err(format!("{key} is {}: not supported", show(value)));
        }
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "tie_word_embeddings": self.is_tied(),
        });
        for (key, name) in SIZES {
            config[name] = json!(required(key, size(params, key)?)?);
        }
        for (key, name) in NUMBERS {
            config[name] = json!(required(key, number(params, key)?)?);
        }
        let [width, heads] = ["dim", "n_heads"].map(|key| params[key].as_u64().unwrap_or_default());
        config["num_key_value_heads"] = json!(size(params, "n_kv_heads")?.unwrap_or(heads));
        config["intermediate_size"] = json!(ffn(params, width)?);
        config["vocab_size"] = match params.get("vocab_size").and_then(Value::as_i64) {
            // Llama 2's say -1.
            Some(-1) => json!(self.vocab(width).ok_or_else(|| format!("no {EMBEDDING}"))?),
            _ => json!(required("vocab_size", size(params, "vocab_size")?)?),
        };
        let scaled = match params.get("use_scaled_rope") {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Bool(true)) => true,
            Some(other) => return Err(format!("use_scaled_rope is {}", show(other))),
        };
        config["max_position_embeddings"] = json!(if scaled { 131_072 } else { 8192 });
        if scaled {
            // params.json does not say it: of Llama 3.2's text models, which are those with tied embeddings,
            // `transformers` has 32.
            config["rope_scaling"] = json!({
                "rope_type": "llama3",
                "factor": if self.is_tied() { 32.0 } else { 8.0 },
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            });
        }
        Ok(config)
    }

    /// Tokens of the vocabulary, by the embedding: parts of it have some of its rows or, of Llama 2, columns.
    fn vocab(&self, width: u64) -> Option<usize> {
        let &[rows, cols] = &self.parts[0].tensor(EMBEDDING)?.shape[..] else { return None };
        Some(if cols as u64 == width { rows * self.parts.len() } else { rows })
    }
}

impl MetaPart {
    fn tensor(&self, name: &str) -> Option<&TorchTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// Lines that are not empty.
fn lines(file: &[u8]) -> usize {
    file.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count()
}

/// Width of the feed-forward network, as model.py computes it.
fn ffn(params: &Map<String, Value>, width: u64) -> std::result::Result<u64, String> {
    let multiple = required("multiple_of", size(params, "multiple_of")?)?;
    let factor = number(params, "ffn_dim_multiplier")?.unwrap_or(1.0);
    let ffn = (factor * (8 * width / 3) as f64) as u64;
    Ok(ffn.div_ceil(multiple) * multiple)
}

fn required<T>(key: &str, value: Option<T>) -> std::result::Result<T, String> {
    value.ok_or_else(|| format!("{} is missing: it must be given, it is never guessed", quote(key)))
}

/// A size, which no Llama has larger.
fn size(params: &Map<String, Value>, key: &str) -> std::result::Result<Option<u64>, String> {
    checked(params, key, |value| value.as_u64().filter(|size| (1..1 << 24).contains(size)))
}

fn number(params: &Map<String, Value>, key: &str) -> std::result::Result<Option<f64>, String> {
    checked(params, key, |value| value.as_f64().filter(|number| (0.0..1e9).contains(number)))
}

fn checked<T>(
    params: &Map<String, Value>,
    key: &str,
    check: impl Fn(&Value) -> Option<T>,
) -> std::result::Result<Option<T>, String> {
    let value = params.get(key).filter(|value| !value.is_null());
    let wrong = |value: &Value| format!("{key} is {}: out of range", show(value));
    value.map(|value| check(value).ok_or_else(|| wrong(value))).transpose()
}
