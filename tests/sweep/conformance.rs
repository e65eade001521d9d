//! Every kernel against its op's reference, as `chaski kernels check` does it, on emulated GPUs; and that
//! it notices what is wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;
use chaski::kernel::{KERNELS, Kernel};
use tempfile::TempDir;

/// Exit status, standard output and standard error of `chaski --emulate 1 kernels check`.
fn check(args: &[&str]) -> (Option<i32>, String, String) {
    check_under(&[], args)
}

fn check_under(environment: &[(&str, &str)], args: &[&str]) -> (Option<i32>, String, String) {
    process::chaski(&[&["--emulate", "1", "kernels", "check"], args].concat(), environment)
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

/// As hardware's do, where the reference and an emulated GPU's otherwise round.
fn assert_right_where_tensor_cores_truncate(effort: &str) {
    let uses_them = |kernel: &&Kernel| {
        let headers = kernel.headers.iter().filter(|header| !header.name.starts_with("lib/ptx"));
        let mut texts = headers.map(|header| header.text).chain([kernel.source]);
        texts.any(|text| text.contains("mma_m16n8k16") || text.contains("wgmma_m64"))
    };
    let kernels: Vec<&str> = KERNELS.iter().filter(uses_them).map(|kernel| kernel.name).collect();
    assert!(kernels.contains(&"matmul") && kernels.contains(&"matmul_hopper"), "{kernels:?}");
    let truncated = [("CHASKI_EMULATE_PRODUCTS", "truncated")];
    let (status, said, errors) =
        check_under(&truncated, &[&kernels[..], &["--cases", effort]].concat());
    assert_eq!(status, Some(0), "{said}{errors}");
}

#[test]
fn kernels_are_right_where_tensor_cores_truncate() {
    assert_right_where_tensor_cores_truncate("quick");
}

#[test]
#[ignore = "takes many minutes"]
fn kernels_are_right_where_tensor_cores_truncate_in_any_case() {
    assert_right_where_tensor_cores_truncate("thorough");
}

#[test]
fn no_kernel_leaves_its_bounds() {
    assert_right(&["--sanitize", "address", "--cases", "quick"]);
}

#[test]
fn no_kernel_has_a_race() {
    assert_right(&["--sanitize", "thread", "--cases", "few"]);
}

#[test]
#[ignore = "takes many minutes"]
fn no_kernel_leaves_its_bounds_or_has_a_race_in_any_case() {
    assert_right(&["--sanitize", "address", "--cases", "usual"]);
    assert_right(&["--sanitize", "thread", "--cases", "quick"]);
}

/// A copy of the kernels, and in it the path of `kernel`, in which `file` had `old` replaced by `new`.
fn changed(kernel: &str, file: &str, old: &str, new: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    fs::create_dir(folder.path().join("lib")).unwrap();
    for below in ["", "lib"] {
        for entry in fs::read_dir(kernels.join(below)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let copy = folder.path().join(below).join(path.file_name().unwrap());
                fs::copy(&path, copy).unwrap();
            }
        }
    }
    let path = folder.path().join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(old), "{file} has no {old:?}");
    fs::write(&path, text.replacen(old, new, 1)).unwrap();
    let kernel = folder.path().join(format!("{kernel}.cu"));
    (folder, kernel)
}

/// The line of `kernels/FILE` that begins with `text`.
fn line(file: &str, text: &str) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(file);
    let file = fs::read_to_string(path).unwrap();
    1 + file.lines().position(|line| line.trim_start().starts_with(text)).unwrap()
}

/// What the check of a changed kernel says; it must fail.
fn told(change: (&str, &str, &str, &str), args: &[&str]) -> String {
    let (_folder, source) = changed(change.0, change.1, change.2, change.3);
    let source = source.to_str().unwrap();
    let (status, said, errors) = check(&[&["--source", source], args].concat());
    assert_eq!(status, Some(1), "{change:?}\n{said}{errors}");
    said + &errors
}

const NO_BARRIER: (&str, &str, &str, &str) =
    ("rms_norm", "lib/reduce.cuh", "= v;\n    __syncthreads();", "= v;\n");

#[test]
fn a_missing_barrier_is_noticed_by_its_results() {
    let said = told(NO_BARRIER, &[]);
    assert!(said.contains("y[0, 0, 0] is NaN where"), "{said}");
    assert!(said.contains("1 of 1 check failed"), "{said}");
}

#[test]
fn a_missing_barrier_is_a_race_with_two_lines() {
    let said = told(NO_BARRIER, &["--sanitize", "thread", "--cases", "few"]);
    let written = line("lib/reduce.cuh", "if (lane_id() == 0) sums[");
    assert!(said.contains(&format!("lib/reduce.cuh:{written}: ")), "{said}");
    assert!(said.contains("data race: "), "{said}");
    assert!(said.contains("total += sums[warp]"), "{said}");
}

#[test]
fn an_access_past_the_end_of_a_slot_has_its_line() {
    let change = ("rms_norm", "rms_norm.cu", "load4(x + i + 4);", "load4(x + i + 8);");
    let said = told(change, &["--sanitize", "address", "--cases", "few"]);
    let read = line("rms_norm.cu", "const float4 a = load4(x + i)");
    assert!(said.contains("out of bounds: read here, called at "), "{said}");
    assert!(said.contains(&format!("rms_norm.cu:{read}\n")), "{said}");
    assert!(said.contains("case: BF16"), "{said}");
}

#[test]
fn a_write_between_slots_is_noticed_without_a_sanitizer() {
    let change = ("embed", "embed.cu", "store4(", "args.x[args.tokens * args.width] = 0, store4(");
    let said = told(change, &[]);
    assert!(said.contains("memory 0 bytes past the end of x was written to"), "{said}");
}

#[test]
fn what_cannot_take_a_kernels_place_is_refused() {
    let said = told(("embed", "embed.cu", "uint32_t tokens;", "uint32_t count;"), &[]);
    assert!(said.contains("embed_bf16 takes `uint32_t count` where"), "{said}");
    assert!(said.contains("`uint32_t tokens`"), "{said}");
    let said =
        told(("embed", "embed.cu", "grid_dependency_wait();", "grid_dependency_wait()"), &[]);
    let at = line("embed.cu", "grid_dependency_wait();");
    assert!(
        said.contains(&format!("embed.cu:{at}:")) && said.contains("error: expected"),
        "{said}"
    );
    let said = told(("embed", "embed.cu", " embed_bf16(", " imbed_bf16("), &[]);
    assert!(said.contains("has no embed_bf16, which the built-in embed has"), "{said}");
}

/// A loop that the compiler must keep, and in which nothing tells that it waits.
const ENDLESS: (&str, &str, &str, &str) = (
    "rms_norm",
    "rms_norm.cu",
    "grid_dependency_wait();",
    "for (volatile uint32_t spin = 1; spin > 0;) {}",
);

#[test]
fn a_kernel_without_end_is_ended() {
    let said = told(ENDLESS, &["--cases", "few", "--time-limit", "5"]);
    // As a loop that nobody ends or, where that takes longer to find out, as one that does not end.
    assert!(
        said.contains("rms_norm.cu:") && said.contains(": kernel rms_norm_bf16, block 0"),
        "{said}"
    );
    assert!(said.contains("1 of 1 check failed"), "{said}");
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let (status, _, errors) = check(&["imbed"]);
    assert_eq!(
        (status, errors.contains("a similar value exists: 'embed'")),
        (Some(2), true),
        "{errors}"
    );
    let (status, _, errors) = check(&["--source", "/no/such.cu"]);
    assert_eq!((status, errors.contains("cannot read /no/such.cu")), (Some(1), true), "{errors}");
    let chaski = env!("CARGO_BIN_EXE_chaski");
    let args = ["kernels", "check", "embed", "--sanitize", "thread"];
    let output = Command::new(chaski).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_summary_is_json() {
    let (status, said, errors) = check(&["embed", "rms_norm", "--cases", "few", "--json"]);
    assert_eq!(status, Some(0), "{errors}");
    let list: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(list[0]["kernel"], "embed");
    assert_eq!(list[1]["kernel"], "rms_norm");
    assert!(list[1]["cases"].as_u64() > Some(3), "{said}");
    assert_eq!(list[1]["wrong"], serde_json::json!([]));
    assert_eq!(list[1]["device"], "Emulated GPU 0");
}

/// A process in which a kernel fails is lost for the others: they are checked in the next, which this
/// fault strikes as well.
#[test]
fn a_kernel_that_ends_the_process_is_wrong_and_the_next_is_checked_in_another() {
    let faulty = |fault: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
        let kernels = ["embed", "rms_norm", "rope_append"];
        command.args(["--emulate", "1", "kernels", "check", "--cases", "few", "--json"]);
        command.args(kernels).env("CHASKI_EMULATE_FAULT", fault).output().unwrap()
    };
    let output = faulty("cuLaunchKernelEx:2:700");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for (at, kernel) in ["embed", "rms_norm", "rope_append"].into_iter().enumerate() {
        assert_eq!(list[at]["kernel"], kernel);
        assert!(list[at]["wrong"][0].as_str().unwrap().contains("case: "), "{list}");
    }
    // A GPU that cannot be had is no kernel's fault.
    let output = faulty("cuInit:1:100");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b"[]\n"[..]), "{errors}");
    assert!(errors.starts_with("chaski: ") && errors.lines().count() == 1, "{errors}");
}
