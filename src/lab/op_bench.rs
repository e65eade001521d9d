//! A model's ops, one kind at a time: at the sizes that a step has, and from memory rather than from
//! caches.

use std::collections::BTreeMap;
use std::time::Instant;

use super::products::products;
use crate::checkpoint::synthetic::Recipe;
use crate::checkpoint::{Checkpoint, Progress};
use crate::config::{Config, Dims};
use crate::encoding::Float;
use crate::error::Result;
use crate::executor::cuda::Product;
use crate::executor::{Blueprint, Captured, Executor, Hardware};
use crate::kernel::Launch;
use crate::memory::{Activation, Slot};
use crate::model::{self, Llama, Logits, PrefillState, Sizes, Weights};
use crate::op::{Cost, Op, Program, Target};
use crate::ops::Synthesize;
use crate::random::random_ids;
use crate::vector::widened;

/// What takes turns is together this many times as large as the cache between the memory and what
/// computes, where the model has as much.
pub const ROTATION: usize = 4;
/// Layers' caches of keys and values that take turns at most.
const MOST_CACHES: usize = 128;
/// Numbers that [`Synthesize`] makes at once are of this many bytes.
const PIECE_BYTES: usize = 16;

/// The steps whose ops are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchStep {
    /// One token, after `depth` others.
    Decode { depth: usize },
    /// The first `tokens` of a prompt.
    Prefill { tokens: usize },
}

impl BenchStep {
    /// As `chaski bench --profile` calls it.
    pub fn name(self) -> String {
        match self {
            Self::Decode { depth: 0 } => "decode".to_owned(),
            Self::Decode { depth } => format!("decode@d{depth}"),
            Self::Prefill { tokens } => format!("prefill{tokens}"),
        }
    }

    /// Position of its first token.
    fn position(self) -> usize {
        match self {
            Self::Decode { depth } => depth,
            Self::Prefill { .. } => 0,
        }
    }

    /// Tokens that the cache holds after it.
    pub fn end(self) -> usize {
        match self {
            Self::Decode { depth } => depth + 1,
            Self::Prefill { tokens } => tokens,
        }
    }

    fn program(self, model: &Llama) -> Program {
        match self {
            Self::Prefill { tokens } => model::prefill(model, tokens, Logits::Last),
            Self::Decode { .. } => {
                let mut program = model::decode(model, 1);
                program.push(model::choose(model));
                program
            }
        }
    }
}

/// The kernels of these steps, and whether each of them is of plain products, as cuBLASLt has them. Nothing
/// is loaded.
///
/// # Errors
/// Tensors that do not suit the config.
pub fn kernels_of(
    config: &Config,
    checkpoint: &Checkpoint,
    sizes: Sizes,
    phases: &[BenchStep],
) -> Result<BTreeMap<&'static str, bool>> {
    let dims = Dims::new(config, 1)?;
    let (model, _) = Llama::lay_out(config, dims, Weights::locate(checkpoint, &dims)?, sizes);
    let ops = phases.iter().flat_map(|phase| phase.program(&model).ops);
    Ok(ops.map(|op| (op.name(), !products(&*op).is_empty())).collect())
}

/// The ops of one name and size in a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub phase: BenchStep,
    /// Name of the op and of its kernel.
    pub kernel: &'static str,
    /// The numbers that the kernel is launched with; empty on the CPU.
    pub shape: String,
    /// Of each.
    pub cost: Cost,
    /// In a step of the layers that are loaded.
    pub count: usize,
    /// How many take turns, with weights or cache of their own each.
    pub instances: usize,
}

impl Group {
    /// Bytes that a run must read.
    pub fn bytes(&self) -> u64 {
        self.cost.weight_bytes + self.cost.cache_bytes
    }

    /// Bytes that are read until one is read again.
    pub fn rotation_bytes(&self) -> u64 {
        self.bytes() * self.instances as u64
    }
}

/// What a run has left, by name; and the tokens.
pub struct RunResult {
    pub numbers: Vec<(String, Vec<f32>)>,
    pub ids: Vec<u32>,
}

/// A model laid out for its ops to be run again and again.
pub struct OpBench {
    /// Goes first: it waits for what uses the rest.
    device: Executor,
    hardware: Hardware,
    /// With more layers than are loaded: caches of their own, and weights that recur.
    model: Llama,
    loaded_layers: usize,
    /// Of the cache that is to be missed.
    pub cache_bytes: usize,
}

impl OpBench {
    /// Loads the model's weights, and fills its state with random numbers.
    ///
    /// # Errors
    /// Tensors that do not suit the config; memory that there is not; a device that fails.
    pub fn new(
        config: &Config,
        checkpoint: Checkpoint,
        hardware: Hardware,
        sizes: Sizes,
        (depth, cache_bytes): (usize, usize),
        on_progress: Progress<'_>,
    ) -> Result<Self> {
        let mut dims = Dims::new(config, 1)?;
        let mut weights = Weights::locate(&checkpoint, &dims)?;
        let matrices: Vec<_> = weights.matrices().collect();
        let loaded_layers = dims.layers;
        let of_layer = 2 * depth.max(1) * dims.kv_heads * dims.head_dim * sizes.cache.bytes();
        let caches = (ROTATION * cache_bytes).div_ceil(of_layer).min(MOST_CACHES);
        dims.layers = caches.max(loaded_layers);
        weights.layers = weights.layers.iter().copied().cycle().take(dims.layers).collect();
        let (model, layout) = Llama::lay_out(config, dims, weights, sizes);
        let initial = model.initial_state(config, &checkpoint)?;
        let blueprint = Blueprint::new(checkpoint, &matrices, &layout);
        let device = Executor::new(&hardware, Blueprint { on_progress, ..blueprint })?;
        let mut bed = Self { device, hardware, model, loaded_layers, cache_bytes };
        bed.fill(initial, layout.whole())?;
        Ok(bed)
    }

    /// Numbers of about 1 wherever ops read numbers, and the initial state; zeros elsewhere.
    fn fill(&mut self, initial: Vec<(Slot<u8>, Vec<u8>)>, whole: Slot<u8>) -> Result<()> {
        let before_caches = self.model.state.layers[0].cache.keys.offset();
        self.device.write(whole, &vec![0; before_caches])?;
        self.make_numbers(0)?;
        for (slot, bytes) in initial {
            self.device.write(slot, &bytes)?;
        }
        let (state, device) = (&self.model.state, &mut self.device);
        device.write(state.ids, &random_ids(0, state.ids.len(), self.model.dims.vocab))?;
        // Temperature, top-p, min-p and three penalties, of which the first is a factor.
        device.write(state.sampling.options, &[0.6, 0.9, 0.0, 1.0, 0.0, 0.0])
    }

    /// Numbers of about 1 wherever ops read numbers.
    fn make_numbers(&mut self, seed: u64) -> Result<()> {
        let state = &self.model.state;
        let mut program = Program::default();
        for (tensor, (_, numbers)) in (0..).zip(state.numbers()) {
            // Two numbers of bf16 side by side are one of f32, of about the second's value.
            let dtype = if numbers.dtype == Float::F16 { Float::F16 } else { Float::Bf16 };
            let whole_pieces = numbers.bytes.len() / PIECE_BYTES * PIECE_BYTES;
            let out = numbers.bytes.part(0, whole_pieces);
            if !out.is_empty() {
                program.push(Synthesize::whole(Recipe::standard(dtype, seed, tensor), out));
            }
        }
        self.device.run(&program)
    }

    /// Other numbers than those that ops are timed on, and other tokens.
    pub(super) fn refill(&mut self) -> Result<()> {
        self.make_numbers(1)?;
        let Self { model: Llama { state, dims, .. }, device, .. } = self;
        device.write(state.ids, &random_ids(1, state.ids.len(), dims.vocab))
    }

    /// What ops of `phase` can have left for others, by name, and the tokens.
    pub(super) fn left(&mut self, phase: BenchStep) -> Result<RunResult> {
        let Self { model: Llama { state, dims, .. }, device, .. } = self;
        let position = dims.kv_heads * dims.head_dim * state.layers[0].cache.dtype.bytes();
        let mut all = Vec::new();
        for (name, mut numbers) in state.numbers() {
            if name.starts_with("keys") || name.starts_with("values") {
                // What lies before is only read.
                let (from, to) = (phase.position() * position, phase.end() * position);
                numbers.bytes = numbers.bytes.part(from, to - from);
            }
            let wide = widened(numbers, device.read(numbers.bytes)?).into_owned();
            all.push((name, wide));
        }
        Ok(RunResult { numbers: all, ids: device.read(state.ids)?.to_vec() })
    }

    /// The ops of a step by name and size, in their order.
    pub fn groups(&self, phase: BenchStep) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for op in phase.program(&self.model).ops {
            let group = self.group(phase, &*op);
            let same = |known: &&mut Group| Group { count: 0, ..(*known).clone() } == group;
            match groups.iter_mut().find(same) {
                Some(known) => known.count += 1,
                None => groups.push(Group { count: 1, ..group }),
            }
        }
        for group in &mut groups {
            let layers = self.model.dims.layers;
            // What recurs in every layer; the rest is there once.
            if group.count >= layers {
                group.count = group.count / layers * self.loaded_layers;
                let all = match group.cost.cache_bytes {
                    0 => group.count,
                    _ => layers,
                };
                let enough = (ROTATION * self.cache_bytes).div_ceil(group.bytes().max(1) as usize);
                group.instances = enough.clamp(1, all);
            }
        }
        groups
    }

    /// The group of an op, without what is known of it only when all of a step's are.
    fn group(&self, phase: BenchStep, op: &dyn Op) -> Group {
        let shape = self.target().map_or(String::new(), |target| shape(&op.launch(&target)));
        let cost = op.cost(phase.position());
        Group { phase, kernel: op.name(), shape, cost, count: 0, instances: 1 }
    }

    /// The ops of `group` that take turns, `rounds` times.
    pub(super) fn program(&self, group: &Group, rounds: usize) -> Program {
        let mut program = Program::default();
        let reference = Group { count: 0, instances: 1, ..group.clone() };
        for _ in 0..rounds {
            let ops = group.phase.program(&self.model).ops;
            let ops = ops.into_iter().filter(|op| self.group(group.phase, &**op) == reference);
            program.ops.extend(ops.take(group.instances));
        }
        program
    }

    /// What cuBLASLt does in place of the ops of [`Self::program`]; nothing, if it has nothing like them.
    pub(super) fn products(&self, group: &Group, rounds: usize) -> Vec<Product> {
        let PrefillState { normed, attended, hidden, .. } = self.model.state.prefill;
        let ops = self.program(group, rounds).ops;
        let found = ops.iter().flat_map(|op| products(&**op)).filter_map(|product| {
            let width = product.weight.cols;
            // In place of f32 numbers, as many of 16 bits that are there anyway.
            let others = [normed, attended, hidden].into_iter();
            let other = others.map(Activation::rounded).find(|numbers| numbers.len() >= width)?;
            Some(Product { x: product.x.or(Some(other.first(width))), ..product })
        });
        found.collect()
    }

    /// Whether cuBLASLt can be compared with.
    pub fn has_products(&self, group: &Group) -> bool {
        !self.products(&Group { instances: 1, ..group.clone() }, 1).is_empty()
    }

    pub(super) fn device_mut(&mut self) -> &mut Executor {
        &mut self.device
    }

    /// Seconds that the recording takes once, for ops of `phase`.
    pub(super) fn time(&mut self, phase: BenchStep, recording: &mut Captured) -> Result<f64> {
        // Sampling moves it.
        self.device.write(self.model.state.placement.positions, &[phase.position() as u32])?;
        let start = Instant::now();
        self.device.step(recording)?;
        self.device.finish()?;
        Ok(start.elapsed().as_secs_f64())
    }

    pub fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    pub(super) fn target(&self) -> Option<Target> {
        match &self.device {
            Executor::Cpu(_) => None,
            Executor::Cuda(cuda) => Some(cuda.target()),
        }
    }
}

/// The whole numbers that it is launched with: `tokens 512, rows 4096`.
fn shape(launch: &Launch) -> String {
    launch.numbers().map(|(name, number)| format!("{name} {number}")).collect::<Vec<_>>().join(", ")
}
