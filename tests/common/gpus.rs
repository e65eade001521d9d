//! Models on emulated GPUs, a rank on each that is named.

use std::time::Duration;

use chaski::engine::{Model, Options, Split, silent};
use chaski::error::Result;
use chaski::source::Source;
use chaski::team::Team;

use crate::emulated;

/// Kernels that are new to the emulator are compiled at their first launch.
const PATIENCE: Duration = Duration::from_secs(600);

/// `source`, split over ranks in `stages` on GPUs of these numbers.
pub fn team(source: &Source, options: Options, stages: usize, ordinals: &[u32]) -> Result<Team> {
    emulated::start();
    let split = Split {
        tensor_parallel: Some(ordinals.len() / stages),
        pipeline_parallel: Some(stages),
        devices: ordinals.to_vec(),
        process: None,
    };
    let cuda = Options::from_variables(&|name| std::env::var_os(name))?.cuda;
    let asked = Options { split, timeout: PATIENCE, trust_kernels: true, cuda, ..options };
    Ok(Model::of(source.clone(), asked)?.load(&silent())?.team)
}
