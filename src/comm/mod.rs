//! What the ranks of a model tell each other.
//!
//! A rank that has failed ends the run of all: from then on, every call returns at once, with numbers
//! that mean nothing, and [`Communicator::enter`] and [`Communicator::leave`] tell why.

mod frame;
mod in_process;
mod joined;
mod link;
mod rendezvous;

pub use in_process::{Fault, InProcess, Kind, Room};
pub use joined::Joined;
pub use link::Link;
pub use rendezvous::{Hello, excuse, join};

use std::time::Duration;

use crate::error::Result;

/// How long ranks wait for one that gets no further, unless the user says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Gives what a rank has to all, and returns what all have given, in the order of ranks.
pub type Gather = Box<dyn Fn(&[u64]) -> Result<Vec<u64>> + Send + Sync>;

/// One rank's way to the others.
pub trait Communicator: Send + Sync {
    /// Which rank this is.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// How long ranks wait for one that gets no further.
    fn timeout(&self) -> Duration {
        DEFAULT_TIMEOUT
    }

    /// Replaces `values` by their sums over all ranks, added up in the order of ranks: all ranks get the
    /// same bits.
    fn all_reduce(&self, values: &mut [f32]) {
        let all = gather_floats(self, values);
        values.fill(0.0);
        for given in all {
            values.iter_mut().zip(given).for_each(|(sum, value)| *sum += value);
        }
    }

    /// What the ranks give, in their order; each gives as much as the others.
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
pub struct Alone;

impl Communicator for Alone {
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
