//! One file an op: its meaning in plain Rust, what it must move and compute, and its kernel's launch.
//!
//! Simple ops come first. A fused op's reference is the chain of simple ops that it replaces.

mod all_reduce;
mod attend_prefill;
mod attend_prefill_hopper;
mod embed;
mod gate_up_swiglu;
mod gate_up_swiglu_hopper;
mod matmul;
mod matmul_hopper;
mod rms_norm;
mod rope_append;
mod send_recv;
// For one token.
mod attend_decode;
mod gemv;
mod norm_gate_up;
mod norm_head;
mod norm_qkv;
mod project;
mod sample;
mod tuned;
// Not of the model: random weights, and the measured peaks.
mod mma_peak;
mod read_all;
mod synthesize;
mod tiles;

use crate::case::Case;
use crate::encoding::Encoding;
use crate::kernel::{Arguments, Kernel, Launch};

pub use all_reduce::{AllReduce, EMPTY, Mailbox};
pub use attend_decode::{AttendDecode, AttendScratch};
pub use attend_prefill::AttendPrefill;
pub use attend_prefill_hopper::AttendPrefillHopper;
pub use embed::Embed;
pub use gate_up_swiglu::GateUpSwiglu;
pub use gate_up_swiglu_hopper::GateUpSwigluHopper;
pub use gemv::{MeasuredParts, PARTS, gemv_shared_bytes};
pub use matmul::Matmul;
pub use matmul_hopper::MatmulHopper;
pub use mma_peak::MmaPeak;
pub use norm_gate_up::NormGateUp;
pub use norm_head::NormHead;
pub use norm_qkv::NormQkv;
pub use project::Project;
pub use read_all::ReadAll;
pub use rms_norm::RmsNorm;
pub use rope_append::{Cache, RopeAppend};
pub use sample::{MOST_TOKENS, RING, Sample, Sampling, outcome};
pub use send_recv::SendRecv;
pub use synthesize::Synthesize;
pub use tuned::TUNED;

macro_rules! sealed {
    ($($op:ty),* $(,)?) => { $(impl crate::op::Sealed for $op {})* };
}

sealed!(
    AllReduce,
    AttendDecode,
    AttendPrefill,
    AttendPrefillHopper,
    Embed,
    GateUpSwiglu,
    GateUpSwigluHopper,
    MmaPeak,
    NormGateUp,
    NormHead,
    NormQkv,
    SendRecv,
    Project,
    ReadAll,
    RmsNorm,
    RopeAppend,
    Sample,
    Synthesize,
);

impl<const N: usize> crate::op::Sealed for Matmul<N> {}
impl<const N: usize> crate::op::Sealed for MatmulHopper<N> {}

/// Lists the cases of an op.
pub type MakeCases = fn() -> Vec<Case>;

/// Every op and the cases that it is tested and measured with.
pub const CASES: [(&str, MakeCases); 19] = [
    ("all_reduce", AllReduce::cases),
    ("attend_decode", AttendDecode::cases),
    ("attend_prefill", AttendPrefill::cases),
    ("attend_prefill_hopper", AttendPrefillHopper::cases),
    ("embed", Embed::cases),
    ("gate_up_swiglu", GateUpSwiglu::cases),
    ("gate_up_swiglu_hopper", GateUpSwigluHopper::cases),
    ("matmul", Matmul::cases),
    ("matmul_hopper", MatmulHopper::cases),
    ("mma_peak", MmaPeak::cases),
    ("norm_gate_up", NormGateUp::cases),
    ("norm_head", NormHead::cases),
    ("norm_qkv", NormQkv::cases),
    ("project", Project::cases),
    ("read_all", ReadAll::cases),
    ("rms_norm", RmsNorm::cases),
    ("rope_append", RopeAppend::cases),
    ("sample", Sample::cases),
    ("synthesize", Synthesize::cases),
];

/// A launch of the function of `kernel` that is made for a type of weights and a width of head, where
/// it is made for one. `grid`: blocks, x and y
fn launch(
    kernel: &'static Kernel,
    (weights, head_dim): (impl Into<Encoding>, usize),
    [x, y]: [u32; 2],
    shared_bytes: u32,
    arguments: Arguments,
) -> Launch {
    let weights = weights.into();
    let Some(export) = kernel.export(weights, head_dim) else {
        panic!("kernel {} is not made for {} and heads of {head_dim}", kernel.name, weights.name());
    };
    let (grid, block) = ([x, y, 1], export.threads);
    Launch { export, grid, block, shared_bytes, arguments, together: false }
}

/// A size as kernels take it; sizes past 2^32 do not fit any device.
fn size(size: usize) -> u32 {
    u32::try_from(size).expect("sizes of one step are below 2^32")
}

/// Blocks for `items` of work of which a block takes one after the other: no more than run at once.
fn blocks(items: usize, most: u32) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX).clamp(1, most)
}
