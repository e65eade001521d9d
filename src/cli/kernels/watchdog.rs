//! The end of a process whose kernel does not end, or takes its time where nobody waits for it any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::watch::endless;
use crate::cli::leave;
use crate::cli::output::{print, tell};
use crate::kernel::Kernel;

/// Ends this process when a kernel does not, or not soon after Ctrl-C: the driver waits for it, and cannot be
/// stopped from waiting.
pub(super) struct Watchdog(Arc<Mutex<Watched>>);

struct Watched {
    /// The kernel that runs, and since when.
    running: Option<(&'static str, Instant)>,
    /// What makes what has been printed a whole.
    end: &'static str,
}

/// How often it looks, and how long after Ctrl-C a run may still end by itself.
const GLANCE: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_millis(500);

impl Watchdog {
    pub(super) fn new(limit: Duration, interrupt: &'static AtomicBool) -> Self {
        let watched = Arc::new(Mutex::new(Watched { running: None, end: "" }));
        let seen = Arc::downgrade(&watched);
        thread::spawn(move || {
            let mut interrupted = None;
            while let Some(watched) = seen.upgrade() {
                if interrupt.load(Ordering::Relaxed) {
                    interrupted.get_or_insert_with(Instant::now);
                }
                // Nobody prints while it is held.
                let watched = locked(&watched);
                if let Some((name, since)) = watched.running {
                    if since.elapsed() > limit {
                        let kernel = Kernel::find(name).expect("it runs");
                        end(watched.end, &format!("chaski: {}", endless(kernel, limit)), 1);
                    }
                    if interrupted.is_some_and(|since| since.elapsed() > GRACE) {
                        end(watched.end, "chaski: interrupted", 130);
                    }
                }
                drop(watched);
                thread::sleep(GLANCE);
            }
        });
        Self(watched)
    }

    /// A run of this kernel begins.
    pub(super) fn watch(&self, kernel: &'static str) {
        locked(&self.0).running = Some((kernel, Instant::now()));
    }

    /// None runs any more.
    pub(super) fn rest(&self) {
        locked(&self.0).running = None;
    }

    /// This makes what has been printed a whole, should it end here.
    pub(super) fn ends_with(&self, end: &'static str) {
        locked(&self.0).end = end;
    }
}

fn locked(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end(table: &str, why: &str, status: u8) -> ! {
    // Whoever has left does not read how it ends.
    let _ = print(table);
    tell(why);
    leave(status)
}
