//! The program as something that must come to an end.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// Longer than any run here takes on a machine that is busy, unless it hangs.
const FOREVER: Duration = Duration::from_secs(300);

pub fn start<V: AsRef<str>>(args: &[&str], variables: &[(&str, V)]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.env("CHASKI_TRUST_KERNELS", "on"); // tests/command/qualify.rs does not
    command.args(args).envs(variables.iter().map(|(name, value)| (name, value.as_ref())));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Exit status, standard output and the lines of standard error that are errors.
pub type End = (Option<i32>, String, Vec<String>);

/// # Panics
/// If it does not end, or panics itself.
pub fn end(child: Child) -> End {
    let (process, (done, ended)) = (child.id(), channel());
    thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = ended.recv_timeout(FOREVER) else {
        signal(process, "KILL");
        panic!("it hangs");
    };
    let output = output.unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let errors = text(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
    let errors = errors.lines().filter(|line| line.starts_with("chaski: "));
    (output.status.code(), text(&output.stdout), errors.map(str::to_owned).collect())
}

/// Sends a signal, as `kill` knows it.
pub fn signal(process: u32, name: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status();
    assert!(sent.unwrap().success(), "{name}");
}
