//! Attention over a cache of keys and values, streamed in blocks of positions.
//!
//! The cache is cut at every [`BLOCK`]th position. Of each block a query takes the largest score, the sum
//! of the weights beside it and the values so weighted, and merges them into what it has, block by
//! block, in order ([`OnlineSoftmax`]; Milakov and Gimelshein, 2018, arXiv:1805.02867). What comes out
//! depends on the query's position alone: not on who found a block, nor on which queries met it together.

mod state;
mod tile;

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::{Element, SET, Simd, WithSimd};
use crate::memory::Scratch;
use pulp::Arch;
use state::OnlineSoftmax;
use tile::{Part, QueryTile, Weighed};

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

/// Bytes of scratch that attention of so many tokens takes over a cache of `context` positions, on so many
/// threads.
pub fn attention_scratch(
    tokens: usize,
    heads: usize,
    head_dim: usize,
    context: usize,
    threads: usize,
) -> usize {
    if tokens > 1 {
        return Scratch::bytes_of::<f32>(threads.saturating_mul(BLOCK * head_dim));
    }
    let found = heads.saturating_mul(head_dim + OnlineSoftmax::NUMBERS);
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
            self.several(arch, y, scratch);
        }
    }

    /// One token: tasks take a block of one KV head each, and what they have found is merged in the end.
    fn one(&self, arch: Arch, y: &mut [f32], scratch: &mut Scratch<'_>) {
        /// Cache elements that are worth a task of their own.
        const TASK: usize = 32 * 1024;
        let (group, seen) = (self.heads / self.kv_heads, self.first + 1);
        let size = self.head_dim + OnlineSoftmax::NUMBERS;
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
    fn several(&self, arch: Arch, y: &mut [f32], scratch: &mut Scratch<'_>) {
        /// Tokens of a task at most: enough for a block to be copied seldom.
        const TOKENS: usize = 64;
        let (row, own) = (self.heads * self.head_dim, BLOCK * self.head_dim);
        let threads = rayon::current_num_threads();
        let tokens = (y.len() / row).div_ceil(2 * threads).min(TOKENS);
        let workers = threads.min(scratch.bytes() / Scratch::bytes_of::<f32>(own)).max(1);
        let own = scratch.take::<f32>(workers * own).par_chunks_exact_mut(own).with_max_len(1);
        let tasks = Mutex::new(y.chunks_mut(tokens * row).enumerate().rev());
        let next = || tasks.lock().expect("no worker has panicked").next();
        own.for_each(|own| {
            while let Some((i, y)) = next() {
                arch.dispatch(OfTokens { attention: self, token: i * tokens, own, y });
            }
        });
    }

    /// How far the query of a token sees into a block.
    fn seen(&self, token: usize, block: usize) -> usize {
        (self.first + token + 1).saturating_sub(block * BLOCK).min(BLOCK)
    }

    /// A block of a KV head's keys and values.
    fn parts(&self, block: usize, kv_head: usize) -> [Part<'_, E>; 2] {
        let first = (block * BLOCK * self.kv_heads + kv_head) * self.head_dim;
        let row = self.kv_heads * self.head_dim;
        [self.keys, self.values].map(|stored| Part { elements: &stored[first..], row })
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
        let [keys, values] = attention.parts(block, kv_head);
        let mut weighed = Weighed::default();
        for (q, found) in queries.zip(found.chunks_mut(QUERIES * (d + OnlineSoftmax::NUMBERS))) {
            let tile = QueryTile::new(q.chunks(d).map(|q| (q, seen)));
            let mut states = [OnlineSoftmax::default(); QUERIES];
            let mut sums: [&mut [f32]; QUERIES] = Default::default();
            let mut numbers: [&mut [f32]; QUERIES] = Default::default();
            for (i, found) in found.chunks_mut(d + OnlineSoftmax::NUMBERS).enumerate() {
                (numbers[i], sums[i]) = found.split_at_mut(OnlineSoftmax::NUMBERS);
                sums[i].fill(0.0);
            }
            tile.weigh(simd, keys, &mut weighed);
            tile.add(simd, &weighed, values, &mut states, &mut sums);
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
        let size = self.head_dim + OnlineSoftmax::NUMBERS;
        let row = self.y.len() / self.head_dim * size;
        for (head, y) in self.y.chunks_exact_mut(self.head_dim).enumerate() {
            let mut state = OnlineSoftmax::default();
            y.fill(0.0);
            for of_block in self.found.chunks_exact(row) {
                let (numbers, values) =
                    of_block[head * size..][..size].split_at(OnlineSoftmax::NUMBERS);
                let factors = state.merge(OnlineSoftmax::of(numbers));
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
    /// A block's keys or values of a KV head. `[BLOCK, D]`
    own: &'a mut [f32],
    /// Out. `[some, H, D]`
    y: &'a mut [f32],
}

/// Tiles of a KV head's queries that meet a block together.
const TILES: usize = 64;
/// Queries for which a block is not copied: they would use it once or twice.
const FEW: usize = 2 * QUERIES;

impl<E: Element> WithSimd for OfTokens<'_, E> {
    type Output = ();

    /// KV head by KV head, some tiles of its queries at a time. A block's keys, then its values, are copied
    /// to one place, where they stay in a core's nearest caches until all tiles have met them: in the cache
    /// of keys and values positions are so far apart that they would push each other out.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { attention, token, own, y } = self;
        let &Attention { heads, kv_heads, head_dim: d, first, .. } = attention;
        y.fill(0.0);
        let (group, tokens) = (heads / kv_heads, y.len() / (heads * d));
        let blocks = (first + token + tokens).div_ceil(BLOCK);
        let mut weighed = [Weighed::default(); TILES];
        for kv_head in 0..kv_heads {
            for some in (0..tokens * group).step_by(TILES * QUERIES) {
                let some = some..(some + TILES * QUERIES).min(tokens * group);
                let queries = Queries { attention, token, kv_head, some };
                let mut states = [[OnlineSoftmax::default(); QUERIES]; TILES];
                for block in 0..blocks {
                    queries.meet(simd, block, own, &mut weighed, &mut states, y);
                }
                for (query, state) in queries.some.clone().zip(states.as_flattened()) {
                    let (_, at) = queries.place(query);
                    state.normalise(&mut y[at..][..d]);
                }
            }
        }
    }
}

/// Some of the queries that some tokens have of a KV head.
struct Queries<'a, E> {
    attention: &'a Attention<'a, E>,
    /// The first of the tokens.
    token: usize,
    kv_head: usize,
    /// Token by token.
    some: Range<usize>,
}

impl<E: Element> Queries<'_, E> {
    /// Of a query: its token, and where the tokens' queries, and their outputs, have it.
    #[inline(always)]
    fn place(&self, query: usize) -> (usize, usize) {
        let Attention { heads, kv_heads, head_dim, .. } = self.attention;
        let group = heads / kv_heads;
        let (token, head) = (query / group, self.kv_head * group + query % group);
        (token, (token * heads + head) * head_dim)
    }

    #[inline(always)]
    fn tile(&self, start: usize, block: usize) -> QueryTile<'_> {
        let Attention { q, heads, head_dim, .. } = self.attention;
        let q = &q[self.token * heads * head_dim..];
        QueryTile::new((start..self.some.end).take(QUERIES).map(|query| {
            let (token, at) = self.place(query);
            (&q[at..][..*head_dim], self.attention.seen(self.token + token, block))
        }))
    }

    /// Merges a block into the tiles' `states` and the tokens' outputs, `y`.
    #[inline(always)]
    fn meet<S: Simd>(
        &self,
        simd: S,
        block: usize,
        own: &mut [f32],
        weighed: &mut [Weighed; TILES],
        states: &mut [[OnlineSoftmax; QUERIES]; TILES],
        y: &mut [f32],
    ) {
        let [keys, values] = self.attention.parts(block, self.kv_head);
        if self.some.len() <= FEW {
            self.weigh(simd, block, keys, weighed);
            return self.add(simd, block, values, weighed, states, y);
        }
        let d = self.attention.head_dim;
        let (of_last, _) = self.place(self.some.end - 1);
        let own = &mut own[..self.attention.seen(self.token + of_last, block) * d];
        self.weigh(simd, block, keys.copy(simd, d, own), weighed);
        self.add(simd, block, values.copy(simd, d, own), weighed, states, y);
    }

    /// What the keys of a block say to each tile.
    #[inline(always)]
    fn weigh<S: Simd, K: Element>(
        &self,
        simd: S,
        block: usize,
        keys: Part<'_, K>,
        weighed: &mut [Weighed; TILES],
    ) {
        for (weighed, start) in weighed.iter_mut().zip(self.some.clone().step_by(QUERIES)) {
            self.tile(start, block).weigh(simd, keys, weighed);
        }
    }

    /// Adds the block's values by that.
    #[inline(always)]
    fn add<S: Simd, V: Element>(
        &self,
        simd: S,
        block: usize,
        values: Part<'_, V>,
        weighed: &[Weighed; TILES],
        states: &mut [[OnlineSoftmax; QUERIES]; TILES],
        y: &mut [f32],
    ) {
        let d = self.attention.head_dim;
        let starts = self.some.clone().step_by(QUERIES);
        for ((weighed, states), start) in weighed.iter().zip(states).zip(starts) {
            let mut sums: [&mut [f32]; QUERIES] = Default::default();
            let (mut rest, mut before) = (&mut *y, 0);
            for (sums, query) in sums.iter_mut().zip(start..self.some.end) {
                let (_, at) = self.place(query);
                let (_, from) = rest.split_at_mut(at - before);
                (*sums, rest) = from.split_at_mut(d);
                before = at + d;
            }
            self.tile(start, block).add(simd, weighed, values, states, &mut sums);
        }
    }
}
