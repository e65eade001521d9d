//! How the ranks of a model on GPUs reach each other.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::driver::{Alarm, Context};
use super::nccl::Nccl;
use super::{Card, Cuda};
use crate::comm::Communicator;
use crate::error::Result;
use crate::memory::Slot;
use crate::ops::{EMPTY, Mailbox};

/// What carries sums over all ranks.
pub(super) enum Link {
    /// There is one rank.
    Alone,
    /// The hosts. Some ranks share a GPU, which NCCL refuses; and kernels that wait for each other on one GPU
    /// may keep each other from running.
    Hosts,
    /// NCCL, and why it carries all of them.
    Nccl(Arc<Nccl>, String),
    /// This program's kernels where that is faster, else NCCL. The alarm ends what waits.
    Peers(Arc<Nccl>, Arc<Alarm>),
}

/// Where a rank runs: the machine and the process, as far as they are told apart, and the GPU.
fn place(card: &Card) -> [u64; 2] {
    let mut process = DefaultHasher::new();
    // Where there is no such file, the number of the process says enough.
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default().hash(&mut process);
    std::process::id().hash(&mut process);
    [process.finish(), card.ordinal.into()]
}

impl Link {
    /// What all ranks agree on; `CHASKI_PEERS=off` in the environment keeps to NCCL.
    ///
    /// # Errors
    /// A rank that has failed; what NCCL or the driver refuse.
    pub fn find(card: &Card, comm: &dyn Communicator) -> Result<Self> {
        if comm.world() == 1 {
            return Ok(Self::Alone);
        }
        let places = comm.all_gather(&place(card));
        comm.leave()?;
        let places: Vec<_> = places.chunks_exact(2).collect();
        if (1..places.len()).any(|rank| places[..rank].contains(&places[rank])) {
            return Ok(Self::Hosts);
        }
        let nccl = Nccl::join(&card.context, comm)?;
        if places.iter().any(|place| place[0] != places[0][0]) {
            return Ok(Self::Nccl(nccl, "ranks are not all in one process".to_owned()));
        }
        if std::env::var("CHASKI_PEERS").is_ok_and(|given| given == "off") {
            return Ok(Self::Nccl(nccl, "CHASKI_PEERS=off".to_owned()));
        }
        // One that is out of reach, from 1 on: all must know of it.
        let mut missing = 0;
        for place in places.iter().filter(|place| place[1] != u64::from(card.ordinal)) {
            let peer = Context::new(place[1] as u32)?;
            if !card.context.reach(&peer)? {
                missing = place[1] + 1;
            }
        }
        let missing = comm.all_gather(&[missing]);
        comm.leave()?;
        if let Some(rank) = missing.iter().position(|missing| *missing != 0) {
            let (from, to) = (places[rank][1], missing[rank] - 1);
            let why = format!("cuda:{from} has no access to the memory of cuda:{to}");
            return Ok(Self::Nccl(nccl, why));
        }
        let alarm = Arc::new(Alarm::allocate(&card.context)?);
        let left = Arc::downgrade(&alarm);
        comm.on_failure(Box::new(move || {
            if let Some(alarm) = left.upgrade() {
                alarm.raise();
            }
        }));
        Ok(Self::Peers(nccl, alarm))
    }

    pub fn nccl(&self) -> Option<&Nccl> {
        match self {
            Self::Alone | Self::Hosts => None,
            Self::Nccl(nccl, _) | Self::Peers(nccl, _) => Some(nccl),
        }
    }

    pub fn is_by_hosts(&self) -> bool {
        matches!(self, Self::Hosts)
    }

    pub fn is_alone(&self) -> bool {
        matches!(self, Self::Alone)
    }

    pub fn reaches_peers(&self) -> bool {
        matches!(self, Self::Peers(..))
    }

    /// For people.
    fn describe(&self) -> Option<String> {
        match self {
            Self::Alone => None,
            Self::Hosts => Some("added up by the host, since ranks share a GPU: slow".to_owned()),
            Self::Nccl(_, why) => Some(format!("through NCCL: {why}")),
            Self::Peers(..) => Some("over peer memory, what is large through NCCL".to_owned()),
        }
    }
}

impl Cuda {
    /// Which way sums over all ranks go, if there are several.
    pub fn link(&self) -> Option<String> {
        self.link.describe()
    }

    /// Makes the mailbox ready, and tells the ranks of each other's.
    ///
    /// # Errors
    /// When the GPU or another rank fails.
    pub fn connect(&mut self, mailbox: &Mailbox) -> Result<()> {
        let Link::Peers(_, alarm) = &self.link else {
            return Ok(());
        };
        let alarm = alarm.address()?;
        self.write(mailbox.slots, &vec![EMPTY; mailbox.slots.len()])?;
        self.write(mailbox.rounds, &[0; 3])?;
        let failure = self.failure();
        self.guard(|cuda| cuda.stream.synchronize(&failure))?;
        let slots = mailbox.slots;
        let address = self.state.address(slots.offset()..slots.offset() + slots.bytes());
        // All slots are empty when this returns: each rank comes here when its own are.
        let mut addresses = self.comm.all_gather(&[address]);
        self.comm.leave()?;
        addresses.push(alarm);
        self.write(mailbox.addresses, &addresses)
    }

    /// Replaces numbers by their sums over all ranks, as the host makes them.
    pub(super) fn add_up_on_host(&mut self, slot: Slot<f32>) -> Result<()> {
        let mut sums = self.read(slot)?.to_vec();
        self.comm.all_reduce(&mut sums);
        self.comm.leave()?;
        self.write(slot, &sums)
    }
}
