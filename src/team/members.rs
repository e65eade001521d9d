//! The ranks of this process on their threads, and what they all are to do.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use super::gather::gather;
use super::{Ranks, Team};
use crate::error::{Error, Result};
use crate::rank::Rank;

/// A rank on its thread.
pub(super) struct Member {
    pub(super) jobs: Sender<Job>,
    pub(super) thread: JoinHandle<()>,
}

type Job = Box<dyn FnOnce(&mut Rank) + Send>;

impl Team {
    /// What `work` comes to on every rank of this process, by rank.
    ///
    /// # Errors
    /// The first rank's error, or what else has ended the run.
    pub fn each<R: Send + 'static>(
        &mut self,
        work: impl Fn(&mut Rank) -> Result<R> + Clone + Send + 'static,
    ) -> Result<Vec<R>> {
        let (members, room) = match &mut self.ranks {
            Ranks::One(rank) => return work(rank).map(|result| vec![result]),
            Ranks::Several { members, room, .. } => (members, room),
        };
        let (results, done) = channel();
        for (number, member) in members.iter().enumerate() {
            let (work, results, its_room) = (work.clone(), results.clone(), room.clone());
            let job = move |rank: &mut Rank| {
                let result = match catch_unwind(AssertUnwindSafe(|| work(rank))) {
                    Ok(result) => result.map_err(|error| error.to_string()),
                    Err(panic) => Err(format!("it panicked: {}", said(&*panic))),
                };
                let result = result.map_err(|reason| its_room.fail(number, &reason)).ok();
                its_room.is_at_work(number, false);
                // Nobody listens any more where another rank has failed before.
                let _ = results.send((number, result));
            };
            room.is_at_work(number, true);
            if member.jobs.send(Box::new(job)).is_err() {
                room.fail(number, "its thread has ended");
            }
        }
        drop(results);
        gather(&done, members.len(), room)
    }
}

/// A panic's message.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why")
}

impl Member {
    pub(super) fn new(number: usize, mut rank: Rank) -> Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let work = move || todo.iter().for_each(|job| job(&mut rank));
        let thread = thread::Builder::new().name(format!("rank {number}")).spawn(work);
        let thread =
            thread.map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?;
        Ok(Self { jobs, thread })
    }
}

impl Drop for Team {
    /// Waits until the ranks have given back what they hold, unless one of them may never come to that.
    fn drop(&mut self) {
        let Ranks::Several { members, room, link } = &mut self.ranks else { return };
        if room.failure().is_none() {
            link.iter().for_each(|link| link.end());
            // All at once: NCCL wants the ranks of a machine to leave it together.
            let threads: Vec<_> = members.drain(..).map(|member| member.thread).collect();
            threads.into_iter().for_each(|thread| drop(thread.join()));
        }
        link.iter().for_each(|link| link.close());
    }
}
