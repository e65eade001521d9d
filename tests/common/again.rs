//! A test of this program, run in a process of its own under other variables: the emulated driver reads
//! them once.

use std::process::{Child, Command, Stdio};

pub fn start(test: &str, variables: &[(&str, &str)]) -> Child {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--include-ignored"]).envs(variables.iter().copied());
    again.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// # Panics
/// If it fails.
pub fn end(process: Child) {
    let output = process.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
