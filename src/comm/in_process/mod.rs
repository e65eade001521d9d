//! Ranks that are threads of one process, and exchange what they have through its memory.

mod stall;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use super::{Communicator, Direction, Look, ProcessLink};
use crate::error::{Error, Result};
use stall::Stall;

/// What the ranks share.
pub struct LocalGroup {
    own: Weak<LocalGroup>,
    /// To other processes.
    link: OnceLock<Weak<ProcessLink>>,
    /// What each rank runs on, for messages.
    devices: Vec<String>,
    /// The number of the first rank, of all that are in other rooms too.
    first: usize,
    stages: usize,
    /// How long a rank may take for an op while others wait for it.
    timeout: Duration,
    fault: Option<Fault>,
    progress: Mutex<Progress>,
    /// A circle has met, or the run has ended.
    changed: Condvar,
    /// What is to be done then.
    on_failure: Mutex<Vec<Box<dyn Fn() + Send>>>,
    doing: Vec<Mutex<Doing>>,
    /// Where the ranks' devices are.
    looks: Vec<OnceLock<Look>>,
    /// All ranks; those of each stage; each rank with the one that it passes to.
    circles: Vec<Subgroup>,
}

/// Ranks that exchange what they have.
struct Subgroup {
    members: Vec<usize>,
    /// What they have given, in even and in odd rounds. A rank that is a round ahead of another does not
    /// touch what that one may still be reading: it gets two ahead only when that one has come on.
    given: [Vec<Given>; 2],
}

type Given = RwLock<Vec<u32>>;

/// Of all ranks.
const ALL: usize = 0;

struct Progress {
    /// By circle.
    rounds: Vec<Round>,
    /// What ended the run.
    failure: Option<Error>,
    /// If that is a stall.
    stall: Option<Stall>,
}

/// One exchange of a circle after the other.
struct Round {
    number: usize,
    /// By rank; nobody else is waited for.
    has_come: Vec<bool>,
}

impl Subgroup {
    fn new(members: Vec<usize>) -> Self {
        let given = || members.iter().map(|_| Given::default()).collect();
        Self { given: [given(), given()], members }
    }

    /// A round begins, in a room of `world` ranks.
    fn round(&self, number: usize, world: usize) -> Round {
        let has_come = (0..world).map(|rank| !self.members.contains(&rank)).collect();
        Round { number, has_come }
    }
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
    /// Whether it has something to do.
    is_at_work: bool,
}

/// Before the first program.
const LOADING: &str = "loading";

/// Between programs.
const BETWEEN: &str = "no op";

/// Something to go wrong, for tests.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub rank: usize,
    /// Of all ops that the rank begins, the one to fail, from 0 on.
    pub op: usize,
    pub kind: FaultKind,
}

#[derive(Debug, Clone, Copy)]
pub enum FaultKind {
    Error,
    Panic,
    /// The op takes this much longer.
    Delay(Duration),
}

/// A rank's place in the room.
pub struct InProcess {
    room: Arc<LocalGroup>,
    rank: usize,
}

/// What was locked stays in order when a thread panics: each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalGroup {
    /// For ranks on these devices.
    pub fn new(devices: Vec<String>, timeout: Duration, fault: Option<Fault>) -> Arc<Self> {
        Self::in_stages(1, 0, devices, timeout, fault)
    }

    /// As [`Self::new`], for ranks in `stages`, which divide them. Ranks before `first` have other
    /// rooms: then there are no stages here.
    pub fn in_stages(
        stages: usize,
        first: usize,
        devices: Vec<String>,
        timeout: Duration,
        fault: Option<Fault>,
    ) -> Arc<Self> {
        let world = devices.len();
        let parts = world / stages;
        let of_stage = |stage: usize| Subgroup::new((stage * parts..(stage + 1) * parts).collect());
        let passing = |rank: usize| Subgroup::new(vec![rank, rank + parts]);
        let mut circles = vec![Subgroup::new((0..world).collect())];
        circles.extend((0..stages).map(of_stage));
        circles.extend((0..world - parts).map(passing));
        let rounds = circles.iter().map(|circle| circle.round(0, world)).collect();
        let doing = Doing {
            op: LOADING,
            since: Instant::now(),
            count: 0,
            is_waiting: false,
            is_at_work: true,
        };
        Arc::new_cyclic(|own| Self {
            own: own.clone(),
            link: OnceLock::new(),
            devices,
            first,
            stages,
            timeout,
            fault,
            progress: Mutex::new(Progress { rounds, failure: None, stall: None }),
            changed: Condvar::new(),
            on_failure: Mutex::default(),
            doing: (0..world).map(|_| Mutex::new(doing)).collect(),
            looks: (0..world).map(|_| OnceLock::new()).collect(),
            circles,
        })
    }

    /// The place of the room's rank of this number, which only one may take.
    pub fn place(self: &Arc<Self>, rank: usize) -> InProcess {
        InProcess { room: self.clone(), rank }
    }

    /// Ends the run, because of what happened to this rank of the room; an earlier reason stands.
    pub fn fail(&self, rank: usize, reason: &str) {
        let Doing { op, .. } = *lock(&self.doing[rank]);
        self.end(self.failure_of(rank, op, reason));
    }

    fn failure_of(&self, rank: usize, op: &str, reason: &str) -> Error {
        let (number, device) = (self.first + rank, &self.devices[rank]);
        Error::failed(format!("rank {number} on {device} failed in {op}: {reason}"))
    }

    /// Ends the run for this reason, unless it has ended.
    pub fn end(&self, failure: Error) {
        self.end_by(failure, None);
    }

    /// Says whether the run had not ended before.
    fn end_by(&self, failure: Error, stall: Option<Stall>) -> bool {
        let mut progress = lock(&self.progress);
        let is_new = progress.failure.is_none();
        if is_new {
            (progress.failure, progress.stall) = (Some(failure), stall);
        }
        self.changed.notify_all();
        drop(progress);
        std::mem::take(&mut *lock(&self.on_failure)).iter().for_each(|act| act());
        is_new
    }

    /// Tells that this rank of the room is not at a stand.
    pub fn gets_on(&self, rank: usize) {
        lock(&self.doing[rank]).since = Instant::now();
    }

    /// Has `act` called once when the run has ended by a failure: now, if it has.
    pub fn on_failure(&self, act: Box<dyn Fn() + Send>) {
        let mut acts = lock(&self.on_failure);
        match self.failure() {
            None => acts.push(act),
            Some(_) => {
                drop(acts);
                act();
            }
        }
    }

    /// What ended the run.
    pub fn failure(&self) -> Option<Error> {
        lock(&self.progress).failure.clone()
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
        if let Some([given, ..]) = self.give(ALL, bytemuck::cast_slice(own)) {
            let given = given.read().unwrap_or_else(PoisonError::into_inner);
            bytemuck::cast_slice_mut(&mut all).copy_from_slice(&given);
        }
        all
    }

    /// Gives `own` to a circle that this rank is of, and returns what each member has given, in the order
    /// of ranks; `None` if the run has ended. It stays as it is until this rank gives again.
    fn give(&self, circle: usize, own: &[u32]) -> Option<&[Given]> {
        let Subgroup { members, given } = &self.room.circles[circle];
        // It is this round until this rank has come.
        let number = lock(&self.room.progress).rounds[circle].number;
        let given = &given[number % 2];
        let place =
            members.iter().position(|rank| *rank == self.rank).expect("a circle of its own");
        {
            let mut given = given[place].write().unwrap_or_else(PoisonError::into_inner);
            given.clear();
            given.extend_from_slice(own);
        }
        self.meet(circle, number).then_some(given)
    }

    /// Waits until all members of a circle have come to this round. False if the run has ended.
    fn meet(&self, circle: usize, number: usize) -> bool {
        let room = &*self.room;
        let since = Instant::now();
        lock(&room.doing[self.rank]).is_waiting = true;
        let mut progress = lock(&room.progress);
        let round = &mut progress.rounds[circle];
        round.has_come[self.rank] = true;
        if round.has_come.iter().all(|has_come| *has_come) {
            *round = room.circles[circle].round(number + 1, room.devices.len());
            room.changed.notify_all();
        }
        let waits = |progress: &Progress| {
            progress.rounds[circle].number == number && progress.failure.is_none()
        };
        while waits(&progress) {
            let has_come = progress.rounds[circle].has_come.clone();
            drop(progress); // whoever is to blame is told of with the lock held
            let patience = room.patience(since, &has_come);
            progress = lock(&room.progress);
            if waits(&progress) {
                let waited = room.changed.wait_timeout(progress, patience);
                progress = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        let all_came = progress.rounds[circle].number > number;
        drop(progress);
        let mut doing = lock(&room.doing[self.rank]);
        (doing.is_waiting, doing.since) = (false, Instant::now());
        all_came
    }

    fn suffer(&self, kind: FaultKind) {
        match kind {
            FaultKind::Error => self.room.fail(self.rank, "a fault that was asked for"),
            FaultKind::Panic => panic!("a fault that was asked for"),
            FaultKind::Delay(time) => std::thread::sleep(time),
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

    fn stages(&self) -> usize {
        self.room.stages
    }

    fn all_reduce(&self, values: &mut [f32]) {
        let stage = 1 + self.rank * self.room.stages / self.world();
        let Some(given) = self.give(stage, bytemuck::cast_slice(values)) else {
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

    fn pass(&self, values: &mut [f32], direction: Direction) {
        let (sender, own) = match direction {
            Direction::Send => (self.rank, &*values),
            Direction::Receive => (self.rank - self.stage().len(), &[][..]),
        };
        let passing = 1 + self.room.stages + sender;
        let given = self.give(passing, bytemuck::cast_slice(own));
        if let (Some([given, _]), Direction::Receive) = (given, direction) {
            let given = given.read().unwrap_or_else(PoisonError::into_inner);
            values.copy_from_slice(bytemuck::cast_slice(&given));
        }
    }

    fn all_gather(&self, own: &[u64]) -> Vec<u64> {
        let mut all = own.repeat(self.world());
        if let Some(given) = self.give(ALL, bytemuck::cast_slice(own)) {
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

    fn watch(&self, look: Look) {
        let _ = self.room.looks[self.rank].set(look); // a rank has one device
    }

    fn on_failure(&self, act: Box<dyn Fn() + Send>) {
        self.room.on_failure(act);
    }

    fn leave(&self) -> Result<()> {
        let mut doing = lock(&self.room.doing[self.rank]);
        doing.op = if doing.count == 0 { LOADING } else { BETWEEN };
        doing.since = Instant::now();
        drop(doing);
        self.room.failure().map_or(Ok(()), Err)
    }
}
