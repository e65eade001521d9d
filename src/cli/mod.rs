//! The command line: arguments, checked options, one file a command.

mod args;
mod bench;
mod chat;
mod devices;
mod diff;
#[cfg(unix)]
mod echo;
mod emulate;
mod file;
mod forecast;
mod generate;
mod input;
mod inspect;
mod interrupt;
mod kernels;
mod leave;
mod lines;
mod logits;
mod observer;
mod open;
mod output;
mod pages;
mod perplexity;
mod pull;
mod qualify;
mod quantize;
mod sampling;
mod serve;
mod synthesize;
mod text;
mod tokenize;
mod wrap;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process;

pub use leave::leave;
pub use output::with_flags;

use args::{Command, CommandLine, KernelsCommand};
use clap::FromArgMatches;

use crate::error::{Error, Result, for_terminal};
use crate::source::tell_of_shortened_files;
use crate::vector::choose_instruction_set;

/// Runs the command that the process's arguments ask for.
///
/// Wrong arguments end the process with status 2.
///
/// # Errors
/// What the command could not do; the caller prints it and leaves with its status.
pub fn run() -> Result<()> {
    let is_bench = std::env::args_os().any(|argument| argument == "bench");
    let spelled_out = |argument| spelled_out(argument, is_bench);
    let words: Vec<_> = std::env::args_os().map(spelled_out).collect();
    let arguments = arguments(&words)?;
    output::be_quiet(arguments.quiet);
    let emulated = emulate::devices(arguments.emulate)?;
    if let Ok(name) = std::env::var("CHASKI_INSTRUCTION_SET") {
        choose_instruction_set(&name)?;
    }
    tell_of_shortened_files()
        .map_err(|error| Error::failed(format!("cannot watch for SIGBUS: {error}")))?;
    if let Command::Kernels { command: KernelsCommand::Check(args) } = &arguments.command {
        return kernels::check(args, emulated); // in processes of its own
    }
    if let Command::Kernels { command: KernelsCommand::Run(args) } = &arguments.command {
        return kernels::run_kernel(args, emulated); // as well
    }
    if let Some(devices) = emulated {
        emulate::emulate(devices, &|what| output::note(what))?;
    }
    match arguments.command {
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tokenize(args) => tokenize::tokenize(&args),
        Command::Detokenize(args) => tokenize::detokenize(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Synthesize(args) => synthesize::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Kernels { command } => kernels::run(&command, emulated),
        Command::Qualify(args) => qualify::run(&args),
        Command::Devices { json } => devices::run(json),
        Command::Completions { shell } => pages::completions(shell),
        Command::Man { directory } => pages::man(&directory),
    }
}

/// The process's arguments, unless they ask for help, which is printed.
fn arguments(words: &[OsString]) -> Result<CommandLine> {
    let matches = args::command().try_get_matches_from(words);
    let error = match matches.and_then(|matches| CommandLine::from_arg_matches(&matches)) {
        Ok(arguments) => return Ok(arguments),
        Err(error) => error,
    };
    if error.use_stderr() {
        if let Some(hint) = args::hint(words, &error) {
            output::tell(format_args!("error: {hint}"));
            process::exit(error.exit_code());
        }
        // What is wrong is what the status says, too, should nobody hear it.
        let is_plain = |word: &OsString| {
            let word = word.to_string_lossy();
            for_terminal(&word) == word
        };
        match words.iter().all(is_plain) {
            true => drop(error.print()),
            false => error.render().to_string().lines().for_each(output::tell),
        }
        process::exit(error.exit_code());
    }
    let text = error.render();
    let is_terminal = io::stdout().is_terminal();
    output::print_own(&if is_terminal { text.ansi().to_string() } else { text.to_string() })?;
    process::exit(0)
}

/// llama.cpp's long options with one dash, which clap does not know.
fn spelled_out(argument: OsString, is_bench: bool) -> OsString {
    match argument.to_str() {
        Some("-pg") if is_bench => "--pg".into(),
        Some("-sys") => "--system".into(),
        Some("--list-devices") => "devices".into(),
        _ => argument,
    }
}
