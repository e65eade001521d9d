//! Whether the GPUs at hand compute what kernels mean: kept verdicts, or found out before a model is
//! loaded.

use std::fmt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::{Event, Observer, Options, peers};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::error::{Error, Result};
use crate::executor::Hardware;
use crate::executor::cuda::{Gpu, LaunchOptions};
use crate::qualify::{
    self, Check, CheckOrder, Dialogue, Found, Identity, Record, Standing, kernel_of, perform,
};

/// Starts a process that performs checks on the GPU of this number, as [`Dialogue`] asks for them: what
/// hangs on a GPU cannot be ended from inside of the process.
#[derive(Clone)]
pub struct Checker(pub Arc<dyn Fn(u32) -> Command + Send + Sync>);

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Checker")
    }
}

/// How checks are performed.
#[derive(Clone, Copy)]
pub struct How<'a> {
    /// Without looking at what is kept.
    pub anew: bool,
    pub thorough: bool,
    /// For a case, where another process performs it.
    pub limit: Duration,
    /// Else this process performs them.
    pub checker: Option<&'a Checker>,
}

/// What is kept of the checks or else found out, and kept.
///
/// # Errors
/// When no check can be performed; what `observer` returns.
pub fn find_out(
    gpu: &Gpu,
    options: LaunchOptions,
    checks: &[Check],
    record: &mut Record,
    how: How<'_>,
    observer: &Observer,
) -> Result<Standing> {
    let (mut dialogue, mut is_new) = (None, false);
    let mut ask = |order: &CheckOrder| {
        if !std::mem::replace(&mut is_new, true) {
            observer(Event::Qualifying(gpu))?;
        }
        match how.checker {
            None => Ok(here(order, gpu)),
            Some(Checker(start)) => {
                Dialogue::perform(&mut dialogue, &|| start(gpu.ordinal), order, how.limit)
            }
        }
    };
    let (anew, thorough) = (how.anew, how.thorough);
    let found = qualify::go_through(gpu, options, checks, record, (anew, thorough), &mut ask);
    if is_new && !record.verdicts.is_empty() {
        // What cannot be kept is found out again.
        record.save().or_else(|error| observer(Event::NotKept(&error)))?;
    }
    found
}

/// Performs a check in this process.
fn here(order: &CheckOrder, gpu: &Gpu) -> Found {
    perform(order, gpu, &mut |_| ())
}

/// That nothing is wrong that the GPU needs.
///
/// # Errors
/// A kernel that is wrong and that nothing stands in for.
pub fn usable(gpu: &Gpu, standing: &Standing, record: &Record) -> Result<()> {
    let Some((kernel, wrong)) = standing.faults.first() else { return Ok(()) };
    Err(Error::failed(format!(
        "kernel {} is wrong on cuda:{} ({}), and has no fallback: {}: {}; attach the verdicts, {}, \
         to an issue; `device` cpu avoids it, `trust_kernels` runs it anyway",
        kernel.name,
        gpu.ordinal,
        gpu.name,
        wrong.case,
        wrong.how.trim_end().replace('\n', " "),
        kept(record)
    )))
}

/// Where the verdicts are, in words.
pub fn kept(record: &Record) -> String {
    match record.path() {
        Ok(path) => format!("kept in {}", path.display()),
        Err(error) => format!("not kept: {error}"),
    }
}

/// Sees to it that each GPU is given what is right on it, for a rank of this model. Returns what rows of
/// measurements say of that.
///
/// # Errors
/// When a kernel of the model's is wrong that nothing stands in for.
pub(super) fn qualify(
    options: &Options,
    (config, dims, checkpoint): (&Config, &Dims, &Checkpoint),
    hardware: &mut [Hardware],
    observer: &Observer,
) -> Result<Option<String>> {
    let gpus = hardware.iter_mut().filter_map(|hardware| match hardware {
        Hardware::Cpu(_) => None,
        Hardware::Gpu(gpu) => Some(gpu),
    });
    let mut qualified = None;
    for gpu in gpus {
        if options.trust_kernels {
            qualified = Some("trusted".to_owned());
            continue;
        }
        let wanted = gpu.settings.wanted().on(gpu.capability);
        let mut checks = qualify::of_model(gpu, wanted, config, dims, checkpoint)?;
        checks.retain(|check| !is_replaced(check, options));
        let mut record = Record::load(Identity::of(gpu)?, &gpu.settings.paths);
        let checker = options.checker.as_ref();
        let how = How { anew: false, thorough: false, limit: options.timeout, checker };
        match find_out(gpu, wanted, &checks, &mut record, how, observer) {
            Ok(standing) => {
                usable(gpu, &standing, &record)?;
                for what in &standing.lines {
                    observer(Event::NotUsed { gpu, what })?;
                }
                gpu.options = standing.options;
                let is_whole = standing.lines.is_empty();
                let how = if is_whole { "yes".to_owned() } else { standing.lines.join("; ") };
                qualified.get_or_insert(how);
            }
            Err(error @ (Error::Interrupted | Error::ReaderLeft)) => return Err(error),
            Err(error) => {
                observer(Event::NotQualified { gpu, why: &error })?;
                qualified.get_or_insert("no".to_owned());
            }
        }
    }
    if !options.trust_kernels {
        hardware.chunks_mut(dims.share.parts).try_for_each(peers::recall)?;
    }
    Ok(qualified)
}

/// What the user has put in the place of a kernel is for the user to judge.
fn is_replaced(check: &Check, options: &Options) -> bool {
    let Check::Kernel(export) = check else { return false };
    let kernel = kernel_of(export);
    kernel.is_some_and(|kernel| options.kernels.iter().any(|own| own.kernel.name == kernel.name))
}
