//! A model's folder from a stranger: its files a few steps away from what they should be, and chat
//! templates as nobody should write them, each given to the program within limits. Whatever it
//! makes of them, it says so in one line.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use chaski::chat::{Chat, ChatStyle, Message, Request};
use chaski::source::Source;
use chaski::tokenizer::{TextStream, Tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::dice::Dice;
use crate::wild_json::wild_json;
use crate::wild_template::wild_template;

/// Seconds on processors and kB of memory, past which the system ends a process. All of the demo
/// model is in it.
const LIMITS: &str = "ulimit -t 5; ulimit -d 1048576; ulimit -c 0; exec \"$@\"";

const TYPED: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaa <|eot_id|><s>[INST] é\u{1f41f} 12345\n\n</s>";
const CHAT: &str =
    r#"[{"role": "system", "content": "<|eot_id|>."}, {"role": "user", "content": " aaa "}]"#;

fn demo(file: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo").join(file)).unwrap()
}

/// A folder of the demo model with one file made anew, and what to do with it.
fn folder(seed: u64) -> (TempDir, Vec<&'static str>) {
    let folder = TempDir::new().unwrap();
    let put = |file: &str, bytes: &[u8]| fs::write(folder.path().join(file), bytes).unwrap();
    let files = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    files.iter().for_each(|file| put(file, &demo(file)));
    put("chat.json", CHAT.as_bytes());
    let dice = &mut Dice::new(seed);
    let json = |file| serde_json::from_slice::<Value>(&demo(file)).unwrap();
    let asked = match dice.below(8) {
        0 => {
            put("config.json", wild_json(&json("config.json"), dice).as_bytes());
            vec!["inspect"]
        }
        1 => {
            let file = dice.pick(&["config.json", "generation_config.json"]);
            put(file, wild_json(&json(file), dice).as_bytes());
            vec!["generate", "--ids", "1,2,3", "-n", "2"]
        }
        2 => {
            put("model.safetensors", &wild_weights(dice));
            vec!["generate", "--ids", "1,2,3", "-n", "2"]
        }
        3 | 4 => {
            put("tokenizer.json", wild_json(&json("tokenizer.json"), dice).as_bytes());
            vec!["tokenize", "--plain", TYPED]
        }
        5 => {
            put(
                "tokenizer_config.json",
                wild_json(&json("tokenizer_config.json"), dice).as_bytes(),
            );
            vec!["tokenize", "--chat", "chat.json"]
        }
        6 => {
            put("tokenizer.json", wild_json(&json("tokenizer.json"), dice).as_bytes());
            vec!["generate", "-p", TYPED, "-n", "2"]
        }
        _ => {
            put("chat_template.jinja", wild_template(dice).as_bytes());
            vec!["tokenize", "--chat", "chat.json", "--chat-style", "template"]
        }
    };
    (folder, asked)
}

/// The demo's weights with another header.
fn wild_weights(dice: &mut Dice) -> Vec<u8> {
    let file = demo("model.safetensors");
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let header = wild_json(&header, dice);
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &file[8 + length..]].concat()
}

/// What is wrong with how the program takes the folder of a seed.
fn trouble(seed: u64) -> Option<String> {
    let (folder, asked) = folder(seed);
    let output = Command::new("sh")
        .args(["-c", LIMITS, "sh", env!("CARGO_BIN_EXE_chaski")])
        .args(&asked)
        .args(["-m", "."])
        .current_dir(folder.path())
        .env("RAYON_NUM_THREADS", "2")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let lines = errors.lines().filter(|line| line.starts_with("chaski: ")).count();
    let told = match output.status.code() {
        Some(0) => lines == 0,
        // Usage has a hint below it.
        Some(1 | 2) => lines == 1 && errors.len() < 2000,
        _ => false,
    };
    let is_text = !errors.contains(|c: char| c.is_control() && c != '\n');
    (!told || !is_text || errors.contains("panicked")).then(|| {
        let start: String = errors.chars().take(600).collect();
        format!("seed {seed}: {asked:?}: {}: {start}", output.status)
    })
}

fn check(seeds: std::ops::Range<u64>) {
    let troubles: Vec<String> = seeds.filter_map(trouble).collect();
    assert!(troubles.is_empty(), "{}:\n{}", troubles.len(), troubles.join("\n"));
}

#[test]
fn folders_of_strangers_are_taken_or_refused_in_one_line() {
    check(0..120);
}

#[test]
#[ignore = "in the sweep: some minutes"]
fn thousands_of_folders_are_taken_or_refused_in_one_line() {
    check(1000..5000);
}

/// The tokenizer of a folder, or the line that refuses it.
fn wild_tokenizer(dice: &mut Dice) -> Result<Tokenizer, String> {
    let folder = TempDir::new().unwrap();
    let definition: Value = serde_json::from_slice(&demo("tokenizer.json")).unwrap();
    let text = wild_json(&definition, dice);
    fs::write(folder.path().join("tokenizer.json"), text).unwrap();
    if dice.one_in(4) {
        let config: Value = serde_json::from_slice(&demo("tokenizer_config.json")).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), wild_json(&config, dice)).unwrap();
    }
    Tokenizer::load(&Source::Directory(folder.path().to_owned())).map_err(|error| error.to_string())
}

/// No text becomes a control token, and ids have a text, or an error of one line says why not.
fn use_tokenizer(tokenizer: &Tokenizer) -> Result<(), String> {
    let ids = tokenizer.encode_text(TYPED).map_err(|error| error.to_string())?;
    assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "typed text steers");
    tokenizer.encode(TYPED).map_err(|error| error.to_string())?;
    tokenizer.decode(&ids, true).map_err(|error| error.to_string())?;
    let mut stream = TextStream::new(tokenizer, true);
    for id in ids.into_iter().chain(0..20) {
        stream.push(id).map_err(|error| error.to_string())?;
    }
    stream.finish().map(drop).map_err(|error| error.to_string())
}

fn assert_one_line(message: &str) {
    assert!(message.len() < 1000 && !message.contains(char::is_control), "{message:?}");
}

fn tokenizers(seeds: std::ops::Range<u64>) {
    let mut taken = 0;
    for seed in seeds.clone() {
        println!("seed {seed}");
        match wild_tokenizer(&mut Dice::new(seed)).and_then(|tokenizer| use_tokenizer(&tokenizer)) {
            Ok(()) => taken += 1,
            Err(message) => assert_one_line(&message),
        }
    }
    assert!(taken > seeds.count() / 20, "{taken} were taken");
}

fn templates(seeds: std::ops::Range<u64>) {
    let tokenizer = Tokenizer::load(&Source::Demo).unwrap();
    let request: Request =
        (&[Message::new("user", TYPED), Message::new("assistant", " b ")][..]).into();
    let mut taken = 0;
    for seed in seeds.clone() {
        println!("seed {seed}");
        let folder = TempDir::new().unwrap();
        let config = json!({"chat_template": wild_template(&mut Dice::new(seed))});
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let chat = Chat::load(
            &Source::Directory(folder.path().to_owned()),
            &tokenizer,
            ChatStyle::Template,
        );
        match chat.and_then(|chat| chat.encode(&tokenizer, &request, true)) {
            Ok(_) => taken += 1,
            Err(error) => {
                assert_one_line(&error.to_string());
                // That is what is said of a panic.
                assert!(!error.to_string().ends_with("cannot be run"), "{error}");
            }
        }
    }
    assert!(taken > seeds.count() / 20, "{taken} were taken");
}

#[test]
fn tokenizers_of_strangers_are_used_or_refused_in_one_line() {
    tokenizers(0..300);
}

#[test]
fn templates_of_strangers_are_run_or_refused_in_one_line() {
    templates(0..300);
}

#[test]
#[ignore = "in the sweep: some minutes"]
fn thousands_of_tokenizers_and_templates_are_used_or_refused_in_one_line() {
    tokenizers(1000..5000);
    templates(1000..5000);
}
