//! What can be chosen about the CUDA executor.

/// How work is given to the GPU; none of it changes a bit of the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Recorded programs are replayed as CUDA graphs.
    pub graphs: bool,
    /// Kernels may begin before the one before has ended, where the GPU can do that.
    pub programmatic: bool,
    /// Every kernel is waited for, so that an error names the right one.
    pub synchronous: bool,
    /// Prefill takes Hopper's own kernels, where the GPU is one.
    pub hopper: bool,
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
            hopper: is("CHASKI_HOPPER", "on"),
        }
    }
}
