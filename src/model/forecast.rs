//! What a split model would take and how fast it would be on GPUs that are not here: a prediction, from
//! the bytes that must move and what the best have measured elsewhere.

use super::{Llama, Plan, Request, Room, State, Weights, decode};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::error::Result;
use crate::memory::Layout;

/// What the prediction assumes of each GPU and the links between them.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub name: &'static str,
    /// Bytes a second.
    pub memory_bandwidth: f64,
    /// Share of it that weights and cache are read at.
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
    /// Seconds a token: embedding, sampling, the way to the host.
    pub ends: f64,
}

/// The anchors: the targets of this project's kernels, and figures that others have published for
/// all-reduces of 8 to 64 KB on 8 GPUs: NCCL 17 to 20 us in a graph, one-shot over peer memory 4 to 8 us.
pub const H100: Machine = Machine {
    name: "H100 SXM",
    memory_bandwidth: 3.35e12,
    attained: 0.92,
    gap: 1e-6,
    attention: 5e-6,
    all_reduce: 5e-6,
    nccl: 18e-6,
    link_bandwidth: 450e9,
    ends: 50e-6,
};

/// One split of a model.
#[derive(Debug, Clone)]
pub struct Forecast {
    pub world: usize,
    /// Of the largest rank.
    pub weight_bytes: usize,
    pub cache_bytes_per_token: usize,
    /// The memory plan, or why there is none.
    pub plan: Result<Plan>,
    /// All-reduces of a token.
    pub all_reduces: usize,
    /// Bytes of a token that a rank sends.
    pub link_bytes: u64,
    /// Seconds a token at the first position by our all-reduce, by NCCL's, and at `DEPTH` by ours.
    pub seconds: [f64; 3],
}

/// Tokens of context for the figure that is not of an empty one.
pub const DEPTH: usize = 8192;

impl Forecast {
    /// Of `config` over `world` GPUs with so much memory each.
    ///
    /// # Errors
    /// A split that the model does not allow; tensors that do not suit it.
    pub fn new(
        config: &Config,
        checkpoint: &Checkpoint,
        world: usize,
        request: Request,
        memory_bytes: usize,
        machine: &Machine,
    ) -> Result<Self> {
        let dims = Dims::new(config, world)?.of_rank(world - 1);
        let weights = Weights::locate(checkpoint, &dims)?;
        let weight_bytes = weights.iter().map(|weight| weight.bytes()).sum();
        let plan = Plan::new(config, &dims, weight_bytes, request, Room::Gpu(memory_bytes));
        let sizes = super::plan::sizes(1, request);
        let state = State::plan(&dims, sizes, &mut Layout::default());
        let llama = Llama { dims, norm_eps: config.norm_eps, weights, state };
        let program = decode(&llama);
        let all_reduces = program.ops.iter().filter(|op| op.name() == "all_reduce").count();
        let seconds = |position: usize, all_reduce: f64| {
            let cost = program.cost(position);
            let read = (cost.weight_bytes + cost.cache_bytes) as f64;
            read / (machine.memory_bandwidth * machine.attained)
                + (program.ops.len() - all_reduces) as f64 * machine.gap
                + dims.layers as f64 * machine.attention
                + all_reduces as f64 * all_reduce
                + cost.link_bytes as f64 / machine.link_bandwidth
                + machine.ends
        };
        Ok(Self {
            world,
            weight_bytes,
            cache_bytes_per_token: super::cache_bytes_per_token(&dims, request.cache),
            plan,
            all_reduces,
            link_bytes: program.cost(0).link_bytes,
            seconds: [
                seconds(0, machine.all_reduce),
                seconds(0, machine.nccl),
                seconds(DEPTH, machine.all_reduce),
            ],
        })
    }
}
