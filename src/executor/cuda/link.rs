//! How the ranks of a model on GPUs reach each other.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::driver::Context;
use super::nccl::Nccl;
use super::region::Alarm;
use super::stream::Stream;
use super::{Cuda, Gpu, Peers, emulator};
use crate::comm::{Communicator, Direction};
use crate::error::{Error, Result};
use crate::memory::Slot;
use crate::op::{Exchange, Program};

/// What carries sums over the ranks of a stage, and what stages pass on.
pub(super) enum Link {
    /// There is one rank.
    Alone,
    /// The hosts. Some ranks share a GPU, which NCCL refuses; and kernels that wait for each other on one GPU
    /// may keep each other from running.
    Hosts,
    /// NCCL, and why it carries all sums.
    Nccl(NcclMembership, String),
    /// This program's kernels where that is faster, else NCCL. The alarm ends what waits.
    Peers(NcclMembership, Arc<Alarm>),
}

/// A rank's memberships in NCCL.
pub(super) struct NcclMembership {
    /// Of all ranks.
    all: Arc<Nccl>,
    /// Of those of its stage; the same where there is but one.
    stage: Arc<Nccl>,
    rank: usize,
    /// Ranks of a stage.
    parts: usize,
}

impl NcclMembership {
    /// Returns when all ranks have come.
    fn new(context: &Arc<Context>, comm: &dyn Communicator) -> Result<Self> {
        let all = Nccl::join(context, comm, 0..comm.world())?;
        all.carry(context, comm)?;
        let stage = match comm.stages() {
            1 => all.clone(),
            _ => Nccl::join(context, comm, comm.stage())?,
        };
        Ok(Self { all, stage, rank: comm.rank(), parts: comm.stage().len() })
    }

    /// Ends what waits for other ranks.
    pub fn abort(&self) {
        self.stage.abort();
        self.all.abort();
    }

    /// Queues what ranks exchange, at `address`.
    ///
    /// # Safety
    /// The exchange's numbers are there, on the GPU that the stream is of, until the stream has come past.
    pub unsafe fn exchange(
        &self,
        stream: &Stream,
        exchange: &Exchange,
        address: u64,
    ) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe {
            match exchange {
                Exchange::Sum(slot) => self.stage.all_reduce(stream, address, slot.len()),
                Exchange::SendRecv(slot, direction) => {
                    let peer = match direction {
                        Direction::Send => self.rank + self.parts,
                        Direction::Receive => self.rank - self.parts,
                    };
                    self.all.pass(stream, (address, slot.len()), *direction, peer)
                }
                Exchange::ByHosts(_) => Ok(()),
            }
        }
    }
}

/// How long the first sum over peer memory may take.
const TRIAL: Duration = Duration::from_secs(1);

/// Where a rank runs: the process, by a random number, since two containers of a machine may both be its
/// process 1; and the GPU.
fn place(gpu: &Gpu) -> [u64; 2] {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    [*PROCESS.get_or_init(|| RandomState::new().hash_one(0)), gpu.ordinal.into()]
}

/// In the place of a GPU: peer memory is not to be used, or has been found not to work.
const REFUSED: u64 = u64::MAX;
const BROKEN: u64 = u64::MAX - 1;

/// A GPU among these places that this one does not reach, from 1 on; 0 if it reaches all of them.
fn out_of_reach(gpu: &Gpu, places: &[&[u64]]) -> Result<u64> {
    match gpu.options.peers {
        _ if !gpu.settings.peers => return Ok(REFUSED),
        Peers::Broken => return Ok(BROKEN),
        Peers::Untried | Peers::Work => (),
    }
    for place in places.iter().filter(|place| place[1] != u64::from(gpu.ordinal)) {
        let peer = Context::new(place[1] as u32)?;
        if !gpu.context.reach(&peer)? {
            return Ok(place[1] + 1);
        }
    }
    Ok(0)
}

impl Link {
    /// What all ranks agree on; NCCL where peers are not asked for ([`super::Settings::peers`]).
    ///
    /// # Errors
    /// A rank that has failed; what NCCL or the driver refuse.
    pub fn find(gpu: &Gpu, comm: &dyn Communicator) -> Result<Self> {
        if comm.world() == 1 {
            return Ok(Self::Alone);
        }
        let places = comm.all_gather(&place(gpu));
        comm.leave()?;
        let places: Vec<_> = places.chunks_exact(2).collect();
        let in_one_process =
            |places: &[&[u64]]| places.iter().all(|place| place[0] == places[0][0]);
        if (1..places.len()).any(|rank| places[..rank].contains(&places[rank])) {
            return match comm.stages() == 1 || in_one_process(&places) {
                true => Ok(Self::Hosts),
                false => Err(Error::failed(
                    "stages in several processes need a GPU for each rank, and two ranks share one",
                )),
            };
        }
        let nccl = NcclMembership::new(&gpu.context, comm)?;
        let stage = comm.stage();
        if !places.chunks(stage.len()).all(in_one_process) {
            return Ok(Self::Nccl(nccl, "ranks are not all in one process".to_owned()));
        }
        let missing = comm.all_gather(&[out_of_reach(gpu, &places[stage])?]);
        comm.leave()?;
        if let Some(rank) = missing.iter().position(|missing| *missing != 0) {
            let why = match missing[rank] {
                REFUSED => "CHASKI_PEERS=off".to_owned(),
                BROKEN => {
                    "peer memory has been tried and does not work (chaski qualify has it tried again)"
                        .to_owned()
                }
                missing => format!(
                    "cuda:{} has no access to the memory of cuda:{}",
                    places[rank][1],
                    missing - 1
                ),
            };
            return Ok(Self::Nccl(nccl, why));
        }
        let alarm = Arc::new(Alarm::allocate(&gpu.context)?);
        let left = Arc::downgrade(&alarm);
        comm.on_failure(Box::new(move || {
            if let Some(alarm) = left.upgrade() {
                alarm.raise();
            }
        }));
        Ok(Self::Peers(nccl, alarm))
    }

    pub fn nccl(&self) -> Option<&NcclMembership> {
        match self {
            Self::Alone | Self::Hosts => None,
            Self::Nccl(nccl, _) | Self::Peers(nccl, _) => Some(nccl),
        }
    }

    pub fn is_by_hosts(&self) -> bool {
        matches!(self, Self::Hosts)
    }

    pub fn reaches_peers(&self) -> bool {
        matches!(self, Self::Peers(..))
    }

    /// For people.
    fn describe(&self, comm: &dyn Communicator) -> Option<String> {
        let (sums, passing) = match self {
            Self::Alone => return None,
            Self::Hosts => ("by the host, since ranks share a GPU: slow".to_owned(), "by the host"),
            Self::Nccl(_, why) => (format!("through NCCL: {why}"), "through NCCL"),
            Self::Peers(..) => {
                ("over peer memory, large ones through NCCL".to_owned(), "through NCCL")
            }
        };
        Some(match (comm.stages(), comm.stage().len()) {
            (1, _) => format!("sums over all ranks {sums}"),
            (_, 1) => format!("from stage to stage {passing}"),
            _ => format!("sums over the ranks of a stage {sums}; from stage to stage {passing}"),
        })
    }
}

impl Cuda {
    /// Which way sums go, and what stages pass on, if there are several ranks.
    pub fn link(&self) -> Option<String> {
        self.link.describe(&*self.comm)
    }

    /// Whether kernels of this rank wait for those of others: this program's or NCCL's. While any does, this
    /// process may not make a call of the driver that waits for the devices - those that load code, that
    /// allocate or free memory, that make a graph - or what the kernel waits for is never launched.
    pub fn waits_for_peers(&self) -> bool {
        self.link.nccl().is_some()
    }

    /// Makes all such calls that running `program` needs; all ranks must do so. What NCCL does in it is done
    /// once, of any numbers: it connects the ranks, and allocates, when they first meet for such a thing.
    ///
    /// # Errors
    /// What cannot be loaded; what NCCL or the driver refuse.
    pub fn prepare(&mut self, program: &Program) -> Result<()> {
        self.guard(|cuda| {
            let mut known = Vec::new();
            for launch in cuda.resolve(program)? {
                let met_for = match &launch.exchange {
                    Some(Exchange::Sum(slot)) => (slot.len(), None),
                    Some(Exchange::SendRecv(slot, direction)) => (slot.len(), Some(*direction)),
                    None | Some(Exchange::ByHosts(_)) => continue,
                };
                if !known.contains(&met_for) {
                    launch.exchange(cuda)?;
                    known.push(met_for);
                }
            }
            Ok(())
        })
    }

    /// Fills the slots through which ranks on GPUs tell each other something, and tells the ranks where each
    /// other's are.
    ///
    /// # Errors
    /// When the GPU or another rank fails.
    pub fn connect<T: Pod>(
        &mut self,
        slots: Slot<T>,
        empty: T,
        addresses: Slot<u64>,
    ) -> Result<()> {
        let alarm = match &self.link {
            Link::Hosts | Link::Nccl(..) => return Ok(()), // no kernel uses them
            Link::Alone => None,
            Link::Peers(_, alarm) => Some(alarm.address()?),
        };
        self.write(slots, &vec![empty; slots.len()])?;
        let Some(alarm) = alarm else { return Ok(()) };
        let failure = self.failure();
        self.guard(|cuda| cuda.stream.synchronize(&failure))?;
        let address = self.state.address(slots.offset()..slots.offset() + slots.bytes());
        // All slots are empty when this returns: each rank comes here when its own are.
        let mut of_all = self.comm.all_gather(&[address])[self.comm.stage()].to_vec();
        self.comm.leave()?;
        of_all.push(alarm);
        self.write(addresses, &of_all)
    }

    /// Tries peer memory, if that has not been tried: a machine may promise it and not have it. NCCL does the
    /// sums from now on if `program`, one that the kernels of all ranks make over it, does not leave
    /// `right` in `sum`, in time.
    ///
    /// # Errors
    /// When the GPU or another rank fails.
    pub fn try_peers(&mut self, program: &Program, sum: Slot<f32>, right: &[f32]) -> Result<()> {
        let (Link::Peers(_, alarm), Peers::Untried) = (&self.link, self.options.peers) else {
            return Ok(());
        };
        let alarm = alarm.clone();
        let launches = self.guard(|cuda| cuda.resolve(program))?;
        // All have loaded the kernel when one of them waits in it.
        self.comm.all_gather(&[0]);
        self.comm.leave()?;
        let limit = if emulator::nvrtc().is_some() { 5 * TRIAL } else { TRIAL };
        let came = self.guard(|cuda| {
            launches.iter().try_for_each(|launch| launch.queue(cuda, false))?;
            let (since, failure) = (Instant::now(), cuda.failure());
            while !cuda.stream.has_ended(&failure)? {
                if since.elapsed() > limit {
                    alarm.raise();
                    cuda.stream.synchronize(&failure)?;
                    return Ok(false);
                }
                thread::sleep(Duration::from_micros(50));
            }
            Ok(true)
        })?;
        let is_right = came && self.read(sum)? == right;
        let all = self.comm.all_gather(&[is_right.into()]);
        self.comm.leave()?;
        let broken = all.iter().position(|is_right| *is_right == 0);
        self.tried_peers = Some(broken.is_none());
        let Some(rank) = broken else { return Ok(()) };
        if let Link::Peers(nccl, _) = std::mem::replace(&mut self.link, Link::Alone) {
            let why = format!("what others store into the memory of rank {rank} does not arrive");
            self.link = Link::Nccl(nccl, why);
        }
        self.target.reaches_peers = false;
        Ok(())
    }

    /// Whether the memory of the other ranks' GPUs works, if [`Self::try_peers`] has tried it.
    pub fn tried_peers(&self) -> Option<bool> {
        self.tried_peers
    }

    /// Does what no kernel does, on a copy.
    pub(super) fn exchange_on_host(&mut self, exchange: &Exchange) -> Result<()> {
        let Some(slot) = exchange.numbers() else { return Ok(()) };
        let mut numbers = self.read(slot)?.to_vec();
        match exchange {
            Exchange::SendRecv(_, direction) => self.comm.pass(&mut numbers, *direction),
            _ => self.comm.all_reduce(&mut numbers),
        }
        self.comm.leave()?;
        self.write(slot, &numbers)
    }
}
