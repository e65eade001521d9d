//! Arguments of `chaski serve`.

use std::path::PathBuf;

use clap::Args;

use super::values::positive;
use super::{ModelArgs, StyleArgs};

/// Answer HTTP requests as OpenAI's API has them: /v1/chat/completions, /v1/completions, /v1/models; /health
/// and /metrics.
///
/// A line tells the URL when the model is there. SIGTERM or Ctrl-C ends running answers where they are, and
/// the server; a second one ends it at once.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The address to listen at; 0.0.0.0 is all of this machine's
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,

    /// The port to listen at; 0 is any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub port: u16,

    /// Answer only who shows this key, which others may see in the list of processes
    #[arg(long, value_name = "KEY", conflicts_with = "api_key_file")]
    pub api_key: Option<String>,

    /// Answer only who shows the key in FILE
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Let pages of ORIGIN ask too, as in https://chat.example; * is any
    #[arg(long, value_name = "ORIGIN")]
    pub cors: Option<String>,

    /// Answer so many requests side by side, each with a context of its own
    #[arg(long, alias = "parallel", value_name = "N", default_value_t = 4, value_parser = sequences)]
    pub sequences: usize,

    /// Let so many more wait, and refuse others
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub queue: usize,

    /// What clients call the model [default: as -m has it, of a path the last part]
    #[arg(long, alias = "alias", value_name = "NAME")]
    pub name: Option<String>,

    #[command(flatten)]
    pub style: StyleArgs,
    #[command(flatten)]
    pub model: ModelArgs,
}

/// As many as anybody has a use for.
fn sequences(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=256) => Ok(count),
        _ => Err("it is a number from 1 to 256".to_owned()),
    }
}
