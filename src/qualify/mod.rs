//! Whether a GPU computes what kernels mean, found out before a model runs on it: what is checked, what
//! came of it, and what the GPU is then given to run.

mod check;
mod dialogue;
mod needs;
mod record;
mod standing;
mod tune;

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

pub use check::{Phase, perform};
pub use dialogue::{Dialogue, Reply};
pub use needs::{all, of_model};
pub use record::{Identity, PeerVerdict, Record};
pub use standing::{Standing, code, go_through};
pub use tune::{Clock, Lengths, Tuned, depths, flows, host_clock, tiles, tune};

use crate::encoding::{Encoding, Float};
use crate::kernel::{KERNELS, Kernel};

/// One thing to find out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The function of this name is held to its op's reference.
    Kernel(String),
    /// A small model in CUDA graphs against the same, kernel by kernel.
    Graphs(Small),
    /// The same with kernels that begin before the one before has ended.
    Programmatic(Small),
    /// What is the fastest of what changes no bit of a small model.
    Tuning(Small),
}

/// What decides which kernels a small model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Small {
    /// The weights are f16; else bf16.
    pub f16: bool,
    /// D
    pub head_dim: usize,
}

impl Small {
    pub fn of(weights: Encoding, head_dim: usize) -> Self {
        Self { f16: weights == Float::F16.into(), head_dim }
    }

    pub fn dtype(self) -> Float {
        if self.f16 { Float::F16 } else { Float::Bf16 }
    }
}

impl Display for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a small model in {}, heads of {}", self.dtype().name(), self.head_dim)
    }
}

impl Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, small) = match self {
            Self::Kernel(export) => return f.write_str(export),
            Self::Graphs(small) => ("graphs", small),
            Self::Programmatic(small) => ("programmatic launch", small),
            Self::Tuning(small) => ("tuning", small),
        };
        write!(f, "{what} ({}, heads of {})", small.dtype().name(), small.head_dim)
    }
}

/// A check to perform.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckOrder {
    pub check: Check,
    pub thorough: bool,
    /// Kernels that are not used.
    pub without: Vec<String>,
    /// Whether CUDA graphs are used, and kernels begin early.
    pub graphs: bool,
    pub programmatic: bool,
}

/// What came of a check.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    pub check: Check,
    /// Of the machine code that it is about.
    pub code: String,
    pub thorough: bool,
    #[serde(flatten)]
    pub found: Found,
}

/// What performing a check came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    pub cases: usize,
    pub seconds: f64,
    pub wrong: Option<Wrong>,
    /// What was chosen, where the check was to choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Tuned>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// Types and sizes, in words.
    pub case: String,
    /// Where, and how far off; or how it failed.
    pub how: String,
}

impl Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.how)
    }
}

/// The kernel that has a function of this name.
pub fn kernel_of(export: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.exports.iter().any(|each| each.name == export))
}
