use std::io::{Write, stderr};
use std::process::ExitCode;

use chaski::cli::{leave, with_flags};
use chaski::error::Error;

fn main() -> ExitCode {
    match chaski::cli::run() {
        Ok(()) | Err(Error::ReaderLeft) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed or full: the status says it as well.
            let _ = writeln!(stderr(), "chaski: {}", with_flags(&error));
            leave(error.exit_status())
        }
    }
}
