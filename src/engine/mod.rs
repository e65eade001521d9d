//! The front door: from a model's name and [`Options`] to a [`Model`], checked and planned, and to an
//! [`Engine`] in memory.
//!
//! Nothing here prints, reads the environment, or ends the process. What happens on the way is an [`Event`]
//! to an [`Observer`].

mod event;
mod hardware;
mod join;
mod limits;
mod load;
mod memory;
mod options;
mod peers;
mod qualify;

use std::sync::{Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use event::{Event, Observer, silent};
pub use hardware::{devices, one};
pub use load::{Engine, LoadTime};
pub use memory::{available_memory_bytes, system};
pub use options::{Device, Options, Split};
pub use qualify::{Checker, How, find_out, kept, usable};

use crate::chat::{Chat, ChatStyle};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::encoding::Float;
use crate::error::{Error, Result};
use crate::executor::Hardware;
use crate::executor::cuda;
use crate::hub::Hub;
use crate::model::{DEFAULT_CHUNK, MemoryBudget, Plan, PlanRequest, Weights, check_tie};
use crate::op::Tuning;
use crate::quantise::Quantisation;
use crate::source::{Repository, Source};
use crate::tokenizer::Tokenizer;

/// A model whose files have been looked at, and what it will run on. None of its weights have been read.
pub struct Model {
    pub source: Source,
    pub config: Config,
    /// The share of the rank that has most.
    pub dims: Dims,
    pub checkpoint: Checkpoint,
    /// By rank of this process.
    pub hardware: Vec<Hardware>,
    pub options: Options,
    /// What is not as one may expect: of its files, and of what it runs on.
    pub remarks: Vec<String>,
    /// Whether the GPUs' kernels have been found right, for rows of measurements; none where none were
    /// asked.
    pub qualified: Option<String>,
    /// How long this took.
    pub opening: Opening,
    tokenizer: Text,
}

/// How long it took to look at a model's files, and at what it runs on: one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    pub files: Duration,
    /// The driver, and a context on each GPU.
    pub devices: Duration,
}

impl Model {
    /// The model of this name: a directory; ORGANISATION/NAME[:FILE] in the Hugging Face cache, else at the
    /// hub, from where what is missing is downloaded; `demo`, which is built in; or `synthetic:SHAPE`.
    ///
    /// # Errors
    /// No such model; whatever is wrong with its files, or with what it is to run on.
    pub fn open(name: &str, options: Options) -> Result<Self> {
        let source = match Source::here(name)? {
            Some(source) => source,
            None => {
                let repository = Repository::parse(name)?;
                Hub::new(options.hub.clone())?.find(&repository, &|_| Ok(()))?
            }
        };
        Self::of(source, options)
    }

    /// As [`Self::open`], of a model that has been found.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of(source: Source, options: Options) -> Result<Self> {
        let place = options.split.process.clone();
        Self::opened(source, options).inspect_err(|why| join::cannot_meet(place.as_ref(), why))
    }

    fn opened(source: Source, options: Options) -> Result<Self> {
        let start = Instant::now();
        let tokenizer = Text::of(&source, options.text);
        let config = Config::load(&source)?;
        let dims = options.split.largest_share(&config)?;
        let (checkpoint, mut remarks) = weights(&source, &config, options.quantise)?;
        Weights::locate(&checkpoint, &dims)?; // every tensor is there, and has its shape
        let files = start.elapsed();
        let hardware = hardware::of_ranks(&options, &dims, &checkpoint, &mut remarks)?;
        let opening = Opening { files, devices: start.elapsed() - files };
        Ok(Self {
            source,
            config,
            dims,
            checkpoint,
            hardware,
            options,
            remarks,
            qualified: None,
            opening,
            tokenizer,
        })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// What is wrong with its files, which concerns only those who need text.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.get(&self.source).0.as_ref().map_err(Clone::clone)
    }

    /// How long the tokenizer took, beside the rest or not.
    pub fn tokenizer_time(&self) -> Duration {
        self.tokenizer.get(&self.source).1
    }

    /// How the model's conversations are written.
    ///
    /// # Errors
    /// What is wrong with the files of its tokenizer or its template.
    pub fn chat(&self, style: ChatStyle) -> Result<Chat> {
        Chat::load(&self.source, self.tokenizer()?, style)
    }

    /// Finds out whether the GPUs compute what kernels mean, unless that is known; what is wrong is not
    /// used. [`Self::load`] does so too, where it has not been done before.
    ///
    /// # Errors
    /// When a kernel of the model's is wrong that nothing stands in for; what `observer` returns.
    pub fn qualify(&mut self, observer: &Observer) -> Result<()> {
        let Self { config, dims, checkpoint, hardware, options, .. } = self;
        let place = options.split.process.as_ref();
        self.qualified = qualify::qualify(options, (config, dims, checkpoint), hardware, observer)
            .inspect_err(|why| join::cannot_meet(place, why))?;
        Ok(())
    }

    /// The memory plan of a rank.
    ///
    /// # Errors
    /// What does not fit.
    pub fn plan(&self) -> Result<Plan> {
        self.plan_on(&self.hardware, self.options.context)
    }

    /// As [`Self::plan`], for a context of this length, on what may have qualified since.
    fn plan_on(&self, hardware: &[Hardware], context: Option<usize>) -> Result<Plan> {
        let Self { options, config, dims, checkpoint, .. } = self;
        let options = Options { context, ..options.clone() };
        let plan = plan(&options, hardware, config, dims, checkpoint)?;
        if matches!(hardware[0], Hardware::Cpu(_)) {
            memory::check_made(checkpoint, &plan, hardware.len())?;
        }
        Ok(plan)
    }
}

/// A tokenizer, or what is wrong with its files, and how long it took to find out.
type Loaded = (Result<Tokenizer>, Duration);

/// A tokenizer that a thread loads while others do something else, or that is loaded when it is asked for.
struct Text {
    loading: Mutex<Option<JoinHandle<Loaded>>>,
    loaded: OnceLock<Loaded>,
}

impl Text {
    fn of(source: &Source, beside: bool) -> Self {
        let source = source.clone();
        let loading = beside.then(|| thread::spawn(move || Self::load(&source)));
        Self { loading: Mutex::new(loading), loaded: OnceLock::new() }
    }

    fn load(source: &Source) -> Loaded {
        let start = Instant::now();
        (Tokenizer::load(source), start.elapsed())
    }

    fn get(&self, source: &Source) -> &Loaded {
        self.loaded.get_or_init(|| {
            let loading = self.loading.lock().expect("no panics in it").take();
            match loading {
                Some(thread) => thread.join().expect("loading a tokenizer does not panic"),
                None => Self::load(source),
            }
        })
    }
}

/// The weights of a model with this config, mapped, or to be quantised when they are read; and what is not
/// as its folder and config have it.
///
/// # Errors
/// Whatever is wrong with the files.
pub fn weights(
    source: &Source,
    config: &Config,
    quantise: Option<Quantisation>,
) -> Result<(Checkpoint, Vec<String>)> {
    let passed_over = Checkpoint::passed_over(source);
    let mut checkpoint = Checkpoint::open(source)?;
    let tie = check_tie(config.tied, &checkpoint)?;
    if let Some(to) = quantise {
        checkpoint = checkpoint.quantised(to)?;
    }
    Ok((checkpoint, passed_over.into_iter().chain(tie).collect()))
}

/// The memory plan of a rank of this share on these devices, of which each has room for it.
///
/// # Errors
/// What does not fit.
pub fn plan(
    options: &Options,
    hardware: &[Hardware],
    config: &Config,
    dims: &Dims,
    checkpoint: &Checkpoint,
) -> Result<Plan> {
    let mut request = PlanRequest {
        context: options.context,
        sequences: options.sequences,
        chunk: options.prefill_chunk.unwrap_or(DEFAULT_CHUNK),
        scored: options.scored,
        ..PlanRequest::default()
    };
    round_activations(options, &hardware[0], checkpoint, &mut request)?;
    match &hardware[0] {
        Hardware::Cpu(threads) => {
            request.cache = options.kv_type.unwrap_or(request.cache);
            request.threads = threads.count();
            let world = dims.world();
            let room = MemoryBudget::Host(available_memory_bytes()? / world);
            Plan::new(config, dims, checkpoint.host_bytes() / world, request, room)
        }
        Hardware::Gpu(gpu) => {
            if !matches!(options.kv_type, None | Some(Float::F16)) {
                return Err(Error::usage("on a GPU the KV cache is f16: leave `kv_type` out"));
            }
            request = request.on_gpu(checkpoint.encoding(), gpu.attention_blocks());
            let matrices: Vec<_> = Weights::locate(checkpoint, dims)?.matrices().collect();
            let weight_bytes = cuda::region_bytes(&matrices);
            let room = memory::gpu_room(hardware, dims)?;
            // Processes that join have the same plan, whatever memory each one's GPU has.
            match (options.prefill_chunk, &options.split.process) {
                (None, None) => {
                    let chunks = memory::gpus(hardware).map(|gpu| gpu.options.tuning.chunk);
                    request.longest_chunk = chunks.min();
                }
                (given, _) => request.chunk = given.unwrap_or(Tuning::DEFAULT.chunk),
            }
            Plan::new(config, dims, weight_bytes, request, room)
        }
    }
}

/// Has the CPU round the inputs of GEMMs to bf16, in decode as in prefill, if that is asked for.
///
/// # Errors
/// Weights of another type, or a GPU, which has no choice.
fn round_activations(
    options: &Options,
    hardware: &Hardware,
    checkpoint: &Checkpoint,
    request: &mut PlanRequest,
) -> Result<()> {
    match (options.activations, hardware) {
        (None, _) | (Some(Float::F32), Hardware::Cpu(_)) => Ok(()),
        (Some(Float::Bf16), Hardware::Cpu(_)) if checkpoint.encoding() == Float::Bf16.into() => {
            (request.activations, request.decode_as_prefill) = (Float::Bf16, true);
            Ok(())
        }
        (Some(other), Hardware::Cpu(_)) => Err(Error::usage(format!(
            "`activations` {} needs BF16 weights, and these are {}: leave it out",
            other.name().to_lowercase(),
            checkpoint.types()
        ))),
        (Some(_), Hardware::Gpu(_)) => Err(Error::usage(
            "on a GPU activations have the weights' type: leave `activations` out",
        )),
    }
}
