//! `scripts/hardware.py`: both plans from end to end on an emulated GPU, the folder that is carried to a
//! real one, and the tables that `scripts/records.py` makes of what was recorded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::tempdir;

const CHASKI: &str = env!("CARGO_BIN_EXE_chaski");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn script(name: &str, arguments: &[&str]) -> Output {
    let mut python = Command::new("python3");
    python.env("CHASKI_TRUST_KERNELS", "on");
    python.arg(root().join("scripts").join(name)).args(["--chaski", CHASKI]).args(arguments);
    python.output().unwrap()
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

/// The one record in this folder of records.
fn record(folder: &Path) -> PathBuf {
    let gpus = fs::read_dir(folder).unwrap();
    let files = gpus.flat_map(|gpu| fs::read_dir(gpu.unwrap().path()).unwrap());
    let files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn step<'a>(record: &'a Value, name: &str) -> &'a Value {
    let mut steps = record["steps"].as_array().unwrap().iter();
    steps.find(|step| step["name"] == name).unwrap_or_else(|| panic!("no step {name}: {record}"))
}

/// Does a plan on an emulated GPU. Every step is well, or absent as these are.
fn dry_run(plan: &str, records: &Path, absent: &[&str]) -> Value {
    let trial = ["--emulate", "1", "--python", "/bin/false", "--plan", plan, "--records"];
    succeed("hardware.py", &[&trial[..], &[records.to_str().unwrap()]].concat());
    let record = read(&record(records));
    for step in record["steps"].as_array().unwrap() {
        let name = step["name"].as_str().unwrap();
        let expected = if absent.contains(&name) { "absent" } else { "well" };
        assert_eq!(step["status"], expected, "{step}");
        step["runs"].as_array().unwrap().iter().for_each(takes_the_gpu);
    }
    record
}

/// A command that could run on the CPU is told not to.
fn takes_the_gpu(run: &Value) {
    let words: Vec<_> =
        run["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let cannot = ["devices", "synthesize"].iter().any(|word| words.contains(word));
    let told = words
        .windows(2)
        .any(|pair| matches!(pair, ["--device" | "--b", "cuda"] | ["--devices", _]));
    assert!(cannot || told, "{words:?}");
}

/// The rows of the table of kernels that begin with this name.
fn rows<'a>(page: &'a str, kernel: &str) -> Vec<&'a str> {
    let table = page.split("<!-- records: verified -->").nth(1).unwrap();
    let table = table.split("<!-- records: end of verified -->").next().unwrap();
    table.lines().filter(|line| line.starts_with(&format!("| {kernel} |"))).collect()
}

/// Minutes with a GPU are few: no plan is longer than what it may take.
#[test]
fn plans_take_no_longer_than_they_may() {
    for (plan, most) in [("first", 280), ("second", 500)] {
        let listed = succeed("hardware.py", &["--list", "--plan", plan]);
        let (steps, sum) = listed.trim_end().rsplit_once('\n').unwrap();
        let seconds = steps.lines().filter_map(|line| line.split_once(" s  "));
        let seconds = seconds.filter_map(|(seconds, _)| seconds.trim().parse::<u32>().ok());
        let expected: u32 = seconds.sum();
        assert!(expected <= most, "{listed}");
        assert_eq!(sum.trim(), format!("{expected} s  of {most}"));
    }
}

#[test]
fn the_first_plan_is_done_and_tables_are_made_of_real_records_alone() {
    let folder = tempdir().unwrap();
    let (emulated, real) = (folder.path().join("emulated"), folder.path().join("real"));
    let page = folder.path().join("PERFORMANCE.md");
    let mut found = dry_run("first", &emulated, &[]);
    assert_eq!(step(&found, "qualify")["found"]["not fit to run"], "none");
    assert_eq!(step(&found, "answer")["found"]["right"], 1);
    let questions = &step(&found, "questions")["found"];
    assert_eq!(questions["right"], questions["questions"]);
    assert!(step(&found, "tg128 PDL off")["found"]["tg2"].as_f64() > Some(0.0), "{found}");
    let checked = &step(&found, "check")["runs"][0]["result"][0];
    let kernel = checked["kernel"].as_str().unwrap().to_owned();
    let hash = checked["source_hash"].as_str().unwrap().to_owned();

    // Nothing is made of what was emulated.
    fs::copy(root().join("PERFORMANCE.md"), &page).unwrap();
    let tables = |records: &Path| {
        let arguments = ["--records", records.to_str().unwrap(), "--page", page.to_str().unwrap()];
        succeed("records.py", &arguments);
        fs::read_to_string(&page).unwrap()
    };
    let none = tables(&emulated);
    assert!(rows(&none, &kernel)[0].contains("unverified"), "{none}");
    assert!(!none.contains("Emulated GPU"), "{none}");

    // As if it had been a real GPU, of a name that nobody has thought of; its rows are still of another.
    found["emulated"] = json!(false);
    found["gpu"] = json!("NVIDIA GH200 | 480GB");
    let write = |record: &str| {
        fs::create_dir_all(real.join("gh200")).unwrap();
        fs::write(real.join("gh200/1.json"), record).unwrap();
    };
    write(&found.to_string());
    let arguments = ["--records", real.to_str().unwrap(), "--page", page.to_str().unwrap()];
    let refused = script("records.py", &arguments);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    let expected = "is of NVIDIA GH200 | 480GB, and its step check of Emulated GPU 0";
    assert!(errors.contains(expected), "{errors}");

    let found = found.to_string().replace("Emulated GPU 0", "NVIDIA GH200 | 480GB");
    write(&found);
    let some = tables(&real);
    let speed = "| NVIDIA GH200 / 480GB | synthetic:tiny | tg2 | CHASKI_HOPPER=off |";
    assert!(some.contains(speed), "{some}");
    assert!(some.contains("| synthetic:tiny | pp8 | CHASKI_HOPPER=on |"), "{some}");
    assert!(!some.contains("| CHASKI_PDL=off |"), "an experiment is no result: {some}");
    assert_eq!(rows(&some, &kernel).len(), 1);
    assert!(rows(&some, &kernel)[0].contains(&hash), "{some}");
    assert!(rows(&some, "project")[0].contains("unverified"), "{some}");
    assert_eq!(tables(&real), some, "written twice");

    // Another source by now; a case that was wrong.
    for (field, value) in [("source_hash", json!("another")), ("wrong", json!(["a case"]))] {
        let mut changed: Value = serde_json::from_str(&found).unwrap();
        let steps = changed["steps"].as_array_mut().unwrap();
        let check = steps.iter_mut().find(|step| step["name"] == "check").unwrap();
        check["runs"][0]["result"][0][field] = value;
        write(&changed.to_string());
        let page = tables(&real);
        assert!(rows(&page, &kernel)[0].contains("unverified"), "{field}: {page}");
    }
    assert_eq!(tables(&emulated), none, "no trace of what is no longer there");
}

#[test]
fn the_second_plan_is_done() {
    let folder = tempdir().unwrap();
    let real =
        ["intrinsics", "prefetch", "cuBLASLt 512", "cuBLASLt 2048", "peers", "ncu", "memcheck"];
    let found = dry_run("second", folder.path(), &real);
    assert_eq!(step(&found, "identity")["found"]["answers"], 1);
    assert_eq!(step(&found, "chunks")["found"]["same_bits_in_chunks"], true);
    assert!(step(&found, "carve-outs")["found"]["least GB/s"].is_f64());
    assert!(step(&found, "ranks")["found"]["sum_of_a_token_us_by_hosts"]["2"].is_f64());
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

/// `hardware.py` with this in the place of Chaski, and what it recorded.
fn with_stand_in(text: &str, arguments: &[&str]) -> (Output, Value) {
    let folder = tempdir().unwrap();
    let (program, records) = (folder.path().join("chaski"), folder.path().join("records"));
    let devices =
        "case \"$*\" in *devices*) echo 'cuda:0  NVIDIA H200, compute capability 9.0'; exit;; esac";
    fs::write(&program, format!("#!/bin/sh\n{devices}\n{text}\n")).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut python = Command::new("python3");
    python.arg(root().join("scripts/hardware.py")).arg("--chaski").arg(&program);
    python.arg("--records").arg(&records).args(arguments);
    let output = python.output().unwrap();
    let record = read(&record(&records));
    (output, record)
}

#[test]
fn what_the_cpu_did_is_not_filed_as_a_gpus() {
    let row = r#"{"test": "tg128", "avg_ts": 9.0, "device": "AMD EPYC"}"#;
    let arguments = ["--plan", "first", "--only", "bench 1B"];
    let (output, record) = with_stand_in(&format!("echo '[{row}]'"), &arguments);
    assert_eq!(output.status.code(), Some(1));
    let bench = step(&record, "bench 1B");
    assert_eq!((&record["gpu"], &bench["status"]), (&json!("NVIDIA H200"), &json!("failed")));
    assert_eq!(bench["runs"][0]["status"], "rows are of another device: AMD EPYC");
}

#[test]
fn a_step_that_fails_is_done_again_with_every_kernel_waited_for_and_the_others_go_on() {
    // A list that was broken off, of a kernel that is right and one that is not.
    let broken = r#"[{"kernel": "embed", "wrong": []}, {"kernel": "project", "wrong": ["a case"]}"#;
    let text = format!("echo '{broken}'; echo \"sync is $CHASKI_SYNC\" >&2; exit 1");
    let arguments = ["--plan", "first", "--only", "check,diff"];
    let (output, record) = with_stand_in(&text, &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not well: check, diff"));
    let check = step(&record, "check");
    assert_eq!(check["status"], "failed");
    assert_eq!(check["found"]["wrong"], "project");
    let again = &check["again"]["runs"][0];
    assert_eq!(again["environment"]["CHASKI_SYNC"], "on");
    assert_eq!(again["errors"], "sync is on\n");
    let words = again["command"].as_array().unwrap();
    assert!(words.contains(&json!("project")) && !words.contains(&json!("embed")), "{words:?}");
    assert_eq!(step(&record, "diff")["status"], "failed");
}

#[test]
fn a_plan_that_cannot_be_done_is_refused() {
    for (arguments, message) in [
        (&["--plan", "first", "--only", "chekc"][..], "no step 'chekc'"),
        (&["--plan", "first", "--emulate", "1", "--records", "/proc/none"], "/proc/none"),
        (&[], "--plan first or --plan second is needed"),
    ] {
        let output = script("hardware.py", arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(message), "{errors}");
        assert!(!errors.contains("Traceback"), "{errors}");
    }
}

/// Packs these binaries, and has the pack's own script ask the demo. Returns what is said of the pack.
fn packed(chaski: &Path, tests: Option<&Path>) -> String {
    let folder = tempdir().unwrap();
    let to = folder.path().join("carry");
    let mut python = Command::new("python3");
    python
        .arg(root().join("scripts/hardware.py"))
        .arg("--pack")
        .arg(&to)
        .arg("--chaski")
        .arg(chaski);
    tests.map(|tests| python.arg("--tests").arg(tests));
    let output = python.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let mut python = Command::new("python3");
    python.arg(to.join("scripts/hardware.py")).args(["--plan", "first", "--emulate", "1"]);
    let output = python.args(["--only", "devices,answer"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let record = read(&record(&to.join("target/record")));
    assert_eq!(step(&record, "answer")["found"]["right"], 1);
    said
}

#[test]
fn a_pack_has_all_that_it_needs_and_is_refused_where_it_is_too_large() {
    let said = packed(Path::new(CHASKI), None);
    assert!(said.contains(" MiB, for Linux with glibc 2."), "{said}");
    let folder = tempdir().unwrap();
    let text = "import sys, pathlib; from gpu import pack; pack.MOST_BYTES = 1 << 20; \
                pack.pack(*map(pathlib.Path, sys.argv[1:3]), {'chaski': sys.argv[3]})";
    let mut python = Command::new("python3");
    python.args(["-c", text]).arg(folder.path()).arg(root()).arg(CHASKI);
    let output = python.env("PYTHONPATH", root().join("scripts")).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("more than 1: chaski "), "{errors}");
}

/// What is carried to a GPU in earnest.
#[test]
#[ignore = "takes minutes: release builds"]
fn a_pack_of_release_binaries_is_below_64_mib() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--release", "--no-run", "--bin", "chaski", "--test", "emulator"]);
    let output = cargo.arg("--message-format=json").current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let made: Vec<Value> =
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let binary = |target: &str| {
        let of = made
            .iter()
            .rfind(|made| made["target"]["name"] == target && made["executable"].is_string());
        PathBuf::from(of.unwrap()["executable"].as_str().unwrap())
    };
    // A test has the binary built beside it.
    let chaski = binary("emulator").ancestors().nth(2).unwrap().join("chaski");
    println!("{}", packed(&chaski, Some(&binary("emulator"))));
}
