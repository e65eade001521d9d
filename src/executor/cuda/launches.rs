//! Launches with addresses, and ops that the hosts of several ranks do for their GPUs.

use super::driver::tensor_map;
use super::module::Function;
use super::stream::{Geometry, launched};
use super::{Cuda, locked};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::kernel::{Arguments, RegionKind};
use crate::memory::{Memory, Slot};
use crate::op::{Exchange, Op, Program};

/// An op's launch with addresses.
pub(super) struct Resolved {
    /// None where an exchange is all.
    function: Option<Function>,
    pub(super) name: &'static str,
    geometry: Geometry,
    /// The argument struct.
    words: Vec<u64>,
    /// How many of the weights, in the order of their use, must be here.
    pub(super) weights: usize,
    /// What ranks exchange before.
    pub(super) exchange: Option<Exchange>,
    /// Whether the kernel may begin before what comes before it in the program has ended.
    is_programmatic: bool,
}

impl Resolved {
    /// An op without a kernel.
    fn only(name: &'static str, exchange: Option<Exchange>) -> Self {
        let geometry = Geometry { grid: [0; 3], block: [0; 3], shared_bytes: 0 };
        let (function, words, weights, is_programmatic) = (None, Vec::new(), 0, false);
        Self { function, name, geometry, words, weights, exchange, is_programmatic }
    }

    /// What the host does before [`Self::queue`], if it has to.
    pub(super) fn prepare(&self, cuda: &mut Cuda) -> Result<()> {
        match &self.exchange {
            Some(exchange) if cuda.link.is_by_hosts() => cuda.exchange_on_host(exchange),
            _ => Ok(()),
        }
    }

    /// Queues what NCCL does for it.
    pub(super) fn exchange(&self, cuda: &Cuda) -> Result<()> {
        if let (Some(exchange), Some(nccl)) = (&self.exchange, cuda.link.nccl())
            && let Some(slot) = exchange.numbers()
        {
            let address = cuda.state.address(slot.offset()..slot.offset() + slot.bytes());
            // SAFETY: the address is of a slot of the exchange's size in the state region, as below.
            unsafe { nccl.exchange(&cuda.stream, exchange, address) }?;
        }
        Ok(())
    }

    /// Queues it. `programmatic`: see [`super::stream::Stream::launch`].
    pub(super) fn queue(&self, cuda: &Cuda, programmatic: bool) -> Result<()> {
        self.exchange(cuda)?;
        let Some(function) = &self.function else { return Ok(()) };
        let programmatic = programmatic && self.is_programmatic && function.is_programmatic;
        let arguments = function.arguments(bytemuck::cast_slice(&self.words));
        // SAFETY: the struct is the one that the kernel's source declares (`kernel` generates it from
        // there, `Replacement` compares with it), its addresses are of the slots and weights that the op
        // names, which are all of them inside the regions that `Cuda` owns and frees only after its stream
        // has ended. That the kernel touches no more is for the op, one of ours (`op::Sealed`), and held to
        // by `conformance`.
        let result =
            unsafe { cuda.stream.launch(function, self.geometry, &arguments, programmatic) };
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
    /// Every launch of `program` with its function and its addresses.
    pub(super) fn resolve(&self, program: &Program) -> Result<Vec<Resolved>> {
        let mut kernels = locked(&self.kernels);
        let mut follows_pass = false;
        let by_nccl = |op: &dyn Op| {
            let numbers = op.exchange(&self.target).and_then(|exchange| exchange.numbers());
            numbers.is_some() && self.link.nccl().is_some()
        };
        let traced = program.ops.iter().map(|op| (op.name(), by_nccl(&**op))).collect();
        let [word, first_place] = self.trace.of(traced);
        let mut resolve = |number: usize, op: &dyn Op| {
            let exchange = op.exchange(&self.target);
            // NCCL's kernels do not let others begin early.
            let is_programmatic = !by_nccl(op) && !follows_pass;
            follows_pass = matches!(exchange, Some(Exchange::SendRecv(..)));
            if follows_pass {
                return Ok(Resolved::only(op.name(), exchange));
            }
            let launch = op.launch(&self.target);
            let mut words = self.addresses(&launch.arguments)?;
            if let Some(at) = launch.arguments.trace() {
                words[at / 8..][..2].copy_from_slice(&[word, first_place + number as u64]);
            }
            let function = kernels.function(&launch)?;
            Ok(Resolved {
                function: Some(function),
                name: launch.export.name,
                geometry: function.geometry(&launch),
                words,
                weights: self.weights_of(&launch.arguments),
                exchange,
                is_programmatic,
            })
        };
        program.ops.iter().enumerate().map(|(number, op)| resolve(number, &**op)).collect()
    }

    /// The argument struct with the device's addresses.
    ///
    /// # Panics
    /// When one is of a slot or a weight that is not, from its first byte to its last, in this memory.
    pub(super) fn addresses(&self, arguments: &Arguments) -> Result<Vec<u64>> {
        let mut words = vec![0u64; arguments.bytes().len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..arguments.bytes().len()]
            .copy_from_slice(arguments.bytes());
        for place in arguments.pointers() {
            let (at, bytes) = (place.region_offset, place.bytes);
            words[place.offset / 8] = match (place.region, at.checked_sub(self.own_bytes)) {
                (RegionKind::Weights, _) => self.weights.address(at, bytes),
                (RegionKind::State, None) => self.state.address(at..at + bytes),
                (RegionKind::State, Some(at)) => self.shared.address(at..at + bytes)?,
            };
        }
        for (offset, map) in arguments.maps() {
            let at = map.region_offset;
            let address = match map.region {
                RegionKind::Weights => self.weights.address(at, map.bytes()),
                RegionKind::State => self.state.address(at..at + map.bytes()),
            };
            words[offset / 8..][..16].copy_from_slice(&tensor_map(map, address)?);
        }
        Ok(words)
    }

    /// How many of the weights must be here for a kernel with these arguments, in the order of their use.
    pub(super) fn weights_of(&self, arguments: &Arguments) -> usize {
        let places = arguments.pointers().iter().map(|place| (place.region, place.region_offset));
        let maps = arguments.maps().iter().map(|(_, map)| (map.region, map.region_offset));
        let of_weights =
            places.chain(maps).filter(|(region, _)| matches!(region, RegionKind::Weights));
        of_weights.map(|(_, at)| self.weights.count_with(at)).max().unwrap_or(0)
    }

    /// Whether the hosts of several ranks must do some of `program` for their GPUs.
    pub fn needs_hosts(&self, program: &Program) -> bool {
        let by_hosts = |exchange| matches!(exchange, Some(Exchange::ByHosts(_)));
        program.ops.iter().any(|op| by_hosts(op.exchange(&self.target)))
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
