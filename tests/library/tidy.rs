//! The layout that ARCHITECTURE.md describes, kept by a test: who may use whom, where `unsafe` lives,
//! and sizes that keep a file livable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module uses only those above it.
const ORDER: &[&str] = &[
    "error",
    "json",
    "random",
    "encoding",
    "quantise",
    "gguf",
    "torch",
    "source",
    "config",
    "checkpoint",
    "hub",
    "tokenizer",
    "chat",
    "export",
    "comm",
    "sampler",
    "memory",
    "vector",
    "kernel",
    "op",
    "case",
    "ops",
    "model",
    "executor",
    "conformance",
    "rank",
    "qualify",
    "team",
    "session",
    "engine",
    "bench",
    "lab",
    "server",
    "cli",
];

const FILE_LINES: usize = 400;
const FUNCTION_LINES: usize = 70;
/// Of the functions of kernels.
const KERNEL_LINES: usize = 120;
const COLUMNS: usize = 110;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files under `folder` with one of these extensions, by path from the root, and their texts.
fn files(folder: &str, extensions: &[&str]) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                let is_ours = name != "target" && name != "shared" && !name.starts_with('.');
                folders.extend(is_ours.then_some(path));
            } else if path.extension().is_some_and(|own| extensions.iter().any(|e| own == *e)) {
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!files.is_empty(), "no files in {folder}");
    files
}

fn rust_files(folder: &str) -> Vec<(String, String)> {
    files(folder, &["rs"])
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

/// The names that begin with `CHASKI_` and end with a letter: `CHASKI_EMULATE_` is what some begin with.
fn variables(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_uppercase() || c == '_';
    let names = text.split(|c| !is_part(c)).filter(|name| name.starts_with("CHASKI_"));
    names.filter(|name| !name.ends_with('_')).map(str::to_owned).collect()
}

#[test]
fn environment_variables_are_documented() {
    let folders = ["src", "emulator", "scripts", "tests", "benches"];
    let files = folders.iter().flat_map(|folder| files(folder, &["rs", "py", "h", "cpp", "sh"]));
    let mut used: BTreeSet<String> = files.flat_map(|(_, text)| variables(&text)).collect();
    used.extend(variables(&fs::read_to_string(root().join("build.rs")).unwrap()));
    let page = fs::read_to_string(root().join("docs/environment.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let documented: BTreeSet<String> = rows.flat_map(variables).collect();
    assert_eq!(used, documented, "docs/environment.md has a row for each");
}

/// In all pages, by their relative links.
#[test]
fn links_between_documents_lead_somewhere() {
    for (file, text) in files("", &["md"]) {
        let folder = root().join(&file).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            assert!(folder.join(target).exists(), "{file}: {target}");
        }
    }
}

#[test]
fn the_readme_is_short() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 130);
}

#[test]
fn unsafe_stays_in_its_room_and_says_why() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = architecture.split_once("## `unsafe`").unwrap();
    let rows = table.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
    let files = rows.flat_map(|row| row.split('|').nth(1).unwrap().split(['`', ',', ' ']));
    let listed: BTreeSet<String> =
        files.filter(|file| !file.is_empty()).map(|file| format!("src/{file}")).collect();
    let mut found = BTreeSet::new();
    for (file, text) in rust_files("src") {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if code.split(|c: char| !c.is_alphanumeric()).any(|word| word == "unsafe") {
                found.insert(file.clone());
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
    assert_eq!(found, listed, "ARCHITECTURE.md has a row for each file with unsafe");
}

/// Where each function begins, and how many lines it has: by the layout that formatters give it.
fn functions(file: &str, lines: &[&str]) -> Vec<(usize, usize)> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let (is_rust, is_python) = (file.ends_with(".rs"), file.ends_with(".py"));
    let begins = |line: &str| match line.trim_start() {
        code if is_rust => {
            let code = code.trim_start_matches("pub").trim_start_matches("(super)").trim_start();
            ["fn ", "const fn ", "unsafe fn "].iter().any(|word| code.starts_with(word))
        }
        code if is_python => code.starts_with("def "),
        code => line == code && code.ends_with(['{', ',']) && code.contains('('),
    };
    let mut found = Vec::new();
    let mut open: Option<(usize, usize)> = None;
    let all = lines.iter().copied().chain(["the end"]).enumerate();
    for (number, line) in all.filter(|(_, line)| !line.trim().is_empty()) {
        let is_outside = |(_, at): &(usize, usize)| indent(line) <= *at;
        match open.take_if(|open| is_outside(open) && (is_python || line.trim() == "}")) {
            Some((first, _)) if is_python => found.push((first, number - first)),
            Some((first, _)) => found.push((first, number - first + 1)),
            None => {}
        }
        // One that another follows before it ends has no body.
        if begins(line) && open.is_none_or(|(_, at)| at == indent(line)) {
            open = Some((number, indent(line)));
        }
    }
    found
}

#[test]
fn files_functions_and_lines_are_of_livable_size() {
    let others = ["kernels", "emulator", "tests", "scripts"];
    let others = others.iter().flat_map(|folder| files(folder, &["cu", "cuh", "cpp", "h", "py"]));
    let rust = all_files().into_iter().chain(files("examples", &["rs"]));
    let mut over = Vec::new();
    for (file, text) in rust.chain(others) {
        let lines: Vec<&str> = text.lines().collect();
        let code = lines.iter().position(|line| *line == "mod tests {").unwrap_or(lines.len());
        if code > FILE_LINES {
            over.push(format!("{file}: {code} lines"));
        }
        let most = if file.starts_with("kernels/") { KERNEL_LINES } else { FUNCTION_LINES };
        let long = functions(&file, &lines).into_iter().filter(|(_, length)| *length > most);
        over.extend(long.map(|(first, length)| format!("{file}:{}: {length} lines", first + 1)));
        let wide = lines.iter().enumerate().filter(|(_, line)| line.chars().count() > COLUMNS);
        let wide = wide.filter(|_| file.ends_with(".rs"));
        over.extend(wide.map(|(number, _)| format!("{file}:{}: a long line", number + 1)));
    }
    assert!(over.is_empty(), "{over:#?}");
}

/// Of the last test: what it does not see is no limit.
#[test]
fn functions_are_found_in_every_language() {
    let found = |file: &str, text: &str| functions(file, &text.lines().collect::<Vec<_>>());
    let rust =
        "impl A {\n    pub(super) fn a() {\n        if b {\n        }\n    }\n}\nfn c() {\n}\n";
    assert_eq!(found("a.rs", rust), [(1, 4), (6, 2)]);
    let cuda =
        "struct A {\n};\n\ntemplate <class W>\nvoid a(int b,\n       int c) {\n    d();\n}\n";
    assert_eq!(found("a.cu", cuda), [(4, 4)]);
    let declared = "void a(int b,\n       int c);\n\nvoid d() {\n    e();\n}\n";
    assert_eq!(found("a.cpp", declared), [(3, 3)]);
    let python = "class A:\n    def a(self):\n        b()\n\n        c()\n\n\nd()\n";
    assert_eq!(found("a.py", python), [(1, 6)]);
}

/// A test that is left out says why.
/// A reader who looks for a type finds one.
#[test]
fn public_types_have_names_of_their_own() {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut places = BTreeMap::<String, BTreeSet<String>>::new();
    for (file, text) in rust_files("src") {
        for line in text.lines().map(str::trim_start).filter(|line| line.starts_with("pub")) {
            let mut words = line.split(|c| !is_word(c));
            let keywords = ["struct", "enum", "trait", "type", "union"];
            let Some(_) = words.find(|word| keywords.contains(word)) else { continue };
            let name = words.next().unwrap_or_default();
            if name.starts_with(char::is_uppercase) {
                places.entry(name.to_owned()).or_default().insert(file.clone());
            }
        }
    }
    assert!(places.len() > 300, "{} are not all of them", places.len());
    places.retain(|_, files| files.len() > 1);
    assert!(places.is_empty(), "{places:#?}");
}

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

/// The library is silent, and knows nothing of the process that it is in: what it needs it is given.
#[test]
fn only_the_command_line_prints_exits_and_reads_the_environment() {
    let words = [
        "env::var",
        "env::args",
        "set_var(",
        "process::exit",
        "_exit(",
        "print!(",
        "println!(",
        "stdout()",
        "stderr()",
        "stdin()",
        "set_handler",
    ];
    // Options of compilers.
    let others = [
        "--gpu-architecture",
        "--include-path",
        "--std",
        "--ptxas-options",
        "--version",
        "models--",
    ];
    for (file, text) in files("src", &["rs"]) {
        let is_its = file.starts_with("src/cli/") || file == "src/main.rs";
        for (number, line) in
            text.lines().enumerate().take_while(|(_, line)| *line != "mod tests {")
        {
            let code = line.split("//").next().unwrap();
            // What the command line has called at a SIGBUS, which no error can tell of.
            let is_handler = file == "src/source/mapped.rs" && code.contains("libc::_exit(1)");
            for word in words.iter().filter(|_| !is_its && !is_handler) {
                assert!(!code.contains(word), "{file}:{}: {word}", number + 1);
            }
            let code = others.iter().fold(code.to_owned(), |code, other| code.replace(other, ""));
            let is_flag = |(at, _): (usize, &str)| {
                code[at + 2..].starts_with(|c: char| c.is_ascii_lowercase())
            };
            let flag = code.match_indices("--").any(is_flag);
            assert!(is_its || !flag, "{file}:{}: a flag", number + 1);
        }
    }
}

/// ARCHITECTURE.md says of each file of tests what that says of itself.
#[test]
fn the_table_of_tests_is_that_of_the_files() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut rows = BTreeSet::new();
    for (file, text) in files("tests", &["rs"]) {
        let [_, binary, name] = file.split('/').collect::<Vec<_>>()[..] else { continue };
        if !root().join(format!("tests/{binary}/main.rs")).is_file() {
            continue; // what binaries share
        }
        let line = text.lines().next().unwrap().strip_prefix("//! ").expect("a first line");
        let (line, name) = (line.trim_end_matches([',', ';', ':']), name.trim_end_matches(".rs"));
        let name = if name == "main" { format!("**{binary}**") } else { format!("`{name}`") };
        rows.insert(format!("| {name} | {line} |"));
    }
    let table = architecture.split("<!-- tests: a row each -->\n").nth(1).expect("a table");
    let table = table.split("<!-- tests: end -->").next().unwrap();
    let table: BTreeSet<String> = table.lines().skip(2).map(str::to_owned).collect();
    assert_eq!(table, rows);
}
