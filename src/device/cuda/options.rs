//! What can be chosen about the CUDA executor.

use crate::kernel::KernelSet;

/// How work is given to the GPU. None of it changes a bit of the results but the choice of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Recorded programs are replayed as CUDA graphs.
    pub graphs: bool,
    /// Kernels may begin before the one before has ended, where the GPU can do that.
    pub programmatic: bool,
    /// Every kernel is waited for, so that an error names the right one.
    pub synchronous: bool,
    /// Which kernels it runs, where several mean the same.
    pub kernels: KernelSet,
}

impl Default for Options {
    fn default() -> Self {
        Self { graphs: true, programmatic: true, synchronous: false, kernels: KernelSet::ALL }
    }
}

impl Options {
    /// As the environment says: `CHASKI_GRAPHS=off`, `CHASKI_PDL=off`, `CHASKI_SYNC=on`,
    /// `CHASKI_HOPPER=on`.
    pub fn from_environment() -> Self {
        let is = |name, value| std::env::var(name).is_ok_and(|given| given == value);
        Self {
            graphs: !is("CHASKI_GRAPHS", "off"),
            programmatic: !is("CHASKI_PDL", "off"),
            synchronous: is("CHASKI_SYNC", "on"),
            kernels: match is("CHASKI_HOPPER", "on") {
                true => KernelSet::ALL,
                false => KernelSet::PORTABLE,
            },
        }
    }

    /// Of these what a GPU of this compute capability can do.
    pub fn on(self, capability: (u32, u32)) -> Self {
        Self {
            programmatic: self.programmatic && capability.0 >= 9,
            kernels: self.kernels & KernelSet::of(capability),
            ..self
        }
    }
}
