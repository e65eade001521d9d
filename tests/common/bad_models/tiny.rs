//! A tiny Llama written file by file, so that a test can spoil any byte of it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

pub const CONFIG: &str = "config.json";
pub const GENERATION: &str = "generation_config.json";
pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
pub const SHARDS: [&str; 2] =
    ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// One tensor of a safetensors header; offsets are into the data.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub start: usize,
    pub end: usize,
}

/// A tiny Llama: L=1, C=16, H=2, G=1, D=8, F=16, V=32, tied.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": [2],
    })
}

pub fn weights() -> Vec<(String, Vec<usize>)> {
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    vec![
        ("model.embed_tokens.weight".to_owned(), vec![32, 16]),
        (layer("input_layernorm"), vec![16]),
        (layer("self_attn.q_proj"), vec![16, 16]),
        (layer("self_attn.k_proj"), vec![8, 16]),
        (layer("self_attn.v_proj"), vec![8, 16]),
        (layer("self_attn.o_proj"), vec![16, 16]),
        (layer("post_attention_layernorm"), vec![16]),
        (layer("mlp.gate_proj"), vec![16, 16]),
        (layer("mlp.up_proj"), vec![16, 16]),
        (layer("mlp.down_proj"), vec![16, 16]),
        ("model.norm.weight".to_owned(), vec![16]),
    ]
}

/// `weights` laid end to end as BF16.
pub fn entries(weights: &[(String, Vec<usize>)]) -> Vec<Entry> {
    let mut end = 0;
    let entry = |(name, shape): &(String, Vec<usize>)| {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        Entry { name: name.clone(), dtype: "BF16", shape: shape.clone(), start, end }
    };
    weights.iter().map(entry).collect()
}

pub fn header(entries: &[Entry]) -> String {
    let entry = |Entry { name, dtype, shape, start, end }: &Entry| {
        let info = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        format!("{}:{info}", Value::from(name.as_str()))
    };
    format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","))
}

/// A file of this header, padded to 8 bytes, and `data_bytes` of data.
pub fn safetensors(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut header = header.as_bytes().to_vec();
    header.resize(header.len().next_multiple_of(8), b' ');
    file(&header, data_bytes)
}

pub fn file(header: &[u8], data_bytes: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header, &vec![0; data_bytes]].concat()
}

pub fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    fs::write(folder.join(name), bytes).expect("the model's folder can be written");
}

pub fn write_part(folder: &Path, name: &str, weights: &[(String, Vec<usize>)]) {
    let entries = entries(weights);
    write(folder, name, safetensors(&header(&entries), entries.last().expect("an entry").end));
}

/// The good model in one file.
pub fn write_good(folder: &Path) {
    write(folder, CONFIG, config().to_string());
    write_part(folder, SINGLE, &weights());
}

/// The good model in two files and an index.
pub fn write_sharded(folder: &Path) {
    write(folder, CONFIG, config().to_string());
    let weights = weights();
    let (first, second) = weights.split_at(5);
    write_part(folder, SHARDS[0], first);
    write_part(folder, SHARDS[1], second);
    let mut weight_map = serde_json::Map::new();
    for (part, shard) in [first, second].into_iter().zip(SHARDS) {
        weight_map.extend(part.iter().map(|(name, _)| (name.clone(), Value::from(shard))));
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": weight_map });
    write(folder, INDEX, index.to_string());
}

pub fn write_config_with(folder: &Path, key: &str, value: Option<&str>) {
    let mut config = config();
    config.as_object_mut().expect("an object").remove(key);
    let text = config.to_string();
    let text = match value {
        Some(value) => text.replacen('{', &format!("{{{}:{value},", Value::from(key)), 1),
        None => text,
    };
    write(folder, CONFIG, text);
}
