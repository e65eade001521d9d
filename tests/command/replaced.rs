//! `--source` and `--kernel`: ordinary CUDA in place of built-in kernels, in blocks of another size.

use std::fs;
use std::path::Path;

use crate::process::chaski;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/replacements");

fn file(name: &str) -> String {
    format!("{FOLDER}/{name}.cu")
}

fn check(file: &str, more: &[&str]) -> (Option<i32>, String, String) {
    chaski(&[&["--emulate", "1", "kernels", "check", "--source", file][..], more].concat(), &[])
}

/// What is said of a file that has `new` for `old`, and its line that has `old`.
fn changed(name: &str, old: &str, new: &str, more: &[&str]) -> (String, usize) {
    let text = fs::read_to_string(file(name)).unwrap();
    let at = text.find(old).unwrap_or_else(|| panic!("{name} has no {old}"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.cu");
    fs::write(&path, text.replace(old, new)).unwrap();
    let (status, said, errors) = check(path.to_str().unwrap(), more);
    assert_eq!(status, Some(1), "{old} -> {new}: {said}{errors}");
    (said + &errors, 1 + text[..at].matches('\n').count())
}

#[test]
fn ordinary_cuda_is_checked_under_all_schedules_and_sanitizers() {
    for name in ["rms_norm", "project"] {
        for more in [&[][..], &["--sanitize", "address", "--cases", "few"]] {
            let (status, said, errors) = check(&file(name), more);
            assert!(status == Some(0) && said.contains("right"), "{name}: {said}{errors}");
        }
        let (status, said, errors) =
            check(&file(name), &["--sanitize", "thread", "--cases", "few"]);
        assert!(status == Some(0) && said.contains("right"), "{name}: {said}{errors}");
    }
}

#[test]
fn its_mistakes_are_caught() {
    let (said, line) = changed("rms_norm", "width + eps", "width", &["--cases", "quick"]);
    assert!(line > 1 && said.contains("WRONG") && said.contains(" is right"), "{said}");
    let (said, _) = changed("project", "+= sum;", "= sum;", &["--cases", "few"]);
    assert!(said.contains("y[0, 0] is "), "{said}");
    let thread = ["--sanitize", "thread", "--cases", "few"];
    let (said, line) = changed("rms_norm", "__syncthreads(); // after each step", "", &thread);
    assert!(
        said.contains("data race") && said.contains(&format!("mine.cu:{}: ", line - 1)),
        "{said}"
    );
    let (said, line) =
        changed("project", "__syncthreads(); // x is there", "", &["--sanitize", "thread"]);
    assert!(
        said.contains("data race") && said.contains(&format!("mine.cu:{}: ", line - 1)),
        "{said}"
    );
    let address = ["--sanitize", "address", "--cases", "few"];
    let (said, line) =
        changed("rms_norm", "+= row[i] * row[i]", "+= row[i + 1] * row[i]", &address);
    assert!(said.contains("out of bounds") && said.contains(&format!("mine.cu:{line}")), "{said}");
}

#[test]
fn it_is_timed_beside_the_built_in_kernel() {
    for name in ["rms_norm", "project"] {
        let path = file(name);
        let sizes = ["-m", "synthetic:tiny", "-p", "8", "-d", "1", "-r", "2", "-o", "json"];
        let ask =
            ["--emulate", "1", "kernels", "bench", "--source", &path, "--against", "built-in"];
        let (status, rows, errors) = chaski(&[&ask[..], &sizes].concat(), &[]);
        assert_eq!(status, Some(0), "{errors}");
        let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
        let rows = rows.as_array().unwrap();
        assert!(!rows.is_empty() && rows.iter().all(|row| row["kernel"] == name), "{rows:?}");
    }
}

/// Launched one by one and in graphs, with and without what begins early before and after them.
#[test]
fn the_demo_model_answers_the_same_with_it() {
    let kernels = ["rms_norm", "project"].map(|name| format!("{name}={}", file(name)));
    let own: Vec<&str> = kernels.iter().flat_map(|kernel| ["--kernel", kernel]).collect();
    let ask = ["--emulate", "1", "generate", "-p", "What is 27 + 58?", "-n", "8", "--temp", "0"];
    let answer = |more: &[&str], variables: &[(&str, &str)]| {
        let (status, ids, errors) = chaski(&[&ask[..], &["--print-ids"], more].concat(), variables);
        assert_eq!(status, Some(0), "{errors}");
        ids
    };
    let expected = answer(&[], &[]);
    assert_eq!(answer(&own, &[]), expected);
    assert_eq!(answer(&own, &[("CHASKI_GRAPHS", "off")]), expected);
}

#[test]
fn what_cannot_take_a_kernels_place_is_refused_in_a_line() {
    for (name, old, new, told) in [
        ("rms_norm", "rms_norm_##suffix", "my_norm_##suffix", "my_norm_bf16, my_norm_f16"),
        (
            "rms_norm",
            "EXPORT(f16, __half)",
            "",
            "has no rms_norm_f16, which the built-in rms_norm has",
        ),
        (
            "rms_norm",
            "unsigned width, float eps) {    ",
            "unsigned width) {",
            "takes nothing where",
        ),
        (
            "project",
            "uint32_t width, rows;",
            "uint32_t rows, width;",
            "takes `uint32_t rows` where",
        ),
        (
            "project",
            "constexpr int kThreads",
            "const auto kThreads = sizeof(float4) *",
            "write the number",
        ),
    ] {
        let (said, _) = changed(name, old, new, &[]);
        assert!(said.contains(told) && said.lines().count() == 1, "{told}: {said}");
    }
    let (said, line) = changed("project", "#include <stdint.h>", "#include <cub/cub.cuh>", &[]);
    let told = format!(
        "mine.cu:{line}: error: cub/cub.cuh: No such file or directory: write the reduction"
    );
    assert!(said.contains(&told), "{said}");
    let none = Path::new(FOLDER).join("none.cu");
    let (status, _, errors) = check(none.to_str().unwrap(), &[]);
    assert!(status == Some(1) && errors.contains("cannot read"), "{errors}");
    let kernel = format!("embed={}", file("rms_norm"));
    let (status, _, errors) = chaski(&["generate", "-p", "Hi", "--kernel", &kernel], &[]);
    assert!(status == Some(2) && errors.contains("its kernels replace rms_norm"), "{errors}");
}
