//! The laboratory's commands on one layer of a 1B, as a user would give them.

use crate::process::chaski;

const MODEL: [&str; 4] = ["-m", "synthetic:llama3.2-1b", "--layers", "1"];
const CPU: [&str; 2] = ["--device", "cpu"];
const EMULATED: [&str; 2] = ["--emulate", "1"];

/// Status 0, and what was printed.
fn printed(command: &[&str], more: &[&str], device: &[&str]) -> String {
    let (status, output, errors) = chaski(&[command, &MODEL, more, device].concat(), &[]);
    assert_eq!(status, Some(0), "{command:?} {more:?}: {errors}");
    assert!(!output.is_empty(), "{command:?} {more:?}: {errors}");
    output
}

fn rows(device: &[&str]) {
    let sizes = ["-p", "4", "-n", "2", "-r", "1", "-o", "jsonl"];
    let rows = printed(&["bench"], &sizes, device);
    assert_eq!(rows.lines().count(), 3, "pp4, tg2, gen2: {rows}");
}

fn profile(device: &[&str]) {
    let sizes = ["-p", "4", "-r", "1", "-o", "jsonl", "--profile"];
    let profile = printed(&["bench"], &sizes, device);
    assert!(profile.contains("norm_head") && profile.contains("attend_prefill"), "{profile}");
}

fn kernels(device: &[&str]) {
    let alone = printed(&["kernels", "bench"], &["-p", "4", "-d", "4", "-r", "1"], device);
    assert!(alone.contains("norm_gate_up") && alone.contains("gate_up_swiglu"), "{alone}");
}

/// Two ids.
fn answer(more: &[&str], device: &[&str]) -> String {
    let ask = ["--ids", "1,2", "-n", "2", "--print-ids", "--context", "16"];
    let ids = printed(&["generate"], &[&ask, more].concat(), device);
    assert_eq!(ids.split(',').count(), 2, "{ids}");
    ids
}

#[test]
fn every_command_on_the_cpu() {
    rows(&CPU);
    profile(&CPU);
    kernels(&CPU);
    answer(&[], &CPU);
}

#[test]
#[ignore = "takes minutes"]
fn rows_of_an_emulated_gpu() {
    rows(&EMULATED);
}

#[test]
#[ignore = "takes minutes"]
fn a_profile_of_an_emulated_gpu() {
    profile(&EMULATED);
}

#[test]
#[ignore = "takes minutes"]
fn kernels_of_an_emulated_gpu() {
    kernels(&EMULATED);
}

/// The built-in kernel in its own place changes nothing.
#[test]
#[ignore = "takes minutes"]
fn answers_of_an_emulated_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rms_norm.cu");
    std::fs::write(&file, chaski(&["kernels", "source", "rms_norm"], &[]).1).unwrap();
    let kernel = format!("rms_norm={}", file.display());
    assert_eq!(answer(&["--kernel", &kernel], &EMULATED), answer(&[], &EMULATED));
    let ask = ["--a", "cpu", "--b", "cuda", "--ids", "1,2,3", "--context", "16"];
    printed(&["diff"], &ask, &EMULATED);
}
