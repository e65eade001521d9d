//! Whether the GPUs of ranks reach each other's memory: kept as ranks have found it, and not tried again.

use super::memory::gpus;
use super::{Event, Observer};
use crate::error::Result;
use crate::executor::Hardware;
use crate::executor::cuda::Peers;
use crate::kernel;
use crate::qualify::{Identity, PeerVerdict, Record};
use crate::team::Team;

/// The GPUs of a stage that has several ranks, and where their verdict is kept.
struct Stage {
    /// UUIDs, in the order of ranks.
    gpus: Vec<String>,
    /// Of the kernel that uses peer memory.
    code: String,
    record: Record,
}

impl Stage {
    fn of(stage: &[Hardware]) -> Result<Option<Self>> {
        let gpus: Vec<_> = gpus(stage).collect();
        let [first, _, ..] = gpus[..] else { return Ok(None) };
        let gpus = gpus.iter().map(|gpu| gpu.uuid()).collect::<Result<_>>()?;
        let code = first.code(kernel::AllReduce::KERNEL)?;
        Ok(Some(Self {
            gpus,
            code,
            record: Record::load(Identity::of(first)?, &first.settings.paths),
        }))
    }
}

/// Tells the GPUs of a stage what is known of each other's memory.
pub(super) fn recall(stage: &mut [Hardware]) -> Result<()> {
    let Some(Stage { gpus, code, record }) = Stage::of(stage)? else { return Ok(()) };
    let Some(works) = record.peers(&gpus, &code) else { return Ok(()) };
    for hardware in stage {
        if let Hardware::Gpu(gpu) = hardware
            && gpu.options.peers == Peers::Untried
        {
            gpu.options.peers = if works { Peers::Work } else { Peers::Broken };
        }
    }
    Ok(())
}

/// Keeps what the ranks of `team` have found out about each other's memory, if they have tried it.
/// `parts`: of a stage
pub(super) fn keep(
    team: &mut Team,
    hardware: &[Hardware],
    parts: usize,
    observer: &Observer,
) -> Result<()> {
    let tried = team.each(|rank| Ok(rank.device_mut().tried_peers()))?;
    for (stage, tried) in hardware.chunks(parts).zip(tried.chunks(parts)) {
        let Some(works) = tried[0] else { continue };
        let Some(Stage { gpus, code, mut record }) = Stage::of(stage)? else { continue };
        record.put_peers(PeerVerdict { gpus, code, works });
        // What cannot be kept is tried again.
        record.save().or_else(|error| observer(Event::NotKept(&error)))?;
    }
    Ok(())
}
