//! The Llama: its weights in the checkpoint, its state in memory, its two programs.

mod label;
mod llama;
mod plan;
mod state;
mod weights;

pub use label::Label;
pub use llama::{Llama, Logits, choose, decode, prefill, step};
pub use plan::{DEFAULT_CHUNK, Limit, MemoryBudget, Plan, PlanRequest, cache_bytes_per_token};
pub use state::{DecodeState, LayerState, PrefillState, Sizes, State};
pub use weights::{Head, Layer, Weights, check_tie};
