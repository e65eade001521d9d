//! The weights on a GPU: copied from files there, or made there, where the model is synthetic.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::driver::Context;
use super::kernels::Kernels;
use super::load::{Loader, OnProgress};
use super::region::Region;
use super::stream::{Stream, launched};
use super::{Blueprint, Cuda, Gpu};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::memory::{Layout, Slot, Weight};
use crate::op::{Op, Target};
use crate::ops::Synthesize;

/// The weight region of a GPU.
pub struct WeightRegion {
    /// Goes first: it writes to the region. None where the weights are made.
    loader: Option<Loader>,
    region: Arc<Region>,
    places: WeightPlaces,
}

/// Where in it each weight lies, by its offset in the checkpoint. Files align their tensors to as
/// little as an element, kernels read 16 bytes at a time: a layout aligns to more.
struct WeightPlaces {
    by_offset: HashMap<usize, Placed>,
    /// In the order in which they are given, which is that of their use.
    order: Vec<(Weight, usize)>,
    bytes: usize,
}

#[derive(Clone, Copy)]
struct Placed {
    slot: Slot<u8>,
    /// In the order of use, from 0 on.
    number: usize,
}

impl WeightPlaces {
    fn plan(weights: &[Weight]) -> Self {
        let (mut by_offset, mut order) = (HashMap::new(), Vec::new());
        let mut layout = Layout::default();
        for weight in weights {
            by_offset.entry(weight.offset).or_insert_with(|| {
                let slot: Slot<u8> = layout.slot(&[weight.bytes()]);
                order.push((*weight, slot.offset()));
                Placed { slot, number: order.len() - 1 }
            });
        }
        Self { by_offset, order, bytes: layout.bytes() }
    }
}

/// Bytes that these weights take on a GPU.
pub fn region_bytes(weights: &[Weight]) -> usize {
    WeightPlaces::plan(weights).bytes
}

impl WeightRegion {
    /// A region for these weights, without them.
    pub fn allocate(context: &Arc<Context>, weights: &[Weight]) -> Result<Self> {
        let places = WeightPlaces::plan(weights);
        let region = Arc::new(Region::allocate(context, places.bytes, "the weights")?);
        Ok(Self { loader: None, region, places })
    }

    /// Begins to copy the weights: see [`Loader`].
    pub fn copy(
        &mut self,
        context: &Arc<Context>,
        checkpoint: &Checkpoint,
        on_progress: OnProgress,
    ) -> Result<()> {
        let Self { region, places, .. } = self;
        self.loader = Some(Loader::begin(context, checkpoint, region, &places.order, on_progress)?);
        Ok(())
    }

    /// Waits until the first `count` weights are here, in the order of their use; all, if `None`.
    pub fn wait(&self, count: Option<usize>) -> Result<()> {
        let count = count.unwrap_or(self.places.order.len());
        self.loader.as_ref().map_or(Ok(()), |loader| loader.wait(count))
    }

    /// Waits until all are here, and what brought them has given back its memory.
    pub fn finish(&mut self) -> Result<()> {
        self.wait(None)?;
        self.loader.iter_mut().for_each(Loader::join);
        Ok(())
    }

    /// Weights that are here when the one at this offset of the checkpoint is.
    pub fn count_with(&self, offset: usize) -> usize {
        self.places.by_offset[&offset].number + 1
    }

    /// What copying them has taken so far.
    pub fn took(&self) -> Option<Duration> {
        self.loader.as_ref().map(Loader::took)
    }

    /// Has the GPU make a synthetic model's weights.
    pub fn synthesize(
        &self,
        context: &Arc<Context>,
        kernels: &mut Kernels,
        target: &Target,
        checkpoint: &Checkpoint,
        weights: &[Weight],
    ) -> Result<()> {
        let Self { region, places, .. } = self;
        let stream = Stream::new(context)?;
        for weight in weights {
            let Weight { offset, cols: row, stride, .. } = *weight;
            let (recipe, first) = checkpoint.recipe(offset).expect("a synthetic weight has one");
            let op = Synthesize { recipe, first, row, stride, out: places.by_offset[&offset].slot };
            let launch = op.launch(target);
            let function = kernels.function(&launch)?;
            let base = region.address(0..places.bytes);
            let geometry = function.geometry(&launch);
            let arguments = launch.arguments.resolve(|_| base);
            // SAFETY: the struct is the one that the kernel's source declares, and its one address is of
            // a place in the region that holds as many elements; the stream is waited for below.
            let arguments = function.arguments(arguments.bytes());
            let result = unsafe { stream.launch(&function, geometry, &arguments, false) };
            launched(result, launch.export.name)?;
        }
        stream.synchronize("cannot make the weights on the GPU: kernel synthesize failed")
    }

    /// The device's address of the weight of so many bytes at this offset of the checkpoint.
    ///
    /// # Panics
    /// When there is none, or it is smaller.
    pub fn address(&self, offset: usize, bytes: usize) -> u64 {
        let slot = self.places.by_offset[&offset].slot;
        assert!(bytes <= slot.len(), "{bytes} of {}", slot.len());
        self.region.address(slot.offset()..slot.offset() + bytes)
    }
}

impl Cuda {
    /// Allocates the two regions and copies the weights, or makes them there. Ranks that are not alone must
    /// all be on GPUs.
    ///
    /// # Errors
    /// When the GPU has not that much memory, or fails; when the ranks cannot be joined.
    pub fn new(gpu: &Gpu, blueprint: Blueprint<'_>) -> Result<Self> {
        let (sender, progress) = channel();
        // Nobody listens where the rest has failed: then loading ends.
        let unheard = |_| Error::failed("nobody waits for the weights any more");
        let on_progress = Box::new(move |bytes| sender.send(bytes).map_err(unheard));
        let mut cuda = Self::while_loading(gpu, &blueprint, on_progress)?;
        progress.iter().try_for_each(blueprint.on_progress)?;
        cuda.finish_loading()?;
        Ok(cuda)
    }

    /// Waits until all weights are here.
    ///
    /// # Errors
    /// What keeps them from coming.
    pub fn finish_loading(&mut self) -> Result<()> {
        self.guard(|cuda| cuda.weights.finish())
    }
}
