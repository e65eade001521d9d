//! How the ranks get along.

use std::sync::Arc;
use std::time::Duration;

use crate::comm::{DEFAULT_TIMEOUT, Fault, ProcessLink};
use crate::error::Error;

/// Is called with why the run has ended when a rank hangs in a call of the driver's that nothing wakes, so
/// that loading will never return: only the end of the process helps.
pub type Stuck = Arc<dyn Fn(&Error) + Send + Sync>;

#[derive(Clone)]
pub struct TeamOptions {
    /// How long ranks wait for one that gets no further.
    pub timeout: Duration,
    /// Something to go wrong, for tests.
    pub fault: Option<Fault>,
    /// To other processes, with as many ranks each.
    pub link: Option<Arc<ProcessLink>>,
    pub stuck: Stuck,
}

impl Default for TeamOptions {
    fn default() -> Self {
        Self { timeout: DEFAULT_TIMEOUT, fault: None, link: None, stuck: Arc::new(|_| ()) }
    }
}
