//! A room of its own for what a stranger's template makes us do: a stack, and an end.
//!
//! A template's steps and the bytes that it makes are paid for with fuel. What the engine does within
//! one step is not all charged: a list that is the sum of a list and itself, which is such a sum as
//! well ..., takes for ever to walk. So the thread's own time on a processor is limited too. That is
//! no clock: a machine that is busy with other things, or was stopped, refuses nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

pub(super) const ENDLESS: &str = "the chat template runs for too long or makes too much text";

/// Enough for any template that its fuel lasts for.
const MAX_TIME: Duration = Duration::from_secs(2);
/// How often a thread that is at work is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// The engine bounds how deep expressions and calls nest, but not how long a chain of operators is:
/// this is enough for the longest that fit a source.
const STACK_BYTES: usize = 64 << 20;

/// Runs `work`. When its time is over, what runs is left behind: it ends with the program.
pub(super) fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    let (clock_sender, clock) = mpsc::channel();
    let run = move || {
        // The receivers are gone if the time is over; then nobody waits for what is sent.
        drop(clock_sender.send(Clock::of_this_thread()));
        drop(sender.send(work()));
    };
    let thread = thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(run).map_err(|error| format!("cannot start a thread: {error}"))?;
    let ended = || Err("the chat template cannot be run".to_owned());
    let Ok(clock) = clock.recv() else { return ended() };
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Disconnected) => return ended(),
            Err(RecvTimeoutError::Timeout) if clock.elapsed() > MAX_TIME => {
                return Err(ENDLESS.to_owned());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// The time that a thread has spent on a processor.
enum Clock {
    /// The file in which Linux tells it.
    Stat(PathBuf),
    /// Elsewhere, the time that has passed.
    Since(Instant),
}

impl Clock {
    fn of_this_thread() -> Self {
        let stat = fs::read_link("/proc/thread-self")
            .map(|link| Path::new("/proc").join(link).join("stat"));
        match stat {
            Ok(stat) if used(&stat).is_some() => Self::Stat(stat),
            _ => Self::Since(Instant::now()),
        }
    }

    fn elapsed(&self) -> Duration {
        match self {
            // A thread that has just ended has no file: what it made is on its way.
            Self::Stat(stat) => used(stat).unwrap_or_default(),
            Self::Since(start) => start.elapsed(),
        }
    }
}

/// The user's and the system's time of a thread's `stat` in `/proc`, the 14th and 15th field, in
/// hundredths of a second.
fn used(stat: &Path) -> Option<Duration> {
    let text = fs::read_to_string(stat).ok()?;
    // The second field is a name in parentheses, in which anything may stand.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (next()? + next()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_waits_is_waited_for_and_work_that_never_ends_is_left() {
        let sleeps = || {
            thread::sleep(MAX_TIME + LOOK);
            Ok(5)
        };
        #[cfg(target_os = "linux")]
        assert_eq!(apart(sleeps), Ok(5));
        let works: fn() -> Result<i32, String> = || {
            let start = Instant::now();
            // Longer than it may, however slow the machine: it ends with the test at the latest.
            while start.elapsed() < 100 * MAX_TIME {
                std::hint::black_box(start);
            }
            Ok(5)
        };
        assert_eq!(apart(works), Err(ENDLESS.to_owned()));
    }
}
