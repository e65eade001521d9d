//! The process that runs one kernel's cases under one checker: whatever a broken kernel does to it, the
//! one that started it goes on. It reports on standard output, in lines of JSON.

use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli::output::print;
use crate::conformance::{self, Effort};
use crate::device::cuda::{self, Card, Order};
use crate::error::{Error, Result};
use crate::kernel::{Kernel, Source};

/// Wrong cases after which a kernel needs no more.
const MOST_WRONG: usize = 3;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// This case begins, of so many.
    Begin { case: String, of: usize },
    /// It has ended, with nothing wrong or this.
    End { seconds: f64, wrong: Option<String> },
}

impl Event {
    fn tell(&self) -> Result<()> {
        let line = serde_json::to_string(self);
        let line = line.map_err(|error| Error::failed(format!("cannot write JSON: {error}")))?;
        print(&(line + "\n"))
    }
}

/// Runs the cases of `kernel`, or of `source` in its place, on the GPU of number `device`.
///
/// # Errors
/// When the GPU, or the kernel on it, fails.
pub fn work(
    kernel: &Kernel,
    source: Option<Source>,
    device: u32,
    (effort, orders): (Effort, &[Order]),
    emulated: Option<u32>,
) -> Result<()> {
    if let Some(devices) = emulated {
        cuda::emulate(devices, &|_| ())?;
    }
    thread::spawn(end_with_the_other);
    let card = Card::open(device)?;
    if let Some(source) = source {
        card.replace_kernel(source);
    }
    let cases = match kernel.suits(card.capability) {
        true => conformance::cases(kernel.name, effort),
        false => Vec::new(),
    };
    let mut wrong = 0;
    for case in &cases {
        Event::Begin { case: case.name.clone(), of: cases.len() }.tell()?;
        let outcome = conformance::run(case, &card, orders)?;
        let seconds = Duration::as_secs_f64(&outcome.time);
        wrong += usize::from(outcome.wrong.is_some());
        Event::End { seconds, wrong: outcome.wrong }.tell()?;
        if wrong == MOST_WRONG {
            break;
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
