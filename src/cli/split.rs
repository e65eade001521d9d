//! From arguments to what each rank of a model runs on.

use super::args::{Device, ModelArgs};
use super::model::hardware;
use super::output::note;
use crate::checkpoint::Dtype;
use crate::config::{Config, Dims};
use crate::device::Hardware;
use crate::device::cuda::{Card, device_count};
use crate::error::{Error, Result};
use crate::team::Team;
use crate::vector;

/// The number of ranks that the arguments ask for.
///
/// # Errors
/// Not as many ranks as devices.
pub fn world(args: &ModelArgs) -> Result<usize> {
    match (args.split.tensor_parallel, args.split.devices.len()) {
        (Some(world), 0) => Ok(world),
        (None, devices) => Ok(devices.max(1)),
        (Some(world), devices) if world == devices => Ok(world),
        (Some(world), devices) => Err(Error::usage(format!(
            "--tensor-parallel {world} needs as many --devices, and {devices} are given; one may stand \
             there several times"
        ))),
    }
}

/// The largest share of the model that a rank has.
///
/// # Errors
/// A split that the model does not allow.
pub fn largest_share(config: &Config, world: usize) -> Result<Dims> {
    Ok(Dims::new(config, world)?.of_rank(world - 1))
}

/// What each rank runs on; `dims` are those of one.
///
/// # Errors
/// A device that is not there, or does not suit the model.
pub fn team_hardware(args: &ModelArgs, dims: &Dims, weights: Dtype) -> Result<Vec<Hardware>> {
    let on = |device| hardware(&ModelArgs { device, ..args.clone() }, dims, weights);
    let world = dims.share.parts;
    match &args.split.devices[..] {
        [ordinal] => Ok(vec![on(Device::Cuda(*ordinal))?]),
        [] if world == 1 => Ok(vec![on(args.device)?]),
        [] if matches!(on(args.device)?, Hardware::Cpu) => Ok(vec![Hardware::Cpu; world]),
        [] => {
            let all: Vec<u32> = (0..world as u32).collect();
            cards(&all, dims, weights)
        }
        several => cards(several, dims, weights),
    }
}

/// One rank on each of these GPUs.
fn cards(ordinals: &[u32], dims: &Dims, weights: Dtype) -> Result<Vec<Hardware>> {
    Card::suits(dims, weights)?;
    let count = device_count()?;
    if let Some(missing) = ordinals.iter().find(|ordinal| **ordinal >= count) {
        return Err(Error::failed(format!(
            "there is no GPU cuda:{missing} for a rank: there are {count}; --devices 0,0 puts two ranks on \
             one, --device cpu does without"
        )));
    }
    ordinals.iter().map(|ordinal| Ok(Hardware::Gpu(Card::open(*ordinal)?))).collect()
}

/// What the ranks run on, for people.
pub fn place(hardware: &[Hardware]) -> String {
    match hardware {
        [Hardware::Gpu(card)] => format!("cuda:{} ({})", card.ordinal, card.name),
        [Hardware::Cpu, others @ ..] => {
            let ranks = match others.len() {
                0 => String::new(),
                others => format!(", {} ranks", others + 1),
            };
            let threads = rayon::current_num_threads();
            format!("the CPU ({}, {threads} threads{ranks})", vector::instruction_set())
        }
        several => several.iter().map(Hardware::name).collect::<Vec<_>>().join(", "),
    }
}

/// Tells which way sums over all ranks go, where there is more than one.
///
/// # Errors
/// A rank that has failed.
pub fn note_link(team: &mut Team) -> Result<()> {
    if let Some(Some(link)) = team.each(|rank| Ok(rank.device_mut().link()))?.first() {
        note(format_args!("sums over all ranks {link}"));
    }
    Ok(())
}
