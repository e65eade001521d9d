//! Ranks on emulated GPUs that add up over each other's memory, round after round: the same bits for all,
//! those of the sum in the order of ranks, whoever is early and whoever late.

use std::sync::Arc;
use std::thread;

use crate::peers::{
    LATE_STORES, THREAD_SANITIZER, catches, each, gpus, left_alone,
    passes_under_every_schedule_and_checker, room, tarry,
};
use chaski::comm::{Communicator, LocalGroup};
use chaski::config::Shard;
use chaski::error::Result;
use chaski::executor::cuda::Gpu;
use chaski::executor::{Blueprint, Executor, Hardware};
use chaski::memory::{Layout, Slot};
use chaski::op::Program;
use chaski::ops::{AllReduce, EMPTY, Mailbox};
use chaski::random::random;

/// Numbers that a round exchanges at most: more than a block takes at a time.
const MOST: usize = 1028;

/// One rank, and where its numbers are.
struct Rank {
    device: Executor,
    comm: Arc<dyn Communicator>,
    mailbox: Mailbox,
    partial: Slot<f32>,
    x: Slot<f32>,
}

impl Rank {
    fn new(gpu: Gpu, room: &Arc<LocalGroup>, share: Shard) -> Self {
        let comm: Arc<dyn Communicator> = Arc::new(room.place(share.part));
        let mut layout = Layout::default();
        let (partial, x) = (layout.slot(&[MOST]), layout.slot(&[MOST]));
        let mailbox = Mailbox::plan(share, MOST, &mut layout).unwrap();
        layout.begin_shared();
        let blueprint = Blueprint { comm: comm.clone(), ..Blueprint::of_state(&layout) };
        let device = Executor::new(&Hardware::Gpu(gpu), blueprint).unwrap();
        let mut rank = Self { device, comm, mailbox, partial, x };
        rank.device.write(mailbox.rounds, &[0; 3]).unwrap();
        rank.device.prepare(&[&rank.program(MOST, true)], &mut []).unwrap();
        rank.device.connect(mailbox.slots, EMPTY, mailbox.addresses).unwrap();
        assert!(rank.device.link().unwrap().contains("peer memory"));
        rank
    }

    fn program(&self, count: usize, residual: bool) -> Program {
        let world = self.mailbox.share.parts;
        let [partial, x] = [self.partial, self.x].map(|slot| slot.part(0, count));
        let mut program = Program::default();
        program.push(AllReduce { partial, residual, x, world, mailbox: Some(self.mailbox) });
        program
    }

    /// Queues a round over the first `given` numbers.
    fn start(&mut self, given: &[f32], residual: bool) -> Result<()> {
        self.device.write(self.partial, given).unwrap();
        self.device.run(&self.program(given.len(), residual))
    }
}

/// What a rank gives in a round: zeros of both signs among numbers of any size.
fn given(rank: usize, round: usize) -> Vec<f32> {
    let count = [MOST, 4, 516, 1024][round % 4];
    let number = |i: usize| {
        let bits = random((rank * 1_000_000 + round) as u64, i as u64) as u32;
        match bits % 8 {
            0 => -0.0,
            1 => 0.0,
            scale => (bits as f32 / u32::MAX as f32 - 0.5) * (scale as f32).exp2(),
        }
    };
    (0..count).map(number).collect()
}

/// Whether the residual stream is added to.
fn is_residual(round: usize) -> bool {
    round % 7 != 3
}

/// The residual stream of all ranks after `rounds`.
fn expected(world: usize, rounds: usize) -> Vec<f32> {
    let mut x = vec![0.0; MOST];
    for round in 0..rounds {
        let mut sum = vec![0.0; given(0, round).len()];
        for rank in 0..world {
            sum.iter_mut().zip(given(rank, round)).for_each(|(sum, value)| *sum += value);
        }
        for (x, sum) in x.iter_mut().zip(sum) {
            *x = if is_residual(round) { *x + sum } else { sum };
        }
    }
    x
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// The residual stream of each rank after `rounds`, which nobody waits for between.
fn run(world: usize, rounds: usize) -> Vec<Vec<f32>> {
    each(world, |gpu, room, share| {
        let mut rank = Rank::new(gpu, room, share);
        rank.device.write(rank.x, &[0.0; MOST]).unwrap();
        for round in 0..rounds {
            tarry(share.part, round);
            rank.start(&given(share.part, round), is_residual(round)).unwrap();
        }
        assert!(rank.device.read(rank.partial).unwrap()[..4] == [0.0; 4]);
        let x = rank.device.read(rank.x).unwrap().to_vec();
        (x, rank)
    })
}

fn check(world: usize, rounds: usize) {
    let expected = bits(&expected(world, rounds));
    for (rank, x) in run(world, rounds).iter().enumerate() {
        assert!(bits(x) == expected, "rank {rank} of {world}, after {rounds} rounds");
    }
}

#[test]
fn all_ranks_get_the_bits_of_the_sum_in_order() {
    [2, 4, 8].into_iter().for_each(|world| check(world, 20));
}

/// Few enough for ThreadSanitizer.
#[test]
fn a_few_rounds() {
    [2, 3].into_iter().for_each(|world| check(world, 8));
}

#[test]
fn thousands_of_rounds() {
    [(2, 3000), (4, 1000), (8, 500)].into_iter().for_each(|(world, rounds)| check(world, rounds));
}

/// The other rank's part of each round is there before this one has begun the round before: as far ahead
/// as it can be.
#[test]
fn a_rank_that_is_a_round_ahead_takes_nothing_away() {
    let room = room(2);
    let ready = |(part, gpu)| Rank::new(gpu, &room, Shard { part, parts: 2 });
    let mut ranks: Vec<Rank> = thread::scope(|scope| {
        let ready = &ready;
        let gpus = gpus(2).into_iter().enumerate();
        let threads: Vec<_> = gpus.map(|rank| scope.spawn(move || ready(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let Rank { device, mailbox, x, .. } = &mut ranks[0];
    let (slots, x) = (mailbox.slots, *x);
    device.write(x, &[0.0; MOST]).unwrap();
    let come = |rank: &mut Rank, round: usize| {
        let part: Vec<f32> = given(1, round).iter().map(|value| value + 0.0).collect(); // no -0.0
        let set = round % 3 * slots.len() / 3;
        rank.device.write(slots.part(set + MOST, part.len()), &part).unwrap();
    };
    come(&mut ranks[0], 0);
    for round in 0..20 {
        come(&mut ranks[0], round + 1);
        ranks[0].start(&given(0, round), is_residual(round)).unwrap();
        let x = ranks[0].device.read(x).unwrap();
        assert!(bits(x) == bits(&expected(2, round + 1)), "after round {round}");
    }
}

#[test]
fn under_every_schedule_and_every_checker() {
    passes_under_every_schedule_and_checker("all_reduce::a_few_rounds");
}

/// What is wrong in these shows in the tests above: old parts taken for new ones; a word of four taken
/// for all; parts that another rank's emptying may follow; a round that ends before all blocks have.
#[test]
fn mistakes_in_the_kernel_are_caught() {
    let mistakes = [
        (("CHASKI_EMULATE_SANITIZE", "none"), "{EMPTY, EMPTY, EMPTY, EMPTY}", "{1, 1, 1, 1}"),
        (LATE_STORES, "v.x != EMPTY && v.y != EMPTY && v.z != EMPTY && v.w", "v.w"),
        (LATE_STORES, "    fence_system();\n", ""),
        (THREAD_SANITIZER, "atomic_add_acq_rel_gpu(&", "atomic_add_gpu(&"),
    ];
    catches("all_reduce::a_few_rounds", "all_reduce", &mistakes);
}

/// A kernel that waits for a rank which never comes ends when the run does.
#[test]
fn a_rank_that_is_gone_keeps_nobody() {
    let ready = |gpu, room: &_, share| Rank::new(gpu, room, share);
    let said =
        left_alone(ready, |rank| rank.start(&[1.0; 4], false).and_then(|()| rank.comm.leave()));
    assert!(said.contains("rank 1 on cuda:1") && said.contains("it is gone"), "{said}");
}
