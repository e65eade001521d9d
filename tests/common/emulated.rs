//! Models on an emulated GPU.

use std::sync::Once;

use chaski::checkpoint::Checkpoint;
use chaski::engine::{self, Model, Options};
use chaski::error::Result;
use chaski::executor::cuda::{self, Emulation};
use chaski::executor::{Executor, Hardware};
use chaski::memory::{Layout, Weight};
use chaski::rank::Rank;
use chaski::source::Source;

/// Emulated GPUs of a process that tests.
const GPUS: u32 = 8;

/// Has them there.
pub fn start() {
    static ONCE: Once = Once::new();
    let emulation = || Emulation::from_variables(GPUS, std::env::vars_os()).unwrap();
    ONCE.call_once(|| cuda::emulate(&emulation(), &|_| ()).unwrap());
}

/// `source` on one emulated GPU.
pub fn rank(source: &Source, options: Options) -> Result<Rank> {
    rank_on(source, options, |hardware, checkpoint, weights, layout| {
        Executor::new(hardware, checkpoint, weights, layout, &|_| Ok(()))
    })
}

/// As [`rank`], on what `device` makes of the GPU, the weights in the order of their use, and the state.
pub fn rank_on(
    source: &Source,
    options: Options,
    device: impl FnOnce(&Hardware, Checkpoint, &[Weight], &Layout) -> Result<Executor>,
) -> Result<Rank> {
    start();
    let on_gpu = Options { device: engine::Device::Cuda(0), ..options };
    let model = Model::of(source.clone(), on_gpu)?;
    let (plan, Model { config, dims, checkpoint, hardware, .. }) = (model.plan()?, model);
    Rank::on(&config, dims, checkpoint, &plan, |checkpoint, weights, layout| {
        device(&hardware[0], checkpoint, weights, layout)
    })
}
