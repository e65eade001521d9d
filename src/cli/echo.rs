//! What is typed while nobody reads it.

use std::io;
use std::sync::{Mutex, PoisonError};

use nix::sys::termios::{InputFlags, LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// How the terminal was, while it is otherwise.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// While it exists, what is typed at the terminal is not shown, and waits for who reads next.
pub struct Unechoed(());

impl Unechoed {
    /// `as_keys`: every key waits as it is, for an editor, rather than in lines that the terminal edits.
    /// `None` where standard input is no terminal.
    pub fn begin(as_keys: bool) -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHONL);
        if as_keys {
            silent.local_flags.remove(LocalFlags::ICANON);
            silent.input_flags.remove(InputFlags::ICRNL);
        }
        tcsetattr(io::stdin(), SetArg::TCSANOW, &silent).ok()?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        Some(Self(()))
    }
}

impl Drop for Unechoed {
    fn drop(&mut self) {
        restore();
    }
}

/// The terminal is as it was again, for who comes after this process.
pub fn restore() {
    // Who holds it is restoring.
    let Ok(mut before) = BEFORE.try_lock() else { return };
    if let Some(before) = before.take() {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &before); // it may be gone
    }
}
