//! Options, files and texts that make no sense or mean no good: a line and a status, no panic, no signal, no
//! end that does not come, and nothing that a terminal obeys.

mod changed;

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::{TempDir, tempdir};

use crate::cli::failure;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo");

/// Commands with what makes them quick. `OUT` is a path that is not there, `TEXT` a file.
const COMMANDS: [&[&str]; 15] = [
    &["generate", "-n", "2", "--temp", "1", "--device", "cpu"],
    &["chat", "-p", "Hi", "-n", "2", "--device", "cpu"],
    &["logits", "--ids", "1,2", "--out", "OUT", "--device", "cpu"],
    &["perplexity", "-f", "TEXT", "-c", "16", "--device", "cpu"],
    &["bench", "-p", "2", "-n", "2", "-r", "1", "--device", "cpu"],
    &["tokenize"],
    &["detokenize"],
    &["synthesize", "-m", "synthetic:tiny", "--out", "OUT"],
    &["quantize", "-m", "synthetic:tiny", "--type", "q4_0", "--out", "OUT"],
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
const FILES: &str = "FILE FILE.cu NAME=FILE.cu FILE.gguf FILE.json FILE.svg X.safetensors DIR \
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

/// The demo's tokenizer and, in its tokenizer_config.json, this chat template.
fn folder_with_template(template: &str) -> TempDir {
    let folder = tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo");
    fs::copy(demo.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let config = serde_json::json!({ "bos_token": "<|begin_of_text|>", "chat_template": template });
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    fs::write(folder.path().join("m.json"), r#"[{"role": "user", "content": "Hi"}]"#).unwrap();
    folder
}

#[test]
fn hostile_tokenizers_and_templates_are_refused_at_once() {
    let nested = "[".repeat(100_000);
    for broken in ["", "{", "[]", "{\"model\": 3}", &nested] {
        let folder = folder_with_template("");
        fs::write(folder.path().join("tokenizer.json"), broken).unwrap();
        let line = failure(&["tokenize", "-m", folder.path().to_str().unwrap(), "a"], 1);
        assert!(line.contains("tokenizer.json"), "{line}");
    }
    for template in [
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 1000000000 }}",
        "{{ raise_exception('no such role') }}",
        "{% if %}",
    ] {
        let folder = folder_with_template(template);
        let file = folder.path().join("m.json");
        let start = Instant::now();
        let (model, file) = (folder.path().to_str().unwrap(), file.to_str().unwrap());
        let line =
            failure(&["tokenize", "-m", model, "--chat", file, "--chat-style", "template"], 1);
        assert!(line.contains("chat template"), "{template}: {line}");
        assert!(start.elapsed() < Duration::from_secs(2), "{template}: {:?}", start.elapsed());
    }
}
