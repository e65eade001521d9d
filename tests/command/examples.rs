//! The programs of `examples/` do what they say.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What an example prints, given these words and lines.
fn example(name: &str, words: &[&str], lines: &str) -> String {
    // Cargo builds the examples beside the tests: target/PROFILE/examples, and target/PROFILE/deps.
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    if !path.join("examples").join(name).is_file() {
        // With `--test command` alone it builds none.
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--examples"]);
        cargo.args(path.ends_with("release").then_some("--release"));
        assert!(cargo.status().unwrap().success());
    }
    let mut command = Command::new(path.join("examples").join(name));
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn chat_keeps_a_conversation() {
    let lines = "What is 27 + 58?\nPlease add 73 and 68.\n";
    assert_eq!(example("chat", &[], lines), "27 + 58 = 85.\n73 + 68 = 141.\n");
}

#[test]
fn logits_lists_the_most_probable_tokens() {
    let said = example("logits", &["27 + 58 = "], "");
    let first = said.lines().next().unwrap();
    assert!(first.ends_with("\"8\"") && said.lines().count() == 5, "{said}");
}

#[test]
fn bench_kernel_times_an_op() {
    let said = example("bench_kernel", &["norm_gate_up", "synthetic:tiny"], "");
    assert!(said.contains(" us, ") && said.contains(" GB/s: norm_gate_up"), "{said}");
}
