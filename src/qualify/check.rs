//! Performs a check, in this process: whatever is wrong may take that with it.

use std::time::Instant;

use super::tune::{Lengths, Tuned, host_clock, tune};
use super::{Check, CheckOrder, Found, Small, Wrong, kernel_of};
use crate::case::Case;
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::conformance::{self, Effort, ORDERS};
use crate::error::{Error, Result};
use crate::executor::cuda::{self, Gpu, LaunchOptions};
use crate::executor::{Executor, Hardware};
use crate::kernel::{Kernel, KernelSet};
use crate::model::{Logits, MemoryBudget, Plan, PlanRequest, Weights};
use crate::op::Target;
use crate::random::random_ids;
use crate::rank::{Rank, RankSpec, Sequence};
use crate::sampler::SamplingOptions;
use crate::source::{Source, Synthetic};

/// What a check is at.
pub enum Phase<'a> {
    /// Something that may take long the first time: code is compiled, memory allocated.
    Loading,
    /// A case, done in far less than a second.
    Case(&'a str),
}

/// Tokens of the small model's prompt, and of its answer.
const PROMPT: usize = 40;
const ANSWER: usize = 5;

/// A model whose step reads less than so many times what caches hold is not read from memory alone.
const ROTATION: u64 = 4;

/// Performs the check on `gpu`; `on_phase` hears of its phases.
pub fn perform(order: &CheckOrder, gpu: &Gpu, on_phase: &mut dyn FnMut(Phase<'_>)) -> Found {
    let start = Instant::now();
    let (mut tuned, right) = (None, LaunchOptions { graphs: order.graphs, ..plain(order) });
    let (cases, wrong) = match &order.check {
        Check::Kernel(export) => {
            // The ops of special kernels launch these themselves; others are to launch none.
            let options = LaunchOptions { kernels: KernelSet::PORTABLE, ..plain(order) };
            let gpu = with(options, gpu);
            kernel(export, order.thorough, &gpu, on_phase)
        }
        Check::Graphs(small) => {
            let how = LaunchOptions { graphs: true, programmatic: false, ..plain(order) };
            launches(*small, plain(order), how, gpu, on_phase)
        }
        Check::Programmatic(small) => {
            let how = LaunchOptions { programmatic: true, ..right };
            launches(*small, plain(order), how, gpu, on_phase)
        }
        Check::Tuning(small) => {
            let how = LaunchOptions { programmatic: order.programmatic, ..right };
            match tuning(*small, how, gpu, on_phase) {
                Ok(found) => {
                    tuned = Some(found);
                    (1, None)
                }
                Err(error) => (1, Some(Wrong { case: small.to_string(), how: error.to_string() })),
            }
        }
    };
    Found { cases, seconds: start.elapsed().as_secs_f64(), wrong, tuned }
}

/// What is the fastest for a small model, on a GPU whose time means something.
fn tuning(
    small: Small,
    options: LaunchOptions,
    gpu: &Gpu,
    on_phase: &mut dyn FnMut(Phase<'_>),
) -> Result<Tuned> {
    if cuda::emulated().is_some() {
        return Ok(Tuned::untimed("an emulated GPU's time says nothing of a real one's"));
    }
    on_phase(Phase::Loading);
    let lengths = Lengths::USUAL;
    let rank = match rank(small, &with(options, gpu), (lengths.longest() + 1, lengths.longest())) {
        Ok(rank) => rank,
        Err(error) => return Ok(Tuned::untimed(error.to_string())),
    };
    if rank.decode_cost(0).weight_bytes < ROTATION * gpu.cache_bytes()? as u64 {
        return Ok(Tuned::untimed("its caches hold too much of the model that is timed"));
    }
    let name = small.to_string();
    tune(rank, options, lengths, &mut host_clock, &mut || on_phase(Phase::Case(&name)))
}

/// Kernel by kernel, by those that are used.
fn plain(order: &CheckOrder) -> LaunchOptions {
    let out = order.without.iter().filter_map(|name| Kernel::find(name));
    let kernels = out.fold(KernelSet::ALL, KernelSet::without);
    let (graphs, programmatic) = (false, false);
    LaunchOptions { graphs, programmatic, synchronous: false, kernels, ..LaunchOptions::default() }
}

fn with(options: LaunchOptions, gpu: &Gpu) -> Gpu {
    let mut gpu = gpu.clone();
    gpu.options = options;
    gpu
}

fn kernel(
    export: &str,
    thorough: bool,
    gpu: &Gpu,
    on_phase: &mut dyn FnMut(Phase<'_>),
) -> (usize, Option<Wrong>) {
    let wrong = |case: &str, how: String| Some(Wrong { case: case.to_owned(), how });
    let Some(kernel) = kernel_of(export) else {
        return (0, wrong(export, "there is no such kernel".to_owned()));
    };
    let cases = cases(kernel, export, thorough, gpu.multiprocessors);
    // A real GPU takes its own ways: it runs each case as often as an emulated one has orders.
    let orders = if cuda::emulated().is_some() && !thorough { &ORDERS[..1] } else { &ORDERS[..] };
    for (number, case) in cases.iter().enumerate() {
        if number == 0 {
            on_phase(Phase::Loading);
            let launch = case.op().launch(&Target::portable(gpu.multiprocessors));
            if let Err(error) = gpu.load(&launch) {
                return (0, wrong("any", error.to_string()));
            }
        }
        on_phase(Phase::Case(&case.name));
        let how = match conformance::run(case, gpu, orders) {
            Ok(outcome) => outcome.wrong,
            Err(error) => Some(error.to_string()),
        };
        if let Some(how) = how {
            return (number + 1, wrong(&case.name, how));
        }
    }
    (cases.len(), None)
}

/// The cases of the kernel's op that are for this function of it.
fn cases(kernel: &Kernel, export: &str, thorough: bool, multiprocessors: u32) -> Vec<Case> {
    /// Whole numbers and real ones.
    const KINDS: usize = 2;
    let target = Target::portable(multiprocessors);
    let of_export = |effort| {
        let cases = conformance::cases(kernel.name, effort).into_iter();
        cases.filter(|case| case.op().launch(&target).export.name == export).collect::<Vec<_>>()
    };
    match (thorough, cuda::emulated().is_some()) {
        (true, true) => return of_export(Effort::Usual),
        (true, false) => return of_export(Effort::Thorough),
        _ => (),
    }
    let few = [Effort::Few, Effort::Quick, Effort::Thorough].map(of_export);
    let mut cases = few.into_iter().find(|cases| !cases.is_empty()).unwrap_or_default();
    if cuda::emulated().is_some() {
        cases.sort_by_key(|case| case.cost().flops);
        cases.truncate(KINDS);
    }
    cases
}

/// That a small model says the same, to the bit, when kernels are launched in another way.
fn launches(
    small: Small,
    plain: LaunchOptions,
    other: LaunchOptions,
    gpu: &Gpu,
    on_phase: &mut dyn FnMut(Phase<'_>),
) -> (usize, Option<Wrong>) {
    let case = small.to_string();
    let mut said = |options| said(small, options, gpu, &case, on_phase);
    let how = match (said(plain), said(other)) {
        (Ok(right), Ok(found)) => difference(&right, &found),
        (Err(error), _) | (_, Err(error)) => Some(error.to_string()),
    };
    (1, how.map(|how| Wrong { case, how }))
}

/// What is different about these numbers.
fn difference(right: &[u32], found: &[u32]) -> Option<String> {
    let differ = |(right, found): &(&u32, &u32)| right != found;
    let pairs = || right.iter().zip(found).filter(differ);
    let (right_one, found_one) = pairs().next()?;
    Some(format!(
        "{} of {} numbers differ from those of kernels that run one after the other; the first is {:e} \
         where {:e} is right",
        pairs().count(),
        right.len(),
        f32::from_bits(*found_one),
        f32::from_bits(*right_one)
    ))
}

/// The bits of a small model's logits after a prompt and after an answer; the tokens decide the latter.
fn said(
    small: Small,
    options: LaunchOptions,
    gpu: &Gpu,
    case: &str,
    on_phase: &mut dyn FnMut(Phase<'_>),
) -> Result<Vec<u32>> {
    on_phase(Phase::Loading);
    let mut rank = rank(small, &with(options, gpu), (2 * PROMPT, PROMPT))?;
    on_phase(Phase::Case(case));
    let sampling = SamplingOptions { temperature: 0.8, seed: 1, ..SamplingOptions::default() };
    let prompt = random_ids(0, PROMPT, rank.vocab());
    let mut sequence = Sequence::default();
    sequence.begin(&sampling, &prompt, rank.vocab())?;
    rank.begin(&sequence)?;
    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    let after_prompt = bits(rank.prefill(&sequence, &prompt, Logits::Last)?);
    sequence.position = prompt.len();
    let mut token = rank.choice(&sequence)?.token()?;
    for _ in 0..ANSWER {
        token = rank.next_choice(&sequence)?.token()?;
        sequence.position += 1;
    }
    let after_answer = bits(rank.prefill(&sequence, &[token], Logits::Last)?);
    Ok([after_prompt, after_answer].concat())
}

/// A model of random weights, small for the GPU that it is on.
fn rank(small: Small, gpu: &Gpu, (context, chunk): (usize, usize)) -> Result<Rank> {
    const LAYERS: usize = 2;
    let name = match (cuda::emulated().is_some(), small.head_dim) {
        (true, 64) => "synthetic:tiny",
        (true, _) => "synthetic:tiny-128",
        (false, 64) => "synthetic:llama3.2-1b",
        (false, _) => "synthetic:llama3-8b",
    };
    let model = Synthetic::find(name)?.ok_or_else(|| Error::failed(format!("no {name}")))?;
    let source = Source::Synthetic(Synthetic { dtype: small.dtype(), ..model.cut(LAYERS)? });
    let (config, checkpoint) = (Config::load(&source)?, Checkpoint::open(&source)?);
    let dims = Dims::new(&config, 1)?;
    let request = PlanRequest { context: Some(context), chunk, ..PlanRequest::default() };
    let request = request.on_gpu(checkpoint.encoding(), gpu.attention_blocks());
    let matrices: Vec<_> = Weights::locate(&checkpoint, &dims)?.matrices().collect();
    let room = MemoryBudget::Gpu(gpu.memory()?.0);
    let plan = Plan::new(&config, &dims, cuda::region_bytes(&matrices), request, room)?;
    let spec = RankSpec { config: &config, dims, checkpoint, plan: &plan };
    Rank::new(spec, |blueprint| Executor::new(&Hardware::Gpu(gpu.clone()), blueprint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::KERNELS;

    /// Of both kinds of numbers, and few.
    #[test]
    fn every_function_has_cases() {
        for kernel in KERNELS {
            for export in kernel.exports {
                let cases = cases(kernel, export.name, false, 132);
                assert!((1..=40).contains(&cases.len()), "{}: {}", export.name, cases.len());
            }
        }
    }
}
