//! Options, files and texts that make no sense or mean no good: a line and a status, no panic, no signal, no
//! end that does not come, and nothing that a terminal obeys.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::thread;

use serde_json::Value;
use tempfile::{TempDir, tempdir};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo");

/// Commands with what makes them quick. `OUT` is a path that is not there, `TEXT` a file.
const COMMANDS: [&[&str]; 14] = [
    &["generate", "-n", "2", "--temp", "1", "--device", "cpu"],
    &["chat", "-p", "Hi", "-n", "2", "--device", "cpu"],
    &["logits", "--ids", "1,2", "--out", "OUT", "--device", "cpu"],
    &["perplexity", "-f", "TEXT", "-c", "16", "--device", "cpu"],
    &["bench", "-p", "2", "-n", "2", "-r", "1", "--device", "cpu"],
    &["tokenize"],
    &["detokenize"],
    &["synthesize", "-m", "synthetic:tiny", "--out", "OUT"],
    &["inspect", "--device", "cpu"],
    &["diff", "--ids", "1,2", "--a", "cpu", "--b", "cpu"],
    &["pull", "a/b", "--offline"],
    &["kernels", "check"],
    &["kernels", "bench", "--device", "cpu", "-m", "synthetic:tiny", "-r", "1"],
    &["qualify"],
];

/// What the help calls a number, a file, and anything else.
const NUMBERS: &str =
    "N N,.. P,G N,N.. TOKENS THREADS T K P X SEED SECONDS MB BYTES ID ID=BIAS IDS";
const FILES: &str = "FILE FILE.cu NAME=FILE.cu FILE.json FILE.svg X.safetensors DIR \
                     FILE.cu|built-in|cublaslt src/ops/tuned.rs";
const OTHERS: &str =
    "MODEL DEVICE TYPE FORMAT HOW TEXT STYLE YYYY-MM-DD LAUNCHER HOST:PORT CHECKER WHICH";

fn run(args: &[String]) -> Output {
    // Half a minute, and no more memory than a few times what the demo takes.
    let limits = "ulimit -v 8000000; ulimit -c 0; exec timeout -s KILL 60 \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", limits, "sh", env!("CARGO_BIN_EXE_chaski")]).args(args);
    command.env("CUDA_VISIBLE_DEVICES", "").env("HF_HUB_OFFLINE", "1").stdin(Stdio::null());
    command.output().unwrap()
}

/// What is wrong with how a run has ended, if anything.
fn trouble(output: &Output) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let errors = said.lines().filter(|line| line.starts_with("chaski: ")).count();
    let right = match output.status.code() {
        Some(0) => errors == 0,
        Some(1) => errors == 1,
        Some(2) => errors == 1 || said.starts_with("error: "),
        _ => false,
    };
    let longest = said.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    let is_wrong = !right || said.contains("panicked") || longest > 700;
    is_wrong.then(|| format!("{:?} {:?} {said}", output.status.code(), output.status.signal()))
}

/// An option that takes a value: its command, its name, what the help calls the value.
type Taken = (&'static [&'static str], String, String);

/// Every option of every command once.
fn options() -> Vec<Taken> {
    let mut known = BTreeSet::new();
    let mut options = Vec::new();
    for command in COMMANDS {
        let words = if command[0] == "kernels" { 2 } else { 1 };
        let mut help = Command::new(env!("CARGO_BIN_EXE_chaski"));
        let help = help.arg("help").args(&command[..words]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        for line in help.lines().map(str::trim_start).filter(|line| line.starts_with('-')) {
            let Some((names, value)) = line.split_once('<') else { continue };
            let value = value.split('>').next().unwrap().to_owned();
            let name = names.split([' ', ',']).find(|name| name.starts_with("--")).unwrap();
            if known.insert((name.to_owned(), value.clone())) {
                options.push((command, name.to_owned(), value));
            }
        }
    }
    assert!(options.len() > 50, "{options:?}");
    options
}

fn is_of(list: &str, value: &str) -> bool {
    list.split_whitespace().any(|word| word == value)
}

/// The command with this option, and with what it needs beside.
fn with((command, name, _): &Taken, given: &str, folder: &Path, run: usize) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut args: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    for arg in &mut args {
        match &**arg {
            "OUT" => *arg = path(&format!("out{run}")),
            "TEXT" => *arg = path("text"),
            _ => (),
        }
    }
    let short = |long: &str| match long {
        "--file" => "-f".to_owned(),
        "--context" => "-c".to_owned(),
        "--n-prompt" => "-p".to_owned(),
        "--n-gen" | "--max-tokens" => "-n".to_owned(),
        "--repetitions" => "-r".to_owned(),
        long => long.to_owned(),
    };
    if let Some(at) = args.iter().position(|arg| arg == name || *arg == short(name)) {
        args.drain(at..at + 2);
    }
    let is_prompt =
        ["--prompt", "--file", "--ids", "--ids-file", "--random-ids"].contains(&&**name);
    if command[0] == "chat" && name == "--file" {
        args.drain(1..3);
    }
    if command[0] == "generate" && !is_prompt {
        args.extend(["-p".to_owned(), "Hi".to_owned()]);
    }
    match &**name {
        "--logprobs" => args.push("--json".to_owned()),
        "--trace" | "--roofline" => args.push("--profile".to_owned()),
        "--devices" => drop(args.drain(args.len() - 2..)),
        _ => (),
    }
    args.push(format!("{name}={given}"));
    args
}

/// Runs all of these, several at a time.
fn all_are_told(runs: Vec<Vec<String>>) {
    let runs = Mutex::new(VecDeque::from(runs));
    let troubles = Mutex::new(Vec::new());
    let next = || runs.lock().unwrap().pop_front();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(args) = next() {
                    if let Some(trouble) = trouble(&run(&args)) {
                        troubles.lock().unwrap().push(format!("{args:?}: {trouble}"));
                    }
                }
            });
        }
    });
    let troubles = troubles.into_inner().unwrap();
    assert!(troubles.is_empty(), "{}:\n{}", troubles.len(), troubles.join("\n"));
}

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("text"), "What is 27 + 58? ".repeat(8)).unwrap();
    symlink("/nowhere/at/all", folder.path().join("dangling")).unwrap();
    folder
}

#[test]
fn numbers_past_all_sense_are_told_in_a_line() {
    let folder = folder();
    let huge = "18446744073709551615";
    let mut runs = Vec::new();
    for option in options() {
        let (_, name, value) = &option;
        assert!([NUMBERS, FILES, OTHERS].iter().any(|list| is_of(list, value)), "{name} <{value}>");
        if !is_of(NUMBERS, value) {
            continue;
        }
        let mut given: Vec<String> =
            ["", "0", "-1", huge, "9223372036854775807", "nan", "-inf", "1e-45", "1e39"]
                .map(str::to_owned)
                .into();
        // Of what is only slow, nobody wants a million.
        if !matches!(&**name, "--repetitions" | "--n-prompt" | "--n-gen" | "--n-depth") {
            given.push("1000000".to_owned());
        }
        match &**value {
            "ID=BIAS" => given = given.iter().map(|number| format!("1={number}")).collect(),
            "P,G" => given.extend([format!("{huge},{huge}"), format!("1,{huge}")]),
            "N,.." | "N,N.." | "IDS" => given.push(format!("1,{huge}")),
            _ => (),
        }
        for number in given {
            runs.push(with(&option, &number, folder.path(), runs.len()));
        }
    }
    assert!(runs.len() > 300, "{}", runs.len());
    all_are_told(runs);
}

#[test]
fn files_that_are_none_are_told_in_a_line() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut runs = Vec::new();
    for option in options().into_iter().filter(|(_, _, value)| is_of(FILES, value)) {
        let files =
            ["/dev/zero".to_owned(), path(""), path("dangling"), path("none/none"), String::new()];
        for file in files {
            let file = match &*option.2 {
                "NAME=FILE.cu" => format!("embed={file}"),
                _ => file,
            };
            runs.push(with(&option, &file, folder.path(), runs.len()));
        }
    }
    assert!(runs.len() > 50, "{}", runs.len());
    all_are_told(runs);
}

/// Through a pipe without end, and by links, too.
#[test]
fn what_has_no_end_is_ended() {
    let endless = |args: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "exec timeout 60 \"$@\" < /dev/zero", "sh"]);
        command.arg(env!("CARGO_BIN_EXE_chaski")).args(args).output().unwrap()
    };
    for args in [&["chat", "--device", "cpu"][..], &["tokenize", "--jsonl", "-"], &["tokenize"]] {
        let output = endless(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?} {said}");
        assert!(said.contains(" MiB"), "{args:?} {said}");
    }
}

#[test]
fn a_link_to_nothing_is_not_taken_for_no_file() {
    for name in ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"] {
        let model = tempdir().unwrap();
        for file in fs::read_dir(DEMO).unwrap().map(|file| file.unwrap().path()) {
            fs::copy(&file, model.path().join(file.file_name().unwrap())).unwrap();
        }
        let _ = fs::remove_file(model.path().join(name));
        symlink("../../blobs/1234", model.path().join(name)).unwrap();
        let path = model.path().display().to_string();
        let output = run(&["chat", "-p", "Hi", "-m", &path].map(str::to_owned));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(trouble(&output).is_none() && output.status.code() == Some(1), "{name}: {said}");
        assert!(said.contains(name) && said.contains("link to ../../blobs/1234"), "{name}: {said}");
    }
}

/// What a terminal is shown of a command: standard output and errors.
fn on_a_terminal(args: &[&str]) -> Vec<u8> {
    let program = "import pty, sys; pty.spawn(sys.argv[1:])";
    let mut command = Command::new("python3");
    command.args(["-c", program, env!("CARGO_BIN_EXE_chaski")]).args(args).stdin(Stdio::null());
    command.output().unwrap().stdout
}

fn has_commands(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\r'))
}

#[test]
fn a_terminal_obeys_nobody_else() {
    let bad = "a\u{1b}]0;title\u{7}b\u{1b}[31mc\u{9b}2Jd\re";
    let ids = run(&["tokenize", "--plain", bad].map(str::to_owned));
    let ids = String::from_utf8(ids.stdout).unwrap();
    // The very bytes for a pipe.
    let piped = run(&["detokenize", ids.trim()].map(str::to_owned));
    assert_eq!(String::from_utf8(piped.stdout).unwrap(), format!("{bad}\n"));
    let shown = on_a_terminal(&["detokenize", ids.trim()]);
    let text = String::from_utf8_lossy(&shown).into_owned();
    assert!(!has_commands(&shown), "{text:?}");
    assert!(text.starts_with("a\\u{1b}]0;title\\u{7}b\\u{1b}[31mc\\u{9b}2Jd\\re"), "{text:?}");
    // Names of files, models and options in messages.
    let folder = tempdir().unwrap();
    let name = format!("x{bad}\n");
    fs::create_dir(folder.path().join(&name)).unwrap();
    let file = folder.path().join(&name).display().to_string();
    for args in [
        &["generate", "-m", &file, "-p", "Hi"][..],
        &["generate", "-f", &file],
        &["generate", &format!("--{bad}")],
        &["logits", "--ids", "1", "--out", &format!("{file}/none/x")],
        &["kernels", "check", "--source", &file],
        &["kernels", "source", bad],
        &["tokenize", "-m", bad, "Hi"],
        &["pull", bad],
    ] {
        let output = run(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        assert!(trouble(&output).is_none() && !output.status.success(), "{args:?} {output:?}");
        assert!(!has_commands(&output.stderr), "{args:?} {output:?}");
        // Colours are ours.
        let shown = on_a_terminal(args);
        assert!(!String::from_utf8_lossy(&shown).contains("\u{1b}]0"), "{args:?} {shown:?}");
        assert!(!shown.contains(&7), "{args:?} {shown:?}");
    }
}

/// What a mutation puts in the place of a value.
const VALUES: [&str; 16] = [
    "null",
    "true",
    "0",
    "-1",
    "1",
    "0.5",
    "1e300",
    "18446744073709551615",
    "4294967296",
    "\"\"",
    "\"bf16\\u001b[31m\\n\"",
    "[]",
    "[0, 1, 2]",
    "[[]]",
    "{}",
    "{\"a\": {\"b\": null}}",
];

/// Numbers of a seed, one after the other.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

/// Changes one place of a JSON value: removed, replaced, repeated, or moved to another name.
fn mutate(value: &mut Value, random: &mut Random) {
    let replacement = serde_json::from_str(VALUES[random.below(VALUES.len())]).unwrap();
    match value {
        Value::Object(object) if !object.is_empty() => {
            let key = object.keys().nth(random.below(object.len())).unwrap().clone();
            match random.below(6) {
                0 => drop(object.remove(&key)),
                1 => drop(object.insert(key, replacement)),
                2 => {
                    let moved = object.remove(&key).unwrap();
                    object.insert(format!("{key}\u{9b}"), moved);
                }
                _ => mutate(&mut object[&key], random),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = random.below(list.len());
            match random.below(5) {
                0 => drop(list.remove(at)),
                1 => list.insert(at, replacement),
                2 => list.extend(list.clone()),
                _ => mutate(&mut list[at], random),
            }
        }
        _ => *value = replacement,
    }
}

/// A file's bytes with something changed: its JSON, or bytes at any place.
fn mutated(name: &str, mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    // A safetensors file begins with the length of its header.
    let json = match name.ends_with(".safetensors") {
        true => 8..8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize,
        false => 0..bytes.len(),
    };
    if random.below(4) > 0 {
        let mut value = serde_json::from_slice(&bytes[json.clone()]).unwrap();
        (0..=random.below(2)).for_each(|_| mutate(&mut value, random));
        let text = value.to_string();
        if json.start > 0 {
            bytes[..8].copy_from_slice(&(text.len() as u64).to_le_bytes());
        }
        bytes.splice(json, text.into_bytes());
        return bytes;
    }
    let at = random.below(json.end);
    match random.below(4) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << random.below(8),
        2 => drop(bytes.drain(at..(at + 40).min(json.end))),
        _ => drop(bytes.splice(at..at, b"\"a\": [[{\"a\": 1, \"a\": 2}]],".iter().copied())),
    }
    bytes
}

/// Runs a model of which one file has been changed, for each of these seeds.
fn mutated_models_are_told(seeds: std::ops::Range<u64>) {
    const FILES: [&str; 3] = ["config.json", "generation_config.json", "model.safetensors"];
    let folder = tempdir().unwrap();
    let runs = seeds.map(|seed| {
        let mut random = Random(seed);
        let changed = FILES[random.below(FILES.len())];
        let model = folder.path().join(seed.to_string());
        fs::create_dir(&model).unwrap();
        for file in fs::read_dir(DEMO).unwrap().map(|file| file.unwrap().path()) {
            let name = file.file_name().unwrap().to_str().unwrap();
            if name == changed {
                let bytes = mutated(name, fs::read(&file).unwrap(), &mut random);
                fs::write(model.join(name), bytes).unwrap();
            } else {
                symlink(&file, model.join(name)).unwrap();
            }
        }
        let model = model.display().to_string();
        let sampling = ["--temp", "1", "--seed", "1"];
        let ask = ["chat", "-p", "Hi", "-n", "2", "--device", "cpu", "-m", &model];
        [&ask[..], &sampling].concat().iter().map(|arg| (*arg).to_owned()).collect()
    });
    all_are_told(runs.collect());
}

#[test]
fn a_model_with_something_changed_runs_or_is_refused() {
    mutated_models_are_told(0..200);
}

#[test]
#[ignore = "takes minutes"]
fn thousands_of_changed_models_run_or_are_refused() {
    mutated_models_are_told(0..2000);
}
