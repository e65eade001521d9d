use super::{AttendPrefill, blocks, launch, size};
use crate::case::Case;
use crate::encoding::Float;
use crate::kernel::{self, Launch, TensorMap};
use crate::memory::Memory;
use crate::op::{Cost, Op, Target};

/// [`AttendPrefill`] as Hopper does it best
#[derive(Clone, Copy)]
pub struct AttendPrefillHopper(pub AttendPrefill);

/// Tokens of an item, and positions of a tile.
const ROWS: usize = 128;
/// Of shared memory: the queries and a ring of four.
const TILES: usize = 5;

impl Op for AttendPrefillHopper {
    fn name(&self) -> &'static str {
        "attend_prefill_hopper"
    }

    fn cost(&self, position: usize) -> Cost {
        self.0.cost(position)
    }

    fn scratch(&self, threads: usize) -> usize {
        self.0.scratch(threads)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        self.0.reference(memory);
    }

    fn launch(&self, target: &Target) -> Launch {
        let AttendPrefill { queries, cache, placement, heads, kv_heads, head_dim, y } = self.0;
        assert!(queries.dtype == Float::F16 && cache.dtype == Float::F16);
        let tokens = self.0.tokens();
        let map = |bytes| TensorMap::cache(cache.dtype, bytes, kv_heads * head_dim, ROWS as u32);
        let arguments = kernel::AttendPrefillHopper {
            queries: TensorMap::activation(queries, heads * head_dim, ROWS as u32),
            keys: map(cache.keys),
            values: map(cache.values),
            positions: placement.positions,
            sequences: placement.sequences,
            y: y.bytes,
            tokens: size(tokens),
            heads: size(heads),
            kv_heads: size(kv_heads),
            context: size(cache.context),
        }
        .arguments();
        launch(
            kernel::AttendPrefillHopper::KERNEL,
            (y.dtype, head_dim),
            [blocks(tokens.div_ceil(ROWS) * heads, target.multiprocessors), 1],
            size(TILES * ROWS * head_dim * 2 + 1024),
            arguments,
        )
    }
}

impl AttendPrefillHopper {
    /// `(T, H, G, D, position)`: below, at and past the 64 tokens of a warpgroup, the 128 of an item and
    /// the 128 positions of a tile; more tiles than the ring has, more items than blocks; sequences that
    /// end where a tile does and the cache past them.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (1, 3, 1, 64, 0),
            (5, 8, 2, 128, 125),
            (64, 2, 2, 64, 64),
            (129, 4, 1, 64, 30),
            (65, 1, 1, 128, 127),
            (200, 3, 1, 64, 312),
            (300, 6, 2, 128, 85),
        ];
        AttendPrefill::cases_of(&sizes, true, Self)
    }
}
