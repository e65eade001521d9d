//! Arguments of `chaski bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ModelArgs, repetitions, some_tokens, tokens};
use crate::bench::Format;

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Prompt tokens (pp); lists are combined with each other, 0 is none
    #[arg(short = 'p', long, value_name = "N,..", value_delimiter = ',', default_value = "512")]
    #[arg(value_parser = tokens)]
    pub n_prompt: Vec<usize>,

    /// Tokens generated one by one (tg), and in the real loop (gen); a list, 0 is none
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',', default_value = "128")]
    #[arg(value_parser = tokens)]
    pub n_gen: Vec<usize>,

    /// A prompt and the tokens after it, timed together (also -pg); may be repeated
    #[arg(long, value_name = "P,G", value_parser = pair)]
    pub pg: Vec<(usize, usize)>,

    /// Tokens in the KV cache before each test; a list
    #[arg(short = 'd', long, value_name = "N,..", value_delimiter = ',', default_value = "0")]
    #[arg(value_parser = tokens)]
    pub n_depth: Vec<usize>,

    /// How the cache is filled: by prefill, or at once with random keys and values
    #[arg(long, value_name = "HOW", default_value = "prefill")]
    pub depth_fill: DepthFill,

    /// Measure each test N times
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5, value_parser = repetitions)]
    pub repetitions: usize,

    /// Output format
    #[arg(short = 'o', long, value_name = "FORMAT", default_value = "md")]
    pub output: OutputFormat,

    /// Measure without a warm-up run
    #[arg(long)]
    pub no_warmup: bool,

    /// Leave out the real loop (gen): tokens chosen on the device and streamed to the host
    #[arg(long)]
    pub no_loop: bool,

    /// Time the phases of the start-up instead of running tests
    #[arg(long, conflicts_with = "profile")]
    pub startup: bool,

    /// Time every op of a decode step and of the prompts instead of running tests
    #[arg(long)]
    pub profile: bool,

    /// Write the profile as a trace for Chrome or Perfetto
    #[arg(long, value_name = "FILE.json", requires = "profile")]
    pub trace: Option<PathBuf>,

    /// Draw the profile's roofline
    #[arg(long, value_name = "FILE.svg", requires = "profile")]
    pub roofline: Option<PathBuf>,

    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DepthFill {
    Prefill,
    Random,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    Md,
    Csv,
    Json,
    Jsonl,
    Sql,
}

impl From<OutputFormat> for Format {
    fn from(output: OutputFormat) -> Self {
        match output {
            OutputFormat::Md => Self::Markdown,
            OutputFormat::Csv => Self::Csv,
            OutputFormat::Json => Self::Json,
            OutputFormat::Jsonl => Self::Jsonl,
            OutputFormat::Sql => Self::Sql,
        }
    }
}

fn pair(text: &str) -> Result<(usize, usize), String> {
    let (prompt, generate) = text.split_once(',').ok_or("P,G is needed, as in 512,128")?;
    Ok((some_tokens(prompt.trim())?, some_tokens(generate.trim())?))
}
