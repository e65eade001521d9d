use std::process::ExitCode;

fn main() -> ExitCode {
    match chaski::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaski: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
