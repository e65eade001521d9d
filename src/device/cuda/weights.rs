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
        let pieces: Vec<(&[u8], usize)> = weights
            .iter()
            .flat_map(|weight| {
                let bytes = checkpoint.bytes(weight.offset, weight.bytes());
                let at = places.slots[&weight.offset].offset();
                let starts = (at..).step_by(PIECE_BYTES);
                bytes.chunks(PIECE_BYTES).zip(starts)
            })
            .collect();
        let largest = pieces.iter().map(|(bytes, _)| bytes.len()).max().unwrap_or(0);
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let copy = || {
            let stream = Stream::new(context)?;
            let mut staging =
                [Staging::allocate(context, largest)?, Staging::allocate(context, largest)?];
            let mut turn = 0;
            while let Some((bytes, at)) = pieces.get(next.fetch_add(1, Ordering::Relaxed))
                && !failed.load(Ordering::Relaxed)
            {
                staging[turn].send(&stream, bytes, region, *at)?;
                turn = 1 - turn;
                loaded(bytes.len() as u64);
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
            let recipe = *checkpoint.recipe(weight.offset).expect("a synthetic weight has one");
            let out = places.slots[&weight.offset];
            let op = Synthesize { recipe, dtype: weight.dtype, out };
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
