use rayon::prelude::*;

use super::Cache;
use crate::for_dtype;
use crate::memory::{Memory, Slot};
use crate::op::{Cost, Op};
use crate::vector::{Element, dots, simd};

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
            heads.enumerate().for_each(|(i, (y, q))| {
                let (token, head) = (i / self.heads, i % self.heads);
                let past = Past {
                    keys: &keys[head / group * head_dim..],
                    values: &values[head / group * head_dim..],
                    row,
                    len: first + token + 1,
                };
                simd(|| attend_head(q, &past, y));
            });
        });
    }
}

/// What one head sees: `len` rows of its KV head, `row` elements apart.
struct Past<'a, E> {
    keys: &'a [E],
    values: &'a [E],
    row: usize,
    len: usize,
}

/// `y = softmax(q . keys / sqrt(D)) values` for one head. `q`, `y`: `[D]`
#[inline(always)]
fn attend_head<E: Element>(q: &[f32], past: &Past<'_, E>, y: &mut [f32]) {
    let head_dim = q.len();
    let scale = 1.0 / (head_dim as f32).sqrt();
    let key = |s: usize| &past.keys[s * past.row..][..head_dim];
    let mut weights: Vec<f32> =
        (0..past.len).map(|s| dots::<E, 1, 1>([key(s)], [q])[0][0] * scale).collect();
    let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0f64;
    for weight in &mut weights {
        *weight = (*weight - max).exp();
        sum += f64::from(*weight);
    }
    y.fill(0.0);
    for (s, weight) in weights.iter().enumerate() {
        let value = &past.values[s * past.row..][..head_dim];
        for (y, v) in y.iter_mut().zip(value) {
            *y = weight.mul_add(v.widen(), *y);
        }
    }
    let normalise = (1.0 / sum) as f32;
    y.iter_mut().for_each(|y| *y *= normalise);
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
        attend_head(&q, &Past { keys: &keys[6..], values: &values[6..], row, len }, &mut y);

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
