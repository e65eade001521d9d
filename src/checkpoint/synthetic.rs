//! Random weights, every element a function of seed, tensor and index: whoever makes them, wherever
//! and in whatever order, gets the same bits.

use bytemuck::Pod;
use half::{bf16, f16};
use memmap2::MmapMut;
use rayon::prelude::*;

use super::Tensor;
use crate::encoding::Float;
use crate::error::{Error, Result};
use crate::random::philox;
use crate::source::{Bytes, Synthetic};

/// Elements that one draw of random numbers yields: 16 bits each.
pub const PIECE: usize = 8;

/// Bytes that a thread makes at once.
const TASK_BYTES: usize = 1 << 20;

/// Every tensor begins at a multiple of this, as if it were a file of its own.
const ALIGN_BYTES: usize = 64;

/// How the elements of one tensor are made: evenly spread around `centre`. Element `8 p + e` is
/// `centre + scale (n + 1/2)`, where n is the e-th signed 16-bit number of Philox's output for the
/// counter (p, tensor) and the key `seed`; rounded to nearest even once by each operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    pub dtype: Float,
    pub seed: u64,
    /// The same for tensors of the same name, however many layers there are.
    pub tensor: u32,
    pub centre: f32,
    pub scale: f32,
}

impl Recipe {
    /// A matrix keeps the scale of its input: variance 1 / fan-in. The weights of a norm are about 1,
    /// with a standard deviation of 0.1.
    fn new(dtype: Float, seed: u64, tensor: u32, shape: &[usize]) -> Self {
        let (centre, deviation) = match shape {
            [_, fan_in] => (0.0, 1.0 / (*fan_in as f64).sqrt()),
            _ => (1.0, 0.1),
        };
        Self { dtype, seed, tensor, centre, scale: Self::scale(deviation) }
    }

    /// Mean 0, variance 1.
    pub fn standard(dtype: Float, seed: u64, tensor: u32) -> Self {
        Self { dtype, seed, tensor, centre: 0.0, scale: Self::scale(1.0) }
    }

    /// An even spread over (-a, a) has the deviation a / sqrt(3).
    fn scale(deviation: f64) -> f32 {
        (deviation * 3f64.sqrt() / 32768.0) as f32
    }

    /// Makes the elements from `first` on, which is a multiple of [`PIECE`].
    pub fn fill(&self, first: usize, bytes: &mut [u8]) {
        let tasks = bytes.par_chunks_mut(TASK_BYTES).enumerate();
        tasks.for_each(|(task, bytes)| {
            self.fill_alone(first + task * TASK_BYTES / self.dtype.bytes(), bytes);
        });
    }

    /// As [`Self::fill`], without other threads.
    pub fn fill_alone(&self, first: usize, bytes: &mut [u8]) {
        match self.dtype {
            Float::Bf16 => self.elements(first, bytes, bf16::from_f32),
            Float::F16 => self.elements(first, bytes, f16::from_f32),
            Float::F32 => self.elements(first, bytes, |value| value),
        }
    }

    fn elements<E: Pod>(&self, first: usize, bytes: &mut [u8], narrow: impl Fn(f32) -> E) {
        assert!(first.is_multiple_of(PIECE), "element {first} is inside a piece");
        let halves = |number: u64| [number as u32, (number >> 32) as u32];
        let elements: &mut [E] = bytemuck::cast_slice_mut(bytes);
        for (piece, elements) in ((first / PIECE) as u64..).zip(elements.chunks_mut(PIECE)) {
            let [low, high] = halves(piece);
            let random = philox([low, high, self.tensor, 0], halves(self.seed));
            for (e, element) in elements.iter_mut().enumerate() {
                let number = (random[e / 2] >> (16 * (e % 2))) as i16;
                *element = narrow((f32::from(number) + 0.5) * self.scale + self.centre);
            }
        }
    }
}

/// The tensors of a synthetic model laid end to end, and how each is made.
pub fn tensors(model: &Synthetic) -> Vec<(String, Tensor, Recipe)> {
    let Synthetic { shape, dtype, .. } = *model;
    let (c, f, v) = (shape.width, shape.ffn, shape.vocab);
    let (q_rows, kv_rows) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let layer = [
        ("input_layernorm", vec![c]),
        ("self_attn.q_proj", vec![q_rows, c]),
        ("self_attn.k_proj", vec![kv_rows, c]),
        ("self_attn.v_proj", vec![kv_rows, c]),
        ("self_attn.o_proj", vec![c, q_rows]),
        ("post_attention_layernorm", vec![c]),
        ("mlp.gate_proj", vec![f, c]),
        ("mlp.up_proj", vec![f, c]),
        ("mlp.down_proj", vec![c, f]),
    ];
    let mut named = vec![("model.embed_tokens".to_owned(), 0, vec![v, c])];
    for l in 0..model.layers {
        named.extend(layer.iter().enumerate().map(|(part, (name, shape))| {
            let tensor = (3 + layer.len() * l + part) as u32;
            (format!("model.layers.{l}.{name}"), tensor, shape.clone())
        }));
    }
    named.push(("model.norm".to_owned(), 1, vec![c]));
    if !shape.tied {
        named.push(("lm_head".to_owned(), 2, vec![v, c]));
    }
    let mut end = 0usize;
    let place = |(name, number, shape): (String, u32, Vec<usize>)| {
        let bytes = shape.iter().product::<usize>() * dtype.bytes();
        let offset = end.next_multiple_of(ALIGN_BYTES);
        end = offset + bytes;
        let recipe = Recipe::new(dtype, model.seed, number, &shape);
        let encoding = dtype.into();
        (format!("{name}.weight"), Tensor { encoding, shape, offset, bytes }, recipe)
    };
    named.into_iter().map(place).collect()
}

/// A region of `bytes` bytes, of which `fill` makes each of `parts`, the bytes from an offset on.
pub fn make<'a>(
    bytes: usize,
    parts: impl Iterator<Item = &'a Tensor>,
    fill: impl Fn(&Tensor, &mut [u8]) -> Result<()>,
) -> Result<Bytes> {
    let failed =
        |error| Error::failed(format!("cannot allocate {bytes} bytes of weights: {error}"));
    let mut region = MmapMut::map_anon(bytes).map_err(failed)?;
    for tensor in parts {
        fill(tensor, &mut region[tensor.offset..][..tensor.bytes])?;
    }
    Ok(Bytes::Mapped(region.make_read_only().map_err(failed)?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: Recipe =
        Recipe { dtype: Float::Bf16, seed: 7, tensor: 5, centre: 0.0, scale: 1e-4 };

    #[test]
    fn elements_are_the_same_in_any_piece() {
        let mut whole = vec![0u64; TASK_BYTES / 2 + 6];
        let whole: &mut [u8] = bytemuck::cast_slice_mut(&mut whole);
        RECIPE.fill(0, whole);
        for first in [8, TASK_BYTES / 2, 2 * TASK_BYTES + 16] {
            let mut part = [0u64; 2];
            RECIPE.fill(first, bytemuck::cast_slice_mut(&mut part));
            let part: &[u8] = bytemuck::cast_slice(&part);
            assert_eq!(*part, whole[2 * first..][..16], "{first}");
        }
    }

    #[test]
    fn a_matrix_has_the_variance_of_its_fan_in_and_seeds_and_tensors_differ() {
        let values = |seed, tensor| {
            let mut values = vec![0f32; 1 << 16];
            let bytes = bytemuck::cast_slice_mut(&mut values);
            Recipe::new(Float::F32, seed, tensor, &[64, 1024]).fill(0, bytes);
            values
        };
        let base = values(0, 0);
        let count = base.len() as f64;
        let mean = base.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
        let variance = base.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / count;
        assert!(mean.abs() < 4.0 / (count * 1024.0).sqrt(), "{mean}");
        assert!((variance * 1024.0 - 1.0).abs() < 0.02, "{variance}");
        for other in [values(1, 0), values(0, 1)] {
            let products = base.iter().zip(&other).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let correlation = products.sum::<f64>() / count / variance;
            assert!(correlation.abs() < 4.0 / count.sqrt(), "{correlation}");
        }
    }
}
