//! One task of a product: some rows with all tokens, in tiles that keep their sums in registers.

use half::bf16;
use pulp::{Arch, Simd, WithSimd};

use super::advance::{Wide, add_lanes_of_tile, advance};
use super::lines::{Coded, Plain, TileRows};
use super::queue::{FEW, FEW_ROWS, MANY_ROWS};
use super::scaled::ScaledRows;
use super::{Inputs, Rows, Store};
use crate::encoding::{Encoding, Float};
use crate::for_float;
use crate::vector::pairs::{PairStep, WithPairs};
use crate::vector::steps::{Singles, Steps};
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

/// What a worker has for itself: the products of a block, and a tile's widened rows.
pub const WORKER_LANES: usize = WEIGHTS * BLOCK_SUMS / LANES + SLICE * TILE_ROWS;

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
                match weight.encoding {
                    Encoding::Plain(float) => for_float!(float, W => {
                        let rows = Plain::<W>::of(weight);
                        set.arch.dispatch(OfSingles(Block { rows, steps, x, few, sums, own }));
                    }),
                    Encoding::Blocks(blocks) => {
                        let rows = Coded::of(blocks, weight);
                        set.arch.dispatch(OfSingles(Block { rows, steps, x, few, sums, own }));
                    }
                    Encoding::E4m3 => {
                        let rows = ScaledRows::of(weight);
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

/// `sums[t][n] = rows[n] . x[t]`
struct Block<'b, L> {
    rows: L,
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
struct OfSingles<'b, L>(Block<'b, L>);

impl<L: TileRows<Element: Element>> WithSimd for OfSingles<'_, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.0.in_tiles(Singles::<S, L::Element>::new(simd));
    }
}

/// Two numbers a lane.
struct OfPairs<'b, 'a>(Block<'b, Plain<'a, bf16>>);

impl WithPairs for OfPairs<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_pairs<K: Steps<Element = bf16, Step = PairStep>>(self, pairs: K) {
        self.0.in_tiles(pairs);
    }
}

impl<L: TileRows> Block<'_, L> {
    /// In tiles of rows x tokens whose sums leave registers for a row each: 24 of AVX-512's 32, 12 of
    /// AVX2's 16, 16 of NEON's 32.
    #[inline(always)]
    fn in_tiles<K: Steps<Element = L::Element>>(self, steps: K) {
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
    fn multiply<K: Steps<Element = L::Element>, const P: usize, const R: usize, const T: usize>(
        self,
        kind: K,
    ) {
        const { assert!(R <= TILE_ROWS && T <= FEW && BLOCK.is_multiple_of(T)) };
        assert_eq!(T, tile_tokens(K::Simd::F32_LANES));
        let Self { rows, steps, x, few, sums, own } = self;
        if few {
            return Few { kind, rows, steps, x, sums, own }.stream_all::<P, R, T>();
        }
        let wide = own.as_chunks_mut::<R>().0;
        Many { kind, rows, steps, x, sums, wide }.multiply::<P, T>();
    }
}

/// The few tokens of one panel.
struct Few<'b, K, L> {
    kind: K,
    rows: L,
    /// Of K.
    steps: usize,
    /// Their panel.
    x: &'b [Lanes],
    /// Out. `[token][row]`
    sums: &'b mut [f32],
    own: &'b mut [Lanes],
}

impl<K: Steps, L: TileRows<Element = K::Element>> Few<'_, K, L> {
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
        let Self { kind, rows, x, sums, own, .. } = self;
        let wide = own.as_chunks_mut::<R>().0;
        let n = rows.count();
        let far = n.div_ceil(R);
        let (x, _) = x.as_chunks::<U>();
        for i in 0..far {
            let mut tile = [0; R];
            for (r, row) in tile.iter_mut().enumerate() {
                *row = (i + r * far).min(n - 1);
            }
            for (slice, x) in x.chunks(SLICE).enumerate() {
                let mut lanes = [[zero::<K::Simd, P>(kind.simd()); R]; U];
                rows.advance(kind, tile, slice * SLICE, x, &mut wide[..x.len()], &mut lanes);
                for (t, dots) in add_lanes_of_tile(kind.simd(), lanes).iter().enumerate() {
                    for (r, dot) in dots.iter().enumerate() {
                        let row = i + r * far;
                        if row < n {
                            let sum = &mut sums[t * n + row];
                            *sum = if slice == 0 { *dot } else { *sum + *dot };
                        }
                    }
                }
            }
        }
    }
}

/// A block of several panels, or one of several blocks.
struct Many<'b, K, L, const R: usize> {
    kind: K,
    rows: L,
    /// Of K.
    steps: usize,
    /// The block's inputs. `[slice][panel][step][token of the panel]`
    x: &'b [Lanes],
    /// Out. `[token][row]`
    sums: &'b mut [f32],
    /// A tile's rows in the slice at hand. `[SLICE][R]`
    wide: &'b mut [[Lanes; R]],
}

impl<K: Steps, L: TileRows<Element = K::Element>, const R: usize> Many<'_, K, L, R> {
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
            let mut rows = [0; R];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = (R * tile + r).min(n - 1);
            }
            self.rows.advance_and_keep(kind, rows, from, x, wide, &mut lanes);
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
