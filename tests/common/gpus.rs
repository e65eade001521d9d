//! Models on emulated GPUs, a rank on each that is named.

use std::sync::Once;
use std::time::Duration;

use chaski::checkpoint::{Checkpoint, Dtype};
use chaski::config::{Config, Dims};
use chaski::device::Hardware;
use chaski::device::cuda::{self, Card, Emulation};
use chaski::error::Result;
use chaski::model::{Plan, Request, Room, Weights};
use chaski::source::Source;
use chaski::team::{Options, Team};

/// Kernels that are new to the emulator are compiled at their first launch.
const PATIENCE: Duration = Duration::from_secs(600);

/// `source`, split over ranks in `stages` on GPUs of these numbers; of `request` only what is not the GPUs'
/// own matter counts.
pub fn team(source: &Source, request: Request, stages: usize, ordinals: &[u32]) -> Result<Team> {
    static ONCE: Once = Once::new();
    let emulation = || Emulation::from_variables(8, std::env::vars_os()).unwrap();
    ONCE.call_once(|| cuda::emulate(&emulation(), &|_| ()).unwrap());
    let (config, checkpoint) = (Config::load(source)?, Checkpoint::open(source)?);
    let world = ordinals.len();
    let dims = Dims::in_stages(&config, world, stages)?.of_rank(world - 1);
    let cards = ordinals.iter().map(|ordinal| Card::open(*ordinal)).collect::<Result<Vec<_>>>()?;
    cards[0].suits(&dims, &checkpoint)?;
    let request = Request {
        cache: Dtype::F16,
        activations: checkpoint.dtype(),
        attention_blocks: cards[0].attention_blocks(),
        ..request
    };
    let weights: Vec<_> = Weights::locate(&checkpoint, &dims)?.iter().collect();
    let room = Room::Gpu(1 << 30);
    let plan = Plan::new(&config, &dims, cuda::region_bytes(&weights), request, room)?;
    let hardware: Vec<_> = cards.into_iter().map(Hardware::Gpu).collect();
    let options = Options { timeout: PATIENCE, stages, ..Options::default() };
    Team::new(&config, checkpoint, &plan, &hardware, options, &|_| Ok(()))
}
