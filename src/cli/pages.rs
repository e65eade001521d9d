//! Shell completions and manual pages, from the same definitions as the command line.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Arguments;
use super::output::{note, print};
use crate::error::{Error, Result};

pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "chaski", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes `chaski.1` and one page a command into `directory`, which is made if it is not there.
pub fn man(directory: &Path) -> Result<()> {
    let failed = |error| {
        Error::failed(format!("cannot write manual pages to {}: {error}", directory.display()))
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Arguments::command(), directory).map_err(failed)?;
    note(format_args!("{}: manual pages written", directory.display()));
    Ok(())
}
