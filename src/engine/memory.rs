//! How much memory this process may still take.

use std::fs;

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use super::limits::left_by_groups;
use crate::checkpoint::Checkpoint;
use crate::config::Dims;
use crate::error::{Error, Result, binary};
use crate::executor::Hardware;
use crate::executor::cuda::{self, Gpu};
use crate::model::{MemoryBudget, Plan};

/// Bytes that this process may still take: the system's figure, or what its control groups leave if that is
/// less.
///
/// # Errors
/// When the system does not say.
pub fn available_memory_bytes() -> Result<usize> {
    let system = system(RefreshKind::nothing().with_memory(MemoryRefreshKind::everything()))?;
    let groups = left_by_groups(&|file| fs::read_to_string(file).ok()).unwrap_or(u64::MAX);
    Ok(system.available_memory().min(groups) as usize)
}

/// What the operating system says of itself.
///
/// # Errors
/// When it does not.
pub fn system(what: RefreshKind) -> Result<System> {
    System::new_with_specifics(what)
        .map_err(|error| Error::failed(format!("cannot read the system's memory: {error}")))
}

pub(super) fn gpus(hardware: &[Hardware]) -> impl Iterator<Item = &Gpu> {
    hardware.iter().filter_map(|hardware| match hardware {
        Hardware::Cpu(_) => None,
        Hardware::Gpu(gpu) => Some(gpu),
    })
}

/// What a rank can have on the GPU that has least.
pub(super) fn gpu_room(hardware: &[Hardware], dims: &Dims) -> Result<MemoryBudget> {
    let room_of = |gpu: &Gpu| {
        let (free, total) = gpu.memory()?;
        let ranks = gpus(hardware).filter(|other| other.ordinal == gpu.ordinal).count();
        let joins = ranks == 1 && dims.world() > 1;
        let communicators = if !joins { 0 } else { 1 + usize::from(dims.stage.parts > 1) };
        Ok((free / ranks).saturating_sub(communicators * cuda::communicator_bytes(total)))
    };
    let rooms = gpus(hardware).map(room_of).collect::<Result<Vec<_>>>()?;
    Ok(MemoryBudget::Gpu(rooms.into_iter().min().unwrap_or(0)))
}

/// That weights which are made in memory fit it beside the state: they cannot give way, as mapped ones can.
pub(super) fn check_made(checkpoint: &Checkpoint, plan: &Plan, world: usize) -> Result<()> {
    let weight_bytes = checkpoint.made_bytes();
    if weight_bytes == 0 {
        return Ok(());
    }
    let available_bytes = available_memory_bytes()?;
    let state_bytes = (plan.cache_bytes + plan.activation_bytes) * world;
    if weight_bytes + state_bytes <= available_bytes {
        return Ok(());
    }
    let (what, cure) = match checkpoint.is_synthetic() {
        true => ("synthetic weights", "cut the model with `layers`, or lower `context`"),
        false => ("weights made in memory", "lower `context`"),
    };
    Err(Error::failed(format!(
        "{} of {what} and {} of state do not fit the {} of memory available: {cure}",
        binary(weight_bytes),
        binary(state_bytes),
        binary(available_bytes)
    )))
}
