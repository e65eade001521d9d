//! Ending the process while threads of it may be inside of the driver.

use std::ffi::c_int;
use std::io::{self, Write};

// SAFETY: the C library has it, with this type; it asks nothing of whoever calls it.
unsafe extern "C" {
    safe fn _exit(status: c_int) -> !;
}

/// Ends the process at once, standard output flushed. The usual way runs what libraries have registered, the
/// driver's among them, which may wait for a thread that hangs in it.
pub fn leave(status: u8) -> ! {
    #[cfg(unix)]
    super::echo::restore();
    // What cannot be written now, nobody reads.
    let _ = io::stdout().flush();
    _exit(status.into())
}
