use super::{launch, size};
use crate::case::{Case, Judge, Numbers, Setup};
use crate::encoding::Float;
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot};
use crate::op::{Cost, Op, Target};

/// Products of small matrices of small integers, the same again and again, from a GPU's registers: what
/// its tensor cores reach. `y[b, thread]` is `rounds` times the sum of the elements of `A_i B_j`
/// (i < 2, j < 4) that the thread's lane holds, as mma.sync m16n8k16 deals them out.
pub struct MmaPeak {
    pub rounds: u32,
    /// Out. `[blocks, 256]`
    pub y: Slot<f32>,
}

/// Rows of A, columns of B, and what lies between.
const SHAPE: [usize; 3] = [16, 8, 16];
/// Matrices A and B.
const AS: usize = 2;
const BS: usize = 4;
/// Threads of a block.
const THREADS: usize = 256;

impl Op for MmaPeak {
    fn name(&self) -> &'static str {
        "mma_peak"
    }

    fn cost(&self, _position: usize) -> Cost {
        let warps = self.y.len() / 32;
        let [m, n, k] = SHAPE;
        let flops = (2 * m * n * k * AS * BS * warps) as u64 * u64::from(self.rounds);
        Cost { flops, ..Cost::default() }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (y,) = memory.slots((self.y,));
        for (thread, y) in y.iter_mut().enumerate() {
            let lane = thread % 32;
            let (row, column) = (lane / 4, 2 * (lane % 4));
            let mut sum = 0;
            for (row, column) in
                [(row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1)]
            {
                for (a, b) in (0..AS).flat_map(|a| (AS..AS + BS).map(move |b| (a, b))) {
                    let terms = (0..SHAPE[2]).map(|k| element(a, row, k) * element(b, k, column));
                    sum += terms.sum::<i64>();
                }
            }
            *y = (i64::from(self.rounds) * sum) as f32;
        }
    }

    fn launch(&self, _target: &Target) -> Launch {
        let arguments = kernel::MmaPeak { y: self.y, rounds: self.rounds }.arguments();
        let grid = [size(self.y.len() / THREADS), 1];
        launch(kernel::MmaPeak::KERNEL, (Float::Bf16, 0), grid, 0, arguments)
    }
}

/// Element (row, column) of matrix `which`, in -3..=3.
fn element(which: usize, row: usize, column: usize) -> i64 {
    ((37 * which + 11 * row + 5 * column + row * column) % 7) as i64 - 3
}

impl MmaPeak {
    pub fn cases() -> Vec<Case> {
        let case = |(blocks, rounds)| {
            let mut setup = Setup::new(Numbers::Whole);
            let y = setup.written("y", &[blocks, THREADS], Judge::Exact);
            setup.case(format!("{blocks} blocks, {rounds} rounds"), Self { rounds, y })
        };
        [(1, 1), (3, 7), (2, 400)].map(case).into()
    }
}
