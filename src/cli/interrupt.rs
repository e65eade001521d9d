//! Ctrl-C.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::leave;
use crate::error::{Error, Result};

/// Set while nothing is at hand that Ctrl-C could end but the process.
static WAITING: AtomicBool = AtomicBool::new(false);

/// Does what waits for others: Ctrl-C ends the process meanwhile.
pub fn while_waiting<R>(wait: impl FnOnce() -> R) -> R {
    WAITING.store(true, Ordering::Relaxed);
    let result = wait();
    WAITING.store(false, Ordering::Relaxed);
    result
}

/// Done at the first Ctrl-C.
static THEN: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// At the first Ctrl-C `then` is done, once for the whole process.
///
/// # Errors
/// When the system does not let us watch.
pub fn at_interrupt(then: impl Fn() + Send + Sync + 'static) -> Result<()> {
    assert!(THEN.set(Box::new(then)).is_ok(), "there is one thing to do");
    interrupt().map(drop)
}

/// Whether Ctrl-C was pressed: the first one ends the generation at hand, a second one the process.
pub fn interrupt() -> Result<&'static AtomicBool> {
    static PRESSED: AtomicBool = AtomicBool::new(false);
    static HANDLER: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let on_ctrl_c = || {
        if PRESSED.swap(true, Ordering::Relaxed) || WAITING.load(Ordering::Relaxed) {
            leave(130);
        }
        if let Some(then) = THEN.get() {
            then();
        }
    };
    match HANDLER.get_or_init(|| ctrlc::set_handler(on_ctrl_c).map_err(|e| e.to_string())) {
        Ok(()) => Ok(&PRESSED),
        Err(error) => Err(Error::failed(format!("cannot watch for Ctrl-C: {error}"))),
    }
}

/// Nothing comes of Ctrl-C: a terminal's reaches all processes of a run, and the first one says what comes
/// of it.
pub fn leave_to_the_first() -> Result<()> {
    match ctrlc::set_handler(|| ()) {
        Ok(()) | Err(ctrlc::Error::MultipleHandlers) => Ok(()), // a download may have set one
        Err(error) => Err(Error::failed(format!("cannot watch for Ctrl-C: {error}"))),
    }
}
