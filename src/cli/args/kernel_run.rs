//! Arguments of `chaski kernels run`.

use std::path::PathBuf;

use clap::Args;

use super::kernels::SanitizeArg;
use super::split::seconds;
use super::values::kernel_name;
use super::{gpu, repetitions};
use crate::kernel::Kernel;

#[derive(Debug, Args)]
pub struct KernelRunArgs {
    /// A CUDA file: kernels alone, without the host's side
    #[arg(value_name = "FILE.cu")]
    pub file: PathBuf,

    /// The kernel, a template with its parameters: 'reduce<float,256>' [default: the only one]
    #[arg(long, value_name = "NAME")]
    pub entry: Option<String>,

    /// Blocks of the grid
    #[arg(long, value_name = "X[,Y[,Z]]", value_parser = dimensions)]
    pub grid: [u32; 3],

    /// Threads of a block
    #[arg(long, value_name = "X[,Y[,Z]]", value_parser = dimensions)]
    pub block: [u32; 3],

    /// Bytes of dynamic shared memory of a block
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub shared: u32,

    /// An argument, or a __constant__ or __device__ variable: NAME=f32[64,64]:normal, NAME=4096, or
    /// NAME=FILE.safetensors[:TENSOR]
    ///
    /// Types are f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8 and bool; contents zeros, ones,
    /// iota, uniform[(FROM,TO)], normal[(MEAN,DEVIATION)], a number, or unset, which is NaN and the
    /// default, for what the kernel writes.
    #[arg(long = "arg", value_name = "NAME=VALUE")]
    pub arguments: Vec<String>,

    /// Seed of random contents
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// Write the arrays that the kernel may write
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: Option<PathBuf>,

    /// What they should hold: a file with arrays of their names, or a script whose function `reference` is
    /// given the arguments by name, as numpy arrays and numbers, and returns a dict of such arrays
    #[arg(long, value_name = "FILE.safetensors|FILE.py")]
    pub reference: Option<PathBuf>,

    /// How far a number may be off, relative to the larger of itself and the root mean square of its array
    /// [default: f32 1e-4, f64 1e-10, f16 4e-3, bf16 3e-2; whole numbers are equal]
    #[arg(long, value_name = "RATIO")]
    pub tolerance: Option<f64>,

    /// Sanitizer for kernels on an emulated GPU
    #[arg(long, value_name = "CHECKER", default_value = "none")]
    pub sanitize: SanitizeArg,

    /// Time it, with cold caches
    #[arg(long)]
    pub bench: bool,

    /// Time it N times
    #[arg(short = 'r', long, value_name = "N", default_value_t = 30, value_parser = repetitions)]
    pub repetitions: usize,

    /// The GPU: cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cuda", value_parser = gpu)]
    pub device: u32,

    /// End a kernel that takes longer; on an emulated GPU of the processor's time
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds)]
    pub time_limit: f64,

    /// Runs the kernel in this process, and leaves in this folder what it has written
    #[arg(long, value_name = "FOLDER", hide = true)]
    pub worker: Option<PathBuf>,
}

/// Whose code is looked at.
#[derive(Debug, Args)]
pub struct CodeArgs {
    /// A built-in kernel
    #[arg(value_name = "NAME", value_parser = kernel_name())]
    pub name: Option<&'static Kernel>,

    /// A CUDA file, compiled by NVRTC now
    #[arg(long, value_name = "FILE.cu")]
    pub source: Option<PathBuf>,

    /// Of the file's kernels this one; a template with its parameters: 'reduce<float,256>' [default: all
    /// that are no templates]
    #[arg(long, value_name = "NAME", requires = "source")]
    pub entry: Option<String>,

    /// Architecture, such as sm_90a
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
}

/// `X`, `X,Y` or `X,Y,Z`, none of which is 0.
fn dimensions(text: &str) -> Result<[u32; 3], String> {
    let parts: Vec<_> = text.split(',').map(|part| part.trim().parse::<u32>()).collect();
    let mut all = [1; 3];
    if parts.len() > all.len() {
        return Err("at most three numbers".into());
    }
    for (to, part) in all.iter_mut().zip(parts) {
        *to = part.ok().filter(|size| *size > 0).ok_or("numbers from 1 on, X,Y,Z")?;
    }
    Ok(all)
}
