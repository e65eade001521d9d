//! What two static checkers say of the kernels that nobody here has written: `sentryward` of their PTX,
//! `cuxray` of their machine code. Part of the heavier sweep: pip fetches them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use chaski::conformance::{self, Effort};
use chaski::kernel::nvrtc::target_folder;
use chaski::kernel::{KERNELS, Kernel, Launch};
use chaski::op::Target;
use chaski::ops;
use serde_json::{Value, json};
use tempfile::tempdir;

/// Where pip has put the checkers, each version's hash checked.
fn checkers() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let out = Path::new(env!("OUT_DIR"));
        let folder = target_folder(out).unwrap_or(out).join("checkers");
        if !folder.is_dir() {
            let unfinished = folder.with_extension(std::process::id().to_string());
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            pip.args(["--no-deps", "--require-hashes", "--only-binary", ":all:"]);
            pip.args(["-r", "tests/checkers.txt", "--target"]).arg(&unfinished);
            let output = pip.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            fs::rename(&unfinished, &folder).unwrap();
        }
        folder
    })
}

/// The JSON that a checker, a Python module, prints.
fn told(module: &str, arguments: &[&str]) -> Value {
    let mut python = Command::new("python3");
    python.args(["-m", module]).args(arguments).env("PYTHONPATH", checkers());
    python.env("CUXRAY_TOOLCHAIN", checkers().join("nvidia/cu13/bin")).env("CUXRAY_NO_FETCH", "1");
    let output = python.env("CUXRAY_CACHE", checkers().join("cache")).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{module} {arguments:?}: {error}: {}", String::from_utf8_lossy(&output.stderr))
    })
}

/// One launch of a function, as sentryward takes it. Every pointer is to memory of its own.
fn configuration(launch: &Launch) -> Value {
    let parameter = format!("{}_param_0", launch.export.name);
    let (mut declarations, mut arguments) = (Vec::new(), Vec::new());
    let mut pointer = |name: &str, offset: usize| {
        declarations.push(json!({"name": name, "parameter": parameter, "offset": offset,
            "type": "pointer", "space": "global", "object": name}));
    };
    let mut scalars = Vec::new();
    for field in launch.kernel().fields {
        let word = &launch.arguments.bytes()[field.offset..];
        let word = word.first_chunk().map(|word| u32::from_le_bytes(*word)).unwrap_or_default();
        match field.c_type {
            "Trace" => {
                pointer("trace_word", field.offset);
                scalars.push(("trace_place", field.offset + 8, "u64", json!(1)));
            }
            "float" => scalars.push((field.name, field.offset, "f32", json!(f32::from_bits(word)))),
            kind if kind.ends_with('*') => pointer(field.name, field.offset),
            _ => scalars.push((field.name, field.offset, "u32", json!(word))),
        }
    }
    for (name, offset, kind, value) in scalars {
        let parameter = &parameter;
        let declaration =
            json!({"name": name, "parameter": parameter, "offset": offset, "type": kind});
        declarations.push(declaration);
        arguments.push(json!({"field": name, "value": value}));
    }
    json!({
        "schema": "spverify.kernel-input/v1",
        "entry": launch.export.name,
        "launch": {"grid_dim": launch.grid, "block_dim": [launch.block, 1, 1],
            "cluster_dim": [1, 1, 1], "dynamic_shared_bytes": launch.shared_bytes},
        "declarations": declarations,
        "arguments": arguments,
    })
}

/// The cheapest launch of every function that has PTX.
fn launches() -> BTreeMap<&'static str, Launch> {
    let gpu = Target::portable(2);
    let mut cheapest: BTreeMap<&str, (u64, Launch)> = BTreeMap::new();
    for (name, _) in ops::CASES {
        for case in conformance::cases(name, Effort::Quick) {
            let launch = case.op().launch(&gpu);
            let work = case.cost().flops + u64::from(launch.grid.iter().product::<u32>()) * 1000;
            let known = cheapest.get(launch.export.name).map(|(least, _)| *least);
            if known.is_none_or(|least| work < least) {
                cheapest.insert(launch.export.name, (work, launch));
            }
        }
    }
    cheapest.into_iter().map(|(name, (_, launch))| (name, launch)).collect()
}

/// What sentryward makes of a launch of `ptx` in every schedule: its result, and why.
fn every_schedule(launch: &Launch, ptx: &str) -> (String, String) {
    let folder = tempdir().unwrap();
    let (code, input) = (folder.path().join("kernel.ptx"), folder.path().join("input.json"));
    fs::write(&code, ptx).unwrap();
    fs::write(&input, configuration(launch).to_string()).unwrap();
    let arguments =
        [code.to_str().unwrap(), "--input", input.to_str().unwrap(), "--timeout", "120"];
    let found = told("sentryward", &arguments);
    let reason = format!("{}", found["diagnostics"][0]["message"]);
    (found["result"].as_str().unwrap().to_owned(), reason)
}

/// What sentryward decides within seconds. It takes minutes for products, and cannot decide where memory
/// that a kernel reads says which way it goes, a token's position for one.
const DECIDED: [&str; 3] = ["all_reduce", "mma_peak", "rms_norm_bf16"];

#[test]
#[ignore = "fetches checkers"]
fn no_schedule_of_a_kernel_has_a_race() {
    let launches = launches();
    for export in DECIDED {
        let launch = &launches[export];
        let ptx = launch.kernel().ptx.first().expect("NVRTC made it").text;
        let (result, reason) = every_schedule(launch, ptx);
        assert_eq!(result, "race_free", "{export}: {reason}");
    }
}

/// It does notice: a norm whose first barrier is taken out.
#[test]
#[ignore = "fetches checkers"]
fn a_missing_barrier_is_a_race_in_some_schedule() {
    let kernel = Kernel::find("rms_norm").unwrap();
    let mutant = kernel.ptx.first().expect("NVRTC made it").text;
    let mutant = mutant.replacen("bar.sync", "// bar.sync", 1);
    let (result, _) = every_schedule(&launches()["rms_norm_bf16"], &mutant);
    assert_eq!(result, "potential_race");
}

/// Functions with accesses to shared memory that banks have to take in turns, and how many.
const CONFLICTS: [(&str, u64); 1] = [("rope_append_d128", 2)];

/// Functions with accesses to global memory that use less than [`LEAST_USED`] of the sectors that they
/// touch.
const SCATTERED: [&str; 5] = [
    // A lane reads the two statistics of a split: 8 bytes of a sector.
    "attend_decode_d128",
    // One lane stores; cuxray does not look at predicates and branches.
    "norm_gate_up_bf16",
    "norm_gate_up_f16",
    "norm_head_bf16",
    "norm_head_f16",
];

/// Percent: the half that an access of 16 bytes leaves out the next one takes.
const LEAST_USED: f64 = 40.0;

#[test]
#[ignore = "fetches checkers"]
fn banks_and_sectors_are_used_as_they_should() {
    let folder = tempdir().unwrap();
    for kernel in KERNELS {
        let build = kernel.builds.iter().find(|build| build.arch.name == "sm_90a");
        let cubin = build.expect("NVRTC made it").cubin;
        fs::write(folder.path().join(format!("{}.cubin", kernel.name)), cubin).unwrap();
    }
    let found = told("cuxray", &["report", folder.path().to_str().unwrap(), "--json", "--fast"]);
    let units = found["units"].as_array().unwrap().iter();
    let mut failures = Vec::new();
    for function in units.flat_map(|unit| unit["kernels"].as_array().unwrap()) {
        let (name, access) = (function["name"].as_str().unwrap(), &function["access"]);
        let sites = access["by_site"].as_array().unwrap().iter();
        let used = sites.filter_map(|site| site["efficiency_pct"].as_f64()).fold(100.0, f64::min);
        let turns = access["worst_bank_conflict_ways"].as_u64().unwrap();
        let most = CONFLICTS.iter().find(|(known, _)| *known == name).map_or(1, |(_, most)| *most);
        println!("{name}: banks {turns} times, {used}% of sectors");
        if turns > most || (used < LEAST_USED && !SCATTERED.contains(&name)) {
            failures.push(format!("{name}: banks {turns} times, {used}% of sectors"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
