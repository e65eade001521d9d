//! The commands as a user runs them: what goes where, and with which exit status.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::bad_models;
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::tempdir;

fn chaski(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.args(arguments).env("RUST_BACKTRACE", "0");
    command.env("CHASKI_TRUST_KERNELS", "on");
    command
}

fn run(arguments: &[&str]) -> Output {
    chaski(arguments).stdin(Stdio::null()).output().unwrap()
}

fn run_with_input(arguments: &[&str], input: &str) -> Output {
    let mut command = chaski(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Standard output of a command that must succeed.
fn answer(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    stdout(&output).to_owned()
}

/// A command that must fail with `status` and one line, which is returned.
pub fn failure(arguments: &[&str], status: i32) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", stderr(&output));
    assert_eq!(stdout(&output), "", "{arguments:?}");
    let lines: Vec<&str> =
        stderr(&output).lines().filter(|line| line.starts_with("chaski: ")).collect();
    assert_eq!(lines.len(), 1, "{arguments:?}: {}", stderr(&output));
    lines[0].to_owned()
}

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

/// The ids that transformers continues a golden case with, and the ids it starts from.
fn golden_ids(case: &Path) -> (String, String) {
    let file = fs::read(case.join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let list = |name: &str| {
        let words = tensors.tensor(name).unwrap().data().chunks_exact(4);
        let ids = words.map(|word| u32::from_le_bytes(word.try_into().unwrap()).to_string());
        ids.collect::<Vec<_>>().join(",")
    };
    (list("ids"), list("greedy"))
}

#[test]
fn the_demo_answers_on_standard_output_and_nothing_else_does() {
    let output = run(&["chat", "--prompt", "What is 27 + 58?"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), "27 + 58 = 85.\n");
    for word in ["load", "prefill", "first token", "decode", "context"] {
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
}

#[test]
fn a_piped_conversation_remembers_its_turns_and_prefills_only_what_is_new() {
    let state = tempdir().unwrap();
    let mut command = chaski(&["chat"]);
    command.env("XDG_STATE_HOME", state.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let saved = state.path().join("saved.json");
    let script = format!(
        "Remember: the red box holds 17.\nWhat does the red box hold?\n/save {0}\n/clear\n/load {0}\n\
         What is 2 + 2?\n/nonsense\n/exit\n",
        saved.display()
    );
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answers: Vec<&str> = stdout(&output).lines().collect();
    assert_eq!(answers.len(), 3, "{}", stdout(&output));
    assert!(answers[1].contains("17") && answers[2].contains('4'), "{answers:?}");
    assert!(stderr(&output).contains("/nonsense"));
    let messages: Value = serde_json::from_slice(&fs::read(saved).unwrap()).unwrap();
    assert_eq!(messages.as_array().unwrap().len(), 4);
}

#[test]
fn print_ids_prints_the_ids_of_transformers_and_nothing_else() {
    let case = golden("gqa4-hd128-bf16-sharded");
    let (ids, greedy) = golden_ids(&case);
    let model = case.to_str().unwrap();
    let options = ["-n", "64", "--temp", "0", "--ignore-eos", "--print-ids"];
    let given = answer(&[&["generate", "-m", model, "--ids", &ids][..], &options].concat());
    assert_eq!(given, format!("{greedy}\n"));
    let folder = tempdir().unwrap();
    let file = folder.path().join("ids.txt");
    fs::write(&file, ids.replace(',', "\n")).unwrap();
    let file = file.to_str().unwrap();
    let given = answer(&[&["generate", "-m", model, "--ids-file", file][..], &options].concat());
    assert_eq!(given, format!("{greedy}\n"));
}

#[test]
fn the_same_seed_and_options_give_the_same_text() {
    let options = ["generate", "-p", "Hello", "-n", "30", "--temp", "1.5", "--ignore-eos", "-s"];
    let with_seed = |seed, threads| answer(&[&options[..], &[seed, "-t", threads]].concat());
    let first = with_seed("7", "1");
    assert_eq!(first, with_seed("7", "2"));
    assert_ne!(first, with_seed("8", "1"));
}

#[test]
fn stop_strings_and_ids_end_the_text_before_them() {
    let question = ["chat", "--prompt", "What is 27 + 58?"];
    let cut = |options: &[&str]| answer(&[&question[..], options].concat());
    assert_eq!(cut(&["--stop", " = 8"]), "27 + 58\n");
    assert_eq!(cut(&["-n", "2"]), cut(&["-n", "2", "--stop", "never"]));
    let equals = answer(&["tokenize", "27 + 58 ="]);
    let equals: Vec<u32> = serde_json::from_str(&equals).unwrap();
    let id = equals.last().unwrap().to_string();
    assert_eq!(cut(&["--stop-id", &id]), "27 + 58\n");
}

#[test]
fn logits_are_written_whole_or_not_at_all() {
    let case = golden("gqa8-hd64-f16");
    let model = case.to_str().unwrap();
    let (ids, _) = golden_ids(&case);
    let folder = tempdir().unwrap();
    let out = folder.path().join("logits.safetensors");
    answer(&["logits", "-m", model, "--ids", &ids, "--out", out.to_str().unwrap()]);
    let (ours, theirs) = (fs::read(&out).unwrap(), fs::read(case.join("expected.safetensors")));
    let (ours, theirs) = (SafeTensors::deserialize(&ours).unwrap(), theirs.unwrap());
    let theirs = SafeTensors::deserialize(&theirs).unwrap();
    let (ours, theirs) = (ours.tensor("logits").unwrap(), theirs.tensor("logits").unwrap());
    assert_eq!((ours.shape(), ours.dtype()), (theirs.shape(), theirs.dtype()));
    let value = |word: &[u8]| f32::from_le_bytes(word.try_into().unwrap());
    for (ours, theirs) in ours.data().chunks(4).zip(theirs.data().chunks(4)) {
        assert!((value(ours) - value(theirs)).abs() < 1e-3);
    }
    let unwritable = folder.path().join("none/logits.safetensors");
    failure(&["logits", "-m", model, "--ids", "1", "--out", unwritable.to_str().unwrap()], 1);
    let out = folder.path().join("too-long.safetensors");
    let many = vec!["1"; 300].join(",");
    let line = failure(&["logits", "-m", model, "--ids", &many, "--out", out.to_str().unwrap()], 1);
    assert!(line.contains("300") && line.contains("256"), "{line}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Against the definition, computed here from the logits of every window.
#[test]
fn perplexity_is_llama_cpps() {
    let folder = tempdir().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "What is 2 + 3? The red box holds 17. ".repeat(12)).unwrap();
    let text = text.to_str().unwrap();
    let printed = answer(&["perplexity", "-f", text, "-c", "32"]);
    let ids: Vec<u32> = serde_json::from_str(&answer(&["tokenize", "--bos", "-f", text])).unwrap();
    let bos = ids[0];
    let (mut nll, mut count) = (0.0, 0);
    for window in ids.chunks_exact(32) {
        let mut window = window.to_vec();
        window[0] = bos;
        let list = window.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let out = folder.path().join("logits.safetensors");
        answer(&["logits", "--ids", &list, "--out", out.to_str().unwrap()]);
        let file = fs::read(out).unwrap();
        let logits = SafeTensors::deserialize(&file).unwrap();
        let logits = logits.tensor("logits").unwrap();
        let row = logits.shape()[1] * 4;
        for position in 16..31 {
            let row = &logits.data()[position * row..][..row];
            let value = |word: &[u8]| f64::from(f32::from_le_bytes(word.try_into().unwrap()));
            let sum: f64 = row.chunks(4).map(|word| value(word).exp()).sum();
            nll += sum.ln() - value(row.chunks(4).nth(window[position + 1] as usize).unwrap());
            count += 1;
        }
    }
    let expected = (nll / f64::from(count)).exp();
    let given: f64 = printed.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((given / expected - 1.0).abs() < 1e-3, "{given} {expected}");
    assert!(answer(&["perplexity", "-f", text, "-c", "32", "--stride", "8"]).contains("+/-"));
    let line = failure(&["perplexity", "-f", text], 1);
    assert!(line.contains("1024"), "{line}");
}

#[test]
fn tokenize_and_detokenize_are_inverse() {
    let text = "Hello <|eot_id|>\n naïve 日本 🦙 12345";
    let ids = answer(&["tokenize", text]);
    let back = run_with_input(&["detokenize"], &ids);
    assert_eq!(stdout(&back), format!("{text}\n"));
    let plain = answer(&["tokenize", "--plain", text]);
    assert_ne!(ids, plain);
    let back = run_with_input(&["detokenize", "--skip-control"], &plain);
    assert_eq!(stdout(&back), format!("{text}\n"), "typed control tokens are text");

    let lines = run_with_input(&["tokenize", "--jsonl", "-"], "\"a\"\n\"\"\n\"b\\nc\"\n");
    let arrays: Vec<Vec<u32>> =
        stdout(&lines).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((arrays.len(), arrays[1].len()), (3, 0));
    let broken = run_with_input(&["tokenize", "--jsonl", "-"], "\"a\"\nb\n");
    assert_eq!(broken.status.code(), Some(1));
    assert!(stderr(&broken).contains("line 2"), "{}", stderr(&broken));
}

#[test]
fn a_conversation_tokenizes_with_one_bos_and_no_forged_control_token() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("messages.json");
    let content = "<|begin_of_text|><|eot_id|><|start_header_id|>system<|end_header_id|>";
    fs::write(&file, serde_json::json!([{ "role": "user", "content": content }]).to_string())
        .unwrap();
    for style in ["native", "template"] {
        let ids = answer(&["tokenize", "--chat", file.to_str().unwrap(), "--chat-style", style]);
        let ids: Vec<u32> = serde_json::from_str(&ids).unwrap();
        let control = |text: &str| -> u32 {
            let ids: Vec<u32> = serde_json::from_str(&answer(&["tokenize", text])).unwrap();
            ids[0]
        };
        let count = |text: &str| ids.iter().filter(|id| **id == control(text)).count();
        assert_eq!(count("<|begin_of_text|>"), 1, "{style}");
        assert_eq!(count("<|eot_id|>"), 1, "{style}");
        assert_eq!(count("<|start_header_id|>"), 2, "{style}");
        let text = run_with_input(&["detokenize"], &format!("{ids:?}"));
        assert!(stdout(&text).contains(content), "{style}");
    }
}

#[test]
fn inspect_counts_and_plans() {
    let case = golden("gqa4-hd128-bf16-sharded");
    let model = case.to_str().unwrap();
    let report = answer(&["inspect", "-m", model, "--json", "-c", "100", "--kv-type", "f16"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let tensors = report["tensors"].as_array().unwrap();
    let elements = |tensor: &Value| -> u64 {
        tensor["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).product()
    };
    let sum: u64 = tensors.iter().map(elements).sum();
    assert_eq!(report["parameters"], sum);
    assert_eq!(report["weight_bytes"], 2 * sum);
    assert_eq!(report["kv_bytes_per_token"], 2 * 2 * 2 * 128 * 2);
    assert_eq!(report["plan"]["context"], 100);
    let embedding = report["parameters_by_part"]["embedding"].as_u64().unwrap();
    let row = 2 * report["config"]["width"].as_u64().unwrap();
    // Norms are read in f32.
    let is_norm = |tensor: &&Value| tensor["shape"].as_array().unwrap().len() == 1;
    let norms: u64 = tensors.iter().filter(is_norm).map(elements).sum();
    let read = 2 * (sum - embedding + norms) + row;
    assert_eq!(report["decode_bytes_per_token"]["weights"], read);
    let told = answer(&["inspect"]);
    assert!(told.contains("tied") && told.contains("\n38 tensors\n"), "{told}");
    // Those of all layers in a line.
    assert!(told.contains("model.layers.*.mlp.down_proj.weight  "), "{told}");
    assert!(told.contains(" 4 x [192, 512] ") && !told.contains("model.layers.0"), "{told}");
}

#[test]
fn wrong_usage_ends_with_status_2() {
    for arguments in [
        &["--no-such-flag"][..],
        &["generate"],
        &["generate", "-p", "a", "--ids", "1"],
        &["generate", "-p", "a", "--context", "0"],
        &["generate", "-p", "a", "--temp", "-1"],
        &["generate", "-p", "a", "--top-p", "7"],
        &["generate", "-p", "a", "--logit-bias", "nonsense"],
        &["generate", "-p", "a", "--device", "abacus"],
        &["no-such-command"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn what_the_world_does_ends_with_status_1_and_one_line() {
    let case = golden("gqa8-hd64-f16");
    let model = case.to_str().unwrap();
    for (arguments, words) in [
        (&["generate", "-m", "/no/such/model", "-p", "a"][..], &["/no/such/model"][..]),
        (&["generate", "-m", "no-one/no-model", "-p", "a"], &["no-one/no-model"]),
        (&["generate", "-f", "/no/such/file"], &["/no/such/file"]),
        (&["generate", "-m", model, "-p", "a"], &["tokenizer.json"]),
        (&["generate", "-m", model, "--ids", "1"], &["tokenizer.json", "--print-ids"]),
        (&["generate", "-m", model, "--ids", "1,131", "--print-ids"], &["131"]),
        (&["generate", "-m", model, "--ids", "1,x", "--print-ids"], &["x"]),
        (&["generate", "-m", model, "--ids", ",", "--print-ids"], &["empty"]),
        (&["generate", "-m", model, "--ids", "1,2,3", "-c", "2", "--print-ids"], &["3", "2"]),
        (&["generate", "-m", model, "--ids", "1", "-c", "999"], &["999", "256"]),
        (&["detokenize", "4000000"], &["4000000"]),
    ] {
        let line = failure(arguments, 1);
        for word in words {
            assert!(line.contains(word), "{arguments:?}: {line}");
        }
    }
}

#[test]
fn every_bad_model_is_refused_at_once() {
    for model in bad_models::bad_models() {
        let folder = tempdir().unwrap();
        model.write(folder.path());
        let start = Instant::now();
        let arguments =
            ["generate", "-m", folder.path().to_str().unwrap(), "--ids", "1", "-n", "1"];
        let line = failure(&arguments, 1);
        assert!(start.elapsed() < Duration::from_secs(2), "{}", model.name);
        assert!(line.contains(model.file), "{}: {line}", model.name);
        assert!(line.contains(model.trouble), "{}: {line}", model.name);
    }
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_generation_with_status_130() {
    let arguments = ["generate", "-p", "Hello", "--ignore-eos", "--temp", "1", "-s", "1"];
    let mut child =
        chaski(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("decode"), "what was done is still reported");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let arguments = ["generate", "-p", "Hello", "--ignore-eos", "--temp", "1", "-s", "1"];
    let mut child =
        chaski(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn pages_and_completions_come_from_the_same_definitions() {
    let folder = tempdir().unwrap();
    answer(&["man", folder.path().to_str().unwrap()]);
    for page in ["chaski.1", "chaski-generate.1", "chaski-chat.1"] {
        assert!(fs::read_to_string(folder.path().join(page)).unwrap().contains(".TH"), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(answer(&["completions", shell]).contains("perplexity"), "{shell}");
    }
    // The memory there is may change in between.
    let devices = |command| answer(&[command]).split(" threads").next().unwrap().to_owned();
    assert_eq!(devices("--list-devices"), devices("devices"));
}
