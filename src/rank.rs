//! A rank: one share of a model, its memory, and what runs it.

use std::collections::HashMap;

use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::device::Cpu;
use crate::error::{Error, Result};
use crate::memory::Layout;
use crate::model::{self, Llama, Logits, Plan, Sizes, State, Weights};
use crate::op::{Cost, Program};

/// A model that can take the next token.
pub struct Rank {
    model: Llama,
    sizes: Sizes,
    cpu: Cpu,
    decode: Program,
    /// Prefill programs by number of tokens and logits: full chunks recur.
    prefills: HashMap<(usize, Logits), Program>,
    /// Tokens in the KV cache: the next one's position.
    position: usize,
}

impl Rank {
    /// Lays out the state that `plan` describes and allocates it.
    ///
    /// # Errors
    /// Tensors that do not suit the config; memory that the system refuses.
    pub fn new(config: &Config, dims: Dims, checkpoint: Checkpoint, plan: &Plan) -> Result<Self> {
        let weights = Weights::locate(&checkpoint, &dims)?;
        let mut layout = Layout::default();
        let state = State::plan(&dims, plan.sizes, &mut layout);
        let mut cpu = Cpu::new(checkpoint, &layout)?;
        cpu.write(state.frequencies, &config.rope.frequencies(config.head_dim));
        let model = Llama { dims, norm_eps: config.norm_eps, weights, state };
        let decode = model::decode(&model);
        Ok(Self { model, sizes: plan.sizes, cpu, decode, prefills: HashMap::new(), position: 0 })
    }

    /// Tokens in the KV cache.
    pub fn position(&self) -> usize {
        self.position
    }

    /// S: tokens the KV cache can hold.
    pub fn context(&self) -> usize {
        self.sizes.context
    }

    /// Tokens that one [`Self::prefill`] takes at most.
    pub fn chunk(&self) -> usize {
        self.sizes.chunk
    }

    pub fn vocab(&self) -> usize {
        self.model.dims.vocab
    }

    /// What [`Self::decode`] must move and compute for a token at `position`.
    pub fn decode_cost(&self, position: usize) -> Cost {
        self.decode.cost(position)
    }

    /// Forgets all tokens from `position` on.
    pub fn rewind(&mut self, position: usize) {
        assert!(position <= self.position, "rewind from {} to {position}", self.position);
        self.position = position;
    }

    /// Takes up to [`Self::chunk`] tokens at once. Returns the logits asked for, `[_, V]`.
    ///
    /// # Errors
    /// Ids outside the vocabulary; tokens past the context.
    pub fn prefill(&mut self, ids: &[u32], logits: Logits) -> Result<&mut [f32]> {
        self.start(ids)?;
        assert!(!ids.is_empty() && ids.len() <= self.sizes.chunk, "a step of {} tokens", ids.len());
        let program = self
            .prefills
            .entry((ids.len(), logits))
            .or_insert_with(|| model::prefill(&self.model, ids.len(), logits));
        self.cpu.run(program);
        self.position += ids.len();
        let scored = match logits {
            Logits::None => 0,
            Logits::Last => 1,
            Logits::All => ids.len(),
        };
        Ok(self.logits(scored))
    }

    /// Takes one token and returns the logits of the next, `[V]`.
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn decode(&mut self, id: u32) -> Result<&mut [f32]> {
        self.start(&[id])?;
        self.cpu.run(&self.decode);
        self.position += 1;
        Ok(self.logits(1))
    }

    /// Checks the step's tokens and puts them where the programs read them.
    fn start(&mut self, ids: &[u32]) -> Result<()> {
        let vocab = self.model.dims.vocab;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::failed(format!(
                "token id {id} is outside the model's vocabulary of {vocab}"
            )));
        }
        let (end, context) = (self.position + ids.len(), self.sizes.context);
        if end > context {
            return Err(Error::failed(format!(
                "{end} tokens do not fit the context of {context}; shorten the prompt or raise --context"
            )));
        }
        self.cpu.write(self.model.state.ids, ids);
        self.cpu.write(self.model.state.cursor, &[self.position as u32]);
        Ok(())
    }

    fn logits(&mut self, scored: usize) -> &mut [f32] {
        let logits = self.model.state.logits.part(0, scored * self.model.dims.vocab);
        self.cpu.read_mut(logits)
    }
}
