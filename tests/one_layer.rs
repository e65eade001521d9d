//! The laboratory's commands on one layer of a 1B, as a user would give them.

#[path = "common/process.rs"]
mod process;

use process::chaski;

const MODEL: [&str; 4] = ["-m", "synthetic:llama3.2-1b", "--layers", "1"];

/// Status 0, and what was printed.
fn printed(command: &[&str], more: &[&str], device: &[&str]) -> String {
    let (status, output, errors) = chaski(&[command, &MODEL, more, device].concat(), &[]);
    assert_eq!(status, Some(0), "{command:?} {more:?}: {errors}");
    assert!(!output.is_empty(), "{command:?} {more:?}: {errors}");
    output
}

fn every_command_works(device: &[&str]) {
    let sizes = ["-p", "4", "-n", "2", "-r", "1", "-o", "jsonl"];
    let rows = printed(&["bench"], &sizes, device);
    assert_eq!(rows.lines().count(), 3, "pp4, tg2, gen2: {rows}");
    let profile = printed(&["bench"], &[&sizes[..], &["--profile"]].concat(), device);
    assert!(profile.contains("norm_head") && profile.contains("attend_prefill"), "{profile}");
    let alone = printed(&["kernels", "bench"], &["-p", "4", "-d", "4", "-r", "1"], device);
    assert!(alone.contains("norm_gate_up") && alone.contains("gate_up_swiglu"), "{alone}");
    let answer = ["--ids", "1,2", "-n", "2", "--print-ids", "--context", "16"];
    let ids = printed(&["generate"], &answer, device);
    assert_eq!(ids.split(',').count(), 2, "{ids}");
}

#[test]
fn on_the_cpu() {
    every_command_works(&["--device", "cpu"]);
}

#[test]
#[ignore = "takes minutes"]
fn on_an_emulated_gpu() {
    every_command_works(&["--emulate", "1"]);
    let ask = ["--a", "cpu", "--b", "cuda", "--ids", "1,2,3", "--context", "16"];
    printed(&["diff"], &ask, &["--emulate", "1"]);
    let built_in = chaski(&["kernels", "source", "rms_norm"], &[]).1;
    let file = std::env::temp_dir().join(format!("chaski-rms-norm-{}.cu", std::process::id()));
    std::fs::write(&file, built_in).unwrap();
    let kernel = format!("rms_norm={}", file.display());
    let more = ["--kernel", &kernel, "--ids", "1,2", "-n", "2", "--print-ids", "--context", "16"];
    printed(&["generate"], &more, &["--emulate", "1"]);
    std::fs::remove_file(&file).unwrap();
}
