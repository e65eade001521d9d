//! What can be chosen about the CUDA executor.

use std::path::Path;
use std::sync::OnceLock;

use crate::kernel::KernelSet;
use crate::op::Tuning;

/// How work is given to the GPU. None of it changes a bit of the results but the choice of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchOptions {
    /// Recorded programs are replayed as CUDA graphs.
    pub graphs: bool,
    /// Kernels may begin before the one before has ended, where the GPU can do that.
    pub programmatic: bool,
    /// Every kernel is waited for, so that an error names the right one.
    pub synchronous: bool,
    /// Which kernels it runs, where several mean the same.
    pub kernels: KernelSet,
    pub tuning: Tuning,
    pub peers: Peers,
    /// The driver is asked about a graph that was just launched: Windows' own (WSL2) may keep what is
    /// queued until somebody asks.
    pub asks: bool,
}

/// What is known of the memory of the GPUs that ranks of a stage are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// Nothing: it is tried before ranks rely on it.
    Untried,
    /// It was tried, and works.
    Work,
    /// It was tried, and what is stored does not arrive.
    Broken,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        let (kernels, tuning) = (KernelSet::ALL, Tuning::DEFAULT);
        let (peers, asks) = (Peers::Untried, is_below_windows());
        Self { graphs: true, programmatic: true, synchronous: false, kernels, tuning, peers, asks }
    }
}

impl LaunchOptions {
    /// Of these what a GPU of this compute capability can do.
    pub fn on(self, capability: (u32, u32)) -> Self {
        Self {
            programmatic: self.programmatic && capability.0 >= 9,
            kernels: self.kernels & KernelSet::of(capability),
            ..self
        }
    }
}

/// Whether the driver is Windows' own, seen from Linux (WSL2).
fn is_below_windows() -> bool {
    static BELOW: OnceLock<bool> = OnceLock::new();
    *BELOW.get_or_init(|| Path::new("/dev/dxg").exists())
}
