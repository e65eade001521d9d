//! What the benches share: a model to measure, the way to a rank, and a clock.

#![allow(dead_code, reason = "every bench uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use chaski::encoding::Float;
use chaski::engine::{Device, Model, Options, silent};
use chaski::source::Source;
use chaski::team::Team;
use chaski::vector::{cores, instruction_set};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Throughput};

/// Whether nothing is measured: criterion's own rule, `cargo test` or `--test`, and `--list`.
pub fn nothing_is_measured() -> bool {
    let given = |flag: &str| std::env::args().any(|argument| argument == flag);
    !given("--bench") || given("--test") || given("--list")
}

/// The model to measure, and the type of its weights, `CHASKI_BENCH_DTYPE`: bf16 (also where it is not
/// set) or f16. Runs that only prove that the benches work take a small one.
fn model() -> (&'static str, String) {
    let name = if nothing_is_measured() { "synthetic:tiny" } else { "synthetic:llama3.2-1b" };
    (name, std::env::var("CHASKI_BENCH_DTYPE").unwrap_or_else(|_| "bf16".to_owned()))
}

/// Its weights are made when it is opened.
pub fn source() -> Source {
    let (name, dtype) = model();
    let Source::Synthetic(mut model) = Source::find(name).unwrap() else {
        unreachable!("{name} is synthetic");
    };
    model.dtype = if dtype == "f16" { Float::F16 } else { Float::Bf16 };
    Source::Synthetic(model)
}

/// The same as files, written unless an earlier run has done it.
pub fn directory() -> PathBuf {
    let (name, dtype) = model();
    let folder = format!("{}-{dtype}", name.replace(':', "-"));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    if !directory.exists() {
        let mut chaski = Command::new(env!("CARGO_BIN_EXE_chaski"));
        chaski.args(["synthesize", "-m", name, "--dtype", &dtype, "--out"]).arg(&directory);
        assert!(chaski.status().unwrap().success());
    }
    directory
}

/// Ranks with room for 1024 tokens, on the path that every command takes.
pub fn open(source: &Source) -> Team {
    let options = Options { device: Device::Cpu, context: Some(1024), ..Options::default() };
    Model::of(source.clone(), options).unwrap().load(&silent()).unwrap().team
}

/// `count` ids that look like text: all over the vocabulary.
pub fn prompt(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| (i * 7919 % vocab) as u32).collect()
}

/// Lets criterion measure `work`, and returns the time of the fastest run, the one that the rest of
/// the machine disturbed least; `None` where criterion was asked not to measure it.
pub fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    throughput: Throughput,
    mut work: impl FnMut(),
) -> Option<Duration> {
    let mut fastest = None;
    group.throughput(throughput);
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|runs| {
            let mut total = Duration::ZERO;
            for _ in 0..runs {
                let start = Instant::now();
                work();
                let time = start.elapsed();
                fastest = Some(fastest.map_or(time, |fastest: Duration| fastest.min(time)));
                total += time;
            }
            total
        });
    });
    fastest.filter(|_| !nothing_is_measured())
}

/// Gigabytes a second.
pub fn gb_per_s(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// `AVX-512, 2 threads, BF16 weights`
pub fn circumstances() -> String {
    let threads = cores();
    format!("{}, {threads} threads, {} weights", instruction_set(), model().1)
}
