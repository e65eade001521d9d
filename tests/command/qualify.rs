//! Kernels are checked on the GPU that they meet, and what is wrong is not used: told in a line, or an error
//! where nothing stands in for it. The faults are planted in the sources that emulated GPUs run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use chaski::kernel::Kernel;
use serde_json::{Value, json};
use tempfile::TempDir;

const MODEL: &str = "synthetic:tiny";
/// A prefill of five tokens and some steps.
const ASK: [&str; 11] = [
    "generate",
    "-m",
    MODEL,
    "--ids",
    "1,2,3,4,5",
    "--print-ids",
    "-n",
    "4",
    "--ignore-eos",
    "--emulate",
    "1",
];

/// A user's cache in which nothing is known of a GPU, but the emulator and what it has compiled is there.
struct Fresh {
    cache: TempDir,
    kernels: TempDir,
}

impl Fresh {
    fn new() -> Self {
        let (cache, kernels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let home = || path("HOME").map(|home| home.join(".cache"));
        let usual = path("XDG_CACHE_HOME").or_else(home).unwrap_or_else(std::env::temp_dir);
        let own = cache.path().join("chaski");
        fs::create_dir(&own).unwrap();
        for folder in ["emulator", "emulated"] {
            let usual = usual.join("chaski").join(folder);
            fs::create_dir_all(&usual).unwrap();
            symlink(usual, own.join(folder)).unwrap();
        }
        Self { cache, kernels }
    }

    /// From now on this kernel's source has `wrong` where it has `right`.
    fn plant(&self, kernel: &str, right: &str, wrong: &str) {
        let source = Kernel::find(kernel).unwrap().source;
        assert!(source.contains(right), "{kernel}: {right}");
        let file = self.kernels.path().join(format!("{kernel}.cu"));
        fs::write(file, source.replace(right, wrong)).unwrap();
    }

    fn chaski(
        &self,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
        command.args(arguments).env("XDG_CACHE_HOME", self.cache.path());
        command.env("CHASKI_EMULATE_KERNELS", self.kernels.path());
        command.env_remove("CHASKI_TRUST_KERNELS").envs(variables.iter().copied());
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// The ids of an answer, and what was said beside it.
    fn answer(&self, more: &[&str], variables: &[(&str, &str)]) -> (String, String) {
        let (status, ids, said) = self.chaski(&[&ASK[..], more].concat(), variables);
        assert_eq!(status, Some(0), "{said}");
        (ids, said)
    }

    /// A measurement, with a context of 1103 tokens.
    fn row(&self, variables: &[(&str, &str)]) -> Value {
        let behind = ["-d", "1100", "--depth-fill", "random"];
        let ask =
            ["bench", "-m", MODEL, "--emulate", "1", "-p", "3", "-n", "0", "-r", "1", "-o", "json"];
        let bench = [&ask[..], &behind].concat();
        let (status, rows, said) = self.chaski(&bench, variables);
        assert_eq!(status, Some(0), "{said}");
        let rows: Value = serde_json::from_str(&rows).unwrap();
        rows[0].clone()
    }

    /// The files of verdicts.
    fn kept(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.cache.path().join("chaski/qualified"));
        files.map_or(Vec::new(), |files| files.map(|file| file.unwrap().path()).collect())
    }
}

const BEGUN: &str = "begun(args.trace);";
const FIRST: &str = "qualifying   cuda:0";

#[test]
fn what_is_found_is_told_once_and_kept_for_as_long_as_it_holds() {
    let fresh = Fresh::new();
    let devices = |fresh: &Fresh| fresh.chaski(&["devices", "--emulate", "1"], &[]).1;
    assert!(devices(&fresh).contains("not qualified yet"));
    let (first, said) = fresh.answer(&[], &[]);
    assert_eq!(said.matches(FIRST).count(), 1, "{said}");
    assert!(!said.contains("wrong"), "{said}");
    let [kept] = &fresh.kept()[..] else { panic!("one file") };
    let record: Value = serde_json::from_slice(&fs::read(kept).unwrap()).unwrap();
    let verdicts = record["verdicts"].as_array().unwrap();
    let checked =
        |what: &str| verdicts.iter().any(|verdict| verdict["check"].to_string().contains(what));
    for what in ["rms_norm_bf16", "matmul_bf16", "matmul_hopper_bf16", "sample"] {
        assert!(checked(what), "{what}: {record}");
    }
    for what in ["graphs", "programmatic", "tuning"] {
        assert!(checked(what), "{what}: {record}");
    }
    // Of another model there are no kernels, nor of what measures.
    assert!(!checked("matmul_f16") && !checked("read_all"), "{record}");
    assert!(devices(&fresh).contains("qualified: "));

    let (second, said) = fresh.answer(&[], &[]);
    assert!(second == first && !said.contains(FIRST), "{said}");
    assert_eq!(fresh.row(&[])["qualified"], "yes");
    assert_eq!(fresh.row(&[("CHASKI_TRUST_KERNELS", "on")])["qualified"], "trusted");
    // Another mode of the emulator is another GPU.
    let (other, said) = fresh.answer(&[], &[("CHASKI_EMULATE_ORDER", "descending")]);
    assert!(other == first && said.contains(FIRST), "{said}");
}

/// What was chosen by its time is in the record and used, as far as the environment leaves it; of an emulated
/// GPU no time is taken.
#[test]
fn the_fastest_tuning_is_kept_and_used() {
    let fresh = Fresh::new();
    let (text, _) = fresh.answer(&[], &[]);
    let devices = || fresh.chaski(&["devices", "--emulate", "1"], &[]).1;
    let usual = "next kernel at the end, 5 ahead in lines, tiles by size, steps of 2048";
    let untimed =
        format!("; tuning (BF16, heads of 64): {usual} (not timed: an emulated GPU's time");
    assert!(devices().contains(&untimed), "{}", devices());
    let [file] = &fresh.kept()[..] else { panic!("one file") };
    let mut record: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let mut verdicts = record["verdicts"].as_array_mut().unwrap().iter_mut();
    let verdict = verdicts.find(|verdict| verdict["tuned"].is_object()).unwrap();
    verdict["tuned"] = json!({
        "tuning": { "trigger": "first", "ahead": 3, "prefetch": "bulk", "tile": "small", "chunk": 1024 },
        "token": 0.975,
        "prompt": 0.9,
        "untimed": null,
    });
    fs::write(file, record.to_string()).unwrap();
    let chosen = "next kernel at once, 3 ahead in bulk, small tiles, steps of 1024";
    let gains = "(tokens 2.5% and prompts 10.0% below the default)";
    assert!(devices().contains(&format!("{chosen} {gains}")), "{}", devices());
    let (again, said) = fresh.answer(&[], &[]);
    assert!(again == text && !said.contains(FIRST), "{said}");
    let check = |variables: &[(&str, &str)], tuning: &str, steps: u64| {
        let row = fresh.row(variables);
        assert_eq!((&row["tuning"], &row["n_batch"]), (&json!(tuning), &json!(steps)));
    };
    check(&[], chosen, 1024);
    let of_environment = chosen.replace("3 ahead", "7 ahead").replace("at once", "at the end");
    check(&[("CHASKI_AHEAD", "7"), ("CHASKI_TRIGGER", "last")], &of_environment, 1024);
    check(&[("CHASKI_TRUST_KERNELS", "on")], usual, 1103);
}

#[test]
fn a_special_kernel_that_is_wrong_gives_way_to_the_portable_one() {
    let fresh = Fresh::new();
    fresh.plant("matmul_hopper", BEGUN, "begun(args.trace);\n    return;");
    let (ids, said) = fresh.answer(&[], &[]);
    let told = "matmul_hopper: wrong on this GPU, so matmul runs instead";
    assert!(said.contains(told) && said.contains("not written"), "{said}");
    // What was found holds, and is told again; without a check the kernel would run where it is asked for.
    let (again, said) = fresh.answer(&[], &[]);
    assert!(again == ids && said.contains(told) && !said.contains(FIRST), "{said}");
    let (_, said) = fresh.answer(&[], &[("CHASKI_HOPPER", "off")]);
    assert!(!said.contains(told) && !said.contains(FIRST), "{said}");
    // Other code is found out about anew.
    fs::remove_file(fresh.kernels.path().join("matmul_hopper.cu")).unwrap();
    let (_, said) = fresh.answer(&[], &[]);
    assert!(said.contains(FIRST) && !said.contains(told), "{said}");
}

#[test]
fn a_kernel_that_nothing_stands_in_for_is_an_error_with_a_report() {
    let fresh = Fresh::new();
    fresh.plant("rms_norm", "args.eps)", "args.eps + 1.0f)");
    for _ in 0..2 {
        let (status, ids, said) = fresh.chaski(&ASK, &[]);
        let lines: Vec<_> = said.lines().filter(|line| line.starts_with("chaski: ")).collect();
        assert!(status == Some(1) && ids.is_empty() && lines.len() == 1, "{said}");
        for word in
            ["kernel rms_norm is wrong on cuda:0", "numbers: y[", "is right", "--trust-kernels"]
        {
            assert!(lines[0].contains(word), "{word}: {said}");
        }
        let [report] = &fresh.kept()[..] else { panic!("one file") };
        assert!(lines[0].contains(report.to_str().unwrap()), "{said}");
        assert!(fs::read_to_string(report).unwrap().contains("rms_norm_bf16"));
    }
    let devices = fresh.chaski(&["devices", "--emulate", "1"], &[]).1;
    assert!(
        devices.contains("qualified except for 1 of") && devices.contains("rms_norm_bf16"),
        "{devices}"
    );
    let (_, said) = fresh.answer(&["--trust-kernels"], &[]);
    assert!(!said.contains(FIRST) && !said.contains("wrong"), "{said}");
    // What a user puts in a kernel's place is the user's own to judge.
    let own = fresh.kernels.path().join("rms_norm.cu");
    let own = format!("rms_norm={}", own.display());
    fresh.answer(&["--kernel", &own], &[]);
}

#[test]
fn a_kernel_that_hangs_is_ended_and_not_used() {
    let fresh = Fresh::new();
    let endless = "begun(args.trace);\n    for (volatile unsigned i = 0;; i = i + 1) {}";
    fresh.plant("gate_up_swiglu_hopper", BEGUN, endless);
    let (_, said) = fresh.answer(&["--timeout", "20"], &[]);
    let told = "gate_up_swiglu_hopper: wrong on this GPU, so gate_up_swiglu runs instead";
    assert!(said.contains(told) && said.contains("did not finish in 20 s"), "{said}");
}

#[test]
fn kernels_that_are_right_only_one_after_the_other_are_launched_so() {
    let fresh = Fresh::new();
    fresh.plant("project", "grid_dependency_wait();", "");
    let (ids, said) = fresh.answer(&[], &[]);
    assert!(said.contains("programmatic launch: wrong on this GPU, so kernels wait"), "{said}");
    assert!(said.contains("grid_dependency_wait"), "{said}");
    assert_eq!(ids, fresh.answer(&[], &[("CHASKI_PDL", "off")]).0);
}

#[test]
fn the_command_prints_a_table_and_json() {
    let fresh = Fresh::new();
    fresh.plant("attend_prefill_hopper", BEGUN, "begun(args.trace);\n    return;");
    let ask = ["qualify", "--emulate", "1", "-m", MODEL];
    let (status, table, said) = fresh.chaski(&ask, &[]);
    assert_eq!(status, Some(0), "{said}");
    assert!(table.contains("attend_prefill_hopper_bf16_d64") && table.contains("WRONG"), "{table}");
    assert!(table.contains("so attend_prefill runs instead"), "{table}");
    let (status, json, said) = fresh.chaski(&[&ask[..], &["--json"]].concat(), &[]);
    assert!(status == Some(0) && said.contains(FIRST), "{said}");
    let found: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["programmatic"], true);
    assert_eq!(found["wrong"].as_array().unwrap().len(), 0);
    assert!(found["verdicts"].as_array().unwrap().len() > 12, "{json}");
    assert!(Path::new(found["file"].as_str().unwrap()).is_file());
}

/// What ranks have found out of each other's memory is kept, and not tried again.
#[test]
fn peer_memory_is_tried_once() {
    let split = ["--emulate", "2", "--tensor-parallel", "2", "--context", "64"];
    let ask = [&ASK[..9], &split].concat();
    let broken = [("CHASKI_EMULATE_PEERS", "broken")];
    let fresh = Fresh::new();
    let ask = |variables: &[(&str, &str)]| {
        let (status, ids, said) = fresh.chaski(&ask, variables);
        assert_eq!(status, Some(0), "{said}");
        assert_eq!(said.matches("sums over all ranks").count(), 1, "{said}");
        (ids, said)
    };
    let (ids, said) = ask(&broken);
    assert!(said.contains("through NCCL: what others store into the memory of rank"), "{said}");
    let known = "through NCCL: peer memory has been tried and does not work (chaski qualify";
    let (again, said) = ask(&broken);
    assert!(again == ids && said.contains(known), "{said}");
    let devices = fresh.chaski(&["devices", "--emulate", "2"], &broken).1;
    let told = "; peer memory between 2 GPUs, of which it is one, does not work";
    assert_eq!(devices.matches(told).count(), 1, "kept with the first one: {devices}");
    // Where it works, that is what is kept, until the file says something else.
    let before = fresh.kept();
    let (works, said) = ask(&[]);
    assert!(works == ids && said.contains("over peer memory"), "{said}");
    let read = |file: PathBuf| {
        let record: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        (file, record)
    };
    let new = fresh.kept().into_iter().filter(|file| !before.contains(file)).map(read);
    let mut new = new.filter(|(_, record)| record["peers"][0]["works"] == true);
    let (file, mut record) = new.next().unwrap();
    record["peers"][0]["works"] = json!(false);
    fs::write(file, record.to_string()).unwrap();
    assert!(ask(&[]).1.contains(known));
    let (status, _, said) = fresh.chaski(&["qualify", "--emulate", "2", "-m", MODEL], &[]);
    assert_eq!(status, Some(0), "{said}");
    assert!(ask(&[]).1.contains("over peer memory"));
}

/// Stores that do not arrive, as where routing between GPUs is broken.
#[test]
fn peer_memory_that_does_not_work_gives_way_to_nccl() {
    let fresh = Fresh::new();
    let trust = [("CHASKI_TRUST_KERNELS", "on")];
    let split = ["--emulate", "2", "--tensor-parallel", "2", "--context", "64"];
    let ask = [&ASK[..9], &split].concat();
    let (status, ids, said) = fresh.chaski(&ask, &trust);
    assert!(status == Some(0) && said.contains("over peer memory"), "{said}");
    fresh.plant("all_reduce", "step < args.world;", "step < args.world && args.rank == 0;");
    let (status, by_nccl, said) = fresh.chaski(&ask, &trust);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("through NCCL: what others store into the memory of rank"), "{said}");
    assert_eq!(ids, by_nccl);
}

/// Where an op of the program is a transfer between ranks, which is no kernel.
#[test]
fn stages_of_layers_qualify_too() {
    let fresh = Fresh::new();
    let split = ["--emulate", "2", "--devices", "0,1", "--pipeline-parallel", "2"];
    let (status, _, said) = fresh.chaski(&[&ASK[..9], &split].concat(), &[]);
    assert!(status == Some(0) && said.contains(FIRST) && !said.contains("wrong"), "{said}");
}
