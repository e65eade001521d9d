//! Rows of E4M3 numbers with a scale each, as tiles take them: made in registers, once for all tokens.

use pulp::Simd;

use super::Rows;
use super::advance::Sums;
use super::lines::TileRows;
use crate::vector::e4m3::{scaled, step};
use crate::vector::steps::Steps;
use crate::vector::{LANES, Lanes};

/// Rows of one weight.
#[derive(Clone, Copy)]
pub struct ScaledRows<'a> {
    numbers: &'a [u8],
    /// Of each row.
    scales: &'a [f32],
    width: usize,
    stride: usize,
}

impl<'a> ScaledRows<'a> {
    pub fn of(rows: Rows<'a>) -> Self {
        let Rows { bytes: numbers, scales, width, stride, .. } = rows;
        assert_eq!(scales.len(), rows.count(), "a scale for each row");
        Self { numbers, scales, width, stride }
    }

    /// Adds up, and hands out each step of these rows with its number among the steps and the rows.
    #[inline(always)]
    fn each_step<K: Steps<Element = f32>, const P: usize, const R: usize, const U: usize>(
        self,
        kind: K,
        rows: [usize; R],
        from: usize,
        x: &[[Lanes; U]],
        sums: &mut Sums<K, P, R, U>,
        mut hand: impl FnMut([usize; 2], Lanes),
    ) {
        let mut lines: [&[u8]; R] = [&[]; R];
        let mut scales = [kind.simd().splat_f32s(0.0); R];
        for r in 0..R {
            lines[r] = &self.numbers[rows[r] * self.stride..][..self.width][from * LANES..];
            scales[r] = kind.simd().splat_f32s(self.scales[rows[r]]);
        }
        let mut lanes = *sums;
        for (i, x) in x.iter().enumerate() {
            for r in 0..R {
                let numbers = step(&lines[r][i * LANES..]);
                let numbers = scaled(kind.simd(), &numbers, scales[r]);
                hand([i, r], numbers);
                for t in 0..U {
                    let (a, b) = (bytemuck::cast(numbers), bytemuck::cast(x[t]));
                    kind.mul_add(a, b, &mut lanes[t][r]);
                }
            }
        }
        *sums = lanes;
    }
}

impl TileRows for ScaledRows<'_> {
    type Element = f32;

    #[inline(always)]
    fn count(self) -> usize {
        self.scales.len()
    }

    #[inline(always)]
    fn advance<K: Steps<Element = f32>, const P: usize, const R: usize, const U: usize>(
        self,
        kind: K,
        rows: [usize; R],
        from: usize,
        x: &[[Lanes; U]],
        _wide: &mut [[Lanes; R]],
        sums: &mut Sums<K, P, R, U>,
    ) {
        self.each_step(kind, rows, from, x, sums, |_, _| {});
    }

    #[inline(always)]
    fn advance_and_keep<K: Steps<Element = f32>, const P: usize, const R: usize, const U: usize>(
        self,
        kind: K,
        rows: [usize; R],
        from: usize,
        x: &[[Lanes; U]],
        wide: &mut [[Lanes; R]],
        sums: &mut Sums<K, P, R, U>,
    ) {
        self.each_step(kind, rows, from, x, sums, |[i, r], numbers| wide[i][r] = numbers);
    }
}
