//! Work that begins while weights are still on their way to an emulated GPU: never before its own are there,
//! the same bits as ever, and what goes wrong on the way told in a line.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::emulated;
use crate::process::chaski;
use chaski::comm::{Communicator, SingleRank};
use chaski::engine;
use chaski::error::{Error, Result};
use chaski::executor::cuda::{Cuda, Gpu, OnProgress};
use chaski::executor::{Blueprint, Executor};
use chaski::model::Logits;
use chaski::source::Source;
use chaski::team::Team;

/// Threads that load.
const LOADERS: usize = 6;

/// Long enough for an op that does not wait to begin; a test that passes takes that long once.
const BAIT: Duration = Duration::from_millis(500);

/// Longer than anything takes.
const FOREVER: Duration = Duration::from_secs(300);

/// What has happened so far.
#[derive(Default)]
struct Seen {
    /// Pieces of weights that were told of...
    told: usize,
    /// ...and counted as here.
    here: usize,
    /// Ops that began, and how many pieces were here then.
    ops: Vec<(&'static str, usize)>,
    /// Ops that had begun when the last piece came.
    ops_before_last: usize,
}

/// Holds back the loading threads so that an op that does not wait is caught.
struct Watch {
    seen: Mutex<Seen>,
    changed: Condvar,
    pieces: usize,
}

impl Watch {
    /// Of the first pieces, one of each thread, none counts before all have come and a trap has stood
    /// open for a while. The embedding, which is the first, is among them. The last one counts when
    /// an op has begun.
    fn hold(&self) {
        let mut seen = self.seen.lock().unwrap();
        seen.told += 1;
        let number = seen.told;
        self.changed.notify_all();
        if number <= LOADERS {
            seen = self.changed.wait_while(seen, |seen| seen.told < LOADERS).unwrap();
            let none = |seen: &mut Seen| seen.ops.is_empty();
            seen = self.changed.wait_timeout_while(seen, BAIT, none).unwrap().0;
        }
        if number == self.pieces {
            let none = |seen: &mut Seen| seen.ops.is_empty();
            seen = self.changed.wait_timeout_while(seen, FOREVER, none).unwrap().0;
            seen.ops_before_last = seen.ops.len();
        }
        seen.here += 1;
    }
}

/// A rank's way to nobody, which sees ops begin.
struct Witness(Arc<Watch>);

impl Communicator for Witness {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_gather(&self, own: &[u64]) -> Vec<u64> {
        own.to_vec()
    }

    fn enter(&self, op: &'static str) -> Result<()> {
        let mut seen = self.0.seen.lock().unwrap();
        let here = seen.here;
        seen.ops.push((op, here));
        self.0.changed.notify_all();
        Ok(())
    }

    fn leave(&self) -> Result<()> {
        Ok(())
    }
}

/// A golden checkpoint.
fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Of three layers, its head the embedding.
fn tied() -> PathBuf {
    case("gqa4-hd64-bf16-tied")
}

fn source(folder: &Path) -> Source {
    Source::Directory(folder.to_owned())
}

fn request(tokens: usize) -> engine::Options {
    engine::Options {
        context: Some(64),
        prefill_chunk: Some(tokens),
        scored: usize::MAX,
        ..engine::Options::default()
    }
}

fn gpu() -> Gpu {
    emulated::start();
    Gpu::open(0).unwrap()
}

/// The model on an emulated GPU, to which its weights may still be on their way.
fn begin(
    gpu: &Gpu,
    case: &Path,
    tokens: usize,
    comm: Arc<dyn Communicator>,
    on_progress: OnProgress,
) -> Result<Team> {
    let rank = emulated::rank_on(&source(case), request(tokens), |_, blueprint| {
        let cuda = Cuda::while_loading(gpu, &Blueprint { comm, ..blueprint }, on_progress)?;
        Ok(Executor::Cuda(Box::new(cuda)))
    });
    rank.map(Team::from)
}

/// The weights, one after the other, that are the last which each op of a prefill needs.
fn needed(layers: usize, tied: bool) -> Vec<usize> {
    // Norm; q, k and v; RoPE, attention, O; norm, gate and up, down.
    let layer = [0, 3, 0, 0, 1, 0, 2, 1];
    let head = [0, usize::from(!tied)];
    let news = [1].into_iter().chain((0..layers).flat_map(|_| layer)).chain(head);
    news.scan(0, |all, new| {
        *all += new;
        Some(*all)
    })
    .collect()
}

#[test]
fn no_op_begins_before_its_weights_are_there() {
    for (name, layers, tied) in [("gqa4-hd64-bf16-tied", 3, true), ("gqa8-hd64-f16", 2, false)] {
        let (case, ids) = (case(name), [5, 3, 8, 2, 9, 1, 7]);
        let mut plain = emulated::team(&source(&case), request(7)).unwrap();
        let plain = plain.prefill(&ids, Logits::All).unwrap().to_vec();
        // The GPU's kernels are loaded then: nothing but its weights holds up an op.
        let (gpu, alone) = (gpu(), Arc::new(SingleRank::default()));
        let mut warm = begin(&gpu, &case, 7, alone, Box::new(|_| Ok(()))).unwrap();
        assert!(warm.prefill(&ids, Logits::All).unwrap() == plain, "{name}: other bits");
        let needed = needed(layers, tied);
        let pieces = *needed.last().unwrap();
        let (seen, changed) = (Mutex::default(), Condvar::new());
        let watch = Arc::new(Watch { seen, changed, pieces });
        let held = watch.clone();
        let told = Box::new(move |_| {
            held.hold();
            Ok(())
        });
        let mut rank = begin(&gpu, &case, 7, Arc::new(Witness(watch.clone())), told).unwrap();
        let logits = rank.prefill(&ids, Logits::All).unwrap().to_vec();
        let seen = watch.seen.lock().unwrap();
        assert_eq!((seen.ops.len(), seen.here), (needed.len(), pieces), "{:?}", seen.ops);
        for ((op, here), needed) in seen.ops.iter().zip(&needed) {
            assert!(here >= needed, "{name}: {op} began with {here} of {needed}: {:?}", seen.ops);
        }
        assert!(seen.ops_before_last > 0, "{name}: nothing began before all had come");
        assert!(logits == plain, "{name}: other bits");
    }
}

/// Copies that are made only when somebody waits for them.
#[test]
fn copies_are_waited_for() {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "loading::no_op_begins_before_its_weights_are_there"]);
    let output = again.env("CHASKI_EMULATE_STREAMS", "lazy").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A copy of the case's files, to be spoilt.
fn copied(case: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in case.read_dir().unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

#[test]
fn a_file_that_becomes_shorter_is_told() {
    let folder = copied(&tied());
    let (gpu, source) = (gpu(), source(folder.path()));
    let rank = emulated::rank_on(&source, request(3), |_, blueprint| {
        let file = File::options().write(true).open(folder.path().join("model.safetensors"));
        file.unwrap().set_len(4096).unwrap();
        let cuda = Cuda::while_loading(&gpu, &blueprint, Box::new(|_| Ok(())))?;
        Ok(Executor::Cuda(Box::new(cuda)))
    });
    let mut team = Team::from(rank.unwrap());
    for _ in 0..2 {
        let told = team.prefill(&[1, 2, 3], Logits::Last).unwrap_err().to_string();
        let file = folder.path().join("model.safetensors").display().to_string();
        assert!(told.starts_with(&file) && told.contains("has become shorter"), "{told}");
    }
}

#[test]
fn loading_ends_when_it_is_told_to_and_with_its_rank() {
    let stop = Box::new(|_| Err(Error::Interrupted));
    let mut rank = begin(&gpu(), &tied(), 3, Arc::new(SingleRank::default()), stop).unwrap();
    assert_eq!(rank.prefill(&[1, 2, 3], Logits::Last).unwrap_err(), Error::Interrupted);
    // What was told of weights is dropped with the rank, if not before.
    let owned = Arc::new(());
    let kept = Arc::downgrade(&owned);
    let told = Box::new(move |_| {
        let _ = &owned;
        Ok(())
    });
    drop(begin(&gpu(), &tied(), 3, Arc::new(SingleRank::default()), told).unwrap());
    assert!(kept.upgrade().is_none());
}

/// As a user sees it: a copy that fails, wherever.
#[test]
fn a_copy_that_fails_is_told_in_one_line() {
    let case = tied();
    let ask = ["generate", "--emulate", "1", "-m", case.to_str().unwrap(), "--ids", "1,2,3"];
    for call in [2, 9, 15] {
        let fault = format!("cuMemcpyHtoDAsync_v2:{call}:700");
        let environment = [("CHASKI_EMULATE_FAULT", &*fault)];
        let (status, _, errors) =
            chaski(&[&ask[..], &["--print-ids", "-n", "2"]].concat(), &environment);
        assert_eq!(status, Some(1), "{errors}");
        let ours: Vec<_> = errors.lines().filter(|line| line.starts_with("chaski: ")).collect();
        assert!(ours.len() == 1 && ours[0].contains("illegal"), "{errors}");
    }
}
