//! `chaski kernels check`

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::find;
use super::worker::{self, Event};
use crate::cli::args::{CasesArg, CheckArgs, SanitizeArg};
use crate::cli::output::print;
use crate::conformance::{Effort, ORDERS, report};
use crate::device::cuda::Sanitizer;
use crate::error::{Error, Result};
use crate::kernel::{KERNELS, Kernel, Source};

/// Checks kernels, each in a process of its own.
///
/// # Errors
/// When any of them is wrong.
pub fn check(args: &CheckArgs, emulated: Option<u32>) -> Result<()> {
    let source = args.source.as_deref().map(Source::read).transpose()?;
    let kernels = chosen(args, source.as_ref())?;
    let sanitizers = match args.sanitize {
        SanitizeArg::None => vec![Sanitizer::None],
        SanitizeArg::Address => vec![Sanitizer::Address],
        SanitizeArg::Thread => vec![Sanitizer::Thread],
        SanitizeArg::All => vec![Sanitizer::None, Sanitizer::Address, Sanitizer::Thread],
    };
    if emulated.is_none() && sanitizers != [Sanitizer::None] {
        return Err(Error::usage(
            "--sanitize watches kernels on emulated GPUs: --emulate 1 is needed, or NVIDIA's \
             compute-sanitizer, without --sanitize",
        ));
    }
    if args.worker {
        let effort = effort(args, emulated, sanitizers[0]);
        // ThreadSanitizer finds what is in no order, whatever order it happens in.
        let orders = match sanitizers[0] {
            Sanitizer::Thread => &ORDERS[..1],
            _ => &ORDERS,
        };
        return worker::work(kernels[0], source, args.device, (effort, orders), emulated);
    }
    let mut results = Vec::new();
    for kernel in kernels {
        for sanitizer in &sanitizers {
            let source = source.clone().unwrap_or_else(|| kernel.into());
            let result = watch(&source, args, emulated, *sanitizer)?;
            if !args.json {
                print(&result.text())?;
            }
            results.push(result);
        }
    }
    if args.json {
        let list: Vec<_> = results.iter().map(Checked::json).collect();
        print(&format!("{:#}\n", json!(list)))?;
    }
    match results.iter().filter(|result| !result.wrong.is_empty()).count() {
        0 => Ok(()),
        wrong => Err(Error::failed(format!("{wrong} of {} checks failed", results.len()))),
    }
}

fn chosen(args: &CheckArgs, source: Option<&Source>) -> Result<Vec<&'static Kernel>> {
    let named: Vec<_> = args.names.iter().map(|name| find(name)).collect::<Result<_>>()?;
    match source {
        Some(source) if named.iter().any(|kernel| kernel.name != source.kernel.name) => {
            let Source { path, kernel, .. } = source;
            Err(Error::usage(format!(
                "{path} is in place of {}: no other can be named",
                kernel.name
            )))
        }
        Some(source) => Ok(vec![source.kernel]),
        None if named.is_empty() => Ok(KERNELS.iter().collect()),
        None => Ok(named),
    }
}

fn effort(args: &CheckArgs, emulated: Option<u32>, sanitizer: Sanitizer) -> Effort {
    match args.cases {
        Some(CasesArg::Few) => Effort::Few,
        Some(CasesArg::Quick) => Effort::Quick,
        Some(CasesArg::Usual) => Effort::Usual,
        Some(CasesArg::Thorough) => Effort::Thorough,
        None if emulated.is_none() => Effort::Thorough,
        None if sanitizer == Sanitizer::Thread => Effort::Few,
        None => Effort::Usual,
    }
}

/// What came of one kernel under one checker.
struct Checked {
    kernel: &'static Kernel,
    sanitizer: Sanitizer,
    cases: usize,
    seconds: f64,
    /// Every mistake, in lines that begin with where it is.
    wrong: Vec<String>,
}

impl Checked {
    fn text(&self) -> String {
        let Self { kernel, sanitizer, cases, seconds, wrong } = self;
        let checker = match sanitizer {
            Sanitizer::None => "",
            Sanitizer::Address => "address",
            Sanitizer::Thread => "thread",
        };
        let verdict = if wrong.is_empty() { "right" } else { "WRONG" };
        let mut text = format!(
            "{:<15} {checker:<8} {cases:>4} cases {seconds:>7.1} s  {verdict}\n",
            kernel.name
        );
        wrong
            .iter()
            .flat_map(|wrong| wrong.lines())
            .for_each(|line| text += &format!("    {line}\n"));
        text
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "kernel": self.kernel.name,
            "source_hash": self.kernel.source_hash,
            "sanitizer": self.sanitizer.name(),
            "cases": self.cases,
            "seconds": self.seconds,
            "wrong": self.wrong,
        })
    }
}

/// Runs one kernel's cases in another process and listens to it, for as long as it has something new to
/// tell from time to time.
fn watch(
    source: &Source,
    args: &CheckArgs,
    emulated: Option<u32>,
    sanitizer: Sanitizer,
) -> Result<Checked> {
    let (start, kernel) = (Instant::now(), source.kernel);
    let limit = time_limit(args.time_limit, emulated);
    let mut command = worker(kernel, args, emulated, sanitizer)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = |error| Error::failed(format!("cannot start the process that checks: {error}"));
    let mut child = command.spawn().map_err(failed)?;
    let _until_here = child.stdin.take();
    let errors = errors_of(&mut child);
    let events = events_of(&mut child);
    let (mut cases, mut running, mut wrong) = (0, None, Vec::new());
    let in_time = loop {
        match events.recv_timeout(limit) {
            Ok(Event::Begin { case, .. }) => running = Some(case),
            Ok(Event::End { wrong: what, .. }) => {
                cases += 1;
                let case = running.take().unwrap_or_default();
                wrong.extend(what.map(|what| format!("{case}: {what}")));
            }
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    if !in_time {
        child.kill().map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    let errors = errors.join().unwrap_or_default();
    match in_time {
        true => wrong.extend(last_words(status, running, &errors, source)),
        false => wrong.push(of_case(&endless(kernel, limit), running.as_deref())),
    }
    Ok(Checked { kernel, sanitizer, cases, seconds: start.elapsed().as_secs_f64(), wrong })
}

/// That a source computes what its kernel does, by the quick cases, on the GPU of number `device`.
///
/// # Errors
/// What is wrong with it, in a line.
pub fn passed(
    source: &Source,
    device: u32,
    emulated: Option<u32>,
    time_limit: Option<f64>,
) -> Result<()> {
    let args = CheckArgs {
        names: Vec::new(),
        source: Some(source.path.clone().into()),
        device,
        sanitize: SanitizeArg::None,
        cases: Some(CasesArg::Quick),
        json: false,
        time_limit,
        worker: false,
    };
    match watch(source, &args, emulated, Sanitizer::None)?.wrong.first() {
        None => Ok(()),
        Some(wrong) => {
            let wrong = wrong.lines().next().unwrap_or_default();
            Err(Error::failed(format!("{} does not pass kernels check: {wrong}", source.path)))
        }
    }
}

/// How long a kernel may take over what is done in well under a second.
pub fn time_limit(given: Option<f64>, emulated: Option<u32>) -> Duration {
    let usual = if emulated.is_some() { 600.0 } else { 60.0 };
    Duration::from_secs_f64(given.unwrap_or(usual))
}

/// What is said of a kernel that was ended.
pub fn endless(kernel: &Kernel, limit: Duration) -> String {
    format!("kernel {}: no end of it in {} s", kernel.name, limit.as_secs_f64())
}

/// All that the process writes on standard error.
fn errors_of(child: &mut Child) -> thread::JoinHandle<String> {
    let mut errors = child.stderr.take().expect("piped");
    thread::spawn(move || {
        let mut text = Vec::new();
        // What cannot be read is missing from a message that is incomplete anyway.
        let _ = errors.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// What the process tells, as it comes.
fn events_of(child: &mut Child) -> Receiver<Event> {
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let (told, events) = mpsc::channel();
    thread::spawn(move || {
        let events = lines.map_while(|line| line.ok());
        let mut events = events.filter_map(|line| serde_json::from_str(&line).ok());
        // An error means that nobody listens any more.
        events.try_for_each(|event| told.send(event))
    });
    events
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
    source: &Source,
) -> Vec<String> {
    let of_case = |what: &str| of_case(what, case.as_deref());
    let reports = report::read(errors, source);
    if !reports.is_empty() {
        return reports.iter().map(|report| of_case(report)).collect();
    }
    if status.success() {
        return Vec::new();
    }
    // Its own message, or the last line of what ended it.
    let own = errors.rsplit_once("chaski: ").map(|(_, message)| message);
    let last = || errors.lines().rev().find(|line| !line.trim().is_empty());
    let reason = format!("the process that checks ended with {status}");
    vec![of_case(own.or_else(last).unwrap_or(&reason))]
}

/// The process that runs the cases.
fn worker(
    kernel: &Kernel,
    args: &CheckArgs,
    emulated: Option<u32>,
    sanitizer: Sanitizer,
) -> Result<Command> {
    let this = std::env::current_exe();
    let this = this.map_err(|error| Error::failed(format!("cannot find myself: {error}")))?;
    let mut command = Command::new(this);
    if let Some(devices) = emulated {
        command.arg("--emulate").arg(devices.to_string());
    }
    command.args(["kernels", "check", kernel.name, "--worker", "--sanitize", sanitizer.name()]);
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
    for (name, mut value) in sanitizer.environment()? {
        if name == "TSAN_OPTIONS" {
            value.push(" halt_on_error=1"); // one race is enough
        }
        command.env(name, value);
    }
    Ok(command)
}
