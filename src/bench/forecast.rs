//! What a split model would take and how fast it would be on GPUs that are not here: a prediction, from
//! the bytes that must move and what the best have measured elsewhere.

use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::error::Result;
use crate::memory::Weight;
use crate::model::{
    Llama, MemoryBudget, Plan, PlanRequest, Weights, cache_bytes_per_token, decode,
};
use crate::op::{Cost, Program};

/// What the prediction assumes of each GPU and the links between them.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub name: &'static str,
    /// Bytes a second.
    pub memory_bandwidth: f64,
    /// Shard of it that weights and cache are read at.
    pub attained: f64,
    /// Seconds from one kernel of a graph to the next.
    pub gap: f64,
    /// Seconds that attention takes beyond its bytes, in each layer.
    pub attention: f64,
    /// Seconds of an all-reduce of one token by our own kernel, fused with what follows.
    pub all_reduce: f64,
    /// Seconds of the same by NCCL in a graph.
    pub nccl: f64,
    /// Bytes a second that a GPU sends to its peers.
    pub link_bandwidth: f64,
    /// Seconds that NCCL takes from a GPU to one of another machine, beyond the bytes.
    pub pass: f64,
    /// Bytes a second that a GPU sends to another machine.
    pub network_bandwidth: f64,
    /// Seconds a token: embedding, sampling, the way to the host.
    pub ends: f64,
}

/// The anchors: the targets of this project's kernels, and figures that others have published for
/// all-reduces of 8 to 64 KB on 8 GPUs: NCCL 17 to 20 us in a graph, one-shot over peer memory 4 to 8 us;
/// and for sending up to 8 KB from one machine to another, on A40 and without a graph: 31 to 34 us
/// (github.com/NVIDIA/nccl-tests, issue 214).
pub const H100: Machine = Machine {
    name: "H100 SXM",
    memory_bandwidth: 3.35e12,
    attained: 0.92,
    gap: 1e-6,
    attention: 5e-6,
    all_reduce: 5e-6,
    nccl: 18e-6,
    link_bandwidth: 450e9,
    pass: 32e-6,
    network_bandwidth: 50e9,
    ends: 50e-6,
};

/// One split of a model.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// Of layers, each on a machine of its own.
    pub stages: usize,
    /// Ranks of a stage.
    pub parts: usize,
    /// Of the largest rank.
    pub weight_bytes: usize,
    pub cache_bytes_per_token: usize,
    /// The memory plan, or why there is none.
    pub plan: Result<Plan>,
    /// All-reduces of a token.
    pub all_reduces: usize,
    /// Bytes of a token that a rank sends at most.
    pub link_bytes: u64,
    /// Seconds a token at the first position by our all-reduce, by NCCL's, and at `DEPTH` by ours.
    pub seconds: [f64; 3],
}

/// Tokens of context for the figure that is not of an empty one.
pub const DEPTH: usize = 8192;

impl Forecast {
    /// Of `config` over `world` GPUs in `stages`, with `memory_bytes` each.
    ///
    /// # Errors
    /// A split that the model does not allow; tensors that do not suit it.
    pub fn new(
        config: &Config,
        checkpoint: &Checkpoint,
        (world, stages): (usize, usize),
        (request, memory_bytes): (PlanRequest, usize),
        machine: &Machine,
    ) -> Result<Self> {
        let largest = Dims::in_stages(config, world, stages)?.of_rank(world - 1);
        let weights = Weights::locate(checkpoint, &largest)?;
        let weight_bytes = weights.matrices().map(Weight::bytes).sum();
        let plan =
            Plan::new(config, &largest, weight_bytes, request, MemoryBudget::Gpu(memory_bytes));
        let sizes = request.sizes(1);
        let parts = largest.share.parts;
        let program = |stage: usize| {
            let dims = largest.of_rank((stage + 1) * parts - 1);
            let weights = Weights::locate(checkpoint, &dims)?;
            Ok(decode(&Llama::lay_out(config, dims, weights, sizes).0, 1))
        };
        let programs = (0..stages).map(program).collect::<Result<Vec<_>>>()?;
        let seconds = |position: usize, all_reduce: f64| {
            let of_stage = |program| machine.seconds(program, position, all_reduce);
            // The token's way back to the first stage is as long as that of the stream to the next one.
            let passes = if stages > 1 { stages as f64 * machine.pass } else { 0.0 };
            let attention = config.layers as f64 * machine.attention;
            programs.iter().map(of_stage).sum::<f64>() + passes + attention + machine.ends
        };
        Ok(Self {
            stages,
            parts,
            weight_bytes,
            cache_bytes_per_token: cache_bytes_per_token(&largest, request.cache),
            plan,
            all_reduces: programs.iter().flat_map(|program| of(program, "all_reduce")).count(),
            link_bytes: programs
                .iter()
                .map(|program| program.cost(0).link_bytes)
                .max()
                .unwrap_or(0),
            seconds: [
                seconds(0, machine.all_reduce),
                seconds(0, machine.nccl),
                seconds(DEPTH, machine.all_reduce),
            ],
        })
    }
}

/// The costs of all ops of this name.
fn of(program: &Program, name: &'static str) -> impl Iterator<Item = Cost> {
    program.ops.iter().filter(move |op| op.name() == name).map(|op| op.cost(0))
}

impl Machine {
    /// Of a token in one stage, without what is the same for all splits.
    fn seconds(&self, program: &Program, position: usize, all_reduce: f64) -> f64 {
        let cost = program.cost(position);
        let bytes = |name| of(program, name).map(|cost| cost.link_bytes as f64).sum::<f64>();
        let all_reduces = of(program, "all_reduce").count();
        let passes = of(program, "send").count() + of(program, "receive").count();
        (cost.weight_bytes + cost.cache_bytes) as f64 / (self.memory_bandwidth * self.attained)
            + (program.ops.len() - all_reduces - passes) as f64 * self.gap
            + all_reduces as f64 * all_reduce
            + bytes("all_reduce") / self.link_bandwidth
            + bytes("send") / self.network_bandwidth
    }
}
