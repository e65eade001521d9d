//! Emulated GPUs, as arguments and the environment have them.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::{Error, Result};
use crate::executor::cuda::{self, Emulation};

/// How many GPUs to emulate: as the argument says, else the environment.
///
/// # Errors
/// What is no number.
pub fn devices(argument: Option<u32>) -> Result<Option<u32>> {
    match (argument, env::var("CHASKI_EMULATE")) {
        (None, Ok(text)) if !text.is_empty() => match text.parse() {
            Ok(devices @ 0..=16) => Ok(Some(devices)),
            _ => Err(Error::usage(format!("CHASKI_EMULATE={text}: a number up to 16 is needed"))),
        },
        _ => Ok(argument),
    }
}

/// Has so many GPUs emulated. Under a sanitizer the process starts anew, so that the sanitizer's runtime
/// is the first library in it.
///
/// # Errors
/// As [`cuda::emulate`].
pub fn emulate(devices: u32, on_message: &dyn Fn(&str)) -> Result<()> {
    let emulation = Emulation::from_variables(devices, env::vars_os())?;
    if !emulation.sanitizer.is_here() {
        let variables = emulation.environment()?;
        // Once is enough: where it does not help, the emulator says so.
        if variables.iter().any(|(name, value)| env::var_os(name).as_ref() != Some(value)) {
            let name = emulation.sanitizer.name();
            let failed = |error| Error::failed(format!("cannot start with {name}: {error}"));
            let mut again = Command::new(env::current_exe().map_err(failed)?);
            return Err(failed(again.args(env::args_os().skip(1)).envs(variables).exec()));
        }
    }
    cuda::emulate(&emulation, on_message)
}
