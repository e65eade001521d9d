//! `chaski kernels bench`: rows that agree with themselves, two kernels in turns, and what is refused.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::child::{signal, start};
use crate::process::chaski;
use serde_json::Value;
use tempfile::TempDir;

/// Exit status, standard output and standard error.
type Said = (Option<i32>, String, String);

fn bench(more: &[&str]) -> Said {
    chaski(&[&["kernels", "bench"], more].concat(), &[])
}

/// A prefill of 7 tokens and a decode step after 16 of the smallest model, on an emulated GPU.
fn tiny(more: &[&str]) -> Said {
    bench(
        &[&["--emulate", "1", "-m", "synthetic:tiny", "-p", "7", "-d", "16", "-r", "3"], more]
            .concat(),
    )
}

fn rows((status, json, errors): &Said) -> Vec<Value> {
    assert_eq!(*status, Some(0), "{errors}");
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"))
}

/// The built-in `rms_norm` with `old` replaced by `new`, in a file.
fn changed(old: &str, new: &str) -> (TempDir, PathBuf) {
    let (_, text, _) = chaski(&["kernels", "source", "rms_norm"], &[]);
    assert!(text.contains(old), "{old}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.cu");
    fs::write(&path, text.replacen(old, new, 1)).unwrap();
    (folder, path)
}

fn assert_close(a: f64, b: f64, row: &Value) {
    assert!((a - b).abs() <= 1e-9 * a.abs().max(b.abs()), "{a} is not {b}: {row}");
}

#[test]
fn rows_agree_with_themselves_and_with_the_model() {
    let sizes = ["-p", "9", "-d", "32", "-r", "3", "-o", "json"];
    let model = ["--device", "cpu", "-m", "synthetic:llama3.2-1b", "--layers", "1"];
    let rows = rows(&bench(&[&model[..], &sizes].concat()));
    let of = |phase: &str| -> Vec<&str> {
        let rows = rows.iter().filter(|row| row["phase"] == phase);
        rows.map(|row| row["kernel"].as_str().unwrap()).collect()
    };
    let [norm_qkv, attention, project] = ["norm_qkv", "attend_decode", "project"];
    let (norm_gate_up, head) = ("norm_gate_up", "norm_head");
    let decode = ["embed", norm_qkv, attention, project, norm_gate_up, project, head, "sample"];
    assert_eq!(of("decode@d32"), decode);
    assert!(of("prefill9").starts_with(&["embed", "rms_norm", "matmul"]), "{rows:?}");
    for row in &rows {
        let (time, bytes) = (number(row, "time_us") / 1e6, number(row, "bytes"));
        assert!(number(row, "p10_us") <= number(row, "p90_us") && time > 0.0, "{row}");
        assert_close(number(row, "gb_per_s") * 1e9, bytes / time, row);
        let read = number(row, "read_gb_per_s") * 1e9;
        assert_close(number(row, "bandwidth_fraction"), bytes / time / read, row);
        assert_close(number(row, "tflops") * 1e12, number(row, "flops") / time, row);
        assert_close(number(row, "ceiling_fraction"), number(row, "floor_us") / 1e6 / time, row);
        let rotation = number(row, "instances") * bytes;
        assert_close(number(row, "rotation_bytes"), rotation, row);
        assert_eq!(row["cold"], rotation > number(row, "cache_bytes"), "{row}");
        assert_eq!((&row["source"], &row["ratio"]), (&"built-in".into(), &Value::Null));
        assert!(row.get("throttle_reasons").is_some() && row.get("sm_clock_mhz").is_some());
    }
    // The matrices of one layer, and the head, which is the embedding, each with a norm in f32.
    assert_eq!(number(&rows[6], "bytes"), (128_256.0 * 2.0 + 4.0) * 2048.0);
    assert_eq!(number(&rows[4], "bytes"), (2.0 * 8192.0 * 2.0 + 4.0) * 2048.0);
    // A layer's keys and values are few: there are more of them, of which 33 positions are read.
    assert_eq!(number(&rows[2], "bytes"), 2.0 * 33.0 * 512.0 * 4.0);
    assert!(number(&rows[2], "instances") > 1.0, "{}", rows[2]);
}

#[test]
fn every_kernel_of_both_steps_is_timed_on_a_gpu() {
    let said = tiny(&["-o", "jsonl"]);
    assert_eq!(said.0, Some(0), "{}", said.2);
    let rows: Vec<Value> = said.1.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shapes = |kernel: &str| -> Vec<&str> {
        let rows = rows.iter().filter(|row| row["kernel"] == kernel);
        rows.map(|row| row["shape"].as_str().unwrap()).collect()
    };
    assert_eq!(shapes("rms_norm"), ["tokens 7, width 256", "tokens 1, width 256"]);
    assert_eq!(shapes("attend_prefill").len(), 1);
    // q with k and v, O, down, head
    assert_eq!(shapes("matmul").len(), 4, "{:?}", shapes("matmul"));
    let qkv = "tokens 7, rows 256, rows_1 128, rows_2 128, width 256, residual 0, terms 2, tile 2";
    let qkv = rows.iter().find(|row| row["shape"] == qkv).unwrap();
    assert_eq!((number(qkv, "count"), number(qkv, "instances")), (2.0, 2.0));
}

#[test]
fn two_kernels_take_turns() {
    let (_folder, path) = changed("//! rms_norm:", "//! rms_norm: mine,");
    let path = path.to_str().unwrap();
    for (own, against) in [(path, "built-in"), ("built-in", path), (path, path)] {
        let args = ["--against", against, "-o", "json"];
        let own_args = if own == path { vec!["--source", path] } else { vec!["rms_norm"] };
        let rows = rows(&tiny(&[&args[..], &own_args].concat()));
        assert_eq!(rows.len(), 2);
        for row in rows {
            let names = (row["source"].as_str().unwrap(), row["against"].as_str().unwrap());
            assert_eq!((names, &row["kernel"]), ((own, against), &"rms_norm".into()));
            assert!(number(&row, "ratio_p10") <= number(&row, "ratio"), "{row}");
            assert!(number(&row, "against_us") > 0.0, "{row}");
        }
    }
    let (status, table, errors) = tiny(&["--source", path, "--against", "built-in"]);
    assert_eq!(status, Some(0), "{errors}");
    assert!(table.lines().nth(2).unwrap().contains("x ("), "{table}");
}

/// What is said of a changed kernel, which fails.
fn told((old, new): (&str, &str), more: &[&str]) -> String {
    let (_folder, path) = changed(old, new);
    let (status, rows, errors) = tiny(&[&["--source", path.to_str().unwrap()], more].concat());
    assert_eq!((status, &*rows), (Some(1), ""), "{errors}");
    assert_eq!(errors.matches("chaski: ").count(), 1, "{errors}");
    errors
}

#[test]
fn only_what_is_right_is_timed() {
    let said = told(("args.eps", "1.0f"), &[]);
    assert!(said.contains("mine.cu does not pass kernels check: BF16"), "{said}");
    assert!(said.contains(" is right"), "{said}");
    let said = told(("grid_dependency_wait();", "grid_dependency_wait()"), &[]);
    assert!(said.contains("mine.cu does not pass kernels check: cannot compile"), "{said}");
    let said = told(("uint32_t tokens;", "uint32_t count;"), &[]);
    assert!(said.contains("rms_norm_bf16 takes `uint32_t count` where"), "{said}");
}

/// Rows are of what is right to the end, not only before anything is timed.
#[test]
fn a_kernel_that_stops_computing_while_it_is_timed_has_no_row() {
    let wait = "grid_dependency_wait();";
    let (_, text, _) = chaski(&["kernels", "source", "rms_norm"], &[]);
    // Of the model's sizes, which no case has; in the memory of the loaded code.
    let counts = "if (args.tokens == 7 && blockIdx.x == 0 && threadIdx.x == 0) launches++;";
    let changed = text
        .replacen(
            "template <class W> struct",
            "__device__ uint32_t launches = 0;\ntemplate <class W> struct",
            1,
        )
        .replacen(
            wait,
            &format!("{wait} {counts} if (args.tokens == 7 && launches > 6) return;"),
            1,
        );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.cu");
    fs::write(&path, changed).unwrap();
    for more in [&[][..], &["--against", "built-in"]] {
        let (status, rows, errors) = tiny(&[&["--source", path.to_str().unwrap()], more].concat());
        assert_eq!((status, &*rows), (Some(1), ""), "{errors}");
        let told = "mine.cu computes something else once it has been timed: normed is ";
        assert!(errors.contains(told), "{errors}");
    }
}

/// The other one has no memory.
#[test]
fn a_kernel_is_checked_on_the_gpu_that_times_it() {
    let (_folder, path) = changed("//! rms_norm:", "//! rms_norm: mine,");
    let ask = ["kernels", "bench", "--emulate", "2", "--device", "cuda:1", "-m", "synthetic:tiny"];
    let how = ["-p", "3", "-d", "1", "-r", "1", "--source", path.to_str().unwrap()];
    let fault = [("CHASKI_EMULATE_FAULT", "cuMemAlloc_v2@0:1:2")];
    let (status, table, errors) = chaski(&[&ask[..], &how].concat(), &fault);
    assert_eq!(status, Some(0), "{errors}");
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.contains("| Emulated GPU 1 ")), "{table}");
}

#[test]
fn a_kernel_that_does_not_end_is_given_up() {
    let wait = "grid_dependency_wait();";
    let said = told((wait, "for (volatile bool spin = true; spin;) {}"), &["--time-limit", "5"]);
    assert!(said.contains("mine.cu does not pass kernels check: kernel rms_norm"), "{said}");
    assert!(said.contains("mine.cu:") && said.contains("still runs after 5 s"), "{said}");
    // Only at the model's size, which no case has.
    let is_models = "args.tokens == 7 && args.width == 256";
    let late = format!("{wait} for (volatile bool spin = {is_models}; spin;) {{}}");
    let said = told((wait, &late), &["--time-limit", "20"]);
    assert!(said.contains("chaski: kernel rms_norm: did not finish in 20 s\n"), "{said}");
}

#[test]
fn an_emulated_gpu_says_what_it_is_for_and_takes_a_small_model() {
    let sizes = ["--emulate", "1", "-p", "3", "-d", "1", "-r", "1", "-o", "json", "rms_norm"];
    let said = bench(&sizes);
    assert!(
        said.2.contains("an emulated GPU shows that kernels run and what rows there are"),
        "{}",
        said.2
    );
    assert!(rows(&said).iter().all(|row| row["model"] == "synthetic:tiny"), "{}", said.1);
}

/// In the middle of a run that takes longer than anybody waits: the rows before it are a whole table.
#[test]
fn ctrl_c_ends_it_within_a_second() {
    let model = ["-m", "synthetic:llama3.2-1b", "--layers", "1", "-p", "256", "-d", "1", "-r", "3"];
    let ask = [&["kernels", "bench", "--emulate", "1", "-o", "json"], &model[..]].concat();
    let mut child = start::<&str>(&ask, &[]);
    let mut begun = [0; 2];
    child.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    let rest = std::thread::spawn({
        let mut stdout = child.stdout.take().unwrap();
        move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        }
    });
    std::thread::sleep(Duration::from_secs(1)); // into the next rows
    signal(child.id(), "INT");
    let pressed = Instant::now();
    let status = child.wait().unwrap();
    let took = pressed.elapsed();
    let rows = String::from_utf8_lossy(&begun).into_owned() + &rest.join().unwrap();
    assert_eq!(status.code(), Some(130), "{rows}");
    // On a machine that does nothing else it is one.
    assert!(took < Duration::from_secs(4), "{took:?}");
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap_or_else(|e| panic!("{e}: {rows}"));
    assert!(!rows.is_empty());
}

#[test]
fn choices_are_timed_and_the_best_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuned.rs");
    let tune = ["--tune", path.to_str().unwrap(), "-o", "json"];
    let rows = rows(&tiny(&[&tune[..], &["norm_qkv", "project", "embed"]].concat()));
    let of = |kernel: &str, field: &str| -> Vec<String> {
        let rows = rows.iter().filter(|row| row["kernel"] == kernel);
        rows.map(|row| row[field].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(of("norm_qkv", "source"), ["whole rows", "2 parts", "4 parts", "8 parts"]);
    assert_eq!(of("norm_qkv", "against"), ["whole rows"; 4]);
    assert_eq!((of("project", "source").len(), of("embed", "source").len()), (8, 0));
    let table = fs::read_to_string(&path).unwrap();
    for row in [
        "MeasuredParts { op: \"norm_qkv\", multiprocessors: 4, pairs: 256, width: 256, parts: ",
        "MeasuredParts { op: \"project\", multiprocessors: 4, pairs: 128, width: 256, parts: ",
        "MeasuredParts { op: \"project\", multiprocessors: 4, pairs: 128, width: 512, parts: ",
    ] {
        assert!(table.contains(row), "{row}: {table}");
    }
    assert_eq!(table.matches("MeasuredParts {").count(), 3, "{table}");
    let (status, _, errors) = tiny(&["project", "--tune", "/no/such/folder/tuned.rs"]);
    assert_eq!((status, errors.contains("cannot write /no/such/folder/tuned.rs")), (Some(1), true));
}

/// Rows of the sizes of a model whose tokens are of 1 KiB.
fn sums(more: &[&str]) -> Vec<Value> {
    let sums = ["all_reduce", "-m", "synthetic:tiny", "-r", "2", "-o", "json"];
    let rows = rows(&bench(&[&sums[..], more].concat()));
    let sizes: Vec<f64> = rows.iter().map(|row| number(row, "bytes")).collect();
    assert_eq!(sizes, (0..=10).map(|power| f64::from(1024 << power)).collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row["is_token"] == (row["bytes"] == 1024)), "{rows:?}");
    rows
}

#[test]
fn sums_over_ranks_are_timed_in_all_ways_that_there_are() {
    let agrees = |row: &Value, way: &str, ranks: f64| {
        let field = |field: &str| number(row, &format!("{way}_{field}"));
        assert!(field("p10_us") <= field("us") && field("us") <= field("p90_us"), "{row}");
        let rate = number(row, "bytes") / (1e3 * field("us"));
        assert_close(field("algbw_gb_per_s"), rate, row);
        assert_close(field("busbw_gb_per_s"), rate * 2.0 * (ranks - 1.0) / ranks, row);
    };
    let rows = sums(&["--emulate", "2"]);
    for row in &rows {
        assert_eq!((&row["ranks"], &row["on"]), (&2.into(), &"cuda:0,cuda:1".into()));
        ["peers", "nccl"].into_iter().for_each(|way| agrees(row, way, 2.0));
        let ratio = number(row, "nccl_us") / number(row, "peers_us");
        assert_close(number(row, "nccl_over_peers"), ratio, row);
        assert!(row["hosts_us"].is_null() && row["nccl_assumed_above_bytes"] == 256 << 10, "{row}");
    }
    let slower = rows.iter().rev().find(|row| number(row, "nccl_over_peers") >= 1.0);
    let from = slower.map_or(Some(1024), |row| {
        let from = 2 * row["bytes"].as_u64().unwrap();
        (from <= 1 << 20).then_some(from)
    });
    assert!(rows.iter().all(|row| row["nccl_from_bytes"].as_u64() == from), "{from:?}: {rows:?}");
    for row in sums(&["--emulate", "1", "--devices", "0,0,0"]) {
        agrees(&row, "hosts", 3.0);
        assert!(row["peers_us"].is_null() && row["nccl_us"].is_null(), "{row}");
    }
    let off = [("CHASKI_PEERS", "off")];
    let ask = ["kernels", "bench", "all_reduce", "--emulate", "2", "-m", "synthetic:tiny"];
    let (status, table, errors) = chaski(&[&ask[..], &["-r", "1"]].concat(), &off);
    assert_eq!(status, Some(0), "{errors}");
    assert!(
        errors.contains("2 ranks: sums over all ranks through NCCL: CHASKI_PEERS=off\n"),
        "{errors}"
    );
    let row = table.lines().nth(2).unwrap();
    assert!(
        row.contains("a token of synthetic:tiny") && row.contains("| Emulated GPU 0 "),
        "{table}"
    );
}

/// A sum that is right of one rank, which is all that `kernels check` sees.
#[test]
fn a_wrong_sum_is_not_timed() {
    let (_, text, _) = chaski(&["kernels", "source", "all_reduce"], &[]);
    let right = "sum[j] = add(sum[j], bits_float(words[j]));";
    assert!(text.contains(right));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.cu");
    fs::write(&path, text.replace(right, &right.replace("add(sum[j], ", "add(0.0f, "))).unwrap();
    let source = ["--emulate", "2", "--source", path.to_str().unwrap()];
    let (status, rows, errors) =
        bench(&[&["all_reduce", "-m", "synthetic:tiny"], &source[..]].concat());
    assert_eq!((status, &*rows), (Some(1), ""), "{errors}");
    assert!(errors.contains(": a sum of 256 numbers is wrong\n"), "{errors}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (_folder, path) = changed("//! rms_norm:", "//! rms_norm: mine,");
    let path = path.to_str().unwrap();
    let graphs_off = [("CHASKI_GRAPHS", "off")];
    for (args, environment, status, words) in [
        (&["nope"][..], &[][..], 2, "invalid value 'nope' for '[NAME]...'"),
        (&["rmsnorm"], &[], 2, "a similar value exists: 'rms_norm'"),
        (&["mma_peak"], &[], 2, "no step of this model has kernel mma_peak: there are attend_d"),
        (&["all_reduce"], &[], 1, "between GPUs, and there is one: --devices 0,0 times ranks that"),
        (&["all_reduce", "embed"], &[], 2, "at sizes of its own: name it alone"),
        (&["all_reduce", "--against", "cublaslt"], &[], 1, "cuBLASLt (libcublasLt.so) is not"),
        (&["all_reduce", "--against", "built-in"], &[], 2, "leave --against and --tune out"),
        (&["all_reduce", "--device", "cpu"], &[], 2, "--devices 0,1 names: leave --device out"),
        (&["all_reduce", "--devices", "0"], &[], 2, "a rank alone has nothing to add up"),
        (&["all_reduce", "--tensor-parallel", "2"], &[], 1, "there is no GPU cuda:1: there is one"),
        (&["embed", "--source", path], &[], 2, "replaces rms_norm: embed cannot be timed"),
        (&["--source", path, "--device", "cpu"], &[], 2, "kernels run on a GPU"),
        (&["--source", "/no/such.cu"], &[], 1, "cannot read /no/such.cu"),
        (&["--source", path, "--against", "built-in"], &graphs_off, 2, "leave CHASKI_GRAPHS=off"),
        (&["--tune", "/dev/null", "--device", "cpu"], &[], 2, "none of these kernels has a choice"),
        (&["matmul", "--against", "cublaslt"], &[], 1, "cuBLASLt (libcublasLt.so) is not on this"),
        (&["--tune", "x.rs", "--source", path], &[], 2, "cannot be used with"),
        (&["-p", "9", "--tensor-parallel", "2", "--device", "cpu"], &[], 2, "takes one rank"),
    ] {
        let tiny = ["--emulate", "1", "kernels", "bench", "-m", "synthetic:tiny"];
        let (code, rows, errors) = chaski(&[&tiny[..], args].concat(), environment);
        assert_eq!((code, &*rows), (Some(status), ""), "{args:?}: {errors}");
        assert!(errors.contains(words), "{args:?}: {errors}");
    }
}
