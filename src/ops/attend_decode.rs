use super::attend_prefill::{Pins, attend_cost};
use super::rope_append::Cache;
use super::{launch, size};
use crate::case::{CachePlace, Case, F32_NMSE, Judge, NUMBERS, Setup};
use crate::encoding::Float;
use crate::for_float;
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot};
use crate::op::{Cost, Op, Operands, Placement, Target};
use crate::vector::{Attention, attention_scratch};

/// Each token's attention over its sequence in the cache, which holds its own key and value already: as
/// `attend_prefill`, in f32 on both ends.
pub struct AttendDecode {
    /// `[R, H, D]`
    pub q: Slot<f32>,
    pub cache: Cache,
    pub placement: Placement,
    /// G
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Out. `[R, H, D]`
    pub y: Slot<f32>,
    /// What a GPU splits the cache with.
    pub scratch: AttendScratch,
}

/// Where the parts of a cache that is split along its positions leave what they found.
#[derive(Debug, Clone, Copy)]
pub struct AttendScratch {
    /// `[splits, H, D]`
    pub partial: Slot<f32>,
    /// `[splits, H, 2]`
    pub statistics: Slot<f32>,
    /// Zeros before and after: [`AttendDecode::tickets`] of them.
    pub tickets: Slot<u32>,
}

/// Query heads that share what they read of the cache (`kernels/attend_decode.cu`).
const TEAM: usize = 8;
/// Splits that are merged at once.
const GROUP: usize = 16;

impl AttendDecode {
    /// Parts into which a cache of `context` positions is best split over `blocks` blocks.
    pub fn splits(
        (heads, kv_heads, head_dim): (usize, usize, usize),
        context: usize,
        blocks: usize,
    ) -> usize {
        let tile = if head_dim == 64 { 128 } else { 64 }; // positions that a block takes at once
        let most = context.div_ceil(tile).clamp(1, GROUP * GROUP);
        (blocks / teams(heads, kv_heads)).clamp(1, most)
    }

    /// For each team of a block's query heads one, and one for each group of splits.
    pub fn tickets(heads: usize, kv_heads: usize) -> usize {
        teams(heads, kv_heads) * (1 + GROUP)
    }

    fn heads(&self) -> usize {
        self.q.len() / self.placement.rows() / self.head_dim
    }
}

impl Op for AttendDecode {
    fn name(&self) -> &'static str {
        "attend_decode"
    }

    fn cost(&self, position: usize) -> Cost {
        let of_row =
            attend_cost(1, position, self.heads(), self.kv_heads, self.head_dim, self.cache.dtype);
        (0..self.placement.rows()).fold(Cost::default(), |sum, _| sum + of_row)
    }

    fn scratch(&self, threads: usize) -> usize {
        attention_scratch(1, self.heads(), self.head_dim, self.cache.context, threads)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (mut region, mut scratch) = memory.region_and_scratch();
        let (q, keys, values, positions, sequences, y) = region.slots((
            self.q,
            self.cache.keys,
            self.cache.values,
            self.placement.positions,
            self.placement.sequences,
            self.y,
        ));
        let (heads, &Self { kv_heads, head_dim, .. }) = (self.heads(), self);
        let width = heads * head_dim;
        let rows = q.chunks_exact(width).zip(y.chunks_exact_mut(width));
        for ((q, y), (position, sequence)) in rows.zip(positions.iter().zip(&*sequences)) {
            for_float!(self.cache.dtype, E => {
                let [keys, values]: [&[E]; 2] = [&*keys, &*values].map(|stored| {
                    let stored = bytemuck::cast_slice(stored);
                    self.cache.of_sequence(stored, *sequence, kv_heads * head_dim)
                });
                let first = *position as usize;
                let attention = Attention { q, keys, values, first, heads, kv_heads, head_dim };
                attention.run(y, &mut scratch.lend());
            });
        }
    }

    fn operands(&self) -> Operands {
        let input = vec![self.placement.rows(), self.heads(), self.head_dim];
        Operands { input, ..Operands::default() }
    }

    fn launch(&self, target: &Target) -> Launch {
        assert_eq!((self.cache.dtype, self.placement.rows()), (Float::F16, 1));
        let (heads, AttendScratch { partial, statistics, tickets }) = (self.heads(), self.scratch);
        let splits = partial.len() / self.q.len();
        assert!(splits <= GROUP * GROUP && tickets.len() == Self::tickets(heads, self.kv_heads));
        let arguments = kernel::AttendDecode {
            q: self.q,
            keys: self.cache.keys,
            values: self.cache.values,
            positions: self.placement.positions,
            sequences: self.placement.sequences,
            y: self.y,
            partial,
            statistics,
            tickets,
            heads: size(heads),
            kv_heads: size(self.kv_heads),
            context: size(self.cache.context),
            flow: target.tuning.flow(),
        }
        .arguments();
        launch(
            kernel::AttendDecode::KERNEL,
            (Float::F16, self.head_dim),
            [size(teams(heads, self.kv_heads)), size(splits)],
            0,
            arguments,
        )
    }
}

fn teams(heads: usize, kv_heads: usize) -> usize {
    kv_heads * (heads / kv_heads).div_ceil(TEAM)
}

impl AttendDecode {
    /// `(H, G, D, position, splits)`: below, at and past the ends of a warp's 16 positions and a block's
    /// 64 or 128, more and fewer splits than there are blocks of positions, and than are merged at once;
    /// teams of eight query heads that are whole, broken, or several.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (1, 1, 64, 0, 1),
            (4, 2, 128, 1, 2),
            (3, 1, 64, 15, 1),
            (8, 1, 128, 16, 4),
            (9, 1, 64, 63, 2),
            (16, 1, 64, 64, 2),
            (6, 2, 128, 127, 3),
            (7, 7, 64, 128, 2),
            (32, 8, 64, 300, 3),
            (8, 2, 128, 500, 8),
            (8, 1, 64, 1023, 5),
            (32, 8, 128, 4095, 16),
            (3, 1, 64, 2300, 18), // one group of 16 and one of 2
            (8, 2, 128, 2559, 40),
            (1, 1, 128, 1100, 256),
        ];
        let cases = sizes.into_iter().flat_map(|size| NUMBERS.map(|numbers| (size, numbers)));
        let case =
            |((heads, kv_heads, head_dim, position, splits), numbers): ((_, _, _, usize, _), _)| {
                let mut setup = Setup::new(numbers);
                let pins = Pins { heads, kv_heads, head_dim, seen: position + 1 };
                let [q, keys, values] = pins.contents(numbers);
                let place =
                    CachePlace::of_case(position + 70, [kv_heads, head_dim], splits + position);
                let rows = (position + 1, false);
                let op = Self {
                    q: setup.read("q", &[1, heads, head_dim], q),
                    cache: Cache {
                        dtype: Float::F16,
                        context: position + 70,
                        keys: setup.cached("keys", place, rows, keys),
                        values: setup.cached("values", place, rows, values),
                    },
                    placement: setup.placement(position, place.sequence),
                    kv_heads,
                    head_dim,
                    y: setup.written("y", &[1, heads, head_dim], numbers.judge(F32_NMSE)),
                    scratch: AttendScratch {
                        partial: setup.written("partial", &[splits, heads, head_dim], Judge::Any),
                        statistics: setup.written("statistics", &[splits, heads, 2], Judge::Any),
                        tickets: setup.given("tickets", &vec![0; Self::tickets(heads, kv_heads)]),
                    },
                };
                let heads = format!("{heads}/{kv_heads} heads of {head_dim}");
                setup.case(format!("{heads}, position {position}, {splits} splits"), op)
            };
        cases.map(case).collect()
    }
}
