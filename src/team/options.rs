//! How the ranks get along.

use std::sync::Arc;
use std::time::Duration;

use crate::comm::{DEFAULT_TIMEOUT, Fault, Link};
use crate::error::Error;

/// Is called with why the run has ended when a rank hangs in a call of the driver's that nothing wakes, so
/// that loading will never return: only the end of the process helps.
pub type Stuck = Arc<dyn Fn(&Error) + Send + Sync>;

#[derive(Clone)]
pub struct Options {
    /// How long ranks wait for one that gets no further.
    pub timeout: Duration,
    /// Something to go wrong, for tests.
    pub fault: Option<Fault>,
    /// To other processes, with as many ranks each.
    pub link: Option<Arc<Link>>,
    /// Stages of layers that all ranks stand in, as many in each.
    pub stages: usize,
    pub stuck: Stuck,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: DEFAULT_TIMEOUT,
            fault: None,
            link: None,
            stages: 1,
            stuck: Arc::new(|_| ()),
        }
    }
}
