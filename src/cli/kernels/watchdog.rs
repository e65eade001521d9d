//! The end of a process whose kernel does not end.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::watch::endless;
use crate::cli::leave;
use crate::cli::output::tell;
use crate::kernel::Kernel;

/// Ends this process when a kernel does not: the driver waits for it, and cannot be stopped from waiting.
pub(super) struct Watchdog(Sender<&'static str>);

impl Watchdog {
    pub(super) fn new(limit: Duration) -> Self {
        let (begins, runs) = mpsc::channel();
        thread::spawn(move || {
            let mut running = None;
            loop {
                match runs.recv_timeout(limit) {
                    Ok(name) => running = Kernel::find(name),
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        if let Some(kernel) = running {
                            tell(format_args!("chaski: {}", endless(kernel, limit)));
                            leave(1);
                        }
                    }
                }
            }
        });
        Self(begins)
    }

    /// A run of this kernel begins.
    pub(super) fn watch(&self, kernel: &'static str) {
        // The thread ends after this sender, or with the process.
        let _ = self.0.send(kernel);
    }
}
