//! Small checkpoints, and what `transformers` computed from them in float32 (`scripts/golden.py`).

use std::path::{Path, PathBuf};

use chaski::source::Source;
use safetensors::SafeTensors;

/// What transformers says of one case.
pub struct Expected {
    pub ids: Vec<u32>,
    /// `[T, V]`
    pub logits: Vec<f32>,
    /// Greedy continuation of `ids`.
    pub greedy: Vec<u32>,
}

/// That of all cases.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The folders of all cases.
pub fn cases() -> Vec<PathBuf> {
    let folder = folder();
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let is_case = |path: &PathBuf| path.join("expected.safetensors").exists();
    let mut cases: Vec<_> = entries.filter(is_case).collect();
    cases.sort();
    assert!(cases.len() >= 6, "{}: golden data is missing", folder.display());
    cases
}

pub fn source(case: &Path) -> Source {
    Source::find(case.to_str().unwrap()).unwrap()
}

pub fn expected(case: &Path) -> Expected {
    let file = std::fs::read(case.join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        let bytes = tensors.tensor(name).unwrap().data();
        bytes.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let ids = |name: &str| words(name).into_iter().map(u32::from_le_bytes).collect();
    Expected {
        ids: ids("ids"),
        logits: words("logits").into_iter().map(f32::from_le_bytes).collect(),
        greedy: ids("greedy"),
    }
}

/// The relative L2 of logits. What is no number is no match.
pub fn relative_error(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = theirs.iter().copied().map(square).sum();
    Some((error / norm).sqrt()).filter(|error| !error.is_nan()).unwrap_or(f64::INFINITY)
}

/// The largest relative L2 of the logits at any position, and where that is.
pub fn worst(ours: &[f32], theirs: &[f32], positions: usize) -> (f64, usize) {
    let vocab = theirs.len() / positions;
    let rows = ours.chunks(vocab).zip(theirs.chunks(vocab));
    let errors = rows.map(|(ours, theirs)| relative_error(ours, theirs));
    let worst = errors.zip(0..).max_by(|a, b| a.0.total_cmp(&b.0));
    worst.expect("there is a position")
}

/// The first of the highest logits.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|logit| *logit == best).unwrap() as u32
}
