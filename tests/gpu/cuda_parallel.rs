//! A model split over emulated GPUs, through the emulated NCCL.

use std::path::PathBuf;

use crate::golden::{Expected, argmax, cases, expected, relative_error, source, worst};
use crate::gpus;
use crate::process::chaski;
use crate::steps::prefill;
use chaski::engine;
use chaski::executor::cuda::Peers;
use chaski::executor::{Executor, cuda};
use chaski::kernel::KernelSet;
use chaski::model::{Logits, choose};
use chaski::op::{Program, Tuning};
use chaski::rank::Rank;
use chaski::sampler::{Sampler, SamplingOptions};
use chaski::team::Team;

/// The relative L2 of all logits of a prefill in f16, and of decoding: as for one GPU.
const PREFILL: f64 = 2e-3;
const DECODE: f64 = 1e-3;

/// The checkpoint whose halves suit the kernels.
fn case() -> PathBuf {
    cases().into_iter().find(|case| case.ends_with("gqa8-hd64-f16")).unwrap()
}

/// Ranks on these GPUs.
fn team(ordinals: &[u32], chunk: usize) -> Team {
    let request = engine::Options {
        context: Some(128),
        prefill_chunk: Some(chunk),
        scored: usize::MAX,
        ..engine::Options::default()
    };
    gpus::team(&source(&case()), request, 1, ordinals).unwrap()
}

#[test]
fn logits_of_two_gpus_and_of_two_ranks_on_one_are_right_and_the_same() {
    let Expected { ids, logits, .. } = expected(&case());
    let mut results = Vec::new();
    for ordinals in [[0, 1], [0, 0]] {
        let mut team = team(&ordinals, ids.len());
        for (chunk, bound) in [(ids.len(), PREFILL), (1, DECODE)] {
            let ours = prefill(&mut team, &ids, chunk);
            let (whole, (at, position)) =
                (relative_error(&ours, &logits), worst(&ours, &logits, ids.len()));
            assert!(whole <= bound && at <= 3.0 * bound, "{whole:.2e}, {at:.2e} at {position}");
            assert!(ours == prefill(&mut team, &ids, chunk), "other bits in the next run");
            results.push(ours);
        }
        let residual = team.each(|rank| {
            let x = rank.model().state.x;
            Ok(rank.device_mut().read(x)?.to_vec())
        });
        let residual = residual.unwrap();
        assert!(residual[0] == residual[1] && residual[0].iter().any(|x| *x != 0.0));
    }
    assert!(results[..2] == results[2..]);
}

/// The devices' own choices, each taken before the hosts know of the one before: those that a sampler on
/// the host makes from the same logits.
#[test]
fn tokens_are_chosen_without_the_hosts() {
    let Expected { ids, greedy: theirs, .. } = expected(&case());
    let greedy = SamplingOptions { temperature: 0.0, ..Default::default() };
    let drawn = SamplingOptions { seed: 11, ..Default::default() };
    let filtered = SamplingOptions { temperature: 0.8, top_k: 30, top_p: 0.9, ..drawn.clone() };
    let penalised = SamplingOptions {
        repeat_penalty: 1.2,
        min_p: 0.02,
        logit_bias: vec![(3, 2.0), (100, f32::NEG_INFINITY)],
        ..filtered.clone()
    };
    for graphs in [true, false] {
        let mut team = team(&[0, 1], ids.len());
        give_work(&mut team, graphs);
        for options in [&greedy, &drawn, &filtered, &penalised] {
            team.rewind(0).unwrap();
            team.begin(options, &ids).unwrap();
            team.forward(&ids, Logits::Last).unwrap();
            let mut chosen = vec![team.sample().unwrap()];
            while chosen.len() < 12 {
                chosen.push(team.decode_step().unwrap());
            }
            if options.temperature == 0.0 {
                assert_eq!(chosen[0], theirs[0]);
            }
            team.rewind(0).unwrap();
            let mut sampler = Sampler::new(options.clone(), team.vocab()).unwrap();
            sampler.accept_prompt(&ids);
            let mut logits = team.prefill(&ids, Logits::Last).unwrap().to_vec();
            for (position, token) in (ids.len() as u64..).zip(chosen) {
                assert!(options.temperature > 0.0 || token == argmax(&logits));
                assert_eq!(sampler.sample(&mut logits, position).unwrap(), token, "{options:?}");
                sampler.accept(token);
                logits = team.decode(token).unwrap().to_vec();
            }
        }
    }
}

/// With graphs or without; by kernels alone, either way.
fn give_work(team: &mut Team, graphs: bool) {
    let set = move |rank: &mut Rank| {
        let mut program = Program::default();
        program.push(choose(rank.model()));
        let Executor::Cuda(cuda) = rank.device_mut() else { panic!("on a GPU") };
        assert!(!cuda.needs_hosts(&program));
        cuda.set_options(cuda::LaunchOptions {
            graphs,
            programmatic: true,
            synchronous: false,
            kernels: KernelSet::PORTABLE,
            tuning: Tuning::DEFAULT,
            peers: Peers::Untried,
            asks: false,
        });
        Ok(())
    };
    team.each(set).unwrap();
}

fn ask(more: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let case = case();
    let ask =
        ["generate", "-m", case.to_str().unwrap(), "--ids", "1,2,3", "--print-ids", "-n", "6"];
    let sampling = ["--temp", "0.8", "--top-p", "0.9", "--seed", "5"];
    let how = ["--ignore-eos", "--context", "64", "--prefill-chunk", "8"];
    chaski(&[&ask[..], &sampling, &how, more].concat(), environment)
}

#[test]
fn the_command_line_splits_over_gpus() {
    let (status, one, errors) = ask(&["--emulate", "2"], &[]);
    assert_eq!(status, Some(0), "{errors}");
    for split in [&["--tensor-parallel", "2"][..], &["--devices", "1,0"], &["--devices", "0,0"]] {
        let patient = ["--emulate", "2", "--timeout", "600"];
        let (status, two, errors) = ask(&[&patient[..], split].concat(), &[]);
        assert_eq!(status, Some(0), "{errors}");
        assert_eq!(two, one, "{split:?}");
    }
    // Whatever way the sums go, and it is told which.
    for (variable, value, way) in [
        ("CHASKI_PEERS", "on", "over peer memory"),
        ("CHASKI_PEERS", "off", "through NCCL: CHASKI_PEERS=off"),
        ("CHASKI_EMULATE_PEERS", "off", "through NCCL: cuda:0 has no access to the memory of"),
        (
            "CHASKI_EMULATE_PEERS",
            "0-2,1-2",
            "through NCCL: cuda:0 has no access to the memory of cuda:1",
        ),
        (
            "CHASKI_EMULATE_PEERS",
            "broken",
            "through NCCL: what others store into the memory of rank",
        ),
        ("CHASKI_EMULATE_FAULT", "cuCtxEnablePeerAccess:2:217", "through NCCL: cuda:"),
    ] {
        let split = ["--emulate", "2", "--tensor-parallel", "2", "--timeout", "600"];
        let (status, two, errors) = ask(&split, &[(variable, value)]);
        assert_eq!(status, Some(0), "{errors}");
        assert!(errors.contains(way), "{errors}");
        assert_eq!(two, one, "{way}");
    }
    let (status, _, errors) = ask(&["--emulate", "1", "--tensor-parallel", "2"], &[]);
    assert_eq!(status, Some(1));
    assert!(
        errors.contains("there is no GPU cuda:1 for a rank: the driver shows 1 GPU;"),
        "{errors}"
    );
}

/// The GPU that has least, less what NCCL takes of it: it would have no room for a communicator.
#[test]
fn the_smallest_gpu_decides_what_fits() {
    let context = |memory: &str| {
        let ask = ["generate", "-m", "synthetic:tiny", "--ids", "1,2,3", "--print-ids", "-n", "2"];
        let split = ["--emulate", "2", "--tensor-parallel", "2", "--timeout", "600"];
        let memory = [("CHASKI_EMULATE_MEMORY", memory)];
        let (status, _, errors) = chaski(&[&ask[..], &split].concat(), &memory);
        assert_eq!(status, Some(0), "{memory:?}: {errors}");
        let (_, context) = errors.split_once("; context ").unwrap();
        let (tokens, limit) = context.split_once(" (").unwrap();
        (tokens.parse::<usize>().unwrap(), limit.starts_with("what fits the memory"))
    };
    let least = context("6M,6M");
    assert!(least.1, "{least:?}");
    assert_eq!([context("6M,8G"), context("8G,6M")], [least; 2]);
}

/// What tests/sweep/cuda_faults.rs, whose faults come before a graph is there, does not meet.
#[test]
fn a_graph_that_fails_and_a_communicator_that_is_not_made_end_the_run() {
    for fault in ["kernel:170:700", "ncclCommInitRank:2:3"] {
        let split = ["--emulate", "2", "--tensor-parallel", "2", "--timeout", "600"];
        let variables = [("CHASKI_EMULATE_FAULT", fault), ("CHASKI_PEERS", "on")];
        let (status, _, errors) = ask(&split, &variables);
        assert_eq!(status, Some(1), "{fault}: {errors}");
        let ours: Vec<_> = errors.lines().filter(|line| line.starts_with("chaski: ")).collect();
        assert!(ours.len() == 1 && ours[0].contains("rank "), "{fault}: {errors}");
    }
}
