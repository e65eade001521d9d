//! Models on emulated GPUs, a rank on each that is named.

use std::sync::Once;
use std::time::Duration;

use chaski::device::cuda::{self, Emulation};
use chaski::engine::{Model, Options, Split, silent};
use chaski::error::Result;
use chaski::source::Source;
use chaski::team::Team;

/// Kernels that are new to the emulator are compiled at their first launch.
const PATIENCE: Duration = Duration::from_secs(600);

/// `source`, split over ranks in `stages` on GPUs of these numbers.
pub fn team(source: &Source, options: Options, stages: usize, ordinals: &[u32]) -> Result<Team> {
    static ONCE: Once = Once::new();
    let emulation = || Emulation::from_variables(8, std::env::vars_os()).unwrap();
    ONCE.call_once(|| cuda::emulate(&emulation(), &|_| ()).unwrap());
    let split = Split {
        tensor_parallel: Some(ordinals.len() / stages),
        pipeline_parallel: Some(stages),
        devices: ordinals.to_vec(),
        process: None,
    };
    let asked = Options { split, timeout: PATIENCE, trust_kernels: true, ..options };
    Ok(Model::of(source.clone(), asked)?.load(&silent())?.team)
}
