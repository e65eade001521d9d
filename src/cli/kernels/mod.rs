//! `chaski kernels`

mod all_reduce;
mod bench;
mod check;
mod code;
mod list;
mod process;
mod run;
mod run_worker;
mod watch;
mod watchdog;
mod worker;

use super::args::{KernelBenchArgs, KernelsCommand};
use crate::cli::output::print;
use crate::error::Result;

pub use check::check;
pub use run::run_kernel;

pub fn run(command: &KernelsCommand, emulated: Option<u32>) -> Result<()> {
    match command {
        KernelsCommand::List { code, json } if code.source.is_some() => code::list(code, *json),
        KernelsCommand::List { code, json } => list::list(code, *json),
        KernelsCommand::Ptx(code) => code::ptx(code),
        KernelsCommand::Sass(code) => code::sass(code),
        KernelsCommand::Source { name } => print(name.source),
        KernelsCommand::Check(args) => check(args, emulated),
        KernelsCommand::Bench(args) => bench::bench(&with_model(args, emulated), emulated),
        KernelsCommand::Run(args) => run_kernel(args, emulated),
    }
}

/// With the model whose sizes are usual, where none is named: what an emulated GPU does in seconds.
fn with_model(args: &KernelBenchArgs, emulated: Option<u32>) -> KernelBenchArgs {
    let mut args = args.clone();
    if args.model.model.is_empty() {
        let usual = if emulated.is_some() { "synthetic:tiny" } else { "synthetic:llama3-8b" };
        args.model.model = usual.to_owned();
    }
    args
}
