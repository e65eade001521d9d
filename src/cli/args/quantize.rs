//! Arguments about quantised weights.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::SyntheticArgs;
use crate::quantise::Quantisation;

#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// The model, of 16-bit or f32 weights: a directory, ORGANISATION/NAME[:FILE], demo, or synthetic:SHAPE
    #[arg(short, long, value_name = "MODEL")]
    pub model: String,

    /// Download nothing, as HF_HUB_OFFLINE=1 does
    #[arg(long)]
    pub offline: bool,

    #[command(flatten)]
    pub synthetic: SyntheticArgs,

    /// What the matrices become: Q8_0, or Q4_0 with an LM head in Q8_0; norms stay as numbers of f32
    #[arg(long = "type", value_name = "TYPE", ignore_case = true)]
    pub kind: QuantisationArg,

    /// The file to write
    #[arg(short, long, value_name = "FILE.gguf")]
    pub out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantisationArg {
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<QuantisationArg> for Quantisation {
    fn from(argument: QuantisationArg) -> Self {
        match argument {
            QuantisationArg::Q8_0 => Quantisation::Q8_0,
            QuantisationArg::Q4_0 => Quantisation::Q4_0,
        }
    }
}
