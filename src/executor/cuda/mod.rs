//! The CUDA executor: every op's kernel, on one GPU.

mod cublas;
mod driver;
pub mod emulator;
mod gpu;
mod images;
mod kernels;
mod launches;
mod libcuda;
mod libnccl;
mod link;
mod load;
mod module;
mod nccl;
mod nvml;
pub mod nvtx;
mod options;
mod region;
mod settings;
mod single;
mod stream;
mod timed;
mod trace;
mod watch;
mod weights;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytemuck::Pod;

pub use cublas::{Product, check_cublas};
pub use driver::{device_count, has_driver};
pub use emulator::{
    Emulation, Order, Sanitizer, calls, emulate, emulated, emulated_devices, set_order,
};
pub use gpu::Gpu;
pub use nccl::communicator_bytes;
pub use nvml::{Nvml, Reading, THROTTLE_REASONS};
pub use options::{LaunchOptions, Peers};
pub use settings::{Carveout, Settings};
pub use single::{ArgumentValue, Prepared, SingleCode, SingleKernel};
pub use stream::Geometry;
pub use weights::region_bytes;

use crate::comm::Communicator;
use crate::error::{Error, Result};
use crate::executor::{Blueprint, Startup};
use crate::memory::{Slot, StateRegion, Weight};
use crate::op::{Exchange, Program, Target};
use driver::Context;
use kernels::Kernels;
use launches::{Resolved, names};
use link::Link;
pub use load::OnProgress;
use region::{Pinned, Region};
use stream::{Graph, Stream};
use trace::Trace;
use weights::WeightRegion;

/// A rank's memory on a GPU, and what runs programs in it.
pub struct Cuda {
    context: Arc<Context>,
    comm: Arc<dyn Communicator>,
    /// Once something was compared with it.
    cublas: Option<cublas::CublasLt>,
    /// The way to other ranks.
    link: Link,
    /// Whether the memory of their GPUs works, if that has been tried.
    tried_peers: Option<bool>,
    /// What the host does for several ranks, it does in this image of the state.
    mirror: Option<StateRegion>,
    /// Compute capability.
    capability: (u32, u32),
    target: Target,
    options: LaunchOptions,
    weights: WeightRegion,
    state: Region,
    /// The end of the state region, from `own_bytes` on.
    shared: Pinned,
    own_bytes: usize,
    /// Where slots are read into.
    landing: Pinned,
    kernels: Arc<Mutex<Kernels>>,
    /// The functions that have run once without an error.
    proven: HashSet<&'static str>,
    /// What is queued, for messages.
    doing: String,
    startup: Startup,
    /// The first error; the GPU's context is of no more use after it.
    failed: Option<Error>,
    /// Which op it is in.
    trace: Arc<Trace>,
    stream: Arc<Stream>,
}

/// A program made into a graph.
pub struct Recorded {
    graph: Graph,
    doing: String,
    /// Under which it was made.
    options: LaunchOptions,
}

impl Cuda {
    /// As [`Self::new`], while weights that are copied are still on their way: whatever needs them waits.
    /// `on_progress` takes the place of the blueprint's: loading ends when it says so, with its error; it is
    /// dropped when all are here, or never will be.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn while_loading(
        gpu: &Gpu,
        blueprint: &Blueprint<'_>,
        on_progress: OnProgress,
    ) -> Result<Self> {
        let &Blueprint { ref checkpoint, weights, layout, ref comm, .. } = blueprint;
        let comm = comm.clone();
        let link = Link::find(gpu, &*comm)?;
        let (context, own_bytes) = (&gpu.context, layout.own_bytes());
        let options = gpu.options.on(gpu.capability);
        let start = Instant::now();
        let state = Region::allocate(context, own_bytes, "the KV cache and activations")?;
        let mut region = WeightRegion::allocate(context, weights)?;
        let shared = Pinned::allocate(context, layout.bytes() - own_bytes)?;
        let mut startup = Startup { allocate: start.elapsed(), ..Startup::default() };
        let start = Instant::now();
        let target = Target {
            multiprocessors: gpu.multiprocessors,
            reaches_peers: link.reaches_peers(),
            kernels: options.kernels,
            tuning: options.tuning,
        };
        match checkpoint.is_synthetic() {
            true => {
                let kernels = &mut locked(&gpu.kernels);
                region.synthesize(context, kernels, &target, checkpoint, weights)?;
            }
            false => region.copy(context, checkpoint, on_progress)?,
        }
        startup.weights = start.elapsed();
        let stream = Arc::new(Stream::new(context)?);
        let trace = Arc::new(Trace::new(context, &stream, gpu.settings.stamps.as_deref())?);
        let left = Arc::downgrade(&trace);
        comm.watch(Box::new(move |nccl_waits| left.upgrade()?.look(nccl_waits)));
        Ok(Self {
            context: context.clone(),
            mirror: match link {
                Link::Alone => None,
                _ => Some(StateRegion::allocate(layout)?),
            },
            comm,
            cublas: None,
            link,
            tried_peers: None,
            capability: gpu.capability,
            target,
            options,
            weights: region,
            state,
            shared,
            own_bytes,
            landing: Pinned::allocate(context, 0)?,
            kernels: gpu.kernels.clone(),
            proven: HashSet::new(),
            doing: String::new(),
            startup,
            failed: None,
            trace,
            stream,
        })
    }

    /// What its launches depend on.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The way to the other ranks.
    pub fn comm(&self) -> &dyn Communicator {
        &*self.comm
    }

    /// Replaces the way in which work is given to the GPU; of that it does what it can.
    pub fn set_options(&mut self, options: LaunchOptions) {
        self.options = options.on(self.capability);
        self.target.kernels = self.options.kernels;
        self.target.tuning = options.tuning;
    }

    /// Queues every kernel of `program`.
    ///
    /// # Errors
    /// What cannot be loaded or launched, or has failed.
    pub fn run(&mut self, program: &Program) -> Result<()> {
        if let [op] = &program.ops[..]
            && let Some(Exchange::ByHosts(slots)) = op.exchange(&self.target)
        {
            return self.run_on_host(&**op, &slots);
        }
        self.guard(|cuda| {
            let launches = cuda.resolve(program)?;
            cuda.doing = names(&launches);
            for (launch, op) in launches.iter().zip(&program.ops) {
                cuda.weights.wait(Some(launch.weights))?;
                cuda.comm.enter(op.name())?;
                launch.prepare(cuda)?;
                launch.queue(cuda, cuda.options.programmatic)?;
                // The first launch of every function is waited for: what is wrong with it shows then,
                // and has a name.
                if cuda.proven.insert(launch.name) || cuda.options.synchronous {
                    cuda.wait(&format!("kernel {} failed", launch.name))?;
                }
            }
            cuda.comm.leave()
        })
    }

    /// Makes a graph of `program`, if graphs are wanted.
    ///
    /// # Errors
    /// What cannot be captured.
    pub fn record(&mut self, program: &Program) -> Result<Option<Recorded>> {
        if !self.options.graphs || self.options.synchronous || self.link.is_by_hosts() {
            return Ok(None);
        }
        self.guard(|cuda| {
            cuda.weights.wait(None)?; // it has none of the waits of `run`
            let start = Instant::now();
            let launches = cuda.resolve(program)?;
            let queue = |launch: &Resolved| launch.queue(cuda, cuda.options.programmatic);
            let graph = cuda.stream.capture(|| launches.iter().try_for_each(queue))?;
            cuda.startup.graphs += start.elapsed();
            Ok(Some(Recorded { graph, doing: names(&launches), options: cuda.options }))
        })
    }

    /// Whether a graph gives work as it is to be given now.
    pub fn suits(&self, recorded: &Recorded) -> bool {
        recorded.options == self.options
    }

    /// Queues a graph.
    ///
    /// # Errors
    /// When the GPU has failed.
    pub fn replay(&mut self, recorded: &Recorded) -> Result<()> {
        self.guard(|cuda| {
            cuda.doing.clone_from(&recorded.doing);
            cuda.comm.enter("a graph")?;
            // SAFETY: what was captured uses the regions, which are as large as the program's slots and
            // weights, and live as long as `cuda`, which waits for its stream before it goes.
            unsafe { cuda.stream.replay(&recorded.graph, "cannot start a CUDA graph") }?;
            if cuda.options.asks {
                cuda.stream.has_ended(&cuda.failure())?;
            }
            Ok(())
        })
    }

    /// Waits for all that is queued.
    ///
    /// # Errors
    /// When a kernel has failed.
    pub fn finish(&mut self) -> Result<()> {
        self.guard(|cuda| cuda.wait(&cuda.failure()))
    }

    /// Replaces the first elements of `slot`, after all that is queued.
    pub fn write<T: Pod>(&mut self, slot: Slot<T>, values: &[T]) -> Result<()> {
        let slot = slot.part(0, values.len());
        let bytes = bytemuck::cast_slice(values);
        self.guard(|cuda| match slot.offset().checked_sub(cuda.own_bytes) {
            Some(at) => {
                cuda.wait(&cuda.failure())?;
                cuda.shared.write(at, bytes);
                Ok(())
            }
            None => cuda.stream.copy_in(&cuda.state, slot.offset(), bytes),
        })
    }

    /// Lets nobody touch these bytes from now on, kernels or copies; says whether the sanitizer is here
    /// that sees to it.
    pub fn forbid(&self, slot: Slot<u8>) -> bool {
        let range = slot.offset()..slot.offset() + slot.len();
        emulator::forbid(self.state.address(range), slot.len())
    }

    /// As [`Self::forbid`].
    pub fn forbid_weight(&self, weight: Weight) -> bool {
        emulator::forbid(self.weights.address(weight.offset, weight.bytes()), weight.bytes())
    }

    /// The elements of `slot` after all that is queued.
    pub fn read<T: Pod>(&mut self, slot: Slot<T>) -> Result<&[T]> {
        let range = slot.offset()..slot.offset() + slot.bytes();
        self.guard(|cuda| {
            cuda.wait(&cuda.failure())?;
            // Not before: see `Self::waits_for_peers`.
            if cuda.landing.len() < range.len() {
                cuda.landing = Pinned::allocate(&cuda.context, range.len())?;
            }
            cuda.stream.copy_out(&cuda.state, range.clone(), &mut cuda.landing)
        })?;
        Ok(bytemuck::cast_slice(&self.landing.bytes()[..slot.bytes()]))
    }

    /// Does `work`, unless something has failed before: the first error is the one to tell.
    fn guard<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        work(self).map_err(|error| {
            let error = match emulator::failure() {
                Some(reason) => Error::failed(format!("{error}: {reason}")),
                None => error,
            };
            self.failed = Some(error.clone());
            error
        })
    }

    /// Begins the message of an error that came up while waiting.
    fn failure(&self) -> String {
        match self.doing.as_str() {
            "" => "the GPU has failed".to_owned(),
            doing => format!("one of the kernels {doing} failed (CHASKI_SYNC=on tells which)"),
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if let Some(nccl) = self.link.nccl().filter(|_| self.failed.is_some()) {
            nccl.abort(); // to leave as usual is to wait for the others, and for every graph
        }
        // The memory goes next. What failed was told of; what fails now concerns nobody any more.
        let _ = self.stream.synchronize("");
    }
}

/// A panic elsewhere leaves modules that can still be used.
fn locked(kernels: &Mutex<Kernels>) -> MutexGuard<'_, Kernels> {
    kernels.lock().unwrap_or_else(PoisonError::into_inner)
}
