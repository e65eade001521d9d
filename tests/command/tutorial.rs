//! `docs/kernel-tutorial.md`, as its reader follows it, and what README.md shows.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The parts of the text between the lines "```KIND" and "```".
fn blocks(text: &str, kind: &str) -> Vec<String> {
    let begin = format!("```{kind}\n");
    let blocks = text.split(&begin).skip(1).map(|rest| rest.split("\n```").next().unwrap());
    blocks.map(str::to_owned).collect()
}

/// What a line of a shell does in the folder, where the program is on the path.
fn shell(line: &str, folder: &Path) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_chaski")).parent().unwrap().display();
    let path = format!("{program}:{}", std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(folder).env("PATH", &path);
    shell.env("CHASKI_TRUST_KERNELS", "on").output().unwrap()
}

/// What tells a command that ends with status 1.
const FAILING: [&str; 4] = [
    "--source wrong_norm.cu",
    "--source racing_norm.cu",
    "run racing.cu --grid 3,3",
    "--sanitize thread --reference c.safetensors",
];

/// Without what depends on the machine: seconds, and measured numbers in tables and comparisons.
fn without_times(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_number = |word: &str| {
            let digits = word.chars().any(|c| c.is_ascii_digit());
            digits && word.contains('.') && word.chars().all(|c| "0123456789.-+ex%()".contains(c))
        };
        let mut shown = Vec::new();
        for (i, word) in words.iter().enumerate() {
            let is_seconds = words.get(i + 1) == Some(&"s") && word.parse::<f64>().is_ok();
            let is_measured = (line.starts_with('|') || line.contains("e-")) && is_number(word);
            // How wide a column is follows from its numbers.
            let is_rule = word.len() > 2 && word.trim_matches(['-', ':']).is_empty();
            shown.push(match (is_seconds || is_measured, is_rule) {
                (true, _) => "#",
                (_, true) => "---",
                _ => word,
            });
        }
        shown.join(" ")
    };
    text.lines().map(line).collect()
}

#[test]
fn every_command_shows_what_the_text_says() {
    let text = include_str!("../../docs/kernel-tutorial.md");
    let folder = tempfile::tempdir().unwrap();
    let [norm, product] = &blocks(text, "cuda")[..] else { panic!("two kernels") };
    fs::write(folder.path().join("warp_norm.cu"), format!("{norm}\n")).unwrap();
    fs::write(folder.path().join("product.cu"), format!("{product}\n")).unwrap();
    let mut failed = 0;
    let (mut last, mut answers) = (String::new(), 0);
    for block in blocks(text, "console") {
        for example in format!("\n{block}").split("\n$ ").skip(1) {
            let (line, shown) = example.split_once('\n').unwrap_or((example, ""));
            let output = shell(line, folder.path());
            let [said, errors] = [output.stdout, output.stderr]
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            assert_eq!(without_times(&said), without_times(shown), "{line}: {said}{errors}");
            let fails = FAILING.iter().any(|part| line.contains(part));
            assert_eq!(output.status.code(), Some(i32::from(fails)), "{line}: {errors}");
            failed += usize::from(fails);
            answers += 1;
            last = said;
        }
    }
    assert_eq!((failed, answers), (FAILING.len(), 13));
    assert_eq!(last, "27 + 58 = 85.\n", "it ends with a chat that answers");
}

#[test]
fn times_are_no_difference_and_words_are() {
    let row = "rms_norm  36 cases   1.2 s  right";
    assert_eq!(without_times(row), without_times("rms_norm 36 cases 0.3 s right"));
    assert_ne!(without_times(row), without_times("rms_norm 35 cases 1.2 s right"));
    assert_ne!(without_times(row), without_times("rms_norm 36 cases 1.2 s WRONG"));
    assert_eq!(without_times("| a | 1.5 | 2x (1.1-3.0) |"), ["| a | # | 2x # |"]);
}

/// Without the example that needs the hub.
#[test]
fn the_examples_of_the_readme_are_true() {
    let folder = tempfile::tempdir().unwrap();
    let mut examples = blocks(include_str!("../../README.md"), "console");
    examples.retain(|example| !example.contains("HuggingFaceTB/"));
    assert_eq!(examples.len(), 3);
    for example in examples {
        let (command, shown) = example.split_once('\n').unwrap();
        let output = shell(command.strip_prefix("$ ").unwrap(), folder.path());
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{shown}\n"), "{command}");
    }
}
