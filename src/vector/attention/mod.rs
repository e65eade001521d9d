//! Attention over a cache of keys and values, streamed in blocks of positions.
//!
//! The cache is cut at every [`BLOCK`]th position. Of each block a query takes the largest score, the sum
//! of the weights beside it and the values so weighted, and merges them into what it has, block by
//! block, in order ([`State`]; Milakov and Gimelshein, 2018, arXiv:1805.02867). What comes out depends
//! on the query's position alone: not on who found a block, nor on which queries met it together.

mod tile;

use rayon::prelude::*;

use super::{Element, SET, Simd, WithSimd};
use crate::memory::Scratch;
use pulp::Arch;
use tile::{State, Tile};

/// Positions of the cache that are weighted together.
pub const BLOCK: usize = 128;
/// Queries of a KV head that meet a block together.
const QUERIES: usize = 4;

/// Causal attention of all heads of the tokens from position `first` on; the cache holds their own keys
/// and values already. Query head h reads KV head `h / (H / G)`.
#[derive(Clone, Copy)]
pub struct Attention<'a, E> {
    /// `[T, H, D]`
    pub q: &'a [f32],
    /// `[S, G, D]`
    pub keys: &'a [E],
    /// `[S, G, D]`
    pub values: &'a [E],
    pub first: usize,
    /// H
    pub heads: usize,
    /// G
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
}

/// Bytes of scratch that attention of one token takes over a cache of `context` positions.
pub fn attention_scratch(heads: usize, head_dim: usize, context: usize) -> usize {
    let found = heads.saturating_mul(head_dim + State::NUMBERS);
    Scratch::bytes_of::<f32>(context.div_ceil(BLOCK).saturating_mul(found))
}

impl<E: Element> Attention<'_, E> {
    /// `y`: `[T, H, D]`
    pub fn run(&self, y: &mut [f32], scratch: &mut Scratch<'_>) {
        self.run_for(SET.arch, y, scratch);
    }

    pub(super) fn run_for(&self, arch: Arch, y: &mut [f32], scratch: &mut Scratch<'_>) {
        assert_eq!(self.q.len(), y.len());
        if y.len() == self.heads * self.head_dim {
            self.one(arch, y, scratch);
        } else {
            self.several(arch, y);
        }
    }

    /// One token: tasks take a block of one KV head each, and what they have found is merged in the end.
    fn one(&self, arch: Arch, y: &mut [f32], scratch: &mut Scratch<'_>) {
        /// Cache elements that are worth a task of their own.
        const TASK: usize = 32 * 1024;
        let (group, seen) = (self.heads / self.kv_heads, self.first + 1);
        let size = self.head_dim + State::NUMBERS;
        let found = scratch.take::<f32>(seen.div_ceil(BLOCK) * self.heads * size);
        let least = (TASK / (BLOCK * self.head_dim)).max(1);
        found.par_chunks_mut(group * size).enumerate().with_min_len(least).for_each(
            |(i, found)| {
                let (block, kv_head) = (i / self.kv_heads, i % self.kv_heads);
                arch.dispatch(OfBlock { attention: self, block, kv_head, found });
            },
        );
        arch.dispatch(Merge { found, y, head_dim: self.head_dim });
    }

    /// Several tokens: tasks take some of them, the last ones, which see most, first.
    fn several(&self, arch: Arch, y: &mut [f32]) {
        /// Tokens of a task at most: enough for a block to be met from the L2 cache.
        const TOKENS: usize = 16;
        let row = self.heads * self.head_dim;
        let share = y.len() / row / (4 * rayon::current_num_threads());
        let tokens = share.clamp(1, TOKENS);
        y.par_chunks_mut(tokens * row).enumerate().rev().for_each(|(i, y)| {
            arch.dispatch(OfTokens { attention: self, token: i * tokens, y });
        });
    }

    /// How far the query of a token sees into a block.
    fn seen(&self, token: usize, block: usize) -> usize {
        (self.first + token + 1).saturating_sub(block * BLOCK).min(BLOCK)
    }

    /// From the first element of a block of a KV head on. `keys` or `values`
    fn block<'e>(&self, stored: &'e [E], block: usize, kv_head: usize) -> &'e [E] {
        &stored[(block * BLOCK * self.kv_heads + kv_head) * self.head_dim..]
    }
}

/// What one block says to the one token's queries of a KV head.
struct OfBlock<'a, E> {
    attention: &'a Attention<'a, E>,
    block: usize,
    kv_head: usize,
    /// Out: a state, then its values, for each query head of the group.
    found: &'a mut [f32],
}

impl<E: Element> WithSimd for OfBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { attention, block, kv_head, found } = self;
        let (d, group) = (attention.head_dim, attention.heads / attention.kv_heads);
        let seen = attention.seen(0, block);
        let queries = attention.q[kv_head * group * d..][..group * d].chunks(QUERIES * d);
        for (q, found) in queries.zip(found.chunks_mut(QUERIES * (d + State::NUMBERS))) {
            let mut tile = Tile::new(attention, block, kv_head);
            let mut states = [State::default(); QUERIES];
            let mut values: [&mut [f32]; QUERIES] = Default::default();
            let each = q.chunks(d).zip(found.chunks_mut(d + State::NUMBERS));
            let mut numbers: [&mut [f32]; QUERIES] = Default::default();
            for (i, (q, found)) in each.enumerate() {
                (numbers[i], values[i]) = found.split_at_mut(State::NUMBERS);
                values[i].fill(0.0);
                (tile.q[i], tile.seen[i]) = (q, seen);
            }
            tile.meet(simd, &mut states, &mut values);
            for (numbers, state) in numbers.iter_mut().zip(states).take(q.len() / d) {
                numbers.copy_from_slice(&state.numbers());
            }
        }
    }
}

/// Puts the blocks together, in order.
struct Merge<'a> {
    /// `[block, H]` of a state and its values
    found: &'a [f32],
    /// `[H, D]`
    y: &'a mut [f32],
    head_dim: usize,
}

impl WithSimd for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let size = self.head_dim + State::NUMBERS;
        let row = self.y.len() / self.head_dim * size;
        for (head, y) in self.y.chunks_exact_mut(self.head_dim).enumerate() {
            let mut state = State::default();
            y.fill(0.0);
            for of_block in self.found.chunks_exact(row) {
                let (numbers, values) = of_block[head * size..][..size].split_at(State::NUMBERS);
                let factors = state.merge(State::of(numbers));
                factors.add(y, values);
            }
            state.normalise(y);
        }
    }
}

/// Some tokens, with all blocks that they see.
struct OfTokens<'a, E> {
    attention: &'a Attention<'a, E>,
    /// The first.
    token: usize,
    /// Out. `[some, H, D]`
    y: &'a mut [f32],
}

impl<E: Element> WithSimd for OfTokens<'_, E> {
    type Output = ();

    /// KV head by KV head, some tiles of its queries at a time: a block that one of them has read is in the
    /// L2 cache for the others.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const TILES: usize = 16;
        let Self { attention, token, y } = self;
        let &Attention { q, heads, kv_heads, head_dim, first, .. } = attention;
        y.fill(0.0);
        let (group, tokens) = (heads / kv_heads, y.len() / (heads * head_dim));
        let blocks = (first + token + tokens).div_ceil(BLOCK);
        let q = &q[token * heads * head_dim..][..y.len()];
        for kv_head in 0..kv_heads {
            for some in (0..tokens * group).step_by(TILES * QUERIES) {
                let some = some..(some + TILES * QUERIES).min(tokens * group);
                let mut states = [[State::default(); QUERIES]; TILES];
                for block in 0..blocks {
                    for (states, tile_start) in states.iter_mut().zip(some.clone().step_by(QUERIES))
                    {
                        let queries = tile_start..(tile_start + QUERIES).min(some.end);
                        let mut tile = Tile::new(attention, block, kv_head);
                        let mut values: [&mut [f32]; QUERIES] = Default::default();
                        let mut rest = &mut *y;
                        let mut before = 0;
                        for (i, query) in queries.enumerate() {
                            let (of, head) = (query / group, kv_head * group + query % group);
                            let at = (of * heads + head) * head_dim;
                            let (_, from) = rest.split_at_mut(at - before);
                            (values[i], rest) = from.split_at_mut(head_dim);
                            before = at + head_dim;
                            tile.q[i] = &q[at..][..head_dim];
                            tile.seen[i] = attention.seen(token + of, block);
                        }
                        tile.meet(simd, states, &mut values);
                    }
                }
                for (query, state) in some.zip(states.as_flattened()) {
                    let head = kv_head * group + query % group;
                    let at = (query / group * heads + head) * head_dim;
                    state.normalise(&mut y[at..][..head_dim]);
                }
            }
        }
    }
}
