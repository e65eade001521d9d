//! GGUF files, written by the format's description.

use std::path::Path;

use chaski::checkpoint::Checkpoint;
use chaski::config::Config;
use chaski::source::Source;

/// A value and its type's number.
#[derive(Clone)]
pub struct Value(u32, Vec<u8>);

pub fn u32(number: u32) -> Value {
    Value(4, number.to_le_bytes().to_vec())
}

pub fn f32(number: f32) -> Value {
    Value(6, number.to_le_bytes().to_vec())
}

pub fn truth(is: bool) -> Value {
    Value(7, vec![u8::from(is)])
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

pub fn text(text: &str) -> Value {
    Value(8, string(text))
}

/// A list of values of one type.
pub fn list(kind: u32, values: impl IntoIterator<Item = Value>) -> Value {
    let values: Vec<Value> = values.into_iter().collect();
    let mut bytes = [kind.to_le_bytes().to_vec(), (values.len() as u64).to_le_bytes().to_vec()];
    bytes[1].extend(values.into_iter().flat_map(|value| value.1));
    Value(9, bytes.concat())
}

pub fn texts(all: &[&str]) -> Value {
    list(8, all.iter().map(|one| text(one)))
}

/// A file in the making.
#[derive(Clone)]
pub struct Gguf {
    pub version: u32,
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
    /// What is said of the numbers of tensors and keys, where that is not the truth.
    pub counts: [Option<u64>; 2],
}

/// ggml's number of the type; the shape as GGUF has it, fastest first; what is said of the offset, where that
/// is not the truth.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub kind: u32,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
    pub offset: Option<u64>,
}

impl Gguf {
    /// Without tokens: ids alone.
    pub fn of_ids() -> Self {
        let keys =
            [("general.architecture", text("llama")), ("tokenizer.ggml.model", text("no_vocab"))];
        let keys = keys.map(|(key, value)| (key.to_owned(), value)).to_vec();
        Self { version: 3, keys, tensors: Vec::new(), counts: [None; 2] }
    }

    /// What a folder of safetensors says, its rows of queries and keys in llama.cpp's order, as
    /// `convert_hf_to_gguf.py` writes it. Vectors become f32.
    pub fn of_folder(folder: &Path) -> Self {
        let source = Source::Directory(folder.to_owned());
        let (config, checkpoint) =
            (Config::load(&source).unwrap(), Checkpoint::open(&source).unwrap());
        let mut gguf = Self::of_ids();
        for (key, number) in [
            ("context_length", config.max_context),
            ("embedding_length", config.width),
            ("block_count", config.layers),
            ("feed_forward_length", config.ffn),
            ("attention.head_count", config.heads),
            ("attention.head_count_kv", config.kv_heads),
            ("attention.key_length", config.head_dim),
            ("attention.value_length", config.head_dim),
            ("rope.dimension_count", config.head_dim),
            ("vocab_size", config.vocab),
        ] {
            gguf.set(&format!("llama.{key}"), u32(number as u32));
        }
        gguf.set("llama.attention.layer_norm_rms_epsilon", f32(config.norm_eps));
        gguf.set("llama.rope.freq_base", f32(config.rope.theta as f32));
        for (name, tensor) in checkpoint.tensors() {
            let bytes = checkpoint.bytes(tensor.offset, tensor.bytes).to_vec();
            let kind = match tensor.encoding.name() {
                "F32" => 0,
                "F16" => 1,
                _ => 30,
            };
            let (kind, bytes) = match tensor.shape.len() {
                1 => (0, widened(kind, &bytes)),
                _ => (kind, bytes),
            };
            let row_bytes = bytes.len() / tensor.shape[0];
            let is_turned = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
            let bytes = if is_turned { turned(&bytes, row_bytes, config.head_dim) } else { bytes };
            let shape = tensor.shape.iter().rev().map(|size| *size as u64).collect();
            gguf.tensors.push(Tensor { name: theirs(name), kind, shape, bytes, offset: None });
        }
        gguf
    }

    /// Adds a key, or gives it another value.
    pub fn set(&mut self, key: &str, value: Value) {
        self.keys.retain(|(other, _)| other != key);
        self.keys.push((key.to_owned(), value));
    }

    /// The same in two files, of which the first one has the keys.
    pub fn parts(mut self) -> [Self; 2] {
        let mut second = Self { keys: Vec::new(), ..self.clone() };
        second.tensors = self.tensors.split_off(5);
        for (number, part) in [&mut self, &mut second].into_iter().enumerate() {
            part.set("split.no", u32(number as u32));
            part.set("split.count", u32(2));
        }
        [self, second]
    }

    pub fn bytes(&self) -> Vec<u8> {
        let [tensors, keys] = self.counts;
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, Value(kind, bytes)) in &self.keys {
            file.extend([&string(key)[..], &kind.to_le_bytes(), bytes].concat());
        }
        let mut data = Vec::new();
        for Tensor { name, kind, shape, bytes, offset } in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            file.extend(string(name));
            file.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|size| file.extend(size.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend(offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        file
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}

/// f16 or bf16 as f32.
fn widened(kind: u32, bytes: &[u8]) -> Vec<u8> {
    let wide = |bits: &[u8; 2]| match kind {
        1 => half::f16::from_le_bytes(*bits).to_f32(),
        _ => half::bf16::from_le_bytes(*bits).to_f32(),
    };
    match kind {
        0 => bytes.to_vec(),
        _ => bytes.as_chunks().0.iter().flat_map(|bits| wide(bits).to_le_bytes()).collect(),
    }
}

/// Rows i and i + D/2 of each head become 2i and 2i + 1.
fn turned(bytes: &[u8], row_bytes: usize, head_dim: usize) -> Vec<u8> {
    let rows: Vec<&[u8]> = bytes.chunks(row_bytes).collect();
    let of_head = |head: &[&[u8]]| -> Vec<u8> {
        let (low, high) = head.split_at(head_dim / 2);
        low.iter().zip(high).flat_map(|(low, high)| [*low, *high].concat()).collect()
    };
    rows.chunks(head_dim).flat_map(of_head).collect()
}

/// llama.cpp's name of a tensor.
fn theirs(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (ours, theirs) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(ours, theirs);
    }
    name
}
