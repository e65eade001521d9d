//! Arguments about kernels, and about executors compared by them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::kernel_run::{CodeArgs, KernelRunArgs};
use super::split::seconds;
use super::values::kernel_name;
use super::{Device, ModelArgs, OutputFormat, PromptArgs, device, gpu, repetitions, tokens};
use crate::kernel::Kernel;

#[derive(Debug, Subcommand)]
pub enum KernelsCommand {
    /// List kernels: what they compute and take, and what their machine code needs
    ///
    /// The built-in ones, one of them, or those of a CUDA file, compiled by NVRTC for all architectures
    /// or one.
    List {
        #[command(flatten)]
        code: CodeArgs,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a kernel's PTX, with the lines of the source that it comes from
    Ptx(CodeArgs),
    /// Print a kernel's machine code, disassembled by NVIDIA's nvdisasm
    Sass(CodeArgs),
    /// Print a kernel's source
    Source {
        /// As `kernels list` names it
        #[arg(value_parser = kernel_name())]
        name: &'static Kernel,
    },
    /// Check kernels against their ops' references, on a GPU or, with --emulate 1, without one
    ///
    /// Every case of the kernel's op runs on the CPU and on the GPU, and all that the kernel leaves in
    /// memory is compared. An emulated GPU runs several warp schedules, and can have sanitizers
    /// watch the kernel. Exit status 1 if anything is wrong.
    Check(CheckArgs),
    /// Time kernels at the sizes of a model, each alone, beside the device's measured peak
    ///
    /// The layers' ops are interleaved, so that weights and keys come from memory, not from a cache; where a
    /// model has too little for that, the row says so. Times are of launches that follow each other as in
    /// a graph. A bandwidth counts only what must be read: weights and keys and values.
    ///
    /// all_reduce is timed between GPUs, at sizes from 2 KiB to 1 MiB and that of a token: over peer memory
    /// and NCCL, interleaved, with as many ranks as --devices or --tensor-parallel say, else 2, 4 and 8.
    /// Where ranks share a GPU (--devices 0,0) the hosts add up.
    Bench(Box<KernelBenchArgs>),
    /// Run a kernel of your own, any CUDA file, and look after it
    ///
    /// Its arguments are made up or read from files, what it writes is compared with a reference, and on
    /// an emulated GPU it runs under several warp schedules, and under sanitizers if asked. Exit status 1 if
    /// anything is wrong.
    Run(Box<KernelRunArgs>),
}

#[derive(Debug, Clone, Args)]
#[command(mut_arg("model", |model| {
    let help = "The model: as elsewhere [default: synthetic:llama3-8b; on an emulated GPU synthetic:tiny]";
    model.default_value("").hide_default_value(true).help(help)
}))]
#[command(mut_arg("kernel", |kernel| kernel.hide(true)))]
#[command(mut_arg("device", |device| {
    let help = "What runs them: cuda or cuda:N; or cpu, which times their ops' definitions";
    device.default_value("cuda").help(help)
}))]
pub struct KernelBenchArgs {
    /// Kernels to time [default: all that a decode step and a prefill have, or the one that --source
    /// names]
    #[arg(value_name = "NAME", value_parser = kernel_name())]
    pub names: Vec<&'static Kernel>,

    /// Tokens of the prefill; 0 is none
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512, value_parser = tokens)]
    pub n_prompt: usize,

    /// Tokens in the KV cache before the decode step
    #[arg(short = 'd', long, value_name = "N", default_value_t = 2048, value_parser = tokens)]
    pub n_depth: usize,

    /// A kernel to time in place of the built-in one whose functions it has, if it passes `kernels
    /// check`
    #[arg(long, value_name = "FILE.cu")]
    pub source: Option<PathBuf>,

    /// The baseline, interleaved with it: a source, built-in, or cublaslt, NVIDIA's library, which has plain
    /// GEMMs of 16-bit numbers
    #[arg(long, value_name = "FILE.cu|built-in|cublaslt")]
    pub against: Option<PathBuf>,

    /// Time the launch configurations, and write the fastest on this GPU for this model into
    /// the table that Chaski is built with
    #[arg(long, value_name = "src/ops/tuned.rs", conflicts_with_all = ["source", "against"])]
    pub tune: Option<PathBuf>,

    /// Time each N times, and less often what takes long
    #[arg(short = 'r', long, value_name = "N", default_value_t = 30, value_parser = repetitions)]
    pub repetitions: usize,

    /// Output format
    #[arg(short = 'o', long, value_name = "FORMAT", default_value = "md")]
    pub output: OutputFormat,

    /// Give up on a kernel that takes longer [default: 60; 600 where GPUs are emulated]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub time_limit: Option<f64>,

    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Kernels to check [default: all, or the one that --source names]
    #[arg(value_name = "NAME", value_parser = kernel_name())]
    pub names: Vec<&'static Kernel>,

    /// A kernel to run in place of the built-in one whose functions it has; headers in lib/ beside
    /// it replace the built-in ones
    #[arg(long, value_name = "FILE.cu")]
    pub source: Option<PathBuf>,

    /// The GPU that runs them: cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cuda", value_parser = gpu)]
    pub device: u32,

    /// Sanitizer for kernels on an emulated GPU
    #[arg(long, value_name = "CHECKER", default_value = "none")]
    pub sanitize: SanitizeArg,

    /// Which of the cases to run [default: thorough; usual where GPUs are emulated, and quick with
    /// the sanitizer thread]
    #[arg(long, value_name = "WHICH")]
    pub cases: Option<CasesArg>,

    /// Print a summary as JSON
    #[arg(long)]
    pub json: bool,

    /// End a kernel that takes longer over a case [default: 60; where GPUs are emulated 20 of the
    /// processor's time, or 600 with --cases thorough]
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

    /// The reference: cpu, cuda or cuda:N
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
