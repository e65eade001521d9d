//! Ranks that are threads of one process, and exchange what they have through its memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::Communicator;
use crate::error::{Error, Result};

/// What the ranks share.
pub struct Room {
    /// What each rank runs on, for messages.
    devices: Vec<String>,
    /// The number of the first rank, of all that are in other rooms too.
    first: usize,
    /// How long a rank may take for an op while others wait for it.
    timeout: Duration,
    fault: Option<Fault>,
    round: Mutex<Round>,
    /// All have come, or the run has ended.
    changed: Condvar,
    /// What is to be done then.
    on_failure: Mutex<Vec<Box<dyn Fn() + Send>>>,
    doing: Vec<Mutex<Doing>>,
    /// What ranks have given, in even and in odd rounds. A rank that is a round ahead of another does not
    /// touch what that one may still be reading: it gets two ahead only when that one has come on.
    given: [Vec<Given>; 2],
}

type Given = RwLock<Vec<u32>>;

/// One exchange after the other.
struct Round {
    number: usize,
    /// By rank.
    has_come: Vec<bool>,
    /// What ended the run.
    failure: Option<Error>,
}

/// What a rank is at.
#[derive(Debug, Clone, Copy)]
struct Doing {
    op: &'static str,
    since: Instant,
    /// Ops that it has begun.
    count: usize,
    /// Whether it waits for the others.
    is_waiting: bool,
}

/// Between programs.
const BETWEEN: &str = "no op";

/// Something to go wrong, for tests.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub rank: usize,
    /// Of all ops that the rank begins, the one to fail, from 0 on.
    pub op: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Error,
    Panic,
    /// The op takes so much longer.
    Delay(Duration),
}

/// A rank's place in the room.
pub struct InProcess {
    room: Arc<Room>,
    rank: usize,
    round: AtomicUsize,
}

/// What was locked stays in order when a thread panics: each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    /// For ranks on these devices.
    pub fn new(devices: Vec<String>, timeout: Duration, fault: Option<Fault>) -> Arc<Self> {
        Self::from_rank(0, devices, timeout, fault)
    }

    /// As [`Self::new`], where ranks before `first` have other rooms.
    pub fn from_rank(
        first: usize,
        devices: Vec<String>,
        timeout: Duration,
        fault: Option<Fault>,
    ) -> Arc<Self> {
        let world = devices.len();
        let doing = Doing { op: BETWEEN, since: Instant::now(), count: 0, is_waiting: false };
        let given = || (0..world).map(|_| Given::default()).collect();
        Arc::new(Self {
            devices,
            first,
            timeout,
            fault,
            round: Mutex::new(Round { number: 0, has_come: vec![false; world], failure: None }),
            changed: Condvar::new(),
            on_failure: Mutex::default(),
            doing: (0..world).map(|_| Mutex::new(doing)).collect(),
            given: [given(), given()],
        })
    }

    /// The place of the room's rank of this number, which only one may take.
    pub fn place(self: &Arc<Self>, rank: usize) -> InProcess {
        InProcess { room: self.clone(), rank, round: AtomicUsize::new(0) }
    }

    /// Ends the run, because of what happened to this rank of the room; an earlier reason stands.
    pub fn fail(&self, rank: usize, reason: &str) {
        let Doing { op, .. } = *lock(&self.doing[rank]);
        let (number, device) = (self.first + rank, &self.devices[rank]);
        self.end(Error::failed(format!("rank {number} on {device} failed in {op}: {reason}")));
    }

    /// Ends the run for this reason, unless it has ended.
    pub fn end(&self, failure: Error) {
        let mut round = lock(&self.round);
        round.failure.get_or_insert(failure);
        self.changed.notify_all();
        drop(round);
        std::mem::take(&mut *lock(&self.on_failure)).iter().for_each(|act| act());
    }

    /// Has `act` called once when the run has ended by a failure.
    pub fn on_failure(&self, act: Box<dyn Fn() + Send>) {
        lock(&self.on_failure).push(act);
    }

    /// What ended the run.
    pub fn failure(&self) -> Option<Error> {
        lock(&self.round).failure.clone()
    }

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
            let seconds = self.timeout.as_secs_f64();
            self.fail(rank, &format!("no end of it in {seconds} s; --timeout allows more"));
        }
        left.max(Duration::from_millis(1))
    }
}

impl InProcess {
    /// Whether it is the first of the room.
    pub(super) fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// What has ended the run.
    pub(super) fn failure(&self) -> Option<Error> {
        self.room.failure()
    }

    /// Ends the run for this reason, unless it has ended.
    pub(super) fn fail(&self, reason: &str) {
        self.room.fail(self.rank, reason);
    }

    /// What the first of the room has, `len` words, which nobody else needs to give.
    pub(super) fn of_first(&self, own: &[u64], len: usize) -> Vec<u64> {
        let mut all = vec![0; len];
        if let Some([given, ..]) = self.give(bytemuck::cast_slice(own)) {
            let given = given.read().unwrap_or_else(PoisonError::into_inner);
            bytemuck::cast_slice_mut(&mut all).copy_from_slice(&given);
        }
        all
    }

    /// Gives `own` to all, and returns what each has given, in the order of ranks; `None` if the run has
    /// ended. It stays as it is until this rank gives again.
    fn give(&self, own: &[u32]) -> Option<&[Given]> {
        let number = self.round.fetch_add(1, Ordering::Relaxed);
        let given = &self.room.given[number % 2];
        {
            let mut given = given[self.rank].write().unwrap_or_else(PoisonError::into_inner);
            given.clear();
            given.extend_from_slice(own);
        }
        self.meet(number).then_some(given)
    }

    /// Waits until all ranks have come to this round. False if the run has ended.
    fn meet(&self, number: usize) -> bool {
        let room = &*self.room;
        let since = Instant::now();
        lock(&room.doing[self.rank]).is_waiting = true;
        let mut round = lock(&room.round);
        round.has_come[self.rank] = true;
        if round.has_come.iter().all(|has_come| *has_come) {
            round.number += 1;
            round.has_come.fill(false);
            room.changed.notify_all();
        }
        while round.number == number && round.failure.is_none() {
            let has_come = round.has_come.clone();
            drop(round); // whoever is to blame is told of with the lock held
            let patience = room.patience(since, &has_come);
            round = lock(&room.round);
            if round.number == number && round.failure.is_none() {
                let waited = room.changed.wait_timeout(round, patience);
                round = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        let all_came = round.number > number;
        drop(round);
        let mut doing = lock(&room.doing[self.rank]);
        (doing.is_waiting, doing.since) = (false, Instant::now());
        all_came
    }

    fn suffer(&self, kind: Kind) {
        match kind {
            Kind::Error => self.room.fail(self.rank, "a fault that was asked for"),
            Kind::Panic => panic!("a fault that was asked for"),
            Kind::Delay(time) => std::thread::sleep(time),
        }
    }
}

impl Communicator for InProcess {
    fn rank(&self) -> usize {
        self.room.first + self.rank
    }

    fn world(&self) -> usize {
        self.room.devices.len()
    }

    fn timeout(&self) -> Duration {
        self.room.timeout
    }

    fn all_reduce(&self, values: &mut [f32]) {
        let Some(given) = self.give(bytemuck::cast_slice(values)) else {
            return;
        };
        values.fill(0.0);
        for given in given {
            let given = given.read().unwrap_or_else(PoisonError::into_inner);
            for (sum, value) in values.iter_mut().zip(bytemuck::cast_slice::<_, f32>(&given)) {
                *sum += value;
            }
        }
    }

    fn all_gather(&self, own: &[u64]) -> Vec<u64> {
        let mut all = own.repeat(self.world());
        if let Some(given) = self.give(bytemuck::cast_slice(own)) {
            for (all, given) in all.chunks_exact_mut(own.len()).zip(given) {
                let given = given.read().unwrap_or_else(PoisonError::into_inner);
                bytemuck::cast_slice_mut(all).copy_from_slice(&given);
            }
        }
        all
    }

    fn enter(&self, op: &'static str) -> Result<()> {
        let count = {
            let mut doing = lock(&self.room.doing[self.rank]);
            (doing.op, doing.since, doing.is_waiting) = (op, Instant::now(), false);
            doing.count
        };
        if let Some(Fault { rank, op, kind }) = self.room.fault
            && (rank, op) == (self.rank, count)
        {
            self.suffer(kind);
        }
        lock(&self.room.doing[self.rank]).count += 1;
        self.room.failure().map_or(Ok(()), Err)
    }

    fn on_failure(&self, act: Box<dyn Fn() + Send>) {
        self.room.on_failure(act);
    }

    fn leave(&self) -> Result<()> {
        let mut doing = lock(&self.room.doing[self.rank]);
        (doing.op, doing.since) = (BETWEEN, Instant::now());
        drop(doing);
        self.room.failure().map_or(Ok(()), Err)
    }
}
