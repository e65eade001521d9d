//! Models on an emulated GPU.

use std::sync::Once;

use chaski::engine::{self, Model, Options};
use chaski::error::Result;
use chaski::executor::cuda::{self, Emulation};
use chaski::executor::{Blueprint, Executor, Hardware};
use chaski::rank::{Rank, RankSpec};
use chaski::source::Source;
use chaski::team::Team;

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
    rank_on(source, options, Executor::new)
}

/// `source` on one emulated GPU, with the sequence that it takes.
pub fn team(source: &Source, options: Options) -> Result<Team> {
    rank(source, options).map(Team::from)
}

/// As [`rank`], on what `device` makes of the GPU.
pub fn rank_on(
    source: &Source,
    options: Options,
    device: impl FnOnce(&Hardware, Blueprint<'_>) -> Result<Executor>,
) -> Result<Rank> {
    start();
    let on_gpu = Options { device: engine::Device::Cuda(0), ..options };
    let model = Model::of(source.clone(), on_gpu)?;
    let (plan, Model { config, dims, checkpoint, hardware, .. }) = (model.plan()?, model);
    let spec = RankSpec { config: &config, dims, checkpoint, plan: &plan };
    Rank::new(spec, |blueprint| device(&hardware[0], blueprint))
}
