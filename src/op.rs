//! What a model's program is made of.

use std::any::Any;
use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use crate::comm::Direction;
use crate::kernel::{KernelSet, Launch};
use crate::memory::{Memory, Slot, Weight};

pub(crate) use sealed::Sealed;

mod sealed {
    /// What is an op of this crate.
    pub trait Sealed {}
}

/// One step of a model: what it means, and what it must move and compute.
///
/// An op owns no memory. It names the weights it reads and the slots it reads and writes; several
/// programs may hold ops on the same slots. All ops are in this crate: a launch on a GPU does what it says.
pub trait Op: Any + Sealed + Send + Sync {
    /// The op's name, which is also its file's.
    fn name(&self) -> &'static str;

    /// What the op must at least move and compute when its first token stands at `position`.
    fn cost(&self, position: usize) -> Cost;

    /// Bytes that [`Self::reference`] works in on so many threads, beside its slots.
    fn scratch(&self, _threads: usize) -> usize {
        0
    }

    /// Computes the op in host memory, in f32. This is the meaning that every kernel is held to.
    fn reference(&self, memory: &mut Memory<'_>);

    /// What ranks do for the op that no kernel does, if it is of several ranks'.
    fn exchange(&self, _target: &Target) -> Option<Exchange> {
        None
    }

    /// What it works on; nothing, if no step of a model has it.
    fn operands(&self) -> Operands {
        Operands::default()
    }

    /// The launch that computes the op on a GPU.
    fn launch(&self, target: &Target) -> Launch;
}

/// What an op works on, for people who look at its time.
#[derive(Debug, Clone, Default)]
pub struct Operands {
    /// Shape of its input.
    pub input: Vec<usize>,
    /// What it multiplies the input with, or takes rows of.
    pub matrices: Vec<Weight>,
    /// The norm's weight. `[C]`
    pub norm: Option<Slot<f32>>,
}

/// What no kernel does.
#[derive(Debug, Clone)]
pub enum Exchange {
    /// Replaced by its sum over the ranks of the stage before the op's kernel begins.
    Sum(Slot<f32>),
    /// Goes to the next stage or comes from the one before: there is no kernel.
    SendRecv(Slot<f32>, Direction),
    /// All of the op, by its reference, which the ranks' hosts run at the same time. These are all slots that
    /// it reads or writes.
    ByHosts(Vec<Slot<u8>>),
}

impl Exchange {
    /// The numbers that NCCL, or else the hosts, exchange beside a kernel.
    pub fn numbers(&self) -> Option<Slot<f32>> {
        match self {
            Self::Sum(slot) | Self::SendRecv(slot, _) => Some(*slot),
            Self::ByHosts(_) => None,
        }
    }
}

/// What the launch of a kernel depends on, beside the op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub multiprocessors: u32,
    /// Whether kernels may use the memory of all other ranks.
    pub reaches_peers: bool,
    /// Which it runs of those that mean the same.
    pub kernels: KernelSet,
    pub tuning: Tuning,
}

impl Target {
    /// One that is alone, and runs kernels for all architectures only.
    pub const fn portable(multiprocessors: u32) -> Self {
        let (kernels, tuning) = (KernelSet::PORTABLE, Tuning::DEFAULT);
        Self { multiprocessors, reaches_peers: false, kernels, tuning }
    }
}

/// What changes no bit of the results, only how soon they are there: what a launch tells its kernel, and how
/// long prompts are cut. Only a measurement can tell what is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// When a decode kernel with weights lets the next one begin.
    pub trigger: Trigger,
    /// Pieces of 32 KiB a multiprocessor that a decode kernel has brought into the L2 cache before it waits
    /// for the kernel before, beside the one in registers: up to [`Self::MOST_AHEAD`].
    pub ahead: u32,
    pub prefetch: Prefetch,
    /// The shape of tiles in products of many tokens; none: what should be the fastest.
    pub tile: Option<Tile>,
    /// Tokens of a step of a long prompt.
    pub chunk: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// At once: its weights are asked for beside this one's.
    First,
    /// When this one's last weights have been asked for.
    Last,
}

/// How weights are brought into the L2 cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefetch {
    /// A line of 128 bytes by each thread.
    Lines,
    /// The same, each piece when the one before has come.
    Paced,
    /// One instruction a row; as [`Self::Lines`] on GPUs older than Hopper.
    Bulk,
}

/// Of those that a kernel has (`kernels/lib/product.cuh`, `kernels/lib/hopper.cuh`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tile {
    Small,
    Medium,
    Large,
}

impl Tuning {
    pub const MOST_AHEAD: u32 = 15;
    /// As long as nothing is known of a GPU.
    pub const DEFAULT: Self = Self {
        trigger: Trigger::Last,
        ahead: 5,
        prefetch: Prefetch::Lines,
        tile: None,
        chunk: 2048,
    };

    /// The word that decode kernels take (`kernels/lib/flow.cuh`).
    pub fn flow(&self) -> u32 {
        self.ahead.min(Self::MOST_AHEAD)
            | (self.prefetch as u32) << 8
            | u32::from(self.trigger == Trigger::First) << 16
    }
}

impl Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trigger = match self.trigger {
            Trigger::First => "at once",
            Trigger::Last => "at the end",
        };
        let prefetch = match self.prefetch {
            Prefetch::Lines => "lines",
            Prefetch::Paced => "paced lines",
            Prefetch::Bulk => "bulk",
        };
        let tile = match self.tile {
            None => "tiles by size",
            Some(Tile::Small) => "small tiles",
            Some(Tile::Medium) => "medium tiles",
            Some(Tile::Large) => "large tiles",
        };
        let Self { ahead, chunk, .. } = self;
        write!(f, "next kernel {trigger}, {ahead} ahead in {prefetch}, {tile}, steps of {chunk}")
    }
}

/// Where the tokens of a step stand: a row is a token, or a run of them that follow each other.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// Of each row's first token. `[R]`
    pub positions: Slot<u32>,
    /// Each row's part of the cache. `[R]`
    pub sequences: Slot<u32>,
}

impl Placement {
    /// R
    pub fn rows(&self) -> usize {
        self.positions.len()
    }

    /// That of the first `rows` rows.
    pub fn first(self, rows: usize) -> Self {
        let Self { positions, sequences } = self;
        Self { positions: positions.part(0, rows), sequences: sequences.part(0, rows) }
    }
}

/// The floor under an op's time. Activations count as nothing: they stay in caches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of weights that must be read.
    pub weight_bytes: u64,
    /// Bytes of KV cache that must be read.
    pub cache_bytes: u64,
    /// Floating point operations; a multiply-add is two.
    pub flops: u64,
    /// Bytes that the rank must send to others.
    pub link_bytes: u64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            cache_bytes: self.cache_bytes + other.cache_bytes,
            flops: self.flops + other.flops,
            link_bytes: self.link_bytes + other.link_bytes,
        }
    }
}

/// A list of ops, run in order.
#[derive(Default)]
pub struct Program {
    pub ops: Vec<Box<dyn Op>>,
}

impl Program {
    pub fn push(&mut self, op: impl Op + 'static) {
        self.ops.push(Box::new(op));
    }

    /// What all ops together must move and compute when the first token stands at `position`.
    pub fn cost(&self, position: usize) -> Cost {
        self.ops.iter().map(|op| op.cost(position)).fold(Cost::default(), std::ops::Add::add)
    }
}
