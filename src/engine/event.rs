//! What happens on the way to a model in memory.

use std::sync::Arc;

use super::Model;
use crate::error::{Error, Result};
use crate::executor::cuda::Gpu;
use crate::model::Plan;

/// One thing that has happened.
pub enum Event<'a> {
    /// It is checked for the first time whether this GPU computes what kernels mean.
    Qualifying(&'a Gpu),
    /// Something is not used on this GPU, since it is wrong there.
    NotUsed { gpu: &'a Gpu, what: &'a str },
    /// Whether this GPU computes what kernels mean cannot be found out.
    NotQualified { gpu: &'a Gpu, why: &'a Error },
    /// What was found out cannot be kept, so it will be found out again.
    NotKept(&'a Error),
    /// All is planned and checked. `devices`: what all ranks run on, in words.
    Planned { model: &'a Model, plan: &'a Plan, devices: &'a str },
    /// So many bytes of weights begin to come.
    WeightsBegin(u64),
    /// So many more are there.
    Weights(u64),
    /// All are there, or no more will come.
    WeightsEnd,
    /// A rank hangs in a call of the driver's that nothing wakes, after this has ended the run: loading
    /// will never return, and only the end of the process helps.
    Stuck(&'a Error),
    /// By which way ranks reach each other.
    ProcessLink(&'a str),
}

/// Is told of what happens. An error of its ends the loading. It may be called from several threads.
pub type Observer = Arc<dyn Fn(Event<'_>) -> Result<()> + Send + Sync>;

/// An observer that says nothing.
pub fn silent() -> Observer {
    Arc::new(|_| Ok(()))
}
