//! Arguments about synthetic models.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::positive;

/// What can be chosen about a synthetic model.
#[derive(Debug, Clone, Args)]
pub struct SyntheticArgs {
    /// Only the first N layers of a synthetic model
    #[arg(long, value_name = "N", value_parser = positive)]
    pub layers: Option<usize>,

    /// The type of a synthetic model's weights [default: bf16]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<WeightType>,

    /// Seed of a synthetic model's weights [default: 0]
    #[arg(long, value_name = "SEED")]
    pub weight_seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightType {
    Bf16,
    F16,
}

#[derive(Debug, Args)]
pub struct SynthesizeArgs {
    /// The model: synthetic:SHAPE
    #[arg(short, long, value_name = "MODEL")]
    pub model: String,

    #[command(flatten)]
    pub synthetic: SyntheticArgs,

    /// The directory to write, which must not be there yet
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,

    /// Start a new file before one is larger than this many megabytes
    #[arg(long, value_name = "MB", default_value_t = 5000, value_parser = positive)]
    pub shard_mb: usize,
}
