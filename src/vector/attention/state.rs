//! What queries find, block by block, and how it is merged.

use crate::vector::exp::exp;

/// What a query has found so far, beside its weighted values.
#[derive(Debug, Clone, Copy)]
pub struct OnlineSoftmax {
    /// The largest score.
    pub max: f32,
    /// Of the weights `e^(score - max)`.
    pub sum: f32,
}

impl Default for OnlineSoftmax {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0 }
    }
}

/// What values count for when two states have become one.
#[derive(Debug, Clone, Copy)]
pub struct Factors {
    pub mine: f32,
    pub other: f32,
}

impl OnlineSoftmax {
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
