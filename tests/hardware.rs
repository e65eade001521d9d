//! `scripts/hardware.py` from end to end on an emulated GPU, and the tables that `scripts/records.py`
//! makes of what it wrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::tempdir;

const CHASKI: &str = env!("CARGO_BIN_EXE_chaski");

fn script(name: &str, arguments: &[&str]) -> Output {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name);
    let mut python = Command::new("python3");
    python.arg(path).args(["--chaski", CHASKI]).args(arguments).output().unwrap()
}

fn succeed(name: &str, arguments: &[&str]) -> String {
    let output = script(name, arguments);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (printed, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{name} {arguments:?}: {printed}{errors}");
    printed
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The one record of the emulated GPU in this folder.
fn record(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder.join("emulated")).unwrap();
    let files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

/// The rows of the table of kernels that begin with this name.
fn rows<'a>(page: &'a str, kernel: &str) -> Vec<&'a str> {
    let table = page.split("<!-- records: verified -->").nth(1).unwrap();
    let table = table.split("<!-- records: end of verified -->").next().unwrap();
    table.lines().filter(|line| line.starts_with(&format!("| {kernel} |"))).collect()
}

#[test]
fn every_part_runs_on_an_emulated_gpu_and_tables_are_made_of_real_records_alone() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (records, real, page) = (path("emulated"), path("real"), path("PERFORMANCE.md"));
    let trial = ["--emulate", "1", "--quick", "--python", "/bin/false", "--seconds", "900"];
    succeed("hardware.py", &[&trial[..], &["--records", &records]].concat());
    let mut found = read(&record(Path::new(&records)));
    let parts = found["parts"].as_object().unwrap();
    // In this order; what is not on this machine is told apart from what is well.
    let expected = "check bench kernels identity hopper ranks demo load peers profile sanitize";
    assert_eq!(parts.keys().map(String::as_str).collect::<Vec<_>>().join(" "), expected);
    for (name, part) in parts {
        let may_be_absent = ["kernels", "peers", "sanitize"].contains(&name.as_str());
        let is_absent = part["status"] == "absent" && part["reason"].is_string();
        assert!(part["status"] == "well" || (may_be_absent && is_absent), "{name}: {part}");
    }
    assert_eq!(parts["identity"]["found"]["answers"], 1);
    assert!(parts["ranks"]["found"]["sum_of_a_token_us_by_hosts"]["2"].is_f64());
    assert_eq!(parts["demo"]["found"]["right"], parts["demo"]["found"]["questions"]);
    let checked = parts["check"]["steps"][0]["result"][0].clone();
    let (kernel, hash) =
        (checked["kernel"].as_str().unwrap(), checked["source_hash"].as_str().unwrap());

    // Nothing is made of what was emulated.
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("PERFORMANCE.md"), &page).unwrap();
    let tables = |records: &str| {
        succeed("records.py", &["--records", records, "--page", &page]);
        fs::read_to_string(&page).unwrap()
    };
    let none = tables(&records);
    assert!(
        rows(&none, kernel)[0].contains("unverified") && !none.contains("emulated |"),
        "{none}"
    );

    // As if it had been a real GPU.
    found["emulated"] = json!(false);
    found["quick"] = json!(false);
    found["gpu"] = json!("NVIDIA H100 80GB HBM3");
    fs::create_dir_all(Path::new(&real).join("h100")).unwrap();
    let write = |record: &Value| {
        fs::write(Path::new(&real).join("h100/1.json"), record.to_string()).unwrap();
        tables(&real)
    };
    let some = write(&found);
    assert!(some.contains("| NVIDIA H100 80GB HBM3 | synthetic:tiny | tg2 |"), "{some}");
    assert_eq!(rows(&some, kernel).len(), 1);
    assert!(rows(&some, kernel)[0].contains(hash), "{some}");
    assert!(rows(&some, "embed")[0].contains("unverified"), "{some}");
    assert_eq!(tables(&real), some, "written twice");

    // Another source by now; a case that was wrong.
    for (field, value) in [("source_hash", json!("another")), ("wrong", json!(["a case"]))] {
        let mut changed = found.clone();
        changed["parts"]["check"]["steps"][0]["result"][0][field] = value;
        let page = write(&changed);
        assert!(rows(&page, kernel)[0].contains("unverified"), "{field}: {page}");
    }
    assert_eq!(tables(&records), none, "no trace of what is no longer there");
}

/// What PERFORMANCE.md says of kernels is true of those in this binary.
#[test]
fn nothing_is_called_verified_that_has_changed_since() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("PERFORMANCE.md");
    let page = fs::read_to_string(page).unwrap();
    for kernel in chaski::kernel::KERNELS {
        for row in rows(&page, kernel.name).iter().filter(|row| !row.contains("| unverified |")) {
            assert!(row.contains(kernel.source_hash), "run scripts/records.py: {row}");
        }
    }
}

#[test]
fn a_part_that_fails_is_recorded_and_the_others_go_on() {
    let folder = tempdir().unwrap();
    let records = folder.path().to_str().unwrap();
    // A file in place of the kernels' cache: the emulated GPU can compile nothing.
    let cache = folder.path().join("no-folder");
    fs::write(&cache, "").unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/hardware.py");
    let mut python = Command::new("python3");
    python.arg(path).args(["--chaski", CHASKI, "--emulate", "1", "--quick", "--records", records]);
    let output =
        python.args(["--only", "load,bench"]).env("XDG_CACHE_HOME", &cache).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let found = read(&record(folder.path()));
    for part in ["load", "bench"] {
        let part = &found["parts"][part];
        assert_eq!(part["status"], "failed", "{part}");
        let errors = part["steps"].as_array().unwrap().iter().map(|step| &step["errors"]);
        assert!(errors.filter_map(Value::as_str).any(|text| text.contains("no-folder")), "{part}");
    }
    for (arguments, message) in [
        (&["--only", "chekc"][..], "no part 'chekc'"),
        (&["--emulate", "1", "--records", "/proc/none"], "cannot write /proc/none"),
    ] {
        let output = script("hardware.py", arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(message), "{errors}");
    }
}
