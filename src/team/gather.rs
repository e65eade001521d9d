//! What comes of it that all ranks of this process do something.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::comm::Room;
use crate::error::{Error, Result};

/// How long ranks have to come out of what they wait for, once the run has ended.
const GRACE: Duration = Duration::from_secs(2);

/// By rank; nothing, if it has failed.
type Done<R> = Receiver<(usize, Option<R>)>;

/// What the ranks come to, by rank, unless one fails or gets no further.
pub(super) fn gather<R>(done: &Done<R>, world: usize, room: &Room) -> Result<Vec<R>> {
    let since = Instant::now();
    let mut results: Vec<Option<R>> = (0..world).map(|_| None).collect();
    let mut has_come = vec![false; world];
    while results.iter().any(Option::is_none) {
        let patience = room.patience(since, &has_come);
        if let Some(failure) = room.failure() {
            find_the_late(done, has_come, room);
            return Err(room.failure().unwrap_or(failure));
        }
        match done.recv_timeout(patience) {
            Ok((rank, result)) => (has_come[rank], results[rank]) = (true, result),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(room.failure().unwrap_or_else(|| Error::failed("a rank has gone")));
            }
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// After a stall: ranks whose devices only waited for another come out of it now. The one that does not is to
/// blame.
fn find_the_late<R>(done: &Done<R>, mut has_come: Vec<bool>, room: &Room) {
    let deadline = Instant::now() + GRACE;
    let Some(blamed) = room.late() else { return };
    while (0..has_come.len()).any(|rank| rank != blamed && !has_come[rank]) {
        match done.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((rank, _)) => has_come[rank] = true,
            Err(_) => break,
        }
    }
    if let (true, Some(late)) = (has_come[blamed], has_come.iter().position(|has_come| !has_come)) {
        room.blame(late);
    }
}
