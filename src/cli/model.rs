//! From arguments to a model that is ready to run.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressBar;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use super::args::{
    Device, KernelFile, KvType, ModelArgs, PromptArgs, StyleArg, StyleArgs, SyntheticArgs,
    WeightType,
};
use super::launch::place;
use super::limits::left_by_groups;
use super::load::round_activations;
use super::output::{note, progress};
use super::pull;
use super::qualify::qualify;
use super::split::{check_room, describe, devices, largest_share, meet, note_link, team_hardware};
use crate::chat::{Chat, ChatStyle, Request as ChatRequest};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::config::{Config, Dims};
use crate::device::Hardware;
use crate::device::cuda::{self, Card};
use crate::error::{Error, Result};
use crate::kernel;
use crate::model::{DEFAULT_CHUNK, Plan, Request, Room, Weights, check_tie};
use crate::op::Tuning;
use crate::random::random_ids;
use crate::source::Source;
use crate::team::{self, Team};
use crate::tokenizer::Tokenizer;

/// The tokenizer, or what is wrong with it.
pub fn needed(tokenizer: &Result<Tokenizer>) -> Result<&Tokenizer> {
    tokenizer.as_ref().map_err(Clone::clone)
}

/// The model called `name`, with what was chosen about it if it is synthetic.
pub fn source(name: &str, offline: bool, args: &SyntheticArgs) -> Result<Source> {
    let source = pull::find(name, offline)?;
    let Source::Synthetic(mut model) = source else {
        let given = args.layers.is_some() || args.dtype.is_some() || args.weight_seed.is_some();
        return match given {
            true => Err(Error::usage(format!(
                "--layers, --dtype and --weight-seed are for synthetic models, and {source} is none"
            ))),
            false => Ok(source),
        };
    };
    if let Some(layers) = args.layers {
        model = model.cut(layers)?;
    }
    if args.dtype == Some(WeightType::F16) {
        model.dtype = "F16";
    }
    model.seed = args.weight_seed.unwrap_or(model.seed);
    Ok(Source::Synthetic(model))
}

/// A model whose files have been looked at, and what it will run on.
pub struct Opened {
    pub source: Source,
    pub config: Config,
    /// The largest rank's.
    pub dims: Dims,
    pub checkpoint: Checkpoint,
    /// By rank.
    pub hardware: Vec<Hardware>,
    /// Whether the GPUs' kernels have been found right, for rows of measurements.
    pub qualified: Option<String>,
}

/// Finds the model and maps its weights, reading none of them.
///
/// # Errors
/// Whatever is wrong with the model's files, or with what it is to run on.
pub fn open(args: &ModelArgs) -> Result<Opened> {
    open_source(args, source(&args.model, args.offline, &args.synthetic)?)
}

/// As [`open`], of a model that was found.
///
/// # Errors
/// As [`open`].
pub fn open_source(args: &ModelArgs, source: Source) -> Result<Opened> {
    let config = Config::load(&source)?;
    let dims = largest_share(args, &config)?;
    let checkpoint = weights(args, &source, &config)?;
    let mut hardware = team_hardware(args, &dims, &checkpoint)?;
    let qualified = qualify(args, (&config, &dims, &checkpoint), &mut hardware)?;
    Ok(Opened { source, config, dims, checkpoint, hardware, qualified })
}

/// The weights of a model with this config, mapped. The first process says what is not as folder and config
/// have it.
///
/// # Errors
/// Whatever is wrong with the files.
pub fn weights(args: &ModelArgs, source: &Source, config: &Config) -> Result<Checkpoint> {
    let is_first = place(&args.split)?.is_none_or(|place| place.process == 0);
    let tell = |told: Option<String>| {
        told.iter().filter(|_| is_first).for_each(|told| note(format_args!("{source}: {told}")));
    };
    tell(Checkpoint::passed_over(source));
    let checkpoint = Checkpoint::open(source)?;
    tell(check_tie(config.tied, &checkpoint)?);
    Ok(checkpoint)
}

impl Opened {
    /// The memory plan of a rank for these arguments. `context` overrides theirs.
    ///
    /// # Errors
    /// What does not fit.
    pub fn plan(&self, args: &ModelArgs, all_logits: bool, context: Option<usize>) -> Result<Plan> {
        let Self { config, dims, checkpoint, hardware, .. } = self;
        plan(args, hardware, config, dims, checkpoint, all_logits, context)
    }

    /// Lays out and allocates the state, and brings the weights to where they are read.
    ///
    /// # Errors
    /// What does not fit, or cannot be loaded.
    pub fn team(
        self,
        args: &ModelArgs,
        all_logits: bool,
        context: Option<usize>,
    ) -> Result<(Config, Team, Plan)> {
        let (plan, link) = meet(&self, args, all_logits, context)?;
        let Self { config, dims, checkpoint, hardware, .. } = self;
        let bar = match link.as_ref().is_none_or(|link| link.is_first()) {
            true => progress((plan.weight_bytes * hardware.len()) as u64, "weights"),
            false => ProgressBar::hidden(),
        };
        let (timeout, stages) = (args.split.timeout(), dims.stage.parts);
        let options = team::Options { timeout, fault: None, link, stages };
        let loaded = |bytes| bar.inc(bytes);
        let team = Team::new(&config, checkpoint, &plan, &hardware, options, &loaded);
        bar.finish_and_clear();
        let mut team = team?;
        if team.leads() {
            note_link(&mut team)?;
        }
        Ok((config, team, plan))
    }

    /// Says what is about to be loaded, and has it read ahead.
    pub fn ready(
        &self,
        args: &ModelArgs,
        all_logits: bool,
        context: Option<usize>,
    ) -> Result<Plan> {
        let plan = self.plan(args, all_logits, context)?;
        describe(self, args, &plan, &devices(&self.hardware));
        self.read_ahead(&plan)?;
        Ok(plan)
    }

    /// Has what will be loaded read ahead.
    pub fn read_ahead(&self, plan: &Plan) -> Result<()> {
        if self.checkpoint.is_synthetic() && matches!(self.hardware[0], Hardware::Cpu) {
            check_room(plan, self.hardware.len())?;
        }
        self.checkpoint.read_ahead();
        Ok(())
    }
}

/// What the arguments ask to run a model of these sizes on.
pub fn hardware(args: &ModelArgs, dims: &Dims, weights: &Checkpoint) -> Result<Hardware> {
    let ordinal = match args.device {
        Device::Cpu => None,
        Device::Cuda(ordinal) => Some(ordinal),
        Device::Auto => match cuda::device_count() {
            Ok(count) => (count > 0).then_some(0),
            Err(error) => {
                if cuda::has_driver() {
                    note(format_args!("on the CPU: {error}"));
                }
                None
            }
        },
    };
    let Some(ordinal) = ordinal else {
        return match args.kernel.first() {
            Some(KernelFile { name, .. }) => Err(Error::usage(format!(
                "--kernel {name}=...: kernels run on a GPU; --emulate 1 stands in for one"
            ))),
            None => Ok(Hardware::Cpu),
        };
    };
    let card = Card::open(ordinal)?;
    match card.suits(dims, weights) {
        Err(error) if args.device == Device::Auto && args.kernel.is_empty() => {
            note(format_args!("on the CPU, not the GPU: {error}"));
            return Ok(Hardware::Cpu);
        }
        suits => suits?,
    }
    replace_kernels(&args.kernel, [&card])?;
    Ok(Hardware::Gpu(card))
}

/// The sources that are to take the place of built-in ones.
///
/// # Errors
/// One that cannot be read, or is in place of another kernel.
pub fn kernel_sources(files: &[KernelFile]) -> Result<Vec<kernel::Source>> {
    let read = |KernelFile { name, file }: &KernelFile| {
        let source = kernel::Source::read(file)?;
        if source.kernel.name != name {
            return Err(Error::usage(format!(
                "--kernel {name}={}: its first line says that it replaces {}",
                file.display(),
                source.kernel.name
            )));
        }
        Ok(source)
    };
    files.iter().map(read).collect()
}

/// Has these sources run in place of built-in ones, on all of the GPUs.
///
/// # Errors
/// As [`kernel_sources`].
pub fn replace_kernels<'a>(
    files: &[KernelFile],
    cards: impl IntoIterator<Item = &'a Card>,
) -> Result<()> {
    let sources = kernel_sources(files)?;
    for card in cards {
        sources.iter().cloned().for_each(|source| card.replace_kernel(source));
    }
    Ok(())
}

/// The memory plan of a rank for these arguments on these devices, of which each has room for it. `context`
/// overrides the arguments'.
pub fn plan(
    args: &ModelArgs,
    hardware: &[Hardware],
    config: &Config,
    dims: &Dims,
    checkpoint: &Checkpoint,
    all_logits: bool,
    context: Option<usize>,
) -> Result<Plan> {
    let mut request = Request {
        context: context.or(args.context),
        chunk: args.prefill_chunk.unwrap_or(DEFAULT_CHUNK),
        all_logits,
        ..Request::default()
    };
    round_activations(args, &hardware[0], checkpoint, &mut request)?;
    match &hardware[0] {
        Hardware::Cpu => {
            request.cache = args.kv_type.map_or(request.cache, Dtype::from);
            let world = dims.world();
            let room = Room::Host(available_memory_bytes()? / world);
            Plan::new(config, dims, checkpoint.total_bytes() / world, request, room)
        }
        Hardware::Gpu(card) => {
            if !matches!(args.kv_type, None | Some(KvType::F16)) {
                return Err(Error::usage("on a GPU the KV cache is f16: leave --kv-type out"));
            }
            request.cache = Dtype::F16;
            request.activations = checkpoint.dtype();
            request.attention_blocks = card.attention_blocks();
            let weights: Vec<_> = Weights::locate(checkpoint, dims)?.iter().collect();
            let (weight_bytes, room) = (cuda::region_bytes(&weights), gpu_room(hardware, dims)?);
            // Processes that join have the same plan, whatever memory each one's GPU has.
            match (args.prefill_chunk, args.split.join) {
                (None, None) => {
                    let chunks = cards(hardware).map(|card| card.options.tuning.chunk);
                    request.longest_chunk = chunks.min();
                }
                (given, _) => request.chunk = given.unwrap_or(Tuning::DEFAULT.chunk),
            }
            Plan::new(config, dims, weight_bytes, request, room)
        }
    }
}

fn cards(hardware: &[Hardware]) -> impl Iterator<Item = &Card> {
    hardware.iter().filter_map(|hardware| match hardware {
        Hardware::Cpu => None,
        Hardware::Gpu(card) => Some(card),
    })
}

/// What a rank can have on the GPU that has least.
fn gpu_room(hardware: &[Hardware], dims: &Dims) -> Result<Room> {
    let room_of = |card: &Card| {
        let (free, total) = card.memory()?;
        let ranks = cards(hardware).filter(|other| other.ordinal == card.ordinal).count();
        let joins = ranks == 1 && dims.world() > 1;
        let communicators = if !joins { 0 } else { 1 + usize::from(dims.stage.parts > 1) };
        Ok((free / ranks).saturating_sub(communicators * cuda::communicator_bytes(total)))
    };
    let rooms = cards(hardware).map(room_of).collect::<Result<Vec<_>>>()?;
    Ok(Room::Gpu(rooms.into_iter().min().unwrap_or(0)))
}

/// What this process may still take: the system's figure, or what its control groups leave if that is less.
pub fn available_memory_bytes() -> Result<usize> {
    let system = system(RefreshKind::nothing().with_memory(MemoryRefreshKind::everything()))?;
    let groups = left_by_groups(&|file| fs::read_to_string(file).ok()).unwrap_or(u64::MAX);
    Ok(system.available_memory().min(groups) as usize)
}

/// What the operating system says of itself.
pub fn system(what: RefreshKind) -> Result<System> {
    System::new_with_specifics(what)
        .map_err(|error| Error::failed(format!("cannot ask the system what it has: {error}")))
}

/// Starts the thread pool.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0));
    builder.build_global().map_err(|error| Error::failed(format!("cannot start threads: {error}")))
}

/// The prompt's ids: those given, random ones, or the text's with BOS before them, where the tokenizer
/// puts it.
pub fn prompt_ids(
    args: &PromptArgs,
    tokenizer: &Result<Tokenizer>,
    vocab: usize,
) -> Result<Vec<u32>> {
    if let Some(count) = args.random_ids {
        return Ok(random_ids(0, count, vocab));
    }
    if let Some(ids) = &args.ids {
        return parse_ids(ids, "--ids");
    }
    if let Some(file) = &args.ids_file {
        return parse_ids(&read_text(file)?, &file.display().to_string());
    }
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => read_text(file)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    text_ids(needed(tokenizer)?, &text)
}

/// The ids of a text to be continued or scored, with a line where its BOS is not what one may expect.
pub fn text_ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let ids = tokenizer.surround(tokenizer.encode(text)?);
    if let Some(remark) = tokenizer.remark() {
        note(remark);
    }
    if let ([bos], [_, second, ..]) = (tokenizer.before_text(), &ids[..])
        && bos == second
    {
        note("the text begins with BOS itself, so there are two of it: leave it out of the text");
    }
    Ok(ids)
}

/// Ids separated by commas or white space; a JSON array will do.
pub fn parse_ids(text: &str, place: &str) -> Result<Vec<u32>> {
    let list = text.trim().trim_start_matches('[').trim_end_matches(']');
    list.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse().map_err(|_| {
                let word: String = word.chars().take(20).collect();
                Error::failed(format!("{place}: {word:?} is not a token id"))
            })
        })
        .collect()
}

/// A whole text file; `-` is standard input.
pub fn read_text(file: &Path) -> Result<String> {
    let failed = |error| Error::failed(format!("cannot read {}: {error}", file.display()));
    let mut bytes = Vec::new();
    let read = match file.as_os_str() == "-" {
        true => io::stdin().take(MOST_TEXT_BYTES + 1).read_to_end(&mut bytes),
        false => {
            File::open(file).and_then(|file| file.take(MOST_TEXT_BYTES + 1).read_to_end(&mut bytes))
        }
    };
    if read.map_err(failed)? as u64 > MOST_TEXT_BYTES {
        return Err(failed(io::Error::other(format!("over {} MiB", MOST_TEXT_BYTES >> 20))));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        failed(io::Error::other(format!("it is not UTF-8 text: byte {at}")))
    })
}

/// Texts are read whole: no more than this, so that `/dev/zero` has an end.
const MOST_TEXT_BYTES: u64 = 256 << 20;

/// A conversation from a JSON file; `-` is standard input.
pub fn read_chat(file: &Path) -> Result<ChatRequest> {
    ChatRequest::parse(&read_text(file)?)
        .map_err(|what| Error::failed(format!("{}: {what}", file.display())))
}

/// How the model's conversations are written.
pub fn chat_format(args: &StyleArgs, source: &Source, tokenizer: &Tokenizer) -> Result<Chat> {
    let style = match args.chat_style {
        StyleArg::Auto => ChatStyle::Auto,
        StyleArg::Native => ChatStyle::Native,
        StyleArg::Template => ChatStyle::Template,
    };
    let chat = Chat::load(source, tokenizer, style)?;
    match args.date {
        None => Ok(chat),
        Some(date) => chat.with_date(date),
    }
}

/// Set while nothing is at hand that Ctrl-C could end but the process.
static WAITING: AtomicBool = AtomicBool::new(false);

/// Does what waits for others: Ctrl-C ends the process meanwhile.
pub fn while_waiting<R>(wait: impl FnOnce() -> R) -> R {
    WAITING.store(true, Ordering::Relaxed);
    let result = wait();
    WAITING.store(false, Ordering::Relaxed);
    result
}

/// Whether Ctrl-C was pressed: the first one ends the generation at hand, a second one the process.
pub fn interrupt() -> Result<&'static AtomicBool> {
    static PRESSED: AtomicBool = AtomicBool::new(false);
    static HANDLER: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let on_ctrl_c = || {
        if PRESSED.swap(true, Ordering::Relaxed) || WAITING.load(Ordering::Relaxed) {
            cuda::leave(130);
        }
    };
    match HANDLER.get_or_init(|| ctrlc::set_handler(on_ctrl_c).map_err(|e| e.to_string())) {
        Ok(()) => Ok(&PRESSED),
        Err(error) => Err(Error::failed(format!("cannot watch for Ctrl-C: {error}"))),
    }
}
