//! `scripts/peers_cpu.py` from end to end, with a small model: it must work, not win.

use std::path::Path;
use std::process::Command;

use tempfile::tempdir;

const CHASKI: &str = env!("CARGO_BIN_EXE_chaski");

/// A run of the script; what it printed.
fn peers(arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/peers_cpu.py");
    let mut python = Command::new("python3");
    let output = python.arg(script).args(["--chaski", CHASKI]).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
#[ignore = "builds llama.cpp, which takes some ten minutes once, from the Python registry"]
fn llama_cpp_and_chaski_are_measured_in_turns_and_the_table_is_written() {
    let folder = tempdir().unwrap();
    let page = folder.path().join("page.md");
    let marks = ["<!-- peers: cpu -->", "<!-- peers: end of cpu -->"];
    std::fs::write(&page, format!("before\n\n{}\nold\n{}\n\nafter\n", marks[0], marks[1])).unwrap();
    let printed = peers(&["--quick", "--write", "--page", page.to_str().unwrap()]);
    let written = std::fs::read_to_string(&page).unwrap();
    for kind in ["Q8_0", "Q4_0"] {
        let row = format!("| tiny, {kind} by Chaski | pp8 |");
        assert!(printed.contains(&row), "{printed}");
    }
    for test in ["pp8", "tg2", "tg2 at 16, f16 cache", "pp8, bf16 activations"] {
        let row = format!("| tiny, bf16 | {test} |");
        let [shown, kept] = [&printed, &written].map(|text| {
            text.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("{text}"))
        });
        assert_eq!(shown, kept);
        let cells: Vec<&str> = kept.split('|').map(str::trim).collect();
        assert!(
            cells[3].ends_with("t/s")
                && cells[4].ends_with("t/s")
                && cells[6].ends_with('%')
                && cells[7] == "1",
            "{kept}"
        );
    }
    assert!(written.starts_with("before\n") && written.ends_with("\nafter\n"), "{written}");
    assert!(!written.contains("old") && marks.iter().all(|mark| written.contains(mark)));
}
