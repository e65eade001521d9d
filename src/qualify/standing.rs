//! What a GPU is given to run, by what was found.

use std::collections::HashMap;

use super::{Check, CheckOrder, Found, Record, Tuned, Verdict, Wrong, kernel_of};
use crate::error::Result;
use crate::executor::cuda::{Gpu, LaunchOptions};
use crate::kernel::compile::hash;
use crate::kernel::{KERNELS, Kernel};

/// How a GPU stands.
#[derive(Debug, Clone)]
pub struct Standing {
    /// What it may be given.
    pub options: LaunchOptions,
    /// What was chosen by its time, before the environment's wishes.
    pub tuned: Option<Tuned>,
    /// What is not used, a line each.
    pub lines: Vec<String>,
    /// Kernels that are wrong and that nothing stands in for.
    pub faults: Vec<(&'static Kernel, Wrong)>,
}

/// Which machine code a check is about.
///
/// # Errors
/// What keeps the GPU from having any.
pub fn code(check: &Check, gpu: &Gpu) -> Result<String> {
    match check {
        Check::Kernel(export) => kernel_of(export).map_or(Ok(String::new()), |k| gpu.code(k)),
        Check::Graphs(_) | Check::Programmatic(_) | Check::Tuning(_) => {
            let used = KERNELS.iter().filter(|kernel| kernel.suits(gpu.capability));
            let codes = used.map(|kernel| gpu.code(kernel)).collect::<Result<Vec<_>>>()?;
            Ok(hash(codes.iter().map(String::as_str)))
        }
    }
}

/// Goes through `checks` in order, of which `ask` performs those that the record has nothing about, or all
/// if it is to be done `anew`. What is wrong is left out of `options`; launches are not checked where nothing
/// right can be launched.
///
/// # Errors
/// When no check can be performed.
pub fn go_through(
    gpu: &Gpu,
    options: LaunchOptions,
    checks: &[Check],
    record: &mut Record,
    (anew, thorough): (bool, bool),
    ask: &mut dyn FnMut(&CheckOrder) -> Result<Found>,
) -> Result<Standing> {
    let (lines, faults) = (Vec::new(), Vec::new());
    let mut standing = Standing { options, lines, faults, tuned: None };
    let mut without: Vec<String> = Vec::new();
    let mut codes = HashMap::new();
    for check in checks {
        if !matches!(check, Check::Kernel(_)) && !standing.faults.is_empty() {
            continue;
        }
        let about = match check {
            Check::Kernel(export) => kernel_of(export).map_or("", |kernel| kernel.name),
            _ => "",
        };
        let code = match codes.get(about) {
            Some(known) => String::clone(known),
            None => {
                let code = code(check, gpu).unwrap_or_else(|error| error.to_string());
                codes.insert(about, code.clone());
                code
            }
        };
        let kept = record.verdict(check, &code).filter(|kept| !anew && kept.thorough >= thorough);
        let found = match kept {
            Some(verdict) => verdict.found.clone(),
            None => {
                let LaunchOptions { graphs, programmatic, .. } = standing.options;
                let (check, without) = (check.clone(), without.clone());
                let order = CheckOrder { check, thorough, without, graphs, programmatic };
                let found = ask(&order)?;
                let check = order.check;
                record.put(Verdict { check, code, thorough, found: found.clone() });
                found
            }
        };
        if let Some(wrong) = found.wrong {
            standing.leave_out(check, wrong, &mut without);
        }
        if let Some(tuned) = found.tuned {
            standing.options.tuning = gpu.settings.over(tuned.tuning);
            standing.tuned = Some(tuned);
        }
    }
    Ok(standing)
}

impl Standing {
    fn leave_out(&mut self, check: &Check, wrong: Wrong, without: &mut Vec<String>) {
        let (instead, what) = match check {
            Check::Kernel(export) => {
                let Some(kernel) = kernel_of(export) else { return };
                if kernel.archs.is_empty() {
                    self.faults.push((kernel, wrong));
                    return;
                }
                if without.iter().any(|name| name == kernel.name) {
                    return; // for another of its functions
                }
                self.options.kernels = self.options.kernels.without(kernel);
                without.push(kernel.name.to_owned());
                let portable = kernel.name.strip_suffix("_hopper").unwrap_or("another kernel");
                (format!("{portable} runs instead"), kernel.name)
            }
            Check::Graphs(_) => {
                self.options.graphs = false;
                ("kernels are launched one by one".to_owned(), "CUDA graphs")
            }
            Check::Programmatic(_) => {
                self.options.programmatic = false;
                ("kernels wait for each other".to_owned(), "programmatic launch")
            }
            Check::Tuning(_) => ("it stays as it is built".to_owned(), "tuning"),
        };
        self.lines.push(format!("{what}: wrong on this GPU, so {instead} ({wrong})"));
    }
}
