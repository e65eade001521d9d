//! What runs a program: the ops' references on the CPU, or their kernels on a GPU.

mod cpu;
pub mod cuda;

use std::sync::Arc;
use std::time::Duration;

use bytemuck::Pod;

use crate::checkpoint::{Checkpoint, Progress};
use crate::comm::{Communicator, SingleRank};
use crate::error::{Error, Result};
use crate::memory::{Layout, Slot, Weight};
use crate::op::Program;
pub use cpu::{Cpu, Threads};
pub use cuda::Cuda;

/// What there is to run on.
#[derive(Debug, Clone)]
pub enum Hardware {
    Cpu(Threads),
    Gpu(cuda::Gpu),
}

impl Hardware {
    /// All cores.
    ///
    /// # Errors
    /// When the system refuses the threads.
    pub fn cpu() -> Result<Self> {
        Threads::new(None).map(Self::Cpu)
    }

    /// `cpu`, or `cuda:` and a number.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(_) => "cpu".to_owned(),
            Self::Gpu(gpu) => format!("cuda:{}", gpu.ordinal),
        }
    }
}

/// What an executor is made of, handed down to where its memory is allocated.
pub struct Blueprint<'a> {
    pub checkpoint: Checkpoint,
    /// What programs read of it, in the order of their use.
    pub weights: &'a [Weight],
    pub layout: &'a Layout,
    /// The way to the other ranks.
    pub comm: Arc<dyn Communicator>,
    pub on_progress: Progress<'a>,
}

impl<'a> Blueprint<'a> {
    /// Of a rank that is alone, whose progress nobody is told of.
    pub fn new(checkpoint: Checkpoint, weights: &'a [Weight], layout: &'a Layout) -> Self {
        let comm = Arc::new(SingleRank::default());
        Self { checkpoint, weights, layout, comm, on_progress: &|_| Ok(()) }
    }

    /// Of one that has no weights.
    pub fn of_state(layout: &'a Layout) -> Self {
        Self::new(Checkpoint::empty(), &[], layout)
    }
}

/// A rank's memory, and what runs programs in it.
pub enum Executor {
    Cpu(Box<Cpu>),
    Cuda(Box<Cuda>),
}

/// What getting ready has taken, by what was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Startup {
    /// Allocating the regions.
    pub allocate: Duration,
    /// Copying the weights, or making them.
    pub weights: Duration,
    /// Loading kernels.
    pub modules: Duration,
    /// Capturing graphs.
    pub graphs: Duration,
}

/// A program that runs again and again.
pub struct Captured {
    program: Program,
    graph: Option<cuda::Recorded>,
    is_new: bool,
}

impl Captured {
    pub fn new(program: Program) -> Self {
        Self { program, graph: None, is_new: true }
    }

    pub fn program(&self) -> &Program {
        &self.program
    }
}

impl Executor {
    /// Allocates what `blueprint` asks for and brings the weights to where they are read.
    ///
    /// # Errors
    /// When the system or the GPU refuses the memory.
    pub fn new(hardware: &Hardware, blueprint: Blueprint<'_>) -> Result<Self> {
        Ok(match hardware {
            Hardware::Cpu(threads) => Self::Cpu(Box::new(Cpu::new(threads, blueprint)?)),
            Hardware::Gpu(gpu) => Self::Cuda(Box::new(Cuda::new(gpu, blueprint)?)),
        })
    }

    /// Waits until all weights are here: see [`Cuda::while_loading`].
    ///
    /// # Errors
    /// What keeps them from coming.
    pub fn finish_loading(&mut self) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => cuda.finish_loading(),
        }
    }

    /// The way to the other ranks.
    pub fn comm(&self) -> &dyn Communicator {
        match self {
            Self::Cpu(cpu) => cpu.comm(),
            Self::Cuda(cuda) => cuda.comm(),
        }
    }

    /// Runs `program`; on a GPU, it is under way when this returns.
    ///
    /// # Errors
    /// When the GPU or another rank fails.
    pub fn run(&mut self, program: &Program) -> Result<()> {
        match self {
            Self::Cpu(cpu) => cpu.run(program),
            Self::Cuda(cuda) => cuda.run(program),
        }
    }

    /// As [`Self::run`], op by op, and returns how long each took when the last has ended.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn run_timed(&mut self, program: &Program) -> Result<Vec<Duration>> {
        match self {
            Self::Cpu(cpu) => cpu.run_timed(program),
            Self::Cuda(cuda) => cuda.run_timed(program),
        }
    }

    /// What getting ready has taken so far.
    pub fn startup(&self) -> Startup {
        match self {
            Self::Cpu(cpu) => cpu.startup,
            Self::Cuda(cuda) => cuda.startup(),
        }
    }

    /// As [`Self::run`], at less cost from the second time on.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn step(&mut self, recording: &mut Captured) -> Result<()> {
        let Self::Cuda(cuda) = self else {
            return self.run(&recording.program);
        };
        let is_new = std::mem::take(&mut recording.is_new);
        match &recording.graph {
            Some(graph) if !is_new && cuda.suits(graph) => return cuda.replay(graph),
            _ => cuda.run(&recording.program)?,
        }
        if is_new && recording.graph.is_none() {
            recording.graph = cuda.record(&recording.program)?;
        }
        Ok(())
    }

    /// Has ready what running `programs` and `recordings` needs, where that may not be asked for later:
    /// see [`Cuda::waits_for_peers`]. All ranks must have done so before any of them runs one.
    ///
    /// # Errors
    /// What cannot be loaded or captured.
    pub fn prepare(
        &mut self,
        programs: &[&Program],
        recordings: &mut [&mut Captured],
    ) -> Result<()> {
        let Self::Cuda(cuda) = self else { return Ok(()) };
        if !cuda.waits_for_peers() {
            return Ok(());
        }
        programs.iter().try_for_each(|program| cuda.prepare(program))?;
        for recording in recordings {
            cuda.prepare(&recording.program)?;
            recording.graph = cuda.record(&recording.program)?;
        }
        cuda.finish()
    }

    /// What cuBLASLt does for `products`, as something to run again and again.
    ///
    /// # Errors
    /// Where there is no GPU or no cuBLASLt; when that fails.
    pub fn record_products(&mut self, products: &[cuda::Product]) -> Result<Captured> {
        let Self::Cuda(cuda) = self else {
            return Err(Error::usage("cuBLASLt multiplies on a GPU, not on the CPU"));
        };
        let graph = Some(cuda.record_products(products)?);
        Ok(Captured { program: Program::default(), graph, is_new: false })
    }

    /// Waits for the end of all that was to run.
    ///
    /// # Errors
    /// When the GPU has failed.
    pub fn finish(&mut self) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => cuda.finish(),
        }
    }

    /// Whether steps are under way while the host does something else.
    pub fn runs_beside(&self) -> bool {
        matches!(self, Self::Cuda(_))
    }

    /// Whether the hosts of several ranks must do some of `program` for their GPUs.
    pub fn needs_hosts(&self, program: &Program) -> bool {
        matches!(self, Self::Cuda(cuda) if cuda.needs_hosts(program))
    }

    /// Makes ready the slots through which ranks on GPUs tell each other something: `empty` is in them at
    /// first, `addresses` will have all ranks'.
    ///
    /// # Errors
    /// When the GPU or another rank fails.
    pub fn connect<T: Pod>(
        &mut self,
        slots: Slot<T>,
        empty: T,
        addresses: Slot<u64>,
    ) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => cuda.connect(slots, empty, addresses),
        }
    }

    /// Sees whether GPUs that are to reach each other's memory do: see [`Cuda::try_peers`].
    ///
    /// # Errors
    /// When the GPU or another rank fails.
    pub fn try_peers(&mut self, program: &Program, sum: Slot<f32>, right: &[f32]) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => cuda.try_peers(program, sum, right),
        }
    }

    /// As [`Cuda::tried_peers`].
    pub fn tried_peers(&self) -> Option<bool> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(cuda) => cuda.tried_peers(),
        }
    }

    /// Which way goes what ranks tell each other, where that is worth telling.
    pub fn link(&self) -> Option<String> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(cuda) => cuda.link(),
        }
    }

    /// Replaces the first elements of `slot`.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn write<T: Pod>(&mut self, slot: Slot<T>, values: &[T]) -> Result<()> {
        match self {
            Self::Cpu(cpu) => {
                cpu.write(slot, values);
                Ok(())
            }
            Self::Cuda(cuda) => cuda.write(slot, values),
        }
    }

    /// The elements of `slot`, once all is done that was to run before.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn read<T: Pod>(&mut self, slot: Slot<T>) -> Result<&[T]> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.read(slot)),
            Self::Cuda(cuda) => cuda.read(slot),
        }
    }

    /// Empties a shared slot at once, before something is queued that writes it: see [`Self::watch`].
    pub fn clear(&mut self, slot: Slot<u64>) {
        match self {
            Self::Cpu(cpu) => cpu.write(slot, &[u64::MAX]),
            Self::Cuda(cuda) => cuda.clear(slot),
        }
    }

    /// Waits until `seen` finds what it looks for in the one element of a shared slot, which something that
    /// is under way writes; none if all has ended and it is not there.
    ///
    /// # Errors
    /// When the GPU has failed.
    pub fn watch<R>(
        &mut self,
        slot: Slot<u64>,
        seen: impl Fn(u64) -> Option<R>,
    ) -> Result<Option<R>> {
        match self {
            Self::Cpu(cpu) => Ok(seen(cpu.read(slot)[0])),
            Self::Cuda(cuda) => cuda.watch(slot, seen),
        }
    }
}
