//! Performs a check, in this process: whatever is wrong may take that with it.

use std::sync::Arc;
use std::time::Instant;

use super::tune::{Lengths, Tuned, host_clock, tune};
use super::{Check, Found, Order, Small, Wrong, kernel_of};
use crate::case::Case;
use crate::checkpoint::Checkpoint;
use crate::comm::SingleRank;
use crate::config::{Config, Dims};
use crate::conformance::{self, Effort, ORDERS};
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::executor::cuda::{self, Gpu, Options};
use crate::kernel::{Kernel, KernelSet};
use crate::model::{Logits, MemoryBudget, Plan, Request, Weights};
use crate::op::Target;
use crate::random::random_ids;
use crate::rank::Rank;
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

/// Performs the check on `card`; `told` hears of its phases.
pub fn perform(order: &Order, card: &Gpu, told: &mut dyn FnMut(Phase<'_>)) -> Found {
    let start = Instant::now();
    let (mut tuned, right) = (None, Options { graphs: order.graphs, ..plain(order) });
    let (cases, wrong) = match &order.check {
        Check::Kernel(export) => {
            // The ops of special kernels launch these themselves; others are to launch none.
            let options = Options { kernels: KernelSet::PORTABLE, ..plain(order) };
            let card = with(options, card);
            kernel(export, order.thorough, &card, told)
        }
        Check::Graphs(small) => {
            let how = Options { graphs: true, programmatic: false, ..plain(order) };
            launches(*small, plain(order), how, card, told)
        }
        Check::Programmatic(small) => {
            let how = Options { programmatic: true, ..right };
            launches(*small, plain(order), how, card, told)
        }
        Check::Tuning(small) => {
            let how = Options { programmatic: order.programmatic, ..right };
            match tuning(*small, how, card, told) {
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
    options: Options,
    card: &Gpu,
    told: &mut dyn FnMut(Phase<'_>),
) -> Result<Tuned> {
    if cuda::emulated().is_some() {
        return Ok(Tuned::untimed("an emulated GPU's time says nothing of a real one's"));
    }
    told(Phase::Loading);
    let lengths = Lengths::USUAL;
    let rank = match rank(small, &with(options, card), (lengths.longest() + 1, lengths.longest())) {
        Ok(rank) => rank,
        Err(error) => return Ok(Tuned::untimed(error.to_string())),
    };
    if rank.decode_cost(0).weight_bytes < ROTATION * card.cache_bytes()? as u64 {
        return Ok(Tuned::untimed("its caches hold too much of the model that is timed"));
    }
    let name = small.to_string();
    tune(rank, options, lengths, &mut host_clock, &mut || told(Phase::Case(&name)))
}

/// Kernel by kernel, by those that are used.
fn plain(order: &Order) -> Options {
    let out = order.without.iter().filter_map(|name| Kernel::find(name));
    let kernels = out.fold(KernelSet::ALL, KernelSet::without);
    let (graphs, programmatic) = (false, false);
    Options { graphs, programmatic, synchronous: false, kernels, ..Options::default() }
}

fn with(options: Options, card: &Gpu) -> Gpu {
    let mut card = card.clone();
    card.options = options;
    card
}

fn kernel(
    export: &str,
    thorough: bool,
    card: &Gpu,
    told: &mut dyn FnMut(Phase<'_>),
) -> (usize, Option<Wrong>) {
    let wrong = |case: &str, how: String| Some(Wrong { case: case.to_owned(), how });
    let Some(kernel) = kernel_of(export) else {
        return (0, wrong(export, "there is no such kernel".to_owned()));
    };
    let cases = cases(kernel, export, thorough, card.multiprocessors);
    // A real GPU takes its own ways: it runs each case as often as an emulated one has orders.
    let orders = if cuda::emulated().is_some() && !thorough { &ORDERS[..1] } else { &ORDERS[..] };
    for (number, case) in cases.iter().enumerate() {
        if number == 0 {
            told(Phase::Loading);
            let launch = case.op().launch(&Target::portable(card.multiprocessors));
            if let Err(error) = card.load(&launch) {
                return (0, wrong("any", error.to_string()));
            }
        }
        told(Phase::Case(&case.name));
        let how = match conformance::run(case, card, orders) {
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
    let gpu = Target::portable(multiprocessors);
    let of_export = |effort| {
        let cases = conformance::cases(kernel.name, effort).into_iter();
        cases.filter(|case| case.op().launch(&gpu).export.name == export).collect::<Vec<_>>()
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
    plain: Options,
    other: Options,
    card: &Gpu,
    told: &mut dyn FnMut(Phase<'_>),
) -> (usize, Option<Wrong>) {
    let case = small.to_string();
    let mut said = |options| said(small, options, card, &case, told);
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
    options: Options,
    card: &Gpu,
    case: &str,
    told: &mut dyn FnMut(Phase<'_>),
) -> Result<Vec<u32>> {
    told(Phase::Loading);
    let mut rank = rank(small, &with(options, card), (2 * PROMPT, PROMPT))?;
    told(Phase::Case(case));
    let sampling = SamplingOptions { temperature: 0.8, seed: 1, ..SamplingOptions::default() };
    let prompt = random_ids(0, PROMPT, rank.vocab());
    rank.begin(&sampling, &prompt)?;
    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    let after_prompt = bits(rank.prefill(&prompt, Logits::Last)?);
    let mut token = rank.sample()?;
    for _ in 0..ANSWER {
        token = rank.decode_step()?;
    }
    let after_answer = bits(rank.prefill(&[token], Logits::Last)?);
    Ok([after_prompt, after_answer].concat())
}

/// A model of random weights, small for the GPU that it is on.
fn rank(small: Small, card: &Gpu, (context, chunk): (usize, usize)) -> Result<Rank> {
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
    let request = Request { context: Some(context), chunk, ..Request::default() };
    let request = request.on_gpu(checkpoint.encoding(), card.attention_blocks());
    let matrices: Vec<_> = Weights::locate(&checkpoint, &dims)?.matrices().collect();
    let room = MemoryBudget::Gpu(card.memory()?.0);
    let plan = Plan::new(&config, &dims, cuda::region_bytes(&matrices), request, room)?;
    Rank::on(&config, dims, checkpoint, &plan, |checkpoint, weights, layout| {
        let hardware = crate::executor::Hardware::Gpu(card.clone());
        Executor::of_rank(
            &hardware,
            checkpoint,
            weights,
            layout,
            Arc::new(SingleRank::default()),
            &|_| Ok(()),
        )
    })
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
