//! From arguments to a model that is opened, and to one in memory.

use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::time::Duration;

use super::args::{KernelFile, ModelArgs, SplitArgs, SyntheticArgs, WeightType};
use super::interrupt::{interrupt, leave_to_the_first};
use super::observer::observer;
use super::output::note;
use super::pull;
use super::text::read_text;
use crate::comm::ProcessPlace;
use crate::encoding::Float;
use crate::engine::{Checker, Engine, Model, Observer, Options, Split};
use crate::error::{Error, Result, count};
use crate::executor::cuda::{device_count, emulated_devices, has_driver};
use crate::hub;
use crate::kernel::Replacement;
use crate::quantise::Quantisation;
use crate::source::Source;
use crate::vector;

/// What the environment has of options.
///
/// # Errors
/// A value that is not understood.
pub fn defaults() -> Result<Options> {
    Options::from_variables(&|name| std::env::var_os(name))
}

/// The engine's options as arguments have them, else the environment.
///
/// # Errors
/// Sources of kernels that cannot be read; what keeps this process from joining others.
pub fn options(args: &ModelArgs) -> Result<Options> {
    let defaults = defaults()?;
    Ok(Options {
        device: args.device,
        split: split(&args.split)?,
        context: args.context,
        prefill_chunk: args.prefill_chunk,
        kv_type: args.kv_type.map(Float::from),
        activations: args.activations.map(Float::from),
        quantise: args.quantize.map(Quantisation::from),
        kernels: replacements(&args.kernel)?,
        trust_kernels: args.trust_kernels || defaults.trust_kernels,
        checker: Some(checker(None)?),
        threads: args.threads.map(at_most_the_cores),
        timeout: args.split.timeout(),
        hub: hub_options(args.offline)?,
        ..defaults
    })
}

/// As many threads as run at once: more would wait for each other. A line tells of that, once.
fn at_most_the_cores(threads: usize) -> usize {
    static TOLD: Once = Once::new();
    let cores = vector::cores();
    if threads > cores {
        TOLD.call_once(|| {
            let there = count(cores, "thread");
            note(format_args!(
                "--threads {threads}: this machine runs {there} at once, as many are used"
            ));
        });
    }
    threads.min(cores)
}

/// As the environment has them, and perhaps offline in any case.
///
/// # Errors
/// As [`defaults`].
pub fn hub_options(offline: bool) -> Result<hub::HubOptions> {
    let hub = defaults()?.hub;
    Ok(hub::HubOptions { offline: hub.offline || offline, ..hub })
}

fn split(args: &SplitArgs) -> Result<Split> {
    let variable = |name: &str| std::env::var(name).ok();
    let rendezvous = args.rendezvous.as_deref();
    let process = args.join.map(|launcher| ProcessPlace::of(launcher, rendezvous, &variable));
    let mut process = process.transpose()?.flatten();
    if let (Some(place), Some(file)) = (&mut process, &args.secret_file) {
        let text = read_text(file)?;
        if text.trim_end().is_empty() {
            return Err(Error::usage(format!("{}: there is no `secret` in it", file.display())));
        }
        place.secret = Some(text.trim_end().to_owned());
    }
    Ok(Split {
        tensor_parallel: args.tensor_parallel,
        pipeline_parallel: args.pipeline_parallel,
        devices: args.devices.clone(),
        process,
    })
}

/// What is to take the place of built-in kernels.
fn replacements(files: &[KernelFile]) -> Result<Vec<Replacement>> {
    let read = |KernelFile { name, file }: &KernelFile| {
        let read = Replacement::read(file)?;
        if read.kernel.name != name {
            return Err(Error::usage(format!(
                "--kernel {name}={}: its kernels replace {}",
                file.display(),
                read.kernel.name
            )));
        }
        Ok(read)
    };
    files.iter().map(read).collect()
}

/// This program, which performs checks in a process of its own. `limit`: of the processor's time that a
/// kernel of an emulated GPU may take.
///
/// # Errors
/// When it cannot be found.
pub fn checker(limit: Option<Duration>) -> Result<Checker> {
    let this = std::env::current_exe();
    let this = this.map_err(|error| Error::failed(format!("cannot find myself: {error}")))?;
    Ok(Checker(Arc::new(move |device| {
        let mut command = Command::new(&this);
        command.args(["qualify", "--worker", "--device", &format!("cuda:{device}")]);
        if let Some(devices) = emulated_devices() {
            command.args(["--emulate", &devices.to_string()]);
        }
        if let Some(limit) = limit {
            command.env("CHASKI_EMULATE_LIMIT_MS", limit.as_millis().to_string());
        }
        command
    })))
}

/// The model that the arguments name, with what was chosen about it if it is synthetic.
///
/// # Errors
/// No such model; what keeps it from being downloaded.
pub fn source(args: &ModelArgs) -> Result<Source> {
    synthetic(pull::find(&args.model, args.offline)?, &args.synthetic)
}

/// A model, with what was chosen about it if it is synthetic.
///
/// # Errors
/// When something was, and it is not.
pub fn synthetic(source: Source, chosen: &SyntheticArgs) -> Result<Source> {
    let Source::Synthetic(mut model) = source else {
        let given =
            chosen.layers.is_some() || chosen.dtype.is_some() || chosen.weight_seed.is_some();
        return match given {
            true => Err(Error::usage(format!(
                "--layers, --dtype and --weight-seed are for synthetic models, and {source} is none"
            ))),
            false => Ok(source),
        };
    };
    if let Some(layers) = chosen.layers {
        model = model.cut(layers)?;
    }
    if chosen.dtype == Some(WeightType::F16) {
        model.dtype = Float::F16;
    }
    model.seed = chosen.weight_seed.unwrap_or(model.seed);
    Ok(Source::Synthetic(model))
}

/// Opens the model that the arguments name. The first process says what is not as one may expect.
///
/// # Errors
/// Whatever is wrong with the model's files, or with what it is to run on.
pub fn open(args: &ModelArgs, options: Options) -> Result<Model> {
    let model = Model::of(source(args)?, options)?;
    note_remarks(&model);
    Ok(model)
}

/// Says what is not as one may expect, in the first process.
pub fn note_remarks(model: &Model) {
    model.remarks.iter().filter(|_| is_first(&model.options)).for_each(note);
}

/// Opens and loads a model. What the user gave beside it is looked at before that takes time: `read` before
/// the model is so much as found, `check` before its weights are. Of several processes only the first does
/// so, and only it comes back: the others do what it says, and end.
///
/// # Errors
/// What `read` and `check` find; whatever is wrong with the model's files, or with the memory it needs.
pub fn load<I, C>(
    args: &ModelArgs,
    options: Options,
    read: impl FnOnce() -> Result<I>,
    check: impl FnOnce(&Model, I) -> Result<C>,
) -> Result<(Model, Engine, C)> {
    load_observed(args, options, read, check, |_| observer())
}

/// As [`load`], where `observe` makes of what was checked who is told how far loading is.
///
/// # Errors
/// As [`load`].
pub fn load_observed<I, C>(
    args: &ModelArgs,
    options: Options,
    read: impl FnOnce() -> Result<I>,
    check: impl FnOnce(&Model, I) -> Result<C>,
    observe: impl FnOnce(Option<&C>) -> Observer,
) -> Result<(Model, Engine, C)> {
    let given = is_first(&options).then(read).transpose()?;
    let model = open(args, options)?;
    model.checkpoint.read_ahead(); // goes on meanwhile
    let checked = given.map(|given| check(&model, given)).transpose()?;
    let mut engine = model.load(&observe(checked.as_ref()))?;
    let Some(checked) = checked else {
        leave_to_the_first()?;
        engine.team.serve()?;
        drop(engine);
        std::process::exit(0);
    };
    Ok((model, engine, checked))
}

/// Whether this is the process that talks to the user.
fn is_first(options: &Options) -> bool {
    options.split.process.as_ref().is_none_or(|place| place.process == 0)
}

/// That Ctrl-C has not been pressed.
///
/// # Errors
/// If it has.
pub fn not_interrupted() -> Result<()> {
    if interrupt()?.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// That there is a GPU, for what runs on nothing else.
///
/// # Errors
/// If there is none: why, and what stands in for one.
pub fn check_gpu() -> Result<()> {
    let why = match device_count() {
        Ok(1..) => return Ok(()),
        Ok(0) => "the driver shows none".to_owned(),
        Err(_) if !has_driver() => "this machine has no CUDA driver (libcuda.so)".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::failed(format!("kernels run on a GPU, and {why}: --emulate 1 emulates one")))
}

/// That a command which runs on one device, or on those that it names itself, is asked for no others.
///
/// # Errors
/// The first option that would play no part.
pub fn check_alone(args: &ModelArgs, command: &str) -> Result<()> {
    let SplitArgs { tensor_parallel, pipeline_parallel, devices, join, .. } = &args.split;
    let given = [
        ("--tensor-parallel", tensor_parallel.is_some_and(|ranks| ranks > 1)),
        ("--pipeline-parallel", pipeline_parallel.is_some_and(|stages| stages > 1)),
        ("--devices", devices.len() > 1),
        ("--join", join.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => {
            Err(Error::usage(format!("{command} takes one rank: leave {option} out")))
        }
    }
}
