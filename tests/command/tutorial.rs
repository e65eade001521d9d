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

/// A command that the tutorial expects to fail, and what it says then.
const FAILING: [(&str, &[&str]); 2] = [
    ("--source wrong_norm.cu", &["WRONG", "y[0, 0, 0]", "is right"]),
    ("--source racing_norm.cu", &["data race", "lib/reduce.cuh", "racing_norm.cu:"]),
];

#[test]
fn every_command_does_what_the_text_says() {
    let text = include_str!("../../docs/kernel-tutorial.md");
    let folder = tempfile::tempdir().unwrap();
    let [kernel] = &blocks(text, "cuda")[..] else { panic!("one kernel") };
    fs::write(folder.path().join("warp_norm.cu"), format!("{kernel}\n")).unwrap();
    let mut failed = 0;
    for block in blocks(text, "console") {
        for line in block.lines() {
            let line = line.strip_prefix("$ ").expect("a command");
            let output = shell(line, folder.path());
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            match FAILING.iter().find(|(part, _)| line.contains(part)) {
                Some((_, words)) => {
                    assert_eq!(output.status.code(), Some(1), "{line}: {said}");
                    assert!(words.iter().all(|word| said.contains(word)), "{line}: {said}");
                    failed += 1;
                }
                None => assert!(output.status.success(), "{line}: {said}"),
            }
        }
    }
    assert_eq!(failed, FAILING.len());
}

/// Without the example that needs the hub.
#[test]
fn the_examples_of_the_readme_are_true() {
    let folder = tempfile::tempdir().unwrap();
    let mut examples = blocks(include_str!("../../README.md"), "console");
    examples.retain(|example| !example.contains("HuggingFaceTB/"));
    assert_eq!(examples.len(), 4);
    for example in examples {
        let (command, shown) = example.split_once('\n').unwrap();
        let output = shell(command.strip_prefix("$ ").unwrap(), folder.path());
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{shown}\n"), "{command}");
    }
}
