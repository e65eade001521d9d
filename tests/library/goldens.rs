//! Small checkpoints against what `transformers` computed from them in float32 (`scripts/golden.py`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use crate::golden;
use crate::golden::{Expected, argmax, cases, expected, relative_error, worst};
use chaski::checkpoint::Checkpoint;
use chaski::encoding::Float;
use chaski::engine::{self, Model, silent};
use chaski::model::Logits;
use chaski::sampler::SamplingOptions;
use chaski::session::{Next, Session, StopCriteria};
use chaski::team::Team;

/// Relative L2 of the logits at any position, f32 arithmetic on both sides.
const TOLERANCE: f64 = 1e-4;

fn team(case: &Path, options: engine::Options) -> Team {
    let options = engine::Options { device: engine::Device::Cpu, ..options };
    Model::of(golden::source(case), options).unwrap().load(&silent()).unwrap().team
}

/// Relative L2 of all logits where the products' inputs are rounded to bf16: as a GPU's prefill has it.
const ROUNDED: f64 = 8e-3;

fn all_logits() -> engine::Options {
    engine::Options { scored: usize::MAX, ..engine::Options::default() }
}

/// As `--activations bf16` asks.
fn rounded() -> engine::Options {
    engine::Options { activations: Some(Float::Bf16), ..all_logits() }
}

/// Those that `--activations bf16` takes.
fn bf16_cases() -> Vec<PathBuf> {
    let is_bf16 = |case: &PathBuf| {
        Checkpoint::open(&golden::source(case)).unwrap().encoding() == Float::Bf16.into()
    };
    let cases: Vec<_> = cases().into_iter().filter(is_bf16).collect();
    assert!(cases.len() >= 5);
    cases
}

/// The logits of all positions, computed in steps of `chunk` tokens.
fn prefill(case: &Path, ids: &[u32], chunk: usize) -> Vec<f32> {
    prefill_as(all_logits(), case, ids, chunk)
}

fn prefill_as(options: engine::Options, case: &Path, ids: &[u32], chunk: usize) -> Vec<f32> {
    let mut team = team(case, options);
    team.expect(ids.len()).unwrap();
    ids.chunks(chunk).flat_map(|ids| team.prefill(ids, Logits::All).unwrap().to_vec()).collect()
}

#[test]
fn logits_match_transformers_at_every_position() {
    for case in cases() {
        let Expected { ids, logits, .. } = expected(&case);
        let ours = prefill(&case, &ids, ids.len());
        let (relative, position) = worst(&ours, &logits, ids.len());
        assert!(
            relative <= TOLERANCE,
            "{}: relative L2 {relative:.2e} at position {position}",
            case.display()
        );
    }
}

#[test]
fn greedy_continuation_is_the_same_64_tokens() {
    for case in cases() {
        let Expected { ids, greedy, .. } = expected(&case);
        assert_eq!(greedy.len(), 64);
        let mut team = team(&case, engine::Options::default());
        let mut next = argmax(team.prefill(&ids, Logits::Last).unwrap());
        for (step, theirs) in greedy.iter().enumerate() {
            assert_eq!(next, *theirs, "{}: token {step}", case.display());
            next = argmax(team.decode(next).unwrap());
        }
    }
}

/// Bit for bit: the split into steps changes no sum.
#[test]
fn prefill_in_any_chunking_equals_one_token_at_a_time() {
    for case in cases() {
        let Expected { ids, .. } = expected(&case);
        let mut team = team(&case, engine::Options::default());
        team.expect(ids.len()).unwrap();
        let singly: Vec<f32> =
            ids.iter().flat_map(|id| team.decode(*id).unwrap().to_vec()).collect();
        for chunk in [1, 3, 7, 16, ids.len()] {
            let chunked = prefill(&case, &ids, chunk);
            assert!(chunked == singly, "{}: chunks of {chunk}", case.display());
        }
    }
}

/// Products of bf16 cost a little precision, and neither chunks nor single tokens change a bit.
#[test]
fn rounded_activations_stay_close_and_are_the_same_in_any_chunking() {
    for case in bf16_cases() {
        let Expected { ids, logits, .. } = expected(&case);
        let ours = prefill_as(rounded(), &case, &ids, ids.len());
        let error = relative_error(&ours, &logits);
        println!("{}: relative L2 {error:.2e}", case.display());
        assert!(1e-4 < error && error <= ROUNDED, "{}: relative L2 {error:.2e}", case.display());
        let mut team = team(&case, rounded());
        team.expect(ids.len()).unwrap();
        let singly: Vec<f32> =
            ids.iter().flat_map(|id| team.decode(*id).unwrap().to_vec()).collect();
        assert!(ours == singly, "{}: token by token", case.display());
        for chunk in [3, 7, 16] {
            let chunked = prefill_as(rounded(), &case, &ids, chunk);
            assert!(chunked == singly, "{}: chunks of {chunk}", case.display());
        }
    }
}

/// Whole models, with any instruction set that this machine has: the same bytes.
#[test]
fn instruction_sets_change_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("logits.safetensors");
    let sets: &[(&str, bool)] = &[
        #[cfg(target_arch = "x86_64")]
        ("AVX-512 BF16", std::arch::is_x86_feature_detected!("avx512bf16")),
        #[cfg(target_arch = "x86_64")]
        ("AVX-512", std::arch::is_x86_feature_detected!("avx512vl")),
        #[cfg(target_arch = "x86_64")]
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        #[cfg(target_arch = "aarch64")]
        ("NEON", true),
        ("baseline", true),
    ];
    let [bf16, others] = [bf16_cases(), cases()];
    let [bf16, other] = [&bf16[0], &others[1]].map(|case| case.to_str().unwrap());
    for (model, options) in [
        ("demo", &["--kv-type", "f16"][..]),
        ("demo", &["--activations", "bf16"]),
        (bf16, &[]),
        (bf16, &["--activations", "bf16", "--kv-type", "f16"]),
        (other, &[]),
    ] {
        let logits = |set: Option<&str>| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
            command.args(["logits", "-m", model, "--device", "cpu", "--random-ids", "23"]);
            command.args(options).arg("--out").arg(&file);
            command.envs(set.map(|set| ("CHASKI_INSTRUCTION_SET", set)));
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            std::fs::read(&file).unwrap()
        };
        let usual = logits(None);
        for (set, _) in sets.iter().filter(|(_, is_there)| *is_there) {
            assert!(logits(Some(set)) == usual, "{model} {options:?}: {set}");
        }
    }
}

/// Going back and taking other tokens leaves no trace of the first ones.
#[test]
fn rewinding_forgets() {
    let case = &cases()[0];
    let Expected { ids, .. } = expected(case);
    let fresh = prefill(case, &ids, ids.len());
    let mut team = team(case, all_logits());
    let others: Vec<u32> = ids.iter().rev().copied().collect();
    team.prefill(&others, Logits::None).unwrap();
    team.rewind(0).unwrap();
    assert!(team.prefill(&ids, Logits::All).unwrap() == fresh);
}

/// A model that turns by the length of the text takes all of a longer one anew, and of a shorter one.
#[test]
fn a_session_forgets_what_was_turned_for_another_text() {
    let case = cases().into_iter().find(|case| case.ends_with("gqa2-hd64-bf16-dynamic")).unwrap();
    let ids = expected(&case).ids; // longer than the model was made for
    let greedy = SamplingOptions { temperature: 0.0, ..Default::default() };
    let interrupt = AtomicBool::new(false);
    let stop = StopCriteria { max_tokens: 20, stop_ids: &[], interrupt: &interrupt };
    let options = engine::Options {
        prefill_chunk: Some(7),
        context: Some(100),
        ..engine::Options::default()
    };
    let answer = |session: &mut Session, prompt: &[u32]| {
        session.generate(prompt, &greedy, stop, |_| Ok(Next::Continue)).unwrap().ids
    };
    let fresh = |prompt: &[u32]| answer(&mut Session::new(team(&case, options.clone())), prompt);
    let mut session = Session::new(team(&case, options.clone()));
    for length in [5, 10, 24, 25, 40, 33, 20, 21] {
        assert_eq!(answer(&mut session, &ids[..length]), fresh(&ids[..length]), "{length} tokens");
    }
    assert_eq!(fresh(&ids), expected(&case).greedy[..20]);
}

/// A 16-bit cache costs a little precision and nothing else.
#[test]
fn a_16_bit_cache_stays_close() {
    for case in cases() {
        let Expected { ids, .. } = expected(&case);
        let exact = prefill(&case, &ids, ids.len());
        let mut team = team(&case, engine::Options { kv_type: Some(Float::F16), ..all_logits() });
        let rounded = team.prefill(&ids, Logits::All).unwrap();
        let all: f64 = exact.iter().map(|x| f64::from(*x).powi(2)).sum();
        let off = exact.iter().zip(rounded).map(|(a, b)| f64::from(a - b).powi(2));
        let relative = (off.sum::<f64>() / all).sqrt();
        assert!(relative > 0.0 && relative < 2e-3, "{}: {relative:.2e}", case.display());
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let case = &cases()[0];
    let Expected { ids, .. } = expected(case);
    let mut team =
        team(case, engine::Options { context: Some(ids.len() - 1), ..engine::Options::default() });
    team.prefill(&ids[..ids.len() - 1], Logits::None).unwrap();
    let error = team.decode(ids[0]).unwrap_err().to_string();
    let (needed, context) = (ids.len().to_string(), (ids.len() - 1).to_string());
    assert!(error.contains(&needed) && error.contains(&context), "{error}");
    let vocab = team.vocab() as u32;
    team.rewind(0).unwrap();
    let error = team.decode(vocab).unwrap_err().to_string();
    assert!(error.contains(&vocab.to_string()), "{error}");
}
