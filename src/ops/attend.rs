use rayon::prelude::*;

use super::Cache;
use crate::for_dtype;
use crate::memory::{Memory, Slot};
use crate::op::{Cost, Op};
use crate::vector::{Element, Simd, WithSimd, dots, simd};

/// Cache elements that are worth a task of their own.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Causal attention of the step's tokens over the cache, which holds their own keys and values
/// already (Vaswani et al., 2017, arXiv:1706.03762). Query head h reads the keys and values of head
/// `h / (H / G)` (grouped queries: Ainslie et al., 2023, arXiv:2305.13245).
pub struct Attend {
    /// `[T, H, D]`
    pub q: Slot<f32>,
    /// `[S, G, D]`
    pub cache: Cache,
    /// Position of the first token. `[1]`
    pub cursor: Slot<u32>,
    /// H
    pub heads: usize,
    /// G
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Out. `[T, H, D]`
    pub y: Slot<f32>,
}

impl Attend {
    fn tokens(&self) -> usize {
        self.q.len() / (self.heads * self.head_dim)
    }
}

impl Op for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cost(&self, position: usize) -> Cost {
        let (tokens, position) = (self.tokens() as u64, position as u64);
        let row = (self.kv_heads * self.head_dim * self.cache.dtype.bytes()) as u64;
        let pairs = tokens * position + tokens * (tokens + 1) / 2;
        Cost {
            cache_bytes: 2 * (position + tokens) * row,
            flops: 4 * pairs * (self.heads * self.head_dim) as u64,
            ..Cost::default()
        }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (q, keys, values, cursor, y) =
            memory.slots((self.q, self.cache.keys, self.cache.values, self.cursor, self.y));
        let first = cursor[0] as usize;
        let (head_dim, row) = (self.head_dim, self.kv_heads * self.head_dim);
        let group = self.heads / self.kv_heads;
        for_dtype!(self.cache.dtype, E => {
            let (keys, values): (&[E], &[E]) =
                (bytemuck::cast_slice(keys), bytemuck::cast_slice(values));
            let heads = y.par_chunks_exact_mut(head_dim).zip(q.par_chunks_exact(head_dim));
            let least = (ELEMENTS_PER_TASK / ((first + 1) * head_dim)).max(1);
            heads.enumerate().with_min_len(least).for_each(|(i, (y, q))| {
                let (token, head) = (i / self.heads, i % self.heads);
                let offset = head / group * head_dim;
                let (keys, values) = (&keys[offset..], &values[offset..]);
                simd(Head { q, keys, values, row, len: first + token + 1, y });
            });
        });
    }
}

/// `y = softmax(q . keys / sqrt(D)) values` for one head.
struct Head<'a, E> {
    /// `[D]`
    q: &'a [f32],
    /// `len` rows of the KV head, from its first element on, `row` elements apart.
    keys: &'a [E],
    /// As `keys`.
    values: &'a [E],
    row: usize,
    len: usize,
    /// Out. `[D]`
    y: &'a mut [f32],
}

impl<E: Element> WithSimd for Head<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const KEYS: usize = 4; // at once; the last stands in for those past it
        let Self { q, keys, values, row, len, y } = self;
        let scale = 1.0 / (q.len() as f32).sqrt();
        let mut weights = vec![0.0; len];
        for (i, weights) in weights.chunks_mut(KEYS).enumerate() {
            let mut rows: [&[E]; KEYS] = [&[]; KEYS];
            for (k, key) in rows.iter_mut().enumerate() {
                *key = &keys[(KEYS * i + k).min(len - 1) * row..][..q.len()];
            }
            let scores = dots::<S, E, KEYS, 1>(simd, rows, [q]);
            for (weight, [score]) in weights.iter_mut().zip(scores) {
                *weight = score * scale;
            }
        }
        let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0f64;
        for weight in &mut weights {
            *weight = (*weight - max).exp();
            sum += f64::from(*weight);
        }
        y.fill(0.0);
        for (s, weight) in weights.iter().enumerate() {
            for (y, v) in y.iter_mut().zip(&values[s * row..]) {
                *y = weight.mul_add(v.widen(), *y);
            }
        }
        let normalise = (1.0 / sum) as f32;
        y.iter_mut().for_each(|y| *y *= normalise);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against f64, over a cache whose rows past the sequence are NaN.
    #[test]
    fn follows_the_formula_in_f64() {
        let (head_dim, row, len) = (6, 12, 9);
        let wave = |i: usize, step: f32| (i as f32 * step).sin();
        let q: Vec<f32> = (0..head_dim).map(|i| wave(i, 1.3)).collect();
        let mut keys: Vec<f32> = (0..(len + 2) * row).map(|i| 2.0 * wave(i, 0.9)).collect();
        let mut values: Vec<f32> = (0..(len + 2) * row).map(|i| wave(i, 0.4)).collect();
        keys[len * row..].fill(f32::NAN);
        values[len * row..].fill(f32::NAN);
        let mut y = vec![f32::NAN; head_dim];
        simd(Head { q: &q, keys: &keys[6..], values: &values[6..], row, len, y: &mut y });

        let score = |s: usize| -> f64 {
            let key = &keys[s * row + 6..];
            let dot: f64 = q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            (dot / (head_dim as f64).sqrt()).exp()
        };
        let total: f64 = (0..len).map(score).sum();
        for (i, y) in y.iter().enumerate() {
            let terms = (0..len).map(|s| score(s) / total * f64::from(values[s * row + 6 + i]));
            assert!((f64::from(*y) - terms.sum::<f64>()).abs() < 1e-6, "{i}");
        }
    }
}
