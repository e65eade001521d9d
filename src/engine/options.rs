//! What can be chosen about running a model. Plain data: what is not set is as the model, or the machine,
//! has it.

use std::sync::Arc;
use std::time::Duration;

use super::Checker;
use crate::comm::{DEFAULT_TIMEOUT, ProcessPlace};
use crate::encoding::Float;
use crate::error::Result;
use crate::executor::cuda;
use crate::hub;
use crate::kernel::Replacement;
use crate::quantise::Quantisation;
use crate::source::Variables;

#[derive(Debug, Clone)]
pub struct Options {
    /// What runs the model.
    pub device: Device,
    /// Over how many ranks it is split.
    pub split: Split,
    /// Tokens that the KV cache holds; else the model's limit, or what fits the memory.
    pub context: Option<usize>,
    /// Texts that the KV cache holds side by side, so many tokens of each.
    pub sequences: usize,
    /// Tokens of a prompt that are computed at once at most.
    pub prefill_chunk: Option<usize>,
    /// Of so many of these the logits are kept, at most, where those of all positions are wanted.
    pub scored: usize,
    /// How keys and values are stored; else f32 on the CPU, f16 on a GPU.
    pub kv_type: Option<Float>,
    /// What the CPU rounds the inputs of GEMMs to, but those of q, k and v: f32 or bf16, which needs bf16
    /// weights; else f32. A GPU has no choice.
    pub activations: Option<Float>,
    /// What plain matrices are made into while they are loaded.
    pub quantise: Option<Quantisation>,
    /// Sources that run in place of built-in kernels.
    pub kernels: Vec<Replacement>,
    /// Kernels are taken as they are, unchecked.
    pub trust_kernels: bool,
    /// What checks them; else this process does, which a kernel that hangs does not let go.
    pub checker: Option<Checker>,
    /// Whether the tokenizer is loaded beside the rest, or else when it is first asked for.
    pub text: bool,
    /// CPU threads; else one for each core.
    pub threads: Option<usize>,
    /// How long ranks wait for one that makes no progress, before the run ends.
    pub timeout: Duration,
    /// What is asked of GPUs.
    pub cuda: Arc<cuda::Settings>,
    /// Where models come from that are not on this machine.
    pub hub: hub::HubOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            split: Split::default(),
            context: None,
            sequences: 1,
            prefill_chunk: None,
            scored: 1,
            kv_type: None,
            activations: None,
            quantise: None,
            kernels: Vec::new(),
            trust_kernels: false,
            checker: None,
            text: true,
            threads: None,
            timeout: DEFAULT_TIMEOUT,
            cuda: Arc::default(),
            hub: hub::HubOptions::default(),
        }
    }
}

impl Options {
    /// What environment variables say, which only the command line and tests have asked for: the hub's
    /// ([`hub::HubOptions::from_variables`]), those of GPUs ([`cuda::Settings::from_variables`]), and
    /// `CHASKI_TRUST_KERNELS=on`.
    ///
    /// # Errors
    /// A value that is not understood.
    pub fn from_variables(variable: Variables<'_>) -> Result<Self> {
        Ok(Self {
            trust_kernels: variable("CHASKI_TRUST_KERNELS").is_some_and(|given| given == "on"),
            cuda: Arc::new(cuda::Settings::from_variables(variable)?),
            hub: hub::HubOptions::from_variables(variable),
            ..Self::default()
        })
    }
}

/// What runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The first GPU, if there is one that has kernels for the model; else the CPU.
    Auto,
    Cpu,
    /// The GPU of this number.
    Cuda(u32),
}

/// Over how many ranks a model is split, and where they run.
#[derive(Debug, Clone, Default)]
pub struct Split {
    /// Ranks of a stage, over which every matrix is split; else as many as there are `devices`.
    pub tensor_parallel: Option<usize>,
    /// Stages of layers, one after the other; else one, or one for each machine where the ranks are more
    /// than the model's KV heads.
    pub pipeline_parallel: Option<usize>,
    /// The GPUs that this process's ranks run on; one may stand there several times.
    pub devices: Vec<u32>,
    /// Which of several processes this is that run the model together.
    pub process: Option<ProcessPlace>,
}
