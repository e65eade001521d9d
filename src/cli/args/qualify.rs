//! Arguments about what is found out of a GPU.

use clap::Args;

use super::gpu;
use super::split::seconds;

#[derive(Debug, Args)]
pub struct QualifyArgs {
    /// Only the kernels of this model [default: all]
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<String>,

    /// The GPU: cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cuda", value_parser = gpu)]
    pub device: u32,

    /// All cases of every kernel, not only a few
    #[arg(long)]
    pub thorough: bool,

    /// Print the verdicts as JSON
    #[arg(long)]
    pub json: bool,

    /// End a kernel that takes longer over a case [default: 10; where GPUs are emulated
    /// 20, 120 with --thorough]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub time_limit: Option<f64>,

    /// Performs checks in this process, as standard input says, and reports in lines of JSON
    #[arg(long, hide = true)]
    pub worker: bool,
}
