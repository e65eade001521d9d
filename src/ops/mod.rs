//! One file an op: its meaning in plain Rust, and what it must move and compute.
//!
//! Simple ops come first. A fused op's reference is the chain of simple ops that it replaces.

mod attend;
mod embed;
mod matmul;
mod rms_norm;
mod rope_append;
mod swiglu;
// Fused, for decode.
mod norm_gate_up;
mod norm_head;
mod norm_qkv;

pub use attend::Attend;
pub use embed::Embed;
pub use matmul::Matmul;
pub use norm_gate_up::NormGateUp;
pub use norm_head::NormHead;
pub use norm_qkv::NormQkv;
pub use rms_norm::RmsNorm;
pub use rope_append::{Cache, RopeAppend};
pub use swiglu::Swiglu;
