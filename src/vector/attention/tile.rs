//! One block of the cache and up to four queries of a KV head.

use pulp::Simd;

use super::state::{Factors, OnlineSoftmax};
use super::{BLOCK, QUERIES};
use crate::vector::exp::exp;
use crate::vector::sums::{Sum, add_lanes_of_16, lanes_of_dots, mul_add, zero};
use crate::vector::{Element, LANES, Lanes};

/// Queries of one KV head.
pub struct QueryTile<'a> {
    /// `[D]` each; fewer stand first.
    q: [&'a [f32]; QUERIES],
    /// How many of the block's positions each sees.
    seen: [usize; QUERIES],
}

/// A KV head's keys or values of a block.
#[derive(Clone, Copy)]
pub struct Part<'a, E> {
    /// From the first element on.
    pub elements: &'a [E],
    /// Elements from one position to the next.
    pub row: usize,
}

/// Four positions by four queries.
type Weights = [[f32; QUERIES]; 4];

/// What a tile makes of a block's keys: the queries' weights of each position.
#[derive(Clone, Copy)]
pub struct Weighed {
    weights: [Weights; BLOCK / 4],
    found: [OnlineSoftmax; QUERIES],
}

impl Default for Weighed {
    fn default() -> Self {
        Self { weights: [Default::default(); BLOCK / 4], found: Default::default() }
    }
}

impl<'a> QueryTile<'a> {
    /// Of as many queries as there are, each of which sees so many positions.
    pub fn new(queries: impl Iterator<Item = (&'a [f32], usize)>) -> Self {
        let mut tile = Self { q: [&[]; QUERIES], seen: [0; QUERIES] };
        for (i, (q, seen)) in queries.enumerate() {
            (tile.q[i], tile.seen[i]) = (q, seen);
        }
        // The last one stands in for those that are not there: what it sees costs nothing more.
        for i in 1..QUERIES {
            if tile.q[i].is_empty() {
                (tile.q[i], tile.seen[i]) = (tile.q[i - 1], tile.seen[i - 1]);
            }
        }
        tile
    }

    /// The longest of what is seen.
    fn longest(&self) -> usize {
        self.seen.into_iter().fold(0, usize::max)
    }

    /// What the block's keys say.
    #[inline(always)]
    pub fn weigh<S: Simd, E: Element>(&self, simd: S, keys: Part<'_, E>, weighed: &mut Weighed) {
        let weights = &mut weighed.weights[..self.longest().div_ceil(4)];
        if weights.is_empty() {
            return;
        }
        // Tiles that leave registers: 16 sums of AVX-512's 32, 4 of AVX2's 16 in two registers each.
        if const { S::F32_LANES == 16 } {
            self.score::<S, E, 1, 4>(simd, keys, weights);
        } else if const { S::F32_LANES == 8 } {
            self.score::<S, E, 2, 2>(simd, keys, weights);
        } else if const { S::F32_LANES == 4 } {
            self.score::<S, E, 4, 2>(simd, keys, weights);
        } else {
            self.score::<S, E, LANES, 1>(simd, keys, weights);
        }
        weighed.found = found(weights);
    }

    /// Merges that, with the block's values, into `states` and `values`, `[D]` for each query that is there.
    #[inline(always)]
    pub fn add<S: Simd, E: Element>(
        &self,
        simd: S,
        weighed: &Weighed,
        stored: Part<'_, E>,
        states: &mut [OnlineSoftmax; QUERIES],
        values: &mut [&mut [f32]; QUERIES],
    ) {
        if self.longest() == 0 {
            return;
        }
        // Columns of values that leave registers.
        if const { S::F32_LANES == 16 } {
            self.add_in::<S, E, 1, 4>(simd, weighed, stored, states, values);
        } else if const { S::F32_LANES == 8 } {
            self.add_in::<S, E, 2, 1>(simd, weighed, stored, states, values);
        } else if const { S::F32_LANES == 4 } {
            self.add_in::<S, E, 4, 1>(simd, weighed, stored, states, values);
        } else {
            self.add_in::<S, E, LANES, 1>(simd, weighed, stored, states, values);
        }
    }

    #[inline(always)]
    fn add_in<S: Simd, E: Element, const P: usize, const C: usize>(
        &self,
        simd: S,
        weighed: &Weighed,
        stored: Part<'_, E>,
        states: &mut [OnlineSoftmax; QUERIES],
        values: &mut [&mut [f32]; QUERIES],
    ) {
        let weights = &weighed.weights[..self.longest().div_ceil(4)];
        let mut factors = [Factors { mine: 1.0, other: 0.0 }; QUERIES];
        for i in 0..QUERIES {
            if self.seen[i] > 0 && !values[i].is_empty() {
                factors[i] = states[i].merge(weighed.found[i]);
            }
        }
        let d = self.q[0].len();
        let mut at = 0;
        while at + C * LANES <= d {
            self.add_values::<S, E, P, C>(simd, weights, stored, at, &factors, values);
            at += C * LANES;
        }
        while at + LANES <= d {
            self.add_values::<S, E, P, 1>(simd, weights, stored, at, &factors, values);
            at += LANES;
        }
        for i in 0..QUERIES {
            for at in at..if self.seen[i] > 0 { values[i].len() } else { 0 } {
                let mut sum = 0f32;
                for s in 0..self.seen[i] {
                    let value = stored.elements[s * stored.row + at].widen();
                    sum = weights[s / 4][s % 4][i].mul_add(value, sum);
                }
                factors[i].add(&mut values[i][at..=at], &[sum + 0.0]);
            }
        }
    }

    /// `q . key / sqrt(D)` for all queries and positions; minus infinity where a query does not see.
    /// In tiles of `R` positions by `R` queries.
    #[inline(always)]
    fn score<S: Simd, E: Element, const P: usize, const R: usize>(
        &self,
        simd: S,
        stored: Part<'_, E>,
        weights: &mut [Weights],
    ) {
        if self.q[0].len().is_multiple_of(LANES) {
            self.score_in::<S, E, P, R, true>(simd, stored, weights);
        } else {
            self.score_in::<S, E, P, R, false>(simd, stored, weights);
        }
    }

    /// `WHOLE`: as of [`lanes_of_dots`].
    #[inline(always)]
    fn score_in<S: Simd, E: Element, const P: usize, const R: usize, const WHOLE: bool>(
        &self,
        simd: S,
        stored: Part<'_, E>,
        weights: &mut [Weights],
    ) {
        let d = self.q[0].len();
        let scale = 1.0 / (d as f32).sqrt();
        let shortest = self.seen.into_iter().fold(BLOCK, usize::min);
        let mut positions = stored.elements.chunks(stored.row);
        let mut keys = [&stored.elements[..d]; 4];
        for (b, weights) in weights.iter_mut().enumerate() {
            for key in &mut keys {
                if let Some(position) = positions.next() {
                    *key = &position[..d];
                }
            }
            let mut lanes = [[zero::<S, P>(simd); QUERIES]; 4];
            for k in (0..4).step_by(R) {
                for q in (0..QUERIES).step_by(R) {
                    let mut some_keys: [&[E]; R] = [&[]; R];
                    some_keys.copy_from_slice(&keys[k..k + R]);
                    let mut some_queries: [&[f32]; R] = [&[]; R];
                    some_queries.copy_from_slice(&self.q[q..q + R]);
                    let some = lanes_of_dots::<S, E, P, R, R, WHOLE>(simd, some_keys, some_queries);
                    for i in 0..R {
                        for j in 0..R {
                            lanes[k + i][q + j] = some[j][i];
                        }
                    }
                }
            }
            let mut scores = add_lanes_of_16::<S, P>(simd, lanes);
            for score in &mut scores {
                *score *= scale;
            }
            *weights = bytemuck::cast(scores);
            if 4 * b + 4 > shortest {
                for (t, weights) in weights.iter_mut().enumerate() {
                    for (weight, seen) in weights.iter_mut().zip(self.seen) {
                        if 4 * b + t >= seen {
                            *weight = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }

    /// Adds `C` registers' worth of the weighted values from dimension `at` on. A position's value is not
    /// multiplied where it is not seen: it may be anything.
    #[inline(always)]
    fn add_values<S: Simd, E: Element, const P: usize, const C: usize>(
        &self,
        simd: S,
        weights: &[Weights],
        stored: Part<'_, E>,
        at: usize,
        factors: &[Factors; QUERIES],
        values: &mut [&mut [f32]; QUERIES],
    ) {
        let shortest = self.seen.into_iter().fold(BLOCK, usize::min);
        let weights = weights.as_flattened();
        let mut sums = [[zero::<S, P>(simd); C]; QUERIES];
        stored.add(simd, [0, at], &weights[..shortest], 0, &mut sums);
        for i in 0..QUERIES {
            let mut sums = [sums[i]];
            if shortest < self.seen[i] {
                let weights = &weights[shortest..self.seen[i]];
                stored.add(simd, [shortest, at], weights, i, &mut sums);
            }
            let [sums] = sums;
            if self.seen[i] > 0 && !values[i].is_empty() {
                for c in 0..C {
                    let mut lanes: Lanes = bytemuck::cast(sums[c]);
                    for lane in &mut lanes {
                        *lane += 0.0; // a block's zero has no sign, however it travels
                    }
                    factors[i].add(&mut values[i][at + c * LANES..][..LANES], &lanes);
                }
            }
        }
    }
}

impl<E: Element> Part<'_, E> {
    /// Adds to the sums of the queries from `first` on what their `weights` make of the values from position
    /// `from` and dimension `at` on.
    #[inline(always)]
    fn add<S: Simd, const P: usize, const C: usize, const Q: usize>(
        self,
        simd: S,
        [from, at]: [usize; 2],
        weights: &[[f32; QUERIES]],
        first: usize,
        sums: &mut [[Sum<S, P>; C]; Q],
    ) {
        // A copy, so that the compiler keeps it in registers.
        let mut lanes = *sums;
        let values = self.elements[from * self.row + at..].chunks(self.row);
        for (weights, value) in weights.iter().zip(values) {
            let stored: &[[E; LANES]] = value[..C * LANES].as_chunks().0;
            let mut value = [zero::<S, P>(simd); C];
            for c in 0..C {
                value[c] = bytemuck::cast(E::widen_lanes(simd, &stored[c]));
            }
            for i in 0..Q {
                let weight = [simd.splat_f32s(weights[first + i]); P];
                for c in 0..C {
                    mul_add(simd, weight, value[c], &mut lanes[i][c]);
                }
            }
        }
        *sums = lanes;
    }

    /// The first positions, one after the other. `copy`: `[positions, D]`
    #[inline(always)]
    pub fn copy<'s, S: Simd>(self, simd: S, d: usize, copy: &'s mut [f32]) -> Part<'s, f32> {
        for (copy, stored) in copy.chunks_exact_mut(d).zip(self.elements.chunks(self.row)) {
            let ((steps, tail), (stored, rest)) = (copy.as_chunks_mut(), stored[..d].as_chunks());
            for (step, stored) in steps.iter_mut().zip(stored) {
                *step = E::widen_lanes(simd, stored);
            }
            for (number, stored) in tail.iter_mut().zip(rest) {
                *number = stored.widen();
            }
        }
        Part { elements: copy, row: d }
    }
}

/// Scores to weights; what each query has found of them.
#[inline(always)]
fn found(weights: &mut [Weights]) -> [OnlineSoftmax; QUERIES] {
    let lanes: &mut [Lanes] = bytemuck::cast_slice_mut(weights);
    let mut max = [f32::NEG_INFINITY; LANES];
    for scores in &*lanes {
        for i in 0..LANES {
            max[i] = if scores[i] > max[i] { scores[i] } else { max[i] };
        }
    }
    for half in [8, 4] {
        for i in 0..half {
            max[i] = if max[i + half] > max[i] { max[i + half] } else { max[i] };
        }
    }
    let mut least = [0.0; LANES];
    for i in 0..LANES {
        let max = max[i % QUERIES];
        // Where all scores are minus infinity, all weights are zero.
        least[i] = if max == f32::NEG_INFINITY { 0.0 } else { max };
    }
    let mut sums = [0f32; LANES];
    for weights in lanes {
        for i in 0..LANES {
            weights[i] = exp(weights[i] - least[i]);
            sums[i] += weights[i];
        }
    }
    for half in [8, 4] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    let mut found = [OnlineSoftmax::default(); QUERIES];
    for i in 0..QUERIES {
        found[i] = OnlineSoftmax { max: max[i], sum: sums[i] };
    }
    found
}
