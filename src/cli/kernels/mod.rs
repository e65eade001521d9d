//! `chaski kernels`

mod all_reduce;
mod bench;
mod check;
mod list;
mod watch;
mod watchdog;
mod worker;

use super::args::KernelsCommand;
use crate::cli::output::print;
use crate::error::Result;

pub use check::check;

pub fn run(command: &KernelsCommand, emulated: Option<u32>) -> Result<()> {
    match command {
        KernelsCommand::List { json } => list::list(*json),
        KernelsCommand::Source { name } => print(name.source),
        KernelsCommand::Check(args) => check(args, emulated),
        KernelsCommand::Bench(args) => bench::bench(args, emulated),
    }
}
