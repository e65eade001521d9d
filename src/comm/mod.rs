//! What the ranks of a model tell each other. They stand in stages that follow each other, with as many ranks
//! in each: those of a stage add up, and each passes on to the rank in its place of the next stage.
//!
//! A rank that has failed ends the run of all: from then on, every call returns at once, with numbers
//! that mean nothing, and [`Communicator::enter`] and [`Communicator::leave`] tell why.

mod frame;
mod guests;
mod in_process;
mod joined;
mod launcher;
mod link;
mod rendezvous;
mod seal;

pub use frame::{Decoded, MOST_OF_STRANGERS, PeerMessage, decode};
pub use in_process::{Fault, FaultKind, InProcess, LocalGroup};
pub use joined::Joined;
pub use launcher::{Launcher, ProcessPlace};
pub use link::ProcessLink;
pub use rendezvous::{Hello, excuse, join};
pub use seal::Secret;

use std::ops::Range;
use std::time::Duration;

use crate::error::Result;

/// How long ranks wait for one that gets no further, unless the user says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Gives what a rank has to all, and returns what all have given, in the order of ranks.
pub type Gather = Box<dyn Fn(&[u64]) -> Result<Vec<u64>> + Send + Sync>;

/// Says in which op of a program a rank's device is, if in any. Given true, it also says what the device may
/// be waiting for instead.
pub type Look = Box<dyn Fn(bool) -> Option<String> + Send + Sync>;

/// Which way numbers go from stage to stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the rank in the same place of the next stage.
    Send,
    /// From the rank in the same place of the stage before.
    Receive,
}

/// One rank's way to the others.
pub trait Communicator: Send + Sync {
    /// Which rank this is.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// Number of stages.
    fn stages(&self) -> usize {
        1
    }

    /// The ranks of this rank's stage.
    fn stage(&self) -> Range<usize> {
        let parts = self.world() / self.stages();
        let first = self.rank() / parts * parts;
        first..first + parts
    }

    /// How long ranks wait for one that gets no further.
    fn timeout(&self) -> Duration {
        DEFAULT_TIMEOUT
    }

    /// Replaces `values` by their sums over the ranks of the stage, added up in the order of ranks: all
    /// get the same bits.
    fn all_reduce(&self, values: &mut [f32]) {
        assert_eq!(self.stages(), 1, "what all ranks give is no sum of one stage");
        let all = gather_floats(self, values);
        values.fill(0.0);
        for given in all {
            values.iter_mut().zip(given).for_each(|(sum, value)| *sum += value);
        }
    }

    /// Gives `values` to the next stage, or replaces them by what the stage before gives.
    fn pass(&self, _values: &mut [f32], direction: Direction) {
        unreachable!(
            "{direction:?} by the hosts of ranks that have no stages, or are in several processes"
        )
    }

    /// What all ranks give, in their order; each gives as much as the others.
    fn all_gather(&self, own: &[u64]) -> Vec<u64>;

    /// Has [`Self::all_gather`] done by what `make` makes from now on, where ranks are in several processes.
    ///
    /// # Errors
    /// What `make` says.
    fn carry(&self, _make: &mut dyn FnMut() -> Result<Gather>) -> Result<()> {
        Ok(())
    }

    /// Tells that this rank begins an op.
    ///
    /// # Errors
    /// What has ended the run.
    fn enter(&self, op: &'static str) -> Result<()>;

    /// Has `look` asked where this rank's device is when nothing gets on.
    fn watch(&self, _look: Look) {}

    /// Has `act` called once when the run has ended by a failure.
    fn on_failure(&self, _act: Box<dyn Fn() + Send>) {}

    /// Tells that this rank has done what it was to do.
    ///
    /// # Errors
    /// What has ended the run.
    fn leave(&self) -> Result<()>;
}

/// What the ranks give, each as much as the others, by rank.
pub fn gather_floats(comm: &(impl Communicator + ?Sized), own: &[f32]) -> Vec<Vec<f32>> {
    let mut words = vec![0u64; own.len().div_ceil(2)];
    bytemuck::cast_slice_mut(&mut words)[..own.len()].copy_from_slice(own);
    let all = comm.all_gather(&words);
    let of_rank = |words| bytemuck::cast_slice::<u64, f32>(words)[..own.len()].to_vec();
    all.chunks(words.len().max(1)).map(of_rank).collect()
}

/// The one rank of a model that is not split.
#[derive(Debug, Clone, Copy)]
pub struct SingleRank {
    /// How long its device may take for an op.
    pub timeout: Duration,
}

impl Default for SingleRank {
    fn default() -> Self {
        Self { timeout: DEFAULT_TIMEOUT }
    }
}

impl Communicator for SingleRank {
    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&self, _values: &mut [f32]) {}

    fn all_gather(&self, own: &[u64]) -> Vec<u64> {
        own.to_vec()
    }

    fn enter(&self, _op: &'static str) -> Result<()> {
        Ok(())
    }

    fn leave(&self) -> Result<()> {
        Ok(())
    }
}
