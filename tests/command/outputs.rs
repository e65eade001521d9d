//! What commands write, and where: whole files or none, devices and pipes as they are, rows that
//! llama.cpp's tools read.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::tempdir;

fn chaski(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn errors(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors = errors.lines().filter(|line| line.starts_with("chaski: "));
    errors.collect::<Vec<_>>().join("\n")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A file of logits of two tokens, whole.
fn assert_logits(bytes: &[u8]) {
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    assert_eq!(tensors.tensor("logits").unwrap().shape()[0], 2);
}

fn logits(out: &Path) -> Command {
    chaski(&["logits", "--ids", "1,2", "--out", out.to_str().unwrap()])
}

/// Each command that writes a file where it is told to, up to the file's name.
const WRITERS: [&[&str]; 4] = [
    &["logits", "--ids", "1,2", "--out"],
    &["quantize", "-m", "synthetic:tiny", "--type", "q8_0", "--out"],
    &["bench", "-m", "synthetic:tiny", "-p", "3", "-r", "1", "--profile", "--trace"],
    &["bench", "-m", "synthetic:tiny", "-p", "3", "-r", "1", "--profile", "--roofline"],
];

#[test]
#[cfg(target_os = "linux")]
fn devices_are_written_into() {
    use std::os::unix::fs::FileTypeExt;
    for writer in WRITERS {
        for (device, status) in [("/dev/null", 0), ("/dev/full", 1), ("/dev/stdout", 0)] {
            let output = chaski(&[writer, &[device]].concat()).output().unwrap();
            let told = errors(&output);
            assert_eq!(output.status.code(), Some(status), "{writer:?} {device}: {told}");
            assert!(fs::metadata(device).is_ok(), "{device} is still there");
            if device == "/dev/full" {
                assert!(told.contains("cannot write /dev/full: No space left"), "{told}");
                assert!(fs::metadata(device).unwrap().file_type().is_char_device());
            }
            if device == "/dev/stdout" && writer[0] == "logits" {
                assert_logits(&output.stdout);
            }
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn standard_output_that_is_a_file_is_written_on() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::os::unix::fs::symlink("/dev/stdout", at("link")).unwrap();
    for out in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", at("link").to_str().unwrap()] {
        fs::write(at("log"), "before").unwrap();
        let log = File::options().append(true).open(at("log")).unwrap();
        let output = logits(Path::new(out)).stdout(log).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{out}: {}", errors(&output));
        let bytes = fs::read(at("log")).unwrap();
        assert_logits(bytes.strip_prefix(b"before").unwrap());
    }
    assert_eq!(names(folder.path()), ["link", "log"]);
}

#[test]
#[cfg(unix)]
fn pipes_are_written_into_and_their_readers_may_leave() {
    let folder = tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let child = logits(&pipe).spawn().unwrap();
    assert_logits(&fs::read(&pipe).unwrap());
    assert!(child.wait_with_output().unwrap().status.success());
    let child = logits(&pipe).spawn().unwrap();
    drop(File::open(&pipe).unwrap());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(names(folder.path()), ["pipe"]);
}

#[test]
#[cfg(unix)]
fn what_lies_beside_is_left_alone() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("precious"), "mine").unwrap();
    std::os::unix::fs::symlink(at("precious"), at("a.partial")).unwrap();
    assert!(logits(&at("a")).output().unwrap().status.success());
    assert_logits(&fs::read(at("a")).unwrap());
    assert_eq!(fs::read_to_string(at("precious")).unwrap(), "mine");
    // A link in the place of the output leads to it.
    std::os::unix::fs::symlink("target", at("b")).unwrap();
    assert!(logits(&at("b")).output().unwrap().status.success());
    assert_logits(&fs::read(at("target")).unwrap());
    fs::create_dir(at("m.partial")).unwrap();
    let synthesize = ["synthesize", "-m", "synthetic:tiny", "--out"];
    let output =
        chaski(&[&synthesize[..], &[at("m").to_str().unwrap()]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(
        names(folder.path()),
        ["a", "a.partial", "b", "m", "m.partial", "precious", "target"]
    );
    // As if there had been nothing but the folder.
    assert_eq!(names(&at("m")), ["config.json", "generation_config.json", "model.safetensors"]);
    let output =
        chaski(&[&synthesize[..], &[at("m").to_str().unwrap()]].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("already exists"), "{}", errors(&output));
}

/// A file of blocks, and the same blocks made while the model is loaded, on the way to any command.
#[test]
fn a_quantised_file_answers_as_the_model_that_is_quantised_while_it_is_loaded() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    let file = file.to_str().unwrap();
    let text = |arguments: &[&str]| {
        let output = chaski(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    for kind in ["Q8_0", "q4_0"] {
        text(&["quantize", "-m", "synthetic:tiny", "--type", kind, "--out", file]);
        let generate = ["generate", "--ids", "1,2,3", "-n", "8", "--print-ids", "--device", "cpu"];
        let of_file = text(&[&generate[..], &["-m", file]].concat());
        let made = ["-m", "synthetic:tiny", "--quantize", kind];
        assert_eq!(of_file, text(&[&generate[..], &made].concat()), "{kind}");
        assert_ne!(of_file.trim(), "");
        let inspected = text(&[&["inspect", "--json", "--device", "cpu"][..], &made].concat());
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        assert!(inspected.to_string().contains(&kind.to_uppercase()), "{inspected}");
        let bench = ["bench", "-p", "4", "-n", "2", "-r", "1", "--no-loop", "-o", "json"];
        let [row, own] = [vec!["-m", file], made.to_vec()].map(|model| {
            let rows = text(&[&bench[..], &["--device", "cpu"], &model].concat());
            serde_json::from_str::<Value>(&rows).unwrap()[0]["model_type"].clone()
        });
        assert_eq!(row, own);
        assert!(row.as_str().unwrap().ends_with(&kind.to_uppercase()), "{row}");
    }
    assert_eq!(names(folder.path()), ["tiny.gguf"]);
    for (arguments, said) in [
        (vec!["quantize", "-m", file, "--type", "q8_0", "--out", file], "already: only F32"),
        (vec!["inspect", "-m", file, "--quantize", "q8_0"], "already: only F32"),
        (vec!["quantize", "-m", "demo", "--type", "q8_0", "--out", "/no/where.gguf"], "GGUF"),
    ] {
        let output = chaski(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(errors(&output).contains(said), "{arguments:?}: {}", errors(&output));
    }
}

#[test]
fn four_at_once_leave_one_whole_file() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("l.safetensors");
    let children = [(); 4].map(|()| logits(&out).spawn().unwrap());
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", errors(&output));
    }
    assert_logits(&fs::read(&out).unwrap());
    assert_eq!(names(folder.path()), ["l.safetensors"]);
    // Folders are not replaced: one of them has the name.
    let model = folder.path().join("m");
    let ask = ["synthesize", "-m", "synthetic:tiny", "--out", model.to_str().unwrap()];
    let children = [(); 4].map(|()| chaski(&ask).spawn().unwrap());
    let ends = children.map(|child| child.wait_with_output().unwrap());
    assert_eq!(ends.iter().filter(|output| output.status.success()).count(), 1, "{ends:?}");
    assert_eq!(names(folder.path()), ["l.safetensors", "m"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_conversation_is_saved_likewise() {
    use std::io::Write;
    let folder = tempdir().unwrap();
    let script = "What is 27 + 58?\n/save /dev/full\n/save saved.json\n/save /dev/stdout\n/save none/x\n\
                  What is 27 + 58?\n";
    let mut command = chaski(&["chat"]);
    let mut child = command.current_dir(folder.path()).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = errors(&output);
    assert!(told.contains("/dev/full: No space left") && told.contains("none/x"), "{told}");
    let saved = fs::read_to_string(folder.path().join("saved.json")).unwrap();
    let answer = "27 + 58 = 85.\n";
    let all = String::from_utf8(output.stdout).unwrap();
    assert_eq!(all, format!("{answer}{saved}{answer}"));
    assert_eq!(names(folder.path()), ["saved.json"]);
}

const TINY: [&str; 3] = ["bench", "-m", "synthetic:tiny"];
const CPU: [&str; 2] = ["--device", "cpu"];

fn bench(arguments: &[&str]) -> String {
    let output = chaski(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn bench_rows(arguments: &[&str]) -> Vec<Value> {
    serde_json::from_str(&bench(&[arguments, &["-o", "json"]].concat())).unwrap()
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"))
}

/// llama-bench's fields and types, as of llama.cpp in llama-cpp-python 0.3.36: `get_fields` and
/// `get_field_type` of its tools/llama-bench/llama-bench.cpp.
const THEIR_FIELDS: &str = "\
    build_commit TEXT, build_number INTEGER, cpu_info TEXT, gpu_info TEXT, backends TEXT, \
    model_filename TEXT, model_type TEXT, model_size INTEGER, model_n_params INTEGER, \
    n_batch INTEGER, n_ubatch INTEGER, \
    n_threads INTEGER, cpu_mask TEXT, cpu_strict BOOL, poll INTEGER, type_k TEXT, type_v TEXT, \
    n_gpu_layers INTEGER, n_cpu_moe INTEGER, split_mode TEXT, main_gpu INTEGER, no_kv_offload BOOL, \
    flash_attn INTEGER, devices TEXT, tensor_split TEXT, tensor_buft_overrides TEXT, load_mode TEXT, \
    lazy_mode TEXT, embeddings BOOL, no_op_offload INTEGER, no_host BOOL, repack BOOL, fit_target INTEGER, \
    fit_min_ctx INTEGER, n_prompt INTEGER, n_gen INTEGER, n_depth INTEGER, test_time TEXT, avg_ns INTEGER, \
    stddev_ns INTEGER, avg_ts REAL, stddev_ts REAL";

/// Those by which its scripts/compare-llama-bench.py finds the same test of two builds.
const THEIR_KEYS: &str = "\
    cpu_info gpu_info backends n_gpu_layers n_cpu_moe tensor_buft_overrides model_filename \
    model_type n_batch n_ubatch embeddings cpu_mask cpu_strict poll n_threads type_k type_v load_mode \
    no_kv_offload split_mode \
    main_gpu tensor_split flash_attn n_prompt n_gen n_depth fit_target fit_min_ctx";

#[test]
fn every_field_of_llama_bench_is_there_with_its_type_and_meaning() {
    let all = [&TINY[..], &["-p", "9", "-n", "4", "-pg", "5,3", "-d", "2", "-r", "3"]].concat();
    let on_cpu = bench_rows(&[&all[..], &CPU].concat());
    let gpu = ["--emulate", "1", "--layers", "1", "-p", "3", "-n", "0", "-r", "1"];
    let on_gpu = bench_rows(&[&TINY[..], &gpu].concat());
    for row in on_cpu.iter().chain(&on_gpu) {
        for field in THEIR_FIELDS.split(", ") {
            let (name, kind) = field.trim().split_once(' ').unwrap();
            let value = &row[name];
            let is_right = match kind {
                "TEXT" => value.is_string(),
                "INTEGER" => value.is_i64() || value.is_u64(),
                "BOOL" => value.is_boolean(),
                _ => value.is_f64(),
            };
            assert!(is_right, "{name}: {value} of {row}");
        }
        let samples = row["samples_ns"].as_array().unwrap();
        let nanoseconds: Vec<f64> = samples.iter().map(|ns| ns.as_u64().unwrap() as f64).collect();
        let mean = nanoseconds.iter().sum::<f64>() / samples.len() as f64;
        assert!((number(row, "avg_ns") - mean).abs() <= 1.0, "{row}");
        let tokens = number(row, "n_prompt") + number(row, "n_gen");
        let rates = nanoseconds.iter().map(|ns| 1e9 * tokens / ns);
        let rate = rates.sum::<f64>() / samples.len() as f64;
        assert!((number(row, "avg_ts") / rate - 1.0).abs() < 1e-4, "{row}");
        let time: jiff::Timestamp = row["test_time"].as_str().unwrap().parse().unwrap();
        assert!(jiff::Timestamp::now().duration_since(time).as_secs() < 600, "{row}");
        assert_eq!(
            (&row["model_filename"], &row["n_batch"]),
            (&row["model"], &row["prefill_chunk"])
        );
        assert_eq!(
            (&row["model_size"], &row["model_n_params"]),
            (&row["weight_bytes"], &row["parameters"])
        );
    }
    let sizes =
        |row: &Value| ["n_prompt", "n_gen", "n_depth"].map(|field| row[field].as_u64().unwrap());
    // The real loop: all tokens but the first, after its prompt.
    let expected = [[9, 0, 2], [0, 4, 2], [5, 3, 2], [0, 3, 11]];
    assert_eq!(on_cpu.iter().map(sizes).collect::<Vec<_>>(), expected);
    let places = |row: &Value| {
        ["backends", "type_k", "devices"].map(|name| row[name].as_str().unwrap().to_owned())
    };
    assert_eq!(places(&on_cpu[0]), ["CPU", "f32", "none"]);
    assert_eq!(places(&on_gpu[0]), ["CUDA", "f16", "CUDA0"]);
    assert_eq!((&on_cpu[0]["n_gpu_layers"], &on_gpu[0]["n_gpu_layers"]), (&0.into(), &(-1).into()));
    assert_eq!(
        (&on_cpu[0]["gpu_info"], &on_gpu[0]["gpu_info"]),
        (&"".into(), &"Emulated GPU 0".into())
    );
}

/// As compare-llama-bench.py reads it: into a table of their fields, in which each test of one
/// build meets that of another.
#[test]
fn rows_are_compared_as_llama_benchs() {
    let sizes = ["-p", "3", "-n", "2", "-d", "0,4", "-r", "1"];
    let sql = bench(&[&TINY[..], &CPU, &sizes, &["-o", "sql"]].concat());
    let csv = bench(&[&TINY[..], &CPU, &sizes, &["-o", "csv"]].concat());
    let program = "
import csv, io, sqlite3, sys
sql, text, fields, keys = sys.argv[1:]
d = sqlite3.connect(':memory:')
d.executescript(sql)
kinds = {name: kind for _, name, kind, *_ in d.execute('pragma table_info(llama_bench)')}
for field in fields.split(', '):
    name, kind = field.split()
    assert kinds[name] == kind.replace('BOOL', 'INTEGER'), field
rows = list(csv.DictReader(io.StringIO(text)))
names = [field.split()[0] for field in fields.split(', ')]
for row in rows:
    values = ['another' if name == 'build_commit' else row[name] for name in names]
    columns, marks = ', '.join(names), ', '.join('?' * len(names))
    d.execute(f'insert into llama_bench ({columns}) values ({marks})', values)
same = ' and '.join(f'a.{key} = b.{key}' for key in keys.split())
found = d.execute(f\"select a.test, a.avg_ts > 0 and b.avg_ts > 0 from llama_bench a \"
                  f\"join llama_bench b on {same} \"
                  \"and a.build_commit <> 'another' and b.build_commit = 'another'\").fetchall()
print(sorted(found))
";
    let output = Command::new("python3")
        .args(["-c", program, &sql, &csv, THEIR_FIELDS, THEIR_KEYS])
        .output();
    let output = output.unwrap();
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let tests =
        ["gen2", "gen2@d4", "pp3", "pp3@d4", "tg2", "tg2@d4"].map(|test| format!("('{test}', 1)"));
    assert_eq!(
        found,
        format!("[{}]", tests.join(", ")),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
