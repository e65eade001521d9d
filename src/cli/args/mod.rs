//! The command line, as clap, the shell completions and the man pages know it.

mod bench;
mod examples;
mod habits;
mod kernel_run;
mod kernels;
mod qualify;
mod quantize;
mod sampling;
mod serve;
mod split;
mod synthetic;
mod tokenize;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::encoding::Float;
use crate::engine::Device;
pub use bench::{BenchArgs, DepthFill, OutputFormat};
pub use examples::examples;
pub use habits::{command, hint};
pub use kernel_run::{CodeArgs, KernelRunArgs};
pub use kernels::{CasesArg, CheckArgs, DiffArgs, KernelBenchArgs, KernelsCommand, SanitizeArg};
pub use qualify::QualifyArgs;
pub use quantize::{QuantisationArg, QuantizeArgs};
pub use sampling::{SamplingArgs, Seed, StopArgs};
pub use serve::ServeArgs;
pub use split::SplitArgs;
pub use synthetic::{SynthesizeArgs, SyntheticArgs, WeightType};
pub use tokenize::{DetokenizeArgs, TokenizeArgs};
use values::{device, gpu, kernel, positive, repetitions, some_tokens, threads, tokens};

/// Run Llama-family models from their own checkpoints, for one user, at memory speed
///
/// The answer goes to standard output, everything else to standard error. Exit status: 0 done,
/// 1 failed, 2 wrong usage, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "chaski", version = env!("CHASKI_VERSION"), max_term_width = 100)]
pub struct CommandLine {
    /// Run the CUDA kernels on N emulated GPUs: on the CPU, compiled by the system's C++ compiler
    #[arg(
        long,
        global = true,
        help_heading = "Any command",
        display_order = 100,
        value_name = "N"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16))]
    pub emulate: Option<u32>,

    /// On standard error say what goes wrong, and nothing else
    #[arg(short, long, global = true, help_heading = "Any command", display_order = 101)]
    pub quiet: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Continue a text or a list of token ids
    Generate(GenerateArgs),
    /// Chat with an instruction-tuned model
    Chat(ChatArgs),
    /// Answer HTTP requests as OpenAI's API has them
    Serve(ServeArgs),
    /// Write the logits of every position of a prompt to a safetensors file
    Logits(LogitsArgs),
    /// Measure how well a model predicts a text, as llama.cpp defines it
    Perplexity(PerplexityArgs),
    /// Measure a model's speed beside the machine's measured peak
    Bench(BenchArgs),
    /// Print the token ids of texts or conversations as JSON arrays
    Tokenize(TokenizeArgs),
    /// Print the text of token ids
    Detokenize(DetokenizeArgs),
    /// Write a synthetic model as a checkpoint: safetensors, index and configs
    Synthesize(SynthesizeArgs),
    /// Write a model with its matrices in ggml's blocks as a GGUF file, which llama.cpp reads, too
    Quantize(QuantizeArgs),
    /// Describe a model and the memory it takes, without reading its weights
    Inspect(InspectArgs),
    /// Download what the Hugging Face cache lacks of a model, and print where it is
    Pull(PullArgs),
    /// Run a prompt on two executors, op by op, and show where they diverge
    Diff(DiffArgs),
    /// List, check and time the CUDA kernels
    Kernels {
        #[command(subcommand)]
        command: KernelsCommand,
    },
    /// Check a GPU's results against the kernels' references, and record the verdicts
    ///
    /// A model's kernels are checked like this when it first runs on a kind of GPU, with a driver and a
    /// version of Chaski; a wrong kernel is not used. Exit status 1 if a kernel is wrong that has no
    /// fallback.
    Qualify(QualifyArgs),
    /// List what models can run on (also --list-devices)
    Devices {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a shell's completion script
    Completions {
        /// The shell to complete commands in
        shell: Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// Created if it does not exist
        directory: PathBuf,
    },
}

/// Which model, and how it is laid out in memory.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// The model: a directory; ORGANISATION/NAME[:FILE] in the Hugging Face cache, else at the hub; demo,
    /// which is built in; or synthetic:SHAPE, random weights in the shape of llama3-8b, llama3.2-1b, ...
    #[arg(short, long, default_value = "demo", value_name = "MODEL")]
    pub model: String,

    /// Download nothing, as HF_HUB_OFFLINE=1 does
    #[arg(long)]
    pub offline: bool,

    #[command(flatten)]
    pub synthetic: SyntheticArgs,

    /// Tokens that the KV cache holds [default: the model's limit, or what fits the memory]
    #[arg(short, long, alias = "ctx-size", value_name = "TOKENS", value_parser = positive)]
    pub context: Option<usize>,

    /// How keys and values are stored in the KV cache [default: f32 on the CPU, f16 on a GPU]
    #[arg(long, value_name = "TYPE")]
    pub kv_type: Option<KvType>,

    /// On the CPU, what the inputs of matrix products are rounded to, except those of q, k and v; bf16
    /// needs bf16 weights, and is fast where the CPU has AVX512-BF16 [default: f32]
    #[arg(long, value_name = "TYPE")]
    pub activations: Option<Activations>,

    /// Make blocks of the matrices while they are loaded, as llama.cpp has them: a half (q8_0) or a little
    /// over a quarter (q4_0) of 16-bit weights. With q4_0 the LM head is q8_0
    #[arg(long, value_name = "TYPE", ignore_case = true)]
    pub quantize: Option<QuantisationArg>,

    /// Prompt tokens computed per step [default: 512 on the CPU; 2048 on a GPU, or less
    /// where that would shorten the context]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub prefill_chunk: Option<usize>,

    /// What runs the model: auto (a GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub device: Device,

    /// Run this source in place of a built-in kernel; may be repeated
    #[arg(long, value_name = "NAME=FILE.cu", value_parser = kernel)]
    pub kernel: Vec<KernelFile>,

    /// Use the kernels without checking them first (also CHASKI_TRUST_KERNELS=on)
    #[arg(long)]
    pub trust_kernels: bool,

    /// CPU threads [default: one per core]
    #[arg(short, long, value_parser = threads)]
    pub threads: Option<usize>,

    #[command(flatten)]
    pub split: SplitArgs,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// ORGANISATION/NAME, and after a colon the file of its weights where that is not the usual one
    #[arg(value_name = "ORGANISATION/NAME[:FILE]")]
    pub model: String,

    /// Download nothing, as HF_HUB_OFFLINE=1 does: an error
    #[arg(long, hide = true)]
    pub offline: bool,
}

/// A kernel's name, and the source to take its place.
#[derive(Debug, Clone)]
pub struct KernelFile {
    pub name: String,
    pub file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvType {
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Activations {
    F32,
    Bf16,
}

impl From<Activations> for Float {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::F32 => Float::F32,
            Activations::Bf16 => Float::Bf16,
        }
    }
}

impl From<KvType> for Float {
    fn from(kv_type: KvType) -> Self {
        match kv_type {
            KvType::F32 => Float::F32,
            KvType::F16 => Float::F16,
            KvType::Bf16 => Float::Bf16,
        }
    }
}

/// What goes in, as a text or as ids.
#[derive(Debug, Clone, Args)]
#[group(id = "prompt_source", required = true, multiple = false)]
pub struct PromptArgs {
    /// The text to continue; control tokens written in it are recognised
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// Read the text from FILE; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Token ids, separated by commas; used as they are, without BOS
    #[arg(long, value_name = "IDS")]
    pub ids: Option<String>,

    /// Read token ids, separated by commas or white space, from FILE; - is standard input
    #[arg(long, value_name = "FILE")]
    pub ids_file: Option<PathBuf>,

    /// N random token ids, the same in every run
    #[arg(long, value_name = "N", value_parser = some_tokens)]
    pub random_ids: Option<usize>,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub prompt: PromptArgs,

    /// Print the generated ids, separated by commas, in place of their text
    #[arg(long)]
    pub print_ids: bool,

    /// Show control tokens in the text
    #[arg(long)]
    pub show_special: bool,

    /// Print a line of JSON for each token, with its id and text, and one at the end, with the whole
    /// text and timings
    #[arg(long, conflicts_with_all = ["print_ids", "show_special"])]
    pub json: bool,

    /// Add the natural logarithms of the probabilities of the token and of the K most
    /// probable ones, before bias, penalties and temperature
    #[arg(long, value_name = "K", requires = "json")]
    pub logprobs: Option<usize>,

    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub stop: StopArgs,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Ask this one question, print the answer and exit
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// Read the one question from FILE; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,

    /// Show control tokens in answers
    #[arg(long)]
    pub show_special: bool,

    /// The system prompt (also -sys)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,

    /// Keep nothing of what is typed for the next time (also CHASKI_HISTORY=off)
    #[arg(long)]
    pub no_history: bool,

    #[command(flatten)]
    pub style: StyleArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub stop: StopArgs,
}

/// How a conversation becomes tokens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Chat format")]
pub struct StyleArgs {
    /// Format the conversation natively or by the model's own template
    #[arg(long, value_name = "STYLE", default_value = "auto")]
    pub chat_style: StyleArg,

    /// The date that templates see [default: today]
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub date: Option<jiff::civil::Date>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StyleArg {
    /// By the model's template; natively where that gives the same, or where there is none
    Auto,
    /// The Llama 3 format
    Native,
    /// The model's chat_template
    Template,
}

#[derive(Debug, Args)]
pub struct LogitsArgs {
    #[command(flatten)]
    pub prompt: PromptArgs,

    /// The file to write: a tensor `logits`, f32 [T, V]
    #[arg(short, long, value_name = "X.safetensors")]
    pub out: PathBuf,

    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// The text; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,

    /// Move the window by N tokens and score only the last N of each, instead of the second half of
    /// windows side by side
    #[arg(long, value_name = "N", value_parser = positive)]
    pub stride: Option<usize>,

    /// Score at most N windows
    #[arg(long, value_name = "N", value_parser = positive)]
    pub chunks: Option<usize>,

    /// Print a line of JSON for each window, with the estimate so far, and one at the end
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Predict the speed of the model split over GPUs with this much memory each, as in 80G
    #[arg(long, value_name = "BYTES", value_parser = split::bytes)]
    pub memory: Option<usize>,

    #[command(flatten)]
    pub model: ModelArgs,
}
