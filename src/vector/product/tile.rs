//! One task of a product: some rows with all tokens, in tiles that keep their sums in registers.

use pulp::{Arch, Simd, WithSimd};

use super::queue::{FEW, FEW_ROWS, MANY_ROWS};
use super::{Inputs, Rows, Store};
use crate::for_dtype;
use crate::vector::sums::{Sum, add_lanes_of_16, mul_add, padded, zero};
use crate::vector::{Element, LANES, Lanes};

/// Tokens whose part of a slice stays in a core's L2 cache while the task's rows meet them; whole panels
/// in every instruction set.
const BLOCK: usize = 60;
/// Steps of a slice of K: a tile's rows, widened, stay in the L1 cache.
const SLICE: usize = 128;
/// Rows of a tile at most.
const TILE_ROWS: usize = 4;

/// What one weight's products with a block are before they are stored.
const BLOCK_SUMS: usize = BLOCK * MANY_ROWS;
const _: () = assert!(FEW * FEW_ROWS <= BLOCK_SUMS);
/// Weights of a product at most.
const WEIGHTS: usize = 2;

/// What a worker has for itself: the products of a block, a tile's widened rows, and the lanes of a block
/// between two slices.
pub const WORKER_LANES: usize = WEIGHTS * BLOCK_SUMS / LANES + SLICE * TILE_ROWS + BLOCK_SUMS;

/// Tokens of a panel: as many as a tile's sums leave registers for.
const fn tile_tokens(f32_lanes: usize) -> usize {
    match f32_lanes {
        16 => 6,
        8 => 3,
        4 => 2,
        _ => 1,
    }
}

/// [`tile_tokens`] of an instruction set.
pub fn panel_tokens(arch: Arch) -> usize {
    struct Ask;
    impl WithSimd for Ask {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _simd: S) -> usize {
            tile_tokens(S::F32_LANES)
        }
    }
    arch.dispatch(Ask)
}

/// Some rows of each weight with all tokens: sums of a block after another, each then stored.
pub fn task<const M: usize>(
    weights: [Rows<'_>; M],
    columns: &mut [&mut [f32]],
    inputs: Inputs<'_>,
    own: &mut [Lanes],
    store: Store<'_, M>,
) {
    const { assert!(M <= WEIGHTS) };
    let (sums, own) = own.split_at_mut(WEIGHTS * BLOCK_SUMS / LANES);
    let mut sums = sums.as_flattened_mut().chunks_exact_mut(BLOCK_SUMS);
    let mut sums: [&mut [f32]; M] =
        std::array::from_fn(|_| sums.next().expect("room for all weights"));
    let (rows, steps) = (weights[0].count(), inputs.width.div_ceil(LANES));
    for (columns, x) in columns.chunks_mut(BLOCK).zip(inputs.panels.chunks(BLOCK * steps)) {
        for (weight, sums) in weights.into_iter().zip(&mut sums) {
            let few = inputs.tokens <= panel_tokens(inputs.arch);
            for_dtype!(weight.dtype, W => {
                let rows = Typed::<W>::of(weight);
                inputs.arch.dispatch(Block { rows, steps, x, few, sums, own });
            });
        }
        for (t, y) in columns.iter_mut().enumerate() {
            store(y, sums.each_ref().map(|sums| &sums[t * rows..][..rows]));
        }
    }
}

/// [`Rows`] of one type.
#[derive(Clone, Copy)]
struct Typed<'a, W> {
    elements: &'a [W],
    width: usize,
    stride: usize,
}

impl<'a, W: Element> Typed<'a, W> {
    fn of(rows: Rows<'a>) -> Self {
        assert_eq!(rows.dtype, W::DTYPE);
        let elements = bytemuck::cast_slice(rows.bytes);
        Self { elements, width: rows.width, stride: rows.stride }
    }

    #[inline(always)]
    fn count(self) -> usize {
        self.elements.len().div_ceil(self.stride)
    }

    #[inline(always)]
    fn row(self, i: usize) -> &'a [W] {
        &self.elements[i * self.stride..][..self.width]
    }
}

/// `sums[t][n] = rows[n] . x[t]`
struct Block<'b, 'a, W> {
    rows: Typed<'a, W>,
    /// Of K.
    steps: usize,
    /// The block's panels.
    x: &'b [Lanes],
    /// Whether there is one panel in all.
    few: bool,
    /// Out. `[token][row]`
    sums: &'b mut [f32],
    own: &'b mut [Lanes],
}

impl<W: Element> WithSimd for Block<'_, '_, W> {
    type Output = ();

    /// In tiles of rows x tokens whose sums leave registers for a row each: 24 of AVX-512's 32, 12 of
    /// AVX2's 16, 16 of NEON's 32.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if const { S::F32_LANES == 16 } {
            self.multiply::<S, 1, 4, 6>(simd);
        } else if const { S::F32_LANES == 8 } {
            self.multiply::<S, 2, 2, 3>(simd);
        } else if const { S::F32_LANES == 4 } {
            self.multiply::<S, 4, 2, 2>(simd);
        } else {
            self.multiply::<S, LANES, 1, 1>(simd);
        }
    }
}

impl<W: Element> Block<'_, '_, W> {
    #[inline(always)]
    fn multiply<S: Simd, const P: usize, const R: usize, const T: usize>(self, simd: S) {
        const { assert!(R <= TILE_ROWS && T <= FEW && BLOCK.is_multiple_of(T)) };
        assert_eq!(T, tile_tokens(S::F32_LANES));
        let Self { rows, steps, x, few, sums, own } = self;
        if few {
            return Few { rows, x, sums }.stream_all::<S, P, R, T>(simd);
        }
        let (wide, kept) = own.split_at_mut(SLICE * TILE_ROWS);
        let wide = wide.as_chunks_mut::<R>().0;
        Many { rows, steps, x, sums, wide, kept }.multiply::<S, P, T>(simd);
    }
}

/// The few tokens of one panel.
struct Few<'b, 'a, W> {
    rows: Typed<'a, W>,
    /// Their panel.
    x: &'b [Lanes],
    /// Out. `[token][row]`
    sums: &'b mut [f32],
}

impl<W: Element> Few<'_, '_, W> {
    #[inline(always)]
    fn stream_all<S: Simd, const P: usize, const R: usize, const T: usize>(self, simd: S) {
        match self.x.len() / self.rows.width.div_ceil(LANES) {
            1 if const { R == 1 } => self.stream::<S, P, R, 1, T>(simd),
            1 => self.stream::<S, P, TILE_ROWS, 1, T>(simd),
            2 => self.stream::<S, P, R, 2, T>(simd),
            3 => self.stream::<S, P, R, 3, T>(simd),
            4 => self.stream::<S, P, R, 4, T>(simd),
            5 => self.stream::<S, P, R, 5, T>(simd),
            _ => self.stream::<S, P, R, 6, T>(simd),
        }
    }

    /// `U` tokens, of `T` at most. The rows are `R` streams, far from each other: a plain read's
    /// prefetchers can follow each of them, which adjacent rows defeat (EPYC 9004, 2026-11).
    #[inline(always)]
    fn stream<S: Simd, const P: usize, const R: usize, const U: usize, const T: usize>(
        self,
        simd: S,
    ) {
        if const { U > T } {
            unreachable!("{U} tokens in a panel of {T}");
        }
        let Self { rows, x, sums } = self;
        let n = rows.count();
        let far = n.div_ceil(R);
        let (x, _) = x.as_chunks::<U>();
        let whole = rows.width / LANES;
        for i in 0..far {
            let mut lines: [&[W]; R] = [&[]; R];
            for (r, line) in lines.iter_mut().enumerate() {
                *line = rows.row((i + r * far).min(n - 1));
            }
            let mut lanes = [[zero::<S, P>(simd); R]; U];
            advance(simd, &mut Stored(steps_of(lines, 0, whole)), &x[..whole], &mut lanes);
            if whole < x.len() {
                let tail = tail_of(lines);
                let rows = tail.each_ref().map(|tail| &tail[..]);
                advance(simd, &mut Stored(rows), &x[whole..], &mut lanes);
            }
            for (t, dots) in add_lanes_of_tile(simd, lanes).iter().enumerate() {
                for (r, dot) in dots.iter().enumerate() {
                    let row = i + r * far;
                    if row < n {
                        sums[t * n + row] = *dot;
                    }
                }
            }
        }
    }
}

/// A block of several panels, or one of several blocks.
struct Many<'b, 'a, W, const R: usize> {
    rows: Typed<'a, W>,
    /// Of K.
    steps: usize,
    /// The block's panels.
    x: &'b [Lanes],
    /// Out. `[token][row]`
    sums: &'b mut [f32],
    /// A tile's rows in the slice at hand. `[SLICE][R]`
    wide: &'b mut [[Lanes; R]],
    /// The sums of all tiles between two slices. `[tile][panel][T][R]`
    kept: &'b mut [Lanes],
}

impl<W: Element, const R: usize> Many<'_, '_, W, R> {
    /// Slice by slice, so that inputs stay in the L2 cache until all rows have met them, and a tile's rows,
    /// widened while the first panel meets them, in the L1 cache until all panels have. Between
    /// slices all lanes are kept: the tree comes once, at the end.
    #[inline(always)]
    fn multiply<S: Simd, const P: usize, const T: usize>(mut self, simd: S) {
        let tiles = self.rows.count().div_ceil(R);
        let panels = self.x.len().div_ceil(T * self.steps);
        for from in (0..self.steps).step_by(SLICE) {
            for tile in 0..tiles {
                for panel in 0..panels {
                    let x = &self.x[panel * T * self.steps..];
                    let tokens = (x.len() / self.steps).min(T);
                    let at = [tile, panel, tile * panels + panel];
                    match tokens {
                        1 => self.tile::<S, P, T, 1>(simd, from, at),
                        2 => self.tile::<S, P, T, 2>(simd, from, at),
                        3 => self.tile::<S, P, T, 3>(simd, from, at),
                        4 => self.tile::<S, P, T, 4>(simd, from, at),
                        5 => self.tile::<S, P, T, 5>(simd, from, at),
                        _ => self.tile::<S, P, T, 6>(simd, from, at),
                    }
                }
            }
        }
    }

    /// One tile's step over a slice, from step `from` on, with a panel of `U` tokens; others have `T`.
    #[inline(always)]
    fn tile<S: Simd, const P: usize, const T: usize, const U: usize>(
        &mut self,
        simd: S,
        from: usize,
        [tile, panel, place]: [usize; 3],
    ) {
        if const { U > T } {
            unreachable!("{U} tokens in a panel of {T}");
        }
        let n = self.rows.count();
        let to = (from + SLICE).min(self.steps);
        let (x, _) = self.x[panel * T * self.steps..][..U * self.steps].as_chunks::<U>();
        let x = &x[from..to];
        let mut lanes = [[zero::<S, P>(simd); R]; U];
        let kept = &mut self.kept[place * R * T..][..R * U];
        if from > 0 {
            for (lanes, kept) in lanes.as_flattened_mut().iter_mut().zip(&*kept) {
                *lanes = bytemuck::cast(*kept);
            }
        }
        let wide = &mut self.wide[..to - from];
        if panel == 0 {
            let mut lines: [&[W]; R] = [&[]; R];
            for (r, line) in lines.iter_mut().enumerate() {
                *line = self.rows.row((R * tile + r).min(n - 1));
            }
            let whole = (self.rows.width / LANES).clamp(from, to);
            let (wide, last) = wide.split_at_mut(whole - from);
            let rows = steps_of(lines, from, whole);
            advance(simd, &mut Widening { rows, wide }, &x[..whole - from], &mut lanes);
            if whole < to {
                let tail = tail_of(lines);
                let rows = tail.each_ref().map(|tail| &tail[..]);
                advance(simd, &mut Widening { rows, wide: last }, &x[whole - from..], &mut lanes);
            }
        } else {
            advance(simd, &mut Wide(wide), x, &mut lanes);
        }
        if to < self.steps {
            for (lanes, kept) in lanes.as_flattened().iter().zip(kept) {
                *kept = bytemuck::cast(*lanes);
            }
            return;
        }
        for (t, dots) in add_lanes_of_tile(simd, lanes).iter().enumerate() {
            let sums = &mut self.sums[(panel * T + t) * n..][..n];
            for (sum, dot) in sums[R * tile..].iter_mut().zip(dots) {
                *sum = *dot;
            }
        }
    }
}

/// The steps `from..to` of some rows.
#[inline(always)]
fn steps_of<W, const R: usize>(lines: [&[W]; R], from: usize, to: usize) -> [&[[W; LANES]]; R] {
    let mut steps: [&[[W; LANES]]; R] = [&[]; R];
    for (steps, line) in steps.iter_mut().zip(lines) {
        *steps = &line.as_chunks().0[from..to];
    }
    steps
}

/// What is left of some rows after their last whole step, with zeros, as a step.
#[inline(always)]
fn tail_of<W: Element, const R: usize>(lines: [&[W]; R]) -> [[[W; LANES]; 1]; R] {
    let mut tails = [[[W::zeroed(); LANES]]; R];
    for (tail, line) in tails.iter_mut().zip(lines) {
        *tail = [padded(line.as_chunks::<LANES>().1)];
    }
    tails
}

/// The rows of a tile, step by step.
trait Left<S: Simd, const P: usize, const R: usize> {
    fn step(&mut self, simd: S, step: usize) -> [Sum<S, P>; R];
}

/// As they are stored.
struct Stored<'a, W, const R: usize>([&'a [[W; LANES]]; R]);

/// As they are stored, and kept as f32.
struct Widening<'a, W, const R: usize> {
    rows: [&'a [[W; LANES]]; R],
    wide: &'a mut [[Lanes; R]],
}

/// As f32.
struct Wide<'a, const R: usize>(&'a [[Lanes; R]]);

impl<S: Simd, W: Element, const P: usize, const R: usize> Left<S, P, R> for Stored<'_, W, R> {
    #[inline(always)]
    fn step(&mut self, simd: S, step: usize) -> [Sum<S, P>; R] {
        let mut rows = [zero::<S, P>(simd); R];
        for (row, stored) in rows.iter_mut().zip(&self.0) {
            *row = bytemuck::cast(W::widen_lanes(simd, &stored[step]));
        }
        rows
    }
}

impl<S: Simd, W: Element, const P: usize, const R: usize> Left<S, P, R> for Widening<'_, W, R> {
    #[inline(always)]
    fn step(&mut self, simd: S, step: usize) -> [Sum<S, P>; R] {
        for (wide, stored) in self.wide[step].iter_mut().zip(&self.rows) {
            *wide = W::widen_lanes(simd, &stored[step]);
        }
        Wide(self.wide).step(simd, step)
    }
}

impl<S: Simd, const P: usize, const R: usize> Left<S, P, R> for Wide<'_, R> {
    #[inline(always)]
    fn step(&mut self, simd: S, step: usize) -> [Sum<S, P>; R] {
        let mut rows = [zero::<S, P>(simd); R];
        for (row, wide) in rows.iter_mut().zip(self.0[step]) {
            *row = bytemuck::cast(wide);
        }
        rows
    }
}

/// Adds to the sums of `R` rows with `T` tokens the products of as many steps as `x` has.
#[inline(always)]
fn advance<S: Simd, const P: usize, const R: usize, const T: usize>(
    simd: S,
    left: &mut impl Left<S, P, R>,
    x: &[[Lanes; T]],
    sums: &mut [[Sum<S, P>; R]; T],
) {
    let mut lanes = *sums;
    for (step, x) in x.iter().enumerate() {
        let rows = left.step(simd, step);
        for t in 0..T {
            let x: Sum<S, P> = bytemuck::cast(x[t]);
            for r in 0..R {
                mul_add(simd, rows[r], x, &mut lanes[t][r]);
            }
        }
    }
    *sums = lanes;
}

/// The dot products that a tile's lanes add up to.
#[inline(always)]
fn add_lanes_of_tile<S: Simd, const P: usize, const R: usize, const T: usize>(
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
