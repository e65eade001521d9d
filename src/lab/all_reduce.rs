//! How long sums over all ranks take, by their size and by the way they go.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::bench::{FEWEST, MOST_TIME, RUN_TIME, Times};
use crate::bench::percentile;
use crate::comm::{Communicator, LocalGroup};
use crate::config::Shard;
use crate::error::{Error, Result};
use crate::executor::cuda::Gpu;
use crate::executor::{Blueprint, Captured, Executor, Hardware};
use crate::memory::{Layout, Slot};
use crate::op::{Op, Program};
use crate::ops::{AllReduce, EMPTY, Mailbox};

/// Bytes of the sums to time.
pub const SUM_BYTES: [usize; 10] = [
    2 << 10,
    4 << 10,
    8 << 10,
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
];

/// Sums of a run at most: what NCCL has captured takes memory.
const MOST_ROUNDS: usize = 512;

/// What carries a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The kernel `all_reduce`.
    Peers,
    /// NCCL; the kernel then takes the sum up.
    Nccl,
    /// The hosts, of ranks that share a GPU.
    Hosts,
}

impl Transport {
    pub(super) const ALL: [Self; 3] = [Self::Peers, Self::Nccl, Self::Hosts];

    /// As the fields of rows begin.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Nccl => "nccl",
            Self::Hosts => "hosts",
        }
    }
}

/// What was timed between some ranks.
#[derive(Debug, Default)]
pub struct AllReduceTimes {
    /// How the ranks reach each other, for people.
    pub link: String,
    /// By size, the smallest first.
    pub(super) times: Vec<SumTimes>,
}

/// Seconds that a sum takes, by the way that it goes. Runs of the same number came right after each other.
#[derive(Debug)]
pub(super) struct SumTimes {
    pub(super) bytes: usize,
    pub(super) ways: Vec<(Transport, Times)>,
}

impl SumTimes {
    fn median(&self, way: Transport) -> Option<f64> {
        let (_, times) = self.ways.iter().find(|(known, _)| *known == way)?;
        percentile(times, 0.5)
    }

    /// Those of NCCL over those of the kernel.
    pub(super) fn ratio(&self) -> Option<f64> {
        Some(self.median(Transport::Nccl)? / self.median(Transport::Peers)?)
    }
}

impl AllReduceTimes {
    /// The size from which on NCCL was the faster one at every size; `None` too where the two were not
    /// both timed.
    pub fn nccl_from(&self) -> Option<usize> {
        let ratios =
            self.times.iter().filter_map(|sum| sum.ratio().map(|ratio| (sum.bytes, ratio)));
        let ratios: Vec<_> = ratios.collect();
        ratios
            .into_iter()
            .rev()
            .take_while(|(_, ratio)| *ratio < 1.0)
            .last()
            .map(|(bytes, _)| bytes)
    }

    /// Whether two ways were timed.
    pub fn has_both(&self) -> bool {
        self.times.iter().any(|sum| sum.ratio().is_some())
    }
}

/// One rank, and where its numbers are.
struct Member {
    device: Executor,
    comm: Arc<dyn Communicator>,
    mailbox: Mailbox,
    shares_gpu: bool,
    /// `[N]`
    partial: Slot<f32>,
    /// `[N]`
    x: Slot<f32>,
}

impl Member {
    /// `most`: N
    fn new(gpu: &Gpu, comm: Arc<dyn Communicator>, most: usize, shares_gpu: bool) -> Result<Self> {
        let share = Shard { part: comm.rank(), parts: comm.world() };
        let mut layout = Layout::default();
        let (partial, x) = (layout.slot(&[most]), layout.slot(&[most]));
        let mailbox = Mailbox::with_room(share, most, &mut layout);
        layout.begin_shared();
        let blueprint = Blueprint { comm: comm.clone(), ..Blueprint::of_state(&layout) };
        let mut device = Executor::new(&Hardware::Gpu(gpu.clone()), blueprint)?;
        device.write(mailbox.rounds, &[0; 3])?;
        let mut member = Self { device, comm, mailbox, shares_gpu, partial, x };
        let programs: Vec<_> =
            member.ways(most).into_iter().map(|way| member.program(way, most, 1)).collect();
        member.device.prepare(&programs.iter().collect::<Vec<_>>(), &mut [])?;
        // All are ready when this returns.
        member.device.connect(mailbox.slots, EMPTY, mailbox.addresses)?;
        Ok(member)
    }

    fn sum(&self, way: Transport, count: usize) -> AllReduce {
        let [partial, x] = [self.partial, self.x].map(|slot| slot.part(0, count));
        let mailbox = (way == Transport::Peers).then_some(self.mailbox);
        AllReduce { partial, residual: true, x, world: self.comm.world(), mailbox }
    }

    fn program(&self, way: Transport, count: usize, rounds: usize) -> Program {
        let mut program = Program::default();
        (0..rounds).for_each(|_| program.push(self.sum(way, count)));
        program
    }

    /// The ways to sum `count` numbers.
    fn ways(&self, count: usize) -> Vec<Transport> {
        let Executor::Cuda(cuda) = &self.device else { panic!("a rank on the CPU") };
        let by_kernel = self.sum(Transport::Peers, count).exchange(&cuda.target()).is_none();
        let is_there = |way: &Transport| match way {
            Transport::Peers => by_kernel,
            Transport::Nccl => !self.shares_gpu,
            Transport::Hosts => self.shares_gpu,
        };
        Transport::ALL.into_iter().filter(is_there).collect()
    }

    /// That what all ranks have comes together, of numbers that are others for another `seed`. Zeros are left
    /// to be added up.
    fn check(&mut self, way: Transport, count: usize, seed: usize) -> Result<()> {
        let Shard { part, parts } = self.mailbox.share;
        // Whole numbers: their sums are exact.
        let numbers = |factor: usize| -> Vec<f32> {
            (0..count).map(|i| (factor * ((i + seed) % 251)) as f32).collect()
        };
        let AllReduce { partial, x, .. } = self.sum(way, count);
        self.device.write(partial, &numbers(part + 1))?;
        self.device.write(x, &vec![0.0; count])?;
        let program = self.program(way, count, 1);
        self.device.run(&program)?;
        match self.device.read(x)? == numbers(parts * (parts + 1) / 2) {
            true => Ok(()),
            false => Err(Error::failed(format!("a sum of {count} numbers is wrong"))),
        }
    }

    /// The program as a recording that may be run: every rank has made its own.
    fn recorded(&mut self, program: Program) -> Result<Captured> {
        let mut recording = Captured::new(program);
        self.device.prepare(&[], &mut [&mut recording])?;
        self.comm.all_gather(&[0]);
        self.comm.leave()?;
        Ok(recording)
    }

    /// Seconds that the recording takes once, from when all ranks are ready to when the last is done: the
    /// same on all of them.
    fn time(&mut self, recording: &mut Captured) -> Result<f64> {
        self.comm.all_gather(&[0]);
        self.comm.leave()?;
        let start = Instant::now();
        self.device.step(recording)?;
        self.device.finish()?;
        let times = self.comm.all_gather(&[start.elapsed().as_nanos() as u64]);
        self.comm.leave()?;
        Ok(times.into_iter().max().unwrap_or(0) as f64 / 1e9)
    }

    /// Captured sums of `count` numbers, warmed up, and how many a run has.
    fn recording(&mut self, way: Transport, count: usize) -> Result<(Captured, usize)> {
        let mut run = self.recorded(self.program(way, count, 1))?;
        self.time(&mut run)?; // not as a graph
        let warm = self.time(&mut run)?;
        let rounds = ((RUN_TIME / warm.max(1e-9)).ceil() as usize).clamp(1, MOST_ROUNDS);
        if rounds > 1 {
            run = self.recorded(self.program(way, count, rounds))?;
            self.time(&mut run)?;
        }
        Ok((run, rounds))
    }

    fn measure(
        &mut self,
        bytes: usize,
        repetitions: usize,
        begins: &dyn Fn() -> Result<()>,
    ) -> Result<SumTimes> {
        let count = bytes / size_of::<f32>();
        let mut runs = Vec::new();
        for way in self.ways(count) {
            begins()?;
            self.check(way, count, 0)?;
            runs.push((way, self.recording(way, count)?, Times::new()));
        }
        // What ranks decide by is the same on all of them.
        let mut spent = 0.0;
        for repetition in 0..repetitions {
            if repetition >= FEWEST && spent > MOST_TIME {
                break;
            }
            for (_, (run, rounds), times) in &mut runs {
                begins()?;
                let time = self.time(run)?;
                spent += time;
                times.push(time / *rounds as f64);
            }
        }
        // It may have counted its launches.
        for (way, ..) in &runs {
            begins()?;
            self.check(*way, count, 1)?;
        }
        Ok(SumTimes { bytes, ways: runs.into_iter().map(|(way, _, times)| (way, times)).collect() })
    }
}

/// Times sums of these `sizes` in bytes between ranks on these GPUs, each a thread; `begins` is called
/// before every run. Returns what was timed before an error, and the error. A rank that makes no progress
/// for longer than `patience` is one.
pub fn time_sums(
    gpus: &[Gpu],
    sizes: &[usize],
    repetitions: usize,
    patience: Duration,
    begins: &(dyn Fn() -> Result<()> + Sync),
) -> (AllReduceTimes, Result<()>) {
    let names: Vec<String> = gpus.iter().map(|gpu| format!("cuda:{}", gpu.ordinal)).collect();
    let room = LocalGroup::new(names.clone(), patience, None);
    let most = sizes.iter().max().map_or(0, |bytes| bytes / size_of::<f32>());
    let shares_gpu = shares_gpu(gpus);
    let work = |rank: usize, sums: &mut AllReduceTimes| {
        let mut member = Member::new(&gpus[rank], Arc::new(room.place(rank)), most, shares_gpu)?;
        sums.link = member.device.link().unwrap_or_default();
        let begins = || if rank == 0 { begins() } else { Ok(()) };
        for bytes in sizes {
            sums.times.push(member.measure(*bytes, repetitions, &begins)?);
        }
        Ok(member)
    };
    let work = |rank: usize| {
        let mut sums = AllReduceTimes::default();
        let ended = work(rank, &mut sums).map_err(|error| match error {
            Error::Interrupted => room.end(error),
            error => room.end(Error::failed(format!("rank {rank} on {}: {error}", names[rank]))),
        });
        (sums, ended)
    };
    let mut ended: Vec<_> = thread::scope(|scope| {
        let work = &work;
        let ranks: Vec<_> = (0..gpus.len()).map(|rank| scope.spawn(move || work(rank))).collect();
        // No rank's memory goes before the last one has ended.
        ranks.into_iter().map(|rank| rank.join().expect("no panics in it")).collect()
    });
    let (sums, _) = ended.swap_remove(0);
    (sums, room.failure().map_or(Ok(()), Err))
}

/// Whether some of these GPUs are one.
pub fn shares_gpu(gpus: &[Gpu]) -> bool {
    let is_known = |at: usize| gpus[..at].iter().any(|gpu| gpu.ordinal == gpus[at].ordinal);
    (1..gpus.len()).any(is_known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(times: &[(usize, f64, f64)]) -> AllReduceTimes {
        let sum = |&(bytes, peers, nccl): &(usize, f64, f64)| SumTimes {
            bytes,
            ways: vec![(Transport::Peers, vec![peers]), (Transport::Nccl, vec![nccl])],
        };
        AllReduceTimes { link: String::new(), times: times.iter().map(sum).collect() }
    }

    #[test]
    fn nccl_is_for_sizes_from_which_on_it_is_always_faster() {
        let alone = SumTimes { bytes: 8, ways: vec![(Transport::Nccl, vec![1.0])] };
        for (times, from) in [
            (&[(1, 5.0, 9.0), (2, 5.0, 4.0), (4, 5.0, 6.0), (8, 9.0, 8.0)][..], Some(8)),
            (&[(1, 5.0, 4.0), (2, 5.0, 4.0)], Some(1)),
            (&[(1, 5.0, 6.0), (2, 5.0, 5.0)], None),
            (&[], None),
        ] {
            let mut sums = sums(times);
            assert_eq!((sums.nccl_from(), sums.has_both()), (from, !times.is_empty()));
            sums.times.push(SumTimes { bytes: 9, ways: alone.ways.clone() });
            assert_eq!(sums.nccl_from(), from);
        }
    }
}
