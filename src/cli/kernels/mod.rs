//! `chaski kernels`

mod all_reduce;
mod bench;
mod check;
mod list;
mod watch;
mod watchdog;
mod worker;

use super::args::{KernelBenchArgs, KernelsCommand};
use crate::cli::output::print;
use crate::error::Result;

pub use check::check;

pub fn run(command: &KernelsCommand, emulated: Option<u32>) -> Result<()> {
    match command {
        KernelsCommand::List { json } => list::list(*json),
        KernelsCommand::Source { name } => print(name.source),
        KernelsCommand::Check(args) => check(args, emulated),
        KernelsCommand::Bench(args) => bench::bench(&with_model(args, emulated), emulated),
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
