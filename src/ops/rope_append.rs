use rayon::prelude::*;

use super::{blocks, launch, size};
use crate::case::{CachePlace, Case, Content, HALF_NMSE, Judge, NUMBERS, Numbers, Setup};
use crate::encoding::Float;
use crate::for_float;
use crate::kernel::{self, Launch};
use crate::memory::{Activation, Memory, Scratch, Slot};
use crate::op::{Cost, Op, Operands, Placement, Target};
use crate::vector::{Element, fill, wide_scratch};

/// One layer's keys and values of all sequences' past tokens, stored as `dtype` in byte slots.
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    pub dtype: Float,
    /// S: positions of a sequence.
    pub context: usize,
    /// `[B, S, G, D]`
    pub keys: Slot<u8>,
    /// `[B, S, G, D]`
    pub values: Slot<u8>,
}

impl Cache {
    /// A sequence's part `[S, G, D]` of what is stored. `row`: elements of a position, G D
    pub(super) fn of_sequence<'c, E>(&self, stored: &'c [E], sequence: u32, row: usize) -> &'c [E] {
        let len = self.context * row;
        &stored[sequence as usize * len..][..len]
    }

    /// The position's place among all rows, `[B S]`.
    pub(super) fn row(&self, sequence: u32, position: u32) -> usize {
        sequence as usize * self.context + position as usize
    }
}

/// Rotates queries and keys to their positions and appends keys and values to the cache.
///
/// Rotary embedding (Su et al., 2021, arXiv:2104.09864) on the pairs `(i, i + D/2)` of each head, the
/// layout of checkpoints in Hugging Face's form:
/// `(a, b) -> (a cos - b sin, b cos + a sin)` with the angle `position * frequencies[i]`, and `cos` and
/// `sin` times `magnitude`.
pub struct RopeAppend {
    /// `[T, H, D]`
    pub q: Slot<f32>,
    /// `[T, G, D]`
    pub k: Slot<f32>,
    /// `[T, G, D]`
    pub v: Slot<f32>,
    /// Of the first token: one row.
    pub placement: Placement,
    /// Radians per position. `[D/2]`
    pub frequencies: Slot<f32>,
    /// What cosines and sines are multiplied with: 1 but for YaRN.
    pub magnitude: f32,
    /// Out: the rotated `q`. `[T, H, D]`
    pub queries: Activation,
    /// Out: T rows from the placement on.
    pub cache: Cache,
    /// G
    pub kv_heads: usize,
}

/// Tokens that are worth a task of their own.
const TOKENS_PER_TASK: usize = 8;

impl Op for RopeAppend {
    fn name(&self) -> &'static str {
        "rope_append"
    }

    fn cost(&self, _position: usize) -> Cost {
        Cost { flops: 3 * (self.q.len() + self.k.len()) as u64, ..Cost::default() }
    }

    fn scratch(&self, _threads: usize) -> usize {
        Scratch::bytes_of::<f32>(self.k.len()) + wide_scratch(self.queries)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (mut region, mut scratch) = memory.region_and_scratch();
        let (q, k, v, positions, sequences, frequencies, queries, keys, values) = region.slots((
            self.q,
            self.k,
            self.v,
            self.placement.positions,
            self.placement.sequences,
            self.frequencies,
            self.queries.bytes,
            self.cache.keys,
            self.cache.values,
        ));
        let head_dim = 2 * frequencies.len();
        let row = self.kv_heads * head_dim; // of one token in k, v and the cache
        let tokens = k.len() / row;
        let first = positions[0] as usize;
        let rotated = scratch.take::<f32>(k.len());
        rotated.copy_from_slice(k);
        fill(self.queries, queries, &mut scratch, |queries, _| {
            queries.copy_from_slice(q);
            let of_tokens = queries.par_chunks_exact_mut(q.len() / tokens);
            let of_tokens = of_tokens.zip(rotated.par_chunks_exact_mut(row)).enumerate();
            of_tokens.with_min_len(TOKENS_PER_TASK).for_each(|(t, (queries, keys))| {
                let rotation = rotation(first + t, frequencies, self.magnitude);
                rotate(queries, &rotation);
                rotate(keys, &rotation);
            });
        });
        let at = self.cache.row(sequences[0], positions[0]) * row;
        append(self.cache.dtype, rotated, keys, at);
        append(self.cache.dtype, v, values, at);
    }

    fn operands(&self) -> Operands {
        let head_dim = 2 * self.frequencies.len();
        let tokens = self.k.len() / (self.kv_heads * head_dim);
        let heads = (self.q.len() + self.k.len() + self.v.len()) / (tokens * head_dim);
        Operands { input: vec![tokens, heads, head_dim], ..Operands::default() }
    }

    fn launch(&self, target: &Target) -> Launch {
        let head_dim = 2 * self.frequencies.len();
        let tokens = self.k.len() / (self.kv_heads * head_dim);
        assert!(self.queries.dtype == Float::F16 && self.cache.dtype == Float::F16);
        let arguments = kernel::RopeAppend {
            q: self.q,
            k: self.k,
            v: self.v,
            positions: self.placement.positions,
            sequences: self.placement.sequences,
            frequencies: self.frequencies,
            queries: self.queries.bytes,
            keys: self.cache.keys,
            values: self.cache.values,
            context: size(self.cache.context),
            tokens: size(tokens),
            heads: size(self.q.len() / (tokens * head_dim)),
            kv_heads: size(self.kv_heads),
            magnitude: self.magnitude,
        }
        .arguments();
        launch(
            kernel::RopeAppend::KERNEL,
            (Float::F16, head_dim),
            [blocks(tokens, 8 * target.multiprocessors), 1],
            0,
            arguments,
        )
    }
}

/// `(cos, sin)` of a position's angles, times `magnitude`. `[D/2]`
///
/// The angle is one f32 product, as Meta's and Hugging Face's code form it; from there on the sine
/// and cosine are exact to f32, also for the large angles of long contexts.
pub(super) fn rotation(position: usize, frequencies: &[f32], magnitude: f32) -> Vec<(f32, f32)> {
    let angles = frequencies.iter().map(|frequency| position as f32 * frequency);
    let turned = angles.map(|angle| f64::from(angle).sin_cos());
    turned.map(|(s, c)| (c as f32 * magnitude, s as f32 * magnitude)).collect()
}

/// Rotates every head of one token in place. `heads`: `[_, D]`, `rotation`: `[D/2]`
pub(super) fn rotate(heads: &mut [f32], rotation: &[(f32, f32)]) {
    for head in heads.chunks_exact_mut(2 * rotation.len()) {
        let (low, high) = head.split_at_mut(rotation.len());
        for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(rotation) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Stores `rows` from element `start` of a cache on.
pub(super) fn append(dtype: Float, rows: &[f32], cache: &mut [u8], start: usize) {
    for_float!(dtype, E => {
        let cache: &mut [E] = bytemuck::cast_slice_mut(cache);
        for (stored, value) in cache[start..][..rows.len()].iter_mut().zip(rows) {
            *stored = E::narrow(*value);
        }
    });
}

impl RopeAppend {
    /// `(T, H, G, D, position, S)`: from the first position to the last, more tokens than a grid has
    /// blocks, ratios of heads that are no powers of two.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (1, 1, 1, 64, 0, 1),
            (3, 4, 1, 128, 0, 5),
            (5, 6, 2, 64, 11, 16),
            (2, 32, 8, 128, 500, 700),
            (40, 3, 3, 64, 24, 64),
            (3, 1, 1, 64, 131_069, 131_072),
            (1100, 2, 1, 64, 3, 1103),
        ];
        let cases = sizes.into_iter().flat_map(|size| NUMBERS.map(|numbers| (size, numbers)));
        let case =
            |((tokens, heads, kv_heads, head_dim, first, capacity), numbers): (_, Numbers)| {
                let mut setup = Setup::new(numbers);
                let (q, kv) = ([tokens, heads, head_dim], [tokens, kv_heads, head_dim]);
                let judge = numbers.judge(HALF_NMSE);
                let place = CachePlace::of_case(capacity, [kv_heads, head_dim], tokens);
                let rows = first..first + tokens;
                let op = Self {
                    q: setup.read("q", &q, numbers.upto(100)),
                    k: setup.read("k", &kv, numbers.upto(100)),
                    // Every third is too large for the cache.
                    v: setup.read("v", &kv, Content::each(|i| i as f32 * [0.5, -2.0, 1e6][i % 3])),
                    placement: setup.placement(first, place.sequence),
                    frequencies: setup.given("frequencies", &numbers.frequencies(head_dim)),
                    magnitude: numbers.pick(0.5, 1.25),
                    queries: setup.written_as("queries", (Float::F16, 1), &q, judge),
                    cache: Cache {
                        dtype: Float::F16,
                        context: capacity,
                        keys: setup.appended("keys", place, rows.clone(), judge),
                        values: setup.appended("values", place, rows, Judge::Exact),
                    },
                    kv_heads,
                };
                let heads = format!("{heads}/{kv_heads} heads of {head_dim}");
                setup.case(format!("{tokens} tokens from {first} on, {heads}"), op)
            };
        cases.map(case).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_the_pair_of_halves_by_position_times_frequency() {
        let rotation = rotation(3, &[0.5, 0.1], 2.0);
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut head, &rotation);
        let (s0, c0) = 1.5f32.sin_cos();
        let (s1, c1) = 0.3f32.sin_cos();
        let expected = [c0 - 3.0 * s0, 2.0 * c1 - 4.0 * s1, 3.0 * c0 + s0, 4.0 * c1 + 2.0 * s1];
        let expected = expected.map(|unscaled| 2.0 * unscaled);
        for (ours, exact) in head.iter().zip(expected) {
            assert!((ours - exact).abs() < 1e-6, "{head:?}");
        }
    }

    #[test]
    fn large_angles_are_reduced_exactly() {
        let (cos, sin) = rotation(131_071, &[1.0], 1.0)[0];
        assert!((f64::from(cos) - 131_071f64.cos()).abs() < 1e-7);
        assert!((f64::from(sin) - 131_071f64.sin()).abs() < 1e-7);
    }

    #[test]
    fn appends_from_the_start_and_nowhere_else() {
        let mut cache = vec![0xffu8; 2 * 6];
        append(Float::F16, &[1.0, 1e9], &mut cache, 2);
        let stored: Vec<f32> = cache.chunks(2).map(|b| f16(b).to_f32()).collect();
        assert_eq!(stored[2..4], [1.0, 65504.0]);
        assert!(stored[..2].iter().chain(&stored[4..]).all(|untouched| untouched.is_nan()));
    }

    fn f16(bytes: &[u8]) -> half::f16 {
        half::f16::from_ne_bytes([bytes[0], bytes[1]])
    }
}
