//! Launches that were chosen by measurement. `chaski kernels bench --tune src/ops/tuned.rs` writes this
//! file; it keeps what other GPUs and models have here.

use super::MeasuredParts;

pub const TUNED: &[MeasuredParts] = &[];
