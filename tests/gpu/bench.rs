//! `chaski bench`: every format parses, every row has its fields, the numbers agree with one another
//! and with the model.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use chaski::checkpoint::synthetic::Recipe;
use chaski::encoding::Float;
use chaski::executor::cuda::Gpu;
use chaski::executor::{Blueprint, Executor, Hardware};
use chaski::memory::Layout;
use chaski::op::Program;
use chaski::ops::{MmaPeak, ReadAll, Synthesize};
use serde_json::Value;
use tempfile::tempdir;

use crate::emulated;

const TINY: [&str; 3] = ["bench", "-m", "synthetic:tiny"];
const CPU: [&str; 2] = ["--device", "cpu"];

fn chaski(arguments: &[&[&str]], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.env("CHASKI_TRUST_KERNELS", "on");
    command.args(arguments.concat()).envs(environment.iter().copied()).output().unwrap()
}

fn succeed(arguments: &[&[&str]]) -> String {
    let output = chaski(arguments, &[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn rows(arguments: &[&[&str]]) -> Vec<Value> {
    let text = succeed(&[arguments, &[&["-o", "json"]]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"))
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

const SIZES: [&str; 8] = ["-p", "9", "-n", "4", "-d", "0,32", "-r", "3"];

#[test]
fn rows_are_named_as_llama_bench_does_and_their_numbers_agree() {
    let rows = rows(&[&TINY, &CPU, &SIZES, &["-pg", "5,3"]]);
    let tests: Vec<&str> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
    let at_zero = ["pp9", "tg4", "pp5+tg3", "gen4"];
    let deep = at_zero.map(|test| format!("{test}@d32"));
    assert_eq!(tests[..4], at_zero);
    assert_eq!(tests[4..], deep);
    let inspect: Value =
        serde_json::from_str(&succeed(&[&["inspect", "-m", "synthetic:tiny", "--json"], &CPU]))
            .unwrap();
    let weights = number(&inspect["decode_bytes_per_token"], "weights");
    let per_position = number(&inspect, "kv_bytes_per_token");
    for row in &rows {
        let samples: Vec<f64> =
            row["samples_ts"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
        assert_eq!(samples.len(), 3, "{row}");
        let mean = samples.iter().sum::<f64>() / 3.0;
        let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
        assert!(close(number(row, "avg_ts"), mean), "{row}");
        assert!((number(row, "stddev_ts") - (squares / 2.0).sqrt()).abs() < 1e-6 * mean, "{row}");
        let rate = number(row, "bytes_per_token") * mean;
        assert!(close(number(row, "gb_per_s") * 1e9, rate), "{row}");
        let read = number(row, "read_gb_per_s") * 1e9;
        assert!(close(number(row, "bandwidth_fraction"), rate / read), "{row}");
        let flops = number(row, "flops_per_token") * mean / 1e12;
        assert!(close(number(row, "tflops"), flops), "{row}");
        assert!(close(number(row, "flops_fraction"), flops / number(row, "peak_tflops")), "{row}");
        assert_eq!(row["model"], "synthetic:tiny");
        assert_eq!(row["dtype"], "BF16");
        assert!(!row["device"].as_str().unwrap().is_empty() && !row["commit"].is_null());
        for field in ["power_w", "sm_clock_mhz", "throttle_reasons", "driver", "joules_per_token"] {
            assert!(row.get(field).is_some(), "{field}");
        }
    }
    for (row, depth) in [(&rows[1], 0.0), (&rows[5], 32.0)] {
        // Tokens at depth.. depth + 3, each of which reads its own key and value, too.
        let expected = weights + per_position * (depth + 2.5);
        assert_eq!(number(row, "bytes_per_token"), expected, "{row}");
        assert_eq!(number(row, "depth"), depth);
        assert!(number(row, "p50_ms") <= number(row, "p99_ms"), "{row}");
    }
    let answer = &rows[3];
    assert_eq!(number(answer, "bytes_per_token"), weights + per_position * (9.0 + 2.0));
    assert!(number(answer, "first_token_ms") > 0.0);
}

#[test]
fn every_format_has_every_row() {
    let short = ["-p", "3", "-n", "2", "-r", "1", "--no-loop"];
    let text = |format| succeed(&[&TINY, &CPU, &short, &["-o", format]]);
    let jsonl = text("jsonl");
    let lines: Vec<Value> = jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    let fields: Vec<&String> = lines[0].as_object().unwrap().keys().collect();
    let csv = text("csv");
    let names: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    assert_eq!(names, fields);
    assert_eq!(csv.lines().count(), 3);
    let markdown = text("md");
    assert_eq!(markdown.lines().count(), 4, "{markdown}");
    assert!(markdown.contains("| pp3 ") && markdown.contains("| tg2 "), "{markdown}");
    let bars = markdown.lines().map(|line| line.matches('|').count());
    assert_eq!(bars.collect::<std::collections::HashSet<_>>().len(), 1, "{markdown}");
    let sql = text("sql");
    let program = "import sqlite3, sys; d = sqlite3.connect(':memory:'); \
                   d.executescript(sys.argv[1]); \
                   print(d.execute('select test, depth, avg_ts > 0 from llama_bench').fetchall())";
    let output = Command::new("python3").args(["-c", program, &sql]).output().unwrap();
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_eq!(found, "[('pp3', 0, 1), ('tg2', 0, 1)]", "{sql}");
}

#[test]
fn the_emulated_gpu_is_benched_by_the_same_code() {
    let sizes = ["-p", "5", "-n", "3", "-d", "6", "-r", "2", "--depth-fill", "random"];
    let rows = rows(&[&["--emulate", "1"], &TINY, &["--layers", "1"], &sizes]);
    assert_eq!(rows.len(), 3);
    for row in &rows {
        assert_eq!(row["model"], "synthetic:tiny[1 layer]");
        assert_eq!(row["kv_type"], "F16");
        assert_eq!(row["depth_fill"], "random");
        assert!(number(row, "avg_ts") > 0.0 && number(row, "read_gb_per_s") > 0.0);
    }
}

/// Ranks on the CPU, on two emulated GPUs, and two of them on one.
#[test]
fn a_split_model_is_benched_as_one_and_its_links_apart() {
    let places = [
        (&["--device", "cpu", "--tensor-parallel", "4"][..], 4, 1),
        (&["--emulate", "2", "--tensor-parallel", "2"], 2, 2),
        (&["--emulate", "1", "--devices", "0,0"], 2, 1),
    ];
    for (place, world, devices) in places {
        let place = [&TINY, place, &["--layers", "1", "--timeout", "600"]].concat();
        let found = rows(&[&place, &["-p", "5", "-n", "3", "-r", "1", "--depth-fill", "random"]]);
        let tests: Vec<&str> = found.iter().map(|row| row["test"].as_str().unwrap()).collect();
        assert_eq!(tests, ["pp5", "tg3", "gen3"]);
        for row in &found {
            assert_eq!(
                (&row["tensor_parallel"], &row["device_count"]),
                (&world.into(), &devices.into())
            );
            // Each of three sums a token goes from each rank to each other one.
            let tokens = number(row, "link_bytes_per_token") / (3 * world * (world - 1)) as f64;
            assert_eq!(tokens, 256.0 * 4.0, "{row}");
        }
        let whole = rows(&[&TINY, &CPU, &["--layers", "1", "-p", "0", "-n", "3", "-r", "1"]]);
        let [whole, split] = [&whole[0], &found[1]].map(|row| number(row, "bytes_per_token"));
        // The norms are read by each rank, and keys where there are more ranks than heads of them.
        assert!(split >= whole && split < 1.2 * whole, "{split}, {whole} on one rank");

        let profile = rows(&[&place, &["-p", "6", "-r", "1", "--profile"]]);
        for phase in ["prefill6", "decode"] {
            let of_phase = || profile.iter().filter(|row| row["phase"] == phase);
            let linked = of_phase().filter(|row| number(row, "link_bytes") > 0.0);
            let names: Vec<&str> = linked.map(|row| row["op"].as_str().unwrap()).collect();
            assert!(names.contains(&"all_reduce") && names.contains(&"all ops"), "{names:?}");
            assert_eq!(names.len(), 2);
        }
    }
}

#[test]
fn the_profile_adds_up_and_is_drawn() {
    let folder = tempdir().unwrap();
    let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
    let (trace, picture) = (path("trace.json"), path("roofline.svg"));
    let files = ["--profile", "--trace", &trace, "--roofline", &picture];
    for device in [&CPU[..], &["--emulate", "1"]] {
        let rows = rows(&[&TINY, device, &["-p", "6", "-d", "4", "-r", "2"], &files]);
        for phase in ["prefill6@d4", "decode@d4"] {
            let of_phase = rows.iter().filter(|row| row["phase"] == phase);
            let (sums, ops): (Vec<_>, Vec<_>) = of_phase.partition(|row| row["op"] == "all ops");
            let count: f64 = ops.iter().map(|row| number(row, "count")).sum();
            let bytes: f64 = ops.iter().map(|row| number(row, "bytes")).sum();
            assert_eq!(sums.len(), 1);
            assert_eq!((count, bytes), (number(sums[0], "count"), number(sums[0], "bytes")));
            // embed, five or eight ops in each of two layers, and norm and head in one or two
            assert_eq!(count, if phase == "decode@d4" { 12.0 } else { 19.0 });
            let difference = number(sums[0], "time_us") - number(sums[0], "uninstrumented_us");
            assert!(close(difference, number(sums[0], "difference_us")));
            assert!(ops.iter().all(|row| number(row, "ceiling_fraction") >= 0.0));
            assert!(rows.iter().all(|row| number(row, "depth") == 4.0), "{rows:?}");
            let down = ops.iter().find(|row| row["tensor"] == "down_proj").unwrap();
            let tokens = if phase == "decode@d4" { 1 } else { 6 };
            assert_eq!(down["shape"], format!("[{tokens}, 512] x [256, 512]"), "{down}");
            assert_eq!(number(down, "count"), 2.0, "one a layer");
        }
        let trace: Value = serde_json::from_str(&fs::read_to_string(&trace).unwrap()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let ops: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(ops.len(), 12 + 19);
        let layers = |name: &str| -> Vec<&Value> {
            let ops = ops.iter().filter(|op| op["name"] == name);
            ops.map(|op| &op["args"]["layer"]).collect()
        };
        assert_eq!(layers("matmul o_proj"), [&Value::from(0), &1.into()]);
        assert_eq!(layers("attend_prefill"), [&Value::from(0), &1.into()]);
        assert_eq!(layers("embed embed_tokens"), [&Value::Null, &Value::Null]);
        let of_attention = ops.iter().find(|op| op["name"] == "attend_decode").unwrap();
        let about = &of_attention["args"];
        assert_eq!((&about["shape"], &about["depth"]), (&"[1, 4, 64]".into(), &4.into()));
        assert!(trace["otherData"]["layout"].as_str().unwrap().starts_with("no timeline"));
        let svg = fs::read_to_string(&picture).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("matmul down_proj [6, 512] x [256, 512] x2, "), "{svg}");
        assert!(svg.contains("prefill6") && svg.contains("a plain read") && !svg.contains("NaN"));
    }
}

/// One start, on one clock: phases that follow each other do not overlap, and none is empty.
#[test]
fn the_start_up_is_split() {
    for (model, device) in [(&TINY[..], &CPU[..]), (&TINY, &["--emulate", "1"]), (&["bench"], &CPU)]
    {
        let output = chaski(&[model, device, &["--startup", "-o", "json"]], &[]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(errors.matches("all on one clock").count(), 1, "{errors}");
        assert_eq!(errors.matches("KV cache").count(), 1, "one start: {errors}");
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let find = |phase: &str| rows.iter().find(|row| row["phase"] == phase);
        let of = |phase: &str| find(phase).unwrap_or_else(|| panic!("{phase}: {rows:?}"));
        let end = |row: &Value| number(row, "from_ms") + number(row, "ms");
        assert!(rows.iter().all(|row| number(row, "ms") > 0.99e-3), "{rows:?}");
        let (is_gpu, is_synthetic) = (device[0] == "--emulate", model == TINY);
        assert_eq!(find("tokenizer").is_some(), !is_synthetic, "a synthetic model has none");
        for phase in ["qualify", "module load", "graph capture"] {
            assert_eq!(find(phase).is_some(), is_gpu, "{phase}: {rows:?}");
        }
        let in_turn = ["files", "plan", "load", "first token", "second token"].map(of);
        for pair in in_turn.windows(2) {
            assert!(end(pair[0]) <= number(pair[1], "from_ms") + 1e-6, "{pair:?}");
        }
        let total = of("total");
        assert_eq!(number(total, "from_ms"), 0.0);
        assert!((end(total) - end(of("second token"))).abs() < 1e-6, "{rows:?}");
        assert!(number(of("allocate"), "from_ms") >= end(of("plan")) - 1e-6);
    }
}

#[test]
fn what_is_wrong_is_told_in_one_line() {
    let cases: [(&[&str], i32, &str); 10] = [
        (&["-p", "x"], 2, "invalid digit"),
        (&["-p", "0", "-n", "0"], 2, "nothing to measure"),
        (&["-r", "0"], 2, "at least 1"),
        (&["-pg", "5"], 2, "P,G is needed"),
        (&["-o", "xml"], 2, "possible values"),
        (&["--trace", "x.json"], 2, "--profile"),
        (&["--startup", "--profile"], 2, "cannot be used with"),
        (&["-d", "20000000", "-p", "1"], 2, "2097152 is the most"),
        (&["--device", "cuda:9"], 1, "chaski: "),
        (
            &["--profile", "-p", "0", "-r", "1", "--trace", "none/x.json"],
            1,
            "cannot write none/x.json",
        ),
    ];
    for (arguments, status, message) in cases {
        let device: &[&str] = if arguments.contains(&"--device") { &[] } else { &CPU };
        let output = chaski(&[&TINY, arguments, device], &[]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
        assert!(errors.contains(message), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
}

/// Stands in for NVML and NVTX: power and clocks that never change, and a counter of energy.
const NVIDIA: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* place, void** device) {
    *device = (void*)1;
    return strlen(place) != 13 + 3;
}
int nvmlDeviceGetClockInfo(void* d, unsigned kind, unsigned* mhz) { *mhz = 1000 + kind; return 0; }
int nvmlDeviceGetTemperature(void* d, unsigned kind, unsigned* c) { *c = 50 + kind; return 0; }
int nvmlDeviceGetPowerUsage(void* d, unsigned* mw) { *mw = 345600; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void* d, unsigned long long* bits) {
    *bits = 4 | 1;
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void* d, unsigned long long* mj) {
    static unsigned long long spent;
    *mj = spent += 1000;
    return 0;
}
int nvmlSystemGetDriverVersion(char* text, unsigned length) {
    snprintf(text, length, "580.1");
    return 0;
}
int nvtxRangePushA(const char* name) { return fprintf(stderr, "[push %s]\n", name); }
int nvtxRangePop(void) { return fprintf(stderr, "[pop]\n"); }
"#;

#[test]
fn clocks_power_and_energy_are_in_the_row_and_ranges_have_names() {
    let folder = tempdir().unwrap();
    let source = folder.path().join("nvidia.c");
    fs::write(&source, NVIDIA).unwrap();
    for library in ["libnvidia-ml.so.1", "libnvToolsExt.so.1"] {
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(folder.path().join(library)).arg(&source);
        assert!(compiler.status().unwrap().success());
    }
    let path = [("LD_LIBRARY_PATH", folder.path().to_str().unwrap())];
    let sizes = ["-p", "3", "-n", "0", "-r", "1", "-o", "json", "--layers", "1"];
    let output = chaski(&[&["--emulate", "1"], &TINY, &sizes], &path);
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let row = &rows[0];
    assert_eq!((number(row, "sm_clock_mhz"), number(row, "memory_clock_mhz")), (1001.0, 1002.0));
    assert!(close(number(row, "power_w"), 345.6) && number(row, "temperature_c") == 50.0, "{row}");
    assert_eq!(row["throttle_reasons"], serde_json::json!(["power cap"]));
    assert_eq!(row["driver"], "580.1");
    assert!(number(row, "joules_per_token") >= 1.0 / 3.0, "{row}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("[push pp3]\n") && errors.contains("[pop]"), "{errors}");
}

/// A failure leaves the rows before it, in a table that parses.
#[test]
fn a_failing_run_prints_what_it_has() {
    let models = ["bench", "-m", "synthetic:tiny,synthetic:llama3.1-405b"];
    let output = chaski(&[&models, &CPU, &["-p", "3", "-n", "0", "-r", "1", "-o", "json"]], &[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("do not fit"), "{errors}");
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.iter().map(|row| &row["test"]).collect::<Vec<_>>(), ["pp3"], "{errors}");
}

/// Ctrl-C leaves the row at hand with the repetitions that it has.
#[test]
#[cfg(unix)]
fn an_interrupted_run_prints_what_it_has() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.args([&TINY[..], &CPU, &["-p", "3", "-r", "1000000", "-o", "json"]].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let mut lines = stderr.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("KV cache")), "the model is loaded");
    std::thread::sleep(Duration::from_secs(2));
    let process = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &process]).status().unwrap().success());
    // Both ends are read at once: what it has measured by then may be more than a pipe holds.
    let rest = std::thread::spawn(move || lines.for_each(drop));
    let output = child.wait_with_output().unwrap();
    rest.join().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.len(), 1);
    let samples = rows[0]["samples_ts"].as_array().unwrap().len();
    assert!((1..1_000_000).contains(&samples), "{samples}");
}

/// The ops behind the ceilings and the synthetic weights do on a GPU what they mean.
#[test]
fn ceilings_and_weights_are_computed_as_on_the_cpu() {
    emulated::start();
    let mut layout = Layout::default();
    let memory = layout.slot::<u8>(&[16 * 4099]);
    let sums = layout.slot::<u32>(&[3]);
    let y = layout.slot::<f32>(&[2, 256]);
    let run = |hardware| {
        let mut program = Program::default();
        let recipe =
            Recipe { dtype: Float::F16, seed: 5 << 40 | 9, tensor: 11, centre: 1.0, scale: 3e-5 };
        program.push(Synthesize::whole(recipe, memory));
        program.push(ReadAll { words: memory.cast(), sums });
        program.push(MmaPeak { rounds: 3, y });
        let mut device = Executor::new(&hardware, Blueprint::of_state(&layout)).unwrap();
        device.run(&program).unwrap();
        let made = device.read(memory).unwrap().to_vec();
        let sum = device.read(sums).unwrap().iter().fold(0u32, |sum, part| sum.wrapping_add(*part));
        (made, sum, device.read(y).unwrap().to_vec())
    };
    let (cpu, gpu) = (run(Hardware::cpu().unwrap()), run(Hardware::Gpu(Gpu::open(0).unwrap())));
    assert!(cpu.0 == gpu.0, "weights");
    assert_eq!(cpu.1, gpu.1);
    assert_eq!(cpu.2, gpu.2);
    assert!(cpu.2.iter().any(|sum| *sum != 0.0));
}
