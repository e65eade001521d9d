use rayon::prelude::*;

use super::{AttendPrefillHopper, Cache, blocks, launch, size};
use crate::case::{Case, Content, HALF, MATRIX_NMSE, NUMBERS, Numbers, Setup};
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
#[derive(Clone, Copy)]
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
    pub(super) fn tokens(&self) -> usize {
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
        if gpu.kernels.contains(kernel::AttendPrefillHopper::KERNEL) {
            return AttendPrefillHopper(*self).launch(gpu);
        }
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

impl AttendPrefill {
    /// `(T, H, G, D, position)`: below, at and past the 128 rows of a block and the 64 or 32 keys that it
    /// takes at once; all ratios of heads; chunks that begin anywhere.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (1, 1, 1, 64, 0),
            (1, 3, 1, 128, 31),
            (5, 8, 2, 64, 3),
            (2, 12, 12, 64, 3), // more than an emulated GPU has blocks: some take two turns
            (33, 4, 4, 128, 0),
            (17, 8, 1, 128, 32),
            (43, 6, 2, 64, 60),
            (65, 7, 1, 64, 64),
            (130, 2, 2, 64, 0),
            (3, 32, 8, 128, 300),
            (300, 8, 2, 128, 212),
            (600, 32, 8, 64, 100),
        ];
        Self::cases_of(&sizes, false, |op| op)
    }

    /// Cases of these sizes, each op in the form that `of` gives it. `in_boxes`: that what lies in the
    /// cache past the sequence may come along.
    pub(super) fn cases_of<O: Op + 'static>(
        sizes: &[(usize, usize, usize, usize, usize)],
        in_boxes: bool,
        of: fn(Self) -> O,
    ) -> Vec<Case> {
        let mut cases = Vec::new();
        for ((tokens, heads, kv_heads, head_dim, first), (dtype, numbers)) in sizes
            .iter()
            .copied()
            .flat_map(|size| HALF.map(|dtype| NUMBERS.map(|n| (size, (dtype, n)))).into_iter())
            .flatten()
        {
            let mut setup = Setup::new(numbers);
            let pins = Pins { heads, kv_heads, head_dim, seen: first + 1 };
            let shape = [first + tokens + 2, kv_heads, head_dim];
            let [q, keys, values] = pins.contents(numbers);
            let rows = [first + tokens, if in_boxes { shape[0] } else { first + tokens }];
            let op = Self {
                queries: setup.read_as("queries", (Dtype::F16, 1), &[tokens, heads, head_dim], q),
                cache: Cache {
                    dtype: Dtype::F16,
                    keys: setup.cached("keys", shape, rows, keys),
                    values: setup.cached("values", shape, rows, values),
                },
                cursor: setup.cursor(first),
                heads,
                kv_heads,
                head_dim,
                y: setup.written_as(
                    "y",
                    (dtype, 1),
                    &[tokens, heads, head_dim],
                    numbers.judge(MATRIX_NMSE),
                ),
            };
            let heads = format!("{heads}/{kv_heads} heads of {head_dim}");
            let tokens = format!("{tokens} tokens from {first} on");
            cases.push(setup.case(format!("{} {tokens}, {heads}", dtype.name()), of(op)));
        }
        cases
    }
}

/// Attention that is exact: each KV head has two keys, among the `seen` first positions, that are so
/// large, one along a direction and one against it, that a query along it sees nothing but the one, to
/// the bit, and a query against it nothing but the other.
#[derive(Clone, Copy)]
pub(super) struct Pins {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub seen: usize,
}

impl Pins {
    /// What `q`, keys and values hold.
    pub fn contents(self, numbers: Numbers) -> [Content; 3] {
        if numbers == Numbers::Real {
            return [Content::Real(3.0), Content::Real(1.0), Content::Real(1.0)];
        }
        let Self { heads, kv_heads, head_dim, seen } = self;
        let bit = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 13 & 1) as f32 * 2.0 - 1.0;
        let direction = move |kv_head: usize, i: usize| 16.0 * bit(kv_head * head_dim + i);
        let q = move |i: usize| {
            let (token_head, i) = (i / head_dim, i % head_dim);
            let kv_head = token_head % heads / (heads / kv_heads);
            let sign = if seen == 1 { 1.0 } else { bit(token_head) };
            sign * direction(kv_head, i)
        };
        let key = move |i: usize| {
            let (position, kv_head) = (i / head_dim / kv_heads, i / head_dim % kv_heads);
            let along = (7 * kv_head + 5) % seen;
            let against = (along + 1 + (13 * kv_head + seen / 2) % (seen - 1).max(1)) % seen;
            let direction = direction(kv_head, i % head_dim);
            match position {
                _ if position == along => direction,
                _ if position == against => -direction,
                _ => bit(i),
            }
        };
        [Content::each(q), Content::each(key), Content::Whole(-50.0, 50.0)]
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
