//! The program as a user runs it.

use std::process::Command;

/// Exit status, standard output and standard error.
pub fn chaski(args: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.env("CHASKI_TRUST_KERNELS", "on"); // tests/command/qualify.rs does not
    let output = command.args(args).envs(environment.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}
