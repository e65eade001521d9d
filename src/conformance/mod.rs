//! Holds a kernel to its op's reference: every case of the op, on the CPU executor and, through the
//! same device code as a model, on a GPU, real or emulated.

mod compare;
pub mod report;

use std::time::{Duration, Instant};

use crate::case::{Case, CaseSlot};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::executor::cuda::{self, Gpu, Order};
use crate::executor::{Blueprint, Cpu, Cuda, Threads};
use crate::ops;

/// The orders in which an emulated GPU runs a kernel's warps, one after the other; a real GPU runs the
/// kernel as often. Results are the same to the bit.
pub const ORDERS: [Order; 3] = [Order::Ascending, Order::Descending, Order::Shuffled(1)];

/// How many of the cases are worth their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// One in [`ONE_IN`] of the small ones.
    Few,
    /// The small ones.
    Quick,
    /// Those that an emulated GPU has done in a second.
    Usual,
    /// All.
    Thorough,
}

/// Cases come in fours, of two types and two kinds of numbers: an odd step meets all of them.
const ONE_IN: usize = 5;

impl Effort {
    /// Operations of a case, roughly.
    fn limit(self) -> u64 {
        match self {
            Self::Few | Self::Quick => 6_000_000,
            Self::Usual => 60_000_000,
            Self::Thorough => u64::MAX,
        }
    }
}

/// How a case went.
#[derive(Debug)]
pub struct CaseOutcome {
    /// What is wrong, in a line.
    pub wrong: Option<String>,
    pub time: Duration,
}

/// The cases of an op; none for a name that is no op's.
pub fn cases(op: &str, effort: Effort) -> Vec<Case> {
    let all = ops::CASES.iter().find(|(name, _)| *name == op).map_or(Vec::new(), |(_, all)| all());
    let cases = all.into_iter().filter(|case| work(case) <= effort.limit());
    cases.step_by(if effort == Effort::Few { ONE_IN } else { 1 }).collect()
}

/// Operations of a case, roughly: arithmetic, and for each thread what it costs to have it.
fn work(case: &Case) -> u64 {
    case.cost().flops
}

/// Runs a case on `gpu`.
///
/// # Errors
/// When the GPU fails, which it then does for good: with the kernel, and where it can be told the line.
pub fn run(case: &Case, gpu: &Gpu, orders: &[Order]) -> Result<CaseOutcome> {
    let start = Instant::now();
    let region = case.weight_region();
    let checkpoint = || Checkpoint::in_memory(case.encoding(), region.clone());
    let before = case.state();
    let before: &[u8] = &bytemuck::cast_slice(&before)[..case.layout.bytes()];

    let blueprint = || Blueprint::new(checkpoint(), &case.weights, &case.layout);
    let mut cpu = Cpu::new(&Threads::new(None)?, blueprint())?;
    cpu.write(case.layout.whole(), before);
    cpu.run(&case.program)?;
    let expected = cpu.read(case.layout.whole());
    if let Some(wrong) = compare::wrong(case, before, expected, expected) {
        panic!("{}: {}: the reference is wrong: {wrong}", case.op().name(), case.name);
    }

    let mut cuda = Cuda::new(gpu, blueprint())?;
    cuda.write(case.layout.whole(), before)?;
    let forbidden = case.gaps().map(|gap| cuda.forbid(gap));
    let forbidden = forbidden.chain(case.weight_gaps().map(|gap| cuda.forbid_weight(gap)));
    let watched = forbidden.fold(false, |watched, gap| watched | gap);
    let mut first: Option<Vec<u8>> = None;
    for order in orders {
        cuda::set_order(*order)?;
        if first.is_some() {
            restore(case, &mut cuda, before)?;
        }
        cuda.run(&case.program)?;
        let found = match watched {
            true => used(case, &mut cuda, before)?,
            false => cuda.read(case.layout.whole())?.to_vec(),
        };
        let wrong = match &first {
            None => compare::wrong(case, before, expected, &found),
            Some(first) => compare::different(case, first, &found),
        };
        if let Some(wrong) = wrong {
            let wrong = Some(format!("{wrong}, with the warps {order}"));
            return Ok(CaseOutcome { wrong, time: start.elapsed() });
        }
        first.get_or_insert(found);
    }
    Ok(CaseOutcome { wrong: None, time: start.elapsed() })
}

/// Puts everything back that the op may have changed.
fn restore(case: &Case, cuda: &mut Cuda, before: &[u8]) -> Result<()> {
    let mut used = case.places.iter().map(CaseSlot::used);
    used.try_for_each(|used| cuda.write(used, &before[used.offset()..][..used.len()]))
}

/// The state region, read without what nobody may touch.
fn used(case: &Case, cuda: &mut Cuda, before: &[u8]) -> Result<Vec<u8>> {
    let mut found = before.to_vec();
    for used in case.places.iter().map(CaseSlot::used) {
        found[used.offset()..][..used.len()].copy_from_slice(cuda.read(used)?);
    }
    Ok(found)
}
