//! One block of the cache and up to four queries of a KV head.

use pulp::Simd;

use super::{Attention, BLOCK, QUERIES};
use crate::vector::exp::exp;
use crate::vector::sums::{Sum, add_lanes_of_16, lanes_of_dots, mul_add, zero};
use crate::vector::{Element, LANES, Lanes};

/// What a query has found so far, beside its weighted values.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// The largest score.
    max: f32,
    /// Of the weights `e^(score - max)`.
    sum: f32,
}

impl Default for State {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0 }
    }
}

/// What values count for when two states have become one.
#[derive(Debug, Clone, Copy)]
pub struct Factors {
    mine: f32,
    other: f32,
}

impl State {
    /// In it.
    pub const NUMBERS: usize = 2;

    pub fn numbers(self) -> [f32; Self::NUMBERS] {
        [self.max, self.sum]
    }

    pub fn of(numbers: &[f32]) -> Self {
        Self { max: numbers[0], sum: numbers[1] }
    }

    /// Takes up what another block has said.
    #[inline(always)]
    pub fn merge(&mut self, other: Self) -> Factors {
        let factors = if other.max > self.max {
            Factors { mine: exp(self.max - other.max), other: 1.0 }
        } else if other.max == self.max {
            Factors { mine: 1.0, other: 1.0 }
        } else {
            Factors { mine: 1.0, other: exp(other.max - self.max) }
        };
        self.sum = self.sum.mul_add(factors.mine, other.sum * factors.other);
        self.max = if other.max > self.max { other.max } else { self.max };
        factors
    }

    /// Values, from the sum to the mean.
    #[inline(always)]
    pub fn normalise(self, values: &mut [f32]) {
        let factor = 1.0 / self.sum;
        for value in values {
            *value *= factor;
        }
    }
}

impl Factors {
    #[inline(always)]
    pub fn add(self, values: &mut [f32], others: &[f32]) {
        for (value, other) in values.iter_mut().zip(others) {
            *value = value.mul_add(self.mine, other * self.other);
        }
    }
}

pub struct Tile<'a, E> {
    /// `[D]` each; fewer stand first.
    pub q: [&'a [f32]; QUERIES],
    /// How many of the block's positions each sees.
    pub seen: [usize; QUERIES],
    /// From the block's first element of the KV head on.
    keys: &'a [E],
    values: &'a [E],
    /// Elements from one position to the next.
    row: usize,
}

/// Four positions by four queries.
type Weights = [[f32; QUERIES]; 4];

impl<'a, E: Element> Tile<'a, E> {
    /// Without queries yet.
    pub fn new(attention: &Attention<'a, E>, block: usize, kv_head: usize) -> Self {
        Self {
            q: [&[]; QUERIES],
            seen: [0; QUERIES],
            keys: attention.block(attention.keys, block, kv_head),
            values: attention.block(attention.values, block, kv_head),
            row: attention.kv_heads * attention.head_dim,
        }
    }

    /// Merges what the block says into `states` and `values`, `[D]` for each query that is there.
    #[inline(always)]
    pub fn meet<S: Simd>(
        mut self,
        simd: S,
        states: &mut [State; QUERIES],
        values: &mut [&mut [f32]; QUERIES],
    ) {
        if self.seen == [0; QUERIES] {
            return;
        }
        // The last one stands in for those that are not there: what it sees costs nothing more.
        for i in 1..QUERIES {
            if self.q[i].is_empty() {
                (self.q[i], self.seen[i]) = (self.q[i - 1], self.seen[i - 1]);
            }
        }
        // Score tiles and value columns that leave registers: 16 sums of AVX-512's 32, 8 of AVX2's 16.
        if const { S::F32_LANES == 16 } {
            self.meet_in::<S, 1, 4, 4>(simd, states, values);
        } else if const { S::F32_LANES == 8 } {
            self.meet_in::<S, 2, 2, 1>(simd, states, values);
        } else if const { S::F32_LANES == 4 } {
            self.meet_in::<S, 4, 2, 1>(simd, states, values);
        } else {
            self.meet_in::<S, LANES, 1, 1>(simd, states, values);
        }
    }

    #[inline(always)]
    fn meet_in<S: Simd, const P: usize, const R: usize, const C: usize>(
        self,
        simd: S,
        states: &mut [State; QUERIES],
        values: &mut [&mut [f32]; QUERIES],
    ) {
        let mut weights = [[[0.0; QUERIES]; 4]; BLOCK / 4];
        let longest = self.seen.into_iter().fold(0, usize::max);
        let weights = &mut weights[..longest.div_ceil(4)];
        if self.q[0].len().is_multiple_of(LANES) {
            self.score::<S, P, R, true>(simd, weights);
        } else {
            self.score::<S, P, R, false>(simd, weights);
        }
        let found = self.weigh(weights);
        let mut factors = [Factors { mine: 1.0, other: 0.0 }; QUERIES];
        for i in 0..QUERIES {
            if self.seen[i] > 0 && !values[i].is_empty() {
                factors[i] = states[i].merge(found[i]);
            }
        }
        let d = self.q[0].len();
        let mut at = 0;
        while at + C * LANES <= d {
            self.add_values::<S, P, C>(simd, weights, at, &factors, values);
            at += C * LANES;
        }
        while at + LANES <= d {
            self.add_values::<S, P, 1>(simd, weights, at, &factors, values);
            at += LANES;
        }
        for i in 0..QUERIES {
            for at in at..if self.seen[i] > 0 { values[i].len() } else { 0 } {
                let mut sum = 0f32;
                for s in 0..self.seen[i] {
                    sum = weights[s / 4][s % 4][i]
                        .mul_add(self.values[s * self.row + at].widen(), sum);
                }
                factors[i].add(&mut values[i][at..=at], &[sum + 0.0]);
            }
        }
    }

    /// `q . key / sqrt(D)` for all queries and positions; minus infinity where a query does not see.
    /// In tiles of `R` positions by `R` queries; `WHOLE`: as of [`lanes_of_dots`].
    #[inline(always)]
    fn score<S: Simd, const P: usize, const R: usize, const WHOLE: bool>(
        &self,
        simd: S,
        weights: &mut [Weights],
    ) {
        let d = self.q[0].len();
        let scale = 1.0 / (d as f32).sqrt();
        let longest = self.seen.into_iter().fold(0, usize::max);
        let shortest = self.seen.into_iter().fold(BLOCK, usize::min);
        for (b, weights) in weights.iter_mut().enumerate() {
            let mut keys: [&[E]; 4] = [&[]; 4];
            for (i, key) in keys.iter_mut().enumerate() {
                *key = &self.keys[(4 * b + i).min(longest - 1) * self.row..][..d];
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

    /// Scores to weights; what each query has found of them.
    #[inline(always)]
    fn weigh(&self, weights: &mut [Weights]) -> [State; QUERIES] {
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
        let mut found = [State::default(); QUERIES];
        for i in 0..QUERIES {
            found[i] = State { max: max[i], sum: sums[i] };
        }
        found
    }

    /// Adds `C` registers' worth of the weighted values from dimension `at` on. A position's value is not
    /// multiplied where it is not seen: it may be anything.
    #[inline(always)]
    fn add_values<S: Simd, const P: usize, const C: usize>(
        &self,
        simd: S,
        weights: &[Weights],
        at: usize,
        factors: &[Factors; QUERIES],
        values: &mut [&mut [f32]; QUERIES],
    ) {
        let shortest = self.seen.into_iter().fold(BLOCK, usize::min);
        let weights = weights.as_flattened();
        let mut sums = [[zero::<S, P>(simd); C]; QUERIES];
        for (s, weights) in weights[..shortest].iter().enumerate() {
            let value = self.value::<S, P, C>(simd, s, at);
            for i in 0..QUERIES {
                let weight = [simd.splat_f32s(weights[i]); P];
                for c in 0..C {
                    mul_add(simd, weight, value[c], &mut sums[i][c]);
                }
            }
        }
        for i in 0..QUERIES {
            let seen = weights.iter().enumerate().take(self.seen[i]).skip(shortest);
            for (s, weights) in seen {
                let weight = [simd.splat_f32s(weights[i]); P];
                let value = self.value::<S, P, C>(simd, s, at);
                for c in 0..C {
                    mul_add(simd, weight, value[c], &mut sums[i][c]);
                }
            }
            if self.seen[i] > 0 && !values[i].is_empty() {
                for c in 0..C {
                    let mut lanes: Lanes = bytemuck::cast(sums[i][c]);
                    for lane in &mut lanes {
                        *lane += 0.0; // a block's zero has no sign, however it travels
                    }
                    factors[i].add(&mut values[i][at + c * LANES..][..LANES], &lanes);
                }
            }
        }
    }

    /// Of position `s`, from dimension `at` on.
    #[inline(always)]
    fn value<S: Simd, const P: usize, const C: usize>(
        &self,
        simd: S,
        s: usize,
        at: usize,
    ) -> [Sum<S, P>; C] {
        let stored: &[[E; LANES]] = self.values[s * self.row + at..][..C * LANES].as_chunks().0;
        let mut value = [zero::<S, P>(simd); C];
        for c in 0..C {
            value[c] = bytemuck::cast(E::widen_lanes(simd, &stored[c]));
        }
        value
    }
}
