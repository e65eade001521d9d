//! Faults of one of two ranks on emulated GPUs, which a number stands for: of any kind, at any place.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use chaski::random::random;

/// What is asked of two ranks.
pub const ASK: [&str; 19] = [
    "generate",
    "-m",
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gqa8-hd64-f16"),
    "--ids",
    "1,2,3",
    "--print-ids",
    "-n",
    "6",
    "--temp",
    "2",
    "--seed",
    "3",
    "--ignore-eos",
    "--context",
    "64",
    "--prefill-chunk",
    "8",
    "--emulate",
    "2",
];

/// How long a stall may last: what is asked takes a second.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Calls `check` with every number, several at a time: runs that stall do nothing but wait.
pub fn for_each(numbers: impl Iterator<Item = u64> + Send, check: impl Fn(u64) + Sync) {
    const AT_ONCE: usize = 3;
    let numbers = Mutex::new(numbers);
    let next = || numbers.lock().unwrap().next();
    let work = || {
        while let Some(number) = next() {
            check(number);
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(work);
        }
    });
}

/// What goes wrong.
#[derive(Debug)]
pub struct Fault {
    /// Of this rank, which is on the GPU of the same number.
    pub rank: usize,
    pub variable: &'static str,
    pub value: String,
    pub kind: FaultKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Something ends with an error.
    Error,
    /// A kernel never ends.
    Stall,
    /// A collective of NCCL is never joined.
    StallInNccl,
    /// The rank ends in the middle of a collective.
    Death,
    /// The rank takes long for every collective.
    Slow,
}

/// How often each of these is called at least, for a GPU or a rank.
const LAUNCHES: u64 = 42;
const WAITS: u64 = 15;
const SUMS: u64 = 15;

impl Fault {
    pub fn new(number: u64) -> Self {
        let pick = |what: u64, of: u64| random(number, what) % of;
        let rank = pick(0, 2) as usize;
        let of_gpu = |kind: FaultKind, function: &str, calls: u64, result: &str| {
            let value = format!("{function}@{rank}:{}:{result}", 1 + pick(1, calls));
            Self { rank, variable: "CHASKI_EMULATE_FAULT", value, kind }
        };
        let of_rank = |kind: FaultKind, does: &str| {
            let value = format!("{rank}:{does}:{}", 1 + pick(1, SUMS));
            Self { rank, variable: "CHASKI_EMULATE_RANK_FAULT", value, kind }
        };
        match number % 10 {
            0 => of_gpu(FaultKind::Error, "kernel", LAUNCHES, "700"),
            1 => of_gpu(FaultKind::Stall, "kernel", LAUNCHES, "stalls"),
            2 => of_gpu(FaultKind::Error, "cuMemAlloc_v2", 2, "2"),
            3 => of_rank(FaultKind::Death, "dies"),
            4 => of_gpu(FaultKind::Error, "cuLaunchKernelEx", LAUNCHES, "lost"),
            5 => of_rank(FaultKind::StallInNccl, "stalls"),
            6 => of_gpu(FaultKind::Error, "cuMemHostAlloc", 4, "2"),
            7 => of_gpu(FaultKind::Error, "ncclAllReduce", SUMS, "3"),
            8 => of_rank(FaultKind::Slow, "slow"),
            _ => of_gpu(FaultKind::Error, "cuStreamSynchronize", WAITS, "214"),
        }
    }
}
