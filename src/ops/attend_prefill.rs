use super::{AttendPrefillHopper, Cache, blocks, launch, size};
use crate::case::{CachePlace, Case, Content, HALF, MATRIX_NMSE, NUMBERS, Numbers, Setup};
use crate::encoding::Float;
use crate::for_float;
use crate::kernel::{self, Launch};
use crate::memory::{Activation, Memory};
use crate::op::{Cost, Op, Operands, Placement, Target};
use crate::vector::{Attention, attention_scratch, fill, wide_scratch, widened_in};

/// Causal attention of the step's tokens over the cache, which holds their own keys and values
/// already (Vaswani et al., 2017, arXiv:1706.03762). Query head h reads the keys and values of head
/// `h / (H / G)` (grouped queries: Ainslie et al., 2023, arXiv:2305.13245).
#[derive(Clone, Copy)]
pub struct AttendPrefill {
    /// Rotated. `[T, H, D]`
    pub queries: Activation,
    pub cache: Cache,
    /// Of the first token: one row.
    pub placement: Placement,
    /// H
    pub heads: usize,
    /// G
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Out. `[T, H, D]`
    pub y: Activation,
}

impl AttendPrefill {
    pub(super) fn tokens(&self) -> usize {
        self.queries.len() / (self.heads * self.head_dim)
    }
}

impl Op for AttendPrefill {
    fn name(&self) -> &'static str {
        "attend_prefill"
    }

    fn cost(&self, position: usize) -> Cost {
        let Self { heads, kv_heads, head_dim, cache, .. } = self;
        attend_cost(self.tokens(), position, *heads, *kv_heads, *head_dim, cache.dtype)
    }

    fn scratch(&self, threads: usize) -> usize {
        let Self { heads, head_dim, cache, .. } = *self;
        let own = attention_scratch(self.tokens(), heads, head_dim, cache.context, threads);
        own + wide_scratch(self.queries) + wide_scratch(self.y)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (mut region, mut scratch) = memory.region_and_scratch();
        let (queries, keys, values, positions, sequences, y) = region.slots((
            self.queries.bytes,
            self.cache.keys,
            self.cache.values,
            self.placement.positions,
            self.placement.sequences,
            self.y.bytes,
        ));
        let q = widened_in(self.queries, queries, &mut scratch);
        let &Self { heads, kv_heads, head_dim, .. } = self;
        for_float!(self.cache.dtype, E => {
            let [keys, values]: [&[E]; 2] = [&*keys, &*values].map(|stored| {
                let stored = bytemuck::cast_slice(stored);
                self.cache.of_sequence(stored, sequences[0], kv_heads * head_dim)
            });
            let first = positions[0] as usize;
            let attention = Attention { q, keys, values, first, heads, kv_heads, head_dim };
            fill(self.y, y, &mut scratch, |y, scratch| attention.run(y, scratch));
        });
    }

    fn operands(&self) -> Operands {
        let input = vec![self.tokens(), self.heads, self.head_dim];
        Operands { input, ..Operands::default() }
    }

    fn launch(&self, target: &Target) -> Launch {
        /// Packed rows, tokens by the query heads of a KV head, that a block takes at once.
        const ROWS: usize = 128;
        if target.kernels.contains(kernel::AttendPrefillHopper::KERNEL) {
            return AttendPrefillHopper(*self).launch(target);
        }
        assert!(self.queries.dtype == Float::F16 && self.cache.dtype == Float::F16);
        let rows = self.tokens() * self.heads / self.kv_heads;
        let arguments = kernel::AttendPrefill {
            queries: self.queries.bytes,
            keys: self.cache.keys,
            values: self.cache.values,
            positions: self.placement.positions,
            sequences: self.placement.sequences,
            y: self.y.bytes,
            tokens: size(self.tokens()),
            heads: size(self.heads),
            kv_heads: size(self.kv_heads),
            context: size(self.cache.context),
        }
        .arguments();
        launch(
            kernel::AttendPrefill::KERNEL,
            (self.y.dtype, self.head_dim),
            [blocks(rows.div_ceil(ROWS) * self.kv_heads, 2 * target.multiprocessors), 1],
            size(2 * ROWS * self.head_dim + (33 << 10)),
            arguments,
        )
    }
}

/// What attention of `tokens` from `position` on must read and compute.
pub(super) fn attend_cost(
    tokens: usize,
    position: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    cache: Float,
) -> Cost {
    let (tokens, position) = (tokens as u64, position as u64);
    let row = (kv_heads * head_dim * cache.bytes()) as u64;
    let pairs = tokens * position + tokens * (tokens + 1) / 2;
    Cost {
        cache_bytes: 2 * (position + tokens) * row,
        flops: 4 * pairs * (heads * head_dim) as u64,
        ..Cost::default()
    }
}

impl AttendPrefill {
    /// `(T, H, G, D, position)`: below, at and past the 128 rows of a block and the 64 or 32 keys that it
    /// takes at once; all ratios of heads; chunks that begin anywhere.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (1, 1, 1, 64, 0),
            (1, 3, 1, 128, 31),
            (5, 8, 2, 64, 3),
            (2, 12, 12, 64, 3), // more than an emulated GPU has blocks: some take two turns
            (33, 4, 4, 128, 0),
            (17, 8, 1, 128, 32),
            (43, 6, 2, 64, 60),
            (65, 7, 1, 64, 64),
            (130, 2, 2, 64, 0),
            (3, 32, 8, 128, 300),
            (300, 8, 2, 128, 212),
            (600, 32, 8, 64, 100),
        ];
        Self::cases_of(&sizes, false, |op| op)
    }

    /// Cases of these sizes, each op in the form that `of` gives it. `in_boxes`: that what lies in the
    /// cache past the sequence may come along.
    pub(super) fn cases_of<O: Op + 'static>(
        sizes: &[(usize, usize, usize, usize, usize)],
        in_boxes: bool,
        of: fn(Self) -> O,
    ) -> Vec<Case> {
        let mut cases = Vec::new();
        for ((tokens, heads, kv_heads, head_dim, first), (dtype, numbers)) in sizes
            .iter()
            .copied()
            .flat_map(|size| HALF.map(|dtype| NUMBERS.map(|n| (size, (dtype, n)))).into_iter())
            .flatten()
        {
            let mut setup = Setup::new(numbers);
            let pins = Pins { heads, kv_heads, head_dim, seen: first + 1 };
            let context = first + tokens + 2;
            let place = CachePlace::of_case(context, [kv_heads, head_dim], heads + first);
            let [q, keys, values] = pins.contents(numbers);
            let rows = (first + tokens, in_boxes);
            let op = Self {
                queries: setup.read_as("queries", (Float::F16, 1), &[tokens, heads, head_dim], q),
                cache: Cache {
                    dtype: Float::F16,
                    context,
                    keys: setup.cached("keys", place, rows, keys),
                    values: setup.cached("values", place, rows, values),
                },
                placement: setup.placement(first, place.sequence),
                heads,
                kv_heads,
                head_dim,
                y: setup.written_as(
                    "y",
                    (dtype, 1),
                    &[tokens, heads, head_dim],
                    numbers.judge(MATRIX_NMSE),
                ),
            };
            let heads = format!("{heads}/{kv_heads} heads of {head_dim}");
            let tokens = format!("{tokens} tokens from {first} on");
            cases.push(setup.case(format!("{} {tokens}, {heads}", dtype.name()), of(op)));
        }
        cases
    }
}

/// Attention that is exact: each KV head has two keys, among the `seen` first positions, that are so
/// large, one along a direction and one against it, that a query along it sees nothing but the one, to
/// the bit, and a query against it nothing but the other.
#[derive(Clone, Copy)]
pub(super) struct Pins {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub seen: usize,
}

impl Pins {
    /// What `q`, keys and values hold.
    pub fn contents(self, numbers: Numbers) -> [Content; 3] {
        if numbers == Numbers::Real {
            return [Content::Real(3.0), Content::Real(1.0), Content::Real(1.0)];
        }
        let Self { heads, kv_heads, head_dim, seen } = self;
        let bit = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 13 & 1) as f32 * 2.0 - 1.0;
        let direction = move |kv_head: usize, i: usize| 16.0 * bit(kv_head * head_dim + i);
        let q = move |i: usize| {
            let (token_head, i) = (i / head_dim, i % head_dim);
            let kv_head = token_head % heads / (heads / kv_heads);
            let sign = if seen == 1 { 1.0 } else { bit(token_head) };
            sign * direction(kv_head, i)
        };
        let key = move |i: usize| {
            let (position, kv_head) = (i / head_dim / kv_heads, i / head_dim % kv_heads);
            let along = (7 * kv_head + 5) % seen;
            let against = (along + 1 + (13 * kv_head + seen / 2) % (seen - 1).max(1)) % seen;
            let direction = direction(kv_head, i % head_dim);
            match position {
                _ if position == along => direction,
                _ if position == against => -direction,
                _ => bit(i),
            }
        };
        [Content::each(q), Content::each(key), Content::Whole(-50.0, 50.0)]
    }
}
