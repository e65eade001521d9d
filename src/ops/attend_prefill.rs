use rayon::prelude::*;

use super::Cache;
use super::{blocks, launch, size};
use crate::checkpoint::Dtype;
use crate::for_dtype;
use crate::kernel::{self, Launch};
use crate::memory::{Activation, Memory, Slot};
use crate::op::{Cost, Gpu, Op};
use crate::vector::{Element, Simd, WithSimd, dots, fill, simd, widened};

/// Cache elements that are worth a task of their own.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Causal attention of the step's tokens over the cache, which holds their own keys and values
/// already (Vaswani et al., 2017, arXiv:1706.03762). Query head h reads the keys and values of head
/// `h / (H / G)` (grouped queries: Ainslie et al., 2023, arXiv:2305.13245).
pub struct AttendPrefill {
    /// Rotated. `[T, H, D]`
    pub queries: Activation,
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
    pub y: Activation,
}

impl AttendPrefill {
    fn tokens(&self) -> usize {
        self.queries.len() / (self.heads * self.head_dim)
    }
}

impl Op for AttendPrefill {
    fn name(&self) -> &'static str {
        "attend_prefill"
    }

    fn cost(&self, position: usize) -> Cost {
        let Self { heads, kv_heads, head_dim, cache, .. } = self;
        attend_cost(self.tokens(), position, *heads, *kv_heads, *head_dim, cache.dtype)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (queries, keys, values, cursor, y) = memory.slots((
            self.queries.bytes,
            self.cache.keys,
            self.cache.values,
            self.cursor,
            self.y.bytes,
        ));
        let attention = Attention {
            q: &widened(self.queries, queries),
            cache: self.cache.dtype,
            keys,
            values,
            first: cursor[0] as usize,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        };
        fill(self.y, y, |y| attention.run(y));
    }

    fn launch(&self, gpu: &Gpu) -> Launch {
        /// Packed rows, tokens by the query heads of a KV head, that a block takes at once.
        const ROWS: usize = 128;
        assert!(self.queries.dtype == Dtype::F16 && self.cache.dtype == Dtype::F16);
        let rows = self.tokens() * self.heads / self.kv_heads;
        let arguments = kernel::AttendPrefill {
            queries: self.queries.bytes,
            keys: self.cache.keys,
            values: self.cache.values,
            cursor: self.cursor,
            y: self.y.bytes,
            tokens: size(self.tokens()),
            heads: size(self.heads),
            kv_heads: size(self.kv_heads),
        }
        .arguments();
        launch(
            kernel::AttendPrefill::KERNEL,
            (self.y.dtype, self.head_dim),
            [blocks(rows.div_ceil(ROWS) * self.kv_heads, 2 * gpu.multiprocessors), 1],
            size(2 * ROWS * self.head_dim + (33 << 10)),
            arguments,
        )
    }
}

/// What attention of `tokens` from `position` on must read and compute.
pub(super) fn attend_cost(
    tokens: usize,
    position: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    cache: Dtype,
) -> Cost {
    let (tokens, position) = (tokens as u64, position as u64);
    let row = (kv_heads * head_dim * cache.bytes()) as u64;
    let pairs = tokens * position + tokens * (tokens + 1) / 2;
    Cost {
        cache_bytes: 2 * (position + tokens) * row,
        flops: 4 * pairs * (heads * head_dim) as u64,
        ..Cost::default()
    }
}

/// Attention of all heads of the tokens from position `first` on.
pub(super) struct Attention<'a> {
    /// `[T, H, D]`
    pub q: &'a [f32],
    pub cache: Dtype,
    /// `[S, G, D]`
    pub keys: &'a [u8],
    /// `[S, G, D]`
    pub values: &'a [u8],
    pub first: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Attention<'_> {
    /// `y`: `[T, H, D]`
    pub(super) fn run(&self, y: &mut [f32]) {
        let &Self { q, first, heads, kv_heads, head_dim, .. } = self;
        let (row, group) = (kv_heads * head_dim, heads / kv_heads);
        for_dtype!(self.cache, E => {
            let (keys, values): (&[E], &[E]) =
                (bytemuck::cast_slice(self.keys), bytemuck::cast_slice(self.values));
            let of_heads = y.par_chunks_exact_mut(head_dim).zip(q.par_chunks_exact(head_dim));
            let least = (ELEMENTS_PER_TASK / ((first + 1) * head_dim)).max(1);
            of_heads.enumerate().with_min_len(least).for_each(|(i, (y, q))| {
                let (token, head) = (i / heads, i % heads);
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
