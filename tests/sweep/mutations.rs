//! Are the checkers any good? Every barrier and every wait of every kernel is taken out in turn, every
//! order between blocks weakened: `chaski kernels check` must notice each.
//!
//! `cargo test` takes those of [`QUICK`]; `CHASKI_MUTATIONS=sample` those of one kernel; the ignored test
//! all, which takes minutes. Barriers must be noticed by what `--sanitize thread` runs unasked; all
//! else is tried as [`TRIES`] says until something is noticed; a header's, in the kernels that have it
//! until one notices, those that are asked for first: not all call all of its functions.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use chaski::kernel::{KERNELS, Kernel};
use rayon::prelude::*;

/// Kernels whose mutants are quick to catch.
const QUICK: [&str; 3] = ["embed", "rms_norm", "rope_append"];

/// How a mutant is looked at: sanitizer, and cases if they are not left to it.
type Try = (&'static str, Option<&'static str>);

/// One after another.
const TRIES: [Try; 4] = [
    ("none", Some("quick")),
    ("thread", Some("quick")),
    ("none", Some("usual")),
    ("thread", Some("usual")),
];

/// Mutations that take a barrier out, and what is to notice them.
const BARRIERS: [&str; 4] =
    ["__syncthreads(", "__syncwarp(", "named_barrier_sync(", "named_barrier_arrive("];
const TRIES_OF_BARRIERS: [Try; 1] = [("thread", None)];

/// Files of functions that the kernels' own orders are made of; and stamps, which kernels are built without.
const BASICS: [&str; 6] = [
    "lib/ptx.cuh",
    "lib/ptx_global.cuh",
    "lib/ptx_hopper.cuh",
    "lib/shared.cuh",
    "lib/stamps.cuh",
    "lib/types.cuh",
];

/// A call, and what stands in its place: `...` are its arguments. The compiler is g++.
const MUTATIONS: [(&str, &str); 16] = [
    ("__syncthreads(", "(void)0"),
    ("__syncwarp(", "(void)0"),
    ("cp_async_wait<", "(void)0"),
    ("grid_dependency_wait(", "(void)0"),
    ("mbarrier_wait(", "(void)0"),
    ("mbarrier_arrive(", "(void)0"),
    ("fence_mbarrier_init(", "(void)0"),
    ("fence_async_proxy(", "(void)0"),
    ("fence_gpu(", "(void)0"),
    ("wgmma_wait<", "(void)0"),
    ("wgmma_fence(", "(void)0"),
    ("named_barrier_sync(", "(void)0"),
    ("named_barrier_arrive(", "(void)0"),
    ("atomic_add_acq_rel_gpu(", "__atomic_fetch_add(..., __ATOMIC_RELAXED)"),
    ("load_acquire_gpu(", "__atomic_load_n(..., __ATOMIC_RELAXED)"),
    ("store_release_gpu(", "__atomic_store_n(..., __ATOMIC_RELAXED)"),
];

struct Mutant {
    /// `rms_norm.cu`, or `lib/reduce.cuh`.
    file: String,
    line: usize,
    /// The line before and after.
    original: String,
    mutated: String,
    tries: &'static [Try],
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

fn mutants(file: &str, text: &str) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap();
        for (name, replacement) in MUTATIONS {
            // What several ranks do together is mutated in tests/gpu/all_reduce.rs.
            if file == "all_reduce.cu" && name != "grid_dependency_wait(" {
                continue;
            }
            for (start, _) in code.match_indices(name) {
                let (end, arguments) = call(line, start).unwrap_or_else(|| panic!("{line}"));
                let replacement = replacement.replace("...", arguments);
                mutants.push(Mutant {
                    file: file.to_owned(),
                    line: number,
                    original: line.trim().to_owned(),
                    mutated: format!("{}{replacement}{}", &line[..start], &line[end..]),
                    tries: match BARRIERS.contains(&name) {
                        true => &TRIES_OF_BARRIERS,
                        false => &TRIES,
                    },
                });
            }
        }
    }
    mutants
}

/// A kernel's own file, and its headers.
fn files(kernel: &Kernel) -> Vec<(String, &'static str)> {
    let headers = kernel.headers.iter().filter(|header| !BASICS.contains(&header.name));
    let own = (format!("{}.cu", kernel.name), kernel.source);
    [own].into_iter().chain(headers.map(|header| (header.name.to_owned(), header.text))).collect()
}

impl Mutant {
    /// What `chaski kernels check` finds wrong with a kernel that is mutated so, if anything.
    fn noticed(&self, kernel: &Kernel, (sanitizer, cases): Try) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let change = |name: &str, text: &str| -> String {
            let line = |(number, line): (usize, &str)| match number == self.line {
                true if name == self.file => self.mutated.clone() + "\n",
                _ => line.to_owned() + "\n",
            };
            (1..).zip(text.lines()).map(line).collect()
        };
        let name = format!("{}.cu", kernel.name);
        let source = folder.join(&name);
        fs::create_dir_all(folder.join("lib")).unwrap();
        fs::write(&source, change(&name, kernel.source)).unwrap();
        for header in kernel.headers {
            fs::write(folder.join(header.name), change(header.name, header.text)).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
        command.args(["--emulate", "1", "kernels", "check", "--source"]).arg(source);
        command.args(["--sanitize", sanitizer]).stdin(Stdio::null());
        command.args(cases.into_iter().flat_map(|cases| ["--cases", cases]));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        // That it was checked, and no more than that: it has compiled, and ran.
        assert!(said.contains("cases") && !said.contains("error:"), "{said}{errors}");
        assert!(matches!(output.status.code(), Some(0 | 1)), "{said}{errors}");
        let first = said.lines().nth(1).unwrap_or_default().trim().to_owned();
        (output.status.code() == Some(1)).then_some(first)
    }

    /// Whether anything is noticed in any of the kernels that have the file; says by whom.
    fn is_noticed(&self, kernels: &[&Kernel]) -> bool {
        let Self { file, line, original, tries, .. } = self;
        let all = tries.iter().flat_map(|one| kernels.iter().map(move |kernel| (one, kernel)));
        for (one, kernel) in all {
            if let Some(what) = self.noticed(kernel, *one) {
                let (name, sanitizer) = (kernel.name, one.0);
                println!("{file}:{line}: {original}\n    {name}, sanitizer {sanitizer}: {what}");
                return true;
            }
        }
        println!("{file}:{line}: {original}\n    NOT NOTICED");
        false
    }
}

fn assert_noticed(kernels: &[&Kernel]) {
    let texts: BTreeMap<_, _> = kernels.iter().flat_map(|kernel| files(kernel)).collect();
    let mutants: Vec<Mutant> =
        texts.into_iter().flat_map(|(file, text)| mutants(&file, text)).collect();
    let survives = |mutant: &&Mutant| {
        let has_it = |kernel: &&Kernel| files(kernel).iter().any(|(name, _)| *name == mutant.file);
        let mut having: Vec<_> = KERNELS.iter().filter(has_it).collect();
        having.sort_by_key(|kernel| !kernels.iter().any(|chosen| chosen.name == kernel.name));
        !mutant.is_noticed(&having)
    };
    // Each is a process of its own: one for each core at a time.
    let survivors: Vec<String> = mutants
        .par_iter()
        .with_max_len(1)
        .filter(survives)
        .map(|mutant| format!("{}:{}: {}", mutant.file, mutant.line, mutant.original))
        .collect();
    assert!(survivors.is_empty(), "not noticed: {survivors:#?}");
}

#[test]
fn every_barrier_and_wait_that_is_missing_is_noticed() {
    let chosen = std::env::var("CHASKI_MUTATIONS").ok();
    let is_chosen = |kernel: &&Kernel| match &chosen {
        None => QUICK.contains(&kernel.name),
        Some(name) => kernel.name == name,
    };
    let kernels: Vec<_> = KERNELS.iter().filter(is_chosen).collect();
    assert!(!kernels.is_empty(), "CHASKI_MUTATIONS={chosen:?}: no such kernel");
    assert_noticed(&kernels);
}

#[test]
#[ignore = "takes minutes"]
fn every_barrier_and_wait_that_is_missing_in_any_kernel_is_noticed() {
    assert_noticed(&KERNELS.iter().collect::<Vec<_>>());
}

/// What is looked for is what there is: a kernel without a wait would have no mutant.
#[test]
fn every_kernel_has_mutants() {
    for kernel in KERNELS {
        let waits = |(name, text): &(String, &str)| {
            mutants(name, text)
                .iter()
                .any(|mutant| mutant.original.contains("grid_dependency_wait"))
        };
        assert!(files(kernel).iter().any(waits), "{}", kernel.name);
    }
}
