use std::process::ExitCode;

use chaski::error::Error;

fn main() -> ExitCode {
    match chaski::cli::run() {
        Ok(()) | Err(Error::ReaderLeft) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaski: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
