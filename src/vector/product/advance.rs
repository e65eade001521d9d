//! How the sums of a tile advance: the innermost loop.

use bytemuck::Zeroable;
use pulp::Simd;

use crate::vector::Lanes;
use crate::vector::steps::{Steps, step_len};
use crate::vector::sums::{Sum, add_lanes_of_16, zero};

/// The steps `from..to` of some rows.
#[inline(always)]
pub fn steps_of<K: Steps, const R: usize>(
    lines: [&[K::Element]; R],
    from: usize,
    to: usize,
) -> [&[K::Step]; R] {
    let mut steps: [&[K::Step]; R] = [&[]; R];
    for (steps, line) in steps.iter_mut().zip(lines) {
        *steps = bytemuck::cast_slice(&line[from * step_len::<K>()..to * step_len::<K>()]);
    }
    steps
}

/// What is left of some rows after their last whole step, with zeros, as a step.
#[inline(always)]
pub fn tail_of<K: Steps, const R: usize>(lines: [&[K::Element]; R]) -> [[K::Step; 1]; R] {
    let mut tails = [[K::Step::zeroed()]; R];
    for (tail, line) in tails.iter_mut().zip(lines) {
        let left = &line[line.len() / step_len::<K>() * step_len::<K>()..];
        bytemuck::cast_slice_mut(tail)[..left.len()].copy_from_slice(left);
    }
    tails
}

/// The rows of a tile, step by step.
pub trait Left<K: Steps, const P: usize, const R: usize> {
    fn step(&mut self, steps: K, step: usize) -> [Sum<K::Simd, P>; R];
}

/// As they are stored.
pub struct Stored<'a, Step, const R: usize>(pub [&'a [Step]; R]);

/// As they are stored, and kept as lanes.
pub struct Widening<'a, Step, const R: usize> {
    pub rows: [&'a [Step]; R],
    pub wide: &'a mut [[Lanes; R]],
}

/// As lanes.
pub struct Wide<'a, const R: usize>(pub &'a [[Lanes; R]]);

impl<K: Steps, const P: usize, const R: usize> Left<K, P, R> for Stored<'_, K::Step, R> {
    #[inline(always)]
    fn step(&mut self, steps: K, step: usize) -> [Sum<K::Simd, P>; R] {
        let mut rows = [zero::<K::Simd, P>(steps.simd()); R];
        for (row, stored) in rows.iter_mut().zip(&self.0) {
            *row = bytemuck::cast(steps.lanes(&stored[step]));
        }
        rows
    }
}

impl<K: Steps, const P: usize, const R: usize> Left<K, P, R> for Widening<'_, K::Step, R> {
    #[inline(always)]
    fn step(&mut self, steps: K, step: usize) -> [Sum<K::Simd, P>; R] {
        for (wide, stored) in self.wide[step].iter_mut().zip(&self.rows) {
            *wide = steps.lanes(&stored[step]);
        }
        Wide(self.wide).step(steps, step)
    }
}

impl<K: Steps, const P: usize, const R: usize> Left<K, P, R> for Wide<'_, R> {
    #[inline(always)]
    fn step(&mut self, steps: K, step: usize) -> [Sum<K::Simd, P>; R] {
        let mut rows = [zero::<K::Simd, P>(steps.simd()); R];
        for (row, wide) in rows.iter_mut().zip(self.0[step]) {
            *row = bytemuck::cast(wide);
        }
        rows
    }
}

/// The sums of `R` rows with `T` tokens.
pub type Sums<K, const P: usize, const R: usize, const T: usize> =
    [[Sum<<K as Steps>::Simd, P>; R]; T];

/// Adds to them the products of as many steps as `x` has.
#[inline(always)]
pub fn advance<K: Steps, const P: usize, const R: usize, const T: usize>(
    steps: K,
    left: &mut impl Left<K, P, R>,
    x: &[[Lanes; T]],
    sums: &mut Sums<K, P, R, T>,
) {
    let mut lanes = *sums;
    for (step, x) in x.iter().enumerate() {
        let rows = left.step(steps, step);
        for t in 0..T {
            let x: Sum<K::Simd, P> = bytemuck::cast(x[t]);
            for r in 0..R {
                steps.mul_add(rows[r], x, &mut lanes[t][r]);
            }
        }
    }
    *sums = lanes;
}

/// The dot products that a tile's lanes add up to.
#[inline(always)]
pub fn add_lanes_of_tile<S: Simd, const P: usize, const R: usize, const T: usize>(
    simd: S,
    lanes: [[Sum<S, P>; R]; T],
) -> [[f32; R]; T] {
    let mut dots = [[0.0; R]; T];
    for first in (0..R * T).step_by(16) {
        let mut group = [[zero::<S, P>(simd); 4]; 4];
        for i in first..(first + 16).min(R * T) {
            group[(i - first) / 4][(i - first) % 4] = lanes[i / R][i % R];
        }
        let sums = add_lanes_of_16(simd, group);
        for i in first..(first + 16).min(R * T) {
            dots[i / R][i % R] = sums[i - first];
        }
    }
    dots
}
