//! A GPU as it is found.

use std::sync::{Arc, Mutex};

use super::driver::{self, Context};
use super::kernels::Kernels;
use super::locked;
use super::nvml::Nvml;
use super::options::LaunchOptions;
use super::settings::Settings;
use crate::checkpoint::Checkpoint;
use crate::config::Dims;
use crate::encoding::Encoding;
use crate::error::{Error, Result};
use crate::json::quote;
use crate::kernel::{Kernel, Launch, Replacement};
use crate::ops::{MOST_TOKENS, gemv_shared_bytes};

/// A GPU that nothing has been put on yet.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub(super) context: Arc<Context>,
    /// What all that runs on it has loaded.
    pub(super) kernels: Arc<Mutex<Kernels>>,
    pub ordinal: u32,
    pub name: String,
    pub multiprocessors: u32,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// How work is given to it; of that it does what it can.
    pub options: LaunchOptions,
    /// What was asked for.
    pub settings: Arc<Settings>,
}

impl Gpu {
    /// The GPU of this number, of which nothing special is asked.
    ///
    /// # Errors
    /// No driver, no such GPU, or one that cannot be used.
    pub fn open(ordinal: u32) -> Result<Self> {
        Self::open_as(ordinal, &Arc::default())
    }

    /// As [`Self::open`], and what is asked of it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(ordinal: u32, settings: &Arc<Settings>) -> Result<Self> {
        let context = Context::new(ordinal)?;
        let (name, multiprocessors) = (context.name()?, context.multiprocessors()?);
        let capability = context.capability()?;
        let kernels = Arc::new(Mutex::new(Kernels::new(&context, settings)?));
        let (options, settings) = (settings.unchecked(), settings.clone());
        Ok(Self { context, kernels, ordinal, name, multiprocessors, capability, options, settings })
    }

    /// From now on runs this in place of its kernel.
    pub fn replace_kernel(&self, by: Replacement) {
        locked(&self.kernels).replace(by.kernel, Some(by));
    }

    /// From now on runs the built-in kernel again.
    pub fn restore_kernel(&self, kernel: &Kernel) {
        locked(&self.kernels).replace(kernel, None);
    }

    /// Which machine code of the kernel it runs: equal where the code is.
    ///
    /// # Errors
    /// When there is none.
    pub fn code(&self, kernel: &'static Kernel) -> Result<String> {
        locked(&self.kernels).code(kernel)
    }

    /// Has ready what `launch` needs.
    ///
    /// # Errors
    /// What cannot be loaded.
    pub fn load(&self, launch: &Launch) -> Result<()> {
        locked(&self.kernels).function(launch).map(drop)
    }

    /// The version of its driver, where that tells, and of the driver's CUDA.
    ///
    /// # Errors
    /// When the driver does not say.
    pub fn driver(&self) -> Result<String> {
        let cuda = format!("CUDA {}", driver::version_text(driver::version()?));
        Ok(match self.nvml().and_then(|nvml| nvml.driver()) {
            Some(own) => format!("{own}, {cuda}"),
            None => cuda,
        })
    }

    /// What tells it apart from all others anywhere.
    ///
    /// # Errors
    /// When the driver does not say.
    pub fn uuid(&self) -> Result<String> {
        self.context.uuid()
    }

    /// Free and total bytes of its memory.
    ///
    /// # Errors
    /// When the driver does not say.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.memory()
    }

    /// Bytes of its L2 cache.
    ///
    /// # Errors
    /// When the driver does not say.
    pub fn cache_bytes(&self) -> Result<usize> {
        self.context.cache_bytes()
    }

    /// What tells of its clocks, power and energy, where that is installed.
    pub fn nvml(&self) -> Option<Nvml> {
        Nvml::open(self.context.bus().ok()?)
    }

    /// Blocks that the attention of one token is best spread over: the kernel after it finds room for
    /// a block beside each.
    pub fn attention_blocks(&self) -> usize {
        self.multiprocessors as usize
    }

    /// That it has kernels for a rank of such a model.
    ///
    /// # Errors
    /// What about the model no kernel is made for, or is too large for this GPU.
    pub fn suits(&self, dims: &Dims, weights: &Checkpoint) -> Result<()> {
        let Dims { width, heads, head_dim, ffn, vocab, .. } = *dims;
        let needed = gemv_shared_bytes(ffn.max(heads * head_dim), width);
        let limit = self.context.block_shared_bytes()?;
        let trouble = match (weights.encoding(), weights.exception()) {
            (most, _) if most.kernel_type().is_none() => {
                let known = Encoding::of_kernels().map(|(encoding, _)| encoding.name());
                let known = known.collect::<Vec<_>>().join(" and ");
                format!("{} weights ({known} are supported)", most.name())
            }
            (most, Some((name, tensor))) => format!(
                "matrices of several types: {} is {} where most are {}",
                quote(name),
                tensor.encoding.name(),
                most.name()
            ),
            _ if head_dim != 64 && head_dim != 128 => {
                format!("heads of {head_dim} dimensions (64 and 128 are supported)")
            }
            _ if !width.is_multiple_of(8) || !ffn.is_multiple_of(8) => {
                format!("a width of {width} and an FFN of {ffn}: multiples of 8 are needed")
            }
            _ if vocab > MOST_TOKENS => {
                format!("a vocabulary of {vocab} tokens (at most {MOST_TOKENS} are supported)")
            }
            _ if needed > limit => format!(
                "a width of {width} and an FFN of {ffn} on this GPU: a block would take {} KiB of shared \
                 memory and can have {}; split the model over more of them",
                needed >> 10,
                limit >> 10
            ),
            _ => return Ok(()),
        };
        Err(Error::failed(format!("there are no CUDA kernels for {trouble}; use `device` cpu")))
    }
}
