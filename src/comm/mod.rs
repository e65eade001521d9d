//! What the ranks of a model tell each other.
//!
//! A rank that has failed ends the run of all: from then on, every call returns at once, with numbers
//! that mean nothing, and [`Communicator::enter`] and [`Communicator::leave`] tell why.

mod in_process;

pub use in_process::{Fault, InProcess, Kind, Room};

use std::time::Duration;

use crate::error::Result;

/// How long ranks wait for one that gets no further, unless the user says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// One rank's way to the others.
pub trait Communicator: Send + Sync {
    /// Which rank this is.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// Replaces `values` by their sums over all ranks, added up in the order of ranks: all ranks get the
    /// same bits.
    fn all_reduce(&self, values: &mut [f32]);

    /// What the ranks give, in their order; each gives as much as the others.
    fn all_gather(&self, own: &[u64]) -> Vec<u64>;

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
