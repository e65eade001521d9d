//! A model as a GGUF file that llama.cpp reads, from any source.

use std::path::Path;

use rayon::prelude::*;

use crate::chat::default_template;
use crate::checkpoint::{Checkpoint, Tensor, gguf_name, is_turned};
use crate::config::{Config, Rope, RopeScaling};
use crate::encoding::Encoding;
use crate::error::{Error, Result};
use crate::gguf::{NewTensor, NewValue, header};
use crate::json::quote;
use crate::source::{ROPE_DIVISORS, Source};
use crate::tokenizer::Tokenizer;

/// Bytes that are read, or made, before they are written.
const PIECE_BYTES: usize = 32 << 20;

/// A file that is to be written.
pub struct GgufExport<'a> {
    checkpoint: &'a Checkpoint,
    head_dim: usize,
    keys: Vec<(String, NewValue)>,
    tensors: Vec<(NewTensor, Content<'a>)>,
}

/// What a tensor's bytes are.
enum Content<'a> {
    Numbers(Vec<f32>),
    /// Those of a vector, in f32.
    Vector(&'a Tensor),
    /// A matrix as it is read; of queries and keys each head's rows i and i + D/2 side by side.
    Matrix(&'a Tensor, bool),
}

impl<'a> GgufExport<'a> {
    /// Of the weights in `checkpoint`, perhaps quantised, and what else `source` has. `file_type`:
    /// llama.cpp's number of what most matrices are (llama.h, `llama_ftype`).
    ///
    /// # Errors
    /// What the format has no place for.
    pub fn new(
        source: &Source,
        config: &'a Config,
        checkpoint: &'a Checkpoint,
        file_type: u32,
    ) -> Result<Self> {
        let wrong = |what: &str| Error::failed(format!("{source}: {what}"));
        let mut keys = keys(source, config, file_type);
        let mut tensors = Vec::new();
        match &config.rope.scaling {
            None | Some(RopeScaling::Llama3(_)) => {}
            Some(RopeScaling::Linear { factor }) => {
                let kind = NewValue::Text("linear".to_owned());
                keys.push(("llama.rope.scaling.type".to_owned(), kind));
                let factor = NewValue::F32(*factor as f32);
                keys.push(("llama.rope.scaling.factor".to_owned(), factor));
            }
            Some(RopeScaling::Dynamic { .. } | RopeScaling::Yarn(_)) => {
                return Err(wrong("dynamic and yarn scaling of RoPE are not written to GGUF"));
            }
        }
        keys.extend(Tokenizer::gguf_keys(source, config)?);
        if let Some(template) = default_template(source)? {
            keys.push(("tokenizer.chat_template".to_owned(), NewValue::Text(template)));
        }
        if let Some(divisors) = divisors(&config.rope, config.head_dim) {
            let (shape, bytes) = (vec![divisors.len()], 4 * divisors.len());
            let tensor = NewTensor { name: ROPE_DIVISORS.to_owned(), kind: "F32", shape, bytes };
            tensors.push((tensor, Content::Numbers(divisors)));
        }
        for (name, tensor) in checkpoint.tensors() {
            let theirs = gguf_name(name);
            let theirs =
                theirs.ok_or_else(|| wrong(&format!("no tensor of GGUF's is {}", quote(name))))?;
            let (kind, bytes, content) = match tensor.shape.len() {
                1 => ("F32", 4 * tensor.len(), Content::Vector(tensor)),
                _ => {
                    (tensor.encoding.name(), tensor.bytes, Content::Matrix(tensor, is_turned(name)))
                }
            };
            let tensor = NewTensor { name: theirs, kind, shape: tensor.shape.clone(), bytes };
            tensors.push((tensor, content));
        }
        Ok(Self { checkpoint, head_dim: config.head_dim, keys, tensors })
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> usize {
        self.tensors.iter().map(|(tensor, _)| tensor.padded_bytes()).sum()
    }

    /// Gives `write` the file, piece by piece, of which the first one is all that stands before the tensors.
    ///
    /// # Errors
    /// What cannot be read, or made; what `write` says.
    pub fn write(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let tensors: Vec<_> = self.tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
        write(&header(&self.keys, &tensors))?;
        for (tensor, content) in &self.tensors {
            match content {
                Content::Numbers(numbers) => write(bytemuck::cast_slice(numbers))?,
                Content::Vector(vector) => {
                    let numbers = self.checkpoint.numbers(vector, 0..vector.len())?;
                    write(bytemuck::cast_slice(&numbers))?;
                }
                Content::Matrix(matrix, turned) => self.write_matrix(matrix, *turned, write)?,
            }
            write(&vec![0; tensor.padded_bytes() - tensor.bytes])?;
        }
        Ok(())
    }

    fn write_matrix(
        &self,
        matrix: &Tensor,
        turned: bool,
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let rows = matrix.shape[0];
        let row_bytes = matrix.bytes / rows;
        let at_once = (PIECE_BYTES / row_bytes / self.head_dim).max(1) * self.head_dim;
        // Of words, for their alignment.
        let mut buffer = vec![0u64; (at_once.min(rows) * row_bytes).div_ceil(8)];
        let buffer: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer);
        for first in (0..rows).step_by(at_once) {
            let piece = &mut buffer[..at_once.min(rows - first) * row_bytes];
            let each = piece.par_chunks_mut(row_bytes).enumerate();
            each.try_for_each(|(row, bytes)| {
                let row = first + row;
                let row = if turned { self.turned(row) } else { row };
                self.checkpoint.read(matrix.offset + row * row_bytes, bytes)
            })?;
            write(piece)?;
        }
        Ok(())
    }

    /// Which row of queries or keys stands at this place of the file.
    fn turned(&self, place: usize) -> usize {
        let (head, row) = (place / self.head_dim, place % self.head_dim);
        head * self.head_dim + row % 2 * (self.head_dim / 2) + row / 2
    }
}

/// What a model looks like.
fn keys(source: &Source, config: &Config, file_type: u32) -> Vec<(String, NewValue)> {
    let name = source.to_string();
    let name = Path::new(&name)
        .file_stem()
        .map_or(name.clone(), |stem| stem.to_string_lossy().into_owned());
    let mut keys = vec![
        ("general.architecture".to_owned(), NewValue::Text("llama".to_owned())),
        ("general.name".to_owned(), NewValue::Text(name)),
        ("general.file_type".to_owned(), NewValue::U32(file_type)),
        ("general.quantization_version".to_owned(), NewValue::U32(2)),
    ];
    for (key, size) in [
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
        keys.push((format!("llama.{key}"), NewValue::U32(size as u32)));
    }
    for (key, number) in [
        ("attention.layer_norm_rms_epsilon", config.norm_eps),
        ("rope.freq_base", config.rope.theta as f32),
    ] {
        keys.push((format!("llama.{key}"), NewValue::F32(number)));
    }
    keys
}

/// What frequencies are divided by, if they are. `[D/2]`
fn divisors(rope: &Rope, head_dim: usize) -> Option<Vec<f32>> {
    if !matches!(rope.scaling, Some(RopeScaling::Llama3(_))) {
        return (!rope.divisors.is_empty()).then(|| rope.divisors.clone());
    }
    let plain = Rope { scaling: None, divisors: Vec::new(), ..rope.clone() };
    let pairs = plain.frequencies(head_dim, 0).into_iter().zip(rope.frequencies(head_dim, 0));
    Some(pairs.map(|(plain, scaled)| divisor(plain, scaled)).collect())
}

/// By which `plain` divides to `scaled`: of the numbers next to the quotient the one that gives it to the
/// bit, if any does.
fn divisor(plain: f32, scaled: f32) -> f32 {
    let quotient = plain / scaled;
    let near = [quotient, quotient.next_up(), quotient.next_down()];
    near.into_iter().find(|divisor| plain / divisor == scaled).unwrap_or(quotient)
}

/// llama.cpp's number of a file whose matrices are mostly in this.
pub fn file_type(encoding: Encoding) -> Option<u32> {
    let known = [("F32", 0), ("F16", 1), ("Q4_0", 2), ("Q8_0", 7), ("BF16", 32)];
    known.into_iter().find(|(name, _)| *name == encoding.name()).map(|(_, number)| number)
}
