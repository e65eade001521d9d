//! Listens to the processes that check kernels (`worker`).

use std::process::{Command, ExitStatus};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::check::{Checked, effort};
use super::process::{Line, Process};
use super::worker::CheckEvent;
use crate::cli::args::CheckArgs;
use crate::conformance::{Effort, report};
use crate::error::{Error, Result};
use crate::executor::cuda::{Emulation, Sanitizer};
use crate::kernel::{Kernel, KernelSource, Replacement};

/// Runs these kernels' cases in another process, those after one that has ended it in yet another, and
/// tells `each` what has come of a kernel.
///
/// # Errors
/// When a process ends before it has come to a kernel; what `each` returns.
pub(super) fn watch(
    kernels: &[&'static Kernel],
    source: &Option<Replacement>,
    (args, sanitizer): (&CheckArgs, Sanitizer),
    emulated: Option<u32>,
    each: &mut dyn FnMut(Checked) -> Result<()>,
) -> Result<()> {
    let limit = case_limit(args, emulated, sanitizer);
    let mut left = kernels.iter();
    while !left.as_slice().is_empty() {
        let process = Process::start(worker(left.as_slice(), args, emulated, sanitizer)?)?;
        let (mut current, mut running): (Option<Checked>, _) = (None, None);
        let mut since = Instant::now();
        let in_time = loop {
            // Compiling has no end of its own to wait for. An emulated GPU minds the processor's time,
            // and says where it stands; what does not even do that is ended.
            let most = if emulated.is_some() { 10 * limit } else { limit };
            let patience = if running.is_some() { most } else { most.max(GETTING_READY) };
            let event = process.events.recv_timeout(patience);
            if let Some(checked) = &mut current {
                checked.seconds = since.elapsed().as_secs_f64();
            }
            let event = match event {
                Ok(Line::Printed(_)) => continue, // by a kernel
                Ok(Line::Event(event)) => Ok(event),
                Err(error) => Err(error),
            };
            match (event, &mut current) {
                (Ok(CheckEvent::Kernel { device }), _) => {
                    let kernel = left.next().expect("one of those that it was given");
                    let (cases, seconds, wrong) = (0, 0.0, Vec::new());
                    let next = Checked { kernel, device, sanitizer, cases, seconds, wrong };
                    current.replace(next).map_or(Ok(()), &mut *each)?;
                    since = Instant::now();
                }
                (Ok(CheckEvent::Begin { case }), _) => running = Some(case),
                (Ok(CheckEvent::End { wrong }), Some(checked)) => {
                    checked.cases += 1;
                    let case = running.take().unwrap_or_default();
                    checked.wrong.extend(wrong.map(|wrong| format!("{case}: {wrong}")));
                }
                (Ok(CheckEvent::End { .. }), None) => unreachable!("a case is of a kernel"),
                (Err(RecvTimeoutError::Disconnected), _) => break true,
                (Err(RecvTimeoutError::Timeout), _) => break false,
            }
        };
        let (status, errors) = process.end(in_time)?;
        let Some(mut checked) = current else {
            let late = || format!("the GPU is not ready after {} s", GETTING_READY.as_secs());
            return Err(Error::failed(if in_time { reason(status, &errors) } else { late() }));
        };
        let built_in = || KernelSource::from(checked.kernel).texts();
        let texts = source.as_ref().map_or_else(built_in, |source| source.file.texts());
        checked.wrong.extend(match in_time {
            true => last_words(status, running, &errors, &texts),
            false => {
                let late = if running.is_some() { limit } else { limit.max(GETTING_READY) };
                vec![of_case(&endless(checked.kernel, late), running.as_deref())]
            }
        });
        each(checked)?;
    }
    Ok(())
}

/// How long a process may take between cases: it starts, and compiles kernels.
const GETTING_READY: Duration = Duration::from_secs(600);

/// How long a kernel may take over a case. All but the largest are done in a second, or a few where GPUs are
/// emulated.
fn case_limit(args: &CheckArgs, emulated: Option<u32>, sanitizer: Sanitizer) -> Duration {
    let is_small = emulated.is_some() && effort(args, emulated, sanitizer) <= Effort::Usual;
    let given = args.time_limit.map(Duration::from_secs_f64);
    given.unwrap_or(if is_small { SMALL_CASE } else { time_limit(None, emulated) })
}

const SMALL_CASE: Duration = Duration::from_secs(20);

/// How long a kernel may take at the sizes of a model.
pub fn time_limit(given: Option<f64>, emulated: Option<u32>) -> Duration {
    let usual = if emulated.is_some() { 600.0 } else { 60.0 };
    Duration::from_secs_f64(given.unwrap_or(usual))
}

/// What is said of a kernel that was ended.
pub fn endless(kernel: &Kernel, limit: Duration) -> String {
    format!("kernel {}: did not finish in {} s", kernel.name, limit.as_secs_f64())
}

fn of_case(what: &str, case: Option<&str>) -> String {
    match case {
        Some(case) => format!("{}\n  case: {case}", what.trim_end()),
        None => what.trim_end().to_owned(),
    }
}

/// What the process said that ended in the middle of a case, or that a sanitizer had something to tell.
fn last_words(
    status: ExitStatus,
    case: Option<String>,
    errors: &str,
    texts: &[(String, String)],
) -> Vec<String> {
    let of_case = |what: &str| of_case(what, case.as_deref());
    let reports = report::read(errors, texts);
    if !reports.is_empty() {
        return reports.iter().map(|report| of_case(report)).collect();
    }
    if status.success() {
        return Vec::new();
    }
    vec![of_case(&reason(status, errors))]
}

/// Why the process has failed: its own message, or the last line of what ended it.
fn reason(status: ExitStatus, errors: &str) -> String {
    let own = errors.rsplit_once("chaski: ").map(|(_, message)| message);
    let last = || errors.lines().rev().find(|line| !line.trim().is_empty());
    let none = || format!("the checking process ended with {status}");
    own.or_else(last).map_or_else(none, |reason| reason.trim_end().to_owned())
}

/// The process that runs the cases.
fn worker(
    kernels: &[&Kernel],
    args: &CheckArgs,
    emulated: Option<u32>,
    sanitizer: Sanitizer,
) -> Result<Command> {
    let this = std::env::current_exe();
    let this = this
        .map_err(|error| Error::failed(format!("cannot find this program's own file: {error}")))?;
    let mut command = Command::new(this);
    if let Some(devices) = emulated {
        command.arg("--emulate").arg(devices.to_string());
    }
    command.args(["kernels", "check", "--worker", "--sanitize", sanitizer.name()]);
    command.args(kernels.iter().map(|kernel| kernel.name));
    command.arg("--device").arg(format!("cuda:{}", args.device));
    if let Some(source) = &args.source {
        command.arg("--source").arg(source);
    }
    command.arg("--cases").arg(match effort(args, emulated, sanitizer) {
        Effort::Few => "few",
        Effort::Quick => "quick",
        Effort::Usual => "usual",
        Effort::Thorough => "thorough",
    });
    let emulation = Emulation::from_variables(emulated.unwrap_or(0), std::env::vars_os())?;
    for (name, mut value) in (Emulation { sanitizer, ..emulation }).environment()? {
        if name == "TSAN_OPTIONS" {
            value.push(" halt_on_error=1"); // one race is enough
        }
        command.env(name, value);
    }
    let limit = case_limit(args, emulated, sanitizer).as_millis().to_string();
    command.env("CHASKI_EMULATE_LIMIT_MS", limit);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{CasesArg, SanitizeArg};

    #[test]
    fn a_case_has_twenty_seconds_on_an_emulated_gpu() {
        let limit = |emulated, cases, time_limit| {
            let args = CheckArgs {
                names: Vec::new(),
                source: None,
                device: 0,
                sanitize: SanitizeArg::None,
                cases,
                json: false,
                time_limit,
                worker: false,
            };
            case_limit(&args, emulated, Sanitizer::None).as_secs_f64()
        };
        assert_eq!(limit(Some(1), None, None), 20.0);
        assert_eq!(limit(Some(1), Some(CasesArg::Thorough), None), 600.0);
        assert_eq!(limit(None, None, None), 60.0);
        assert_eq!(limit(Some(1), None, Some(0.5)), 0.5);
    }
}
