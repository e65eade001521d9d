//! What can be chosen about the CUDA executor.

use cudarc::driver::sys::CUshared_carveout as Carveout;

use crate::error::{Error, Result};
use crate::kernel::KernelSet;
use crate::op::{Prefetch, Tile, Trigger, Tuning};

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
    pub tuning: Tuning,
}

impl Default for Options {
    fn default() -> Self {
        let (kernels, tuning) = (KernelSet::ALL, Tuning::DEFAULT);
        Self { graphs: true, programmatic: true, synchronous: false, kernels, tuning }
    }
}

impl Options {
    /// As the environment says: `CHASKI_GRAPHS=off`, `CHASKI_PDL=off`, `CHASKI_SYNC=on`,
    /// `CHASKI_HOPPER=on`, without which no kernels are taken that are for some GPUs alone; and for
    /// experiments `CHASKI_TRIGGER=first|last`, `CHASKI_AHEAD=0..15`,
    /// `CHASKI_PREFETCH=lines|paced|bulk`, `CHASKI_TILE=small|medium|large` ([`Tuning`]).
    ///
    /// # Errors
    /// An experiment that there is not.
    pub fn from_environment() -> Result<Self> {
        let is = |name, value| std::env::var(name).is_ok_and(|given| given == value);
        Ok(Self {
            graphs: !is("CHASKI_GRAPHS", "off"),
            programmatic: !is("CHASKI_PDL", "off"),
            synchronous: is("CHASKI_SYNC", "on"),
            kernels: match is("CHASKI_HOPPER", "on") {
                true => KernelSet::ALL,
                false => KernelSet::PORTABLE,
            },
            tuning: over(Tuning::DEFAULT)?,
        })
    }

    /// As [`Self::from_environment`], with all kernels that are not turned off (`CHASKI_HOPPER=off`): what is
    /// to be used as far as it is right.
    ///
    /// # Errors
    /// As [`Self::from_environment`].
    pub fn wanted() -> Result<Self> {
        let turned_off = std::env::var("CHASKI_HOPPER").is_ok_and(|given| given == "off");
        let kernels = if turned_off { KernelSet::PORTABLE } else { KernelSet::ALL };
        Ok(Self { kernels, ..Self::from_environment()? })
    }

    /// The same with what was found to be fastest, where the environment has no other wish.
    ///
    /// # Errors
    /// As [`Self::from_environment`].
    pub fn tuned(self, tuning: Tuning) -> Result<Self> {
        Ok(Self { tuning: over(tuning)?, ..self })
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

/// How much shared memory kernels ask a multiprocessor to split off its L1 cache: the most that it can, or
/// with `CHASKI_CARVEOUT=default` what the driver thinks best, with `least` no more than they need. What
/// reading loses by it, only a measurement tells.
pub(super) fn carveout() -> Result<Carveout> {
    let known = [
        ("most", Carveout::CU_SHAREDMEM_CARVEOUT_MAX_SHARED),
        ("default", Carveout::CU_SHAREDMEM_CARVEOUT_DEFAULT),
        ("least", Carveout::CU_SHAREDMEM_CARVEOUT_MAX_L1),
    ];
    Ok(chosen("CHASKI_CARVEOUT", &known)?.unwrap_or(known[0].1))
}

/// What the environment says of experiments, and of all else `tuning`.
fn over(tuning: Tuning) -> Result<Tuning> {
    let Tuning { trigger, ahead, prefetch, tile, chunk } = tuning;
    let triggers = [("first", Trigger::First), ("last", Trigger::Last)];
    let depths: Vec<_> = (0..=Tuning::MOST_AHEAD).map(|n| (n.to_string(), n)).collect();
    let ways = [("lines", Prefetch::Lines), ("paced", Prefetch::Paced), ("bulk", Prefetch::Bulk)];
    let tiles = [("small", Tile::Small), ("medium", Tile::Medium), ("large", Tile::Large)];
    Ok(Tuning {
        trigger: chosen("CHASKI_TRIGGER", &triggers)?.unwrap_or(trigger),
        ahead: chosen("CHASKI_AHEAD", &depths)?.unwrap_or(ahead),
        prefetch: chosen("CHASKI_PREFETCH", &ways)?.unwrap_or(prefetch),
        tile: chosen("CHASKI_TILE", &tiles)?.or(tile),
        chunk,
    })
}

/// What the variable `name` says, if it is set, of what there is.
fn chosen<T: Copy>(name: &str, known: &[(impl AsRef<str>, T)]) -> Result<Option<T>> {
    let Some(given) = std::env::var_os(name) else { return Ok(None) };
    let found = known.iter().find(|(word, _)| given == *word.as_ref());
    let words = || known.iter().map(|(word, _)| word.as_ref()).collect::<Vec<_>>().join(", ");
    let unknown = || Error::usage(format!("{name} is {given:?}: one of {} is needed", words()));
    found.map(|(_, value)| Some(*value)).ok_or_else(unknown)
}
