//! What a server has to tell the person who has started it.

use std::sync::Arc;

/// Is given a line for each request. It may be called from several threads.
pub type ServerLog = Arc<dyn Fn(&str) + Send + Sync>;
