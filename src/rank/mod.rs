//! A rank: one share of a model, its memory, and what runs it.

mod checks;
mod choice;
mod peers;
mod sequence;
mod timed;
mod turning;

use std::collections::HashMap;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::synthetic::Recipe;
use crate::comm;
use crate::config::{Config, Dims, Shard};
use crate::error::Result;
use crate::executor::{Blueprint, Captured, Executor};
use crate::model::{self, LayerState, Llama, Logits, Plan, Sizes, Weights};
use crate::op::{Cost, Placement, Program};
use crate::ops::Synthesize;
pub use checks::{check, check_room};
pub use sequence::Sequence;
pub use timed::OpTime;
use turning::Turning;

/// A rank's shard of a model, and how much memory it is planned to take.
#[derive(Clone)]
pub struct RankSpec<'a> {
    pub config: &'a Config,
    pub dims: Dims,
    pub checkpoint: Checkpoint,
    pub plan: &'a Plan,
}

/// A shard of a model that can take tokens of a [`Sequence`], and choose the next one. It is told where the
/// sequence stands; who tells it moves on.
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
    turning: Turning,
    /// Whether the device takes the token chosen last already.
    is_ahead: bool,
    /// Goes last: NCCL waits for graphs that have calls of it to go.
    device: Executor,
}

impl Rank {
    /// Lays out the state that the plan describes, on what `device` makes of that and of the weights in the
    /// order of their use.
    ///
    /// # Errors
    /// Tensors that do not suit the config; memory that the system refuses.
    pub fn new(
        spec: RankSpec<'_>,
        device: impl FnOnce(Blueprint<'_>) -> Result<Executor>,
    ) -> Result<Self> {
        let RankSpec { config, dims, checkpoint, plan } = spec;
        let weights = Weights::locate(&checkpoint, &dims)?;
        let matrices: Vec<_> = weights.matrices().collect();
        let (model, layout) = Llama::lay_out(config, dims, weights, plan.sizes);
        let initial = model.initial_state(config, &checkpoint)?;
        let mut device = device(Blueprint::new(checkpoint, &matrices, &layout))?;
        let comm = device.comm();
        assert_eq!((dims.rank(), dims.world()), (comm.rank(), comm.world()));
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
            turning: Turning::new(config.rope.clone()),
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

    /// S: tokens the KV cache can hold.
    pub fn context(&self) -> usize {
        self.sizes.context
    }

    /// B: sequences whose tokens the KV cache holds side by side.
    pub fn sequences(&self) -> usize {
        self.sizes.sequences
    }

    /// Tokens that one [`Self::prefill`] takes at most.
    pub fn chunk(&self) -> usize {
        self.sizes.chunk
    }

    /// Positions of a step whose logits are kept at most.
    pub fn scored(&self) -> usize {
        self.sizes.logits
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

    /// What is queued from here on rotates as a text of `tokens` tokens does.
    fn turn(&mut self, tokens: usize) -> Result<()> {
        let Llama { dims, state, .. } = &self.model;
        let changed = self.turning.changed(dims.head_dim, tokens);
        changed.map_or(Ok(()), |changed| self.device.write(state.frequencies, &changed))
    }

    /// Takes up to [`Self::chunk`] tokens of `sequence` at once.
    ///
    /// # Errors
    /// Ids outside the vocabulary; tokens past the context; a device that fails.
    pub fn forward(&mut self, sequence: &Sequence, ids: &[u32], logits: Logits) -> Result<()> {
        self.start(sequence, ids)?;
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
        Ok(())
    }

    /// Waits until all tokens have been taken that were to be.
    ///
    /// # Errors
    /// A device that fails.
    pub fn finish(&mut self) -> Result<()> {
        self.device.finish()
    }

    /// Fills the cache as if `tokens` tokens had been taken, with random keys and values: for measurements
    /// at a depth that would take long to reach.
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
        self.device.run(&program)
    }

    /// As [`Self::forward`]. Returns the logits asked for of this rank's tokens, `[_, V]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn prefill(&mut self, sequence: &Sequence, ids: &[u32], logits: Logits) -> Result<&[f32]> {
        self.forward(sequence, ids, logits)?;
        let scored = logits.of(ids.len());
        let logits = self.model.state.logits.part(0, scored * self.model.dims.vocab);
        self.device.read(logits)
    }

    /// As [`Self::prefill`], of all ranks' tokens; they must do it together. The first rank gets the logits,
    /// `[_, V]`, the others nothing.
    ///
    /// # Errors
    /// As [`Self::forward`], and a rank that fails.
    pub fn prefill_whole(
        &mut self,
        sequence: &Sequence,
        ids: &[u32],
        logits: Logits,
    ) -> Result<Vec<f32>> {
        let Dims { share, whole_vocab, .. } = self.model.dims;
        let mut own = self.prefill(sequence, ids, logits)?.to_vec();
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

    /// Checks the step's tokens and puts them where the programs read them.
    fn start(&mut self, sequence: &Sequence, ids: &[u32]) -> Result<()> {
        let end = sequence.position + ids.len();
        check(ids, self.vocab())?;
        self.check_room(end)?;
        self.is_ahead = false;
        self.turn(end.max(sequence.text))?;
        let Placement { positions, sequences } = self.model.state.placement;
        self.device.write(self.model.state.ids, ids)?;
        self.device.write(sequences, &[sequence.place as u32])?;
        self.device.write(positions, &[sequence.position as u32])
    }

    fn check_room(&self, tokens: usize) -> Result<()> {
        check_room(tokens, self.sizes.context)
    }
}
