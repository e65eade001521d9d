//! A whole model split over two, four and eight emulated GPUs, and over as many ranks on fewer: right, and
//! the same bits on every rank, in every run and by every way that sums can go.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Command;

use crate::golden::{Expected, argmax, cases, expected, relative_error, source, worst};
use crate::gpus;
use crate::steps::prefill;
use chaski::engine;
use chaski::source::Source;
use chaski::team::Team;

/// The relative L2 of all logits of a prefill in bf16, and of decoding: as for one GPU.
const PREFILL: f64 = 8e-3;
const DECODE: f64 = 1e-3;

/// Tokens of a prefill by more than two ranks.
const TAKEN: usize = 20;

/// Tokens that are taken one by one.
const DECODED: usize = 5;

/// Where it is set, it is `off`.
const PEERS: &str = "CHASKI_PEERS";

fn model() -> (Source, Expected) {
    let case = cases().into_iter().find(|case| case.ends_with("split-gqa2-hd64-bf16")).unwrap();
    (source(&case), expected(&case))
}

fn team(ordinals: &[u32], way: &str) -> Team {
    let request = engine::Options {
        context: Some(64),
        prefill_chunk: Some(40),
        scored: usize::MAX,
        ..engine::Options::default()
    };
    let mut team = gpus::team(&model().0, request, 1, ordinals).unwrap();
    for link in team.each(|rank| Ok(rank.device_mut().link())).unwrap() {
        assert!(link.unwrap_or_default().contains(way), "not {way}");
    }
    team
}

/// Those of a prefill and of decoding, held to what is expected of them.
fn checked(ordinals: &[u32], way: &str) -> [Vec<f32>; 2] {
    let Expected { ids, logits: theirs, greedy } = model().1;
    let vocab = theirs.len() / ids.len();
    let mut team = team(ordinals, way);
    let taken = if ordinals.len() > 2 { TAKEN } else { ids.len() };
    let results = [(taken, taken, PREFILL), (DECODED, 1, DECODE)].map(|(count, chunk, bound)| {
        let (ids, theirs) = (&ids[..count], &theirs[..count * vocab]);
        let ours = prefill(&mut team, ids, chunk);
        let (whole, (at, position)) = (relative_error(&ours, theirs), worst(&ours, theirs, count));
        let told = format!("{ordinals:?} {way}: {whole:.2e}, {at:.2e} at {position}");
        println!("{told}");
        assert!(whole <= bound && at <= 3.0 * bound, "{told}");
        assert!(ours == prefill(&mut team, ids, chunk), "{told}: other bits in the next run");
        let residual = team.each(move |rank| {
            let model = rank.model();
            let x = model.state.x.part(0, chunk * model.dims.width);
            Ok(rank.device_mut().read(x)?.to_vec())
        });
        let residual = residual.unwrap();
        assert!(residual[0].iter().any(|x| *x != 0.0) && residual.len() == ordinals.len());
        assert!(residual.iter().all(|x| *x == residual[0]), "{told}: ranks differ");
        ours
    });
    let last = &results[0][(taken - 1) * vocab..];
    assert!(taken < ids.len() || argmax(last) == greedy[0]);
    results
}

/// What only the same bits have, but for luck.
fn digest(results: &[Vec<f32>; 2]) -> u64 {
    let mut digest = DefaultHasher::new();
    results.iter().flatten().for_each(|logit| logit.to_bits().hash(&mut digest));
    digest.finish()
}

/// [`of_4_and_8_gpus`] in a process of its own, through NCCL.
fn through_nccl() -> String {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "cuda_worlds::of_4_and_8_gpus", "--nocapture"]).env(PEERS, "off");
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("through NCCL"), "{said}");
    said
}

#[test]
fn of_2_gpus_and_of_as_many_as_one() {
    let [one, two] = [checked(&[0], ""), checked(&[0, 1], "")];
    for (i, bound) in [PREFILL, DECODE].into_iter().enumerate() {
        let error = relative_error(&two[i], &one[i]);
        assert!(error <= bound, "{error:.2e}");
    }
}

#[test]
fn of_4_and_8_gpus() {
    let is_again = std::env::var_os(PEERS).is_some();
    let way = if is_again { "through NCCL" } else { "over peer memory" };
    let four = checked(&[0, 1, 2, 3], way);
    let eight = checked(&[0, 1, 2, 3, 4, 5, 6, 7], way);
    let digests = format!("digests {} {}", digest(&four), digest(&eight));
    println!("{digests}");
    if !is_again {
        let said = through_nccl();
        assert!(said.contains(&digests), "other bits through NCCL: {digests}, {said}");
        assert!(checked(&[0, 0, 1, 1], "by the host") == four, "other bits on two GPUs");
        assert!(checked(&[0; 8], "by the host") == eight, "other bits on one GPU");
    }
}
