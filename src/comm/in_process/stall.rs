//! Ranks that get no further: how long the others wait for them, and which one is to blame.
//!
//! Whose clock runs out first says little: a rank whose GPU waits for another's stands as still as that
//! one. So a stall wakes all ranks, of all processes - sums are given up, NCCL is aborted - and blames the
//! one that does not come out of what it is at, on the host or on its device. Where all do, each of them was
//! waiting for the others.

use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::{Doing, LocalGroup, Progress, lock};
use crate::comm::ProcessLink;
use crate::error::Error;

/// How long ranks have to come out of what they wait for, once they have been woken.
const GRACE: Duration = Duration::from_secs(2);

/// How often it is looked whether they have.
const GLANCE: Duration = Duration::from_millis(10);

/// How long after that it is looked again whether one that has not gets on.
const STILL: Duration = Duration::from_millis(500);

/// How long a device has to say where it is.
const ANSWER: Duration = Duration::from_secs(1);

/// How long a process waits for the first one to say who is to blame: that one has its own ranks to wait for,
/// then the other processes.
const AGREEMENT: Duration = Duration::from_secs(12);

/// A stall that has ended the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stall {
    /// Whether it is known who is to blame.
    is_settled: bool,
}

impl LocalGroup {
    /// How long to wait at most before this is asked again, by one that waits since `since` for all ranks
    /// but those that have come. If one of them has got no further for too long, ends the run.
    pub fn patience(&self, since: Instant, has_come: &[bool]) -> Duration {
        let missing = (0..has_come.len()).filter(|rank| !has_come[*rank]);
        let doing = missing.map(|rank| (rank, *lock(&self.doing[rank])));
        // Others wait for another, if only on their devices: the one that is behind is to blame.
        let behind = doing
            .filter(|(_, doing)| !doing.is_waiting)
            .min_by_key(|(_, doing)| (doing.count, doing.since));
        let Some((rank, doing)) = behind else {
            return self.timeout;
        };
        let left = self.timeout.saturating_sub(doing.since.max(since).elapsed());
        if left.is_zero() {
            let looked = self.look(rank, true);
            self.end_by_stall(self.stall_of(rank, looked), Some(rank));
        }
        left.max(Duration::from_millis(1))
    }

    /// `looked`: where the rank's device is.
    fn stall_of(&self, rank: usize, looked: Option<String>) -> Error {
        let op = looked.unwrap_or_else(|| lock(&self.doing[rank]).op.to_owned());
        let seconds = self.timeout.as_secs_f64();
        self.failure_of(
            rank,
            &op,
            &format!("made no progress for {seconds} s; `timeout` allows more"),
        )
    }

    /// Where the rank's device is, if it has something to do; see [`crate::comm::Look`].
    fn look(&self, rank: usize, or_waits: bool) -> Option<String> {
        let room = self.own.upgrade()?;
        let (answer, answered) = channel();
        // It may be that nothing comes back from a device that hangs.
        thread::spawn(move || {
            let looked = room.looks[rank].get().and_then(|look| look(or_waits));
            let _ = answer.send(looked);
        });
        answered.recv_timeout(ANSWER).unwrap_or_else(|_| {
            let Doing { op, .. } = *lock(&self.doing[rank]);
            Some(format!("{op}, where its device does not answer"))
        })
    }

    /// Tells whether this rank of the room is at work, and so will come out of it; at first it is.
    pub fn is_at_work(&self, rank: usize, is_at_work: bool) {
        lock(&self.doing[rank]).is_at_work = is_at_work;
    }

    /// Ends the run, since a rank gets no further: maybe this one, or one of another process. For now,
    /// `failure` is why.
    pub(in crate::comm) fn end_by_stall(&self, failure: Error, suspect: Option<usize>) {
        let is_new = self.end_by(failure, Some(Stall { is_settled: false }));
        if let (true, Some(room)) = (is_new, self.own.upgrade()) {
            thread::spawn(move || room.settle(suspect));
        }
    }

    /// From now on who is to blame is settled with the other processes.
    pub(in crate::comm) fn join(&self, link: &Arc<ProcessLink>) {
        let _ = self.link.set(Arc::downgrade(link)); // there is but one
    }

    /// Whether the run has ended because some rank got no further.
    pub fn has_stalled(&self) -> bool {
        lock(&self.progress).stall.is_some()
    }

    /// What has ended the run. If that is a stall, waits until it is known who is to blame.
    pub fn verdict(&self) -> Option<Error> {
        let progress = lock(&self.progress);
        let settled = self.changed.wait_while(progress, |progress| progress.is_unsettled());
        settled.unwrap_or_else(PoisonError::into_inner).failure.clone()
    }

    /// This is who is to blame for a stall, if that is not known yet.
    pub(in crate::comm) fn blame(&self, verdict: Error) {
        let mut progress = lock(&self.progress);
        if progress.is_unsettled() {
            progress.failure = Some(verdict);
            progress.stall = Some(Stall { is_settled: true });
            self.changed.notify_all();
        }
    }

    /// Finds out who is to blame for the stall that has ended the run. `suspect` was the furthest behind.
    fn settle(&self, suspect: Option<usize>) {
        let mut late = self.late(suspect);
        let link = self.link.get().and_then(Weak::upgrade);
        if let Some(link) = &link {
            link.tell_late(late.as_ref());
            if link.is_first() {
                late = late.or_else(|| link.hear_late());
            } else {
                let progress = lock(&self.progress);
                let unsettled = |progress: &mut Progress| progress.is_unsettled();
                drop(self.changed.wait_timeout_while(progress, AGREEMENT, unsettled));
            }
        }
        let Some(stall) = self.failure() else { return };
        let shared = || Error::failed(format!("all ranks wait for each other: {stall}"));
        let verdict = late.unwrap_or_else(shared);
        if let Some(link) = link.filter(|link| link.is_first()) {
            link.tell_failure(&verdict);
        }
        self.blame(verdict);
    }

    /// The rank of the room that does not come out of what it is at, now that all have been woken.
    fn late(&self, suspect: Option<usize>) -> Option<Error> {
        let has_devices = self.looks.iter().any(|look| look.get().is_some());
        let deadline = Instant::now() + GRACE;
        // A host that computes by itself waits for nobody: it is enough if all others come out.
        let is_open = |rank: usize| has_devices || Some(rank) != suspect;
        let is_at_work = |rank: usize| lock(&self.doing[rank]).is_at_work;
        let at_work = || (0..self.doing.len()).any(|rank| is_at_work(rank) && is_open(rank));
        while at_work() && Instant::now() < deadline {
            thread::sleep(GLANCE);
        }
        let before = self.places();
        if has_devices && before.iter().any(Activity::is_busy) {
            thread::sleep(STILL);
        }
        let mut places = self.places();
        let is_late = |rank: &usize| places[*rank].is_busy() && before[*rank] == places[*rank];
        let late: Vec<_> = (0..places.len()).filter(is_late).collect();
        let rank = suspect.filter(|rank| late.contains(rank)).or(late.first().copied())?;
        Some(self.stall_of(rank, places[rank].looked.take()))
    }

    fn places(&self) -> Vec<Activity> {
        let place = |rank: usize| {
            let doing = *lock(&self.doing[rank]);
            let begun = doing.is_at_work.then_some(doing.count);
            Activity { begun, looked: self.look(rank, false) }
        };
        (0..self.doing.len()).map(place).collect()
    }
}

/// Where a rank is.
#[derive(PartialEq)]
struct Activity {
    /// Ops that its host has begun, if it is at work.
    begun: Option<usize>,
    /// The op that its device is in, if it is in any.
    looked: Option<String>,
}

impl Activity {
    fn is_busy(&self) -> bool {
        self.begun.is_some() || self.looked.is_some()
    }
}

impl Progress {
    fn is_unsettled(&self) -> bool {
        self.stall.is_some_and(|stall| !stall.is_settled)
    }
}
