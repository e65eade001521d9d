//! Launches with addresses, and ops that the hosts of several ranks do for their GPUs.

use super::Cuda;
use super::stream::{Function, launched};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::memory::{Memory, Slot};
use crate::op::Op;

/// A launch with addresses.
pub(super) struct Resolved {
    pub(super) function: Function,
    pub(super) name: &'static str,
    pub(super) grid: [u32; 3],
    pub(super) block: u32,
    pub(super) shared_bytes: u32,
    /// The argument struct.
    pub(super) words: Vec<u64>,
    /// What is first to be added up over all ranks.
    pub(super) exchange: Option<Slot<f32>>,
}

impl Resolved {
    /// What the host adds up before [`Self::queue`], if it has to.
    pub(super) fn prepare(&self, cuda: &mut Cuda) -> Result<()> {
        match self.exchange {
            Some(slot) if cuda.link.is_by_hosts() => cuda.add_up_on_host(slot),
            _ => Ok(()),
        }
    }

    /// Queues it. `programmatic`: see [`super::stream::Stream::launch`].
    pub(super) fn queue(&self, cuda: &Cuda, mut programmatic: bool) -> Result<()> {
        if let (Some(slot), Some(nccl)) = (self.exchange, cuda.link.nccl()) {
            let address = cuda.state.address(slot.offset()..slot.offset() + slot.bytes());
            // SAFETY: the address is of a slot of so many numbers in the state region, as below.
            unsafe { nccl.all_reduce(&cuda.stream, address, slot.len()) }?;
            programmatic = false; // NCCL's kernels do not let others begin early
        }
        let arguments = bytemuck::cast_slice(&self.words);
        let Self { function, grid, block, shared_bytes, .. } = self;
        // SAFETY: the struct is the one that the kernel's source declares (`kernel` generates it from
        // there), its addresses are of the slots and weights that the op names, inside the regions that
        // `Cuda` owns and frees only after its stream has ended.
        let result = unsafe {
            cuda.stream.launch(function, *grid, *block, *shared_bytes, arguments, programmatic)
        };
        launched(result, self.name)
    }
}

/// The kernels of these launches, each once, in order.
pub(super) fn names(launches: &[Resolved]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for launch in launches {
        if !names.contains(&launch.name) {
            names.push(launch.name);
        }
    }
    names.join(", ")
}

impl Cuda {
    /// Whether it is one of several ranks.
    pub fn has_peers(&self) -> bool {
        !self.link.is_alone()
    }

    /// Does an op of several ranks that no kernel does: by its reference, on copies of `slots`, which are
    /// all that it reads or writes.
    pub(super) fn run_on_host(&mut self, op: &dyn Op, slots: &[Slot<u8>]) -> Result<()> {
        let mut state = self
            .mirror
            .take()
            .ok_or_else(|| Error::failed(format!("{} is left undone after an error", op.name())))?;
        let own_bytes = self.own_bytes;
        for slot in slots.iter().filter(|slot| slot.offset() < own_bytes) {
            state.write(*slot, self.read(*slot)?);
        }
        let comm = self.comm.clone();
        comm.enter(op.name())?;
        let weights = Checkpoint::empty();
        op.reference(&mut Memory { weights: &weights, state: &mut state, comm: &*comm });
        for slot in slots {
            self.write(*slot, state.read(*slot))?;
        }
        self.mirror = Some(state);
        comm.leave()
    }
}
