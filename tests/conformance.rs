//! Every kernel against its op's reference, as `chaski kernels check` does it, on emulated GPUs.

use std::process::Command;

/// Exit status, standard output and standard error of `chaski --emulate 1 kernels check`.
fn check(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    let output = command.args(["--emulate", "1", "kernels", "check"]).args(args).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn assert_right(args: &[&str]) {
    let (status, said, errors) = check(args);
    println!("{said}");
    assert_eq!(status, Some(0), "{args:?}\n{said}{errors}");
}

#[test]
fn every_kernel_is_right_whatever_the_order_of_its_warps() {
    assert_right(&[]);
}
