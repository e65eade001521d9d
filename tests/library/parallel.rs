//! A model split over several ranks, on the CPU.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::cpus::{failure, team};
use crate::golden::{Expected, argmax, cases, expected, relative_error, source, worst};
use crate::process::chaski;
use crate::steps::prefill;
use chaski::checkpoint::Checkpoint;
use chaski::comm::{Communicator, Fault, FaultKind, LocalGroup as Ranks};
use chaski::config::{Config, Dims};
use chaski::executor::Hardware;
use chaski::memory::Weight;
use chaski::model::{Logits, MemoryBudget, Plan, PlanRequest, Weights};
use chaski::rank::RankSpec;
use chaski::sampler::SamplingOptions;
use chaski::team::{Team, TeamOptions};

/// Relative L2 of the logits at any position.
const TOLERANCE: f64 = 1e-4;

/// The cases that can be split over `world` ranks.
fn splittable(world: usize) -> Vec<std::path::PathBuf> {
    let dims = |case: &Path| Dims::new(&Config::load(&source(case)).unwrap(), world);
    let cases: Vec<_> = cases().into_iter().filter(|case| dims(case).is_ok()).collect();
    assert!(cases.len() >= 3, "{world} ranks have too few models");
    cases
}

#[test]
fn logits_of_2_4_and_8_ranks_are_those_of_one_in_any_chunking() {
    for world in [2, 4, 8] {
        for case in splittable(world) {
            let Expected { ids, logits, .. } = expected(&case);
            let one =
                prefill(&mut team(&case, [1, 1], TeamOptions::default()).unwrap(), &ids, ids.len());
            let mut team = team(&case, [1, world], TeamOptions::default()).unwrap();
            let ours = prefill(&mut team, &ids, ids.len());
            let told = format!("{} on {world} ranks", case.display());
            for other in [one, logits] {
                let (error, position) = worst(&ours, &other, ids.len());
                assert!(error <= TOLERANCE, "{told}: {error:.2e} at {position}");
            }
            assert!(ours == prefill(&mut team, &ids, ids.len()), "{told}: other bits");
            assert!(ours == prefill(&mut team, &ids, 1), "{told}: other bits token by token");
            assert!(ours == prefill(&mut team, &ids, 7), "{told}: other bits in chunks");
        }
    }
}

#[test]
fn all_ranks_hold_the_same_bits() {
    for world in [2, 8] {
        for case in splittable(world) {
            let ids = expected(&case).ids;
            let mut team = team(&case, [1, world], TeamOptions::default()).unwrap();
            prefill(&mut team, &ids, 5);
            let residual = team.each(|rank| {
                let x = rank.model().state.x;
                Ok(rank.device_mut().read(x)?.to_vec())
            });
            let residual = residual.unwrap();
            assert!(residual[0].iter().any(|x| *x != 0.0));
            assert!(residual.iter().all(|x| *x == residual[0]), "{}", case.display());
        }
    }
}

/// Chosen by the ranks together, of logits that none of them has all of.
#[test]
fn greedy_continuation_is_the_same_64_tokens() {
    for case in splittable(2) {
        let Expected { ids, greedy: theirs, .. } = expected(&case);
        let mut team = team(&case, [1, 2], TeamOptions::default()).unwrap();
        let greedy = SamplingOptions { temperature: 0.0, ..Default::default() };
        team.begin(&greedy, &ids).unwrap();
        team.forward(&ids, Logits::Last).unwrap();
        let mut chosen = vec![team.sample().unwrap()];
        while chosen.len() < theirs.len() {
            chosen.push(team.decode_step().unwrap());
        }
        assert_eq!(chosen, theirs, "{}", case.display());
    }
}

/// Drawn tokens and penalties: each rank counts its own tokens.
#[test]
fn a_sampled_text_is_that_of_one_rank() {
    let ids = "1,2,3,4,5,6,7,8";
    let case = &splittable(8)[0];
    let text = |world: &str| {
        let ask = ["generate", "-m", case.to_str().unwrap(), "--ids", ids, "--print-ids"];
        let how = ["-n", "60", "--temp", "2", "--top-p", "0.95", "--top-k", "100", "--seed", "3"];
        let more = ["--repeat-penalty", "1.3", "--presence-penalty", "0.5", "--ignore-eos"];
        let split = ["--logit-bias", "70=3", "--device", "cpu", "--tensor-parallel", world];
        let (status, text, errors) = chaski(&[&ask[..], &how, &more, &split].concat(), &[]);
        assert_eq!(status, Some(0), "{errors}");
        text
    };
    let one = text("1");
    for world in ["2", "4", "8"] {
        assert_eq!(text(world), one, "{world} ranks");
    }
}

#[test]
fn every_command_takes_a_split() {
    let folder = tempfile::tempdir().unwrap();
    let case = &splittable(4)[0];
    let logits = |world: &str| {
        let out = folder.path().join(world);
        let (case, out) = (case.to_str().unwrap(), out.to_str().unwrap());
        let ask = ["logits", "-m", case, "--ids", "9,8,7,6,5,4,3,2,1", "-o", out];
        let split = ["--device", "cpu", "--tensor-parallel", world];
        let (status, _, errors) = chaski(&[&ask[..], &split].concat(), &[]);
        assert_eq!(status, Some(0), "{errors}");
        let file = std::fs::read(out).unwrap();
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let numbers = file[header..].chunks_exact(4);
        numbers.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<f32>>()
    };
    let (one, four) = (logits("1"), logits("4"));
    assert!(relative_error(&four, &one) <= TOLERANCE);
    assert_eq!(argmax(&four), argmax(&one));
    let text = folder.path().join("text");
    std::fs::write(&text, "What is 27 + 58? ".repeat(20)).unwrap();
    let perplexity = |world: &str| {
        let ask = ["perplexity", "--context", "32", "-f", text.to_str().unwrap()];
        let split = ["--device", "cpu", "--tensor-parallel", world];
        let (status, text, errors) = chaski(&[&ask[..], &split].concat(), &[]);
        assert_eq!(status, Some(0), "{errors}");
        text
    };
    assert_eq!(perplexity("2"), perplexity("1"));
}

#[test]
fn splits_that_cannot_be_are_refused_by_name() {
    for (split, reason) in [
        (["--tensor-parallel", "3"], "over 3 ranks: its num_attention_heads is 4"),
        (["--tensor-parallel", "0"], "at least 1 is needed"),
        (["--timeout", "0"], "a number of seconds is needed"),
    ] {
        let ask = ["chat", "-p", "Hello", "--device", "cpu"];
        let (status, _, errors) = chaski(&[&ask[..], &split].concat(), &[]);
        assert_ne!(status, Some(0), "{errors}");
        assert!(errors.contains(reason), "{errors}");
    }
}

/// Thousands of rounds, with ranks that come late by turns.
#[test]
fn sums_are_in_the_order_of_ranks_however_late_one_is() {
    const WORLD: usize = 4;
    let value = |rank: usize, round: usize, i: usize| {
        let large = if (rank + i).is_multiple_of(2) { 1e7 } else { -1e7 };
        large + (round * 31 + i * 7 + rank) as f32 * 0.37
    };
    let ranks = Ranks::new(vec!["cpu".to_owned(); WORLD], Duration::from_secs(30), None);
    thread::scope(|scope| {
        for rank in 0..WORLD {
            let comm = ranks.place(rank);
            scope.spawn(move || {
                for round in 0..4000 {
                    if round % 97 == rank * 7 {
                        thread::sleep(Duration::from_micros(300));
                    }
                    let len = 1 + round % 5;
                    let mut sums: Vec<f32> = (0..len).map(|i| value(rank, round, i)).collect();
                    comm.all_reduce(&mut sums);
                    for (i, sum) in sums.iter().enumerate() {
                        let expected = (0..WORLD).fold(0.0, |sum, r| sum + value(r, round, i));
                        assert_eq!(*sum, expected, "round {round}");
                    }
                    let all = comm.all_gather(&[rank as u64, round as u64]);
                    let of_ranks = (0..WORLD).flat_map(|rank| [rank as u64, round as u64]);
                    assert_eq!(all, of_ranks.collect::<Vec<_>>());
                }
            });
        }
    });
}

/// A hundred faults: in prefill, in decoding, in the choice of tokens; on any rank.
#[test]
fn a_rank_that_errs_or_panics_or_stalls_anywhere_ends_the_run_in_time() {
    quiet_about_faults();
    let case = &splittable(4)[1];
    for number in 0..100 {
        let (world, rank) = ([2, 4][number % 2], number / 2 % 2);
        let kind =
            [FaultKind::Error, FaultKind::Panic, FaultKind::Delay(Duration::MAX)][number % 3];
        let fault = Fault { rank, op: number * 3 / 2, kind };
        let timeout = match kind {
            FaultKind::Delay(_) => Duration::from_millis(500),
            _ => Duration::from_secs(30),
        };
        let options = TeamOptions { timeout, fault: Some(fault), ..TeamOptions::default() };
        let (error, took) = failure(team(case, [1, world], options).unwrap());
        let said = match kind {
            FaultKind::Error => "a fault that was asked for",
            FaultKind::Panic => "it panicked: a fault that was asked for",
            FaultKind::Delay(_) => "made no progress for 0.5 s; `timeout` allows more",
        };
        let named = format!("rank {rank} on cpu failed in ");
        assert!(error.starts_with(&named) && error.ends_with(said), "{fault:?}: {error}");
        assert!(!error.contains("in no op") && !error.contains('\n'), "{fault:?}: {error}");
        assert!(took < Duration::from_secs(5), "{fault:?}: {took:?}");
    }
}

/// No backtraces of panics that are asked for: they take longer than the rest of the test.
fn quiet_about_faults() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref() != Some(&"a fault that was asked for") {
            told(panic);
        }
    }));
}

/// A rank that is slow, but gets on, is waited for.
/// Whoever comes too late to be told of a failure is told at once: a rank may fail while another is loaded.
#[test]
fn what_is_to_be_done_on_failure_is_done_after_it_too() {
    let room = Ranks::new(vec!["cpu".to_owned()], Duration::from_secs(1), None);
    let done = Arc::new(AtomicUsize::new(0));
    let act = || {
        let done = done.clone();
        Box::new(move || _ = done.fetch_add(1, Ordering::Relaxed))
    };
    room.on_failure(act());
    assert_eq!(done.load(Ordering::Relaxed), 0);
    room.fail(0, "a fault that was asked for");
    room.on_failure(act());
    room.fail(0, "another one");
    assert_eq!(done.load(Ordering::Relaxed), 2, "each once");
}

#[test]
fn a_slow_rank_changes_nothing() {
    let case = &splittable(2)[0];
    let ids = expected(case).ids;
    let plain = prefill(&mut team(case, [1, 2], TeamOptions::default()).unwrap(), &ids, 5);
    let kind = FaultKind::Delay(Duration::from_millis(300));
    let options =
        TeamOptions { fault: Some(Fault { rank: 1, op: 20, kind }), ..TeamOptions::default() };
    assert!(plain == prefill(&mut team(case, [1, 2], options).unwrap(), &ids, 5));
}

#[test]
fn a_rank_that_gets_no_memory_is_named() {
    let source = source(&splittable(2)[0]);
    let (config, checkpoint) = (Config::load(&source).unwrap(), Checkpoint::open(&source).unwrap());
    let dims = Dims::new(&config, 2).unwrap();
    let request = PlanRequest { chunk: 1 << 42, ..PlanRequest::default() };
    let mut plan = Plan::new(&config, &dims, 0, request, MemoryBudget::Host(1 << 30)).unwrap();
    plan.sizes.context = 1 << 50;
    let hardware = [Hardware::cpu().unwrap(), Hardware::cpu().unwrap()];
    let spec = RankSpec { config: &config, dims, checkpoint, plan: &plan };
    let team = Team::new(spec, &hardware, TeamOptions::default(), &|_| Ok(()));
    let error = team.err().expect("no machine has that much").to_string();
    // Neither gets it: the first to be told so is named.
    let told =
        |rank| error.starts_with(&format!("rank {rank} on cpu cannot start: cannot allocate"));
    assert!(told(0) || told(1), "{error}");
}

/// Every tensor, put together from the ranks' parts, is the one in the file.
#[test]
fn the_parts_of_all_ranks_are_the_whole() {
    for case in cases() {
        let source = source(&case);
        let (config, checkpoint) =
            (Config::load(&source).unwrap(), Checkpoint::open(&source).unwrap());
        let whole: Vec<Weight> = locate(&checkpoint, Dims::new(&config, 1).unwrap());
        for world in [2, 4, 8] {
            let Ok(dims) = Dims::new(&config, world) else { continue };
            let parts: Vec<_> =
                (0..world).map(|rank| locate(&checkpoint, dims.of_rank(rank))).collect();
            for (i, whole) in whole.iter().enumerate() {
                let mut parts: Vec<Weight> = parts.iter().map(|weights| weights[i]).collect();
                parts.dedup(); // ranks may hold the same
                let [mut together, expected] =
                    [rows(&checkpoint, &parts), rows(&checkpoint, &[*whole])];
                if parts.iter().any(|part| part.cols < whole.cols) {
                    let columns = together.chunks(whole.rows).map(<[_]>::to_vec);
                    let columns: Vec<Vec<Vec<u8>>> = columns.collect();
                    together = (0..whole.rows)
                        .map(|row| columns.iter().flat_map(|part| part[row].clone()).collect())
                        .collect();
                }
                assert!(together == expected, "{}: weight {i} of {world} ranks", case.display());
            }
        }
    }
}

fn locate(checkpoint: &Checkpoint, dims: Dims) -> Vec<Weight> {
    Weights::locate(checkpoint, &dims).unwrap().matrices().collect()
}

/// The bytes of every row of the weights, one after the other.
fn rows(checkpoint: &Checkpoint, weights: &[Weight]) -> Vec<Vec<u8>> {
    let row = |weight: &Weight, row: usize| {
        let at = weight.offset + row * weight.stride_bytes();
        checkpoint.bytes(at, weight.encoding.row_bytes(weight.cols)).to_vec()
    };
    weights.iter().flat_map(|weight| (0..weight.rows).map(move |r| row(weight, r))).collect()
}

/// Bytes from the shapes alone; times as the figures that the lines below the table name would have them.
#[test]
fn a_split_over_gpus_is_planned_without_any() {
    let inspect = |model: &str, more: &[&str]| {
        let ask = ["inspect", "-m", model, "--device", "cpu", "--json"];
        let (status, text, errors) = chaski(&[&ask[..], more].concat(), &[]);
        assert_eq!(status, Some(0), "{errors}");
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        report["prediction"].clone()
    };
    let prediction = inspect("synthetic:llama3-70b", &["--tensor-parallel", "4"]);
    let splits = prediction["splits"].as_array().unwrap();
    let worlds: Vec<_> = splits.iter().map(|split| split["ranks"].as_u64().unwrap()).collect();
    assert_eq!(worlds, [1, 2, 4, 8]);
    let [one, _, four, eight] = &splits[..] else { panic!("{splits:?}") };
    // 131.4 GiB of weights on one GPU of 80; a quarter of them on each of four.
    assert!(one["does_not_fit"].as_str().unwrap().contains("the weights take 131.4"), "{one}");
    let bytes = |split: &serde_json::Value| split["weight_bytes_per_rank"].as_u64().unwrap();
    assert_eq!(4 * bytes(four), bytes(one));
    assert_eq!(four["context"], 8192);
    // After the embedding, and two a layer: 8192 sums of 4 bytes to each of three others.
    assert_eq!(four["all_reduces_per_token"], 161);
    assert_eq!(four["link_bytes_per_token_per_rank"], 161 * 3 * 8192 * 4);
    // A quarter of 139 GB at 92% of 3.35 TB/s, 161 times 5 us, 400 kernels 1 us apart, ...
    let seconds =
        |split: &serde_json::Value| split["predicted_seconds_per_token"].as_f64().unwrap();
    assert!((seconds(four) - 12.98e-3).abs() < 0.05e-3, "{four}");
    assert!((seconds(eight) - 7.37e-3).abs() < 0.05e-3, "{eight}");
    // 8 KV heads over 16 ranks: half of the ranks hold copies.
    let prediction = inspect("synthetic:llama3.1-405b", &["--tensor-parallel", "16"]);
    let splits = prediction["splits"].as_array().unwrap();
    assert_eq!(splits[3]["kv_bytes_per_token_per_rank"], splits[4]["kv_bytes_per_token_per_rank"]);
    let prediction = inspect("demo", &["--memory", "1M"]);
    assert!(prediction["splits"][3]["error"].as_str().unwrap().contains("num_attention_heads"));
}
