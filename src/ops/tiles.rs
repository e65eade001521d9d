//! The shape of tiles in which a kernel computes a product of many tokens.

use super::blocks;
use crate::op::{Target, Tile};

/// One that a kernel has, and what it takes for 64 columns of K.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileShape {
    pub tile: Tile,
    /// Of the output.
    pub tokens: usize,
    /// Rows of weights.
    pub rows: usize,
    /// Of a multiprocessor that has such a tile to itself.
    pub cycles: usize,
}

/// What a multiprocessor gets from the L2 cache in a cycle when all ask for it: 8.2 TB/s on an H100.
const CACHE_BYTES: usize = 35;

impl TileShape {
    /// Tiles of the GEMMs of `tokens` inputs with weights of `rows` rows each.
    fn count(&self, tokens: usize, rows: &[usize]) -> usize {
        let across: usize = rows.iter().map(|rows| rows.div_ceil(self.rows)).sum();
        tokens.div_ceil(self.tokens) * across
    }

    /// Cycles for all tiles, one after the other on each multiprocessor: the tensor cores', or what the
    /// L2 cache takes to bring the inputs of those that run together.
    fn time(&self, tokens: usize, rows: &[usize], multiprocessors: usize) -> usize {
        let count = self.count(tokens, rows);
        let bytes = 2 * 64 * (self.tokens + self.rows) * count.min(multiprocessors);
        count.div_ceil(multiprocessors) * self.cycles.max(bytes / (CACHE_BYTES * multiprocessors))
    }
}

/// Of `shapes`, the largest first, that which is chosen, or should be the fastest; and as many blocks as
/// have work, of those that run together. `rows`: of the weights that share the inputs
pub(super) fn choose(
    shapes: &[TileShape],
    tokens: usize,
    rows: &[usize],
    target: &Target,
    blocks_a_multiprocessor: u32,
) -> (u32, [u32; 2]) {
    let time = |shape: &&TileShape| shape.time(tokens, rows, target.multiprocessors as usize);
    let chosen = shapes.iter().find(|shape| target.tuning.tile == Some(shape.tile));
    let shape = chosen.or_else(|| shapes.iter().min_by_key(time)).expect("kernels have tiles");
    let most = blocks_a_multiprocessor * target.multiprocessors;
    (shape.tile as u32, [blocks(shape.count(tokens, rows), most), 1])
}

#[cfg(test)]
mod tests {
    use super::super::matmul::SHAPES;
    use super::super::matmul_hopper::SHAPES as HOPPER;
    use super::*;
    use crate::op::Tuning;

    const H100: Target = Target::portable(132);

    #[test]
    fn short_prompts_have_tiles_for_all_multiprocessors() {
        let tile = |shapes: &[TileShape], tokens, rows| choose(shapes, tokens, rows, &H100, 1);
        let (small, medium, large) = (Tile::Small as u32, Tile::Medium as u32, Tile::Large as u32);
        assert_eq!(tile(&HOPPER, 128, &[4096]), (small, [32, 1]));
        assert_eq!(tile(&HOPPER, 2048, &[4096]), (large, [132, 1]));
        assert_eq!(tile(&HOPPER, 2048, &[28672]).0, large);
        assert_eq!(tile(&SHAPES, 8, &[4096]), (small, [128, 1]));
        assert_eq!(tile(&SHAPES, 128, &[4096]), (medium, [128, 1]));
        assert_eq!(tile(&SHAPES, 2048, &[4096, 1024, 1024]).0, large);
    }

    #[test]
    fn what_is_chosen_is_taken() {
        for shape in SHAPES {
            let tuning = Tuning { tile: Some(shape.tile), ..Tuning::DEFAULT };
            let target = Target { tuning, ..H100 };
            let (tile, [blocks, _]) = choose(&SHAPES, 64, &[100, 30], &target, 2);
            assert_eq!((tile, blocks as usize), (shape.tile as u32, shape.count(64, &[100, 30])));
        }
    }
}
