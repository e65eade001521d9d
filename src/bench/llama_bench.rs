//! A row as llama.cpp's llama-bench writes it, so that tools which read its rows read ours: its
//! fields, by their names, types and meanings as of build 0.3.36 of llama-cpp-python. What Chaski
//! has no choice about is as in a llama-bench that does the same.

use serde_json::{Value as Json, json};

use super::format::Row;
use super::measure::Repetition;
use super::row::{deviation, mean};
use super::test::{Test, TestKind};
use crate::config::Config;
use crate::encoding::{Blocks, Encoding, Float};
use crate::gguf::{Gguf, Value};

/// What all tests of a run have in common.
pub struct Run<'a> {
    pub config: &'a Config,
    pub model: String,
    /// As llama.cpp calls the type of the weights: [`weights_type`].
    pub weights: String,
    pub cache: Float,
    pub weight_bytes: usize,
    pub parameters: usize,
    pub chunk: usize,
    pub threads: usize,
    pub cpu: String,
    /// Their names and numbers; none: the CPU runs it.
    pub gpus: Vec<(String, u32)>,
    /// Ranks of a stage, and stages.
    pub split: (usize, usize),
    /// The CPU reads weights where the file is mapped.
    pub is_mapped: bool,
}

impl Run<'_> {
    /// The fields that say what runs where.
    pub fn fields(&self) -> Row {
        let Self { config, cache, chunk, gpus, .. } = self;
        let names: Vec<&str> = gpus.iter().map(|(name, _)| name.as_str()).collect();
        let numbers: Vec<String> = gpus.iter().map(|(_, number)| format!("CUDA{number}")).collect();
        let on_cpu = gpus.is_empty();
        let cache = cache.name().to_lowercase();
        let Json::Object(row) = json!({
            "build_commit": env!("CHASKI_COMMIT"),
            "build_number": env!("CHASKI_BUILD_NUMBER").parse::<u64>().unwrap_or(0),
            "cpu_info": self.cpu,
            "gpu_info": names.join(", "),
            "backends": if on_cpu { "CPU" } else { "CUDA" },
            "model_filename": self.model,
            "model_type": format!("llama {} {}", size(config), self.weights),
            "model_size": self.weight_bytes,
            "model_n_params": self.parameters,
            "n_batch": chunk,
            "n_ubatch": chunk,
            "n_threads": self.threads,
            "cpu_mask": "0x0",
            "cpu_strict": false,
            "poll": 0,
            "type_k": cache,
            "type_v": cache,
            // All of them, or none.
            "n_gpu_layers": if on_cpu { 0 } else { -1 },
            "n_cpu_moe": 0,
            "split_mode": match self.split {
                (2.., _) => "tensor",
                (_, 2..) => "layer",
                _ => "none",
            },
            "main_gpu": gpus.first().map_or(0, |(_, number)| *number),
            "no_kv_offload": false,
            "flash_attn": 1,
            "devices": if on_cpu { "none".to_owned() } else { numbers.join("/") },
            "tensor_split": "0.00",
            "tensor_buft_overrides": "none",
            "load_mode": if self.is_mapped { "mmap" } else { "none" },
            "lazy_mode": "off",
            "use_mmap": self.is_mapped, // what load_mode was before
            "embeddings": false,
            "no_op_offload": 0,
            "no_host": false,
            "repack": false,
            "fit_target": 0,
            "fit_min_ctx": 0,
        }) else {
            unreachable!("json! of braces is an object");
        };
        row
    }
}

/// The fields that say what was measured. The real loop is, in llama-bench's terms, a generation of
/// all tokens but the first after its prompt.
pub fn measured(test: &Test, samples: &[Repetition]) -> Row {
    let (prompt, generate, depth) = match test.kind {
        TestKind::Loop => (0, test.tokens(), test.depth + test.prompt),
        _ => (test.prompt, test.generate, test.depth),
    };
    let times: Vec<f64> = samples.iter().map(|sample| (1e9 * sample.time).round()).collect();
    let whole = |ns: f64| ns as u64;
    let now = jiff::Timestamp::now().strftime("%FT%TZ").to_string();
    let Json::Object(row) = json!({
        "n_prompt": prompt,
        "n_gen": generate,
        "n_depth": depth,
        "test_time": now,
        "avg_ns": whole(mean(&times)),
        "stddev_ns": whole(deviation(&times)),
        "samples_ns": times.iter().copied().map(whole).collect::<Vec<_>>(),
    }) else {
        unreachable!("json! of braces is an object");
    };
    row
}

/// llama.cpp's name of a model's size: it tells Llamas apart by their layers.
fn size(config: &Config) -> &'static str {
    match config.layers {
        16 | 22 => "1B",
        26 | 28 => "3B",
        30 => "256M",
        32 if config.vocab == 49_152 => "3B",
        32 if config.vocab < 40_000 => "7B",
        32 | 36 => "8B",
        40 => "13B",
        48 => "34B",
        60 => "30B",
        80 if config.heads == config.kv_heads => "65B",
        80 => "70B",
        126 => "405B",
        _ => "?B",
    }
}

/// llama.cpp's name of what weights are mostly in (llama-model-loader.cpp, `llama_model_ftype_name`): a
/// `file` of its own says it, else it is the type of most bytes.
pub fn weights_type(file: Option<&Gguf>, encoding: Encoding) -> String {
    let Some(file) = file else { return name_of(encoding).to_owned() };
    match file.get("general.file_type").and_then(Value::as_u64) {
        Some(0) => "all F32",
        Some(1) => "F16",
        Some(2) => "Q4_0",
        Some(3) => "Q4_1",
        Some(7) => "Q8_0",
        Some(8) => "Q5_0",
        Some(9) => "Q5_1",
        Some(14) => "Q4_K - Small",
        Some(15) => "Q4_K - Medium",
        Some(16) => "Q5_K - Small",
        Some(17) => "Q5_K - Medium",
        Some(18) => "Q6_K",
        Some(32) => "BF16",
        Some(_) => "unknown, may not work",
        None => return format!("(guessed) {}", name_of(encoding)),
    }
    .to_owned()
}

/// That of a file of which nothing is known but what most of it is in.
fn name_of(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Plain(Float::F32) => "all F32",
        Encoding::Blocks(Blocks::Q4K) => "Q4_K - Medium",
        Encoding::Blocks(Blocks::Q5K) => "Q5_K - Medium",
        other => other.name(),
    }
}
