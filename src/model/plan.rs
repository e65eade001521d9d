//! How much memory a rank will use, decided and checked before any is allocated.

use super::{Sizes, State};
use crate::config::{Config, Dims};
use crate::encoding::{Encoding, Float};
use crate::error::{Error, Result, binary, count};
use crate::memory::Layout;
use crate::vector::cores;

/// Tokens a prefill step takes unless the user says otherwise: enough for the weights that are read
/// once a step to cost little beside the arithmetic.
pub const DEFAULT_CHUNK: usize = 512;

/// What the user asks for; `None` and the defaults leave it to the plan.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest {
    /// Tokens the KV cache shall hold.
    pub context: Option<usize>,
    /// Sequences that it holds so many of, each.
    pub sequences: usize,
    /// Tokens of a prefill step.
    pub chunk: usize,
    /// Or up to so many, a half or a quarter of it, where the context stays next to as long.
    pub longest_chunk: Option<usize>,
    /// Positions of a step whose logits are kept, at most.
    pub scored: usize,
    /// How keys and values are stored.
    pub cache: Float,
    /// What ops of a prefill exchange: f32 on the CPU unless asked otherwise, the weights' type on a GPU.
    pub activations: Float,
    /// Whether a token alone is computed as a prefill of one is, to the bit. In f32 it is in any case; a GPU
    /// rounds less for one token.
    pub decode_as_prefill: bool,
    /// Blocks that the attention of one token may spread over: 1 on the CPU.
    pub attention_blocks: usize,
    /// CPU threads.
    pub threads: usize,
}

impl Default for PlanRequest {
    /// On the CPU the cache is f32, so that the reference run rounds nothing but the weights.
    fn default() -> Self {
        Self {
            context: None,
            sequences: 1,
            chunk: DEFAULT_CHUNK,
            longest_chunk: None,
            scored: 1,
            cache: Float::F32,
            activations: Float::F32,
            decode_as_prefill: false,
            attention_blocks: 1,
            threads: cores(),
        }
    }
}

impl PlanRequest {
    /// What a plan for a context of so many tokens lays out.
    pub fn sizes(self, context: usize) -> Sizes {
        let chunk = self.chunk.min(context).max(1);
        Sizes {
            context,
            sequences: self.sequences,
            rows: 1,
            chunk,
            logits: self.scored.clamp(1, chunk),
            cache: self.cache,
            activations: self.activations,
            decode_as_prefill: self.decode_as_prefill,
            attention_blocks: self.attention_blocks,
            threads: self.threads,
        }
    }

    /// On a GPU, for such weights, where attention may spread over so many blocks.
    pub fn on_gpu(self, weights: Encoding, attention_blocks: usize) -> Self {
        let activations = weights.activation();
        Self { cache: Float::F16, activations, attention_blocks, ..self }
    }
}

/// The memory of one rank, in bytes by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub sizes: Sizes,
    /// Mapped, not allocated, on the CPU.
    pub weight_bytes: usize,
    pub cache_bytes: usize,
    pub activation_bytes: usize,
    /// What decided the context length.
    pub limit: Limit,
}

/// Why the context is as long as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The user asked for it.
    Request,
    /// The model knows no longer one.
    Model,
    /// More would not fit the memory.
    Memory,
}

/// Memory that can be had, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBudget {
    Host(usize),
    Gpu(usize),
}

impl MemoryBudget {
    /// What is left to the state.
    ///
    /// On the CPU the weights are the page cache's, which gives way when it must: at least a quarter of
    /// what is available goes to the state, and a tenth of the rest is left to the system. On a GPU the
    /// weights are there to stay, and a fiftieth is left to the driver, for code and graphs.
    fn for_state(self, weight_bytes: usize) -> Result<usize> {
        match self {
            Self::Host(bytes) => Ok(bytes.saturating_sub(weight_bytes).max(bytes / 4) / 10 * 9),
            Self::Gpu(bytes) => (bytes / 50 * 49).checked_sub(weight_bytes).ok_or_else(|| {
                Error::failed(format!(
                    "the weights take {} and the GPU has {} free: a larger GPU is needed, or \
                     `device` cpu",
                    binary(weight_bytes),
                    binary(bytes)
                ))
            }),
        }
    }
}

impl Plan {
    /// Plans for the memory that there is.
    ///
    /// # Errors
    /// When the context asked for is longer than the model's or does not fit, or nothing fits; with the
    /// numbers and the longest context that would fit.
    pub fn new(
        config: &Config,
        dims: &Dims,
        weight_bytes: usize,
        request: PlanRequest,
        room: MemoryBudget,
    ) -> Result<Self> {
        let plan = |chunk| {
            Self::with_chunk(config, dims, weight_bytes, PlanRequest { chunk, ..request }, room)
        };
        let least = plan(request.chunk)?;
        let enough = least.sizes.context - least.sizes.context / 32;
        let halves = std::iter::successors(request.longest_chunk, |chunk| Some(chunk / 2));
        let longer = halves.take_while(|chunk| *chunk > request.chunk);
        let mut plans = longer.filter_map(|chunk| plan(chunk).ok());
        Ok(plans.find(|plan| plan.sizes.context >= enough).unwrap_or(least))
    }

    fn with_chunk(
        config: &Config,
        dims: &Dims,
        weight_bytes: usize,
        request: PlanRequest,
        room: MemoryBudget,
    ) -> Result<Self> {
        let budget = room.for_state(weight_bytes)?;
        let longest = request.context.unwrap_or(config.max_context);
        if longest > config.longest_context() {
            return Err(Error::failed(format!(
                "a context of {longest} tokens was asked for, and the model knows at most {}",
                config.longest_context()
            )));
        }
        let fits = |context: usize| state_bytes(dims, request.sizes(context), room) <= budget;
        let (context, limit) = if fits(longest) {
            (longest, if request.context.is_some() { Limit::Request } else { Limit::Model })
        } else {
            (longest_that(fits, longest), Limit::Memory)
        };
        if context == 0 || request.context.is_some_and(|asked| context < asked) {
            return Err(Error::failed(format!(
                "a context of {}{} needs {} of memory beside the weights, and {} can be had; {}",
                count(longest, "token"),
                if request.sequences > 1 {
                    format!(" for each of {} sequences", request.sequences)
                } else {
                    String::new()
                },
                binary(state_bytes(dims, request.sizes(longest), room)),
                binary(budget),
                match context {
                    0 => "not even one token fits".to_owned(),
                    _ => format!("`context` {context} would fit"),
                }
            )));
        }
        let sizes = request.sizes(context);
        let state_bytes = state_bytes(dims, sizes, room);
        let cache_bytes = request.sequences * context * cache_bytes_per_token(dims, request.cache);
        Ok(Self {
            sizes,
            weight_bytes,
            cache_bytes,
            activation_bytes: state_bytes.saturating_sub(cache_bytes),
            limit,
        })
    }
}

/// Bytes of KV cache that one token of context takes.
pub fn cache_bytes_per_token(dims: &Dims, cache: Float) -> usize {
    2 * dims.layers * dims.kv_heads * dims.head_dim * cache.bytes()
}

fn state_bytes(dims: &Dims, sizes: Sizes, room: MemoryBudget) -> usize {
    let mut layout = Layout::default();
    State::plan(dims, sizes, &mut layout);
    match room {
        MemoryBudget::Host(_) => layout.bytes().saturating_add(layout.scratch_bytes()),
        MemoryBudget::Gpu(_) => layout.bytes(),
    }
}

/// The largest number up to `most` that `fits`, which holds for all smaller ones too; 0 if none.
fn longest_that(fits: impl Fn(usize) -> bool, most: usize) -> usize {
    let (mut good, mut bad) = (0, most + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    good
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    /// An 8B in f16 on a GPU with so many bytes beside its weights.
    fn chunk_and_context(longest_chunk: Option<usize>, bytes: usize) -> (usize, usize) {
        let source = Source::find("synthetic:llama3-8b").unwrap();
        let config = Config::load(&source).unwrap();
        let dims = Dims::new(&config, 1).unwrap();
        let request = PlanRequest {
            longest_chunk,
            cache: Float::F16,
            activations: Float::Bf16,
            attention_blocks: 132,
            ..PlanRequest::default()
        };
        let weights = 16 << 30;
        let plan = Plan::new(&config, &dims, weights, request, MemoryBudget::Gpu(weights + bytes))
            .unwrap();
        (plan.sizes.chunk, plan.sizes.context)
    }

    #[test]
    fn a_prompts_steps_are_as_long_as_leaves_the_context_next_to_as_long() {
        assert_eq!(chunk_and_context(None, 20 << 30), (DEFAULT_CHUNK, 8192));
        assert_eq!(chunk_and_context(Some(2048), 20 << 30), (2048, 8192));
        assert_eq!(chunk_and_context(Some(256), 20 << 30).0, DEFAULT_CHUNK);
        // The less there is, the shorter, and the context is never much so.
        let mut chunks = Vec::new();
        for bytes in [1280, 1024, 896, 768, 640].map(|mib| mib << 20) {
            let (chunk, context) = chunk_and_context(Some(2048), bytes);
            let (_, longest) = chunk_and_context(None, bytes);
            assert!(
                context <= longest && context >= longest - longest / 32,
                "{context} of {longest}"
            );
            chunks.push(chunk);
        }
        assert!(chunks.is_sorted_by(|more, less| more >= less), "{chunks:?}");
        assert!(chunks.last() == Some(&DEFAULT_CHUNK), "{chunks:?}");
    }
}
