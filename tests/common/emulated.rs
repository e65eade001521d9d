//! Models on an emulated GPU.

use std::sync::Once;

use chaski::checkpoint::Checkpoint;
use chaski::config::{Config, Dims};
use chaski::device::cuda::{self, Card, Emulation};
use chaski::device::{Device, Hardware};
use chaski::error::Result;
use chaski::memory::{Layout, Weight};
use chaski::model::{Plan, Request, Room, Weights};
use chaski::rank::Rank;
use chaski::source::Source;

/// Has one emulated GPU there.
pub fn start() {
    static ONCE: Once = Once::new();
    let emulation = || Emulation::from_variables(1, std::env::vars_os()).unwrap();
    ONCE.call_once(|| cuda::emulate(&emulation(), &|_| ()).unwrap());
}

/// `source` on one emulated GPU. Of `request` only what is not the GPU's own matter counts.
pub fn rank(source: &Source, request: Request) -> Result<Rank> {
    start();
    let card = Card::open(0)?;
    rank_on(&card, source, request, |checkpoint, weights, layout| {
        Device::new(&Hardware::Gpu(card.clone()), checkpoint, weights, layout, &|_| Ok(()))
    })
}

/// As [`rank`], on what `device` makes of the weights, in the order of their use, and of the state.
pub fn rank_on(
    card: &Card,
    source: &Source,
    request: Request,
    device: impl FnOnce(Checkpoint, &[Weight], &Layout) -> Result<Device>,
) -> Result<Rank> {
    let config = Config::load(source)?;
    let dims = Dims::new(&config, 1)?;
    let checkpoint = Checkpoint::open(source)?;
    card.suits(&dims, &checkpoint)?;
    let request = Request {
        cache: chaski::checkpoint::Dtype::F16,
        activations: checkpoint.dtype(),
        attention_blocks: card.attention_blocks(),
        ..request
    };
    let weights: Vec<_> = Weights::locate(&checkpoint, &dims)?.iter().collect();
    let room = Room::Gpu(card.memory()?.0);
    let plan = Plan::new(&config, &dims, cuda::region_bytes(&weights), request, room)?;
    Rank::on(&config, dims, checkpoint, &plan, device)
}
