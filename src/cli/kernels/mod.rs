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
use crate::error::{Error, Result};
use crate::kernel::{KERNELS, Kernel};

pub use check::check;

pub fn run(command: &KernelsCommand, emulated: Option<u32>) -> Result<()> {
    match command {
        KernelsCommand::List { json } => list::list(*json),
        KernelsCommand::Source { name } => print(find(name)?.source),
        KernelsCommand::Check(args) => check(args, emulated),
        KernelsCommand::Bench(args) => bench::bench(args, emulated),
    }
}

/// The kernel that a user names.
fn find(name: &str) -> Result<&'static Kernel> {
    Kernel::find(name).ok_or_else(|| {
        let names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
        Error::usage(format!("there is no kernel {name}: there are {}", names.join(", ")))
    })
}
