//! A rank: one share of a model, its memory, and what runs it.

mod checks;
mod peers;
mod timed;
mod turning;

use std::collections::HashMap;
use std::sync::Arc;

use crate::checkpoint::synthetic::Recipe;
use crate::checkpoint::{Checkpoint, Progress};
use crate::comm::{self, Communicator, SingleRank};
use crate::config::{Config, Dims, Shard};
use crate::error::{Error, Result};
use crate::executor::{Captured, Executor, Hardware};
use crate::memory::{Layout, Slot, Weight};
use crate::model::{self, LayerState, Llama, Logits, Plan, Sizes, Weights};
use crate::op::{Cost, Program};
use crate::ops::{self, Synthesize};
use crate::sampler::{IN_PROMPT, Outcome, SamplingOptions};
pub use checks::{check, check_room};
pub use timed::OpTime;
use turning::Turning;

/// A model that can take the next token, and choose it.
pub struct Rank {
    model: Llama,
    sizes: Sizes,
    /// One token, to its logits.
    decode: Captured,
    /// The choice of a token, and that token to its logits.
    step: Captured,
    choose: Program,
    /// Prefill programs by number of tokens and logits: full chunks recur.
    prefills: HashMap<(usize, Logits), Program>,
    /// Tokens in the KV cache: the next one's position.
    position: usize,
    turning: Turning,
    /// Whether the device takes the token chosen last already.
    is_ahead: bool,
    /// Goes last: NCCL waits for graphs that have calls of it to go.
    device: Executor,
}

impl Rank {
    /// The one rank of a model that is not split: see [`Self::of_several`].
    ///
    /// # Errors
    /// Tensors that do not suit the config; memory that the system refuses.
    pub fn new(
        config: &Config,
        dims: Dims,
        checkpoint: Checkpoint,
        plan: &Plan,
        hardware: &Hardware,
        loaded: Progress<'_>,
    ) -> Result<Self> {
        Self::of_several(
            config,
            dims,
            checkpoint,
            plan,
            hardware,
            Arc::new(SingleRank::default()),
            loaded,
        )
    }

    /// Lays out the state that `plan` describes, allocates it on `hardware` and brings the weights there;
    /// `loaded` is told of bytes of them that have been copied. `comm` leads to the other ranks, which
    /// must be told to do the same things.
    ///
    /// # Errors
    /// Tensors that do not suit the config; memory that the system refuses.
    pub fn of_several(
        config: &Config,
        dims: Dims,
        checkpoint: Checkpoint,
        plan: &Plan,
        hardware: &Hardware,
        comm: Arc<dyn Communicator>,
        loaded: Progress<'_>,
    ) -> Result<Self> {
        assert_eq!((dims.rank(), dims.world()), (comm.rank(), comm.world()));
        Self::on(config, dims, checkpoint, plan, |checkpoint, weights, layout| {
            Executor::of_rank(hardware, checkpoint, weights, layout, comm, loaded)
        })
    }

    /// As [`Self::of_several`], on what `device` makes of the weights, in the order of their use, and of the
    /// state.
    ///
    /// # Errors
    /// As [`Self::of_several`].
    pub fn on(
        config: &Config,
        dims: Dims,
        checkpoint: Checkpoint,
        plan: &Plan,
        device: impl FnOnce(Checkpoint, &[Weight], &Layout) -> Result<Executor>,
    ) -> Result<Self> {
        let weights = Weights::locate(&checkpoint, &dims)?;
        let matrices: Vec<_> = weights.matrices().collect();
        let (model, layout) = Llama::lay_out(config, dims, weights, plan.sizes);
        let initial = model.initial_state(config, &checkpoint)?;
        let mut device = device(checkpoint, &matrices, &layout)?;
        for (slot, bytes) in initial {
            device.write(slot, &bytes)?;
        }
        let state = &model.state;
        device.connect(state.sampling.slots, 0, state.sampling.addresses)?;
        peers::connect(&mut device, state)?;
        let mut choose = Program::default();
        choose.push(model::choose(&model));
        let mut rank = Self {
            sizes: plan.sizes,
            decode: Captured::new(model::decode(&model, 1)),
            step: Captured::new(model::step(&model)),
            choose,
            prefills: HashMap::new(),
            position: 0,
            turning: Turning::new(config.rope),
            is_ahead: false,
            device,
            model,
        };
        rank.prepare()?;
        Ok(rank)
    }

    /// Has the device ready for all that it may be given.
    fn prepare(&mut self) -> Result<()> {
        let Self { model, sizes, device, decode, step, choose, .. } = self;
        // Their kernels are the same for any number of tokens.
        let prefills = [(sizes.chunk, Logits::Last), (sizes.logits, Logits::All)]
            .map(|(tokens, logits)| model::prefill(model, tokens, logits));
        let mut programs: Vec<&Program> = prefills.iter().collect();
        if device.needs_hosts(choose) {
            return device.prepare(&programs, &mut [decode]);
        }
        programs.push(choose);
        device.prepare(&programs, &mut [decode, step])
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

    /// V, the whole model's.
    pub fn vocab(&self) -> usize {
        let Dims { whole_vocab, .. } = self.model.dims;
        whole_vocab
    }

    /// The model's share: where everything lies.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// What runs the model.
    pub fn device_mut(&mut self) -> &mut Executor {
        &mut self.device
    }

    /// What [`Self::decode`] must move and compute for a token at `position`.
    pub fn decode_cost(&self, position: usize) -> Cost {
        self.decode.program().cost(position)
    }

    /// What [`Self::forward`] of `tokens` tokens from `position` on must move and compute.
    pub fn cost(&self, tokens: usize, position: usize, logits: Logits) -> Cost {
        match tokens {
            1 => self.decode_cost(position),
            _ => model::prefill(&self.model, tokens, logits).cost(position),
        }
    }

    /// See [`Rope::fixed_up_to`](crate::config::Rope::fixed_up_to).
    pub fn fixed_up_to(&self) -> Option<usize> {
        self.turning.rope.fixed_up_to()
    }

    /// The text whose tokens follow is `tokens` long in all.
    pub fn expect(&mut self, tokens: usize) {
        self.turning.text = tokens;
    }

    /// What is queued from here on rotates as a text of `tokens` tokens does.
    fn turn(&mut self, tokens: usize) -> Result<()> {
        let Llama { dims, state, .. } = &self.model;
        let changed = self.turning.changed(dims.head_dim, tokens);
        changed.map_or(Ok(()), |changed| self.device.write(state.frequencies, &changed))
    }

    /// Forgets all tokens from `position` on.
    pub fn rewind(&mut self, position: usize) {
        assert!(position <= self.position, "rewind from {} to {position}", self.position);
        self.position = position;
    }

    /// Takes up to [`Self::chunk`] tokens at once.
    ///
    /// # Errors
    /// Ids outside the vocabulary; tokens past the context; a device that fails.
    pub fn forward(&mut self, ids: &[u32], logits: Logits) -> Result<()> {
        self.start(ids)?;
        assert!(!ids.is_empty() && ids.len() <= self.sizes.chunk, "a step of {} tokens", ids.len());
        if ids.len() == 1 {
            self.device.step(&mut self.decode)?;
        } else {
            let program = self
                .prefills
                .entry((ids.len(), logits))
                .or_insert_with(|| model::prefill(&self.model, ids.len(), logits));
            self.device.run(program)?;
        }
        self.position += ids.len();
        Ok(())
    }

    /// Waits until all tokens have been taken that were to be.
    ///
    /// # Errors
    /// A device that fails.
    pub fn finish(&mut self) -> Result<()> {
        self.device.finish()
    }

    /// Goes on as if `tokens` tokens had been taken, with random keys and values: for measurements at a
    /// depth that would take long to reach.
    ///
    /// # Errors
    /// Tokens past the context; a device that fails.
    pub fn pretend(&mut self, tokens: usize) -> Result<()> {
        self.check_room(tokens)?;
        let Dims { kv_heads, head_dim, .. } = self.model.dims;
        let mut program = Program::default();
        for (layer, LayerState { cache, .. }) in self.model.state.layers.iter().enumerate() {
            let bytes = tokens * kv_heads * head_dim * cache.dtype.bytes();
            for (part, slot) in [cache.keys, cache.values].into_iter().enumerate() {
                let recipe = Recipe::standard(cache.dtype, 0, (2 * layer + part) as u32);
                program.push(Synthesize::whole(recipe, slot.part(0, bytes)));
            }
        }
        self.device.run(&program)?;
        self.position = tokens;
        Ok(())
    }

    /// As [`Self::forward`]. Returns the logits asked for of this rank's tokens, `[_, V]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn prefill(&mut self, ids: &[u32], logits: Logits) -> Result<&[f32]> {
        self.forward(ids, logits)?;
        let scored = logits.of(ids.len());
        let logits = self.model.state.logits.part(0, scored * self.model.dims.vocab);
        self.device.read(logits)
    }

    /// As [`Self::prefill`], of all ranks' tokens; they must do it together. The first rank gets the logits,
    /// `[_, V]`, the others nothing.
    ///
    /// # Errors
    /// As [`Self::forward`], and a rank that fails.
    pub fn prefill_whole(&mut self, ids: &[u32], logits: Logits) -> Result<Vec<f32>> {
        let Dims { share, whole_vocab, .. } = self.model.dims;
        let mut own = self.prefill(ids, logits)?.to_vec();
        let rows = logits.of(ids.len());
        own.resize(rows * whole_vocab.div_ceil(share.parts), 0.0); // as long as the longest
        let comm = self.device.comm();
        let all = comm::gather_floats(comm, &own);
        comm.leave()?;
        if comm.rank() > 0 {
            return Ok(Vec::new());
        }
        let parts = all.rchunks(share.parts).next().unwrap_or_default(); // the last stage's
        let row = |row: usize| {
            parts.iter().enumerate().flat_map(move |(part, logits)| {
                let width = Shard { part, ..share }.of(whole_vocab).len();
                &logits[row * width..][..width]
            })
        };
        Ok((0..rows).flat_map(row).copied().collect())
    }

    /// Takes one token and returns the logits of the next, `[V]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.prefill(&[id], Logits::Last)
    }

    /// Sets how tokens are chosen from now on, and what has been said so far.
    ///
    /// # Errors
    /// Options without meaning; a device that fails.
    pub fn begin(&mut self, options: &SamplingOptions, prompt: &[u32]) -> Result<()> {
        options.validate(self.vocab())?;
        let (dims, sampling) = (&self.model.dims, self.model.state.sampling);
        let own = |id: u32| {
            let row = (id as usize).checked_sub(dims.first_id());
            row.filter(|row| *row < dims.vocab)
        };
        let mut counts = vec![0; dims.vocab];
        prompt.iter().filter_map(|id| own(*id)).for_each(|row| counts[row] |= IN_PROMPT);
        // The device adds to each logit at most once.
        let mut bias: Vec<(u32, f32)> = Vec::new();
        for (id, more) in &options.logit_bias {
            let Some(row) = own(*id).map(|row| row as u32) else { continue };
            match bias.iter_mut().find(|(known, _)| *known == row) {
                Some((_, bias)) => *bias += more,
                None => bias.push((row, *more)),
            }
        }
        let (bias_ids, biases): (Vec<u32>, Vec<f32>) = bias.into_iter().unzip();
        let SamplingOptions { temperature, top_p, min_p, .. } = *options;
        let SamplingOptions { repeat_penalty, presence_penalty, frequency_penalty, .. } = *options;
        let penalties = [repeat_penalty, presence_penalty, frequency_penalty];
        let device = &mut self.device;
        device.write(sampling.options, &[&[temperature, top_p, min_p], &penalties[..]].concat())?;
        device.write(sampling.top_k, &[u32::try_from(options.top_k).unwrap_or(0)])?;
        device.write(sampling.seed, &[options.seed])?;
        device.write(sampling.bias_count, &[bias_ids.len() as u32])?;
        device.write(sampling.bias_ids, &bias_ids)?;
        device.write(sampling.biases, &biases)?;
        device.write(sampling.counts, &counts)
    }

    /// Chooses the token that follows those taken, of the last of which the logits were asked for.
    ///
    /// # Errors
    /// Logits that are no numbers, or leave no choice; a device that fails.
    pub fn sample(&mut self) -> Result<u32> {
        self.choice()?.token()
    }

    /// Takes the token that was chosen last, and chooses the next.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn decode_step(&mut self) -> Result<u32> {
        self.next_choice()?.token()
    }

    /// As [`Self::sample`], whether there is such a token or not.
    ///
    /// # Errors
    /// A device or a rank that fails.
    pub fn choice(&mut self) -> Result<Outcome> {
        self.is_ahead = false;
        self.device.write(self.model.state.placement.positions, &[self.position as u32 - 1])?;
        self.device.clear(self.entry());
        self.device.run(&self.choose)?;
        self.chosen()
    }

    /// As [`Self::decode_step`], whether there is a next token or not.
    ///
    /// # Errors
    /// A device or a rank that fails.
    pub fn next_choice(&mut self) -> Result<Outcome> {
        assert!(self.position < self.sizes.context, "the context is full");
        if !std::mem::take(&mut self.is_ahead) {
            self.turn(self.position + 1)?;
            self.device.step(&mut self.decode)?;
        }
        self.position += 1;
        if !self.device.runs_beside() || self.device.needs_hosts(&self.choose) {
            return self.choice();
        }
        self.device.clear(self.entry());
        // The device knows the token when it has chosen it: it need not wait for the host to learn of it.
        if self.position < self.sizes.context {
            self.turn(self.position + 1)?;
            self.device.step(&mut self.step)?;
            self.is_ahead = true;
        } else {
            self.device.run(&self.choose)?;
        }
        self.chosen()
    }

    /// Where the device tells what it has chosen for `self.position`.
    fn entry(&self) -> Slot<u64> {
        self.model.state.ring.part(self.position % ops::RING, 1)
    }

    /// What is chosen for `self.position`, as soon as it is.
    fn chosen(&mut self) -> Result<Outcome> {
        let position = self.position;
        let outcome = self.device.watch(self.entry(), |entry| ops::outcome(entry, position))?;
        self.device.comm().leave()?;
        outcome.ok_or_else(|| Error::failed("the device has chosen no token: a kernel did not run"))
    }

    /// Checks the step's tokens and puts them where the programs read them.
    fn start(&mut self, ids: &[u32]) -> Result<()> {
        check(ids, self.vocab())?;
        self.check_room(self.position + ids.len())?;
        self.is_ahead = false;
        self.turn(self.position + ids.len())?;
        self.device.write(self.model.state.ids, ids)?;
        self.device.write(self.model.state.placement.positions, &[self.position as u32])
    }

    fn check_room(&self, tokens: usize) -> Result<()> {
        check_room(tokens, self.sizes.context)
    }
}
