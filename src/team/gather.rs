//! What comes of it that all ranks of this process do something.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use crate::comm::LocalGroup;
use crate::error::{Error, Result};

/// By rank; nothing, if it has failed.
type Done<R> = Receiver<(usize, Option<R>)>;

/// What the ranks come to, by rank, unless one fails or gets no further.
pub(super) fn gather<R>(done: &Done<R>, world: usize, room: &LocalGroup) -> Result<Vec<R>> {
    let since = Instant::now();
    let mut results: Vec<Option<R>> = (0..world).map(|_| None).collect();
    let mut has_come = vec![false; world];
    while results.iter().any(Option::is_none) {
        let patience = room.patience(since, &has_come);
        if let Some(failure) = room.verdict() {
            return Err(failure);
        }
        match done.recv_timeout(patience) {
            Ok((rank, result)) => (has_come[rank], results[rank]) = (true, result),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(room.verdict().unwrap_or_else(|| Error::failed("a rank has gone")));
            }
        }
    }
    Ok(results.into_iter().flatten().collect())
}
