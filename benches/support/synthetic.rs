//! A checkpoint of random weights in the shape of Llama 3.2 1B, written once and kept.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use chaski::checkpoint::Dtype;
use chaski::for_dtype;
use chaski::source::Source;
use chaski::vector::Element;
use rayon::prelude::*;
use safetensors::tensor::{Dtype as FileDtype, View};
use serde_json::{Value, json};

/// The sizes of a model; all have 64 elements a head.
struct Shape {
    name: &'static str,
    /// C
    width: usize,
    /// L
    layers: usize,
    /// G; four query heads share one.
    kv_heads: usize,
    /// F
    ffn: usize,
    /// V
    vocab: usize,
}

const LLAMA_1B: Shape =
    Shape { name: "llama-3.2-1b", width: 2048, layers: 16, kv_heads: 8, ffn: 8192, vocab: 128_256 };

/// For runs that only prove that the benches work.
const CUT_DOWN: Shape =
    Shape { name: "cut-down", width: 256, layers: 1, kv_heads: 1, ffn: 512, vocab: 512 };

const HEAD_DIM: usize = 64;

/// Whether nothing is measured: criterion's own rule, `cargo test` or `--test`, and `--list`.
pub fn nothing_is_measured() -> bool {
    let given = |flag: &str| std::env::args().any(|argument| argument == flag);
    !given("--bench") || given("--test") || given("--list")
}

/// The type of the weights: `CHASKI_BENCH_DTYPE` is BF16 (also where it is not set), F16 or F32.
pub fn dtype() -> Dtype {
    let name = std::env::var("CHASKI_BENCH_DTYPE").unwrap_or_else(|_| "BF16".to_owned());
    Dtype::from_name(&name).expect("CHASKI_BENCH_DTYPE is BF16, F16 or F32")
}

/// The directory of the model to measure, written unless an earlier run has done it.
pub fn directory() -> PathBuf {
    let shape = if nothing_is_measured() { &CUT_DOWN } else { &LLAMA_1B };
    let name = format!("{}-{}", shape.name, dtype().name());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // The config is written last: where it is, the weights are whole.
    let (path, config) = (directory.join("config.json"), shape.config().to_string());
    if fs::read_to_string(&path).ok().as_ref() != Some(&config) {
        fs::create_dir_all(&directory).unwrap();
        safetensors::serialize_to_file(shape.tensors(), None, &directory.join(WEIGHTS)).unwrap();
        fs::write(&path, config).unwrap();
    }
    directory
}

/// The model to measure.
pub fn source() -> Source {
    Source::Directory(directory())
}

/// The file with all weights.
pub const WEIGHTS: &str = "model.safetensors";

impl Shape {
    /// config.json as it comes with Llama 3.2 1B.
    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.vocab - 256,
            "eos_token_id": [self.vocab - 255, self.vocab - 248, self.vocab - 247],
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "initializer_range": 0.02,
            "intermediate_size": self.ffn,
            "max_position_embeddings": 131_072,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.width / HEAD_DIM,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3"
            },
            "rope_theta": 500_000.0,
            "tie_word_embeddings": true,
            "use_cache": true,
            "vocab_size": self.vocab
        })
    }

    fn tensors(&self) -> Vec<(String, Random)> {
        let (c, f, kv_rows) = (self.width, self.ffn, self.kv_heads * HEAD_DIM);
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, c]),
            ("model.norm.weight".to_owned(), vec![c]),
        ];
        for layer in 0..self.layers {
            let parts = [
                ("input_layernorm", vec![c]),
                ("self_attn.q_proj", vec![c, c]),
                ("self_attn.k_proj", vec![kv_rows, c]),
                ("self_attn.v_proj", vec![kv_rows, c]),
                ("self_attn.o_proj", vec![c, c]),
                ("post_attention_layernorm", vec![c]),
                ("mlp.gate_proj", vec![f, c]),
                ("mlp.up_proj", vec![f, c]),
                ("mlp.down_proj", vec![c, f]),
            ];
            let named =
                parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape));
            shapes.extend(named);
        }
        let numbered = shapes.into_iter().enumerate();
        numbered
            .map(|(seed, (name, shape))| {
                (name, Random { dtype: dtype(), shape, seed: (seed as u64) << 32 })
            })
            .collect()
    }
}

/// A tensor whose elements are made when they are written: a matrix keeps the scale of its input, a
/// norm's weights are about 1.
struct Random {
    dtype: Dtype,
    shape: Vec<usize>,
    seed: u64,
}

impl View for Random {
    fn dtype(&self) -> FileDtype {
        match self.dtype {
            Dtype::Bf16 => FileDtype::BF16,
            Dtype::F16 => FileDtype::F16,
            Dtype::F32 => FileDtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        const TASK_ELEMENTS: usize = 1 << 16;
        let (centre, std) = match self.shape[..] {
            [_, cols] => (0.0, 1.0 / (cols as f32).sqrt()),
            _ => (1.0, 0.1),
        };
        let element_bytes = self.dtype.bytes();
        let mut bytes = vec![0; self.data_len()];
        let tasks = bytes.par_chunks_mut(TASK_ELEMENTS * element_bytes).enumerate();
        for_dtype!(self.dtype, E => tasks.for_each(|(task, bytes)| {
            let first = self.seed + (task * TASK_ELEMENTS) as u64;
            for (i, element) in (first..).zip(bytes.chunks_exact_mut(element_bytes)) {
                let value = E::narrow(centre + std * uniform(i));
                element.copy_from_slice(bytemuck::bytes_of(&value));
            }
        }));
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

/// The `i`-th of a stream of numbers with mean 0 and variance 1, evenly spread (SplitMix64: Steele
/// et al., 2014).
fn uniform(i: u64) -> f32 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    ((z >> 40) as f32 / (1 << 23) as f32 - 1.0) * 3f32.sqrt()
}
