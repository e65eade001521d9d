//! Models of random weights in the shapes of real ones: what they look like. `checkpoint` makes the
//! weights.

use serde_json::{Value, json};

use crate::encoding::Float;
use crate::error::{Error, Result, count, did_you_mean};

/// What the name of a synthetic model begins with.
const PREFIX: &str = "synthetic:";

/// A model in the shape of a known one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synthetic {
    pub shape: &'static Shape,
    /// L, up to the shape's own.
    pub layers: usize,
    /// The weights' type: BF16 or F16.
    pub dtype: Float,
    /// The weights are a function of it.
    pub seed: u64,
}

/// The sizes of a known model.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape {
    pub name: &'static str,
    /// C
    pub width: usize,
    /// L
    pub layers: usize,
    /// H
    pub heads: usize,
    /// G
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// F
    pub ffn: usize,
    /// V
    pub vocab: usize,
    pub context: usize,
    /// By how much the slow rotary frequencies are slowed down.
    rope_factor: Option<u32>,
    /// Whether the embedding is the LM head, too.
    pub tied: bool,
}

const LLAMA3_8B: Shape = Shape {
    name: "llama3-8b",
    width: 4096,
    layers: 32,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    ffn: 14336,
    vocab: 128_256,
    context: 8192,
    rope_factor: None,
    tied: false,
};

const LLAMA3_70B: Shape =
    Shape { name: "llama3-70b", width: 8192, layers: 80, heads: 64, ffn: 28672, ..LLAMA3_8B };

const LLAMA31_8B: Shape =
    Shape { name: "llama3.1-8b", context: 131_072, rope_factor: Some(8), ..LLAMA3_8B };

const LLAMA31_70B: Shape =
    Shape { name: "llama3.1-70b", context: 131_072, rope_factor: Some(8), ..LLAMA3_70B };

const LLAMA32_1B: Shape = Shape {
    name: "llama3.2-1b",
    width: 2048,
    layers: 16,
    head_dim: 64,
    ffn: 8192,
    rope_factor: Some(32),
    tied: true,
    ..LLAMA31_8B
};

const TINY: Shape = Shape {
    name: "tiny",
    width: 256,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    ffn: 512,
    vocab: 1024,
    context: 4096,
    ..LLAMA32_1B
};

/// All of them; the last two are for tests.
static SHAPES: [Shape; 10] = [
    LLAMA3_8B,
    LLAMA3_70B,
    LLAMA31_8B,
    LLAMA31_70B,
    Shape {
        name: "llama3.1-405b",
        width: 16384,
        layers: 126,
        heads: 128,
        ffn: 53248,
        ..LLAMA31_8B
    },
    LLAMA32_1B,
    Shape { name: "llama3.2-3b", width: 3072, layers: 28, heads: 24, head_dim: 128, ..LLAMA32_1B },
    Shape { name: "llama3.3-70b", ..LLAMA31_70B },
    TINY,
    Shape { name: "tiny-128", heads: 2, kv_heads: 1, head_dim: 128, ..TINY },
];

impl Synthetic {
    /// The model called `name`, as in `synthetic:llama3-8b`: whole, in BF16, of seed 0. `None` where
    /// that is no synthetic model's name.
    ///
    /// # Errors
    /// A shape that is not known.
    pub fn find(name: &str) -> Result<Option<Self>> {
        let Some(name) = name.strip_prefix(PREFIX) else {
            return Ok(None);
        };
        let Some(shape) = SHAPES.iter().find(|shape| shape.name == name) else {
            let known = SHAPES.each_ref().map(|shape| shape.name);
            let meant = did_you_mean(name, known);
            let known = known.join(", ");
            return Err(Error::failed(format!(
                "{PREFIX}{name}: the known shapes are {known}{meant}"
            )));
        };
        Ok(Some(Self { shape, layers: shape.layers, dtype: Float::Bf16, seed: 0 }))
    }

    /// With the first `layers` layers alone.
    ///
    /// # Errors
    /// When the model has fewer.
    pub fn cut(self, layers: usize) -> Result<Self> {
        match layers <= self.shape.layers {
            true => Ok(Self { layers, ..self }),
            false => Err(Error::usage(format!(
                "more layers were asked for than {} has: {layers}, and it has {}",
                self.shape.name, self.shape.layers
            ))),
        }
    }

    /// The model's small files.
    pub fn file(&self, file: &str) -> Option<Vec<u8>> {
        let text = match file {
            "config.json" => self.config(),
            "generation_config.json" => self.generation_config(),
            _ => return None,
        };
        Some(format!("{text:#}\n").into_bytes())
    }

    fn config(&self) -> Value {
        let shape = self.shape;
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos(),
            "eos_token_id": self.eos(),
            "head_dim": shape.head_dim,
            "hidden_act": "silu",
            "hidden_size": shape.width,
            "initializer_range": 0.02,
            "intermediate_size": shape.ffn,
            "max_position_embeddings": shape.context,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": shape.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": shape.kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": shape.rope_factor.map(|factor| json!({
                "factor": f64::from(factor),
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            })),
            "rope_theta": 500_000.0,
            "tie_word_embeddings": shape.tied,
            "torch_dtype": if self.dtype == Float::F16 { "float16" } else { "bfloat16" },
            "use_cache": true,
            "vocab_size": shape.vocab,
        })
    }

    /// Greedy unless the user says otherwise.
    fn generation_config(&self) -> Value {
        json!({ "bos_token_id": self.bos(), "eos_token_id": self.eos(), "do_sample": false })
    }

    /// Llama 3's control tokens are the last 256: 128000 begins a text.
    fn bos(&self) -> usize {
        self.shape.vocab - 256
    }

    /// 128001 ends a text.
    fn eos(&self) -> usize {
        self.shape.vocab - 255
    }
}

impl std::fmt::Display for Synthetic {
    /// `synthetic:llama3-8b`, or `synthetic:llama3-8b[2 layers]`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}", self.shape.name)?;
        match self.layers {
            all if all == self.shape.layers => Ok(()),
            layers => write!(f, "[{}]", count(layers, "layer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_layers_are_checked() {
        assert_eq!(Synthetic::find("llama3-8b"), Ok(None));
        let unknown = Synthetic::find("synthetic:llama9").unwrap_err().to_string();
        assert!(unknown.contains("llama3-8b, ") && unknown.contains("tiny"), "{unknown}");
        let synthetic = Synthetic::find("synthetic:llama3.2-1b").unwrap().unwrap();
        assert_eq!(synthetic.to_string(), "synthetic:llama3.2-1b");
        assert_eq!(synthetic.cut(2).unwrap().to_string(), "synthetic:llama3.2-1b[2 layers]");
        assert!(synthetic.cut(17).unwrap_err().to_string().contains("has 16"));
    }
}
