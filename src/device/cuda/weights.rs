//! The weights on their way from the mapped files to a GPU; a synthetic model's are made there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::driver::{Context, Region};
use super::kernels::Kernels;
use super::stream::{Staging, Stream, launched};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::memory::{Layout, Slot, Weight};
use crate::op::{Gpu, Op};
use crate::ops::Synthesize;

/// What a thread copies at once.
const PIECE_BYTES: usize = 8 << 20;

/// Threads that copy, each with two pieces on their way: one core cannot fill a PCIe 5 link.
const THREADS: usize = 4;

/// The weight region of a GPU.
pub struct WeightRegion {
    region: Region,
    places: Places,
}

/// Where in it each weight lies, by its offset in the checkpoint. Files align their tensors to as
/// little as an element, kernels read 16 bytes at a time: a layout aligns to more.
struct Places {
    slots: HashMap<usize, Slot<u8>>,
    bytes: usize,
}

impl Places {
    fn plan(weights: &[Weight]) -> Self {
        let (mut slots, mut layout) = (HashMap::new(), Layout::default());
        for weight in weights {
            slots.entry(weight.offset).or_insert_with(|| layout.slot(&[weight.bytes()]));
        }
        Self { slots, bytes: layout.bytes() }
    }
}

/// Bytes that these weights take on a GPU.
pub fn region_bytes(weights: &[Weight]) -> usize {
    Places::plan(weights).bytes
}

/// What a thread copies at once: rows of a weight, which follow each other on the GPU, or a part of one
/// whose rows do so in the file.
struct Piece<'a> {
    /// From the first byte to the last, with what lies between the rows.
    span: &'a [u8],
    row_bytes: usize,
    stride_bytes: usize,
    /// Where it goes in the region.
    at: usize,
}

impl<'a> Piece<'a> {
    /// All of `weight`, whose span in the file is `span`, on its way to `at`.
    fn all(weight: Weight, span: &'a [u8], at: usize) -> impl Iterator<Item = Self> {
        let [row, stride] = [weight.cols, weight.stride].map(|n| n * weight.dtype.bytes());
        let (rows, row_bytes, stride_bytes) = match row == stride {
            true => (1, PIECE_BYTES, PIECE_BYTES),
            false => ((PIECE_BYTES / row).max(1), row, stride),
        };
        let spans = span.chunks(rows * stride_bytes).zip((at..).step_by(rows * row_bytes));
        spans.map(move |(span, at)| Self { span, row_bytes, stride_bytes, at })
    }

    fn rows(&self) -> impl Iterator<Item = &'a [u8]> {
        let row_bytes = self.row_bytes;
        self.span.chunks(self.stride_bytes).map(move |row| &row[..row_bytes.min(row.len())])
    }

    fn bytes(&self) -> usize {
        self.rows().map(<[u8]>::len).sum()
    }
}

impl WeightRegion {
    /// A region for these weights, without them.
    pub fn allocate(context: &Arc<Context>, weights: &[Weight]) -> Result<Self> {
        let places = Places::plan(weights);
        Ok(Self { region: Region::allocate(context, places.bytes, "the weights")?, places })
    }

    /// Copies the weights. `loaded` is told of bytes that have been sent.
    pub fn copy(
        &self,
        context: &Arc<Context>,
        checkpoint: &Checkpoint,
        weights: &[Weight],
        loaded: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let Self { region, places } = self;
        let pieces: Vec<Piece<'_>> = weights
            .iter()
            .flat_map(|weight| {
                let span = checkpoint.bytes(weight.offset, weight.span_bytes());
                Piece::all(*weight, span, places.slots[&weight.offset].offset())
            })
            .collect();
        let largest = pieces.iter().map(Piece::bytes).max().unwrap_or(0);
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let copy = || {
            let stream = Stream::new(context)?;
            let mut staging =
                [Staging::allocate(context, largest)?, Staging::allocate(context, largest)?];
            let mut turn = 0;
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed))
                && !failed.load(Ordering::Relaxed)
            {
                staging[turn].send(&stream, piece.rows(), region, piece.at)?;
                turn = 1 - turn;
                loaded(piece.bytes() as u64);
            }
            stream.synchronize("cannot copy the weights to the GPU")
        };
        thread::scope(|scope| {
            let copy = || copy().inspect_err(|_| failed.store(true, Ordering::Relaxed));
            let threads = THREADS.min(pieces.len());
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(copy)).collect();
            let ended = threads.into_iter().map(|thread| thread.join().expect("no panics in it"));
            ended.collect::<Vec<_>>().into_iter().collect()
        })
    }

    /// Has the GPU make a synthetic model's weights.
    pub fn synthesize(
        &self,
        context: &Arc<Context>,
        kernels: &mut Kernels,
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        weights: &[Weight],
    ) -> Result<()> {
        let Self { region, places } = self;
        let stream = Stream::new(context)?;
        for weight in weights {
            let Weight { dtype, offset, cols: row, stride, .. } = *weight;
            let (recipe, first) = checkpoint.recipe(offset).expect("a synthetic weight has one");
            let op = Synthesize { recipe, dtype, first, row, stride, out: places.slots[&offset] };
            let launch = op.launch(gpu);
            let function = kernels.function(&launch)?;
            let base = region.address(0..places.bytes);
            let arguments = launch.arguments.resolve(|_| base);
            // SAFETY: the struct is the one that the kernel's source declares, and its one address is of
            // a place in the region that holds as many elements; the stream is waited for below.
            let result = unsafe {
                stream.launch(&function, launch.grid, launch.block, 0, arguments.bytes(), false)
            };
            launched(result, launch.export.name)?;
        }
        stream.synchronize("cannot make the weights on the GPU: kernel synthesize failed")
    }

    /// The device's address of the weight at this offset of the checkpoint.
    pub fn address(&self, offset: usize) -> u64 {
        let at = self.places.slots[&offset].offset();
        self.region.address(at..at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;

    /// Rows and columns of any size, also past what is copied at once.
    #[test]
    fn pieces_are_the_rows_of_a_weight_and_follow_each_other() {
        for (rows, cols, stride) in [(1, 5, 5), (3, 4, 4), (3, 4, 7), (5000, 900, 2000), (1, 3, 9)]
        {
            let weight = Weight { dtype: Dtype::F16, offset: 0, rows, cols, stride };
            let span: Vec<u8> = (0..weight.span_bytes()).map(|i| (i * 31 / 8) as u8).collect();
            let mut packed: Vec<u8> = Vec::new();
            for piece in Piece::all(weight, &span, 64) {
                assert_eq!(piece.at, 64 + packed.len());
                assert!(piece.bytes() <= PIECE_BYTES);
                packed.extend(piece.rows().flatten());
            }
            let expected: Vec<u8> =
                span.chunks(2 * stride).flat_map(|row| &row[..2 * cols]).copied().collect();
            assert!(packed == expected, "{rows} rows of {cols}, {stride} apart");
            assert_eq!(packed.len(), weight.bytes());
        }
    }
}
