//! The process that runs kernels' cases under one checker: whatever a broken kernel does to it, the
//! one that started it goes on. It reports on standard output, in lines of JSON.

use std::io::{self, Read};
use std::thread;

use serde::{Deserialize, Serialize};

use crate::cli::emulate::emulate;
use crate::cli::open::defaults;
use crate::cli::output::print;
use crate::conformance::{self, Effort};
use crate::error::{Error, Result};
use crate::executor::cuda::{Gpu, Order};
use crate::kernel::{Kernel, Replacement};
use crate::op::Target;

/// Wrong cases after which a kernel needs no more.
const MOST_WRONG: usize = 3;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckEvent {
    /// The cases of the next kernel come, on a GPU of this name.
    Kernel { device: String },
    /// This case begins.
    Begin { case: String },
    /// It has ended, with nothing wrong or this.
    End { wrong: Option<String> },
}

impl CheckEvent {
    fn tell(&self) -> Result<()> {
        let line = serde_json::to_string(self);
        let line = line.map_err(|error| Error::failed(format!("cannot write JSON: {error}")))?;
        print(&(line + "\n"))
    }
}

/// Runs the cases of `kernels`, or of `source` in place of the one, on the GPU of number `device`.
///
/// # Errors
/// When the GPU, or a kernel on it, fails.
pub fn work(
    kernels: &[&Kernel],
    source: Option<Replacement>,
    device: u32,
    (effort, orders): (Effort, &[Order]),
    emulated: Option<u32>,
) -> Result<()> {
    if let Some(devices) = emulated {
        emulate(devices, &|_| ())?;
    }
    thread::spawn(end_with_the_other);
    let gpu = Gpu::open_as(device, &defaults()?.cuda)?;
    if let Some(source) = source {
        gpu.replace_kernel(source);
    }
    for kernel in kernels {
        CheckEvent::Kernel { device: gpu.name.clone() }.tell()?;
        let cases = match kernel.suits(gpu.capability) {
            true => conformance::cases(kernel.name, effort),
            false => Vec::new(),
        };
        if let Some(case) = cases.first() {
            // Compiling it is no part of a case's time.
            gpu.load(&case.op().launch(&Target::portable(gpu.multiprocessors)))?;
        }
        let mut wrong = 0;
        for case in &cases {
            CheckEvent::Begin { case: case.name.clone() }.tell()?;
            let outcome = conformance::run(case, &gpu, orders)?;
            wrong += usize::from(outcome.wrong.is_some());
            CheckEvent::End { wrong: outcome.wrong }.tell()?;
            if wrong == MOST_WRONG {
                break;
            }
        }
    }
    Ok(())
}

/// Ends this process, whatever its kernel does, when the one that started it has gone: standard input
/// is open as long as that is there.
fn end_with_the_other() {
    let mut byte = [0];
    while matches!(io::stdin().read(&mut byte), Ok(1)) {}
    std::process::abort();
}
