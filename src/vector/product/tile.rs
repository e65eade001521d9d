//! One task of a product: some rows with all tokens, in tiles that keep their sums in registers.

use bytemuck::Pod;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};

use super::advance::{Stored, Wide, Widening, add_lanes_of_tile, advance, steps_of, tail_of};
use super::queue::{FEW, FEW_ROWS, MANY_ROWS};
use super::{Inputs, Rows, Store};
use crate::encoding::{Encoding, Float};
use crate::for_float;
use crate::vector::pairs::{PairStep, WithPairs};
use crate::vector::steps::{Singles, Steps, step_len};
use crate::vector::sums::{SLICE, zero};
use crate::vector::{Element, LANES, Lanes};

/// Tokens whose part of a slice stays in a core's L2 cache while the task's rows meet them; whole panels
/// in every instruction set.
pub const BLOCK: usize = 132;
/// Rows of a tile at most.
const TILE_ROWS: usize = 4;

/// What one weight's products with a block are before they are stored.
const BLOCK_SUMS: usize = BLOCK * MANY_ROWS;
const _: () = assert!(FEW * FEW_ROWS <= BLOCK_SUMS);
/// Weights of a product at most.
const WEIGHTS: usize = 2;

/// What a worker has for itself: the products of a block, a tile's widened rows, and a task's rows that are
/// stored in blocks, as f32.
pub fn worker_lanes(width: usize) -> usize {
    WORKER_LANES + dequantised_rows(width) * width.div_ceil(LANES)
}

const WORKER_LANES: usize = WEIGHTS * BLOCK_SUMS / LANES + SLICE * TILE_ROWS;

/// Rows of a task that are stored in blocks: as f32 they leave room for inputs in the L2 cache.
pub fn dequantised_rows(width: usize) -> usize {
    const BYTES: usize = 512 * 1024;
    (BYTES / size_of::<f32>() / width).next_multiple_of(4).clamp(16, MANY_ROWS)
}

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
    let (rows, steps, set) = (weights[0].count(), inputs.steps(), inputs.set);
    let few = inputs.tokens <= panel_tokens(set.arch);
    for (columns, x) in columns.chunks_mut(BLOCK).zip(inputs.panels.chunks(BLOCK * steps)) {
        for (weight, sums) in weights.into_iter().zip(&mut sums) {
            if inputs.dtype == Float::Bf16 {
                let rows = Plain::<bf16>::of(weight);
                set.dispatch_pairs(OfPairs(Block { rows, steps, x, few, sums, own }));
            } else {
                let (own, numbers) = own.split_at_mut(SLICE * TILE_ROWS);
                match weight.encoding {
                    Encoding::Plain(float) => for_float!(float, W => {
                        let rows = Plain::<W>::of(weight);
                        set.arch.dispatch(OfSingles(Block { rows, steps, x, few, sums, own }));
                    }),
                    Encoding::Blocks(_) => {
                        let rows = Plain::dequantised(weight, numbers.as_flattened_mut());
                        set.arch.dispatch(OfSingles(Block { rows, steps, x, few, sums, own }));
                    }
                }
            }
        }
        for (t, y) in columns.iter_mut().enumerate() {
            store(y, sums.each_ref().map(|sums| &sums[t * rows..][..rows]));
        }
    }
}

/// [`Rows`] of plain numbers of one type.
#[derive(Clone, Copy)]
pub struct Plain<'a, W> {
    elements: &'a [W],
    width: usize,
    stride: usize,
}

impl<'a, W: Element> Plain<'a, W> {
    pub fn of(rows: Rows<'a>) -> Self {
        assert_eq!(rows.encoding, W::FLOAT.into());
        let elements = bytemuck::cast_slice(rows.bytes);
        Self { elements, width: rows.width, stride: rows.stride }
    }
}

impl<'a> Plain<'a, f32> {
    /// What rows in blocks stand for, in `numbers`.
    fn dequantised(rows: Rows<'_>, numbers: &'a mut [f32]) -> Self {
        let (count, width) = (rows.count(), rows.width);
        let numbers = &mut numbers[..count * width];
        for (row, numbers) in numbers.chunks_exact_mut(width).enumerate() {
            rows.widen(row, numbers);
        }
        Self { elements: numbers, width, stride: width }
    }
}

impl<'a, W> Plain<'a, W> {
    #[inline(always)]
    fn count(self) -> usize {
        self.elements.len().div_ceil(self.stride)
    }

    #[inline(always)]
    pub fn row(self, i: usize) -> &'a [W] {
        &self.elements[i * self.stride..][..self.width]
    }
}

/// `sums[t][n] = rows[n] . x[t]`
struct Block<'b, 'a, W> {
    rows: Plain<'a, W>,
    /// Of K.
    steps: usize,
    /// The block's inputs. `[slice][panel][step][token of the panel]`
    x: &'b [Lanes],
    /// Whether there is one panel in all.
    few: bool,
    /// Out. `[token][row]`
    sums: &'b mut [f32],
    own: &'b mut [Lanes],
}

/// A number a lane.
struct OfSingles<'b, 'a, W>(Block<'b, 'a, W>);

impl<W: Element> WithSimd for OfSingles<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.0.in_tiles(Singles::<S, W>::new(simd));
    }
}

/// Two numbers a lane.
struct OfPairs<'b, 'a>(Block<'b, 'a, bf16>);

impl WithPairs for OfPairs<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_pairs<K: Steps<Element = bf16, Step = PairStep>>(self, pairs: K) {
        self.0.in_tiles(pairs);
    }
}

impl<W: Pod> Block<'_, '_, W> {
    /// In tiles of rows x tokens whose sums leave registers for a row each: 24 of AVX-512's 32, 12 of
    /// AVX2's 16, 16 of NEON's 32.
    #[inline(always)]
    fn in_tiles<K: Steps<Element = W>>(self, steps: K) {
        if const { K::Simd::F32_LANES == 16 } {
            self.multiply::<K, 1, 4, 6>(steps);
        } else if const { K::Simd::F32_LANES == 8 } {
            self.multiply::<K, 2, 2, 3>(steps);
        } else if const { K::Simd::F32_LANES == 4 } {
            self.multiply::<K, 4, 2, 2>(steps);
        } else {
            self.multiply::<K, LANES, 1, 1>(steps);
        }
    }

    #[inline(always)]
    fn multiply<K: Steps<Element = W>, const P: usize, const R: usize, const T: usize>(
        self,
        kind: K,
    ) {
        const { assert!(R <= TILE_ROWS && T <= FEW && BLOCK.is_multiple_of(T)) };
        assert_eq!(T, tile_tokens(K::Simd::F32_LANES));
        let Self { rows, steps, x, few, sums, own } = self;
        if few {
            return Few { kind, rows, steps, x, sums }.stream_all::<P, R, T>();
        }
        let wide = own[..SLICE * TILE_ROWS].as_chunks_mut::<R>().0;
        Many { kind, rows, steps, x, sums, wide }.multiply::<P, T>();
    }
}

/// The few tokens of one panel.
struct Few<'b, 'a, K: Steps> {
    kind: K,
    rows: Plain<'a, K::Element>,
    /// Of K.
    steps: usize,
    /// Their panel.
    x: &'b [Lanes],
    /// Out. `[token][row]`
    sums: &'b mut [f32],
}

impl<K: Steps> Few<'_, '_, K> {
    #[inline(always)]
    fn stream_all<const P: usize, const R: usize, const T: usize>(self) {
        match self.x.len() / self.steps {
            1 if const { R == 1 } => self.stream::<P, R, 1, T>(),
            1 => self.stream::<P, TILE_ROWS, 1, T>(),
            2 => self.stream::<P, R, 2, T>(),
            3 => self.stream::<P, R, 3, T>(),
            4 => self.stream::<P, R, 4, T>(),
            5 => self.stream::<P, R, 5, T>(),
            _ => self.stream::<P, R, 6, T>(),
        }
    }

    /// `U` tokens, of `T` at most. The rows are `R` streams, far from each other: a plain read's
    /// prefetchers can follow each of them, which adjacent rows defeat (EPYC 9004, 2026-11).
    #[inline(always)]
    fn stream<const P: usize, const R: usize, const U: usize, const T: usize>(self) {
        if const { U > T } {
            unreachable!("{U} tokens in a panel of {T}");
        }
        let Self { kind, rows, x, sums, .. } = self;
        let n = rows.count();
        let far = n.div_ceil(R);
        let (x, _) = x.as_chunks::<U>();
        let whole = rows.width / step_len::<K>();
        for i in 0..far {
            let mut lines: [&[K::Element]; R] = [&[]; R];
            for (r, line) in lines.iter_mut().enumerate() {
                *line = rows.row((i + r * far).min(n - 1));
            }
            for from in (0..x.len()).step_by(SLICE) {
                let to = (from + SLICE).min(x.len());
                let mut lanes = [[zero::<K::Simd, P>(kind.simd()); R]; U];
                let whole = whole.clamp(from, to);
                let mut stored = Stored(steps_of::<K, R>(lines, from, whole));
                advance(kind, &mut stored, &x[from..whole], &mut lanes);
                if whole < to {
                    let tail = tail_of::<K, R>(lines);
                    let rows = tail.each_ref().map(|tail| &tail[..]);
                    advance(kind, &mut Stored(rows), &x[whole..to], &mut lanes);
                }
                for (t, dots) in add_lanes_of_tile(kind.simd(), lanes).iter().enumerate() {
                    for (r, dot) in dots.iter().enumerate() {
                        let row = i + r * far;
                        if row < n {
                            let sum = &mut sums[t * n + row];
                            *sum = if from == 0 { *dot } else { *sum + *dot };
                        }
                    }
                }
            }
        }
    }
}

/// A block of several panels, or one of several blocks.
struct Many<'b, 'a, K: Steps, const R: usize> {
    kind: K,
    rows: Plain<'a, K::Element>,
    /// Of K.
    steps: usize,
    /// The block's inputs. `[slice][panel][step][token of the panel]`
    x: &'b [Lanes],
    /// Out. `[token][row]`
    sums: &'b mut [f32],
    /// A tile's rows in the slice at hand. `[SLICE][R]`
    wide: &'b mut [[Lanes; R]],
}

impl<K: Steps, const R: usize> Many<'_, '_, K, R> {
    /// Slice by slice, so that inputs stay in the L2 cache until all rows have met them, and a tile's rows,
    /// widened while the first panel meets them, in the L1 cache until all panels have.
    #[inline(always)]
    fn multiply<const P: usize, const T: usize>(mut self) {
        let tiles = self.rows.count().div_ceil(R);
        let tokens = self.x.len() / self.steps;
        let panels = tokens.div_ceil(T);
        for from in (0..self.steps).step_by(SLICE) {
            for tile in 0..tiles {
                for panel in 0..panels {
                    let at = [tile, panel];
                    match (tokens - panel * T).min(T) {
                        1 => self.tile::<P, T, 1>(from, at),
                        2 => self.tile::<P, T, 2>(from, at),
                        3 => self.tile::<P, T, 3>(from, at),
                        4 => self.tile::<P, T, 4>(from, at),
                        5 => self.tile::<P, T, 5>(from, at),
                        _ => self.tile::<P, T, 6>(from, at),
                    }
                }
            }
        }
    }

    /// One tile's step over a slice, from step `from` on, with a panel of `U` tokens; others have `T`.
    #[inline(always)]
    fn tile<const P: usize, const T: usize, const U: usize>(
        &mut self,
        from: usize,
        [tile, panel]: [usize; 2],
    ) {
        if const { U > T } {
            unreachable!("{U} tokens in a panel of {T}");
        }
        let (kind, n) = (self.kind, self.rows.count());
        let to = (from + SLICE).min(self.steps);
        let (tokens, slice) = (self.x.len() / self.steps, to - from);
        let x = &self.x[tokens * from + panel * T * slice..][..U * slice];
        let (x, _) = x.as_chunks::<U>();
        let mut lanes = [[zero::<K::Simd, P>(kind.simd()); R]; U];
        let wide = &mut self.wide[..to - from];
        if panel == 0 {
            let mut lines: [&[K::Element]; R] = [&[]; R];
            for (r, line) in lines.iter_mut().enumerate() {
                *line = self.rows.row((R * tile + r).min(n - 1));
            }
            let whole = (self.rows.width / step_len::<K>()).clamp(from, to);
            let (wide, last) = wide.split_at_mut(whole - from);
            let rows = steps_of::<K, R>(lines, from, whole);
            advance(kind, &mut Widening { rows, wide }, &x[..whole - from], &mut lanes);
            if whole < to {
                let tail = tail_of::<K, R>(lines);
                let rows = tail.each_ref().map(|tail| &tail[..]);
                advance(kind, &mut Widening { rows, wide: last }, &x[whole - from..], &mut lanes);
            }
        } else {
            advance(kind, &mut Wide(wide), x, &mut lanes);
        }
        for (t, dots) in add_lanes_of_tile(kind.simd(), lanes).iter().enumerate() {
            let sums = &mut self.sums[(panel * T + t) * n..][..n];
            for (sum, dot) in sums[R * tile..].iter_mut().zip(dots) {
                *sum = if from == 0 { *dot } else { *sum + *dot };
            }
        }
    }
}
