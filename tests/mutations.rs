//! Are the checkers any good? Every barrier and every wait of every kernel is taken out in turn, every
//! order between blocks weakened: `chaski kernels check` must notice each.
//!
//! `cargo test` takes those of [`QUICK`]; `CHASKI_MUTATIONS=all` all, `CHASKI_MUTATIONS=sample` those of
//! one kernel, which takes many minutes. Each is tried without a sanitizer and, if nothing was noticed,
//! under ThreadSanitizer.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use chaski::kernel::{KERNELS, Kernel};

/// Kernels whose mutants are quick to catch.
const QUICK: [&str; 3] = ["embed", "rms_norm", "project"];

/// Files of functions that the kernels' own orders are made of.
const BASICS: [&str; 3] = ["lib/ptx.cuh", "lib/shared.cuh", "lib/types.cuh"];

/// A call, and what stands in its place: `...` are its arguments. The compiler is g++.
const MUTATIONS: [(&str, &str); 7] = [
    ("__syncthreads(", "(void)0"),
    ("__syncwarp(", "(void)0"),
    ("cp_async_wait<", "(void)0"),
    ("grid_dependency_wait(", "(void)0"),
    ("atomic_add_acq_rel_gpu(", "__atomic_fetch_add(..., __ATOMIC_RELAXED)"),
    ("load_acquire_gpu(", "__atomic_load_n(..., __ATOMIC_RELAXED)"),
    ("store_release_gpu(", "__atomic_store_n(..., __ATOMIC_RELAXED)"),
];

/// What no kernel can notice, by kernel or header, and line; each with its reason.
const HARMLESS: [(&str, &str, &str); 0] = [];

struct Mutant {
    kernel: &'static Kernel,
    /// `kernels/rms_norm.cu`, or a header.
    file: String,
    line: usize,
    /// The line before and after.
    original: String,
    mutated: String,
}

/// The end of a call that begins at `start`, and its arguments.
fn call(line: &str, start: usize) -> Option<(usize, &str)> {
    let open = start + line[start..].find('(')?;
    let mut depth = 0;
    for (at, c) in line[open..].char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            return Some((open + at + 1, &line[open + 1..open + at]));
        }
    }
    None
}

fn mutants_of(kernel: &'static Kernel, file: &str, text: &str) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap();
        for (name, replacement) in MUTATIONS {
            for (start, _) in code.match_indices(name) {
                let (end, arguments) = call(line, start).unwrap_or_else(|| panic!("{line}"));
                let replacement = replacement.replace("...", arguments);
                mutants.push(Mutant {
                    kernel,
                    file: file.to_owned(),
                    line: number,
                    original: line.trim().to_owned(),
                    mutated: format!("{}{replacement}{}", &line[..start], &line[end..]),
                });
            }
        }
    }
    mutants
}

/// Those of a kernel's own file, and of its headers as far as `headers` says.
fn mutants(kernel: &'static Kernel, headers: impl Fn(&str) -> bool) -> Vec<Mutant> {
    let file = format!("{}.cu", kernel.name);
    let mut mutants = mutants_of(kernel, &file, kernel.source);
    let wanted = |name: &str| !BASICS.contains(&name) && headers(name);
    for header in kernel.headers.iter().filter(|header| wanted(header.name)) {
        mutants.extend(mutants_of(kernel, header.name, header.text));
    }
    mutants
}

impl Mutant {
    /// Whether `chaski kernels check` finds something wrong under a sanitizer, and its first words.
    fn noticed(&self, folder: &Path, sanitizer: &str) -> Option<String> {
        let change = |name: &str, text: &str| -> String {
            let line = |(number, line): (usize, &str)| match number == self.line {
                true if name == self.file => self.mutated.clone() + "\n",
                _ => line.to_owned() + "\n",
            };
            (1..).zip(text.lines()).map(line).collect()
        };
        let source = folder.join(format!("{}.cu", self.kernel.name));
        fs::create_dir_all(folder.join("lib")).unwrap();
        fs::write(&source, change(&format!("{}.cu", self.kernel.name), self.kernel.source))
            .unwrap();
        for header in self.kernel.headers {
            fs::write(folder.join(header.name), change(header.name, header.text)).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
        command.args(["--emulate", "1", "kernels", "check", "--cases", "quick", "--source"]);
        command.arg(source).args(["--sanitize", sanitizer]).stdin(Stdio::null());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        // That it was checked, and no more than that: it has compiled, and ran.
        assert!(said.contains("cases") && !said.contains("error:"), "{said}{errors}");
        assert!(matches!(output.status.code(), Some(0 | 1)), "{said}{errors}");
        let first = said.lines().nth(1).unwrap_or_default().trim().to_owned();
        (output.status.code() == Some(1)).then_some(first)
    }

    /// Whether anything is noticed; says by whom.
    fn is_noticed(&self) -> bool {
        let Self { kernel, file, line, original, .. } = self;
        let folder = tempfile::tempdir().unwrap();
        for sanitizer in ["none", "thread"] {
            if let Some(what) = self.noticed(folder.path(), sanitizer) {
                println!("{} {file}:{line}: {original}\n    {sanitizer}: {what}", kernel.name);
                return true;
            }
        }
        println!("{} {file}:{line}: {original}\n    NOT NOTICED", kernel.name);
        HARMLESS.iter().any(|(harmless, text, _)| harmless == file && original.contains(text))
    }
}

#[test]
fn every_barrier_and_wait_that_is_missing_is_noticed() {
    let chosen = std::env::var("CHASKI_MUTATIONS").unwrap_or_default();
    let is_chosen = |kernel: &&Kernel| match chosen.as_str() {
        "" => QUICK.contains(&kernel.name),
        "all" => true,
        name => kernel.name == name,
    };
    let kernels: Vec<_> = KERNELS.iter().filter(is_chosen).collect();
    assert!(!kernels.is_empty(), "CHASKI_MUTATIONS={chosen}: no such kernel");
    let mut seen = Vec::new();
    let mut survivors = Vec::new();
    for kernel in kernels {
        // A header's are tried with the first kernel that has it.
        for mutant in mutants(kernel, |header| !seen.contains(&header.to_owned())) {
            if !mutant.is_noticed() {
                survivors.push(format!("{}: {}:{}", kernel.name, mutant.file, mutant.line));
            }
        }
        seen.extend(kernel.headers.iter().map(|header| header.name.to_owned()));
    }
    assert!(survivors.is_empty(), "not noticed: {survivors:#?}");
}

/// What is looked for is what there is: a kernel without a wait would have no mutant.
#[test]
fn every_kernel_has_mutants() {
    for kernel in KERNELS {
        let mutants = mutants(kernel, |_| true);
        let waits =
            mutants.iter().filter(|mutant| mutant.original.contains("grid_dependency_wait"));
        assert!(waits.count() >= 1, "{}", kernel.name);
    }
}
