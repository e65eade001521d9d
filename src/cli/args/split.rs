//! Over how many ranks a model is split, and where they run.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::comm::{DEFAULT_TIMEOUT, Launcher};

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Several ranks")]
pub struct SplitArgs {
    /// Split every matrix over N ranks of a stage [default: as many as there are --devices for, or 1]
    #[arg(long, value_name = "N", value_parser = super::positive)]
    pub tensor_parallel: Option<usize>,

    /// Put the layers in N stages, one after the other, of --tensor-parallel ranks each [default: 1; with
    /// --join, one for each machine, where the ranks are more than the model's KV heads]
    #[arg(long, value_name = "N", value_parser = super::positive)]
    pub pipeline_parallel: Option<usize>,

    /// The GPUs that the ranks run on, as in 0,1; one may be given several times
    #[arg(long, value_name = "N,N..", value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<u32>,

    /// Join the processes that a launcher has started, each of which has this same command line: the first
    /// talks to the user; auto finds out which launcher it was
    #[arg(long, value_name = "LAUNCHER", num_args = 0..=1, default_missing_value = "auto")]
    pub join: Option<Launcher>,

    /// Where the first process waits for the others [default: from the launcher; see
    /// docs/several-machines.md]
    #[arg(long, value_name = "HOST:PORT", requires = "join")]
    pub rendezvous: Option<String>,

    /// What the processes show each other that no stranger has: the text in FILE, the same for all [default:
    /// the launcher's name of the run, which may be easy to guess]
    #[arg(long, value_name = "FILE", requires = "join")]
    pub secret_file: Option<PathBuf>,

    /// Seconds that a rank, or a kernel on a GPU, may make no progress before the run ends
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT.as_secs_f64())]
    #[arg(value_parser = seconds)]
    pub timeout: f64,
}

impl SplitArgs {
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (1e-3..=1e6).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds is needed, from 0.001 to a million".to_owned()),
    }
}

/// `80G`, `512M` or a number of bytes.
pub(super) fn bytes(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G', 'T']) {
        None => (text, 0),
        Some(digits) => (digits, 10 * (1 + "KMGT".find(&text[digits.len()..]).unwrap_or(0))),
    };
    let number = digits.parse::<usize>().ok().filter(|number| *number > 0);
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "bytes are needed, as in 80G: K, M, G and T are powers of 1024".to_owned())
}
