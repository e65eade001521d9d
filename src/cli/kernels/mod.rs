//! `chaski kernels`

mod check;
mod list;
mod worker;

use super::args::KernelsCommand;
use crate::error::Result;

pub use check::check;

pub fn run(command: &KernelsCommand) -> Result<()> {
    match command {
        KernelsCommand::List { json } => list::list(*json),
        KernelsCommand::Check(args) => check(args, None),
    }
}
