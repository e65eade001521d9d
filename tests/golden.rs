//! Small checkpoints against what `transformers` computed from them in float32 (`scripts/golden.py`).

use std::path::{Path, PathBuf};

use chaski::checkpoint::{Checkpoint, Dtype};
use chaski::config::{Config, Dims};
use chaski::model::{Logits, Plan, Request};
use chaski::rank::Rank;
use chaski::source::Source;
use safetensors::SafeTensors;

/// Relative L2 of the logits at any position, f32 arithmetic on both sides.
const TOLERANCE: f64 = 1e-4;

/// What transformers says of one case.
struct Expected {
    ids: Vec<u32>,
    /// `[T, V]`
    logits: Vec<f32>,
    /// Greedy continuation of `ids`.
    greedy: Vec<u32>,
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    cases.sort();
    assert!(cases.len() >= 6, "{}: golden data is missing", folder.display());
    cases
}

fn expected(case: &Path) -> Expected {
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

fn rank(case: &Path, request: Request) -> Rank {
    let source = Source::find(case.to_str().unwrap()).unwrap();
    let config = Config::load(&source).unwrap();
    let dims = Dims::new(&config, 1).unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let plan = Plan::new(&config, &dims, checkpoint.total_bytes(), request, 1 << 32).unwrap();
    Rank::new(&config, dims, checkpoint, &plan).unwrap()
}

fn all_logits() -> Request {
    Request { all_logits: true, ..Request::default() }
}

/// The logits of all positions, computed in steps of `chunk` tokens.
fn prefill(case: &Path, ids: &[u32], chunk: usize) -> Vec<f32> {
    let mut rank = rank(case, all_logits());
    ids.chunks(chunk).flat_map(|ids| rank.prefill(ids, Logits::All).unwrap().to_vec()).collect()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|logit| *logit == best).unwrap() as u32
}

#[test]
fn logits_match_transformers_at_every_position() {
    for case in cases() {
        let Expected { ids, logits, .. } = expected(&case);
        let ours = prefill(&case, &ids, ids.len());
        let vocab = logits.len() / ids.len();
        for (position, (ours, theirs)) in ours.chunks(vocab).zip(logits.chunks(vocab)).enumerate() {
            let square = |x: f32| f64::from(x).powi(2);
            let error: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
            let norm: f64 = theirs.iter().copied().map(square).sum();
            let relative = (error / norm).sqrt();
            assert!(
                relative <= TOLERANCE,
                "{}: relative L2 {relative:.2e} at position {position}",
                case.display()
            );
        }
    }
}

#[test]
fn greedy_continuation_is_the_same_64_tokens() {
    for case in cases() {
        let Expected { ids, greedy, .. } = expected(&case);
        assert_eq!(greedy.len(), 64);
        let mut rank = rank(&case, Request::default());
        let mut next = argmax(rank.prefill(&ids, Logits::Last).unwrap());
        for (step, theirs) in greedy.iter().enumerate() {
            assert_eq!(next, *theirs, "{}: token {step}", case.display());
            next = argmax(rank.decode(next).unwrap());
        }
    }
}

/// Bit for bit: the split into steps changes no sum.
#[test]
fn prefill_in_any_chunking_equals_one_token_at_a_time() {
    for case in cases() {
        let Expected { ids, .. } = expected(&case);
        let mut rank = rank(&case, Request::default());
        let singly: Vec<f32> =
            ids.iter().flat_map(|id| rank.decode(*id).unwrap().to_vec()).collect();
        for chunk in [1, 3, 7, 16, ids.len()] {
            let chunked = prefill(&case, &ids, chunk);
            assert!(chunked == singly, "{}: chunks of {chunk}", case.display());
        }
    }
}

/// Going back and taking other tokens leaves no trace of the first ones.
#[test]
fn rewinding_forgets() {
    let case = &cases()[0];
    let Expected { ids, .. } = expected(case);
    let fresh = prefill(case, &ids, ids.len());
    let mut rank = rank(case, all_logits());
    let others: Vec<u32> = ids.iter().rev().copied().collect();
    rank.prefill(&others, Logits::None).unwrap();
    rank.rewind(0);
    assert!(rank.prefill(&ids, Logits::All).unwrap() == fresh);
}

/// A 16-bit cache costs a little precision and nothing else.
#[test]
fn a_16_bit_cache_stays_close() {
    for case in cases() {
        let Expected { ids, .. } = expected(&case);
        let exact = prefill(&case, &ids, ids.len());
        let mut rank = rank(&case, Request { cache: Dtype::F16, ..all_logits() });
        let rounded = rank.prefill(&ids, Logits::All).unwrap();
        let square = |x: f32| f64::from(x).powi(2);
        let error: f64 = exact.iter().zip(&*rounded).map(|(a, b)| square(a - b)).sum();
        let norm: f64 = exact.iter().copied().map(square).sum();
        let relative = (error / norm).sqrt();
        assert!(relative > 0.0 && relative < 2e-3, "{}: {relative:.2e}", case.display());
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let case = &cases()[0];
    let Expected { ids, .. } = expected(case);
    let mut rank = rank(case, Request { context: Some(ids.len() - 1), ..Request::default() });
    rank.prefill(&ids[..ids.len() - 1], Logits::None).unwrap();
    let error = rank.decode(ids[0]).unwrap_err().to_string();
    let (needed, context) = (ids.len().to_string(), (ids.len() - 1).to_string());
    assert!(error.contains(&needed) && error.contains(&context), "{error}");
    let vocab = rank.vocab() as u32;
    rank.rewind(0);
    let error = rank.decode(vocab).unwrap_err().to_string();
    assert!(error.contains(&vocab.to_string()), "{error}");
}
