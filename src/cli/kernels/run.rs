//! `chaski kernels run`

use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tempfile::TempDir;

use super::process::{Line, Process};
use super::run_worker::{RunArguments, RunEvent, work};
use crate::cli::args::{KernelRunArgs, SanitizeArg};
use crate::cli::file::Output;
use crate::cli::output::print;
use crate::conformance::report;
use crate::error::{Error, Result, count};
use crate::executor::cuda::{Emulation, Sanitizer};
use crate::kernel::{CudaFile, Declared};
use crate::lab::{Compared, Given, Tensors, compare, file_of_tensors, read_tensors};

/// What makes a script's function a file of arrays.
const REFERENCE: &str = include_str!("reference.py");

/// Runs a kernel, in processes of its own, under every checker asked for.
///
/// # Errors
/// Arguments that do not fit; a kernel that is wrong.
pub fn run_kernel(args: &KernelRunArgs, emulated: Option<u32>) -> Result<()> {
    if let Some(folder) = &args.worker {
        return work(args, folder, emulated);
    }
    let file = CudaFile::read(&args.file)?;
    let (kernel, entry) = file.kernel(args.entry.as_deref())?;
    let arguments = RunArguments::parse(args, kernel)?;
    let sanitizers = match (emulated, args.sanitize) {
        (_, SanitizeArg::None) => vec![Sanitizer::None],
        (None, _) => {
            return Err(Error::usage(
                "--sanitize watches kernels on emulated GPUs: --emulate 1 is needed, or NVIDIA's \
                 compute-sanitizer, without --sanitize",
            ));
        }
        (_, SanitizeArg::Address) => vec![Sanitizer::Address],
        (_, SanitizeArg::Thread) => vec![Sanitizer::Thread],
        (_, SanitizeArg::All) => Sanitizer::ALL.to_vec(),
    };
    if args.bench && emulated.is_some() {
        return Err(Error::usage("--bench times a GPU: an emulated one says nothing about speed"));
    }
    let out = args.out.as_deref().map(Output::create).transpose()?;
    let folder = tempfile::tempdir()
        .map_err(|error| Error::failed(format!("no temporary folder: {error}")))?;
    let expected = reference(args, kernel, &arguments, folder.path())?;
    let bytes = arguments.arrays(kernel, false).values().map(|tensor| tensor.bytes.len()).sum();
    let mut session =
        Session { args, emulated, file: &file, entry, bytes, expected, folder, found: None };
    let mut wrong = 0;
    for sanitizer in &sanitizers {
        let checked = session.check(*sanitizer)?;
        wrong += usize::from(!checked.wrong.is_empty());
        print(&checked.text(session.expected.is_some()))?;
    }
    let found = session.found.unwrap_or_default();
    for (name, tensor) in &found {
        print(&format!("{name} {}: {}\n", tensor.kind(), tensor.summary()))?;
    }
    if let (Some(mut out), 0) = (out, wrong) {
        out.write(&file_of_tensors(&found)?)?;
        out.finish()?;
    }
    match wrong {
        0 => Ok(()),
        _ => Err(Error::failed(format!("{wrong} of {} failed", count(sanitizers.len(), "check")))),
    }
}

/// What the kernel should write, if that is known.
fn reference(
    args: &KernelRunArgs,
    kernel: &Declared,
    arguments: &RunArguments,
    folder: &Path,
) -> Result<Option<Tensors>> {
    let Some(path) = &args.reference else { return Ok(None) };
    let expected = match path.extension().is_some_and(|extension| extension == "py") {
        true => of_script(path, kernel, arguments, folder)?,
        false => read_tensors(path)?,
    };
    let written = arguments.arrays(kernel, true);
    let path = path.display();
    if let Some(other) = expected.keys().find(|name| !written.contains_key(*name)) {
        let names: Vec<_> = written.keys().cloned().collect();
        return Err(Error::usage(format!(
            "{path} has {other}, which the kernel does not write: it writes {}",
            names.join(", ")
        )));
    }
    match expected.is_empty() {
        true => Err(Error::usage(format!("{path} has no arrays"))),
        false => Ok(Some(expected)),
    }
}

/// What a script's function `reference` makes of the arguments.
fn of_script(
    script: &Path,
    kernel: &Declared,
    arguments: &RunArguments,
    folder: &Path,
) -> Result<Tensors> {
    let failed =
        |why: &dyn std::fmt::Display| Error::failed(format!("{}: {why}", script.display()));
    let (inputs, outputs) = (folder.join("inputs"), folder.join("outputs"));
    let arrays = file_of_tensors(&arguments.arrays(kernel, false))?;
    std::fs::write(&inputs, arrays).map_err(|error| failed(&error))?;
    let numbers = arguments.parameters.iter().filter_map(|argument| match &argument.given {
        Given::Number { text, .. } => {
            Some((argument.name.clone(), serde_json::from_str(text).ok()?))
        }
        Given::Array { .. } => None,
    });
    let numbers = Value::Object(numbers.collect::<Map<_, _>>()).to_string();
    let mut python = Command::new("python3");
    python.args(["-c", REFERENCE]).arg(script).arg(&inputs).arg(numbers).arg(&outputs);
    let output = python.output().map_err(|error| failed(&format!("python3: {error}")))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let last = errors.lines().rev().find(|line| !line.trim().is_empty());
        return Err(failed(&last.unwrap_or("python3 failed").trim()));
    }
    read_tensors(&outputs)
}

/// All that checks have in common.
struct Session<'a> {
    args: &'a KernelRunArgs,
    emulated: Option<u32>,
    file: &'a CudaFile,
    entry: String,
    /// Of the arrays.
    bytes: usize,
    expected: Option<Tensors>,
    folder: TempDir,
    /// What the kernel wrote first.
    found: Option<Tensors>,
}

/// What came of one checker.
struct Checked {
    entry: String,
    device: String,
    sanitizer: Sanitizer,
    schedules: usize,
    seconds: f64,
    /// How far numbers are off at most.
    off: f64,
    times: Vec<f64>,
    /// Of the arrays.
    bytes: usize,
    wrong: Vec<String>,
}

impl Checked {
    fn text(&self, is_compared: bool) -> String {
        let Self { entry, device, sanitizer, schedules, seconds, off, .. } = self;
        let checker = if *sanitizer == Sanitizer::None { "" } else { sanitizer.name() };
        let mut text = format!("{entry:<15} {checker:<8} {seconds:>7.1} s  ");
        let how_often = match schedules {
            1 => String::new(),
            _ => format!(" under {schedules} schedules"),
        };
        text += &match (self.wrong.is_empty(), is_compared) {
            (false, _) => "WRONG".to_owned(),
            (true, true) if *off == 0.0 => format!("right{how_often}, exactly"),
            (true, true) => format!("right{how_often}, off by {off:.1e} at most"),
            (true, false) => format!("ran{how_often}"),
        };
        text += &format!("  ({device})\n");
        for line in self.wrong.iter().flat_map(|wrong| wrong.lines()) {
            text += &format!("    {line}\n");
        }
        if let Some(median) = median(&self.times) {
            let (least, most) = (self.times[0], self.times[self.times.len() - 1]);
            text += &format!(
                "    {:.2} us, from {:.2} to {:.2} in {} runs with cold caches; {:.1} GB/s of arguments\n",
                1e6 * median,
                1e6 * least,
                1e6 * most,
                self.times.len(),
                self.bytes as f64 / median / 1e9
            );
        }
        text
    }
}

/// Of times in order.
fn median(times: &[f64]) -> Option<f64> {
    times.get(times.len() / 2).copied()
}

impl Session<'_> {
    /// Runs it in a process under this checker.
    fn check(&mut self, sanitizer: Sanitizer) -> Result<Checked> {
        let begin = Instant::now();
        let process: Process<RunEvent> = Process::start(self.command(sanitizer)?)?;
        let mut checked = Checked {
            entry: self.entry.clone(),
            device: String::new(),
            sanitizer,
            schedules: 0,
            seconds: 0.0,
            off: 0.0,
            times: Vec::new(),
            bytes: self.bytes,
            wrong: Vec::new(),
        };
        let limit = Duration::from_secs_f64(self.args.time_limit);
        // An emulated GPU minds the processor's time; a process that does not get on is ended in the end.
        let patience = if self.emulated.is_some() { 10 * limit } else { limit };
        let ready = Duration::from_secs(300) + patience; // compiling
        let ended = loop {
            let wait = if checked.device.is_empty() { ready } else { patience };
            match process.events.recv_timeout(wait) {
                Ok(Line::Printed(line)) => {
                    if sanitizer == Sanitizer::None && checked.schedules == 0 {
                        print(&(line + "\n"))?;
                    }
                }
                Ok(Line::Event(RunEvent::Ready { device })) => checked.device = device,
                Ok(Line::Event(RunEvent::Ended { schedule })) => {
                    self.judge(&schedule, &mut checked)?;
                }
                Ok(Line::Event(RunEvent::Timed { mut seconds })) => {
                    seconds.sort_by(f64::total_cmp);
                    checked.times = seconds;
                }
                Err(RecvTimeoutError::Disconnected) => break true,
                Err(RecvTimeoutError::Timeout) => break false,
            }
        };
        let (status, errors) = process.end(ended)?;
        checked.seconds = begin.elapsed().as_secs_f64();
        if !ended {
            let seconds = self.args.time_limit;
            checked.wrong.push(format!("kernel {}: did not finish in {seconds} s", self.entry));
        } else if checked.device.is_empty() {
            return Err(Error::failed(reason(status, &errors)));
        } else {
            let reports = report::read(&errors, &self.file.texts());
            let is_silent = reports.is_empty() && !status.success();
            checked.wrong.extend(reports);
            checked.wrong.extend(is_silent.then(|| reason(status, &errors)));
        }
        Ok(checked)
    }

    /// Compares what the kernel has left under a schedule with the reference, or else with what it left
    /// first.
    fn judge(&mut self, schedule: &str, checked: &mut Checked) -> Result<()> {
        let found = read_tensors(&self.folder.path().join(format!("{schedule}.safetensors")))?;
        checked.schedules += 1;
        let (expected, whose) = match (&self.expected, &self.found) {
            (Some(expected), _) => (Some(expected), "the reference"),
            (None, first) => (first.as_ref(), "the first run"),
        };
        for (name, theirs) in expected.into_iter().flatten() {
            let Some(ours) = found.get(name) else { continue };
            match compare(name, ours, theirs, self.args.tolerance, whose) {
                Compared::Close(off) => checked.off = checked.off.max(off),
                Compared::Wrong(what) => {
                    checked.wrong.push(format!("{what} (schedule {schedule})"));
                }
            }
        }
        self.found.get_or_insert(found);
        Ok(())
    }

    /// The process that runs it.
    fn command(&self, sanitizer: Sanitizer) -> Result<Command> {
        let Self { args, emulated, .. } = self;
        let this = std::env::current_exe();
        let this = this.map_err(|error| {
            Error::failed(format!("cannot find this program's own file: {error}"))
        })?;
        let mut command = Command::new(this);
        if let Some(devices) = emulated {
            command.arg("--emulate").arg(devices.to_string());
        }
        command.args(["kernels", "run"]).arg(&args.file).args(["--entry", &self.entry]);
        let numbers = |numbers: [u32; 3]| numbers.map(|number| number.to_string()).join(",");
        command.args(["--grid", &numbers(args.grid), "--block", &numbers(args.block)]);
        command.args(["--shared", &args.shared.to_string(), "--seed", &args.seed.to_string()]);
        for argument in &args.arguments {
            command.args(["--arg", argument]);
        }
        command.args(["--device", &format!("cuda:{}", args.device)]);
        command.args(["--sanitize", sanitizer.name()]);
        command.args(["--repetitions", &args.repetitions.to_string()]);
        if args.bench {
            command.arg("--bench");
        }
        command.arg("--worker").arg(self.folder.path());
        let emulation = Emulation::from_variables(emulated.unwrap_or(0), std::env::vars_os())?;
        for (name, mut value) in (Emulation { sanitizer, ..emulation }).environment()? {
            if name == "TSAN_OPTIONS" {
                value.push(" halt_on_error=1"); // one race is enough
            }
            command.env(name, value);
        }
        let limit = (1e3 * args.time_limit).ceil().to_string();
        // One host thread: nobody else will end what waits in vain.
        command.envs([("CHASKI_EMULATE_LIMIT_MS", &*limit), ("CHASKI_EMULATE_PATIENCE_MS", "10")]);
        Ok(command)
    }
}

/// Why the process has failed: what the emulated driver says, its own message, or the last line of what ended
/// it.
fn reason(status: ExitStatus, errors: &str) -> String {
    if let Some(driver) = errors.lines().rev().find_map(|line| line.strip_prefix("emulator: ")) {
        return driver.to_owned();
    }
    let own = errors.rsplit_once("chaski: ").map(|(_, message)| message);
    let last = || errors.lines().rev().find(|line| !line.trim().is_empty());
    let none = || format!("the kernel's process ended with {status}");
    own.or_else(last).map_or_else(none, |reason| reason.trim_end().to_owned())
}
