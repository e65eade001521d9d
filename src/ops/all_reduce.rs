use super::{blocks, launch, size};
use crate::case::{Case, Content, Judge, Numbers, Setup};
use crate::config::Shard;
use crate::encoding::Float;
use crate::kernel::{self, Launch};
use crate::memory::{Layout, Memory, Slot};
use crate::op::{Cost, Exchange, Op, Operands, Target};

/// The residual stream takes up what all ranks of a stage have found, each a part of a sum: `x = sum of
/// partial`, or `x += sum of partial`, added up in the order of ranks. `x` is the same on all, to the bit.
pub struct AllReduce {
    /// In, and zeros after: what comes next adds to it. `[T, C]`
    pub partial: Slot<f32>,
    /// Add to what `x` holds.
    pub residual: bool,
    /// In and out. `[T, C]`
    pub x: Slot<f32>,
    /// Number of ranks, of this stage.
    pub world: usize,
    /// Where they are several.
    pub mailbox: Option<Mailbox>,
}

/// What ranks that reach each other's memory exchange sums through.
#[derive(Debug, Clone, Copy)]
pub struct Mailbox {
    /// What has come from each rank, in three rounds that follow each other; [`EMPTY`] where nothing has.
    /// `[3, world, M]`
    pub slots: Slot<f32>,
    /// Of all ranks' slots, and of a word by which the host ends the wait for them. `[world + 1]`
    pub addresses: Slot<u64>,
    /// The round modulo 3, how much the last one has exchanged, and blocks that are done with it. `[3]`
    pub rounds: Slot<u32>,
    pub share: Shard,
}

/// Instead of a number: nothing has come yet.
pub const EMPTY: f32 = -0.0;

/// The most ranks that work together over each other's memory.
pub(super) const MOST_RANKS: usize = 8;

impl Mailbox {
    /// The most bytes of a sum that ranks make by themselves; what is more, NCCL adds up. At eight
    /// ranks, 2 MB come in for this much: 4 us at 450 GB/s, a third of what is saved in latency. Not
    /// measured; `chaski kernels bench all_reduce` does that.
    pub const MOST_BYTES: usize = 256 << 10;

    /// For sums of up to `most` numbers; `None` where a rank is alone.
    pub fn plan(share: Shard, most: usize, layout: &mut Layout) -> Option<Self> {
        let room = most.next_multiple_of(4).min(Self::MOST_BYTES / 4);
        (share.parts > 1).then(|| Self::with_room(share, room, layout))
    }

    /// For sums of up to `room` numbers, a multiple of 4, however many.
    pub fn with_room(share: Shard, room: usize, layout: &mut Layout) -> Self {
        Self {
            slots: layout.slot(&[3, share.parts, room]),
            addresses: layout.slot(&[share.parts + 1]),
            rounds: layout.slot(&[3]),
            share,
        }
    }

    /// M: the most numbers of a rank.
    fn room(&self) -> usize {
        self.slots.len() / (3 * self.share.parts)
    }
}

impl Op for AllReduce {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    /// As if each rank sent its part to each other one: at the sizes of one token, time is all latency.
    fn cost(&self, _position: usize) -> Cost {
        Cost {
            flops: (self.world * self.x.len()) as u64,
            link_bytes: ((self.world - 1) * self.partial.bytes()) as u64,
            ..Cost::default()
        }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let comm = memory.comm;
        let (partial, x) = memory.slots((self.partial, self.x));
        comm.all_reduce(partial);
        if !self.residual {
            x.fill(0.0);
        }
        x.iter_mut().zip(&*partial).for_each(|(x, sum)| *x += sum);
        partial.fill(0.0);
    }

    fn exchange(&self, target: &Target) -> Option<Exchange> {
        self.by_kernel(target).is_none().then_some(Exchange::Sum(self.partial))
    }

    fn operands(&self) -> Operands {
        Operands { input: vec![self.x.len()], ..Operands::default() }
    }

    fn launch(&self, target: &Target) -> Launch {
        let count = self.x.len();
        // Blocks that wait for other GPUs': there are no more than run at once.
        let (mailbox, grid) = match self.by_kernel(target) {
            Some(mailbox) => {
                (Some(mailbox), blocks(count.div_ceil(4 * 256), target.multiprocessors))
            }
            None => (None, blocks(count.div_ceil(256), 8 * target.multiprocessors)),
        };
        let nowhere = self.partial.part(0, 0);
        let arguments = kernel::AllReduce {
            partial: self.partial,
            x: self.x,
            slots: mailbox.map_or(nowhere, |mailbox| mailbox.slots),
            addresses: mailbox.map_or(nowhere.cast(), |mailbox| mailbox.addresses),
            rounds: mailbox.map_or(nowhere.cast(), |mailbox| mailbox.rounds),
            count: size(count),
            room: mailbox.map_or(0, |mailbox| size(mailbox.room())),
            world: mailbox.map_or(1, |mailbox| size(mailbox.share.parts)),
            rank: mailbox.map_or(0, |mailbox| size(mailbox.share.part)),
            residual: self.residual.into(),
        }
        .arguments();
        let grid = [grid, 1];
        let launch = launch(kernel::AllReduce::KERNEL, (Float::F32, 0), grid, 0, arguments);
        Launch { together: mailbox.is_some(), ..launch }
    }
}

impl AllReduce {
    /// What the kernel makes the sum through, if it does that.
    fn by_kernel(&self, target: &Target) -> Option<Mailbox> {
        let suits = |mailbox: &Mailbox| {
            let count = self.partial.len();
            target.reaches_peers
                && self.world <= MOST_RANKS
                && count <= mailbox.room()
                && count.is_multiple_of(4)
        };
        self.mailbox.filter(suits)
    }

    /// What a rank does with a sum; one of a single rank is its own part.
    pub fn cases() -> Vec<Case> {
        let cases = [1, 255, 4096, 100_003].into_iter().flat_map(|n| [false, true].map(|r| (n, r)));
        let case = |(count, residual)| {
            let mut setup = Setup::new(Numbers::Real);
            let op = Self {
                partial: setup.changed("partial", &[count], Content::Real(3.0), Judge::Exact),
                residual,
                x: setup.changed("x", &[count], Content::Real(1.0), Judge::Exact),
                world: 1,
                mailbox: None,
            };
            setup.case(format!("{count} sums, residual {residual}"), op)
        };
        cases.map(case).collect()
    }
}
