//! What a user gets of an answer: where it ends, control tokens in it, JSON lines, how it is sampled;
//! and what a conversation in a file may hold.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::process::chaski;

const PROMPT: &str = "<|start_header_id|>user<|end_header_id|>\n\nWhat is 27 + 58?<|eot_id|>\
    <|start_header_id|>assistant<|end_header_id|>\n\n";

/// The demo, of whose JSON files `changes` replace keys, or the whole where they say so by `file!`.
fn demo(changes: Value) -> TempDir {
    let folder = tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo");
    for entry in fs::read_dir(demo).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = folder.path().join(&name);
        fs::copy(entry.path(), &path).unwrap();
        let Some(changed) = changes.get(&name) else { continue };
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (key, value) in changed.as_object().unwrap() {
            json[key] = value.clone();
        }
        fs::write(&path, json.to_string()).unwrap();
    }
    folder
}

/// The demo, of which no file says what ends an answer.
fn endless() -> TempDir {
    let no_eos = json!({"eos_token_id": null});
    demo(json!({"config.json": no_eos, "generation_config.json": no_eos}))
}

/// Status 0: standard output and standard error.
fn run(command: &str, folder: &TempDir, options: &[&str]) -> (String, String) {
    let model = folder.path().to_str().unwrap();
    let (status, output, errors) = chaski(&[&[command, "-m", model][..], options].concat(), &[]);
    assert_eq!(status, Some(0), "{options:?}: {errors}");
    (output, errors)
}

/// The one line of a command that ends with this status.
fn failure(command: &str, folder: &TempDir, options: &[&str], expected: i32) -> String {
    let model = folder.path().to_str().unwrap();
    let (status, output, errors) = chaski(&[&[command, "-m", model][..], options].concat(), &[]);
    assert_eq!((status, output.as_str()), (Some(expected), ""), "{options:?}: {errors}");
    errors.lines().find(|line| line.starts_with("chaski: ")).expect("a line").to_owned()
}

fn file(folder: &TempDir, name: &str, content: &Value) -> String {
    let path: PathBuf = folder.path().join(name);
    fs::write(&path, content.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_vocabulary_says_what_ends_an_answer_where_the_config_does_not() {
    let folder = endless();
    let generate = |options: &[&str]| {
        run("generate", &folder, &[&["-p", PROMPT, "-n", "24"][..], options].concat())
    };
    let (text, told) = generate(&[]);
    assert_eq!(text, "27 + 58 = 85.\n");
    assert!(
        told.contains("<|end_of_text|> <|eot_id|> too, which config.json does not name"),
        "{told}"
    );
    let (on, told) = generate(&["--ignore-eos"]);
    assert!(on.len() > text.len() && on.starts_with("27 + 58 = 85."), "{on}");
    assert!(!told.contains("does not name"), "{told}");
    // A config that names them is not told of.
    let (_, told) = run("generate", &demo(json!({})), &["-p", PROMPT]);
    assert!(!told.contains("does not name"), "{told}");
}

#[test]
fn control_tokens_stop_by_name_and_can_be_shown() {
    let folder = endless();
    let generate = |options: &[&str]| {
        let always = ["-p", PROMPT, "-n", "24", "--ignore-eos"];
        run("generate", &folder, &[&always[..], options].concat()).0
    };
    assert_eq!(generate(&["--stop", "<|eot_id|>"]), "27 + 58 = 85.\n");
    let shown = ["--stop", "<|eot_id|>", "--show-special"];
    assert_eq!(generate(&shown), "27 + 58 = 85.<|eot_id|>\n");
    assert!(generate(&["--show-special"]).starts_with("27 + 58 = 85.<|eot_id|>"));
    let mixed = ["-p", PROMPT, "--stop", "85.<|eot_id|>"];
    let error = failure("generate", &folder, &mixed, 2);
    assert!(error.contains("a control token beside other text"), "{error}");
    let question = ["--prompt", "What is 27 + 58?", "--show-special"];
    assert_eq!(run("chat", &folder, &question).0, "27 + 58 = 85.<|eot_id|>\n");
}

/// Against the logits that `chaski logits` writes.
#[test]
fn json_lines_hold_ids_texts_probabilities_and_times() {
    let folder = demo(json!({}));
    let (lines, _) = run("generate", &folder, &["-p", PROMPT, "--json", "--logprobs", "3"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, tokens) = lines.split_last().unwrap();
    let (ids, _) = run("generate", &folder, &["-p", PROMPT, "--print-ids"]);
    let ours: Vec<_> = tokens.iter().map(|token| token["id"].to_string()).collect();
    assert_eq!(ours.join(","), ids.trim());
    let texts: String = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(texts, "27 + 58 = 85.<|eot_id|>");
    assert_eq!(last["text"], "27 + 58 = 85.");
    assert_eq!(last["finish"], "stop_id");
    assert_eq!(last["tokens"], tokens.len());
    assert!(last["timings"]["decode"].as_f64().unwrap() > 0.0);

    let (prompt, _) = run("tokenize", &folder, &["--bos", PROMPT]);
    let all = format!("{},{}", prompt.trim().trim_matches(['[', ']']), ids.trim());
    let out = folder.path().join("logits.safetensors");
    run("logits", &folder, &["--ids", &all, "--out", out.to_str().unwrap()]);
    let file = fs::read(out).unwrap();
    let logits = SafeTensors::deserialize(&file).unwrap();
    let logits = logits.tensor("logits").unwrap();
    let vocab = logits.shape()[1];
    let first = logits.shape()[0] - tokens.len() - 1;
    for (number, token) in tokens.iter().enumerate() {
        let row = &logits.data()[(first + number) * vocab * 4..][..vocab * 4];
        let row = row.chunks(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()));
        let row: Vec<f64> = row.map(f64::from).collect();
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        assert_eq!(token["id"], order[0]);
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        for (told, id) in top.iter().chain([token]).zip([order[0], order[1], order[2], order[0]]) {
            assert_eq!(told["id"], id);
            let logprob = told["logprob"].as_f64().unwrap();
            assert!((logprob - (row[id] - sum.ln())).abs() < 1e-5, "{told}");
        }
    }
    // What is drawn does not depend on who chooses.
    let drawn = ["-p", "The", "-n", "12", "--temp", "1.3", "-s", "5", "--repeat-penalty", "1.2"];
    let ids = run("generate", &folder, &[&drawn[..], &["--print-ids"]].concat()).0;
    let lines = run("generate", &folder, &[&drawn[..], &["--json", "--logprobs", "0"]].concat()).0;
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].clone();
    let chosen: Vec<_> = lines.lines().map(id).filter(|id| !id.is_null()).collect();
    assert_eq!(chosen.iter().map(Value::to_string).collect::<Vec<_>>().join(","), ids.trim());
    let (status, ..) = chaski(&["generate", "-p", "The", "--logprobs", "1"], &[]);
    assert_eq!(status, Some(2), "probabilities are for --json");
}

/// A conversation from a pipe: standard output and standard error.
fn talk(folder: &TempDir, options: &[&str], input: &str) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.args(["chat", "-m", folder.path().to_str().unwrap()]).args(options);
    command.env("XDG_STATE_HOME", folder.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

#[test]
fn a_conversation_with_a_model_without_defaults_is_drawn_and_told_so() {
    let folder = demo(json!({"generation_config.json": {"do_sample": null}}));
    let told =
        "the model does not say how to sample: --temp 0.8 --top-k 40 --top-p 0.95 --min-p 0.05";
    let (_, errors) = talk(&folder, &[], "What is 1 + 1?\n");
    assert!(errors.contains(told), "{errors}");
    let (_, errors) = talk(&folder, &["--temp", "0"], "What is 1 + 1?\n");
    assert!(!errors.contains("does not say"), "{errors}");
    let (_, errors) = talk(&demo(json!({})), &[], "What is 1 + 1?\n");
    assert!(!errors.contains("does not say"), "{errors}");
    // What is not a conversation stays greedy.
    let (_, errors) = run("generate", &folder, &["-p", "The", "-n", "4"]);
    assert!(!errors.contains("seed") && !errors.contains("does not say"), "{errors}");
}

#[test]
fn the_last_question_can_be_answered_anew() {
    let folder = demo(json!({}));
    let saved = folder.path().join("saved.json");
    let input = format!(
        "/regen\nWhat is 27 + 58?\n/regen\n/regen\n/save {}\n/exit\n",
        saved.to_str().unwrap()
    );
    let (answers, errors) = talk(&folder, &["--temp", "5", "-s", "1", "-n", "8"], &input);
    assert!(errors.contains("there is no question yet"), "{errors}");
    assert!(answers.lines().count() >= 3, "{answers}");
    let saved: Value = serde_json::from_slice(&fs::read(saved).unwrap()).unwrap();
    let [question, answer] = &saved.as_array().unwrap()[..] else { panic!("{saved}") };
    assert_eq!(question["content"], "What is 27 + 58?");
    assert!(
        answers.trim_end().ends_with(answer["content"].as_str().unwrap()),
        "{answers}: {answer}"
    );
    let (answers, errors) = talk(&folder, &[], "What is 27 + 58?\n/regen\n");
    assert_eq!(answers, "27 + 58 = 85.\n27 + 58 = 85.\n");
    assert!(errors.contains("always the same"), "{errors}");
}

#[test]
fn the_makers_sampling_is_used_or_told_of() {
    let with = |generation: Value| demo(json!({"generation_config.json": generation}));
    let ids = |folder: &TempDir, options: &[&str]| {
        let always = ["-p", "The red box", "-n", "24", "-s", "3", "--print-ids", "--ignore-eos"];
        run("generate", folder, &[&always[..], options].concat())
    };
    let plain = demo(json!({}));
    let greedy = ids(&plain, &[]).0;
    let penalised = ids(&plain, &["--repeat-penalty", "1.7"]).0;
    assert_ne!(greedy, penalised);
    assert_eq!(ids(&with(json!({"repetition_penalty": 1.7})), &[]).0, penalised);
    let given = ids(&with(json!({"repetition_penalty": 1.7})), &["--repeat-penalty", "1"]).0;
    assert_eq!(given, greedy);
    let presence = ids(&plain, &["--presence-penalty", "2"]).0;
    assert_eq!(ids(&with(json!({"presence_penalty": 2.0})), &[]).0, presence);
    let hot = json!({"do_sample": true, "temperature": 3.0});
    let drawn = ids(&with(hot.clone()), &[]).0;
    assert_ne!(drawn, greedy);
    for (key, value) in [("min_p", json!(1.0)), ("top_k", json!(1)), ("top_p", json!(0.0))] {
        let mut narrow = hot.clone();
        narrow[key] = value;
        assert_eq!(ids(&with(narrow), &[]).0, greedy, "{key}");
    }
    let mut wide = hot;
    (wide["top_k"], wide["typical_p"], wide["num_beams"]) = (json!(0), json!(0.9), json!(1));
    let (same, told) = ids(&with(wide), &[]);
    assert_eq!(same, drawn);
    assert!(told.contains("generation_config.json: not supported, so without effect: typical_p\n"));
    for (key, value) in [
        ("temperature", json!(-1.0)),
        ("top_k", json!(-1)),
        ("top_p", json!(1.5)),
        ("min_p", json!("x")),
        ("repetition_penalty", json!(0.0)),
        ("frequency_penalty", json!(3)),
    ] {
        let folder = with(json!({"do_sample": true, key: value}));
        let error = failure("generate", &folder, &["-p", "The"], 1);
        assert!(error.contains(&format!("/generation_config.json: {key} is ")), "{error}");
    }
}

#[test]
fn a_file_may_hold_what_templates_know() {
    let template = "{{ bos_token }}{% if tools %}tools: {{ tools | tojson }}\n{% endif %}\
        {% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls | default([]) | tojson }}\n\
        {% endfor %}";
    let folder = demo(json!({"tokenizer_config.json": {"chat_template": template}}));
    let calls = json!([{"type": "function", "function": {"name": "level", "arguments": {}}}]);
    let request = json!({
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": calls},
        ],
        "tools": [{"name": "level"}],
    });
    let path = file(&folder, "chat.json", &request);
    let (ids, _) = run("tokenize", &folder, &["--chat", &path]);
    let (text, _) = run("detokenize", &folder, &["--skip-control", ids.trim()]);
    let expected = "tools: [{\"name\": \"level\"}]\nuser: a\nb[]\nassistant: \
        [{\"type\": \"function\", \"function\": {\"name\": \"level\", \"arguments\": {}}}]";
    assert_eq!(text.trim_end(), expected);
    let path = file(&folder, "bad.json", &json!([{"role": "user", "content": 5}]));
    let error = failure("tokenize", &folder, &["--chat", &path], 1);
    assert!(
        error.ends_with("bad.json: message 1: content is 5: a text or a list of parts is needed")
    );
}
