//! This machine's measured peaks, not read from a data sheet: how fast it reads memory, and
//! how fast it multiplies.

use std::time::{Duration, Instant};

use crate::checkpoint::synthetic::Recipe;
use crate::encoding::Float;
use crate::error::Result;
use crate::executor::{Blueprint, Captured, Executor, Hardware, Threads};
use crate::memory::Layout;
use crate::op::Program;
use crate::ops::{MmaPeak, ReadAll, Synthesize};
use crate::vector::multiply_adds;

/// The roofs over everything that runs here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Of a read of `read_bytes` bytes that does nothing else.
    pub read_bytes_per_s: f64,
    pub read_bytes: usize,
    /// Of products in registers: mma.sync in bf16 on a GPU, vector multiply-adds on the CPU, in f32
    /// or of bf16.
    pub flops_per_s: f64,
    /// How much longer half of the runs took than the fastest, which counts: of reads and of products.
    pub spreads: [f64; 2],
}

/// A spread of the ceilings from which on something else is at work on the machine.
pub const BUSY: f64 = 0.1;

/// Bytes that are read at most: many times any cache, so that none of it is left there.
const MOST_CPU_BYTES: usize = 1 << 30;
const MOST_GPU_BYTES: usize = 4 << 30;

/// A measurement counts the fastest of many runs, since what disturbs them only slows them down: each
/// at least this long, so that starting it is no part worth mentioning...
const RUN_TIME: Duration = Duration::from_millis(5);
/// ...and as many as fit into this, but a few in any case.
const ALL_TIME: Duration = Duration::from_millis(150);
const TRIES: usize = 2;

/// Rounds after which the sums of [`MmaPeak`] would no longer be exact.
const MOST_ROUNDS: u32 = 1 << 16;
/// Multiply-adds of a round on the CPU, one after the other.
const CPU_ROUND: usize = 1 << 10;

impl Ceilings {
    /// Measures both. `multiplied`: of products on the CPU, f32 or bf16. A model of `weight_bytes` that
    /// fits a cache is compared with reads from there.
    ///
    /// # Errors
    /// No memory to read; a device that fails.
    pub fn measure(hardware: &Hardware, multiplied: Float, weight_bytes: usize) -> Result<Self> {
        let (most, free) = match hardware {
            Hardware::Cpu(_) => (MOST_CPU_BYTES, usize::MAX),
            Hardware::Gpu(gpu) => (MOST_GPU_BYTES, gpu.memory()?.0 / 2),
        };
        let read_bytes = weight_bytes.min(most).min(free).next_multiple_of(1 << 12);
        let read = read_rate(hardware, read_bytes)?;
        let products = match hardware {
            Hardware::Cpu(threads) => cpu_rate(threads, multiplied)?,
            Hardware::Gpu(gpu) => tensor_core_rate(hardware, gpu.multiprocessors)?,
        };
        Ok(Self {
            read_bytes_per_s: read.per_s,
            read_bytes,
            flops_per_s: products.per_s,
            spreads: [read.spread, products.spread],
        })
    }
}

impl std::ops::Mul<usize> for Ceilings {
    type Output = Self;

    /// Of `devices` together.
    fn mul(self, devices: usize) -> Self {
        Self {
            read_bytes_per_s: self.read_bytes_per_s * devices as f64,
            read_bytes: self.read_bytes * devices,
            flops_per_s: self.flops_per_s * devices as f64,
            ..self
        }
    }
}

struct Rate {
    per_s: f64,
    spread: f64,
}

fn read_rate(hardware: &Hardware, bytes: usize) -> Result<Rate> {
    let mut layout = Layout::default();
    let memory = layout.slot::<u8>(&[bytes]);
    let words = memory.cast::<u32>();
    let blocks = match hardware {
        Hardware::Cpu(_) => 1,
        Hardware::Gpu(gpu) => ReadAll::blocks(gpu.multiprocessors),
    };
    let sums = layout.slot::<u32>(&[blocks as usize]);
    let mut device = Executor::new(hardware, Blueprint::of_state(&layout))?;
    // Memory that was never written may be one page of zeros again and again.
    let mut fill = Program::default();
    fill.push(Synthesize::whole(Recipe::standard(Float::Bf16, 0, 0), memory));
    device.run(&fill)?;
    program_rate(&mut device, bytes as f64, |rounds| {
        let mut program = Program::default();
        (0..rounds).for_each(|_| program.push(ReadAll { words, sums }));
        program
    })
}

fn tensor_core_rate(hardware: &Hardware, multiprocessors: u32) -> Result<Rate> {
    let mut layout = Layout::default();
    let y = layout.slot::<f32>(&[2 * multiprocessors as usize, 256]);
    let mut device = Executor::new(hardware, Blueprint::of_state(&layout))?;
    let products = |rounds| {
        let mut program = Program::default();
        program.push(MmaPeak { rounds, y });
        program
    };
    program_rate(&mut device, products(1).cost(0).flops as f64, products)
}

/// Units of work a second where a round is `work` of them: of as many rounds as take long enough, the
/// fastest run. `times(rounds, runs)`: each run's time
fn rate(work: f64, mut times: impl FnMut(u32, usize) -> Result<Vec<Duration>>) -> Result<Rate> {
    let fastest = |times: &[Duration]| times.iter().min().map_or(1e-9, Duration::as_secs_f64);
    let (mut rounds, mut all) = (1, times(1, TRIES)?);
    while rounds < MOST_ROUNDS && fastest(&all) < RUN_TIME.as_secs_f64() {
        rounds *= 2;
        all = times(rounds, TRIES)?;
    }
    // A slow device has had its tries.
    let runs = (ALL_TIME.as_secs_f64() / fastest(&all).max(1e-6)) as usize;
    if runs > TRIES {
        all.extend(times(rounds, runs)?);
    }
    let (fastest, half) = (fastest(&all).max(1e-9), all.len() / 2);
    let median = all.select_nth_unstable(half).1.as_secs_f64();
    Ok(Rate { per_s: work * f64::from(rounds) / fastest, spread: median / fastest - 1.0 })
}

/// The rate of `program(rounds)`.
fn program_rate(
    device: &mut Executor,
    work: f64,
    program: impl Fn(u32) -> Program,
) -> Result<Rate> {
    rate(work, |rounds, runs| {
        let mut recording = Captured::new(program(rounds));
        let mut run = || {
            let start = Instant::now();
            device.step(&mut recording)?;
            device.finish()?;
            Ok(start.elapsed())
        };
        // The first loads the kernel, the second is the graph's first.
        run()?;
        run()?;
        (0..runs).map(|_| run()).collect()
    })
}

/// Floating point operations a second of all threads together.
fn cpu_rate(threads: &Threads, multiplied: Float) -> Result<Rate> {
    let run = |rounds| threads.run(|| rayon::broadcast(|_| multiply_adds(multiplied, rounds)));
    let flops: usize = run(CPU_ROUND).into_iter().sum();
    rate(flops as f64, |rounds, runs| {
        let time = |_| {
            let start = Instant::now();
            run(rounds as usize * CPU_ROUND);
            start.elapsed()
        };
        Ok((0..runs).map(time).collect())
    })
}
