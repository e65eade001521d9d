//! Arguments about kernels, and about executors compared by them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::split::seconds;
use super::{Device, ModelArgs, PromptArgs, device};

#[derive(Debug, Subcommand)]
pub enum KernelsCommand {
    /// List every kernel: what it computes and takes, and what its machine code needs
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a kernel's source
    Source { name: String },
    /// Hold kernels to their ops' references, on a GPU or, with --emulate 1, without one
    ///
    /// Every case of the kernel's op runs on the CPU and on the GPU, and all that the kernel leaves in
    /// memory is compared. An emulated GPU runs the warps in several orders, and can have sanitizers
    /// watch the kernel. Exit status 1 if anything is wrong.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Kernels to check [default: all, or the one that --source names]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// A kernel to run in place of the built-in one that its first line names; headers in lib/ beside
    /// it take the place of built-in ones
    #[arg(long, value_name = "FILE.cu")]
    pub source: Option<PathBuf>,

    /// What watches over the kernel on an emulated GPU
    #[arg(long, value_name = "CHECKER", default_value = "none")]
    pub sanitize: SanitizeArg,

    /// Which of the cases to run [default: thorough; usual where GPUs are emulated, and few with
    /// the sanitizer thread]
    #[arg(long, value_name = "WHICH")]
    pub cases: Option<CasesArg>,

    /// Print a summary as JSON
    #[arg(long)]
    pub json: bool,

    /// End a kernel that takes longer over a case [default: 60; 600 where GPUs are emulated]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub time_limit: Option<f64>,

    /// Runs the cases of one kernel in this process, and reports in lines of JSON
    #[arg(long, hide = true)]
    pub worker: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SanitizeArg {
    /// Results alone
    None,
    /// AddressSanitizer and UndefinedBehaviorSanitizer: out of bounds, misaligned
    Address,
    /// ThreadSanitizer: races
    Thread,
    /// All three, one after the other
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CasesArg {
    /// Some of the small ones
    Few,
    /// All small ones
    Quick,
    /// What an emulated GPU does in reasonable time
    Usual,
    /// All
    Thorough,
}

/// What takes part in a comparison.
#[derive(Debug, Args)]
#[command(mut_arg("device", |device| device.hide(true)))]
pub struct DiffArgs {
    #[command(flatten)]
    pub prompt: PromptArgs,

    /// What runs first, and is believed: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    pub a: Device,

    /// What is compared with it
    #[arg(long, value_name = "DEVICE", default_value = "cuda", value_parser = device)]
    pub b: Device,

    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub model: ModelArgs,
}
