//! `chaski kernels check`

use serde_json::json;

use super::watch::watch;
use super::worker;
use crate::cli::args::{CasesArg, CheckArgs, SanitizeArg};
use crate::cli::open::check_gpu;
use crate::cli::output::print;
use crate::conformance::{Effort, ORDERS};
use crate::error::{Error, Result, count};
use crate::executor::cuda::Sanitizer;
use crate::kernel::{KERNELS, Kernel, Replacement};

/// Checks kernels, in processes of their own.
///
/// # Errors
/// When any of them is wrong.
pub fn check(args: &CheckArgs, emulated: Option<u32>) -> Result<()> {
    let source = args.source.as_deref().map(Replacement::read).transpose()?;
    let kernels = chosen(args, source.as_ref())?;
    let sanitizers = match args.sanitize {
        SanitizeArg::None => vec![Sanitizer::None],
        SanitizeArg::Address => vec![Sanitizer::Address],
        SanitizeArg::Thread => vec![Sanitizer::Thread],
        SanitizeArg::All => vec![Sanitizer::None, Sanitizer::Address, Sanitizer::Thread],
    };
    if emulated.is_none() && sanitizers != [Sanitizer::None] {
        return Err(Error::usage(
            "--sanitize watches kernels on emulated GPUs: --emulate 1 is needed, or NVIDIA's \
             compute-sanitizer, without --sanitize",
        ));
    }
    if emulated.is_none() {
        check_gpu()?;
    }
    if args.worker {
        let effort = effort(args, emulated, sanitizers[0]);
        // ThreadSanitizer finds what is in no order, whatever order it happens in.
        let orders = match sanitizers[0] {
            Sanitizer::Thread => &ORDERS[..1],
            _ => &ORDERS,
        };
        return worker::work(&kernels, source, args.device, (effort, orders), emulated);
    }
    let (mut checks, mut wrong) = (0, 0);
    let mut tell = |checked: Checked| {
        let text = match (args.json, checks) {
            (false, _) => checked.text(),
            (true, 0) => format!("[\n{:#}", checked.json()),
            (true, _) => format!(",\n{:#}", checked.json()),
        };
        checks += 1;
        wrong += usize::from(!checked.wrong.is_empty());
        print(&text)
    };
    let ended = sanitizers.into_iter().try_for_each(|sanitizer| {
        // What a sanitizer reports does not say which kernel it is of.
        let together = if sanitizer == Sanitizer::None { kernels.len() } else { 1 };
        let mut some = kernels.chunks(together);
        some.try_for_each(|some| watch(some, &source, (args, sanitizer), emulated, &mut tell))
    });
    if args.json {
        print(if checks == 0 { "[]\n" } else { "\n]\n" })?;
    }
    ended?;
    match wrong {
        0 => Ok(()),
        _ => Err(Error::failed(format!("{wrong} of {} failed", count(checks, "check")))),
    }
}

fn chosen(args: &CheckArgs, source: Option<&Replacement>) -> Result<Vec<&'static Kernel>> {
    match source {
        Some(source) if args.names.iter().any(|kernel| kernel.name != source.kernel.name) => {
            Err(Error::usage(format!(
                "{} replaces {}: no other kernel can be named",
                source.path(),
                source.kernel.name
            )))
        }
        Some(source) => Ok(vec![source.kernel]),
        None if args.names.is_empty() => Ok(KERNELS.iter().collect()),
        None => Ok(args.names.clone()),
    }
}

pub(super) fn effort(args: &CheckArgs, emulated: Option<u32>, sanitizer: Sanitizer) -> Effort {
    match args.cases {
        Some(CasesArg::Few) => Effort::Few,
        Some(CasesArg::Quick) => Effort::Quick,
        Some(CasesArg::Usual) => Effort::Usual,
        Some(CasesArg::Thorough) => Effort::Thorough,
        None if emulated.is_none() => Effort::Thorough,
        None if sanitizer == Sanitizer::Thread => Effort::Quick,
        None => Effort::Usual,
    }
}

/// What came of one kernel under one checker.
pub(super) struct Checked {
    pub kernel: &'static Kernel,
    /// The name of the GPU.
    pub device: String,
    pub sanitizer: Sanitizer,
    pub cases: usize,
    pub seconds: f64,
    /// Every mistake, in lines that begin with where it is.
    pub wrong: Vec<String>,
}

impl Checked {
    fn text(&self) -> String {
        let Self { kernel, sanitizer, cases, seconds, wrong, .. } = self;
        let checker = match sanitizer {
            Sanitizer::None => "",
            Sanitizer::Address => "address",
            Sanitizer::Thread => "thread",
        };
        let verdict = if wrong.is_empty() { "right" } else { "WRONG" };
        let mut text = format!(
            "{:<15} {checker:<8} {:>10} {seconds:>7.1} s  {verdict}\n",
            kernel.name,
            count(*cases, "case")
        );
        wrong
            .iter()
            .flat_map(|wrong| wrong.lines())
            .for_each(|line| text += &format!("    {line}\n"));
        text
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "kernel": self.kernel.name,
            "source_hash": self.kernel.source_hash,
            "device": self.device,
            "sanitizer": self.sanitizer.name(),
            "cases": self.cases,
            "seconds": self.seconds,
            "wrong": self.wrong,
        })
    }
}

/// That a source computes what its kernel does, by the quick cases, on the GPU of number `device`.
///
/// # Errors
/// What is wrong with it, in a line.
pub fn passed(
    source: &Replacement,
    device: u32,
    emulated: Option<u32>,
    time_limit: Option<f64>,
) -> Result<()> {
    let args = CheckArgs {
        names: Vec::new(),
        source: Some(source.file.path.clone()),
        device,
        sanitize: SanitizeArg::None,
        cases: Some(CasesArg::Quick),
        json: false,
        time_limit,
        worker: false,
    };
    let (kernels, mut wrong) = ([source.kernel], Vec::new());
    let source = Some(source.clone());
    watch(&kernels, &source, (&args, Sanitizer::None), emulated, &mut |checked| {
        wrong = checked.wrong;
        Ok(())
    })?;
    match wrong.first() {
        None => Ok(()),
        Some(wrong) => {
            let wrong = wrong.lines().next().unwrap_or_default();
            let path = &args.source.as_ref().expect("given").display();
            Err(Error::failed(format!("{path} does not pass kernels check: {wrong}")))
        }
    }
}
