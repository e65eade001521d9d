//! A model brought to memory, the tokenizer beside it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::args::{Activations, ModelArgs};
use super::model::{Opened, interrupt, open_source, set_threads, source};
use super::output::{note, progress};
use super::split::cannot_meet;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::comm::Alone;
use crate::config::Config;
use crate::device::cuda::{Card, Cuda};
use crate::device::{Device, Hardware};
use crate::error::{Error, Result};
use crate::model::Request;
use crate::rank::Rank;
use crate::source::Source;
use crate::team::Team;
use crate::tokenizer::Tokenizer;

/// Has the CPU round the inputs of GEMMs to bf16, in decode as in prefill, if the arguments ask for it.
///
/// # Errors
/// Weights of another type, or a GPU, which has no choice.
pub fn round_activations(
    args: &ModelArgs,
    hardware: &Hardware,
    checkpoint: &Checkpoint,
    request: &mut Request,
) -> Result<()> {
    match (args.activations, hardware) {
        (None, _) | (Some(Activations::F32), Hardware::Cpu) => Ok(()),
        (Some(Activations::Bf16), Hardware::Cpu) if checkpoint.dtype() == Dtype::Bf16 => {
            (request.activations, request.decode_as_prefill) = (Dtype::Bf16, true);
            Ok(())
        }
        (Some(Activations::Bf16), Hardware::Cpu) => Err(Error::usage(format!(
            "--activations bf16 needs BF16 weights, and these are {}: leave it out",
            checkpoint.types()
        ))),
        (Some(_), Hardware::Gpu(_)) => Err(Error::usage(
            "on a GPU activations have the weights' type: leave --activations out",
        )),
    }
}

/// A model in memory, or on its way there.
pub struct Loaded {
    pub source: Source,
    pub config: Config,
    pub team: Team,
    /// An error that matters only to commands that need text.
    pub tokenizer: Result<Tokenizer>,
    pub load: Load,
}

/// How long loading takes.
pub struct Load {
    /// From the first look at the files to readiness for a prompt.
    ready: Duration,
    /// Until the last weight was there, which may be later; set when it is.
    last_weight: Arc<OnceLock<Duration>>,
}

impl Load {
    /// From the first look at the files to the last weight.
    pub fn time(&self) -> Duration {
        self.last_weight.get().copied().unwrap_or_default().max(self.ready)
    }

    /// Tells of it, once a prompt has been taken.
    pub fn note(&self) {
        let Self { ready, last_weight } = self;
        match last_weight.get().filter(|last| *last > ready) {
            None => note(format_args!("load         {:.3} s", ready.as_secs_f64())),
            Some(last) => note(format_args!(
                "load         {:.3} s, of which the last {:.3} s overlapped the prefill",
                last.as_secs_f64(),
                (*last - *ready).as_secs_f64()
            )),
        }
    }
}

/// Shows weights coming, until it is dropped.
struct Coming {
    bar: ProgressBar,
    since: Instant,
    last_weight: Arc<OnceLock<Duration>>,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        // There is one of it: nobody has set it before.
        let _ = self.last_weight.set(self.since.elapsed());
    }
}

/// Maps the weights and, beside that, reads the tokenizer; lays out and allocates the state. What one
/// GPU copies may still be on its way. Of several processes only the first comes back: the others do
/// what it says, and end.
///
/// # Errors
/// Whatever is wrong with the model's files, or with the memory it needs.
pub fn load(args: &ModelArgs, all_logits: bool, context: Option<usize>) -> Result<Loaded> {
    set_threads(args.threads)?;
    let mut loaded = load_again(args, all_logits, context)?;
    if !loaded.team.leads() {
        // A terminal's Ctrl-C reaches all processes: the first one says what comes of it.
        match ctrlc::set_handler(|| ()) {
            Ok(()) | Err(ctrlc::Error::MultipleHandlers) => {} // a download may have set one
            Err(error) => {
                return Err(Error::failed(format!("cannot watch for Ctrl-C: {error}")));
            }
        }
        loaded.team.serve()?;
        drop(loaded);
        std::process::exit(0);
    }
    Ok(loaded)
}

/// As [`load`], where threads have been started, and in whatever process.
///
/// # Errors
/// As [`load`].
pub fn load_again(args: &ModelArgs, all_logits: bool, context: Option<usize>) -> Result<Loaded> {
    let start = Instant::now();
    let last_weight = Arc::new(OnceLock::new());
    let source = source(&args.model, args.offline, &args.synthetic)?;
    let (ready, tokenizer) = std::thread::scope(|scope| {
        let tokenizer = scope.spawn(|| Tokenizer::load(&source));
        let opened = open_source(args, source.clone()).inspect_err(|why| cannot_meet(args, why));
        let ready = opened.and_then(|opened| {
            if let ([Hardware::Gpu(card)], None) = (&opened.hardware[..], args.split.join) {
                let (card, clock) = (card.clone(), (start, &last_weight));
                return begin(opened, &card, args, all_logits, context, clock);
            }
            opened.team(args, all_logits, context).map(|(config, team, _)| (config, team))
        });
        (ready, tokenizer.join().expect("loading a tokenizer does not panic"))
    });
    let (config, team) = ready?;
    let load = Load { ready: start.elapsed(), last_weight };
    Ok(Loaded { source, config, team, tokenizer, load })
}

/// A model on one GPU, to which weights may still be on their way. Ctrl-C ends that.
fn begin(
    opened: Opened,
    card: &Card,
    args: &ModelArgs,
    all_logits: bool,
    context: Option<usize>,
    (since, last_weight): (Instant, &Arc<OnceLock<Duration>>),
) -> Result<(Config, Team)> {
    let plan = opened.ready(args, all_logits, context)?;
    let Opened { config, dims, checkpoint, .. } = opened;
    let bar = progress(plan.weight_bytes as u64, "weights");
    let coming = Coming { bar, since, last_weight: last_weight.clone() };
    let interrupt = interrupt()?;
    let told = Box::new(move |bytes| {
        coming.bar.inc(bytes);
        if interrupt.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    });
    let rank = Rank::on(&config, dims, checkpoint, &plan, |checkpoint, weights, layout| {
        let alone = Arc::new(Alone);
        let cuda = Cuda::while_loading(card, &checkpoint, weights, layout, alone, told)?;
        Ok(Device::Cuda(Box::new(cuda)))
    });
    Ok((config, rank?.into()))
}
