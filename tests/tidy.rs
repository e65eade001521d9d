//! The layout that ARCHITECTURE.md describes, kept by a test: who may use whom, where `unsafe` lives,
//! and sizes that keep a file livable.

use std::fs;
use std::path::{Path, PathBuf};

/// A module uses only those above it.
const ORDER: &[&str] = &[
    "error",
    "json",
    "random",
    "source",
    "config",
    "checkpoint",
    "hub",
    "tokenizer",
    "chat",
    "comm",
    "sampler",
    "memory",
    "vector",
    "kernel",
    "op",
    "case",
    "ops",
    "model",
    "device",
    "conformance",
    "rank",
    "qualify",
    "team",
    "session",
    "bench",
    "lab",
    "cli",
];

/// Where `unsafe` may stand: what maps a file, the calls to NVRTC, the CUDA executor.
const UNSAFE: [&str; 3] = ["src/source/mapped.rs", "src/kernel/nvrtc.rs", "src/device/cuda"];

const FILE_LINES: usize = 450;
const FUNCTION_LINES: usize = 80;
const COLUMNS: usize = 110;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files under `folder`, by path from the root, and their texts.
fn rust_files(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!files.is_empty(), "no files in {folder}");
    files
}

fn all_files() -> Vec<(String, String)> {
    ["src", "tests", "benches"].into_iter().flat_map(rust_files).collect()
}

/// The module of `src` that a file belongs to: `src/ops/embed.rs` is of `ops`.
fn module(file: &str) -> &str {
    let inside = file.strip_prefix("src/").unwrap();
    inside.split('/').next().unwrap().trim_end_matches(".rs")
}

#[test]
fn every_module_uses_only_those_above_it() {
    let place = |module: &str| ORDER.iter().position(|name| *name == module);
    for (file, text) in rust_files("src") {
        let module = module(&file);
        if matches!(module, "lib" | "main") {
            continue;
        }
        let own =
            place(module).unwrap_or_else(|| panic!("{file}: {module} has no place in the order"));
        for (number, line) in text.lines().enumerate() {
            for used in line.split("crate::").skip(1) {
                let used = used.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                if let Some(used_place) = place(used) {
                    assert!(used_place <= own, "{file}:{}: {module} uses {used}", number + 1);
                }
            }
        }
    }
}

#[test]
fn every_module_is_in_the_order_and_in_the_architecture() {
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let modules =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut modules: Vec<&str> = modules.collect();
    let mut order = ORDER.to_vec();
    modules.sort_unstable();
    order.sort_unstable();
    assert_eq!(modules, order);
    for module in order {
        assert!(
            architecture.contains(&format!("`{module}`")),
            "ARCHITECTURE.md: no word of {module}"
        );
    }
}

#[test]
fn unsafe_stays_in_its_room_and_says_why() {
    for (file, text) in rust_files("src") {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if code.split(|c: char| !c.is_alphanumeric()).any(|word| word == "unsafe") {
                assert!(
                    UNSAFE.iter().any(|room| file.starts_with(room)),
                    "{file}:{}: unsafe",
                    number + 1
                );
                if code.contains("unsafe extern \"C\" fn(") {
                    continue; // a type: what calls it says why
                }
                let before: Vec<&str> = text.lines().take(number).collect();
                let reason = before
                    .iter()
                    .rev()
                    .take(6)
                    .any(|line| line.contains("// SAFETY:") || line.contains("/// # Safety"));
                assert!(reason, "{file}:{}: no SAFETY comment", number + 1);
            }
        }
    }
}

#[test]
fn files_functions_and_lines_are_of_livable_size() {
    for (file, text) in all_files() {
        let lines: Vec<&str> = text.lines().collect();
        let code = lines.iter().position(|line| *line == "mod tests {").unwrap_or(lines.len());
        assert!(code <= FILE_LINES, "{file}: {code} lines");
        let mut start = None;
        for (number, line) in lines.iter().enumerate() {
            assert!(line.chars().count() <= COLUMNS, "{file}:{}: a long line", number + 1);
            let trimmed = line.trim_start();
            let begins =
                ["fn ", "pub fn ", "pub(super) fn "].iter().any(|f| trimmed.starts_with(f));
            if begins {
                start = Some((number, line.len() - trimmed.len()));
            }
            if let Some((first, indent)) = start
                && trimmed == "}"
                && line.len() - trimmed.len() == indent
            {
                let length = number - first + 1;
                assert!(length <= FUNCTION_LINES, "{file}:{}: {length} lines", first + 1);
                start = None;
            }
        }
    }
}

/// A test that is left out says why.
#[test]
fn nothing_is_left_undone() {
    let marks = ["todo", "unimplemented"].map(|mark| format!("{mark}!("));
    let words =
        ["FIX", "XX"].map(|start| format!("{start}{}", if start == "XX" { "X" } else { "ME" }));
    for (file, text) in all_files() {
        for mark in marks.iter().chain(&words).chain(&["#[ig".to_owned() + "nore]"]) {
            assert!(!text.contains(mark.as_str()), "{file}: {mark}");
        }
    }
}
