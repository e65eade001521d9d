//! What is asked of GPUs, where that is not left to what is best.

use std::path::PathBuf;

use super::options::LaunchOptions;
use crate::error::{Error, Result};
use crate::kernel::{KernelSet, Paths};
use crate::op::{Prefetch, Tile, Trigger, Tuning};
use crate::source::Variables;

#[derive(Debug, Clone)]
pub struct Settings {
    /// Recorded programs are replayed as CUDA graphs.
    pub graphs: bool,
    /// Kernels may begin before the one before has ended, where the GPU can do that.
    pub programmatic: bool,
    /// Every kernel is waited for, so that an error names the right one.
    pub synchronous: bool,
    /// Kernels for some GPUs alone: else they are taken where they qualify, and where nothing is checked
    /// they are not.
    pub special_kernels: Option<bool>,
    /// Of the tuning, what is not to be as it was found to be fastest.
    pub trigger: Option<Trigger>,
    pub ahead: Option<u32>,
    pub prefetch: Option<Prefetch>,
    pub tile: Option<Tile>,
    pub carveout: Carveout,
    /// Ranks may reach each other's memory; else NCCL does all of it.
    pub peers: bool,
    /// The file to which kernels' clock stamps go, of a build that has them.
    pub stamps: Option<PathBuf>,
    pub paths: Paths,
}

/// How much shared memory kernels ask a multiprocessor to split off its L1 cache. What reading loses by it,
/// only a measurement tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carveout {
    /// The most that it can.
    Most,
    /// What the driver thinks best.
    Driver,
    /// No more than they need.
    Least,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            graphs: true,
            programmatic: true,
            synchronous: false,
            special_kernels: None,
            trigger: None,
            ahead: None,
            prefetch: None,
            tile: None,
            carveout: Carveout::Most,
            peers: true,
            stamps: None,
            paths: Paths::default(),
        }
    }
}

impl Settings {
    /// `CHASKI_GRAPHS=off`, `CHASKI_PDL=off`, `CHASKI_SYNC=on`, `CHASKI_HOPPER=on|off`, `CHASKI_PEERS=off`,
    /// `CHASKI_STAMPS`, and for experiments `CHASKI_TRIGGER=first|last`, `CHASKI_AHEAD=0..15`,
    /// `CHASKI_PREFETCH=lines|paced|bulk`, `CHASKI_TILE=small|medium|large` ([`Tuning`]) and
    /// `CHASKI_CARVEOUT=most|default|least`.
    ///
    /// # Errors
    /// An experiment that there is not.
    pub fn from_variables(variable: Variables<'_>) -> Result<Self> {
        let is = |name, value| variable(name).is_some_and(|given| given == value);
        let depths: Vec<_> = (0..=Tuning::MOST_AHEAD).map(|n| (n.to_string(), n)).collect();
        let ways =
            [("lines", Prefetch::Lines), ("paced", Prefetch::Paced), ("bulk", Prefetch::Bulk)];
        let tiles = [("small", Tile::Small), ("medium", Tile::Medium), ("large", Tile::Large)];
        let triggers = [("first", Trigger::First), ("last", Trigger::Last)];
        let shares =
            [("most", Carveout::Most), ("default", Carveout::Driver), ("least", Carveout::Least)];
        Ok(Self {
            graphs: !is("CHASKI_GRAPHS", "off"),
            programmatic: !is("CHASKI_PDL", "off"),
            synchronous: is("CHASKI_SYNC", "on"),
            special_kernels: match (is("CHASKI_HOPPER", "on"), is("CHASKI_HOPPER", "off")) {
                (false, false) => None,
                (on, _) => Some(on),
            },
            trigger: chosen(variable, "CHASKI_TRIGGER", &triggers)?,
            ahead: chosen(variable, "CHASKI_AHEAD", &depths)?,
            prefetch: chosen(variable, "CHASKI_PREFETCH", &ways)?,
            tile: chosen(variable, "CHASKI_TILE", &tiles)?,
            carveout: chosen(variable, "CHASKI_CARVEOUT", &shares)?.unwrap_or(Carveout::Most),
            peers: !is("CHASKI_PEERS", "off"),
            stamps: variable("CHASKI_STAMPS").map(PathBuf::from),
            paths: Paths::from_variables(variable),
        })
    }

    /// What a GPU is given where nothing is checked.
    pub fn unchecked(&self) -> LaunchOptions {
        self.options(self.special_kernels == Some(true))
    }

    /// What is to be used as far as it is right.
    pub fn wanted(&self) -> LaunchOptions {
        self.options(self.special_kernels != Some(false))
    }

    fn options(&self, special_kernels: bool) -> LaunchOptions {
        let kernels = if special_kernels { KernelSet::ALL } else { KernelSet::PORTABLE };
        let Self { graphs, programmatic, synchronous, .. } = *self;
        let tuning = self.over(Tuning::DEFAULT);
        LaunchOptions {
            graphs,
            programmatic,
            synchronous,
            kernels,
            tuning,
            ..LaunchOptions::default()
        }
    }

    /// What was found to be fastest, but where something else is asked for.
    pub fn over(&self, tuning: Tuning) -> Tuning {
        Tuning {
            trigger: self.trigger.unwrap_or(tuning.trigger),
            ahead: self.ahead.unwrap_or(tuning.ahead),
            prefetch: self.prefetch.unwrap_or(tuning.prefetch),
            tile: self.tile.or(tuning.tile),
            chunk: tuning.chunk,
        }
    }
}

/// What the variable `name` says, if it is set, of what there is.
fn chosen<T: Copy>(
    variable: Variables<'_>,
    name: &str,
    known: &[(impl AsRef<str>, T)],
) -> Result<Option<T>> {
    let Some(given) = variable(name) else { return Ok(None) };
    let found = known.iter().find(|(word, _)| given == *word.as_ref());
    let words = || known.iter().map(|(word, _)| word.as_ref()).collect::<Vec<_>>().join(", ");
    let unknown = || Error::usage(format!("{name} is {given:?}: one of {} is needed", words()));
    found.map(|(_, value)| Some(*value)).ok_or_else(unknown)
}
