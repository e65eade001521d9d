//! How the kernels that multiply one token's activations are launched (`kernels/lib/gemv.cuh`).

use super::size;
use super::tuned::TUNED;
use crate::op::Target;

/// Warps of a block.
const WARPS: usize = 8;
/// Parts that a pair of rows can be cut into.
pub const PARTS: [u32; 4] = [1, 2, 4, 8];
/// Columns of a pair of rows that a warp takes at a time.
const STEP: usize = 2048;

/// A choice that was measured to be best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MeasuredParts {
    pub op: &'static str,
    /// Of the GPU.
    pub multiprocessors: u32,
    pub pairs: usize,
    pub width: usize,
    /// One of [`PARTS`].
    pub parts: u32,
}

/// Pairs of rows, times one vector.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gemv {
    pub pairs: usize,
    pub width: usize,
}

impl Gemv {
    /// Pairs of neighbouring rows.
    pub fn of_rows(rows: usize, width: usize) -> Self {
        Self { pairs: rows.div_ceil(2), width }
    }

    /// One block a multiprocessor: pairs are dealt to the blocks in turn.
    pub fn grid(target: &Target) -> [u32; 2] {
        [target.multiprocessors, 1]
    }

    /// What a block asks for when it is launched.
    pub fn shared_bytes(&self) -> u32 {
        assert!(self.width.is_multiple_of(8), "rows of {} are not of 16-byte pieces", self.width);
        size(input_bytes(self.width))
    }

    /// The same where the input is normed: the norm's weights are there, too, as f32.
    pub fn normed_shared_bytes(&self) -> u32 {
        2 * self.shared_bytes()
    }

    /// Parts that a pair is cut into along its columns, each for a warp: what was measured to be best for
    /// `op` on such a GPU, else what should be.
    pub fn parts(&self, op: &str, target: &Target) -> u32 {
        tuned_parts(TUNED, op, self, target).unwrap_or_else(|| self.even_parts(target))
    }

    /// The fewest parts that leave the busiest warp within a tenth of the least work that any number of
    /// parts gives it.
    fn even_parts(&self, target: &Target) -> u32 {
        let counts = PARTS.map(|parts| parts as usize);
        let least = counts.map(|parts| self.turns(parts, target)).into_iter().min().unwrap_or(0);
        let good = |parts: &usize| 10 * self.turns(*parts, target) <= 11 * least;
        size(counts.into_iter().find(good).unwrap_or(1))
    }

    /// Steps of the busiest warp.
    fn turns(&self, parts: usize, target: &Target) -> usize {
        let pairs = self.pairs.div_ceil(target.multiprocessors as usize); // of the busiest block
        pairs.div_ceil(WARPS / parts) * self.width.div_ceil(STEP).div_ceil(parts)
    }
}

/// What a block keeps its input in: f32, padded with zeros to whole steps.
fn input_bytes(width: usize) -> usize {
    width.next_multiple_of(STEP) * size_of::<f32>()
}

/// The most bytes of shared memory of a block whose input has `width` numbers, or `normed` of them that
/// lie beside their norm's weights: the input, and what its warps tell each other.
pub fn gemv_shared_bytes(width: usize, normed: usize) -> usize {
    const EXCHANGE: usize = 1 << 10; // more than it is
    input_bytes(width).max(2 * input_bytes(normed)) + EXCHANGE
}

/// What `table` says of these rows.
fn tuned_parts(table: &[MeasuredParts], op: &str, gemv: &Gemv, target: &Target) -> Option<u32> {
    let Gemv { pairs, width } = *gemv;
    let is_meant = |row: &&MeasuredParts| {
        (row.op, row.multiprocessors, row.pairs, row.width)
            == (op, target.multiprocessors, pairs, width)
    };
    table.iter().find(is_meant).map(|row| row.parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Target = Target::portable(132);
    /// A100, RTX 4090, H100, L40S, B200, RTX 5090.
    const GPUS: [u32; 6] = [108, 128, 132, 142, 148, 170];
    /// Name, rows and columns of what is multiplied: whole models, and an eighth of one.
    const SHAPES: [(&str, usize, usize); 21] = [
        ("1B qkv", 3072, 2048),
        ("1B o", 2048, 2048),
        ("1B gate_up", 16384, 2048),
        ("1B down", 2048, 8192),
        ("1B head", 128256, 2048),
        ("3B qkv", 5120, 3072),
        ("3B o", 3072, 3072),
        ("3B down", 3072, 8192),
        ("8B qkv", 6144, 4096),
        ("8B o", 4096, 4096),
        ("8B gate_up", 28672, 4096),
        ("8B down", 4096, 14336),
        ("8B head", 128256, 4096),
        ("70B qkv", 10240, 8192),
        ("70B o", 8192, 8192),
        ("70B gate_up", 57344, 8192),
        ("70B down", 8192, 28672),
        ("70B/8 qkv", 1280, 8192),
        ("70B/8 o", 8192, 1024),
        ("70B/8 gate_up", 7168, 8192),
        ("70B/8 down", 8192, 3584),
    ];

    /// Pair and column of every step that each warp takes, as the kernel counts them.
    fn steps(gemv: Gemv, parts: usize, blocks: usize) -> Vec<Vec<(usize, usize)>> {
        let share = gemv.width.div_ceil(STEP).div_ceil(parts) * STEP;
        let warps = (0..blocks).flat_map(|block| (0..WARPS).map(move |warp| (block, warp)));
        let of_warp = |(block, warp): (usize, usize)| {
            let begin = share * (warp % parts);
            let pairs =
                (block + blocks * (warp / parts)..gemv.pairs).step_by(blocks * (WARPS / parts));
            let columns = begin..gemv.width.min(begin + share);
            pairs
                .flat_map(|pair| columns.clone().step_by(STEP).map(move |column| (pair, column)))
                .collect()
        };
        warps.map(of_warp).collect()
    }

    #[test]
    fn every_step_is_taken_once() {
        for (name, rows, width) in SHAPES {
            let gemv = Gemv::of_rows(rows, width);
            for multiprocessors in GPUS {
                let parts = gemv.even_parts(&Target::portable(multiprocessors)) as usize;
                let warps = steps(gemv, parts, multiprocessors as usize);
                let mut taken: Vec<_> = warps.into_iter().flatten().collect();
                taken.sort_unstable();
                let all = (0..gemv.pairs)
                    .flat_map(|pair| (0..width).step_by(STEP).map(move |column| (pair, column)));
                assert!(taken.into_iter().eq(all), "{name} on {multiprocessors}");
            }
        }
    }

    /// Of the multiprocessors' time on an H100, at most 4% is lost to blocks that have a pair less
    /// than the busiest one; and of the warps' no more than 13%, but where a warp has so few steps
    /// that all are in flight before the first is used.
    #[test]
    fn nothing_waits_for_a_tail() {
        for (name, rows, width) in SHAPES {
            let gemv = Gemv::of_rows(rows, width);
            let parts = gemv.even_parts(&H100) as usize;
            let blocks = H100.multiprocessors as usize;
            let busiest = gemv.pairs.div_ceil(blocks);
            let used = gemv.pairs as f64 / (busiest * blocks) as f64;
            assert!(used >= 0.96, "{name}: blocks {used:.3}");
            let warps = steps(gemv, parts, blocks);
            let busiest = warps.iter().map(Vec::len).max().unwrap();
            let all: usize = warps.iter().map(Vec::len).sum();
            let used = all as f64 / (busiest * warps.len()) as f64;
            println!("{name}: {parts} parts, {busiest} steps, {:.0}% of the warps", 100.0 * used);
            assert_eq!(busiest, gemv.turns(parts, &H100), "{name}");
            assert!(used >= 0.87 || busiest <= 3, "{name}: warps {used:.3}");
        }
    }

    #[test]
    fn rows_are_cut_only_where_it_pays() {
        let parts = |rows, width| Gemv::of_rows(rows, width).even_parts(&H100);
        assert_eq!([parts(6144, 4096), parts(4096, 4096), parts(4096, 14336)], [1, 1, 1]);
        assert_eq!([parts(1280, 8192), parts(3072, 8192), parts(2, 8192)], [4, 2, 4]);
        assert_eq!(parts(0, 0), 1);
    }

    #[test]
    fn what_was_measured_goes_first() {
        let row =
            |op, parts| MeasuredParts { op, multiprocessors: 132, pairs: 2048, width: 4096, parts };
        let table = [row("norm_qkv", 4), row("project", 2)];
        let found = |op, rows, target| tuned_parts(&table, op, &Gemv::of_rows(rows, 4096), target);
        assert_eq!(found("project", 4096, &H100), Some(2));
        assert_eq!(found("norm_head", 4096, &H100), None);
        assert_eq!(found("project", 4098, &H100), None);
        assert_eq!(found("project", 4096, &Target::portable(131)), None);
        let sizes = TUNED.iter().map(|row| row.parts).all(|parts| PARTS.contains(&parts));
        assert!(sizes && TUNED.is_sorted(), "{TUNED:?}");
    }
}
